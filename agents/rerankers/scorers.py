"""Rerankers that score every candidate and sort: DNN, DLCM, PRM and SetRank.

One network a paper and one loss for all, whatever the labels: 0/1 for all candidates on the offline protocol
(``agents.offline``), or the seconds watched of the videos of a logged slate (``agents.rerankers.logged_slates``).
What is compared is how candidates see each other:

- ``dnn``: not at all; the pointwise network of the papers' tables.
- ``dlcm`` (arXiv 1804.05936): a GRU over the retriever's order, whose last state gates each candidate's state. The
  paper's attention-rank loss is this softmax where labels are 0 and 1.
- ``prm`` (arXiv 1904.06813): self-attention, and a learned embedding of the rank in the retriever's order. Left
  out: the pre-trained personal vectors; personal input is the history, which all four get.
- ``setrank`` (arXiv 1912.05891): induced self-attention without ranks, which cannot see the order of its input.
  Left out: the variant with ordinal embeddings.

Widths are equal, depths as in this project's encoder; none of the papers' own sizes is claimed. Each is a list policy
with one softmax over the candidates, so that lists can be drawn from it as well as sorted.

Shape legend: B requests, C candidates, K places of a logged slate.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from agents.decoders import DecoderName
from agents.list_policy import ListPolicy, ListPolicyConfig
from agents.method import Columns, request_of, require_one_of
from agents.rerankers.logged_slates import POSITIONS, SECONDS, SlateMethod
from agents.rl.behaviour_cloning import WEIGHT
from recsim_env.slates import items_at
from recsim_env.types import Request

ScorerName = Literal["dnn", "dlcm", "prm", "setrank"]
SCORERS: tuple[ScorerName, ...] = get_args(ScorerName)

INITIAL_RANKS = 50
"""Ranks that PRM tells apart."""

_NETWORKS: dict[ScorerName, dict[str, Any]] = {
    "dnn": {"layers": 0},
    "dlcm": {"mixing": "recurrent"},
    "prm": {"mixing": "attention", "initial_ranks": INITIAL_RANKS},
    "setrank": {"mixing": "induced"},
}

_SCORE = "score_BK"


def listwise_softmax_loss(score_BC: Tensor, gain_BC: Tensor) -> Tensor:
    """Cross-entropy between gains, as shares of their sum, and the softmax of the scores.

    Args:
        score_BC: float32, of what competes: all candidates, or those that were shown.
        gain_BC: float32, not negative: labels 0/1, or seconds.

    Returns:
        A scalar: the mean over requests in which anything was gained, 0 where there is none.
    """
    total_B = gain_BC.sum(dim=1)
    gained_B = total_B > 0
    loss_B = -(gain_BC * score_BC.log_softmax(dim=1)).sum(dim=1) / total_B.where(gained_B, 1.0)
    return loss_B.sum() / gained_B.sum().clamp(min=1)


def candidate_scores(policy: ListPolicy, request: Request) -> Tensor:
    """Scores (B, C) float32 of the candidates, higher is better; carries gradients."""
    score_B1C: Tensor = policy.decoder.begin(policy.encoder(request))
    return score_B1C.squeeze(1)


@dataclass(frozen=True, kw_only=True)
class ScorerConfig(ListPolicyConfig):
    """Settings of a network with one softmax; ``scorer_config`` makes those of a paper."""

    decoder: DecoderName = "one_softmax"
    """Always "one_softmax"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "decoder", ("one_softmax",))


def scorer_config(name: ScorerName, **settings: Any) -> ScorerConfig:
    """Settings of a paper's network; ``layers`` and other sizes can be chosen.

    Raises:
        ValueError: an unknown name, or a setting that makes it another network.
    """
    if name not in SCORERS:
        raise ValueError(f"scorer must be one of {SCORERS}, got {name!r}")
    fixed = sorted(set(settings) & {"mixing", "initial_ranks", *_NETWORKS[name]})
    if fixed:
        raise ValueError(f"{name} is defined by its {fixed}; choose another scorer instead")
    return ScorerConfig(**_NETWORKS[name], **settings)


class Scorer(SlateMethod):
    """The method on logged slates. The softmax runs over the slate only, for what was not shown has no label."""

    Config = ScorerConfig

    def outputs(self, network: ListPolicy, batch: Columns) -> Columns:
        """Scores (B, K) of the videos that were shown."""
        return {_SCORE: items_at(candidate_scores(network, request_of(batch)), batch[POSITIONS])}

    def loss(self, outputs: Columns, batch: Columns) -> tuple[Tensor, Columns]:
        """Cross-entropy to the videos' shares of the seconds."""
        return listwise_softmax_loss(outputs[_SCORE], batch[SECONDS] * batch[WEIGHT].unsqueeze(1)), {}
