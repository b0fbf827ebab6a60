"""Evaluation results: measured cells, their intervals, paired differences, verdicts, JSON and CSV.

Every metric is a ratio of two per-session sums: seconds over sessions, likes over videos seen, overlapping
pairs over slates. What sessions do to it comes from the ratio's linearisation: session i moves the ratio r by
(numerator_i - r * denominator_i) / mean(denominator). With one training seed the interval is Student's t over
these moves; for a plain mean that is the usual one. Two policies that played the same sessions are compared on
the moves' differences, which is the paired t interval.

There is one interval for each figure. It holds the luck of sessions and the luck of training (``intervals.py``);
with one training seed it knows nothing of the latter, and speaks of that training run only.

Shape legend: S training seeds, n sessions.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recsim_env.files import write_json, write_text
from recsim_env.intervals import half_width

Array = NDArray[np.float64]
FeedbackClass = Literal["logged", "one slate", "branched"]
VerdictWord = Literal["holds", "fails", "undecided", "no bar"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What was measured for one policy in one world."""

    ratios: Mapping[str, tuple[Array, Array]]
    """Metric to (numerator, denominator), each (S, n): one entry per training seed and session."""
    totals: Mapping[str, Array]
    """Metric to values (S,) that belong to all sessions together; they have no interval over sessions."""
    feedback: FeedbackClass = "logged"
    """What the policy was trained on; "branched" had several slates shown to one user state."""
    world_requests: int = 0
    """Requests its training asked of a world."""
    sessions: int | None = None
    """Sessions behind the columns, where each column adds up several of them (``merged``)."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of everything measured."""
        return (*self.ratios, *self.totals)

    @property
    def num_sessions(self) -> int:
        """Sessions played by each training seed."""
        return self.sessions or int(next(iter(self.ratios.values()))[0].shape[1])

    def merged(self, blocks: int) -> "Cell":
        """The same figures with neighbouring sessions added up, small enough to keep in a text file.

        Values stay what they are. Intervals take blocks as their units, which leaves them valid and a little less
        exact; cells of the same sessions can still be paired.
        """

        def added(part_Sn: Array) -> Array:
            edges = np.linspace(0, part_Sn.shape[1], min(blocks, part_Sn.shape[1]) + 1).round().astype(int)[:-1]
            return np.asarray(np.add.reduceat(part_Sn, edges, axis=1))

        ratios = {name: (added(over_Sn), added(under_Sn)) for name, (over_Sn, under_Sn) in self.ratios.items()}
        return dataclasses.replace(self, ratios=ratios, sessions=self.num_sessions)

    @classmethod
    def of_seeds(cls, cells: Sequence["Cell"]) -> "Cell":
        """Several training seeds of one policy, measured on the same sessions, as one cell."""
        first = cells[0]
        ratios = {
            name: (
                np.concatenate([cell.ratios[name][0] for cell in cells]),
                np.concatenate([cell.ratios[name][1] for cell in cells]),
            )
            for name in first.ratios
        }
        totals = {name: np.concatenate([cell.totals[name] for cell in cells]) for name in first.totals}
        requests = max(cell.world_requests for cell in cells)
        return dataclasses.replace(first, ratios=ratios, totals=totals, world_requests=requests)

    def to_json(self) -> dict[str, Any]:
        """JSON values that ``from_json`` reads, every number with seven digits."""
        counts: list[list[list[float]]] = []
        sums: dict[str, Any] = {}
        for name, (over_Sn, under_Sn) in self.ratios.items():
            over, under = _rounded(over_Sn), _rounded(under_Sn)
            if under not in counts:  # most metrics share what they are divided by
                counts.append(under)
            sums[name] = {"sum": over, "over": counts.index(under)}
        return {
            "sessions": self.num_sessions,
            "feedback": self.feedback,
            "world_requests": self.world_requests,
            "ratios": sums,
            "counts": counts,
            "totals": {name: _rounded(value_S) for name, value_S in self.totals.items()},
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Cell":
        """The cell that ``to_json`` wrote."""
        counts = [np.array(count, dtype=float) for count in plain["counts"]]
        sums = {name: (np.array(part["sum"], dtype=float), part["over"]) for name, part in plain["ratios"].items()}
        return cls(
            ratios={name: (over_Sn, counts[index]) for name, (over_Sn, index) in sums.items()},
            totals={name: np.array(value, dtype=float) for name, value in plain["totals"].items()},
            feedback=plain["feedback"],
            world_requests=plain["world_requests"],
            sessions=plain["sessions"],
        )

    def value(self, metric: str) -> Array:
        """The metric of each training seed, (S,); NaN where nothing was counted."""
        if metric in self.totals:
            return self.totals[metric]
        numerator_Sn, denominator_Sn = self.ratios[metric]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(numerator_Sn.sum(1) / denominator_Sn.sum(1))

    def moves(self, metric: str) -> Array:
        """How far each session moves the metric of each training seed, (S, n)."""
        numerator_Sn, denominator_Sn = self.ratios[metric]
        value_S1 = self.value(metric)[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            # First-order change of the ratio with session i; the moves sum to 0, so their spread is its error.
            return np.asarray((numerator_Sn - value_S1 * denominator_Sn) / denominator_Sn.mean(1, keepdims=True))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure with its 95 % interval; NaN (null in JSON) where an interval has no meaning."""

    policy: str
    world: str
    metric: str
    mean: float
    low: float
    """95 % interval over sessions and training seeds; with one seed it speaks of that training run only."""
    high: float
    seeds: int
    sessions: int
    feedback: FeedbackClass
    world_requests: int
    """World requests that training consumed."""
    baseline: str | None = None
    """In a difference: the policy that was subtracted."""
    baseline_world: str | None = None
    """In a gap: the world that was subtracted."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim with a bar, and whether the evidence carries it."""

    name: str
    bar: float | None
    value: float
    low: float
    high: float
    verdict: VerdictWord


def judge(
    name: str,
    *,
    value: float,
    low: float = math.nan,
    high: float = math.nan,
    bar: float | None = None,
    side: Literal["above", "below"] = "above",
) -> Verdict:
    """Says whether a value clears its bar.

    It ``holds`` when the whole interval lies on the wanted side, ``fails`` when the whole interval lies
    on the other side, and is ``undecided`` between. A value without an interval is held to the bar itself.
    """
    if side not in ("above", "below"):
        raise ValueError(f"side must be 'above' or 'below', got {side!r}")
    sign = 1 if side == "above" else -1
    word: VerdictWord
    if bar is None:
        word = "no bar"
    elif math.isnan(low) or math.isnan(high):
        word = "holds" if sign * (value - bar) >= 0 else "fails"
    elif min(sign * (low - bar), sign * (high - bar)) > 0:
        word = "holds"
    elif max(sign * (low - bar), sign * (high - bar)) < 0:
        word = "fails"
    else:
        word = "undecided"
    return Verdict(name=name, bar=bar, value=value, low=low, high=high, verdict=word)


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Every policy in every world, on the same sessions."""

    cells: Mapping[tuple[str, str], Cell]
    """(policy, world) to what was measured."""
    worlds: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """World to its ``declared``, ``provenance`` and ``fidelity``."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How the sessions were played, the seed among them."""

    @property
    def policies(self) -> tuple[str, ...]:
        """Policies in the order given."""
        return tuple(dict.fromkeys(policy for policy, _ in self.cells))

    @property
    def world_names(self) -> tuple[str, ...]:
        """Worlds in the order given."""
        return tuple(dict.fromkeys(world for _, world in self.cells))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that some cell holds."""
        return tuple(dict.fromkeys(metric for cell in self.cells.values() for metric in cell.metrics))

    def measured(self, policy: str, world: str, metric: str = "session_watch_time") -> bool:
        """Whether there is such a figure: an oracle may have played in one world only."""
        cell = self.cells.get((policy, world))
        return cell is not None and metric in cell.metrics

    def paired(self, policy: str, baseline: str, world: str, metric: str = "session_watch_time") -> bool:
        """Whether both played in this world, on the same sessions."""
        both = self.measured(policy, world, metric) and self.measured(baseline, world, metric)
        return both and self.cells[policy, world].num_sessions == self.cells[baseline, world].num_sessions

    def row(self, policy: str, world: str, metric: str) -> Row:
        """One figure.

        Raises:
            ValueError: no such policy, world or metric.
        """
        cell = self._cell(policy, world, metric)
        value_S = cell.value(metric)
        half = half_width(value_S, *_moves(cell, metric))
        return Row(
            policy=policy,
            world=world,
            metric=metric,
            mean=float(value_S.mean()),
            low=float(value_S.mean()) - half,
            high=float(value_S.mean()) + half,
            seeds=len(value_S),
            sessions=cell.num_sessions,
            feedback=cell.feedback,
            world_requests=cell.world_requests,
        )

    def rows(self) -> list[Row]:
        """All figures, ordered by policy, world and metric as they were given."""
        return [
            self.row(policy, world, metric) for (policy, world), cell in self.cells.items() for metric in cell.metrics
        ]

    def difference(self, policy: str, baseline: str, world: str, metric: str = "session_watch_time") -> Row:
        """``policy`` minus ``baseline`` in one world, paired by session (and by training seed).

        A baseline with one seed is subtracted from every seed of the policy.

        Raises:
            ValueError: both have several seeds and their numbers differ, or a name is unknown.
        """
        first, second = self._pair(policy, baseline, world, metric)
        value_S = _paired(first.value(metric), second.value(metric), policy, baseline)
        both = zip(_moves(first, metric), _moves(second, metric), strict=True)
        moves = [ours_Sn - theirs_Sn for ours_Sn, theirs_Sn in both]
        row = dataclasses.replace(self.row(policy, world, metric), baseline=baseline)
        return _with_interval(row, value_S, moves)

    def ratio(self, policy: str, baseline: str, world: str, metric: str = "session_watch_time") -> Row:
        """``policy`` over ``baseline`` in one world: a ratio of their sums, paired by session and by training seed.

        Seeds that only one of them has are left out, unless the other has a single seed for all.

        Raises:
            ValueError: they did not play the same sessions, or a name is unknown.
        """
        first, second = self._pair(policy, baseline, world, metric)
        over_Sn, under_Sn = first.ratios[metric][0], second.ratios[metric][0]
        seeds = min((len(part) for part in (over_Sn, under_Sn) if len(part) > 1), default=1)
        over_Sn, under_Sn = (np.broadcast_to(part[:seeds], (seeds, part.shape[1])) for part in (over_Sn, under_Sn))
        cell = Cell(ratios={metric: (over_Sn, under_Sn)}, totals={}, sessions=first.sessions)
        return EvaluationResult(cells={(policy, world): cell}).row(policy, world, metric)

    def gap(self, policy: str, world: str, other: str, metric: str = "session_watch_time") -> Row:
        """One policy in ``world`` minus the same policy in ``other``.

        The two worlds hold other users, so sessions are not paired: both worlds' variances add up. Training seeds are
        paired: it is the same policy.
        """
        first, second = self._cell(policy, world, metric), self._cell(policy, other, metric)
        value_S = _paired(first.value(metric), second.value(metric), world, other)
        row = dataclasses.replace(self.row(policy, world, metric), baseline_world=other)
        return _with_interval(row, value_S, [*_moves(first, metric), *_moves(second, metric)])

    def to_json(self) -> dict[str, Any]:
        """JSON values: ``settings``, ``worlds`` and ``rows`` (fields of ``Row``; NaN becomes null)."""
        return {
            "settings": dict(self.settings),
            "worlds": dict(self.worlds),
            "rows": [as_json(row) for row in self.rows()],
        }

    def write_json(self, path: str | Path) -> Path:
        """Writes ``to_json()``; the file appears whole or not at all."""
        return write_json(path, to_plain(self.to_json()))

    def write_csv(self, path: str | Path) -> Path:
        """Writes one line for each row; the file appears whole or not at all."""
        return write_csv(path, self.rows())

    def _pair(self, policy: str, baseline: str, world: str, metric: str) -> tuple[Cell, Cell]:
        first, second = self._cell(policy, world, metric), self._cell(baseline, world, metric)
        if first.num_sessions != second.num_sessions:
            raise ValueError(
                f"{policy!r} played {first.num_sessions} sessions in {world!r} and {baseline!r} "
                f"{second.num_sessions}: only the same sessions can be paired"
            )
        return first, second

    def _cell(self, policy: str, world: str, metric: str) -> Cell:
        for kind, name, known in (
            ("policy", policy, self.policies),
            ("world", world, self.world_names),
            ("metric", metric, self.metrics),
        ):
            if name not in known:
                raise ValueError(f"no {kind} {name!r} in this result; it holds {', '.join(known)}")
        if not self.measured(policy, world, metric):
            raise ValueError(f"{metric!r} was not measured for {policy!r} in world {world!r}")
        return self.cells[policy, world]


def as_json(value: Row | Verdict) -> dict[str, Any]:
    """A row or verdict as JSON values, keys in the order of its fields."""
    plain: dict[str, Any] = to_plain(dataclasses.asdict(value))
    return plain


def to_plain(value: Any) -> Any:
    """Nested values as strict JSON values: tuples become lists, NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_csv(path: str | Path, rows: list[Row]) -> Path:
    """Writes rows with a header; empty fields where there is nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in dataclasses.fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(as_json(row) for row in rows)
    return write_text(path, text.getvalue())


def _rounded(values: Array) -> Any:
    """Seven digits: far finer than any interval, in half the bytes."""
    return [_rounded(row) for row in values] if values.ndim > 1 else [float(f"{value:.7g}") for value in values]


def _moves(cell: Cell, metric: str) -> list[Array]:
    """What an interval needs of the sessions; nothing for a figure of all of them together."""
    return [] if metric in cell.totals else [cell.moves(metric)]


def _with_interval(row: Row, value_S: Array, moves: Sequence[Array]) -> Row:
    mean, half = float(value_S.mean()), half_width(value_S, *moves)
    return dataclasses.replace(row, mean=mean, low=mean - half, high=mean + half, seeds=len(value_S))


def _paired(first_S: Array, second_S: Array, name: str, other: str) -> Array:
    if len(first_S) != len(second_S) and 1 not in (len(first_S), len(second_S)):
        raise ValueError(
            f"cannot pair {len(first_S)} training seeds of {name!r} with {len(second_S)} of {other!r}; "
            "give both the same number, or one of them a single seed"
        )
    return np.asarray(first_S - second_S)
