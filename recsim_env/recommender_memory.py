"""The recommender's side of running sessions: what its models remember, and how they are asked.

Shape legend: B sessions, C candidates, F signals, K places, M items to leave out, S model state, X context, Y items.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding

from recsim_env.types import NO_ITEM, CandidateSource, Predictor


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommenderMemory:
    """What predictor and candidate source remember of B sessions; a ``request.CandidateSide``."""

    predictor: Predictor
    source: CandidateSource
    features_ND: Tensor
    """Of the whole catalogue."""
    num_candidates: int
    """C."""
    history_length: int
    """Columns of ``shown_BM`` that hold what was shown before the session; the others hold the session."""
    predictor_BS: Tensor
    source_BS: Tensor
    shown_BM: Tensor
    """int64 items the candidate source leaves out: recent history and this session."""
    num_shown_B: Tensor
    """int64 places shown in this session."""
    draw_B: Tensor
    """float32 uniform draw of the current request's candidates."""

    @classmethod
    def begin(
        cls,
        predictor: Predictor,
        source: CandidateSource,
        features_ND: Tensor,
        *,
        num_candidates: int,
        room: int,
        user_B: Tensor,
        history_BH: Tensor,
        draw_B: Tensor,
    ) -> "RecommenderMemory":
        """The memory at the first request of sessions in which about ``room`` places will be shown."""
        empty = history_BH.new_full((len(user_B), room), NO_ITEM)
        return cls(
            predictor=predictor,
            source=source,
            features_ND=features_ND,
            num_candidates=num_candidates,
            history_length=history_BH.shape[1],
            predictor_BS=predictor.start(user_B),
            source_BS=source.start(user_B),
            shown_BM=torch.cat([history_BH, empty], dim=1),
            num_shown_B=torch.zeros_like(user_B),
            draw_B=draw_B,
        )

    def observe(
        self, context_BX: Tensor, items_BK: Tensor, signals_BKF: Tensor, seen_BK: Tensor, draw_B: Tensor
    ) -> "RecommenderMemory":
        """The memory after a slate; ``draw_B`` is for the next candidates. Slates may change their length."""
        places, room = items_BK.shape[1], self.shown_BM.shape[1] - self.history_length
        column_BK = self.num_shown_B.unsqueeze(1) + torch.arange(places, device=items_BK.device)
        # A session that outgrows the room forgets what it was shown first.
        column_BK = self.history_length + column_BK % room
        shown = (context_BX, items_BK, signals_BKF, seen_BK)
        return dataclasses.replace(
            self,
            predictor_BS=self.predictor.observe(self.predictor_BS, *shown),
            source_BS=self.source.observe(self.source_BS, *shown),
            shown_BM=self.shown_BM.scatter(1, column_BK, items_BK),
            num_shown_B=self.num_shown_B + places,
            draw_B=draw_B,
        )

    def retrieve(self) -> tuple[Tensor, Tensor]:
        """Candidates (B, C) int64, best first, and their scores (B, C)."""
        return self.source.retrieve(self.source_BS, self.shown_BM, self.draw_B, self.num_candidates)

    def score(self, items_BY: Tensor) -> Tensor:
        """The score (B, Y) each item has, or would have, as a candidate of the current request."""
        return self.source.score(self.source_BS, self.draw_B, items_BY)

    def showed(self, items_BY: Tensor) -> Tensor:
        """Bool (B, Y): whether each item was shown earlier in the session."""
        return (items_BY.unsqueeze(2) == self.shown_BM[:, None, self.history_length :]).any(dim=2)

    def features(self, items_BY: Tensor) -> Tensor:
        """Item features (B, Y, D)."""
        return embedding(items_BY, self.features_ND)

    def predict(self, context_BX: Tensor, items_BY: Tensor) -> tuple[Tensor, Tensor]:
        """Expected signals (B, Y, F) and their ensemble spread (B, Y, F)."""
        return self.predictor.predict(self.predictor_BS, context_BX, items_BY)

    def tensors(self) -> list[Tensor]:
        """What is remembered of the sessions, in the order of ``map``; models and catalogue are not among it."""
        return [self.predictor_BS, self.source_BS, self.shown_BM, self.num_shown_B, self.draw_B]

    def map(self, function: Callable[[Tensor], Tensor]) -> "RecommenderMemory":
        """The same models, with a function applied to every tensor of the sessions."""
        return dataclasses.replace(
            self,
            predictor_BS=function(self.predictor_BS),
            source_BS=function(self.source_BS),
            shown_BM=function(self.shown_BM),
            num_shown_B=function(self.num_shown_B),
            draw_B=function(self.draw_B),
        )
