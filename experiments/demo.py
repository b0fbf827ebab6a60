"""The main job, end to end: a log becomes worlds, GoalRank learns in one of them, judges and truth decide.

    make demo                          a synthetic log, drawn from a world whose truth is known
    make demo DATA=<KuaiRand folder>   the same on a real log (no truth to ask)

Everything lands in ``runs/demo`` (``runs/demo-<name>`` for a real log): worlds, ``policy``, the report, and a file for
each policy and world in ``results``. A demo that was killed goes on where it stopped.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from experiments.build_world import fidelity_lines
from experiments.command import run_command
from experiments.report.frames import check_frame, frame_of, markdown, pivot, repeaters
from experiments.report.html import write_report
from experiments.tables.goalrank import FIRST_SESSION, METHOD, OUTLINE, GoalRankTable
from experiments.tables.runner import RunOptions, complete
from experiments.tables.runs import check_publishable, publish_json, published_stamp
from experiments.tables.settings import TRUTH, LogSource, log_of, train_policy, worlds_of
from recsim_env.files import read_json, whole_folder
from recsim_env.session_metrics import MAIN_METRICS
from recsim_env.world import World
from reward_models.fidelity.card import with_verdicts
from reward_models.fidelity.drift import probe_drift
from reward_models.plan import SHORT_FIT, BuildConfig

_say = partial(print, flush=True)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Sizes of the demo; the defaults take some twenty minutes on two cores."""

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
    num_sessions: int = 500
    """Sessions of each policy in each world."""
    seed: int = 0
    """Seed of the log and the worlds; the training seed is 0."""
    json: Path | None = None
    """Also write the report's main metrics here, with the plot of watch times beside it."""
    build: BuildConfig = field(default_factory=lambda: BuildConfig(fit=SHORT_FIT, stopping_days=0, judge_dev=False))
    """How worlds are built: shorter fits than ``experiments.build_world`` by default, none stopped early."""

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return self.out or Path("runs") / ("demo" if self.data is None else f"demo-{self.data.resolve().name}")

    @property
    def table(self) -> GoalRankTable:
        """The demo is the GoalRank table in small: one training seed, one setting."""
        source = LogSource(
            data=self.data, world_seed=self.seed, num_users=self.num_users, num_items=self.num_items,
            log_sessions=self.log_sessions, uniform_share=self.uniform_share, folder=self.folder,
            by_setting=False, build=self.build,
        )  # fmt: skip
        return GoalRankTable(
            source=source, seeds=1, iterations=self.iterations, num_sessions=self.num_sessions, search_sessions=0,
            variations=False, all_metrics=True, run=RunOptions(results=self.folder / "results", jobs=1),
        )  # fmt: skip


def run(config: DemoConfig) -> dict[str, Any]:
    """Runs the whole job and returns the report."""
    check_publishable(config.json or config.folder)
    begun = time.perf_counter()
    demo = config.table
    (setting,) = demo.settings
    _say("1/4  drawing a synthetic log from a known world" if config.data is None else f"1/4  reading {config.data}")
    log = log_of(setting)
    _say(f"     {len(log.rows):,} impressions of {len(log.users):,} users, {len(log.items):,} videos")
    _say("2/4  learning worlds from the log: A to train in, judges to decide")
    worlds = judged(worlds_of(setting))
    for name, world in worlds.items():
        if world.fidelity:
            _say("\n".join("     " + line for line in fidelity_lines(name, world.fidelity)))
    _say("3/4  GoalRank learns in world A through RLlib")
    training = demo.training(setting, seed=0)
    with whole_folder(config.folder / "policy", ("policy.json", "policy.safetensors")) as aside:
        shutil.copytree(train_policy(training), aside, dirs_exist_ok=True)
    _say("4/4  everyone plays the same sessions in every world")
    finished = complete(replace(OUTLINE, name="demo", min_seeds=1), demo.runs(), demo.run)
    cards = {
        name: {"declared": world.declared, "provenance": world.provenance, "fidelity": world.fidelity}
        for name, world in worlds.items()
    }
    sizes = {"num_sessions": config.num_sessions, "seed": FIRST_SESSION}
    result = replace(finished.results[setting.name], worlds=cards, settings=sizes)
    write_report(
        result,
        config.folder,
        title=f"{METHOD} on {log.name}",
        training_runs={METHOD: training.run_dir},
        checks=finished.checks,
        extra={"wall_seconds": time.perf_counter() - begun, **published_stamp()},
    )
    _say("\nsession watch time (s), mean and 95 % interval (over sessions: it speaks of this one training run)")
    watched = pivot(frame_of(result.rows()), "session_watch_time")
    _say(f"\n{markdown(watched)}")
    if named := repeaters(result):
        _say(f"\n{named}")
    _say(f"\n{markdown(check_frame(finished.checks))}")
    _say(f"\nreport:  {config.folder / 'report.html'}\ncurves:  .venv/bin/tensorboard --logdir {config.folder}")
    _say(f"took {(time.perf_counter() - begun) / 60:.1f} minutes")
    return dict(read_json(config.folder / "report.json"))


def judged(worlds: Mapping[str, World]) -> dict[str, World]:
    """The worlds with their claims judged beside the truth, where it is known.

    What fixed videos are worth should change in a learned world as it does there.
    """
    if TRUTH not in worlds:
        return dict(worlds)
    probes = probe_drift(worlds[TRUTH])
    return {
        name: world.replace(fidelity=with_verdicts(world.fidelity, world, probes)) if world.fidelity else world
        for name, world in worlds.items()
    }


def main(config: DemoConfig) -> None:
    """Runs the demo."""
    report = run(config)
    if config.json:
        rows = [row for row in report["rows"] if row["metric"] in MAIN_METRICS]
        publish_json(config.json, {key: value for key, value in report.items() if key != "worlds"} | {"rows": rows})
        shutil.copyfile(config.folder / "plots" / "session_watch_time.png", config.json.with_suffix(".png"))


if __name__ == "__main__":
    run_command(main, lambda: tyro.cli(DemoConfig, description=__doc__))
