"""The offline protocol of the reranking papers: every reranker on the same labelled requests, over several seeds.

    python -m experiments.compare offline --data ml_latest_small --protocol papers --sigmas 0.1 0.3 1
    python -m experiments.compare offline --data ml_latest_small --protocol honest --sigmas 0.3

``--data`` is a folder or file that ``load_interactions`` reads, the name of one in ``$RECSIM_DATA``, or "short_video":
the log of the known world that ``compare goalrank`` draws. What the two protocols are is said in
``agents.offline.data``. Beside the rerankers stand four sorts that learn nothing, among them the
retriever's order upside down, which shows how far forced positives give themselves away, and PRM fitted to shuffled
labels, which must score what chance scores. That row is judged by AUC: under ``papers`` one order finds most positives
and its reverse hardly any, so orders that know nothing have a mean NDCG above chance.
Each of ``--sigmas`` adds a setting in which the retriever's scores carry noise of that deviation, with the methods
that differ in how they use the score. AUC is there for methods that score all candidates.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor

from agents.baselines import RandomSlate
from agents.goalrank import GoalRankConfig
from agents.list_policy import ListPolicy
from agents.offline.controls import with_noisy_scores, with_shuffled_labels, without_scores
from agents.offline.data import RerankData
from agents.offline.dnr import DnrConfig, fit_dnr
from agents.offline.egrerank import EgRerankConfig, fit_egrerank
from agents.offline.goalrank import fit_goalrank
from agents.offline.label_evaluator import LabelEvaluatorConfig
from agents.offline.nlgr import NlgrConfig, fit_nlgr
from agents.offline.pier import PierConfig, fit_pier
from agents.offline.protocol import ProtocolConfig, build_rerank_data
from agents.offline.retriever import fit_matrix_factorisation
from agents.offline.scorers import ScorerLoss, fit_scorer
from agents.offline.training import OfflineTrainingConfig, request_quality
from agents.rerankers.scorers import ScorerConfig, ScorerName, candidate_scores
from experiments.tables.runner import Outline, RunOptions, Table
from experiments.tables.runs import Measured, Run
from experiments.tables.settings import LogSource, log_of, settings_of
from recsim_env.data import LoggedDataset
from recsim_env.data.ratings import load_interactions
from recsim_env.plugins import nearest
from recsim_env.results import Cell
from recsim_env.slates import best_first
from recsim_env.types import Decision, Policy, Request
from reward_models.metrics import grouped_auc

POSITIVE_SIGNALS = ("long_view", "like")
"""The first of these that the log has makes an interaction a positive."""
PAPERS_CORE = 5
"""Interactions that each user and item has at least, under ``papers``. GoalRank asks for 20 of much larger logs."""

KNOWN_WORLD = "short_video"

MIN_SPREAD = 0.005
"""GoalRank leaves out groups of lists whose values spread by no more, in discounted positives."""


OUTLINE = Outline(
    name="offline",
    title="Offline reranking protocol",
    metrics={"NDCG": "NDCG@6, per cent", "H": "H@6", "MAP": "MAP@6", "F1": "F1@6", "AUC": "AUC, per cent"},
    scale=100,
)


@dataclass(frozen=True, kw_only=True)
class OfflineTable:
    """Rerankers on the labelled requests of a log, as the papers judge them."""

    data: str = "ml_latest_small"
    """A folder or file, the name of one in ``$RECSIM_DATA``, or "short_video"."""
    protocol: Literal["papers", "honest"] = "honest"
    """As the papers do it, or what a ranker would meet in use."""
    seeds: int = 3
    """Training seeds of each method."""
    methods: tuple[str, ...] = ()
    """Names of the methods to run; by default all."""
    sigmas: tuple[float, ...] = ()
    """Noise on the retriever's scores: one further setting each."""
    width: int = 32
    """Width of the networks; the papers have 128."""
    max_epochs: int = 12
    """Epochs at most."""
    run: tyro.conf.OmitArgPrefixes[RunOptions] = field(default_factory=RunOptions)
    """How it is run."""

    def __post_init__(self) -> None:
        if min(self.seeds, self.width, self.max_epochs) < 1:
            raise ValueError(
                f"seeds, width and max_epochs must be at least 1, got {self.seeds}, {self.width}, {self.max_epochs}"
            )
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"methods must be among {tuple(METHODS)}, got {name!r}{nearest(name, METHODS)}")

    @property
    def settings(self) -> dict[str, tuple[float, dict[str, "Method"]]]:
        """Name of each setting to its noise and methods."""
        name = f"{Path(self.data).name}, {self.protocol}"
        few = {"retriever order": METHODS["retriever order"], **SCORE_METHODS}
        return {name: (0.0, METHODS), **{f"{name}, score noise {sigma:g}": (sigma, few) for sigma in self.sigmas}}

    def table(self) -> Table:
        """What the runner needs."""
        card = {
            "log_digest": interactions(self.data).digest,
            "protocol": asdict(protocol_config(self.data, self.protocol)),
            "width": self.width,
            "max_epochs": self.max_epochs,
        }
        return Table(
            outline=OUTLINE,
            runs=[
                Run(setting=setting, world="test lists", method=method, seed=seed, card={**card, "score_noise": sigma})
                for setting, (sigma, methods) in self.settings.items()
                for method in methods
                if not self.methods or method in self.methods
                for seed in range(self.seeds)
            ],
            measure=self.measure,
        )

    def measure(self, run: Run) -> Measured:
        """Trains one method with one seed and scores it on the test lists."""
        sigma, methods = self.settings[run.setting]
        data = rerank_data(self.data, self.protocol, sigma)
        return Measured(cells={run.method: scored_on(methods[run.method](self, data, run.seed), data, run.seed)},
                        extra={"counts": data.counts})  # fmt: skip

    def scorer(self, network: ScorerName, seed: int) -> ScorerConfig:
        """A network of this table's size."""
        return ScorerConfig(network=network, width=self.width, seed=seed)

    def evaluator(self, mixing: Literal["lstm", "attention"], seed: int) -> LabelEvaluatorConfig:
        """A list evaluator of this table's size."""
        return LabelEvaluatorConfig(mixing=mixing, width=self.width, seed=seed)

    def fit(self, seed: int) -> OfflineTrainingConfig:
        """This table's training."""
        return OfflineTrainingConfig(max_epochs=self.max_epochs, seed=seed)


