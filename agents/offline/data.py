"""Requests with labels: what the offline protocol gives to rerankers. ``agents.offline.protocol`` makes them of a log.

Candidates stand in random order, unlike in the simulator: rankers that want the retriever's order sort by its
score. Scores are scaled to [0, 1] within each request. There is no ranker's prediction: ``predicted_BCF`` is 0.

Shape legend: R rows of the log, L requests, B requests of a batch, C candidates, K places, H history, N items, U users,
F signals, D features, X context, S stages.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from agents.networks import RequestShape
from recsim_env.types import NO_ITEM, Request


class LabelledRequests(NamedTuple):
    """A batch of requests with the answers."""

    request: Request
    label_BC: Tensor
    """float32 0/1: the candidate is a positive of the request's list."""
    num_positives_B: Tensor
    """float32: positives of the list, candidates or not."""


@dataclass(frozen=True, kw_only=True)
class RequestPart:
    """The requests of one period, gathered when they are asked for."""

    tables: "LogTables"
    stage_L: Tensor
    user_L: Tensor
    context_LX: Tensor
    history_begin_L: Tensor
    history_end_L: Tensor
    """int64: rows of the user that lie before the list are ``history_begin .. history_end - 1``."""
    candidates_LC: Tensor
    score_LC: Tensor
    label_LC: Tensor
    num_positives_L: Tensor

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.user_L)

    def batch(self, index_B: Tensor) -> LabelledRequests:
        """Gathers requests by their numbers, int64."""
        tables, candidates_BC = self.tables, self.candidates_LC[index_B]
        row_BH, present_BH = window(self.history_begin_L[index_B], self.history_end_L[index_B], tables.history_length)
        nothing_BCF = torch.zeros(*candidates_BC.shape, tables.feedback_RF.shape[1])
        request = Request(
            user_B=self.user_L[index_B],
            user_features_BD=tables.user_features_UD[self.user_L[index_B]],
            context_BX=self.context_LX[index_B],
            history_BH=tables.item_R[row_BH].masked_fill(~present_BH, NO_ITEM),
            history_feedback_BHF=tables.feedback_RF[row_BH] * present_BH.unsqueeze(2),
            history_known_BHF=tables.known_RF[row_BH] & present_BH.unsqueeze(2),
            candidates_BC=candidates_BC,
            candidate_features_BCD=tables.item_features_SND[self.stage_L[index_B].unsqueeze(1), candidates_BC],
            retriever_score_BC=self.score_LC[index_B],
            predicted_BCF=nothing_BCF,
            predicted_std_BCF=nothing_BCF,
        )
        return LabelledRequests(request, self.label_LC[index_B], self.num_positives_L[index_B])

    def all(self) -> LabelledRequests:
        """Every request in one batch."""
        return self.batch(torch.arange(len(self)))

    def among(self, index_B: Tensor) -> "RequestPart":
        """The part with these requests only; indices int64, or a mask (L,)."""
        names = [name for name in self.__dataclass_fields__ if name != "tables"]
        return replace(self, **{name: getattr(self, name)[index_B] for name in names})


@dataclass(frozen=True, kw_only=True)
class RerankData:
    """The protocol's three parts, and what rankers have to know of the catalogue."""

    train: RequestPart
    validation: RequestPart
    test: RequestPart
    popularity_SN: Tensor
    """float32: positives of each item before each stage; ``stage_L`` of a part says which row counts."""
    num_items: int
    """N."""
    list_size: int
    """K."""
    counts: dict[str, int]
    """Lists and rows that building kept and left out, and why."""


@dataclass(frozen=True)
class LogTables:
    """What the parts share: rows by user and time, features by stage."""

    history_length: int
    item_R: Tensor
    feedback_RF: Tensor
    known_RF: Tensor
    user_features_UD: Tensor
    item_features_SND: Tensor


def shape_of(data: RerankData) -> RequestShape:
    """The sizes of a protocol's requests."""
    example = data.train.batch(torch.arange(1)).request
    return RequestShape.of(example, data.num_items, data.list_size)


def unit_scaled(score_BC: Tensor) -> Tensor:
    """Scores scaled to [0, 1] within each request; equal scores become 0."""
    lowest_B1, highest_B1 = score_BC.amin(dim=1, keepdim=True), score_BC.amax(dim=1, keepdim=True)
    return (score_BC - lowest_B1) / (highest_B1 - lowest_B1).clamp(min=1e-12)


def window(begin_B: Tensor, end_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The last ``length`` rows before ``end``, and which of them are not before ``begin``."""
    row_BH = end_B.unsqueeze(1) - length + torch.arange(length)
    present_BH = row_BH >= begin_B.unsqueeze(1)
    return row_BH.clamp(min=0), present_BH
