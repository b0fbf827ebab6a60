"""Builds worlds from a log: world A, judge worlds, and the recommender that acts in all of them.

Users are split by a hash of
their id: users A teach world A and the recommender's own models; judge users teach the judge worlds, each of
another seed and model family; a tenth is left for choosing. The last days test, the days before them stop
training early. Sessions begin from what users did before the test days. ``FOLDER`` receives ``A/``, ``judge-1/``,
``judge-2/`` (one folder for each world), the TensorBoard runs of every fit, and ``build.json``. A build that was
killed goes on where it stopped.
"""

import dataclasses
import json
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recsim_env.assumptions import DeclaredContext, DeclaredLeave, TagRepeatEffect
from recsim_env.data import LoggedDataset
from recsim_env.data.features import item_features, user_features
from recsim_env.data.histories import user_histories
from recsim_env.data.requests import LoggedRequests, logged_requests
from recsim_env.data.splits import split_by_user
from recsim_env.files import read_json, write_json
from recsim_env.provenance import COMMIT, machine
from recsim_env.types import NO_ITEM, ListEffect
from recsim_env.world import Catalogue, Users, World
from reward_models.fidelity import logged_fidelity, retriever_order, rollout_drift
from reward_models.recommender.list_evaluator import SlateEvaluator, fit_list_evaluator
from reward_models.recommender.list_evaluator_network import ListEvaluatorConfig
from reward_models.recommender.predictor import EnsemblePredictor, PredictorConfig, fit_predictor
from reward_models.recommender.retrieval import RetrievalConfig, TwoTowerCandidates, fit_retrieval
from reward_models.trainer import TrainConfig
from reward_models.users.fit import ResponseFitConfig, fit_response
from reward_models.users.response import ResponseConfig

JUDGE_FAMILIES = (
    ResponseConfig(memory="gated", width=48, event_width=24, decays=(0.7, 0.95)),
    ResponseConfig(memory="decayed", width=96, event_width=32, decays=(0.9,)),
)
"""Model families of the judges; world A has the default one."""

SHORT_FIT = ResponseFitConfig(calibration_folds=2, train=TrainConfig(max_epochs=4, learning_rate_decay=0.5))
"""Half the time of the default fit, for runs that build many worlds."""


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """How worlds are built."""

    shares: tuple[float, float, float] = (0.45, 0.45, 0.1)
    """Shares of users for world A, for the judges and for choosing."""
    test_days: int = 4
    """Last days of the log, on which worlds are judged and from which sessions begin."""
    stopping_days: int = 2
    """Days before these, on which training stops early; 0 trains for the fit's ``max_epochs``, in 2/3 of the time."""
    judges: int = 2
    """Judge worlds."""
    jobs: int = field(default_factory=lambda: min((os.cpu_count() or 1) + 1, 3))
    """Worlds fitted side by side, each in a process of one thread, one more than there are cores so that none is
    idle while the last world is fitted; it changes nothing but the time taken."""
    seed: int = 0
    """Seed of world A; judges and the recommender's models derive theirs from it."""
    list_effect: float = 0.3
    """Declared chance that a repeated tag is skipped, for logs without slates; 0 declares none."""
    fit: ResponseFitConfig = field(default_factory=ResponseFitConfig)
    """How responses are fitted."""
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    """The recommender's predictor."""
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    """The recommender's candidate source."""
    evaluator: ListEvaluatorConfig = field(default_factory=ListEvaluatorConfig)
    """The recommender's list evaluator."""

    def __post_init__(self) -> None:
        if self.judges < 1 or self.test_days < 1 or self.stopping_days < 0:
            raise ValueError(
                "need at least one judge and test day, and no negative number of stopping days, got "
                f"{self.judges}, {self.test_days} and {self.stopping_days}"
            )


@dataclass(frozen=True)
class Days:
    """Days of a log by role, YYYYMMDD."""

    fit_until: int
    """Last day of the final fit; early stopping uses the last days up to it."""
    stopping: tuple[int, ...]
    test: tuple[int, ...]


@dataclass(frozen=True)
class Recommender:
    """The operator's own models, the same in every world."""

    predictor: EnsemblePredictor
    candidates: TwoTowerCandidates
    evaluator: SlateEvaluator
    list_effect: ListEffect | None


def days_of(dataset: LoggedDataset, config: BuildConfig) -> Days:
    """Splits a log's days by role.

    Raises:
        ValueError: the log has too few days.
    """
    dates = [int(d) for d in np.unique(dataset.rows["date"].to_numpy())]
    needed = config.test_days + config.stopping_days + 1
    if len(dates) < needed:
        raise ValueError(
            f"the log {dataset.name!r} has {len(dates)} days; {config.test_days} test days and "
            f"{config.stopping_days} stopping days need at least {needed}"
        )
    test = tuple(dates[-config.test_days :])
    before = dates[: -config.test_days]
    return Days(before[-1], tuple(before[len(before) - config.stopping_days :]), test)


