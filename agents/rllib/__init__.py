"""RLlib on its new API stack: any method of ``agents.method`` as an Algorithm, and our environments for stock ones.

Importing this package tells Ray the plain ids ``recsim_env/Session-v0`` and ``recsim_env/Request-v0``, so that remote
runners, whose processes have imported nothing of ours, find them too.
"""

from typing import Any

from ray.tune.registry import register_env

from recsim_env import RecEnv, RecVectorEnv
from recsim_env.tasks import TASKS


def _creator(task: str) -> Any:
    def create(context: Any) -> RecEnv | RecVectorEnv:
        settings = {"task": task, **context}
        return RecVectorEnv(**settings) if "num_envs" in settings else RecEnv(**settings)

    return create


for _task in TASKS:
    register_env(f"recsim_env/{_task.capitalize()}-v0", _creator(_task))
