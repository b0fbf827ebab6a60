"""Watch time as a distribution: cells of seconds up to the end of a video, then cells of completion.

People skip within seconds, finish a video, or play it again, and only the first of these is measured in
seconds. So the cells of one video are: an atom at zero (pages where nothing plays by itself), cells of
log seconds cut off just before the video's end, and cells of the ratio watch time / duration around and
beyond the end. A model gives one logit a cell; the width that the cut leaves to a cell is applied here.

Legend: N items, M cells, T tabs, G duration groups, C knots of duration; ``...`` any leading shape.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from reward_models.users.user_state import amounts

_LOG_ZERO = -200.0  # its exponential is 0 in float32, and unlike -inf it can be subtracted
_SECONDS = (
    *(0.1, 0.5, 0.8, 1.1, 1.5, 2.0, 2.6, 3.5, 5.0, 7.0, 9.0, 12.0, 15.0, 18.0, 23.0, 30.0, 40.0, 55.0),
    *(75.0, 105.0, 150.0, 220.0, 330.0, 600.0, 1200.0, 3600.0, 36000.0),
)
KNOTS_S = (4.0, 7.0, 10.0, 14.0, 18.0, 25.0, 40.0, 60.0, 100.0, 160.0, 260.0, 500.0)
"""Durations in seconds at which ``WatchTimeCells.hats`` has its peaks."""
_POSITIONS = 8  # of a cell, where its amounts are averaged
_RATIOS = (0.94, 0.97, 1.0, 1.03, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)


@dataclass(frozen=True, kw_only=True)
class WatchTimeCells:
    """The grid of cells, and the way from cells to seconds and back."""

    seconds: tuple[float, ...] = _SECONDS
    """Edges in seconds, increasing, above 0. They hold 7 and 18: KuaiRand's marks of a click and a long
    view, so that both can be read off a cell."""
    ratios: tuple[float, ...] = _RATIOS
    """Edges as shares of the duration, increasing, above 0. The first one ends the cells of seconds,
    the last one bounds every watch time."""
    durations: tuple[float, ...] = (7.0, 10.0, 18.0, 25.0)
    """Edges in seconds between the groups of videos in which signals are read off cells differently."""

    def __post_init__(self) -> None:
        for name in ("seconds", "ratios", "durations"):
            edges = getattr(self, name)
            object.__setattr__(self, name, tuple(float(edge) for edge in edges))
            if len(edges) < 2 or edges[0] <= 0 or any(a >= b for a, b in pairwise(edges)):
                raise ValueError(
                    f"{name} needs two or more increasing edges above 0, got {edges}; leave it out to take the default"
                )

    @property
    def num_cells(self) -> int:
        """M: the atom, the cells of seconds, the cells of ratio."""
        return 1 + len(self.seconds) - 1 + len(self.ratios) - 1

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.durations) + 1

    def config(self) -> dict[str, Any]:
        """The edges as JSON values."""
        return {name: list(edges) for name, edges in asdict(self).items()}

    def log_edges(self) -> Tensor:
        """Log bounds (M, 4) of each cell: low and high in seconds, low and high in ratio; inf where not bound."""
        log_seconds, log_ratios = torch.tensor(self.seconds).log(), torch.tensor(self.ratios).log()
        num_seconds, num_ratios = len(log_seconds) - 1, len(log_ratios) - 1
        infinity, end = torch.full((num_ratios,), torch.inf), log_ratios[:1].expand(num_seconds)
        by_seconds = torch.stack([log_seconds[:-1], log_seconds[1:], end, end], 1)
        by_ratio = torch.stack([infinity, infinity, log_ratios[:-1], log_ratios[1:]], 1)
        return torch.cat([torch.full((1, 4), _LOG_ZERO), by_seconds, by_ratio])

    def log_duration(self, duration: Tensor) -> Tensor:
        """Log seconds, kept inside the range of the edges."""
        return torch.log(duration.clamp(self.seconds[0], self.seconds[-1]))

    def bounds(self, cell: Tensor, log_duration: Tensor) -> tuple[Tensor, Tensor]:
        """Log seconds at the lower and the upper end of cells.

        Args:
            cell: int64, any shape.
            log_duration: float32, of the shape of ``cell`` or with a last axis of 1 in its place.
        """
        edges = _edges_on(self, log_duration.device)[cell]
        both = torch.minimum(edges[..., :2], edges[..., 2:] + log_duration.unsqueeze(-1))
        return both[..., 0], both[..., 1]

    def share(self, duration_N: Tensor) -> Tensor:
        """Share (N, M) of each cell's log width that lies before the video's end; 1 for atom and ratios."""
        cells_M = torch.arange(self.num_cells, device=duration_N.device)
        low_NM, high_NM = self.bounds(cells_M, self.log_duration(duration_N).unsqueeze(-1))
        edges_M4 = _edges_on(self, duration_N.device)
        is_cut_M = (cells_M > 0) & torch.isfinite(edges_M4[:, 0])
        share_NM = (high_NM - low_NM) / (edges_M4[:, 1] - edges_M4[:, 0])
        return torch.where(is_cut_M, share_NM, 1.0).clamp(0.0, 1.0)

    def log_share(self, duration_N: Tensor) -> Tensor:
        """Logarithm (N, M) of ``share``; about -70 where no width is left, so that differences stay finite."""
        return self.share(duration_N).clamp(min=1e-30).log()

    def index(self, watch_time: Tensor, duration: Tensor) -> Tensor:
        """Cell (int64) of watch times in seconds; longer than the last ratio counts as the last cell."""
        seconds = torch.tensor(self.seconds, device=duration.device)
        ratios = torch.tensor(self.ratios, device=duration.device)
        duration = duration.clamp(self.seconds[0], self.seconds[-1])
        by_time = torch.bucketize(watch_time, seconds[1:-1], right=True) + 1
        ratio = watch_time / duration
        by_ratio = torch.bucketize(ratio, ratios[1:-1], right=True) + len(self.seconds)
        cell = torch.where(ratio < self.ratios[0], by_time, by_ratio)
        return torch.where(watch_time > 0, cell, 0)

    def seconds_at(self, cell: Tensor, position: Tensor, log_duration: Tensor) -> Tensor:
        """Watch time at a relative position in [0, 1] of a cell, on the scale of log seconds."""
        low, high = self.bounds(cell, log_duration)
        return torch.exp(low + position * (high - low))

    def mean(self, log_duration: Tensor) -> Tensor:
        """Expected watch time (..., M) within each cell, positions being uniform."""
        cells_M = torch.arange(self.num_cells, device=log_duration.device)
        low, high = self.bounds(cells_M, log_duration.unsqueeze(-1))
        width = high - low
        growth = torch.where(width > 1e-4, torch.expm1(width) / width.clamp(min=1e-4), 1.0)
        return torch.exp(low) * growth

    def amounts(self, duration_N: Tensor) -> Tensor:
        """Expected log watch time and completion, as a user's state counts them, in each cell: (N, M, 2)."""
        cells_M = torch.arange(self.num_cells, device=duration_N.device)
        log_duration_N1 = self.log_duration(duration_N).unsqueeze(-1)
        total_NM2 = duration_N.new_zeros(len(duration_N), self.num_cells, 2)
        for step in range(_POSITIONS):  # neither has a simple integral over a cell
            middle_M = torch.full_like(duration_N[:1], (step + 0.5) / _POSITIONS).expand(self.num_cells)
            seconds_NM1 = self.seconds_at(cells_M, middle_M, log_duration_N1).unsqueeze(-1)
            total_NM2 += amounts(seconds_NM1, duration_N.unsqueeze(-1).expand(-1, self.num_cells))
        return total_NM2 / _POSITIONS

    def hats(self, duration_N: Tensor) -> Tensor:
        """Overlapping triangles (N, C) over log duration: users treat 10, 20 and 60 s in no linear way."""
        knots_C = torch.tensor(KNOTS_S, device=duration_N.device).log()
        log_duration_N = self.log_duration(duration_N)
        position_N = torch.bucketize(log_duration_N, knots_C[1:-1])
        low_N, high_N = knots_C[position_N], knots_C[position_N + 1]
        part_N = ((log_duration_N - low_N) / (high_N - low_N)).clamp(0.0, 1.0)
        hat_NC = torch.zeros(len(log_duration_N), len(knots_C), device=duration_N.device)
        hat_NC.scatter_(1, position_N.unsqueeze(1), (1.0 - part_N).unsqueeze(1))
        return hat_NC.scatter_(1, position_N.unsqueeze(1) + 1, part_N.unsqueeze(1))

    def group(self, duration_N: Tensor) -> Tensor:
        """Duration group (int64, 0..G-1) of each video."""
        return torch.bucketize(duration_N, torch.tensor(self.durations, device=duration_N.device), right=True)