def build_worlds(dataset: LoggedDataset, out: Path, config: BuildConfig) -> dict[str, Path]:
    """Builds world A and the judges into ``out``; finished parts are kept.

    Returns:
        World name to folder, A first.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = {"log": dataset.name, "rows": len(dataset.rows), "config": _plain(config)}
    _claim(out / "build.json", settings)
    days = days_of(dataset, config)
    parts = dict(zip(("A", "judges", "choosing"), config.shares, strict=True))
    users = split_by_user(dataset, parts, salt="worlds")
    builder = _Builder(dataset, days, users, out, config)
    folders = {name: out / name for name in ("A", *(f"judge-{j + 1}" for j in range(config.judges)))}
    missing = [(number, name) for number, name in enumerate(folders) if not (out / name / "world.json").exists()]
    if missing:
        built = [folder for folder in folders.values() if (folder / "world.json").exists()]
        recommender = _recommender_of(World.load(built[0])) if built else builder.recommender()
        workers = joblib.Parallel(n_jobs=min(config.jobs, len(missing)), return_as="generator_unordered")
        tasks = (joblib.delayed(_build_one)(builder, name, number, recommender) for number, name in missing)
        for _ in tqdm(workers(tasks), total=len(missing), desc="worlds", unit="world", disable=None):
            pass
    return folders


def _build_one(builder: "_Builder", name: str, number: int, recommender: Recommender) -> None:
    """Fits and saves one world, in a process of its own."""
    torch.set_num_threads(1)
    end_with_parent()
    builder.world(name, number, recommender).save(builder.out / name)


def end_with_parent() -> None:
    """Makes this worker process end within a second of its parent, even one that was killed.

    Without it a worker would finish its task and write into a folder that the next run already uses.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Builder:
    """One log, its features and histories, and what is fitted to them."""

    def __init__(
        self,
        dataset: LoggedDataset,
        days: Days,
        users: dict[str, np.ndarray],
        out: Path,
        config: BuildConfig,
    ):
        self.dataset, self.days, self.users, self.out, self.config = dataset, days, users, out, config
        items, people = item_features(dataset), user_features(dataset)
        self.histories = user_histories(dataset, before_date=days.test[0])
        self.tables: dict[str, Any] = {
            "item_features_ND": torch.from_numpy(items.values),
            "user_features_UD": torch.from_numpy(people.values),
        }
        self.catalogue = Catalogue(
            ids=dataset.items["item_id"].to_numpy(),
            duration_N=_durations(dataset),
            features_ND=self.tables["item_features_ND"],
            feature_names=items.names,
            tag_N=main_tags(dataset),
        )
        self.people = Users(
            ids=dataset.users["user_id"].to_numpy(),
            features_UD=self.tables["user_features_UD"],
            feature_names=people.names,
            histories=self.histories,
        )
        self.has_slates = "request" in dataset.rows

    def recommender(self) -> Recommender:
        """Fits the operator's models on users A."""
        config, seed = self.config, self.config.seed + 1000
        common: dict[str, Any] = {
            **self.tables,
            "users": self.users["A"],
            "until_date": self.days.fit_until,
            "histories": self.histories,
        }
        predictor = fit_predictor(
            self.dataset,
            config=config.predictor,
            seed=seed,
            run_dir=self.out / "runs" / "predictor",
            **common,
        )
        candidates = fit_retrieval(
            self.dataset,
            config=config.retrieval,
            seed=seed,
            run_dir=self.out / "runs" / "retrieval",
            **common,
        )
        effect = None
        if not self.has_slates and config.list_effect > 0:
            effect = TagRepeatEffect(self.catalogue.tag_N, config.list_effect)
        requests = self.requests(self.users["A"], None, self.days.fit_until).annotated(predictor, candidates)
        evaluator = fit_list_evaluator(
            requests,
            # A log without slates cannot teach what a list is worth beyond its videos.
            config=config.evaluator if self.has_slates else dataclasses.replace(config.evaluator, listwise=False),
            list_effect=effect,
            seed=seed,
            run_dir=self.out / "runs" / "evaluator",
        )
        return Recommender(predictor, candidates, evaluator, effect)

    def world(self, name: str, number: int, recommender: Recommender) -> World:
        """Fits one world's users and measures it."""
        config = self.config
        own = self.users["A"] if name == "A" else self.users["judges"]
        fit = config.fit
        if number:
            fit = dataclasses.replace(fit, response=JUDGE_FAMILIES[(number - 1) % len(JUDGE_FAMILIES)])
        response = fit_response(
            self.dataset,
            users=own,
            train_until=self.days.fit_until,
            validation_dates=self.days.stopping,
            config=fit,
            seed=config.seed + number,
            run_dir=self.out / "runs" / name,
        )
        leave = DeclaredLeave(long_view_index=_index(self.dataset.signals, "long_view"))
        contexts = DeclaredContext()
        effect = recommender.list_effect
        declared = {"leave": leave.config(), "contexts": contexts.config()}
        if effect is not None:
            declared["list_effect"] = {"class": type(effect).__name__, **effect.config()}  # type: ignore[attr-defined]
        world = World(
            name=name,
            signals=self.dataset.signals,
            catalogue=self.catalogue,
            users=self.people,
            population_P=torch.from_numpy(own),
            response=response,
            leave=leave,
            contexts=contexts,
            predictor=recommender.predictor,
            candidates=recommender.candidates,
            list_effect=effect,
            evaluator=recommender.evaluator,
            declared=declared,
            provenance={
                "log": self.dataset.name,
                "rows": len(self.dataset.rows),
                "users": len(own),
                "days": dataclasses.asdict(self.days),
                "family": dataclasses.asdict(fit.response),
                "seed": config.seed + number,
                "commit": COMMIT,
                "built": time.strftime("%Y-%m-%d"),
                "machine": machine(),
            },
        )
        return world.replace(fidelity=self.fidelity(world, own))

    def fidelity(self, world: World, users: np.ndarray) -> dict[str, Any]:
        """The world's card: held-out days of its own users, and drift under its candidate source."""
        held_out = self.requests(users, self.days.test[0], self.days.test[-1])
        return {
            "test_days": list(self.days.test),
            "logged": logged_fidelity(world.response, held_out),
            "drift": rollout_drift(world, retriever_order),
        }

    def requests(self, users: np.ndarray, first: int | None, last: int) -> LoggedRequests:
        """Logged requests of some users on some days."""
        return logged_requests(self.dataset, users=users, first_date=first, last_date=last, **self.tables)


