"""The offline protocol of the reranking papers: every reranker on the same labelled requests, over several seeds.

    python -m experiments.tables.offline_protocol --data ml_latest_small --protocol papers --json rerank.json
    python -m experiments.tables.offline_protocol --data ml_latest_small --protocol honest --sigmas 0.2 0.5

``--data`` is a folder or file that ``load_interactions`` reads, the name of one in ``$RECSIM_DATA``, or "short_video":
the log of the known world that ``experiments.compare`` draws. What the two protocols are is said in
``agents.offline.data``. Beside the rerankers stand four sorts that learn nothing, among them the
retriever's order upside down, which shows how far forced positives give themselves away, and PRM fitted to shuffled
labels, which must score what chance scores. That row is judged by AUC: under ``papers`` one order finds most positives
and its reverse hardly any, so orders that know nothing have a mean NDCG above chance.
Each of ``--sigmas`` adds a setting in which the retriever's scores carry noise of that deviation, with the methods
that differ in how they use the score.

Each finished (method, seed) leaves one small JSON in ``--folder``; a run that was stopped goes on from there.
``--json`` writes ``rows``: setting, method, metric, mean, the interval over seeds (low, high; Student's t) and the
one over requests (request_low, request_high), both at 95 %. AUC is there for methods that score all candidates.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from scipy.special import stdtrit
from torch import Tensor
from tqdm import tqdm

from agents.baselines import RandomSlate
from agents.goalrank import GoalRankConfig
from agents.list_policy import ListPolicy
from agents.offline.controls import with_noisy_scores, with_shuffled_labels, without_scores
from agents.offline.data import RerankData
from agents.offline.dnr import DnrConfig, fit_dnr
from agents.offline.egrerank import EgRerankConfig, fit_egrerank
from agents.offline.goalrank import fit_goalrank
from agents.offline.label_evaluator import LabelEvaluatorConfig
from agents.offline.metrics import LIST_METRICS
from agents.offline.nlgr import NlgrConfig, fit_nlgr
from agents.offline.pier import PierConfig, fit_pier
from agents.offline.protocol import ProtocolConfig, build_rerank_data
from agents.offline.retriever import fit_matrix_factorisation
from agents.offline.scorers import ScorerLoss, fit_scorer
from agents.offline.training import OfflineTrainingConfig, request_quality
from agents.rerankers.scorers import ScorerConfig, ScorerName, candidate_scores, scorer_config
from experiments.command import run_command
from experiments.compare import GoalRankTable
from recsim_env.data import LoggedDataset
from recsim_env.data.ratings import load_interactions
from recsim_env.files import read_json, write_json
from recsim_env.provenance import stamp
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


@dataclass(frozen=True, kw_only=True)
class RerankTable:
    """What is run."""

    data: str = "ml_latest_small"
    """A folder or file, the name of one in ``$RECSIM_DATA``, or "short_video"."""
    protocol: Literal["papers", "honest"] = "honest"
    """As the papers do it, or what a ranker would meet in use."""
    seeds: int = 5
    """Training seeds of each method."""
    methods: tuple[str, ...] = ()
    """Names of the methods to run; by default all."""
    sigmas: tuple[float, ...] = ()
    """Noise on the retriever's scores: one further setting each."""
    width: int = 64
    """Width of the networks; the papers have 128."""
    max_epochs: int = 12
    """Epochs at most."""
    folder: Path = Path("runs/rerank")
    """Where finished runs are kept."""
    json: Path | None = None
    """Where the report goes."""

    def __post_init__(self) -> None:
        if min(self.seeds, self.width, self.max_epochs) < 1:
            raise ValueError(
                f"seeds, width and max_epochs must be at least 1, got {self.seeds}, {self.width}, {self.max_epochs}"
            )
        unknown = sorted(set(self.methods) - set(METHODS))
        if unknown:
            raise ValueError(f"methods must be among {tuple(METHODS)}, got {unknown}")

    @cached_property
    def path(self) -> Path:
        """Where the data lies."""
        named = Path(os.environ.get("RECSIM_DATA", "")) / self.data
        return Path(self.data) if Path(self.data).exists() else named

    @cached_property
    def log(self) -> LoggedDataset:
        """The log."""
        if self.data == KNOWN_WORLD:
            return GoalRankTable().settings[0].log[0]
        return load_interactions(self.path)

    @cached_property
    def rerank_data(self) -> RerankData:
        """The protocol's requests."""
        config = ProtocolConfig(
            protocol=self.protocol,
            positive=next((name for name in POSITIVE_SIGNALS if name in self.log.signals), None),
            core=PAPERS_CORE if self.protocol == "papers" else 0,
        )
        return build_rerank_data(self.log, fit_matrix_factorisation, config)

    def scorer(self, network: ScorerName, seed: int) -> ScorerConfig:
        """A network of this table's size."""
        return scorer_config(network, width=self.width, seed=seed)

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


Method = Callable[[RerankTable, RerankData, int], Ranker]
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

    def make(table: RerankTable, data: RerankData, seed: int) -> Ranker:
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


def egrerank(table: RerankTable, data: RerankData, seed: int) -> Ranker:
    """EG-Rerank with an LSTM evaluator."""
    config = EgRerankConfig(width=table.width, seed=seed)
    return Ranker(fit_egrerank(data, config, table.evaluator("lstm", seed), table.fit(seed)), None)


def goalrank(table: RerankTable, data: RerankData, seed: int) -> Ranker:
    """GoalRank with an LSTM evaluator."""
    config = GoalRankConfig(width=table.width, min_spread=MIN_SPREAD, seed=seed)
    return Ranker(fit_goalrank(data, config, table.evaluator("lstm", seed), table.fit(seed)), None)


