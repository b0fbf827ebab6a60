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
from reward_models.users.response import Answer, ResponseCore, SequenceResponse
from reward_models.users.sequences import SequenceBatch, Sequences, sequence_batches
from reward_models.users.user_state import feedback_features


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

    def answer(self, core: ResponseCore, strength_R: Tensor | None = None) -> Answer:
        """Logits of the rows, shown alone or after what came before them."""
        return core.answer(self.hidden_RH, self.user_RV, self.tab_R, strength_R)


class ResponseNetwork(nn.Module):
    """A response model in training: encoders of items, users and contexts around the shared core."""

    item_features_ND: Tensor
    user_features_UD: Tensor
    duration_N: Tensor
    duration_hat_NC: Tensor
    kind_NY: Tensor

    def __init__(self, core: ResponseCore, item_features_ND: Tensor, user_features_UD: Tensor, duration_N: Tensor):
        super().__init__()
        config, width = core.config, core.config.width
        if not user_features_UD.shape[1]:  # a log that tells nothing of its users: a layer needs an input
            user_features_UD = user_features_UD.new_zeros(len(user_features_UD), 1)
        self.core = core
        self.register_buffer("item_features_ND", item_features_ND, persistent=False)
        self.register_buffer("user_features_UD", user_features_UD, persistent=False)
        self.register_buffer("duration_N", duration_N, persistent=False)
        self.item_vector = nn.Embedding(len(item_features_ND), config.item_width)
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

    def past_sums(self, window: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Decayed sums (B, S) of a history window (items, feedback, known), see ``Histories.window``."""
        items_BH, feedback_BHF, known_BHF = window
        happened_BH, items_BH = items_BH != NO_ITEM, items_BH.clamp(min=0)
        unknown_BH = torch.full_like(items_BH, self.core.num_tabs)
        events = self.events(items_BH, unknown_BH, feedback_BHF, known_BHF, happened_BH)
        return self.core.memory.update(feedback_BHF.new_zeros(len(items_BH), self.core.memory.state_width), *events)

    def events(
        self, items_BT: Tensor, tab_BT: Tensor, signals_BTF: Tensor, known_BTF: Tensor, happened_BT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Impressions as the memory takes them, see ``UserState.events``."""
        duration_BT, memory = self.duration_N[items_BT], self.core.memory
        usual_BTY = memory.usual_TGY[tab_BT, self.core.cells.group(duration_BT)]
        features = feedback_features(signals_BTF, duration_BT, usual_BTY, known_BTF)
        return memory.events(self.event_layer(self.item_inputs(items_BT)), features, happened_BT)

    def row_events(self, sequences: Sequences, row_BT: Tensor, happened_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The same for rows of the log."""
        tab_BT = sequences.tab_P[row_BT].clamp(0, self.core.num_tabs - 1)
        known_BTF = sequences.known_PF[row_BT]
        return self.events(sequences.item_P[row_BT], tab_BT, sequences.signals_PF[row_BT], known_BTF, happened_BT)

    def states(self, sequences: Sequences, batch: SequenceBatch, history_length: int) -> Tensor:
        """Decayed sums (B, T, S) with which users come to each of their rows."""
        past_BS = self.past_sums(sequences.past.window(batch.user_B, history_length))
        events = self.row_events(sequences, batch.row_BT, batch.valid_BT)
        begin_BT = (sequences.begin_P[batch.row_BT] - batch.row_BT[:, :1]).clamp(min=0)
        return self.core.memory.scan(past_BS, *events, begin_BT)

    def last_states(self, sequences: Sequences, before_date: int, history_length: int) -> Tensor:
        """Decayed sums (U, S) with which users come to ``before_date``: their history, then their rows."""
        is_past_P = sequences.date_P < before_date
        users = torch.split(torch.arange(len(self.user_features_UD)), 4096)
        sums_US = torch.cat([self.past_sums(sequences.past.window(user_B, history_length)) for user_B in users])
        for batch in sequence_batches(sequences, is_past_P, 512):
            events = self.row_events(sequences, batch.row_BT, batch.label_BT)
            sums_US[batch.user_B] = self.core.memory.update(sums_US[batch.user_B], *events)
        return sums_US

    def forward(
        self,
        sequences: Sequences,
        batch: SequenceBatch,
        history_length: int,
        generator: torch.Generator | None = None,
    ) -> "FirstLayer":
        """A batch's labelled rows, each as if it were shown alone.

        Args:
            sequences: the log.
            batch: users.
            history_length: pre-log impressions to begin with.
            generator: draws the dropout; ``None`` for none.
        """
        sums_RS = self.states(sequences, batch, history_length)[batch.label_BT]
        row_R = batch.row_BT[batch.label_BT]
        items_R = sequences.item_P[row_R]
        inputs_RD = self.item_inputs(items_R)
        user_RV, taste_RE = self.core.user(sums_RS, self.user_layer(self.user_features_UD[sequences.user_P[row_R]]))
        tab_R = sequences.tab_P[row_R].clamp(0, self.core.num_tabs - 1)
        context_RH = self.tab_vector(tab_R) + self.hour_vector(sequences.hour_P[row_R])
        item_RH, event_RE = self.item_layer(inputs_RD), self.event_layer(inputs_RD)
        hidden_RH = self.core.hidden(user_RV, taste_RE, item_RH, event_RE, context_RH)
        rate = self.core.config.dropout
        if generator is not None and rate > 0:
            keep_RH = torch.rand(hidden_RH.shape, generator=generator) >= rate
            hidden_RH = hidden_RH * keep_RH / (1.0 - rate)
        return FirstLayer(row_R, hidden_RH, user_RV, tab_R)

    def earlier_strength(self, sequences: Sequences, row_R: Tensor) -> Tensor:
        """Strengths (R,) of what the earlier places of their requests do to rows."""
        assert sequences.earlier_PQ is not None
        earlier_RQ = sequences.earlier_PQ[row_R]  # the nearest one first
        fading_Q = self.core.pair_effects.fading(torch.arange(earlier_RQ.shape[1]))
        fading_RQ1 = (fading_Q * (earlier_RQ != NO_ITEM)).unsqueeze(-1)
        earlier_RY = (self.kind_NY[earlier_RQ.clamp(min=0)] * fading_RQ1).sum(1)
        return (earlier_RY @ self.core.pair_effects.pair * self.kind_NY[sequences.item_P[row_R]]).sum(-1)

    @torch.no_grad()
    def export(self, sequences: Sequences, before_date: int, history_length: int) -> SequenceResponse:
        """Turns the encoders into tables; users start from what they did before ``before_date``."""
        inputs_ND = self.item_inputs(torch.arange(len(self.item_features_ND)))
        tables = {
            "item_NH": self.item_layer(inputs_ND),
            "item_event_NE": self.event_layer(inputs_ND),
            "user_UH": self.user_layer(self.user_features_UD),
            "sums_US": self.last_states(sequences, before_date, history_length),
            "tab_TH": self.tab_vector.weight,
            "hour_24H": self.hour_vector.weight,
            "duration_N": self.duration_N,
        }
        if self.core.num_kinds:
            tables["item_kind_NY"] = self.kind_NY
        return SequenceResponse(copy.deepcopy(self.core), tables)
