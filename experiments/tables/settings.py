"""The logs that tables are made of, and the worlds and training runs that belong to each.

Everything is made once a process and kept in the setting's folder; whatever is asked for twice is not made twice.
"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import tyro

from experiments.recipes import TrainRun
from experiments.tables.runs import slug
from experiments.train import run as run_training
from recsim_env.assumptions import SESSION_REQUESTS, SessionCut, hazard_per_place
from recsim_env.data import LoggedDataset, load_kuairand
from recsim_env.digests import digest_json
from recsim_env.files import claim
from recsim_env.known_worlds import short_video_world
from recsim_env.known_worlds.logs import LoggingPolicy, synthetic_log
from recsim_env.results import to_plain
from recsim_env.world import World
from reward_models.build import build_worlds
from reward_models.plan import SHORT_FIT, BuildConfig
from reward_models.variants import with_recommender, without_list_effect

DECLARED = 0.3
"""Declared chance that a repeated tag is skipped, for logs without slates."""
SLATE = 6
TRAINING_WORLD, TRUTH = "A", "truth"


@dataclass(frozen=True, kw_only=True)
class LogSource:
    """Where a table's logs come from and where its worlds and training runs are kept."""

    data: Path | None = None
    """A KuaiRand folder; by default a synthetic log is drawn from a known world."""
    world_seed: int = 100
    """Seed of the log and of the worlds: another one than the demo's, so that judges are met fresh."""
    num_users: int = 3000
    """Users of the synthetic world."""
    num_items: int = 2000
    """Videos of the synthetic world."""
    log_sessions: int = 8000
    """Sessions of the synthetic log."""
    uniform_share: float = 0.1
    """Share of its requests answered with uniform videos: what an operator spends on exploration."""
    folder: Path = Path("runs/compare")
    """Where worlds and training runs are kept."""
    by_setting: tyro.conf.Suppress[bool] = True
    """Give each setting a folder of its own in ``folder``."""
    build: tyro.conf.Suppress[BuildConfig] = field(default_factory=lambda: BuildConfig(fit=SHORT_FIT))
    """How worlds are built."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One log with its worlds and training runs."""

    source: LogSource
    name: str
    declared_effect: float = 0.0
    """Declared chance that a repeated tag is skipped, for logs without slates."""
    strength: float = 0.0
    """Strength of the true list effect in the synthetic world; 0 for real logs."""
    session_cut: SessionCut | None = None
    """The pause that ends a session, in the place of that which its worlds were built with; policies are those trained
    in the worlds as built."""

    @property
    def folder(self) -> Path:
        """Where its worlds and training runs are kept."""
        return self.source.folder / self.name if self.source.by_setting else self.source.folder

    @property
    def trained_in(self) -> "Setting":
        """The setting whose policies play here."""
        return self if self.session_cut is None else settings_of(self.source)[0]


def settings_of(source: LogSource, strengths: Sequence[float] = (1.0,)) -> list[Setting]:
    """The settings of a log: list effects of the known world, or what is declared of a real one."""
    if source.data is None:
        names = {s: "synthetic" if s == 1 else f"synthetic-x{s:g}" for s in strengths}
        return [Setting(source=source, name=name, strength=s) for s, name in names.items()]
    log = source.data.resolve().name
    declared = Setting(source=source, name=f"{log}-declared", declared_effect=DECLARED)
    varied = [
        dataclasses.replace(declared, name=f"{declared.name}-sessions-{cut}", session_cut=cut)
        for cut in SESSION_REQUESTS
        if cut != source.build.session_cut
    ]
    return [declared, Setting(source=source, name=f"{log}-none"), *varied]


@cache
def known_truth(setting: Setting) -> World | None:
    """The world that the log was drawn from, if it is known."""
    source = setting.source
    if source.data is not None:
        return None
    return short_video_world(
        num_users=source.num_users, num_items=source.num_items, seed=source.world_seed, list_effect=setting.strength
    )