class Ranker(NamedTuple):
    """A method that is ready to be judged."""

    policy: Policy
    score: Callable[[Request], Tensor] | None
    """Scores (B, C) of all candidates, for AUC; ``None`` where a method only makes lists."""


Method = Callable[[OfflineTable, RerankData, int], Ranker]
"""Makes a ranker of a table, its data and a training seed."""


def sort_by(score: Callable[[Request], Tensor], list_size: int) -> Ranker:
    """The sort by a score, best first."""
    return Ranker(lambda request, generator: Decision(best_first(request, score(request), list_size)), score)


def scored(scorer: ListPolicy) -> Ranker:
    """A fitted scorer."""
    return Ranker(scorer, partial(candidate_scores, scorer))


def scorer_method(network: ScorerName, loss: ScorerLoss = "softmax") -> Method:
    """A network fitted to the labels."""
    return lambda table, data, seed: scored(fit_scorer(data, table.scorer(network, seed), table.fit(seed), loss))


def blind_method(network: ScorerName) -> Method:
    """A network that never sees the retriever's scores."""

    def make(table: OfflineTable, data: RerankData, seed: int) -> Ranker:
        scorer = fit_scorer(without_scores(data), table.scorer(network, seed), table.fit(seed), "bce")

        def score(request: Request) -> Tensor:
            blind = request._replace(retriever_score_BC=torch.zeros_like(request.retriever_score_BC))
            return candidate_scores(scorer, blind)

        return sort_by(score, data.list_size)

    return make


def dnr_method(noise: Literal["gaussian", "beta"]) -> Method:
    """DNR around PRM."""
    config = DnrConfig(noise=noise)
    return lambda table, data, seed: scored(fit_dnr(data, table.scorer("prm", seed), config, table.fit(seed)))


def egrerank(table: OfflineTable, data: RerankData, seed: int) -> Ranker:
    """EG-Rerank with an LSTM evaluator."""
    config = EgRerankConfig(width=table.width, seed=seed)
    return Ranker(fit_egrerank(data, config, table.evaluator("lstm", seed), table.fit(seed)), None)


def goalrank(table: OfflineTable, data: RerankData, seed: int) -> Ranker:
    """GoalRank with an LSTM evaluator."""
    config = GoalRankConfig(width=table.width, min_spread=MIN_SPREAD, seed=seed)
    return Ranker(fit_goalrank(data, config, table.evaluator("lstm", seed), table.fit(seed)), None)


