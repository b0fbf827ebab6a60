"""Learned users: how a user answers each place of a slate, and how the answers change the user.

Everything of the network (``response_core``) that does not change in a simulation is a table here: one row an item,
user or context.

Legend: B sessions, K places, F signals, H hidden width, E event width, Y kinds, M cells, D signals read off the cell,
A signals drawn given the cell, J draws, N items, U users, d width of exposure vectors, S floats of state, W those of
what the session has shown.
"""

from dataclasses import asdict
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from recsim_env.new_users import NewUsers
from recsim_env.numerics import linear
from recsim_env.types import CONTEXT, Outcomes
from reward_models.exposure import ExposureTowers, lift, lifts, user_vectors
from reward_models.users.replay import Replay
from reward_models.users.response_core import Answer, ResponseConfig, ResponseCore
from reward_models.users.sequences import read_sequences
from reward_models.users.user_state import amounts
from reward_models.users.watch_time import WatchTimeCells, cell_mass, draw_cell, quantile

_TAB, _HOUR = CONTEXT.index("tab"), CONTEXT.index("hour")
_MAX_USERS = 1 << 24  # user codes travel in the float32 state


class _Place(NamedTuple):
    """The model's answer for B x K places and what is needed to draw from it."""

    answer: Answer
    log_prior_BKM: Tensor
    log_duration_BK: Tensor
    amounts_BKM2: Tensor
    tab_B1: Tensor


