"""The response model in training: encoders of items, users and contexts around the shared core.

Legend: B users, T rows of a user, R labelled rows, H hidden width, F signals, N items, U users, D features,
Y kinds of videos, Q earlier places.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recsim_env.types import NO_ITEM
from reward_models.list_effects import kinds_of
from reward_models.users.exposure import Exposure
from reward_models.users.response import SequenceResponse
from reward_models.users.response_core import Answer, ResponseCore
from reward_models.users.sequences import SequenceBatch, Sequences
from reward_models.users.user_state import amounts

_PAST_WEIGHT = 0.1  # events that one of before the log counts for


class FirstLayer(NamedTuple):
    """Rows of the log on their way through the network."""

    row_R: Tensor
    """int64 rows of ``Sequences``."""
    hidden_RH: Tensor
    """First layer, before its nonlinearity."""
    user_RV: Tensor
    """See ``ResponseCore.user``."""
    tab_R: Tensor

    def at(self, index_X: Tensor) -> "FirstLayer":
        """Some of the rows."""
        return FirstLayer(*(column[index_X] for column in self))


class ResponseNetwork(nn.Module):
    """A response model in training: encoders of items, users and contexts around the shared core."""

    item_features_ND: Tensor
    user_features_UD: Tensor
    duration_N: Tensor
    duration_hat_NC: Tensor
    group_N: Tensor
    cell_amounts_NM2: Tensor
    kind_NY: Tensor

    def __init__(
        self,
        core: ResponseCore,
        item_features_ND: Tensor,
        user_features_UD: Tensor,
        duration_N: Tensor,
        exposure: Exposure,
    ):
        super().__init__()
        config, width = core.config, core.config.width
        if not user_features_UD.shape[1]:  # a log that tells nothing of its users: a layer needs an input
            user_features_UD = user_features_UD.new_zeros(len(user_features_UD), 1)
        self.core = core
        self.exposure = exposure
        self.register_buffer("item_features_ND", item_features_ND, persistent=False)
        self.register_buffer("user_features_UD", user_features_UD, persistent=False)
        self.register_buffer("duration_N", duration_N, persistent=False)
        self.item_vector = nn.Embedding(len(item_features_ND), config.item_width)
        self.register_buffer("group_N", core.cells.group(duration_N), persistent=False)
        self.register_buffer("cell_amounts_NM2", core.cells.amounts(duration_N), persistent=False)
        self.register_buffer("duration_hat_NC", core.cells.hats(duration_N), persistent=False)
        item_inputs = item_features_ND.shape[1] + self.duration_hat_NC.shape[1] + config.item_width
        self.item_layer = nn.Linear(item_inputs, width)
        self.event_layer = nn.Linear(item_inputs, config.event_width)
        self.register_buffer("kind_NY", item_features_ND[:, kinds_of(item_features_ND)], persistent=False)
        self.user_layer = nn.Linear(user_features_UD.shape[1], width)
        self.tab_vector = nn.Embedding(core.num_tabs, width)
        self.hour_vector = nn.Embedding(24, width)

    def initialise(self, generator: torch.Generator) -> None:
        """Draws fresh weights from ``generator``."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = 1.0 / math.sqrt(max(module.in_features, 1))
                module.weight.data.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.data.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.data.zero_()  # an item without rows stays at its features
        self.core.memory.initialise_fading()

    def item_inputs(self, items: Tensor) -> Tensor:
        """Features, duration and learned vector of items (...), side by side."""
        return torch.cat([self.item_features_ND[items], self.duration_hat_NC[items], self.item_vector(items)], -1)

    def past_state(self, window: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """State (B, S) after a history window (items, feedback, known), see ``Histories.window``."""
        items_BH, feedback_BHF, known_BHF = window
        happened_BH, items_BH = items_BH != NO_ITEM, items_BH.clamp(min=0)
        # What was done before the log has no context to ask the model about: what is usual is expected of it.
        usual_BHY = self.core.memory.usual_TGY[self.core.num_tabs, self.group_N[items_BH]]
        surprise_BHY = self.surprise(items_BH, feedback_BHF, known_BHF, usual_BHY)
        events = self.core.memory.events(self.item_events(items_BH), surprise_BHY, happened_BH)
        state_BS = self.core.memory.update(feedback_BHF.new_zeros(len(items_BH), self.core.memory.state_width), *events)
        # Without watch times an event says little: a user's first rows of the log still have nearly all to tell.
        return torch.cat([_PAST_WEIGHT * state_BS[:, :1], state_BS[:, 1:]], 1)

    def item_events(self, items: Tensor) -> Tensor:
        """Event vectors (..., E) of items."""
        event: Tensor = self.event_layer(self.item_inputs(items))
        return event

    def surprise(self, items: Tensor, signals: Tensor, known: Tensor, expected: Tensor) -> Tensor:
        """Amounts (..., Y) beyond the expected ones; 0 where nothing was recorded.

        Args:
            items: int64 (...).
            signals: float32 (..., F).
            known: bool (..., F).
            expected: float32 (..., Y).
        """
        return (amounts(signals, self.duration_N[items]) - expected) * torch.cat([known, known[..., :1]], -1)

    def states(
        self, sequences: Sequences, batch: SequenceBatch, expected_PY: Tensor, history_length: int
    ) -> tuple[Tensor, Tensor]:
        """With what users come to each of their rows, when this is what was expected of the rows.

        Returns:
            ``UserState`` (B, T, S), and what the session has shown (B, T, W).
        """
        row_BT = batch.row_BT
        item_BT = sequences.item_P[row_BT]
        shown = (item_BT, sequences.signals_PF[row_BT], sequences.known_PF[row_BT])
        surprise_BTY = self.surprise(*shown, expected_PY[row_BT])
        event_BTE = self.item_events(item_BT)
        events = self.core.memory.events(event_BTE, surprise_BTY, batch.valid_BT)
        past_BS = self.past_state(sequences.past.window(batch.user_B, history_length))
        begin_BT = (sequences.begin_P[row_BT] - row_BT[:, :1]).clamp(min=0)
        state_BTS, recent_BTW = self.core.memory.scan(past_BS, *events, begin_BT), event_BTE[..., :0]
        if self.core.satiation is not None:
            assert sequences.session_P is not None
            session_BT = (sequences.session_P[row_BT] - row_BT[:, :1]).clamp(min=0)
            recent_BTW = self.core.satiation.scan(event_BTE, batch.valid_BT, begin_BT, session_BT)
        return state_BTS, recent_BTW

    @torch.no_grad()
    def replay(self, sequences: Sequences, label_P: Tensor, history_length: int) -> tuple[Tensor, Tensor]:
        """What the model expects of rows, one after another as it will be simulated.

        A row's surprise needs the state before it, and that state the surprises before: there is no shorter way. So
        the training, which needs all rows at once, takes what the model as it stood a while ago expected.

        Returns:
            Expected amounts (P, Y) of the rows of users with labelled rows, up to the last of these; and the state
            (U, S) of every user after these rows.
        """
        users = torch.split(torch.arange(len(self.user_features_UD)), 4096)
        state_US = torch.cat([self.past_state(sequences.past.window(user_B, history_length)) for user_B in users])
        expected_PY = state_US.new_zeros(len(sequences.item_P), len(sequences.signals) + 1)
        tables = self.tables()
        # Users side by side, the longest first: each step has those who still have a row.
        end_U = torch.zeros(len(sequences.start_U1) - 1, dtype=torch.int64)
        row_R = label_P.nonzero().squeeze(1)
        end_U.scatter_reduce_(0, sequences.user_P[row_R], row_R + 1, "amax")
        length_U = (end_U - sequences.start_U1[:-1]).clamp(min=0)
        user_V = length_U.argsort(descending=True, stable=True)[: int((length_U > 0).sum())]
        state_VS, begin_VS = state_US[user_V], state_US[user_V]
        satiation = self.core.satiation
        recent_VW = state_VS.new_zeros(len(user_V), 0 if satiation is None else satiation.state_width)
        begin_VW = recent_VW.clone()
        for step in range(int(length_U.max())):
            running = int((length_U[user_V] > step).sum())
            row_B, state_BS = sequences.start_U1[user_V[:running]] + step, state_VS[:running]
            is_first_B1 = (sequences.begin_P[row_B] == row_B).unsqueeze(1)
            begin_BS = torch.where(is_first_B1, state_BS, begin_VS[:running])
            item_B = sequences.item_P[row_B]
            recent_BW = recent_VW[:running]
            if satiation is not None:
                assert sequences.session_P is not None
                recent_BW = recent_BW * (sequences.session_P[row_B] != row_B).unsqueeze(1)
            begin_BW = torch.where(is_first_B1, recent_BW, begin_VW[:running])
            expected_BY = self.expected_amounts(sequences, row_B, begin_BS, begin_BW, tables)
            expected_PY[row_B] = expected_BY
            shown = (item_B, sequences.signals_PF[row_B], sequences.known_PF[row_B])
            happened_B = torch.ones_like(row_B, dtype=torch.bool)
            event_BE = tables["item_event_NE"][item_B]
            events = self.core.memory.events(event_BE, self.surprise(*shown, expected_BY), happened_B)
            if satiation is not None:
                recent_VW[:running] = satiation.update(recent_BW, event_BE.unsqueeze(1), happened_B.unsqueeze(1))
            state_VS[:running] = self.core.memory.update(state_BS, *(part.unsqueeze(1) for part in events))
            begin_VS[:running], begin_VW[:running] = begin_BS, begin_BW
        state_US[user_V] = state_VS
        return expected_PY, state_US

    def expected_amounts(
        self, sequences: Sequences, row_B: Tensor, state_BS: Tensor, recent_BW: Tensor, tables: dict[str, Tensor]
    ) -> Tensor:
        """What is expected of rows by users in these states: (B, Y)."""
        item_B, tab_B = sequences.item_P[row_B], self.tabs(sequences.tab_P[row_B])
        user_BV, taste_BE = self.core.user(state_BS, tables["user_UH"][sequences.user_P[row_B]])
        hidden_BH = self.core.hidden(
            user_BV,
            taste_BE,
            tables["item_NH"][item_B],
            tables["item_event_NE"][item_B],
            tables["tab_TH"][tab_B] + tables["hour_24H"][sequences.hour_P[row_B]],
            self.exposure.lift_P[row_B],
            recent_BW,
        )
        strength_B = self.earlier_strength(sequences, row_B) if self.core.num_kinds else None
        return self.core.expected_amounts(
            self.answer(sequences, FirstLayer(row_B, hidden_BH, user_BV, tab_B), strength_B),
            tables["log_prior_NM"][item_B],
            self.cell_amounts_NM2[item_B],
            tab_B,
            self.group_N[item_B],
        )

    def tabs(self, tab: Tensor) -> Tensor:
        """Tabs as the model knows them."""
        return tab.clamp(0, self.core.num_tabs - 1)

    def forward(
        self,
        sequences: Sequences,
        batch: SequenceBatch,
        expected_PY: Tensor,
        history_length: int,
        generator: torch.Generator | None = None,
    ) -> "FirstLayer":
        """A batch's labelled rows, each as if it were shown alone.

        Args:
            sequences: the log.
            batch: users.
            expected_PY: what was expected of the rows, see ``replay``.
            history_length: pre-log impressions to begin with.
            generator: draws the dropout; ``None`` for none.
        """
        states = self.states(sequences, batch, expected_PY, history_length)
        state_RS, recent_RW = (part[batch.label_BT] for part in states)
        row_R = batch.row_BT[batch.label_BT]
        inputs_RD, tab_R = self.item_inputs(sequences.item_P[row_R]), self.tabs(sequences.tab_P[row_R])
        user_RV, taste_RE = self.core.user(state_RS, self.user_layer(self.user_features_UD[sequences.user_P[row_R]]))
        context_RH = self.tab_vector(tab_R) + self.hour_vector(sequences.hour_P[row_R])
        item_RH, event_RE = self.item_layer(inputs_RD), self.event_layer(inputs_RD)
        hidden_RH = self.core.hidden(
            user_RV, taste_RE, item_RH, event_RE, context_RH, self.exposure.lift_P[row_R], recent_RW
        )
        rate = self.core.config.dropout
        if generator is not None and rate > 0:
            keep_RH = torch.rand(hidden_RH.shape, generator=generator) >= rate
            hidden_RH = hidden_RH * keep_RH / (1.0 - rate)
        return FirstLayer(row_R, hidden_RH, user_RV, tab_R)

    def answer(
        self, sequences: Sequences, first: FirstLayer, strength_R: Tensor | None = None, chosen: bool = True
    ) -> Answer:
        """Logits of rows of the log, shown alone or after what came before them.

        Args:
            sequences: the log.
            first: the rows.
            strength_R: see ``earlier_strength``; ``None`` shows each row alone.
            chosen: as the log's ranker chose them; otherwise as if somebody else had.
        """
        # Where all rows are the ranker's, nothing tells what it knew from what its videos are worth.
        can_tell = chosen and bool(sequences.uniform_P.any())
        chosen_R = (~sequences.uniform_P[first.row_R]).float() if can_tell else None
        lift_R = self.exposure.lift_P[first.row_R]
        return self.core.answer(first.hidden_RH, first.user_RV, first.tab_R, lift_R, strength_R, chosen_R)

    def earlier_strength(self, sequences: Sequences, row_R: Tensor) -> Tensor:
        """Strengths (R,) of what the earlier places of their requests do to rows."""
        assert sequences.earlier_PQ is not None
        earlier_RQ = sequences.earlier_PQ[row_R]  # the nearest one first
        fading_Q = self.core.pair_effects.fading(torch.arange(earlier_RQ.shape[1]))
        fading_RQ1 = (fading_Q * (earlier_RQ != NO_ITEM)).unsqueeze(-1)
        earlier_RY = (self.kind_NY[earlier_RQ.clamp(min=0)] * fading_RQ1).sum(1)
        return (earlier_RY @ self.core.pair_effects.pair * self.kind_NY[sequences.item_P[row_R]]).sum(-1)

    @torch.no_grad()
    def tables(self) -> dict[str, Tensor]:
        """Everything that depends on one item, user or context alone, computed once."""
        inputs_ND = self.item_inputs(torch.arange(len(self.item_features_ND)))
        return {
            "item_NH": self.item_layer(inputs_ND),
            "item_event_NE": self.event_layer(inputs_ND),
            "log_prior_NM": self.core.log_prior(self.duration_N),
            "user_UH": self.user_layer(self.user_features_UD),
            "tab_TH": self.tab_vector.weight,
            "hour_24H": self.hour_vector.weight,
        }

    @torch.no_grad()
    def export(self, sequences: Sequences, before_date: int, history_length: int) -> SequenceResponse:
        """Turns the encoders into tables; users start from what they did before ``before_date``."""
        tables = self.tables()
        del tables["log_prior_NM"]
        _, state_US = self.replay(sequences, sequences.date_P < before_date, history_length)
        tables |= {"state_US": state_US, "duration_N": self.duration_N}
        tables |= {"exposure_Ud": self.exposure.user_Ud, "exposure_Nd": self.exposure.item_Nd}
        if self.core.num_kinds:
            tables["item_kind_NY"] = self.kind_NY
        return SequenceResponse(copy.deepcopy(self.core), tables)