def pier(table: OfflineTable, data: RerankData, seed: int) -> Ranker:
    """PIER's form."""
    return Ranker(fit_pier(data, PierConfig(), table.evaluator("attention", seed), table.fit(seed)), None)


def nlgr(table: OfflineTable, data: RerankData, seed: int) -> Ranker:
    """NLGR with an LSTM evaluator."""
    config = NlgrConfig(width=table.width, seed=seed)
    return Ranker(fit_nlgr(data, config, table.evaluator("lstm", seed), table.fit(seed)), None)


def on_shuffled_labels(table: OfflineTable, data: RerankData, seed: int) -> Ranker:
    """PRM fitted to labels that mean nothing."""
    return scorer_method("prm")(table, with_shuffled_labels(data, torch.Generator().manual_seed(seed)), seed)


def popularity(table: OfflineTable, data: RerankData, seed: int) -> Ranker:
    """Most positives before the test part."""
    count_N = data.popularity_SN[int(data.test.stage_L.min())]
    return sort_by(lambda request: count_N[request.candidates_BC], data.list_size)


SORTS: dict[str, Method] = {
    "random": lambda table, data, seed: Ranker(RandomSlate(data.list_size), None),
    "retriever order": lambda table, data, seed: sort_by(lambda request: request.retriever_score_BC, data.list_size),
    "retriever order reversed": lambda table, data, seed: sort_by(
        lambda request: -request.retriever_score_BC, data.list_size
    ),
    "popularity": popularity,
}
"""What learns nothing from the training part."""
SCORE_METHODS: dict[str, Method] = {
    "PRM (BCE), no score": blind_method("prm"),
    "PRM (BCE)": scorer_method("prm", "bce"),
    "DNR, Gaussian": dnr_method("gaussian"),
    "DNR, Beta": dnr_method("beta"),
}
"""What differs in how the retriever's score is used; run under every noise."""
METHODS: dict[str, Method] = {
    **SORTS,
    "PRM on shuffled labels": on_shuffled_labels,
    "DNN": scorer_method("dnn"),
    "DLCM": scorer_method("dlcm"),
    "PRM": scorer_method("prm"),
    "SetRank": scorer_method("setrank"),
    "EG-Rerank": egrerank,
    "GoalRank": goalrank,
    "PIER": pier,
    "NLGR": nlgr,
    **SCORE_METHODS,
}
"""Everything that is run on the clean scores."""


@cache
def interactions(data: str) -> LoggedDataset:
    """The log of this name or path."""
    if data == KNOWN_WORLD:
        return log_of(settings_of(LogSource())[0])
    named = Path(os.environ.get("RECSIM_DATA", "")) / data
    return load_interactions(Path(data) if Path(data).exists() else named)


def protocol_config(data: str, protocol: Literal["papers", "honest"]) -> ProtocolConfig:
    """What the labelled requests are made of."""
    signals = interactions(data).signals
    positive = next((name for name in POSITIVE_SIGNALS if name in signals), None)
    return ProtocolConfig(protocol=protocol, positive=positive, core=PAPERS_CORE if protocol == "papers" else 0)


@cache
def rerank_data(data: str, protocol: Literal["papers", "honest"], sigma: float) -> RerankData:
    """The protocol's requests, with noise of this deviation on the retriever's scores."""
    if sigma:
        return with_noisy_scores(rerank_data(data, protocol, 0.0), sigma, torch.Generator().manual_seed(0))
    return build_rerank_data(interactions(data), fit_matrix_factorisation, protocol_config(data, protocol))


def scored_on(ranker: Ranker, data: RerankData, seed: int) -> Cell:
    """What a ranker scores on the test lists."""
    quality = request_quality(ranker.policy, data.test, seed)
    ratios = {name: (value_L.double().numpy()[None], np.ones((1, len(value_L)))) for name, value_L in quality.items()}
    totals = {}
    if ranker.score is not None:
        request, label_BC, _ = data.test.all()
        with torch.no_grad():
            score_BC = ranker.score(request)
        group_BC = torch.arange(len(label_BC)).unsqueeze(1).expand_as(label_BC)
        totals["AUC"] = np.array([grouped_auc(score_BC.flatten(), label_BC.flatten(), group_BC.flatten())])
    return Cell(ratios=ratios, totals=totals)
