"""Learned users: how a user answers each place of a slate, and how the answers change the user.

A user's past is a few sums of surprises (see ``user_state``), updated place by place and never
re-encoded. Watch time is drawn first, as a cell of ``WatchTimeCells``; clicks and long views are read off
that cell, as they are in the log; the other signals are drawn given the cell and given the first of
them. For a simulation everything that does not change is a table: one row an item, user or context.

Legend: B sessions, K places, F signals, H hidden width, E event width, Y kinds, M cells, T tabs,
D signals read off the cell, A signals drawn given the cell, Z sums, Y amounts, N items, U users, C knots of
duration, S floats of state; ``...`` any leading shape.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from recsim_env.numerics import linear, sigmoid
from recsim_env.types import CONTEXT, WATCH_TIME, Outcomes
from reward_models.list_effects import PairEffects
from reward_models.users.user_state import UserState, amounts
from reward_models.users.watch_time import KNOTS_S, WatchTimeCells, cell_mass, draw_cell

_TAB, _HOUR = CONTEXT.index("tab"), CONTEXT.index("hour")
_MAX_USERS = 1 << 24  # user codes travel in the float32 state


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
    """

    read_off_TGMD: Tensor

    def __init__(
        self, config: ResponseConfig, signals: tuple[str, ...], cells: WatchTimeCells, num_tabs: int, num_kinds: int
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

    def hidden(self, user: Tensor, taste: Tensor, item: Tensor, event: Tensor, context: Tensor) -> Tensor:
        """First layer (..., H), before its nonlinearity.

        Args:
            user: (..., H + A).
            taste: (..., E); its product with an item's event vector compares the item with the user's past.
            item: (..., H).
            event: (..., E).
            context: (..., H).
        """
        return user[..., : self.config.width] + context + item + linear(taste * event, self.taste_layer.weight)

    def answer(self, hidden: Tensor, user: Tensor, tab: Tensor, strength: Tensor | None = None) -> Answer:
        """Logits of a place.

        Args:
            hidden: (..., H), its first layer, before the nonlinearity.
            user: (..., H + A), see ``user``.
            tab: int64 (...).
            strength: (...) of the effects of earlier places of the slate, see ``PairEffects``; ``None`` for none.
        """
        hidden = torch.relu(linear(torch.relu(hidden), self.trunk.weight, self.trunk.bias))
        logits = linear(hidden, self.head.weight, self.head.bias) + self.tab_logit_TV[tab]
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
        self.pair_slope_V[self.cells.num_cells + index] *= scale

    def effects(self, cell: Tensor, parent: Tensor) -> Tensor:
        """What cell and first of the A signals (``parent``, 0/1), once known, add to logits (..., A)."""
        effect_A = self.parent_effect_A.clone()
        effect_A[:1] = 0.0
        return self.cell_effect_MA[cell] + effect_A * parent.unsqueeze(-1)


class _Place(NamedTuple):
    """The model's answer for B x K places and what is needed to draw from it."""

    answer: Answer
    log_prior_BKM: Tensor
    log_duration_BK: Tensor
    amounts_BKM2: Tensor
    tab_B1: Tensor


class SequenceResponse(nn.Module):
    """A fitted response model, ready to simulate: ``recsim_env.types.ResponseModel`` and ``Saveable``.

    Its state holds the user code and the ``UserState``: float32 (B, 2 + Z (E + F + 1)).
    Made by ``reward_models.users.fit.fit_response``.

    Args:
        core: the layers.
        tables: by name, ``item_NH``, ``item_event_NE``, ``item_kind_NY`` (where there are kinds),
            ``user_UH``, ``state_US``, ``tab_TH``, ``hour_24H`` and ``duration_N`` (s).
    """

    item_NH: Tensor
    item_event_NE: Tensor
    item_kind_NY: Tensor
    user_UH: Tensor
    state_US: Tensor
    tab_TH: Tensor
    hour_24H: Tensor
    duration_N: Tensor
    group_N: Tensor
    item_row_NR: Tensor
    context_T24H: Tensor

    def __init__(self, core: ResponseCore, tables: dict[str, Tensor]) -> None:
        super().__init__()
        self.core, self.signals = core, core.signals
        self.num_draws = 1 + bool(core.read_off) + len(core.given)
        if len(tables["user_UH"]) > _MAX_USERS:
            raise ValueError(f"at most {_MAX_USERS} users fit the state, got {len(tables['user_UH'])}; split them")
        for name, table in tables.items():
            self.register_buffer(name, table.detach().float().contiguous())
        cells, duration_N = core.cells, self.duration_N
        # One gather brings everything that a place needs of its item.
        log_prior_NM = core.log_prior(duration_N).detach()
        amounts_NX = cells.amounts(duration_N).flatten(1)
        rows = [self.item_NH, self.item_event_NE, log_prior_NM, cells.log_duration(duration_N).unsqueeze(1), amounts_NX]
        if core.num_kinds:
            effect_NY = linear(self.item_kind_NY, core.pair_effects.pair.detach().T)
            rows += [self.item_kind_NY, effect_NY]
        self._row_widths = [row.shape[1] for row in rows]
        self.register_buffer("item_row_NR", torch.cat(rows, 1), persistent=False)
        self.register_buffer("group_N", cells.group(duration_N), persistent=False)
        self.register_buffer("context_T24H", self.tab_TH.unsqueeze(1) + self.hour_24H, persistent=False)
        self.requires_grad_(False)
        self.eval()

    def start(self, user_B: Tensor) -> Tensor:
        """State (B, S) of users at the start of their first session."""
        return torch.cat([user_B.unsqueeze(-1).float(), self.state_US[user_B]], -1)

    @torch.inference_mode()
    def respond(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, uniform_BKJ: Tensor) -> Tensor:
        """Draws signals (B, K, F) as if every place were reached; uniforms lie in (0, 1)."""
        core, place = self.core, self._place(state_BS, context_BX, items_BK)
        cell_BK, position_BK = draw_cell(cell_mass(place.answer.cells, place.log_prior_BKM), uniform_BKJ[..., 0])
        watch_time_BK = core.cells.seconds_at(cell_BK, position_BK, place.log_duration_BK)
        parts, used = [watch_time_BK.unsqueeze(-1)], 1
        if core.read_off:
            # One draw for all: a long view that is rarer than a click then never comes without it.
            chance_BKD = core.read_off_TGMD[place.tab_B1, self.group_N[items_BK], cell_BK]
            parts.append((uniform_BKJ[..., 1:2] < chance_BKD).float())
            used = 2
        if core.given:
            uniform_BKA = uniform_BKJ[..., used:]
            threshold_BKA = torch.log(uniform_BKA / (1.0 - uniform_BKA))
            logit_BKA = place.answer.given + core.cell_effect_MA[cell_BK]
            parent_BK1 = (threshold_BKA[..., :1] < logit_BKA[..., :1]).float()
            logit_BKA = logit_BKA[..., 1:] + core.parent_effect_A[1:] * parent_BK1
            parts += [parent_BK1, (threshold_BKA[..., 1:] < logit_BKA).float()]
        signals_BKF = torch.cat(parts, -1)
        return signals_BKF if core.order is None else signals_BKF[..., core.order]

    @torch.inference_mode()
    def outcomes(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor) -> Outcomes:
        """The distribution that ``respond`` draws from: one outcome a watch-time cell (O = M)."""
        core, place = self.core, self._place(state_BS, context_BX, items_BK)
        mass_BKM = cell_mass(place.answer.cells, place.log_prior_BKM)
        seconds_BKM, group_BK = core.cells.mean(place.log_duration_BK), self.group_N[items_BK]
        signals_BKMF = core.cell_signals(place.answer, seconds_BKM, place.tab_B1, group_BK)
        return Outcomes(signals_BKMF, mass_BKM / mass_BKM.cumsum(-1)[..., -1:])

    def expected(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor) -> Tensor:
        """Expected signals (B, K, F): ``outcomes`` summed up."""
        signals_BKOF, probability_BKO = self.outcomes(state_BS, context_BX, items_BK)
        return (signals_BKOF * probability_BKO.unsqueeze(-1)).cumsum(-2)[..., -1, :]

    @torch.inference_mode()
    def observe(
        self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, signals_BKF: Tensor, seen_BK: Tensor
    ) -> Tensor:
        """State after a slate; places that were not seen change nothing."""
        core, place, group_BK = self.core, self._place(state_BS, context_BX, items_BK), self.group_N[items_BK]
        expected_BKY = core.expected_amounts(
            place.answer, place.log_prior_BKM, place.amounts_BKM2, place.tab_B1, group_BK
        )
        surprise_BKY = amounts(signals_BKF, self.duration_N[items_BK]) - expected_BKY
        events = core.memory.events(embedding(items_BK, self.item_event_NE), surprise_BKY, seen_BK)
        return torch.cat([state_BS[:, :1], core.memory.update(state_BS[:, 1:], *events)], -1)

    def _tab(self, context_BX: Tensor) -> Tensor:
        return context_BX[:, _TAB : _TAB + 1].long().clamp_(0, self.core.num_tabs - 1)

    def _place(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor) -> _Place:
        core = self.core
        tab_B1 = self._tab(context_BX)
        hour_B1 = context_BX[:, _HOUR : _HOUR + 1].long().clamp_(0, 23)
        user_BV, taste_BE = core.user(state_BS[:, 1:], self.user_UH[state_BS[:, 0].long()])
        user_B1V, context_B1H = user_BV.unsqueeze(1), self.context_T24H[tab_B1, hour_B1]
        item_BKH, event_BKE, log_prior_BKM, log_duration_BK1, amounts_BKX, *kinds = torch.split(
            embedding(items_BK, self.item_row_NR), self._row_widths, -1
        )
        hidden_BKH = core.hidden(user_B1V, taste_BE.unsqueeze(1), item_BKH, event_BKE, context_B1H)
        strength_BK = None
        if core.num_kinds:
            kind_BKY, effect_BKY = kinds
            effect_BKK = (effect_BKY.unsqueeze(2) * kind_BKY.unsqueeze(1)).sum(-1)
            strength_BK = core.pair_effects.strength(effect_BKK)
        answer = core.answer(hidden_BKH, user_B1V, tab_B1, strength_BK)
        amounts_BKM2 = amounts_BKX.view(*items_BK.shape, -1, 2)
        return _Place(answer, log_prior_BKM, log_duration_BK1.squeeze(-1), amounts_BKM2, tab_B1)

    def config(self) -> dict[str, Any]:
        """Settings as JSON values."""
        core = self.core
        return {
            "response": asdict(core.config),
            "cells": core.cells.config(),
            "signals": list(core.signals),
            "num_tabs": core.num_tabs,
            "num_kinds": core.num_kinds,
        }

    def tensors(self) -> dict[str, Tensor]:
        """All tensors to store, by name."""
        return dict(self.state_dict())

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "SequenceResponse":
        """Rebuilds the model from what ``config`` and ``tensors`` returned."""
        core = ResponseCore(
            ResponseConfig(**config["response"]),
            tuple(config["signals"]),
            WatchTimeCells(**config["cells"]),
            config["num_tabs"],
            config["num_kinds"],
        )
        # A fresh core lies on the CPU: it has to be where its tensors are before they are copied into it.
        core = core.to(next(iter(tensors.values())).device)
        core.load_state_dict({name[5:]: tensor for name, tensor in tensors.items() if name.startswith("core.")})
        return cls(core, {name: tensor for name, tensor in tensors.items() if not name.startswith("core.")})
