"""A build that takes seconds: a small log of a small known world, and one epoch of every fit."""

from recsim_env.data import LoggedDataset
from recsim_env.known_worlds import short_video_world
from recsim_env.known_worlds.logs import synthetic_log
from recsim_env.world import World
from reward_models.build import BuildConfig
from reward_models.recommender.list_evaluator_network import ListEvaluatorConfig
from reward_models.recommender.predictor import PredictorConfig
from reward_models.recommender.retrieval import RetrievalConfig
from reward_models.trainer import TrainConfig
from reward_models.users.fit import ResponseFitConfig

SMALL_BUILD = BuildConfig(
    test_days=2,
    stopping_days=1,
    jobs=1,
    fit=ResponseFitConfig(calibration_folds=0, train=TrainConfig(max_epochs=1)),
    predictor=PredictorConfig(max_epochs=1),
    retrieval=RetrievalConfig(max_epochs=1),
    evaluator=ListEvaluatorConfig(max_epochs=1),
)


def small_truth() -> World:
    """400 users and 150 videos."""
    return short_video_world(num_users=400, num_items=150, seed=4)


def small_log(truth: World) -> LoggedDataset:
    """Six days of it, with slates."""
    return synthetic_log(truth, num_sessions=400, days=6, seed=4)
