"""The main job, end to end: a log becomes worlds, GoalRank learns in one of them, judges and truth decide.

    make demo                          a synthetic log, drawn from a world whose truth is known
    make demo DATA=<KuaiRand folder>   the same on a real log (no truth to ask)

Everything lands in ``runs/demo`` (``runs/demo-<name>`` for a real log): worlds, training run, and ``report.json``
with ``rows`` (see ``experiments.evaluate``), ``checks``, ``wall_seconds`` and ``machine``. A demo that was killed
goes on where it stopped.
"""

import dataclasses
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro

from agents.goalrank import GoalRankConfig
from experiments.build_world import fidelity_line
from experiments.command import run_command
from experiments.evaluate import table
from experiments.policies import logging_clone, oracle, references, trained
from experiments.recipes import TrainRun
from experiments.report import MAIN_METRICS, write_report
from experiments.train import requests_of
from experiments.train import run as train
from recsim_env.data import LoggedDataset, load_kuairand
from recsim_env.evaluation import evaluate
from recsim_env.files import read_json, write_json
from recsim_env.known_worlds import greedy_oracle, short_video_world
from recsim_env.known_worlds.logs import LoggingPolicy, synthetic_log
from recsim_env.provenance import stamp
from recsim_env.results import EvaluationResult, Verdict, judge, to_plain
from recsim_env.world import World
from reward_models.build import SHORT_FIT, BuildConfig, build_worlds, with_recommender

ORACLE_SESSIONS = 100
"""The oracle searches with the truth at every request, which takes a hundred times longer than a policy."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Sizes of the demo; the defaults take less than ten minutes on two cores."""

    data: Path | None = None
    """A KuaiRand folder; by default a synthetic log is drawn."""
    out: Path | None = None
    """Where everything goes; by default a folder under ``runs``."""
    num_users: int = 2500
    """Users of the synthetic world."""
    num_items: int = 2000
    """Videos of the synthetic world."""
    log_sessions: int = 4000
    """Sessions of the synthetic log."""
    uniform_share: float = 0.1
    """Share of its requests answered with uniform videos: what an operator spends on exploration."""
    iterations: int = 60
    """Training rounds of GoalRank."""
    num_sessions: int = 1000
    """Sessions of each policy in each world."""
    seed: int = 0
    """Seed of the log, the worlds and the training."""
    json: Path | None = None
    """Also write the report's main metrics here, with the plot of watch times beside it."""
    build: BuildConfig = field(default_factory=lambda: BuildConfig(fit=SHORT_FIT, stopping_days=0))
    """How worlds are built: shorter fits than ``experiments.build_world`` by default, none stopped early."""

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return self.out or Path("runs") / ("demo" if self.data is None else f"demo-{self.data.resolve().name}")


def synthetic(config: DemoConfig) -> tuple[LoggedDataset, World]:
    """Draws the log, and hands over the truth for judging only."""
    truth = short_video_world(num_users=config.num_users, num_items=config.num_items, seed=config.seed)
    policy = LoggingPolicy(uniform_share=config.uniform_share)
    log = synthetic_log(truth, num_sessions=config.log_sessions, policy=policy, seed=config.seed, progress=True)
    return log, truth


