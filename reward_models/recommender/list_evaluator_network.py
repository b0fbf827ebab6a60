"""The networks of the list evaluator: what candidates are worth alone, and what earlier places of a list change.

Shape legend: B requests, C candidates, G lists, K places, F signals, M members, I inputs of a candidate,
J inputs of a request, Z kinds, W width, Y = B * C candidates, P = B * G * K places.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recsim_env.types import Request
from reward_models.list_effects import PairEffects
from reward_models.ranker_controls import MAX_PLACES
from reward_models.recommender.encoding import NUM_TABS
from reward_models.recommender.ensemble import FitSettings, at_least_one

_TAIL = 0.001
"""Share of the log's places, at either end, whose effects are cut to the size of the others'."""


@dataclass(frozen=True, kw_only=True)
class ListEvaluatorConfig(FitSettings):
    """How the list evaluator is built and fitted."""

    batch_size: int = 128
    """Requests of a training step."""
    patience: int = 3
    """Epochs without a better out-of-bag loss in any member before training stops."""
    listwise: bool = True
    """False drops everything that depends on other places."""
    num_members: int = 6
    """Members of the ensemble, M."""
    width: int = 32
    """Width of a candidate's encoding, W."""
    pair_decay: float = 0.1
    """Weight decay of the effects of pairs of kinds."""
    auxiliary_weight: float = 0.2
    """Weight of each other signal's log loss beside the watch-time loss."""
    min_slates: int = 200
    """Requests with two places or more that a list-wise fit needs."""
    weight_decay: float = 1.0
    """Weight decay of all matrices."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "num_members", "width")


class Inputs(NamedTuple):
    """What the evaluator reads of a request."""

    candidate_BCI: Tensor
    """float32: item features, predictions, their spread, retriever score."""
    request_BJ: Tensor
    """float32: user features, recent rates of every signal, tab."""
    base_BCF: Tensor
    """float32: the predictor's own opinion, as log seconds and log-odds."""

    def at(self, position_BK: Tensor) -> "Inputs":
        """The inputs of some candidates only."""

        def gather(tensor_BCX: Tensor) -> Tensor:
            return tensor_BCX.gather(1, position_BK.unsqueeze(-1).expand(-1, -1, tensor_BCX.shape[-1]))

        return Inputs(gather(self.candidate_BCI), self.request_BJ, gather(self.base_BCF))

    def of_lists(self, places: int) -> "Inputs":
        """The inputs of B * G requests whose candidates are one list each, from those of all lists side by side."""
        lists = self.candidate_BCI.shape[1] // places
        return Inputs(
            self.candidate_BCI.reshape(-1, places, self.candidate_BCI.shape[2]),
            self.request_BJ.repeat_interleave(lists, dim=0),
            self.base_BCF.reshape(-1, places, self.base_BCF.shape[2]),
        )


def request_inputs(request: Request) -> Inputs:
    """Inputs of a batch of requests; see ``Inputs``."""
    predicted_BCF = request.predicted_BCF
    watch_BC1 = predicted_BCF[..., :1].clamp(min=0.1).log()
    chance_BCF = predicted_BCF[..., 1:].clamp(1e-4, 1 - 1e-4)
    base_BCF = torch.cat([watch_BC1, chance_BCF.log() - torch.log1p(-chance_BCF)], dim=-1)
    spread_BCF = torch.log1p(request.predicted_std_BCF)
    score_BC1 = request.retriever_score_BC.unsqueeze(-1)
    known_BHF = request.history_known_BHF.to(torch.float32)
    feedback_BHF = torch.cat(
        [torch.log1p(request.history_feedback_BHF[..., :1]), request.history_feedback_BHF[..., 1:]], dim=-1
    )
    num_known_BF = known_BHF.sum(dim=1)
    rate_BF = (feedback_BHF * known_BHF).sum(dim=1) / (num_known_BF + 5.0)
    tab_B = request.context_BX[:, 0].to(torch.int64).clamp(0, NUM_TABS - 1)
    tab_BT = torch.nn.functional.one_hot(tab_B, NUM_TABS).to(torch.float32)
    return Inputs(
        torch.cat([request.candidate_features_BCD, base_BCF, spread_BCF, score_BC1], dim=-1),
        torch.cat([request.user_features_BD, rate_BF, torch.log1p(num_known_BF), tab_BT], dim=-1),
        base_BCF,
    )


class Sizes(NamedTuple):
    """Widths of the inputs and outputs."""

    candidate: int
    request: int
    signals: int
    kinds: int
    """Yes/no features among the item features."""


class ListModel(torch.nn.Module):
    """M list models side by side: candidates alone, and the effects of earlier places."""

    def __init__(self, config: ListEvaluatorConfig, sizes: Sizes, seed: int):
        super().__init__()
        self.config, self.sizes = config, sizes
        generator = torch.Generator().manual_seed(seed)
        self.alone = _Alone(config, sizes, generator)
        self.effects = _ListEffects(config, sizes) if config.listwise else None

    def forward(self, inputs: Inputs, position_BGK: Tensor, num_signals: int) -> Tensor:
        """Log seconds and log-odds (M, P, F) of every place of every list, for the first F signals."""
        if position_BGK.shape[2] > MAX_PLACES:
            raise ValueError(f"lists hold at most {MAX_PLACES} places, got {position_BGK.shape[2]}")
        candidates = inputs.candidate_BCI.shape[1]
        first_B11 = torch.arange(len(position_BGK), device=position_BGK.device)[:, None, None] * candidates
        row_P = (position_BGK + first_B11).flatten()
        logit_MPF: Tensor = self.alone(inputs, num_signals).index_select(1, row_P)
        if self.effects is None:
            return logit_MPF
        change_MPF: Tensor = self.effects(inputs.candidate_BCI, position_BGK, num_signals)
        return logit_MPF + change_MPF