def pier(table: RerankTable, data: RerankData, seed: int) -> Ranker:
    """PIER's form."""
    return Ranker(fit_pier(data, PierConfig(), table.evaluator("attention", seed), table.fit(seed)), None)


def nlgr(table: RerankTable, data: RerankData, seed: int) -> Ranker:
    """NLGR with an LSTM evaluator."""
    config = NlgrConfig(width=table.width, seed=seed)
    return Ranker(fit_nlgr(data, config, table.evaluator("lstm", seed), table.fit(seed)), None)


def on_shuffled_labels(table: RerankTable, data: RerankData, seed: int) -> Ranker:
    """PRM fitted to labels that mean nothing."""
    return scorer_method("prm")(table, with_shuffled_labels(data, torch.Generator().manual_seed(seed)), seed)


def popularity(table: RerankTable, data: RerankData, seed: int) -> Ranker:
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


def run(table: RerankTable) -> dict[str, Any]:
    """Runs what is missing and returns the report."""
    settings: dict[str, tuple[RerankData, dict[str, Method]]] = {table.protocol: (table.rerank_data, METHODS)}
    for sigma in table.sigmas:
        noisy = with_noisy_scores(table.rerank_data, sigma, torch.Generator().manual_seed(0))
        few = {"retriever order": METHODS["retriever order"], **SCORE_METHODS}
        settings[f"{table.protocol}, score noise {sigma:g}"] = (noisy, few)
    todo = [
        (setting, method, seed)
        for setting, (_, methods) in settings.items()
        for method in methods
        if not table.methods or method in table.methods
        for seed in range(table.seeds)
    ]
    finished: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for setting, method, seed in (bar := tqdm(todo, desc="rerankers", disable=None)):
        bar.set_postfix_str(f"{setting}: {method}")
        data, methods = settings[setting]
        finished.setdefault((setting, method), []).append(one_run(table, data, methods[method], setting, method, seed))
    rows = [row for (setting, method), runs in finished.items() for row in rows_of(setting, method, runs)]
    sizes = {"width": table.width, "max_epochs": table.max_epochs, "seeds": table.seeds}
    return {"data": table.path.name, "counts": table.rerank_data.counts, **sizes, "rows": rows, **stamp()}


def one_run(table: RerankTable, data: RerankData, method: Method, setting: str, name: str, seed: int) -> dict[str, Any]:
    """What one method of one training seed scores; read back where it was run before.

    Raises:
        ValueError: the folder holds a run of other sizes.
    """
    identity = {"data": table.path.name, "width": table.width, "max_epochs": table.max_epochs, "counts": data.counts}
    words = "-".join((table.path.name, setting, name, str(seed)))
    path = table.folder / f"{''.join(c if c.isalnum() or c in '.-' else '_' for c in words)}.json"
    if path.exists():
        found: dict[str, Any] = read_json(path)
        if found["identity"] != identity:
            raise ValueError(f"{path} is of other data or sizes; choose another --folder or delete this one")
        return found
    judged = {**judge(method(table, data, seed), data, seed), "identity": identity}
    write_json(path, judged)
    return judged


def judge(ranker: Ranker, data: RerankData, seed: int) -> dict[str, Any]:
    """Mean of each metric on the test part, and its standard error over requests."""
    quality = request_quality(ranker.policy, data.test, seed)
    found = {
        "mean": {name: float(value_L.mean()) for name, value_L in quality.items()},
        "error": {name: float(value_L.std() / len(value_L) ** 0.5) for name, value_L in quality.items()},
    }
    if ranker.score is not None:
        request, label_BC, _ = data.test.all()
        with torch.no_grad():
            score_BC = ranker.score(request)
        group_BC = torch.arange(len(label_BC)).unsqueeze(1).expand_as(label_BC)
        found["mean"]["AUC"] = grouped_auc(score_BC.flatten(), label_BC.flatten(), group_BC.flatten())
    return found


def rows_of(setting: str, method: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each metric of a method."""
    rows = []
    for metric in runs[0]["mean"]:
        value_S = np.array([run["mean"][metric] for run in runs])
        mean, units = float(value_S.mean()), len(value_S)
        over_seeds = float(stdtrit(units - 1, 0.975) * value_S.std(ddof=1) / units**0.5) if units > 1 else None
        row: dict[str, Any] = {"setting": setting, "method": method, "metric": metric, "mean": mean, "seeds": units}
        if over_seeds is not None:
            row |= {"low": mean - over_seeds, "high": mean + over_seeds}
        if metric in LIST_METRICS:
            over_requests = 1.96 * float(np.mean([run["error"][metric] for run in runs]))
            row |= {"request_low": mean - over_requests, "request_high": mean + over_requests}
        rows.append(row)
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line for each method: mean and half the interval over seeds, in per cent."""
    metrics = (*LIST_METRICS, "AUC")
    for setting in dict.fromkeys(row["setting"] for row in rows):
        print(f"\n{setting:34}" + "".join(f"{name if name == 'AUC' else name + '@6':>16}" for name in metrics))
        of_setting = [row for row in rows if row["setting"] == setting]
        for method in dict.fromkeys(row["method"] for row in of_setting):
            found = {row["metric"]: row for row in of_setting if row["method"] == method}
            print(f"{method:34}" + "".join(f"{_cell(found.get(metric)):>16}" for metric in metrics))


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    spread = f" ± {100 * (row['high'] - row['mean']):.2f}" if "high" in row else ""
    return f"{100 * row['mean']:.2f}{spread}"


def main(table: RerankTable) -> None:
    """Runs what is missing, prints the table and writes the report."""
    report = run(table)
    print_table(report["rows"])
    if table.json:
        write_json(table.json, report)


if __name__ == "__main__":
    run_command(main, lambda: tyro.cli(RerankTable, description=__doc__))