@cache
def log_of(setting: Setting, *, keep_candidates: bool = False) -> LoggedDataset:
    """The log; a synthetic one with its candidate lists if asked, which the worlds are not fitted to."""
    source, truth = setting.source, known_truth(setting)
    if truth is None:
        assert source.data is not None
        return load_kuairand(source.data)
    return synthetic_log(
        truth,
        num_sessions=source.log_sessions,
        policy=LoggingPolicy(uniform_share=source.uniform_share),
        keep_candidates=keep_candidates,
        seed=source.world_seed,
        progress=True,
    )


@cache
def world_folders(setting: Setting) -> Mapping[str, Path]:
    """World A and the judges by name, built if they are not there.

    Without the declared effect a real log's worlds are those with it, less the effect.
    """
    source = setting.source
    if source.data is None or setting.declared_effect:
        build = dataclasses.replace(source.build, seed=source.world_seed, list_effect=setting.declared_effect)
        return build_worlds(log_of(setting), setting.folder / "worlds", build)
    declared, folder = settings_of(source)[0], setting.folder / "worlds"
    digests = {name: world.digest for name, world in worlds_of(declared).items()}
    claim(folder, {"less the declared effect": digests}, name="derived.json")
    for name, world in worlds_of(declared).items():
        if not (folder / name / "world.json").exists():
            shutil.rmtree(folder / name, ignore_errors=True)
            without_list_effect(world).save(folder / name)
    return {name: folder / name for name in digests}


@cache
def worlds_of(setting: Setting) -> Mapping[str, World]:
    """World A, the judges and the truth."""
    if setting.session_cut is not None:
        cuts = setting.source.build.session_cut, setting.session_cut
        return {name: recut(world, *cuts) for name, world in worlds_of(setting.trained_in).items()}
    worlds = {name: World.load(folder) for name, folder in world_folders(setting).items()}
    truth = known_truth(setting)
    return worlds if truth is None else {**worlds, TRUTH: with_recommender(truth, list(worlds.values())[-1])}


def recut(world: World, built: SessionCut, cut: SessionCut) -> World:
    """A world built for sessions of one cut, with those of another; the longest reach its usual end of 50 requests."""
    leave = world.leave.scaled(hazard_per_place(cut) / hazard_per_place(built))  # type: ignore[attr-defined]
    return world.replace(leave=leave, declared={**world.declared, "leave": {"session_cut": cut, **leave.config()}})


@cache
def digests(setting: Setting, world: str) -> Mapping[str, str]:
    """What the log and a world hold, for a run's card."""
    return {
        "log_digest": log_of(setting).digest,
        "world_digest": worlds_of(setting)[world].digest,
        "training_world_digest": worlds_of(setting.trained_in)[TRAINING_WORLD].digest,
    }


def method_card(run: TrainRun) -> dict[str, Any]:
    """What shapes a policy, less where it lies and the world, whose digest stands beside it."""
    plain = dataclasses.asdict(run)
    return {key: value for key, value in plain.items() if key not in ("world", "run_dir", "json", "address")}


def trained_folder(setting: Setting, name: str, card: Mapping[str, Any]) -> Path:
    """A folder for what is trained in the setting's world A; no work of another card, log or world can share it."""
    fingerprint = digest_json(to_plain({"card": card, **digests(setting, TRAINING_WORLD)}))[:8]
    return setting.folder / "trained" / f"{slug(name)}-{fingerprint}"


def in_setting(run: TrainRun, setting: Setting, name: str) -> TrainRun:
    """A training run in the setting's world A, in a folder of its own."""
    setting = setting.trained_in
    run_dir = trained_folder(setting, name, method_card(run))
    return dataclasses.replace(run, world=str(world_folders(setting)[TRAINING_WORLD]), run_dir=run_dir)


def train_policy(run: TrainRun) -> Path:
    """Trains what is missing and returns the policy's folder: the one place where tables train through RLlib."""
    policy = run.run_dir / "policy"
    return policy if (policy / "policy.json").exists() else run_training(run)
