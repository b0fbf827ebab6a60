"""The response model in training: encoders of items, users and contexts around the shared core.

Legend: B users, T rows of a user, R labelled rows, H hidden width, F signals, N items, U users, D features,
Y kinds of videos, Q earlier places.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reward_models.exposure import Exposure
from reward_models.list_effects import kinds_of
from reward_models.users.replay import Replay, earlier_strength, past_state, surprise
from reward_models.users.response import SequenceResponse, with_a_column
from reward_models.users.response_core import Answer, ResponseCore
from reward_models.users.sequences import SequenceBatch, Sequences


class FirstLayer(NamedTuple):
    """Rows of the log on their way through the network."""

    row_R: Tensor
    """int64 rows of ``Sequences``."""
    hidden_RH: Tensor
    """First layer, before its nonlinearity."""
    user_RV: Tensor
    """See ``ResponseCore.user``."""
    tab_R: Tensor
    recent_RW: Tensor
    """What the session had shown, see ``Satiation``."""

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
        user_features_UD = with_a_column(user_features_UD)
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

    def item_events(self, items: Tensor) -> Tensor:
        """Event vectors (..., E) of items."""
        event: Tensor = self.event_layer(self.item_inputs(items))
        return event

    def states(
        self, sequences: Sequences, batch: SequenceBatch, expected_PY: Tensor, history_length: int
    ) -> tuple[Tensor, Tensor]:
        """With what users come to each of their rows, when this is what was expected of the rows.

        Returns:
            ``UserState`` (B, T, S), and what the session has shown (B, T, W).
        """
        row_BT = batch.row_BT
        item_BT = sequences.item_P[row_BT]
        shown = (sequences.signals_PF[row_BT], self.duration_N[item_BT], sequences.known_PF[row_BT])
        surprise_BTY = surprise(*shown, expected_PY[row_BT])
        event_BTE = self.item_events(item_BT)
        # A row of which nothing is known, as of a video shown before in the session, is skipped as it is in play.
        happened_BT = batch.valid_BT & sequences.known_PF[row_BT].any(-1)
        events = self.core.memory.events(event_BTE, surprise_BTY, happened_BT)
        window = sequences.past.window(batch.user_B, history_length)
        past_BH = window[0].clamp(min=0)
        past_BS = past_state(self.core, window, self.item_events(past_BH), self.duration_N[past_BH])
        begin_BT = (sequences.begin_P[row_BT] - row_BT[:, :1]).clamp(min=0)
        state_BTS, recent_BTW = self.core.memory.scan(past_BS, *events, begin_BT), event_BTE[..., :0]
        if self.core.satiation is not None:
            assert sequences.session_P is not None
            session_BT = (sequences.session_P[row_BT] - row_BT[:, :1]).clamp(min=0)
            recent_BTW = self.core.satiation.scan(self.kind_NY[item_BT], happened_BT, begin_BT, session_BT)
        return state_BTS, recent_BTW

    def replay(self, sequences: Sequences, label_P: Tensor, history_length: int) -> tuple[Tensor, Tensor]:
        """What the model expects of the rows of its own log, and the states they leave users in; see ``Replay.run``."""
        return self._replay(sequences, self.exposure.lift_P).run(label_P, history_length)

    def _replay(self, sequences: Sequences, lift_P: Tensor) -> Replay:
        # Where all rows are the ranker's, nothing tells what it knew from what its videos are worth.
        return Replay(self.core, self.tables(), sequences, lift_P, bool(sequences.uniform_P.any()))

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
        inputs_RD, tab_R = self.item_inputs(sequences.item_P[row_R]), self.core.tabs(sequences.tab_P[row_R])
        user_RV, taste_RE = self.core.user(state_RS, self.user_layer(self.user_features_UD[sequences.user_P[row_R]]))
        context_RH = self.tab_vector(tab_R) + self.hour_vector(sequences.hour_P[row_R])
        item_RH, event_RE = self.item_layer(inputs_RD), self.event_layer(inputs_RD)
        lift_R, kind_RY = self.exposure.lift_P[row_R], self.kind_NY[sequences.item_P[row_R]]
        hidden_RH = self.core.hidden(user_RV, taste_RE, item_RH, event_RE, context_RH, lift_R, recent_RW, kind_RY)
        rate = self.core.config.dropout
        if generator is not None and rate > 0:
            keep_RH = torch.rand(hidden_RH.shape, generator=generator) >= rate
            hidden_RH = hidden_RH * keep_RH / (1.0 - rate)
        return FirstLayer(row_R, hidden_RH, user_RV, tab_R, recent_RW)

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
        shown = (first.hidden_RH, first.user_RV, first.tab_R, lift_R, first.recent_RW)
        return self.core.answer(*shown, strength_R, chosen_R)

    def earlier_strength(self, sequences: Sequences, row_R: Tensor) -> Tensor:
        """See ``reward_models.users.replay``."""
        return earlier_strength(self.core, self.kind_NY, sequences, row_R)

    @torch.no_grad()
    def tables(self) -> dict[str, Tensor]:
        """Everything that depends on one item, user or context alone, computed once."""
        inputs_ND = self.item_inputs(torch.arange(len(self.item_features_ND)))
        return {
            "item_NH": self.item_layer(inputs_ND),
            "item_event_NE": self.event_layer(inputs_ND),
            "user_UH": self.user_layer(self.user_features_UD),
            "tab_TH": self.tab_vector.weight,
            "hour_24H": self.hour_vector.weight,
            "duration_N": self.duration_N,
            "item_kind_NY": self.kind_NY,
        }

    @torch.no_grad()
    def export(self, sequences: Sequences, before_date: int, history_length: int) -> SequenceResponse:
        """Turns the encoders into tables; users start from what they did before ``before_date``."""
        tables = self.tables()
        # As users who enter later will be read: by the exposure of the finished model, not by that of other users.
        replay = self._replay(sequences, self.exposure.final_lift_P)
        _, tables["state_US"] = replay.run(sequences.date_P < before_date, history_length)
        tables |= {"exposure_Ud": self.exposure.user_Ud, "exposure_Nd": self.exposure.item_Nd}
        tables |= {"user_weight_HD": self.user_layer.weight, "user_bias_H": self.user_layer.bias}
        tables |= self.exposure.towers.tables()
        return SequenceResponse(copy.deepcopy(self.core), tables, history_length=history_length)
