"""The offline protocol of the reranking papers: every reranker on the same labelled requests, over several seeds.

    python -m experiments.compare offline --data ml_latest_small --protocol papers --sigmas 0.1 0.3 1
    python -m experiments.compare offline --data ml_latest_small --protocol honest --sigmas 0.3

``--data`` is a folder or file that ``load_log`` reads by itself, the name of one in ``$RECSIM_DATA``, or "short_video":
the log of the known world that ``compare goalrank`` draws. What the two protocols are is said in
``agents.offline.data``. Beside the rerankers stand four sorts that learn nothing, among them the
retriever's order upside down, which shows how far forced positives give themselves away, and PRM fitted to shuffled
labels, which must score what chance scores. That row is judged by AUC: under ``papers`` one order finds most positives
and its reverse hardly any, so orders that know nothing have a mean NDCG above chance.
Each of ``--sigmas`` adds a setting in which the retriever's scores carry noise of that deviation, with the methods
that differ in how they use the score. AUC is there for methods that score all candidates.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
import tyro

from agents.offline.controls import with_noisy_scores
from agents.offline.data import RerankData
from agents.offline.methods import METHODS, SCORE_METHODS, Budget, Ranker
from agents.offline.protocol import ProtocolConfig, build_rerank_data
from agents.offline.retriever import fit_matrix_factorisation
from agents.offline.training import request_quality
from experiments.tables.runner import Outline, RunOptions
from experiments.tables.runs import Measured, Run
from experiments.tables.settings import LogSource, log_of, settings_of
from recsim_env.data import LoggedDataset, load_log
from recsim_env.plugins import nearest
from recsim_env.results import Cell
from reward_models.metrics import grouped_auc

POSITIVE_SIGNALS = ("long_view", "like")
"""The first of these that the log has makes an interaction a positive."""
PAPERS_CORE = 5
"""Interactions that each user and item has at least, under ``papers``. GoalRank asks for 20 of much larger logs."""

KNOWN_WORLD = "short_video"


OUTLINE = Outline(
    name="offline",
    title="Offline reranking protocol",
    metrics={"NDCG": "NDCG@6, per cent", "H": "H@6", "MAP": "MAP@6", "F1": "F1@6", "AUC": "AUC, per cent"},
    scale=100,
)


@dataclass(frozen=True, kw_only=True)
class OfflineTable:
    """Rerankers on the labelled requests of a log, as the papers judge them."""

    outline: ClassVar[Outline] = OUTLINE
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

    def runs(self) -> Iterator[Run]:
        """Every method with every seed, all methods without noise and a few under each."""
        name = f"{Path(self.data).name}, {self.protocol}"
        card = {
            "log_digest": interactions(self.data).digest,
            "protocol": asdict(protocol_config(self.data, self.protocol)),
            "width": self.width,
            "max_epochs": self.max_epochs,
        }
        for sigma in (0.0, *self.sigmas):
            methods = ("retriever order", *SCORE_METHODS) if sigma else METHODS
            for method, seed in product(methods, range(self.seeds)):
                if not self.methods or method in self.methods:
                    yield Run(
                        setting=f"{name}, score noise {sigma:g}" if sigma else name,
                        world="test lists",
                        method=method,
                        seed=seed,
                        card={**card, "score_noise": sigma},
                        measure=partial(self.measure, method, sigma, seed),
                    )

    def measure(self, method: str, sigma: float, seed: int) -> Measured:
        """Trains one method with one seed and scores it on the test lists."""
        data = rerank_data(self.data, self.protocol, sigma)
        budget = Budget(width=self.width, max_epochs=self.max_epochs)
        ranker = METHODS[method](budget, data, seed)
        return Measured(cells={method: scored_on(ranker, data, seed)}, extra={"counts": data.counts})


@cache
def interactions(data: str) -> LoggedDataset:
    """The log of this name or path."""
    if data == KNOWN_WORLD:
        return log_of(settings_of(LogSource())[0])
    named = Path(os.environ.get("RECSIM_DATA", "")) / data
    return load_log(Path(data) if Path(data).exists() else named)


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
