"""Tables over several training seeds, built from finished runs; only what is missing is run.

    python -m experiments.compare goalrank                     the synthetic log: judges and truth
    python -m experiments.compare goalrank --data <folder>     a real log, with the declared list effect and without

One run is one training seed: GoalRank is trained in world A, plays the judges (and the truth) on the same sessions
as the references, and leaves one small JSON in ``experiments/results``. The table takes training seeds as the unit
of its intervals; the interval over sessions stands beside it. ``--json`` writes ``rows`` (see
``experiments.evaluate``) and ``checks`` (name, bar, value, low, high, verdict).
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from scipy.special import stdtrit
from tqdm import tqdm

from agents.goalrank import GoalRankConfig
from experiments.build_world import BuildConfig, build_worlds, with_recommender
from experiments.command import run_command
from experiments.contenders import oracle, references, trained
from experiments.provenance import stamp
from experiments.recipes import TrainRun
from experiments.train import requests_of
from experiments.train import run as train
from recsim_env.data import LoggedDataset, load_kuairand
from recsim_env.data.synthetic import LoggingPolicy, synthetic_log
from recsim_env.evaluation import evaluate
from recsim_env.files import read_json, write_json
from recsim_env.known_worlds import greedy_oracle, short_video_world
from recsim_env.results import EvaluationResult, Verdict, as_json, judge, to_plain
from recsim_env.world import World

RESULTS = Path("experiments/results")
BASELINES = ("pointwise greedy", "best of 20")
SEARCH_SESSIONS = 200
"""Sessions of the policies that search at every request, which takes a hundred times longer."""
METRICS = (
    "session_watch_time", "session_length", "list_reward", "click_rate", "long_view_rate", "like_rate",
    "catalogue_coverage", "exposure_gini", "cold_start_share", "tag_diversity", "evaluator_value",
    "true_list_value", "evaluator_gap",
)  # fmt: skip
"""What a run's JSON keeps; everything else is in the report of ``experiments.evaluate``."""


