"""Builds worlds from a log: world A, judge worlds, and the recommender that acts in all of them.

    worlds = load_worlds(build_worlds(load_log("log.csv", columns), "runs/worlds"))

Users are split by a hash of their id. Users A teach world A and the recommender; judge users teach the judge worlds,
each of another seed and model family: a third of them ``judge-dev``, to develop on, the others ``judge-final-1`` and so
on, to be opened at the end. The last tenth chooses: training stops early by what these users did on the days before the
test days. No model reads the feedback of users that are not its own, not even in counts of item features. The last
days test; sessions begin from what users did before them.

``FOLDER`` receives ``recommender/``, one folder for each world, the TensorBoard runs of every fit, and ``build.json``,
which names the log by its content. A build that was killed goes on where it stopped.
"""

import dataclasses
import os
import threading
import time
from pathlib import Path
from typing import Any

import joblib
import torch
from torch import Tensor
from tqdm import tqdm

from recsim_env import world as worlds_module
from recsim_env.assumptions import (
    DeclaredContext,
    TagRepeatEffect,
)
from recsim_env.data import LoggedDataset
from recsim_env.data.features import UserEncoder, item_features, known_durations
from recsim_env.data.histories import user_histories
from recsim_env.data.requests import LoggedRequests, logged_requests
from recsim_env.files import check_replaceable, claim
from recsim_env.numerics import one_thread
from recsim_env.provenance import COMMIT, machine
from recsim_env.recommender import FILES as RECOMMENDER_FILES
from recsim_env.recommender import Recommender
from recsim_env.world import Catalogue, Users, World
from reward_models.declared import (
    declare_drop,
    declared_leave,
    main_tags,
    uniform_rates,
)
from reward_models.exposure import fit_exposure
from reward_models.fidelity.card import fidelity_card
from reward_models.fidelity.drift import DRIFT_SLATE
from reward_models.fidelity.groups import VideoFacts
from reward_models.plan import BuildConfig, Plan, days_of, obstacles, plans_of, users_of
from reward_models.recommender.encoding import encode_requests
from reward_models.recommender.list_evaluator import fit_list_evaluator
from reward_models.recommender.predictor_fit import fit_predictor
from reward_models.recommender.retrieval import fit_retrieval
from reward_models.users.fit import fit_sequences
from reward_models.users.sequences import read_sequences

ITEM_WIDTH = 8
"""Length of each video's learned vector, where videos have the rows to learn one or nothing else differs."""
ITEM_ROWS = 25
"""Rows a video from which on its vector gains more than it learns by heart."""

_USUAL_CANDIDATES = 50  # the environment's own default, too many for a small catalogue


def build_worlds(dataset: LoggedDataset, out: str | Path, config: BuildConfig | None = None) -> dict[str, Path]:
    """Builds the recommender, world A and the judges into ``out``; finished parts are kept.

    Args:
        dataset: a checked log, see ``recsim_env.data.load_log``.
        out: folder of the build; a new one, an empty one, or one of the same log and settings.
        config: settings; defaults suit logs of 1e5 to 1e7 rows and seven days or more.

    Returns:
        World name to folder, A first; ``recsim_env.world.load_worlds`` reads them.

    Raises:
        ValueError: the log cannot become worlds, see ``obstacles``, or ``out`` holds anything else than this build.
    """
    config, out = config or BuildConfig(), Path(out)
    problems = obstacles(dataset, config)
    if problems:
        raise ValueError(f"no worlds can be built from the log {dataset.name!r}: " + "; ".join(problems))
    plans = plans_of(config)
    settings = dataclasses.asdict(config)
    del settings["jobs"]
    content = {"format": worlds_module.FORMAT, "log": dataset.name, "content": dataset.digest, "config": settings}
    claim(out, content, name="build.json")
    folders = {plan.name: out / plan.name for plan in plans}
    missing = [plan for plan in plans if not (folders[plan.name] / "world.json").exists()]
    for plan in missing:  # said now, not after an hour of fitting
        check_replaceable(folders[plan.name], worlds_module.FILES)
    check_replaceable(out / "recommender", RECOMMENDER_FILES)
    if missing:
        builder = _Builder(dataset, out, config)
        if not (out / "recommender" / "recommender.json").exists():
            with one_thread():  # sums are cut up by thread: bytes would depend on their number
                builder.recommender().save(out / "recommender")
        workers = joblib.Parallel(n_jobs=min(config.jobs, len(missing)), return_as="generator_unordered")
        tasks = (joblib.delayed(_build_one)(builder, plan) for plan in missing)
        for _ in tqdm(workers(tasks), total=len(missing), desc="worlds", unit="world", disable=None):
            pass
    return folders