@lru_cache(maxsize=16)
def _edges_on(cells: WatchTimeCells, device: torch.device) -> Tensor:
    return cells.log_edges().to(device)


def cell_mass(logits: Tensor, log_prior: Tensor) -> Tensor:
    """Unnormalised probability (..., M) of cells, 1 for the likeliest; see ``cell_log_probability``."""
    logits = logits + log_prior
    return torch.exp(logits - logits.amax(-1, keepdim=True))


def cell_log_probability(logits: Tensor, log_prior: Tensor) -> Tensor:
    """Log-probability (..., M) of cells, with gradients.

    Args:
        logits: (..., M) what user, video and context make of the cells.
        log_prior: (..., M) what the duration alone makes of them: log of the width that it leaves, or more.
    """
    return torch.log_softmax(logits + log_prior, -1)


def draw_cell(mass: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Inverts the cumulative mass: cells (...) and relative positions (...) within them.

    Args:
        mass: float32 (..., M), not negative, not all zero.
        uniform: float32 (...) in (0, 1); larger draws mean longer watch times.
    """
    cumulative = mass.cumsum(-1)
    target = uniform.unsqueeze(-1) * cumulative[..., -1:]
    cell = (cumulative <= target).sum(-1, keepdim=True).clamp_(max=mass.shape[-1] - 1)
    chosen = mass.gather(-1, cell)
    position = 1.0 - (cumulative.gather(-1, cell) - target) / chosen
    return cell.squeeze(-1), position.squeeze(-1).clamp_(0.0, 1.0)


def quantile(cells: WatchTimeCells, mass: Tensor, duration: Tensor, levels: Tensor) -> Tensor:
    """Quantiles (..., L) in seconds of the distribution given by ``mass`` (..., M) and ``duration`` (...)."""
    columns = []
    for level in levels:
        cell, position = draw_cell(mass, level.expand(mass.shape[:-1]))
        columns.append(cells.seconds_at(cell, position, cells.log_duration(duration)))
    return torch.stack(columns, -1)


def read_off_table(
    cell_P: Tensor, group_P: Tensor, tab_P: Tensor, signals_PD: Tensor, shape: tuple[int, int, int], prior: float = 5.0
) -> Tensor:
    """How often signals were recorded with a watch time in each cell.

    Counts of a (tab, group, cell) are shrunk to those of the (tab, cell), these to those of the cell, and
    these to the whole log, each by ``prior`` rows.

    Args:
        cell_P: int64 cells of P rows.
        group_P: int64 duration groups.
        tab_P: int64 tabs.
        signals_PD: float32 0/1, one column for each of D signals.
        shape: (T, G, M).
        prior: rows that the coarser rate counts for.

    Returns:
        Float32 probabilities (T, G, M, D).
    """
    num_tabs, num_groups, num_cells = shape
    flat_P = (tab_P * num_groups + group_P) * num_cells + cell_P
    size = num_tabs * num_groups * num_cells
    tables = []
    for signal_P in signals_PD.double().unbind(-1):
        shown = torch.bincount(flat_P, minlength=size).double().reshape(shape)
        positive = torch.bincount(flat_P, weights=signal_P, minlength=size).reshape(shape)
        rate = signal_P.mean()
        for axes in ((0, 1), (1,), ()):
            rows = shown.sum(axes, keepdim=True) if axes else shown
            hits = positive.sum(axes, keepdim=True) if axes else positive
            rate = (hits + prior * rate) / (rows + prior)
        tables.append(rate.expand(shape))
    return torch.stack(tables, -1).float()
