"""Small learned worlds, fitted in seconds: what is tested with them does not need a good fit."""

import atexit
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from recsim_env.data import LoggedDataset
from recsim_env.known_worlds import short_video_world
from recsim_env.known_worlds.logs import synthetic_log
from recsim_env.world import World, load_worlds
from reward_models.build import build_worlds
from reward_models.plan import BuildConfig
from reward_models.recommender.list_evaluator_network import ListEvaluatorConfig
from reward_models.recommender.predictor_fit import PredictorConfig
from reward_models.recommender.retrieval import RetrievalConfig
from reward_models.trainer import TrainConfig
from reward_models.users.fitting import ResponseFitConfig

SMALL_BUILD = BuildConfig(
    test_days=2,
    stopping_days=1,
    jobs=1,
    depth_sessions=0,
    fit=ResponseFitConfig(
        calibration_folds=0,
        exposure_epochs=1,
        train=TrainConfig(max_epochs=1),
        list_train=TrainConfig(max_epochs=1, learning_rate=5e-3),
    ),
    predictor=PredictorConfig(max_epochs=1),
    retrieval=RetrievalConfig(max_epochs=1),
    evaluator=ListEvaluatorConfig(max_epochs=1),
)
"""One epoch of every fit."""

ONE_JUDGE = BuildConfig(**{**vars(SMALL_BUILD), "judges": 1, "judge_dev": False})
"""The same with ``A`` and ``judge-final-1`` alone."""


def small_truth() -> World:
    """400 users and 150 videos."""
    return short_video_world(num_users=400, num_items=150, seed=4)


def small_log(truth: World) -> LoggedDataset:
    """Six days of it, with slates."""
    return synthetic_log(truth, num_sessions=400, days=6, seed=4)


@cache
def shared_build() -> dict[str, Path]:
    """Folders of world A and one judge, fitted once for all tests of a process in seconds; they are only read."""
    folder = TemporaryDirectory()
    atexit.register(folder.cleanup)
    return build_worlds(small_log(small_truth()), folder.name, ONE_JUDGE)


@cache
def shared_learned_worlds() -> dict[str, World]:
    """The worlds of ``shared_build``, loaded once."""
    return load_worlds(shared_build())