def _build_one(builder: "_Builder", plan: Plan) -> None:
    """Fits and saves one world, in a process of its own where several are fitted side by side."""
    if os.getpid() != builder.process:
        end_with_parent()
    shared = builder.out / "recommender"
    with one_thread():
        builder.world(plan, Recommender.load(shared)).save(builder.out / plan.name, recommender=shared)


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
    """A log read and encoded once, and what is fitted to it; travels to the processes that fit worlds."""

    def __init__(self, dataset: LoggedDataset, out: Path, config: BuildConfig):
        self.out, self.config, self.process = out, config, os.getpid()
        self.log, self.content, self.num_rows = dataset.name, dataset.digest, len(dataset.rows)
        self.days, self.users = days_of(dataset, config), users_of(dataset, config)
        # Counts of feedback stand in item features, so each part of the users gets features of its own. Those of A
        # are the recommender's, too, and what every world's catalogue shows.
        tables = {part: item_features(dataset, users=codes) for part, codes in self.users.items() if part != "choosing"}
        self.item_features = {part: torch.from_numpy(table.values) for part, table in tables.items()}
        self.leave = declared_leave(dataset, self.users["A"], self.days.fit_until, config.session_cut)
        self.uniform_rates = uniform_rates(dataset, self.users["A"], self.days.fit_until, config.uniform_drop)
        encoder = UserEncoder.fitted(dataset)
        people = encoder.encode(dataset)
        self.sequences = read_sequences(dataset, config.fit.history_length)
        self.requests: LoggedRequests = logged_requests(
            dataset, item_features_ND=self.item_features["A"], user_features_UD=torch.from_numpy(people.values)
        )
        self.has_slates = "request" in dataset.rows
        self.videos = VideoFacts.of(dataset, self.days.test[0])
        self.catalogue = Catalogue(
            ids=dataset.items["item_id"].to_numpy(),
            duration_N=torch.from_numpy(known_durations(dataset)),
            features_ND=self.item_features["A"],
            feature_names=tables["A"].names,
            tag_N=main_tags(dataset),
        )
        self.people = Users(
            ids=dataset.users["user_id"].to_numpy(),
            features_UD=self.requests.user_features_UD,
            feature_names=people.names,
            histories=user_histories(dataset, before_date=self.days.test[0]),
            encoder=encoder,
        )

    def item_width(self, rows_P: Tensor) -> int:
        """Length of learned item vectors: where items have the rows to learn one, or nothing else tells them apart."""
        look_alike = bool((self.item_features["A"] == self.item_features["A"][:1]).all())
        return ITEM_WIDTH if look_alike or int(rows_P.sum()) >= ITEM_ROWS * len(self.catalogue) else 0

    @property
    def list_effect(self) -> TagRepeatEffect | None:
        """What the log's missing slates cannot teach, declared."""
        if self.has_slates or self.config.list_effect == 0:
            return None
        return TagRepeatEffect(self.catalogue.tag_N, self.config.list_effect)

    def rows_of(self, part: str) -> Tensor:
        """Rows of the log, bool (P,), that teach what the users of a part do."""
        is_own_P = torch.isin(self.sequences.user_P, torch.from_numpy(self.users[part]))
        return is_own_P & (self.sequences.date_P <= self.days.fit_until)

    def recommender(self) -> Recommender:
        """Fits the operator's models on users A."""
        config, seed, runs = self.config, self.config.seed + 1000, self.out / "runs"
        own = self.requests.only(self.users["A"], None, self.days.fit_until)
        sequences, fit = self.sequences, config.fit
        exposure = fit_exposure(
            sequences,
            self.item_features["A"],
            self.people.features_UD,
            self.rows_of("A"),
            last_date=self.days.fit_until,
            keep=fit.history_length,
            epochs=fit.exposure_epochs,
            seed=seed,
        )
        encoded = encode_requests(own, self.people.histories, config.history, exposure)
        predictor = fit_predictor(encoded, config=config.predictor, seed=seed, run_dir=runs / "predictor")
        candidates = fit_retrieval(encoded, config=config.retrieval, seed=seed, run_dir=runs / "retrieval")
        evaluator = fit_list_evaluator(
            own.annotated(predictor, candidates),
            # A log without slates cannot teach what a list is worth beyond its videos.
            config=config.evaluator if self.has_slates else dataclasses.replace(config.evaluator, listwise=False),
            list_effect=self.list_effect,
            leave=self.leave,
            seed=seed,
            run_dir=runs / "evaluator",
        )
        return Recommender(predictor=predictor, candidates=candidates, evaluator=evaluator)

    def world(self, plan: Plan, recommender: Recommender) -> World:
        """Fits one world's users and measures it."""
        own, fit, sequences = self.users[plan.part], self.config.fit, self.sequences
        rows_P = self.rows_of(plan.part)
        family = plan.family or fit.response
        if not family.item_width:
            family = dataclasses.replace(family, item_width=self.item_width(rows_P))
        fit = dataclasses.replace(fit, response=family)
        response = fit_sequences(
            sequences,
            item_features_ND=self.item_features[plan.part],
            user_features_UD=self.people.features_UD,
            users=own,
            choosing_users=self.users["choosing"],
            train_until=self.days.fit_until,
            validation_dates=self.days.stopping,
            config=fit,
            seed=plan.seed,
            run_dir=self.out / "runs" / plan.name,
        )
        contexts, effect = DeclaredContext(), self.list_effect
        declared: dict[str, Any] = {"leave": {"session_cut": self.config.session_cut, **self.leave.config()}}
        declared["contexts"] = contexts.config()
        if self.uniform_rates:
            declare_drop(response, sequences, rows_P, self.uniform_rates, plan.seed)
            declared["uniform_rates"] = self.uniform_rates
        if effect is not None:
            declared["list_effect"] = {"class": type(effect).__name__, **effect.config()}
        world = World(
            name=plan.name,
            signals=sequences.signals,
            catalogue=self.catalogue,
            users=self.people,
            population_P=torch.from_numpy(own),
            response=response,
            leave=self.leave,
            contexts=contexts,
            recommender=recommender,
            list_effect=effect,
            declared=declared,
            defaults=self.defaults(),
            provenance={
                "log": self.log,
                "content": self.content,
                "rows": self.num_rows,
                "users": len(own),
                "days": dataclasses.asdict(self.days),
                "family": dataclasses.asdict(fit.response),
                "seed": plan.seed,
                "commit": COMMIT,
                "built": time.strftime("%Y-%m-%d"),
                "machine": machine(),
            },
        )
        held_out = self.requests.only(own, self.days.test[0], self.days.test[-1])
        card = fidelity_card(world, held_out, self.videos, depth_sessions=self.config.depth_sessions)
        return world.replace(fidelity={"test_days": list(self.days.test), **card})

    def defaults(self) -> dict[str, int]:
        """Environment settings for a catalogue that is smaller than the usual candidate set."""
        num_items = len(self.catalogue)
        if num_items >= _USUAL_CANDIDATES:
            return {}
        return {"num_candidates": num_items, "slate_size": min(DRIFT_SLATE, num_items)}