class SequenceResponse(nn.Module):
    """A fitted response model, ready to simulate: ``recsim_env.types.ResponseModel`` and ``Saveable``.

    Its state holds the user code, what the session has shown (W) and the ``UserState``: float32
    (B, 2 + W + Z (E + F + 1)).
    Made by ``reward_models.users.fit.fit_response``.

    Args:
        core: the layers.
        tables: by name, ``item_NH``, ``item_event_NE``, ``item_kind_NY``, ``user_UH``, ``state_US``, ``tab_TH``,
            ``hour_24H``, ``duration_N`` (s), ``exposure_Ud`` and ``exposure_Nd``. To take other users,
            ``user_weight_HD``, ``user_bias_H`` and those of ``ExposureTowers`` (where the log's ranker showed
            anything), too.
        filled_by: who fills the slates: ``another`` ranker, or as in the log its own ``ranker`` or ``chance``, see
            ``as_logged``.
        history_length: impressions from before a log that lead to a user's first state; ``None`` for a model that does
            not say how, and takes no other users.
    """

    item_NH: Tensor
    item_event_NE: Tensor
    item_kind_NY: Tensor
    user_UH: Tensor
    state_US: Tensor
    tab_TH: Tensor
    hour_24H: Tensor
    duration_N: Tensor
    exposure_Ud: Tensor
    exposure_Nd: Tensor
    group_N: Tensor
    item_row_NR: Tensor
    context_T24H: Tensor

    def __init__(
        self,
        core: ResponseCore,
        tables: dict[str, Tensor],
        filled_by: Literal["another", "ranker", "chance"] = "another",
        history_length: int | None = None,
    ) -> None:
        super().__init__()
        self._filled_by, self._history_length = filled_by, history_length
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
        rows = [
            self.exposure_Nd,
            self.item_NH,
            self.item_event_NE,
            self.item_kind_NY,
            log_prior_NM,
            cells.log_duration(duration_N).unsqueeze(1),
            amounts_NX,
        ]
        if core.num_kinds:
            rows.append(linear(self.item_kind_NY, core.pair_effects.pair.detach().T))
        self._recent_width = 0 if core.satiation is None else core.satiation.state_width
        self._row_widths = [row.shape[1] for row in rows]
        self.register_buffer("item_row_NR", torch.cat(rows, 1), persistent=False)
        self.register_buffer("group_N", cells.group(duration_N), persistent=False)
        self.register_buffer("context_T24H", self.tab_TH.unsqueeze(1) + self.hour_24H, persistent=False)
        self.requires_grad_(False)
        self.eval()

    def start(self, user_B: Tensor) -> Tensor:
        """State (B, S) of users at the start of their first session."""
        fresh_BW = self.state_US.new_zeros(len(user_B), self._recent_width)
        return torch.cat([user_B.unsqueeze(-1).float(), fresh_BW, self.state_US[user_B]], -1)

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

    def watch_time_quantiles(self, probability_BKO: Tensor, items_BK: Tensor, level_L: Tensor) -> Tensor:
        """Seconds (B, K, L) at levels in (0, 1), from the probabilities of ``outcomes``."""
        return quantile(self.core.cells, probability_BKO, self.duration_N[items_BK], level_L)

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
        user_B1, recent_BW, memory_BS = self._split(state_BS)
        event_BKE = embedding(items_BK, self.item_event_NE)
        if core.satiation is not None:
            recent_BW = core.satiation.update(recent_BW, embedding(items_BK, self.item_kind_NY), seen_BK)
        events = core.memory.events(event_BKE, surprise_BKY, seen_BK)
        return torch.cat([user_B1, recent_BW, core.memory.update(memory_BS, *events)], -1)

    def _split(self, state_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """User code, what the session has shown of late, and the ``UserState``."""
        width = 1 + self._recent_width
        return state_BS[:, :1], state_BS[:, 1:width], state_BS[:, width:]

    def _tab(self, context_BX: Tensor) -> Tensor:
        return context_BX[:, _TAB : _TAB + 1].long().clamp_(0, self.core.num_tabs - 1)

    def _place(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor) -> _Place:
        core = self.core
        tab_B1 = self._tab(context_BX)
        hour_B1 = context_BX[:, _HOUR : _HOUR + 1].long().clamp_(0, 23)
        user_B1, recent_BW, memory_BS = self._split(state_BS)
        user_B = user_B1[:, 0].long()
        user_BV, taste_BE = core.user(memory_BS, self.user_UH[user_B])
        user_B1V, context_B1H = user_BV.unsqueeze(1), self.context_T24H[tab_B1, hour_B1]
        parts = torch.split(embedding(items_BK, self.item_row_NR), self._row_widths, -1)
        exposure_BKd, item_BKH, event_BKE, kind_BKY, log_prior_BKM, log_duration_BK1, amounts_BKX, *effects = parts
        user_exposure_B1d = self.exposure_Ud[user_B].unsqueeze(1)
        lift_BK = lift(user_exposure_B1d, exposure_BKd)
        user_parts = (user_B1V, taste_BE.unsqueeze(1), item_BKH, event_BKE, context_B1H)
        recent_B1W = recent_BW.unsqueeze(1)
        hidden_BKH = core.hidden(*user_parts, lift_BK, recent_B1W, kind_BKY)
        strength_BK = None
        if core.num_kinds:
            (effect_BKY,) = effects
            effect_BKK = (effect_BKY.unsqueeze(2) * kind_BKY.unsqueeze(1)).sum(-1)
            strength_BK = core.pair_effects.strength(effect_BKK)
        chosen_BK = None if self._filled_by == "another" else torch.full_like(lift_BK, self._filled_by == "ranker")
        answer = core.answer(hidden_BKH, user_B1V, tab_B1, lift_BK, recent_B1W, strength_BK, chosen_BK)
        amounts_BKM2 = amounts_BKX.view(*items_BK.shape, -1, 2)
        return _Place(answer, log_prior_BKM, log_duration_BK1.squeeze(-1), amounts_BKM2, tab_B1)

    def as_logged(self, uniform: bool = False) -> "SequenceResponse":
        """The same users before the log's own slates.

        Its ranker showed what it knew to be liked better; where a slate was filled by chance (``uniform``), the session
        holds what that ranker had passed over.
        """
        return SequenceResponse(self.core, self._tables(), "chance" if uniform else "ranker", self._history_length)

    def with_users(self, users: NewUsers) -> "SequenceResponse":
        """The same model of other users, who come with what they did before ``users.before``.

        Their log is read as the fitted one was. Where it has no requests, rows have no earlier places; where it has no
        sessions, each row is its session's first.

        Raises:
            ValueError: the model was stored without what it takes to read others.
        """
        tables = self._tables()
        if self._history_length is None or "user_weight_HD" not in tables:
            raise ValueError("these learned users do not say how others are read: build the world again")
        sequences, keep = read_sequences(users.log, self._history_length), self._history_length
        before_P = sequences.date_P < users.before
        tables["user_UH"] = linear(with_a_column(users.features_UD), tables["user_weight_HD"], tables["user_bias_H"])
        towers = ExposureTowers.restore(self.exposure_Nd, tables)
        lift_P = lifts(towers, users.features_UD, sequences, before_P, keep)
        tables["exposure_Ud"] = user_vectors(towers, users.features_UD, sequences, before_P, keep)
        # The log's own ranker filled its places, whatever is declared of slates by others.
        replay = Replay(self.core, tables, sequences, lift_P, tells_ranker=True)
        _, tables["state_US"] = replay.run(before_P, keep)
        return SequenceResponse(self.core, tables, self._filled_by, keep)

    def _tables(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.tensors().items() if not name.startswith("core.")}

    def config(self) -> dict[str, Any]:
        """Settings as JSON values."""
        core = self.core
        return {
            "response": asdict(core.config),
            "cells": core.cells.config(),
            "signals": list(core.signals),
            "num_tabs": core.num_tabs,
            "num_kinds": core.num_kinds,
            "session_kinds": None if core.satiation is None else core.satiation.num_kinds,
            "history_length": self._history_length,
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
            config["session_kinds"],
        )
        # A fresh core lies on the CPU: it has to be where its tensors are before they are copied into it.
        core = core.to(next(iter(tensors.values())).device)
        core.load_state_dict({name[5:]: tensor for name, tensor in tensors.items() if name.startswith("core.")})
        tables = {name: tensor for name, tensor in tensors.items() if not name.startswith("core.")}
        return cls(core, tables, history_length=config.get("history_length"))


def with_a_column(features_UD: Tensor) -> Tensor:
    """The features, or zeros (U, 1) of a log that tells nothing of its users: a layer needs an input."""
    return features_UD if features_UD.shape[1] else features_UD.new_zeros(len(features_UD), 1)
