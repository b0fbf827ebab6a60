"""Gymnasium environments for short-video recommenders, with users learned from logged data."""

import gymnasium as gym

from recsim_env.envs import EnvConfig, RecEnv, RecVectorEnv, Transition
from recsim_env.recommender import Recommender
from recsim_env.simulator import SessionState, Simulator
from recsim_env.tasks import TASKS
from recsim_env.types import Decision, Expected, Feedback, ListValue, Outcomes, Request
from recsim_env.world import Catalogue, Users, World, load_worlds

__all__ = [
    "Catalogue",
    "Decision",
    "EnvConfig",
    "Expected",
    "Feedback",
    "ListValue",
    "Outcomes",
    "RecEnv",
    "RecVectorEnv",
    "Recommender",
    "Request",
    "SessionState",
    "Simulator",
    "Transition",
    "Users",
    "World",
    "load_worlds",
]

for _task in TASKS:
    gym.register(
        id=f"recsim_env/{_task.capitalize()}-v0",
        entry_point="recsim_env.envs:RecEnv",
        vector_entry_point="recsim_env.envs:RecVectorEnv",
        kwargs={"task": _task},
    )