def run(config: DemoConfig) -> dict[str, Any]:
    """Runs the whole job and returns the report."""
    begun = time.perf_counter()
    truth: World | None = None
    if config.data is None:
        _say("1/4  drawing a synthetic log from a known world")
        dataset, truth = synthetic(config)
    else:
        _say(f"1/4  reading {config.data}")
        dataset = load_kuairand(config.data)
    _say(f"     {len(dataset.rows):,} impressions of {len(dataset.users):,} users, {len(dataset.items):,} videos")

    _say("2/4  learning worlds from the log: A to train in, judges to decide")
    build = dataclasses.replace(config.build, seed=config.seed)
    folders = build_worlds(dataset, config.folder / "worlds", build)
    worlds = {name: World.load(folder) for name, folder in folders.items()}
    for name, world in worlds.items():
        _say("     " + fidelity_line(name, world.fidelity))

    _say("3/4  GoalRank learns in world A through RLlib")
    torch.set_num_threads(os.cpu_count() or 1)  # nothing else runs from here on
    training = TrainRun(
        method="agents.goalrank:GoalRank",
        config=GoalRankConfig(seed=config.seed),
        world=str(folders["A"]),
        iterations=config.iterations,
        run_dir=config.folder / "goalrank",
    )
    policy = train(training)

    _say("4/4  everyone plays the same sessions in every world")
    clone = logging_clone(dataset, worlds["A"], slate_size=6)
    contenders: dict[str, Any] = dict(references(worlds["A"], slate_size=6, clone=clone))
    del contenders["evaluator search"]  # takes as long as all others together; experiments.evaluate has it
    contenders["GoalRank"] = trained([policy], requests_of(training))
    if truth is not None:
        worlds["truth"] = with_recommender(truth, worlds["judge-1"])
    result = evaluate(contenders, worlds, num_sessions=config.num_sessions, seed=1_000_000)
    if truth is not None:
        searched = evaluate(
            {"greedy oracle": oracle(greedy_oracle)},
            {"truth": worlds["truth"]},
            num_sessions=min(ORACLE_SESSIONS, config.num_sessions),
            seed=1_000_000,
        )
        result = dataclasses.replace(result, cells={**result.cells, **searched.cells})
    write_report(
        result, config.folder, title=f"GoalRank on {dataset.name}", training_runs={"GoalRank": training.run_dir}
    )
    report: dict[str, Any] = read_json(config.folder / "report.json") | {
        "checks": [to_plain(dataclasses.asdict(check)) for check in checks(result)],
        "wall_seconds": time.perf_counter() - begun,
        **stamp(),
    }
    write_json(config.folder / "report.json", report)
    _summary(config.folder, result, report["wall_seconds"])
    return report


def checks(result: EvaluationResult) -> list[Verdict]:
    """GoalRank against the two references that share its predictor and evaluator, world by world."""
    found = []
    for world in result.world_names:
        for baseline in ("pointwise greedy", "best of 20"):
            row = result.difference("GoalRank", baseline, world)
            low, high = row.widest
            found.append(
                judge(
                    f"GoalRank - {baseline}, {world}, session watch time (s)",
                    value=row.mean,
                    low=low,
                    high=high,
                    bar=0.0 if "truth" in result.world_names else None,
                )
            )
    return found


def keep(report: dict[str, Any], folder: Path, path: Path) -> None:
    """Writes the report's main metrics to ``path`` and the plot of watch times beside it."""
    rows = [row for row in report["rows"] if row["metric"] in MAIN_METRICS]
    write_json(path, {key: value for key, value in report.items() if key != "worlds"} | {"rows": rows})
    shutil.copyfile(folder / "plots" / "session_watch_time.png", path.with_suffix(".png"))


def _summary(folder: Path, result: EvaluationResult, seconds: float) -> None:
    _say("\nsession watch time (s), mean and 95 % interval over sessions (one training seed)")
    _say(table(result))
    _say("")
    for check in checks(result):
        _say(f"{check.name}: {check.value:+.1f} [{check.low:+.1f}, {check.high:+.1f}]  {check.verdict}")
    _say(f"\nreport:  {folder / 'report.html'}")
    _say(f"curves:  .venv/bin/tensorboard --logdir {folder}")
    _say(f"took {seconds / 60:.1f} minutes")


def _say(text: str) -> None:
    print(text, flush=True)


def main(config: DemoConfig) -> None:
    """Runs the demo."""
    report = run(config)
    if config.json:
        keep(report, config.folder, config.json)


if __name__ == "__main__":
    run_command(main, lambda: tyro.cli(DemoConfig, description=__doc__))