@dataclass(frozen=True, kw_only=True)
class GoalRankTable:
    """GoalRank beside the references that share its predictor and evaluator."""

    data: Path | None = None
    """A KuaiRand folder; by default a synthetic log is drawn from a known world."""
    seeds: int = 5
    """Training seeds."""
    world_seed: int = 100
    """Seed of the log and of the judges: another one than the demo's, so that they are met fresh."""
    num_users: int = 3000
    """Users of the synthetic world."""
    num_items: int = 2000
    """Videos of the synthetic world."""
    log_sessions: int = 4000
    """Sessions of the synthetic log."""
    uniform_share: float = 0.1
    """Share of its requests answered with uniform videos: what an operator spends on exploration."""
    iterations: int = 120
    """Training rounds."""
    num_sessions: int = 2000
    """Sessions of each policy in each world."""
    folder: Path = Path("runs/compare")
    """Where worlds and training runs are kept."""
    json: Path | None = None
    """Also write the table here."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.num_sessions < 2:
            raise ValueError(f"need seeds >= 1 and num_sessions >= 2, got {self.seeds} and {self.num_sessions}")


@dataclass(frozen=True)
class Setting:
    """One group of seeds: a log, a declared list effect, and what is claimed."""

    name: str
    list_effect: float
    bar: float | None


def run(table: GoalRankTable) -> dict[str, Any]:
    """Runs what is missing and returns rows and checks of every setting."""
    if table.data is None:
        settings = [Setting("synthetic", 0.0, bar=0.0)]
    else:
        log = table.data.resolve().name
        settings = [Setting(f"{log}-declared", 0.3, bar=None), Setting(f"{log}-none", 0.0, bar=None)]
    report: dict[str, Any] = {"rows": [], "checks": []}
    for setting in settings:
        wanted = [(seed, RESULTS / f"goalrank-{setting.name}-{seed}.json") for seed in range(table.seeds)]
        missing = [(seed, path) for seed, path in wanted if not path.exists()]
        if missing:
            _run_missing(table, setting, missing)
        runs = [read_json(path) for _, path in wanted]
        report["rows"] += rows_of(runs, setting.name)
        report["checks"] += [dataclasses.asdict(check) for check in checks_of(runs, setting)]
    return report


def _run_missing(table: GoalRankTable, setting: Setting, missing: list[tuple[int, Path]]) -> None:
    dataset, truth = _log(table)
    build = BuildConfig(seed=table.world_seed, list_effect=setting.list_effect)
    folders = build_worlds(dataset, table.folder / setting.name / "worlds", build)
    worlds = {name: World.load(folder) for name, folder in folders.items()}
    if truth is not None:
        worlds["truth"] = with_recommender(truth, worlds["judge-1"])
    for seed, path in tqdm(missing, desc=f"seeds of {setting.name}", disable=None):
        training = TrainRun(
            goalrank=GoalRankConfig(seed=seed),
            world=str(folders["A"]),
            iterations=table.iterations,
            run_dir=table.folder / setting.name / f"goalrank-{seed}",
        )
        contenders: dict[str, Any] = dict(references(worlds["A"], slate_size=6))
        searchers = {"evaluator search": contenders.pop("evaluator search")}
        contenders["GoalRank"] = trained([train(training)], requests_of(training))
        result = evaluate(contenders, worlds, num_sessions=table.num_sessions, seed=1_000_000)
        if seed == 0:  # they search at every request and do not depend on training: once, on fewer sessions
            few = min(SEARCH_SESSIONS, table.num_sessions)
            cells = dict(evaluate(searchers, worlds, num_sessions=few, seed=1_000_000).cells)
            if truth is not None:
                played = {"truth": worlds["truth"]}
                search = {"greedy oracle": oracle(greedy_oracle)}
                cells |= evaluate(search, played, num_sessions=few, seed=1_000_000).cells
            result = dataclasses.replace(result, cells={**result.cells, **cells})
        write_json(path, to_plain(_kept(result, table, setting, seed)))


def _log(table: GoalRankTable) -> tuple[LoggedDataset, World | None]:
    if table.data is not None:
        return load_kuairand(table.data), None
    truth = short_video_world(num_users=table.num_users, num_items=table.num_items, seed=table.world_seed)
    policy = LoggingPolicy(uniform_share=table.uniform_share)
    return synthetic_log(truth, num_sessions=table.log_sessions, policy=policy, seed=table.world_seed), truth


def _kept(result: EvaluationResult, table: GoalRankTable, setting: Setting, seed: int) -> dict[str, Any]:
    """What one run leaves behind."""
    differences = [
        result.difference("GoalRank", baseline, world) for world in result.world_names for baseline in BASELINES
    ]
    return {
        "setting": setting.name,
        "training_seed": seed,
        "world_seed": table.world_seed,
        "iterations": table.iterations,
        "num_sessions": table.num_sessions,
        "rows": [as_json(row) for row in result.rows() if row.metric in METRICS],
        "differences": [as_json(row) for row in differences],
        **stamp(),
    }


def rows_of(runs: list[dict[str, Any]], setting: str) -> list[dict[str, Any]]:
    """Rows of all seeds as one: mean over seeds and its interval."""
    merged = []
    for row in runs[0]["rows"]:
        key = (row["policy"], row["world"], row["metric"])
        same = [r for run in runs for r in run["rows"] if (r["policy"], r["world"], r["metric"]) == key]
        merged.append({**row, **over_seeds([r["mean"] for r in same]), "setting": setting, "seeds": len(same)})
    return merged


def checks_of(runs: list[dict[str, Any]], setting: Setting) -> list[Verdict]:
    """The paired difference of every world and baseline over seeds."""
    found = []
    for row in runs[0]["differences"]:
        key = (row["world"], row["baseline"])
        means = [r["mean"] for run in runs for r in run["differences"] if (r["world"], r["baseline"]) == key]
        interval = over_seeds(means)
        name = f"{setting.name}: GoalRank - {row['baseline']}, {row['world']}, session watch time (s)"
        # A difference between world A and itself is no claim: the policy was trained there.
        bar = setting.bar if row["world"] != "A" else None
        found.append(judge(name, value=interval["mean"], low=interval["low"], high=interval["high"], bar=bar))
    return found


def over_seeds(values: list[float]) -> dict[str, float]:
    """Mean and 95 % t interval with training seeds as the unit; no interval from one seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "low": math.nan, "high": math.nan}
    half = float(stdtrit(len(values) - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def main(table: GoalRankTable) -> None:
    """Runs what is missing and prints the table."""
    report = run(table)
    for row in report["rows"]:
        if row["metric"] == "session_watch_time":
            interval = f"[{row['low']:.1f}, {row['high']:.1f}]"
            print(f"{row['setting']:28}{row['world']:10}{row['policy']:18}{row['mean']:8.1f} {interval}")
    for check in report["checks"]:
        interval = f"[{check['low']:+.1f}, {check['high']:+.1f}]"
        print(f"{check['name']}: {check['value']:+.1f} {interval} {check['verdict']}")
    if table.json:
        write_json(table.json, to_plain(report))


if __name__ == "__main__":
    run_command(main, lambda: tyro.extras.subcommand_cli_from_dict({"goalrank": GoalRankTable}, description=__doc__))