class _Alone(torch.nn.Module):
    """What each candidate is worth whatever stands around it."""

    mean_I: Tensor
    scale_I: Tensor
    mean_J: Tensor
    scale_J: Tensor

    def __init__(self, config: ListEvaluatorConfig, sizes: Sizes, generator: torch.Generator):
        super().__init__()
        width = config.width
        self.candidate = _weight(config, generator, sizes.candidate, width)
        self.request = _weight(config, generator, sizes.request, width, gain=0.5)
        self.hidden_bias = _zeros(config, width)
        self.own = _weight(config, generator, width, width)
        self.own_bias = _zeros(config, width)
        self.head = _weight(config, generator, width, sizes.signals, gain=0.1)
        self.head_bias = _zeros(config, sizes.signals)
        for name, size in (("I", sizes.candidate), ("J", sizes.request)):
            self.register_buffer(f"mean_{name}", torch.zeros(size))
            self.register_buffer(f"scale_{name}", torch.ones(size))

    def forward(self, inputs: Inputs, num_signals: int) -> Tensor:
        """Log seconds and log-odds (M, Y, F)."""
        candidate_BCI = ((inputs.candidate_BCI - self.mean_I) * self.scale_I).clamp(-5.0, 5.0)
        request_BJ = ((inputs.request_BJ - self.mean_J) * self.scale_J).clamp(-5.0, 5.0)
        request_MBW = torch.matmul(request_BJ, self.request) + self.hidden_bias.unsqueeze(1)
        candidate_MYW = torch.matmul(candidate_BCI.flatten(0, 1), self.candidate)
        hidden_MBCW = candidate_MYW.view(len(request_MBW), *candidate_BCI.shape[:2], -1) + request_MBW.unsqueeze(2)
        own_MYW = torch.baddbmm(self.own_bias.unsqueeze(1), hidden_MBCW.flatten(1, 2).relu(), self.own)
        bias_M1F = self.head_bias[:, None, :num_signals]
        change_MYF = torch.baddbmm(bias_M1F, own_MYW.relu(), self.head[..., :num_signals])
        return inputs.base_BCF.flatten(0, 1)[:, :num_signals] + change_MYF


class _ListEffects(torch.nn.Module):
    """What the earlier places of a list change at a later one, and how much of it each signal shows."""

    kind_Z: Tensor
    """int64 columns of the item features that are kinds."""
    low_M1F: Tensor
    """Changes are cut here from below; see ``bound``."""
    high_M1F: Tensor
    """And here from above."""

    def __init__(self, config: ListEvaluatorConfig, sizes: Sizes):
        super().__init__()
        self.pair_effects = PairEffects(sizes.kinds, (config.num_members,))
        self.pair_effects.pair.weight_decay = config.pair_decay  # type: ignore[attr-defined]
        self.slope = torch.nn.Parameter(torch.ones(config.num_members, 1, sizes.signals))
        self.register_buffer("kind_Z", torch.zeros(sizes.kinds, dtype=torch.int64))
        for name, limit in (("low_M1F", -torch.inf), ("high_M1F", torch.inf)):
            self.register_buffer(name, torch.full((config.num_members, 1, sizes.signals), limit))

    def forward(self, candidate_BCI: Tensor, position_BGK: Tensor, num_signals: int) -> Tensor:
        """Changes of log seconds and log-odds (M, P, F)."""
        batch, lists, places = position_BGK.shape
        candidates = candidate_BCI.shape[1]
        kind_BCZ = candidate_BCI[..., self.kind_Z]
        effect_MBCZ = torch.matmul(kind_BCZ, self.pair_effects.pair.unsqueeze(1))
        effect_MBX = torch.matmul(effect_MBCZ, kind_BCZ.transpose(1, 2)).flatten(2)
        both_BGKK = position_BGK.unsqueeze(3) * candidates + position_BGK.unsqueeze(2)
        index_MBY = both_BGKK.view(1, batch, -1).expand(len(effect_MBX), -1, -1)
        effect_MBGKK = effect_MBX.gather(2, index_MBY).view(-1, batch, lists, places, places)
        strength_MP1 = self.pair_effects.strength(effect_MBGKK).view(-1, batch * lists * places, 1)
        change_MPF = strength_MP1 * self.slope[..., :num_signals]
        return change_MPF.clamp(self.low_M1F[..., :num_signals], self.high_M1F[..., :num_signals])

    def bound(self, change_MPF: Tensor) -> None:
        """Cuts changes, either way, at the size that all but a thousandth of the given ones have.

        Effects of five earlier places add up, so lists can be made that promise several times what any slate of the
        log did, and rankers find them. Give the changes of the log's own slates.
        """
        limits = np.quantile(change_MPF.numpy(), (_TAIL, 1 - _TAIL), axis=1, keepdims=True)
        for bound_M1F, limit in zip((self.low_M1F, self.high_M1F), limits, strict=True):
            bound_M1F.copy_(torch.from_numpy(limit))


def _weight(
    config: ListEvaluatorConfig, generator: torch.Generator, rows: int, columns: int, gain: float = 1.0
) -> torch.nn.Parameter:
    drawn = torch.randn(config.num_members, rows, columns, generator=generator) * gain * rows**-0.5
    parameter = torch.nn.Parameter(drawn)
    parameter.weight_decay = config.weight_decay  # type: ignore[attr-defined]
    return parameter


def _zeros(config: ListEvaluatorConfig, *shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(config.num_members, *shape))
