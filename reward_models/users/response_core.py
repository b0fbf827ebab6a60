"""The network of learned users: from encoded users, items and contexts to what they answer.

A user's past is a few sums of surprises (see ``user_state``), updated place by place and never re-encoded. Watch time
comes first, as a cell of ``WatchTimeCells``; clicks and long views are read off that cell, as they are in the log; the
other signals are drawn given the cell and given the first of them.

Legend: F signals, H hidden width, E event width, Y kinds, M cells, T tabs, D signals read off the cell, A signals drawn
given the cell, V = M + A logits, Z sums, C knots of duration, W floats of what a session has shown; ``...`` any leading
shape.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from recsim_env.numerics import linear, sigmoid
from recsim_env.types import WATCH_TIME
from reward_models import session_sums
from reward_models.list_effects import PairEffects
from reward_models.users.satiation import Satiation
from reward_models.users.user_state import UserState
from reward_models.users.watch_time import KNOTS_S, WatchTimeCells, cell_mass


@dataclass(frozen=True, kw_only=True)
class ResponseConfig:
    """Shape of a response model. Different settings are different model families for judging."""

    memory: Literal["decayed", "gated"] = "decayed"
    """``decayed``: moods fade at fixed rates. ``gated``: each event decides how much it makes them fade."""
    trait_rows: tuple[float, ...] = (5.0, 30.0)
    """Rows that the prior of a lasting trait counts for, one for each sum: event n moves it by 1 / (rows + n)."""
    decays: tuple[float, ...] = (0.7, 0.95)
    """Share of a mood kept at each event, one for each sum; where ``gated`` begins its training."""
    width: int = 64
    """H: hidden units."""
    event_width: int = 24
    """E: length of an event vector."""
    item_width: int = 0
    """Length of the learned vector of each item, beside its features; 0 uses features alone. With a dozen
    rows an item such vectors learn the rows by heart and cost accuracy; logs of hundreds may gain."""
    dropout: float = 0.1
    """Share of hidden units left out in training."""
    read_off: tuple[str, ...] = ("click", "long_view")
    """Signals that are functions of watch time in the log; names the log lacks are passed over."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "decays", tuple(self.decays))
        object.__setattr__(self, "trait_rows", tuple(self.trait_rows))
        object.__setattr__(self, "read_off", tuple(self.read_off))
        if self.memory not in ("decayed", "gated"):
            raise ValueError(f'memory must be "decayed" or "gated", got {self.memory!r}')
        if not self.decays or not all(0.0 < decay < 1.0 for decay in self.decays):
            raise ValueError(f"decays need one or more values between 0 and 1, got {self.decays}")
        if not self.trait_rows or not all(rows > 0.0 for rows in self.trait_rows):
            raise ValueError(f"trait_rows need one or more values above 0, got {self.trait_rows}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if min(self.width, self.event_width) < 1 or self.item_width < 0:
            raise ValueError(
                "widths must be at least 1 (item_width at least 0), got "
                f"width {self.width}, event_width {self.event_width}, item_width {self.item_width}"
            )


class Answer(NamedTuple):
    """What the model says of places, before anything is drawn."""

    cells: Tensor
    """(..., M) logits of watch-time cells."""
    given: Tensor
    """(..., A) logits of the signals that are drawn given the cell."""


class ResponseCore(nn.Module):
    """From encoded users, items and contexts to the answer; the same for training and simulation.

    Args:
        config: shape of the model.
        signals: names of the F signals, watch time first.
        cells: grid of watch times.
        num_tabs: T.
        num_kinds: Y, kinds of videos whose effects on each other within a slate are learned; 0 for logs without a
            request key, which cannot teach them.
        session_kinds: kinds of videos, where the log holds sessions and with them what being shown more of the same
            does; ``None`` where it does not.
    """

    read_off_TGMD: Tensor
    level_2V: Tensor
    ranker_lift: Tensor

    def __init__(
        self,
        config: ResponseConfig,
        signals: tuple[str, ...],
        cells: WatchTimeCells,
        num_tabs: int,
        num_kinds: int,
        session_kinds: int | None = None,
    ) -> None:
        super().__init__()
        if not signals or signals[0] != WATCH_TIME:
            raise ValueError(f'signals must begin with "{WATCH_TIME}", got {signals}')
        self.config, self.signals, self.cells = config, signals, cells
        self.num_tabs, self.num_kinds = num_tabs, num_kinds
        self.read_off = tuple(name for name in signals if name in config.read_off)
        self.given = tuple(name for name in signals[1:] if name not in config.read_off)
        width, num_given = config.width, len(self.given)
        self.memory = UserState(
            config.trait_rows,
            config.decays,
            config.memory == "gated",
            config.event_width,
            len(signals),
            num_tabs,
            cells.num_groups,
        )
        self.state_layer = nn.Linear(self.memory.num_features, width)
        self.user_layer = nn.Linear(width, width + num_given)
        self.taste_ZE = nn.Parameter(torch.full((self.memory.num_sums, config.event_width), 1.0))
        self.satiation = None if session_kinds is None else Satiation(session_kinds, width)
        self.lift_layer = nn.Linear(1, width, bias=False)
        num_rates = 0 if session_kinds is None else len(session_sums.DECAYS)
        self.selection_XV = nn.Parameter(torch.zeros(2 + num_rates, cells.num_cells + num_given))
        self.passed_GV = nn.Parameter(torch.zeros(num_rates, cells.num_cells + num_given))
        self.register_buffer("level_2V", torch.zeros(2, cells.num_cells + num_given))
        self.register_buffer("ranker_lift", torch.zeros(()))
        self.taste_layer = nn.Linear(config.event_width, width, bias=False)
        self.trunk = nn.Linear(width, width)
        self.head = nn.Linear(width, cells.num_cells + num_given)
        self.tab_logit_TV = nn.Parameter(torch.zeros(num_tabs, cells.num_cells + num_given))
        self.duration_logit_CM = nn.Parameter(torch.zeros(len(KNOTS_S), cells.num_cells))
        self.cell_effect_MA = nn.Parameter(torch.zeros(cells.num_cells, num_given))
        self.parent_effect_A = nn.Parameter(torch.zeros(num_given))
        shape = (num_tabs, cells.num_groups, cells.num_cells, len(self.read_off))
        self.register_buffer("read_off_TGMD", torch.full(shape, 0.5))
        self.pair_effects = PairEffects(num_kinds)
        self.pair_slope_V = nn.Parameter(torch.cat([torch.linspace(-1.0, 1.0, cells.num_cells), torch.ones(num_given)]))
        drawn = (WATCH_TIME, *self.read_off, *self.given)
        self.order = None if drawn == signals else [drawn.index(name) for name in signals]

    def tabs(self, tab: Tensor) -> Tensor:
        """Tabs as the model knows them."""
        return tab.clamp(0, self.num_tabs - 1)

    def log_prior(self, duration_N: Tensor) -> Tensor:
        """What its duration alone makes of a video's cells, (N, M): the width it leaves, and a learned level."""
        return self.cells.log_share(duration_N) + self.cells.hats(duration_N) @ self.duration_logit_CM

    def cell_signals(self, answer: Answer, seconds: Tensor, tab: Tensor, group: Tensor) -> Tensor:
        """Expected signals given each cell, (..., M, F), from ``seconds`` (..., M) expected in each."""
        parts = [seconds.unsqueeze(-1)]
        if self.read_off:
            parts.append(self.read_off_TGMD[tab, group])
        if self.given:
            logit = answer.given.unsqueeze(-2) + self.cell_effect_MA
            parent = sigmoid(logit[..., :1])
            without = sigmoid(logit[..., 1:])
            with_parent = sigmoid(logit[..., 1:] + self.parent_effect_A[1:])
            parts += [parent, without + parent * (with_parent - without)]
        signals = torch.cat(parts, -1)
        return signals if self.order is None else signals[..., self.order]

    def expected_amounts(
        self, answer: Answer, log_prior: Tensor, cell_amounts: Tensor, tab: Tensor, group: Tensor
    ) -> Tensor:
        """What the model expects of events, as ``user_state.amounts`` has it: (..., F + 1).

        Args:
            answer: of the places.
            log_prior: (..., M), see ``log_prior``.
            cell_amounts: (..., M, 2), see ``WatchTimeCells.amounts``.
            tab: int64 (...).
            group: int64 (...), duration group.
        """
        signals = self.cell_signals(answer, cell_amounts[..., 0], tab, group)
        held = torch.cat([signals, cell_amounts[..., 1:]], -1)
        mass = cell_mass(answer.cells, log_prior)
        # Sums as cumulative sums: their bytes do not depend on the batch.
        share = mass / mass.cumsum(-1)[..., -1:]
        return (held * share.unsqueeze(-1)).cumsum(-2)[..., -1, :]

    def user(self, state: Tensor, static: Tensor) -> tuple[Tensor, Tensor]:
        """What a user adds to first layer and rare signals (..., H + A), and the user's taste (..., E)."""
        features = self.memory.features(state)
        hidden = linear(features, self.state_layer.weight, self.state_layer.bias) + static
        taste = self.memory.taste(features, self.taste_ZE)
        return linear(torch.relu(hidden), self.user_layer.weight, self.user_layer.bias), taste

    def hidden(
        self,
        user: Tensor,
        taste: Tensor,
        item: Tensor,
        event: Tensor,
        context: Tensor,
        lift: Tensor,
        recent: Tensor,
        kind: Tensor,
    ) -> Tensor:
        """First layer (..., H), before its nonlinearity.

        Args:
            user: (..., H + A).
            taste: (..., E); its product with an item's event vector compares the item with the user's past.
            item: (..., H).
            event: (..., E).
            context: (..., H).
            lift: (...), see ``reward_models.exposure``.
            recent: (..., W), see ``Satiation``; W is 0 for users of a log without sessions.
            kind: (..., Y), read where there are sessions only.
        """
        match = linear(taste * event, self.taste_layer.weight) + lift.unsqueeze(-1) * self.lift_layer.weight[:, 0]
        if self.satiation is not None:
            match = match + self.satiation.hidden(recent, kind)
        return user[..., : self.config.width] + context + item + match

    def answer(
        self,
        hidden: Tensor,
        user: Tensor,
        tab: Tensor,
        lift: Tensor,
        recent: Tensor,
        strength: Tensor | None = None,
        chosen: Tensor | None = None,
    ) -> Answer:
        """Logits of a place.

        Args:
            hidden: (..., H), its first layer, before the nonlinearity.
            user: (..., H + A), see ``user``.
            tab: int64 (...).
            lift: (...), see ``reward_models.exposure``.
            recent: (..., W), see ``hidden``.
            strength: (...) of the effects of earlier places of the slate, see ``PairEffects``; ``None`` for none.
            chosen: float32 (...), 1 where the log's ranker filled the place, 0 where it was left to chance; ``None``
                where another ranker fills it.
        """
        hidden = torch.relu(linear(torch.relu(hidden), self.trunk.weight, self.trunk.bias))
        logits = linear(hidden, self.head.weight, self.head.bias) + self.tab_logit_TV[tab]
        level = self.level_2V[0] + torch.relu(self.ranker_lift - lift).unsqueeze(-1) * self.level_2V[1]
        if chosen is not None:
            # A choice says the more of what the ranker knew the less likely it was: two numbers for each logit, at its
            # usual lift and for every unit below. And it says the less the longer a session goes on, since a ranker
            # shows its best first and nothing twice.
            said = self.selection_XV[0] + (self.ranker_lift - lift).unsqueeze(-1) * self.selection_XV[1]
            if self.satiation is not None:
                shown = session_sums.counts(recent)
                said = said + linear(shown, self.selection_XV[2:].T)
                # What chance shows late in a session is what the ranker has passed over all the while. That speaks
                # against it, the more the likelier it was to be shown; before another ranker it was not passed over.
                level = level + linear(shown * sigmoid(lift).unsqueeze(-1), self.passed_GV.T)
            level = level + chosen.unsqueeze(-1) * (said - level)
        logits = logits + level
        if strength is not None:
            logits = logits + strength.unsqueeze(-1) * self.pair_slope_V
        cells, given = torch.split(logits, [self.cells.num_cells, len(self.given)], -1)
        return Answer(cells, given + user[..., self.config.width :])

    def rescale_cells(self, scale: float, offset_CM: Tensor) -> None:
        """Puts ``scale`` x logit in the place of the logits of the M cells, and adds offsets by duration.

        What the duration alone makes of the cells keeps its size.
        """
        num_cells = self.cells.num_cells
        self.head.weight[:num_cells] *= scale
        self.head.bias[:num_cells] *= scale
        self.tab_logit_TV[:, :num_cells] *= scale
        self.level_2V[:, :num_cells] *= scale
        self.selection_XV[:, :num_cells] *= scale
        self.passed_GV[:, :num_cells] *= scale
        self.pair_slope_V[:num_cells] *= scale
        self.duration_logit_CM.add_(offset_CM)

    def rescale_given(self, index: int, scale: float, offset: float) -> None:
        """Puts ``scale`` x logit + ``offset`` in the place of ``Answer.given`` of one of the A signals.

        The effects of cell and first signal stay as they are.
        """
        column = self.config.width + index
        for weight, bias, row in (
            (self.head.weight, self.head.bias, self.cells.num_cells + index),
            (self.user_layer.weight, self.user_layer.bias, column),
        ):
            weight[row] *= scale
            bias[row] *= scale
        self.head.bias[self.cells.num_cells + index] += offset
        self.tab_logit_TV[:, self.cells.num_cells + index] *= scale
        self.level_2V[:, self.cells.num_cells + index] *= scale
        self.selection_XV[:, self.cells.num_cells + index] *= scale
        self.passed_GV[:, self.cells.num_cells + index] *= scale
        self.pair_slope_V[self.cells.num_cells + index] *= scale

    def effects(self, cell: Tensor, parent: Tensor) -> Tensor:
        """What cell and first of the A signals (``parent``, 0/1), once known, add to logits (..., A)."""
        effect_A = self.parent_effect_A.clone()
        effect_A[:1] = 0.0
        return self.cell_effect_MA[cell] + effect_A * parent.unsqueeze(-1)