def with_recommender(truth: World, learned: World, name: str = "truth") -> World:
    """A known world as the learned world's recommender sees it: same users, models, features and histories."""
    return truth.replace(
        name=name,
        catalogue=learned.catalogue,
        users=learned.users,
        population_P=learned.population_P,
        predictor=learned.predictor,
        candidates=learned.candidates,
        evaluator=learned.evaluator,
    )


def without_list_effect(world: World) -> World:
    """A learned world as it would have been built with no declared list effect: same users, same models."""
    plain = world.replace(
        list_effect=None,
        evaluator=world.evaluator.with_list_effect(None),  # type: ignore[union-attr]
        declared={name: value for name, value in world.declared.items() if name != "list_effect"},
    )
    return plain.replace(fidelity={**world.fidelity, "drift": rollout_drift(plain, retriever_order)})


def main_tags(dataset: LoggedDataset) -> Tensor:
    """The first tag of each item, -1 where it has none: int64 (N,)."""
    tags = [tags[0] if len(tags) else NO_ITEM for tags in dataset.items["tags"]]
    return torch.tensor(tags, dtype=torch.int64)


def _durations(dataset: LoggedDataset) -> Tensor:
    """Seconds of each item; the median stands in where it is unknown."""
    duration = dataset.items["duration"].to_numpy(dtype=np.float32, na_value=np.nan)
    known = np.isfinite(duration)
    middle = np.median(duration[known]) if known.any() else 60.0
    return torch.from_numpy(np.where(known, duration, middle).astype(np.float32))


def _recommender_of(world: World) -> Recommender:
    return Recommender(world.predictor, world.candidates, world.evaluator, world.list_effect)  # type: ignore[arg-type]


def _index(signals: tuple[str, ...], name: str) -> int | None:
    return signals.index(name) if name in signals else None


def _plain(config: BuildConfig) -> Any:
    """What makes a build the build it is, as JSON values."""
    settings = dataclasses.asdict(config)
    del settings["jobs"]
    return json.loads(json.dumps(settings))


def _claim(path: Path, settings: dict[str, Any]) -> None:
    """A folder holds one build: the same log and settings, or an error."""
    if not path.exists():
        write_json(path, settings)
        return
    before = read_json(path)
    different = [key for key, value in settings.items() if before.get(key) != value]
    if different == ["config"]:
        different = [key for key, value in settings["config"].items() if before["config"].get(key) != value]
    if different:
        raise ValueError(
            f"{path.parent} holds another build, of a different {' and '.join(different)}; give another folder, or "
            "delete this one"
        )
