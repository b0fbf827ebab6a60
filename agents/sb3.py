"""The batched environment as a Stable-Baselines3 VecEnv.

Stable-Baselines3's own ``make_vec_env("recsim_env/Session-v0", n_envs=4)`` works too, after ``import recsim_env``, or
as ``make_vec_env("recsim_env:recsim_env/Session-v0")`` without; it steps its environments one by one, and is slower by
as much as they are many.

Example:
    Observations come in their own units, so let Stable-Baselines3 scale them::

        env = VecNormalize(RecVecEnv(RecVectorEnv(64, "short_video", autoreset_mode="SameStep")))
        model = PPO("MlpPolicy", env, n_steps=32).learn(100_000)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from recsim_env.envs import RecVectorEnv


class RecVecEnv(VecEnv):  # type: ignore[misc]  # stable_baselines3 is followed as untyped
    """B sessions in one object, for any Stable-Baselines3 learner; wrap it in ``VecMonitor`` for statistics.

    Args:
        env: the batched environment, made with ``autoreset_mode="SameStep"``.

    Raises:
        ValueError: another autoreset mode, under which observations and ends would not belong together.
    """

    def __init__(self, env: RecVectorEnv) -> None:
        mode = env.metadata["autoreset_mode"]
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"Stable-Baselines3 needs autoreset_mode='SameStep', got {mode.value!r}; make the environment "
                "with RecVectorEnv(..., autoreset_mode='SameStep')"
            )
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        """Begins new sessions, with the seeds given to ``seed()`` if there are any."""
        seeds = None if None in self._seeds else list(self._seeds)
        self._reset_seeds()
        return self.env.reset(seed=seeds)[0]

    def step_async(self, actions: np.ndarray) -> None:
        """Takes the actions of the next ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Observations, float32 rewards, ends, and infos (of rows that ended only)."""
        observation, reward, terminated, truncated, batched = self.env.step(self._actions)
        done = terminated | truncated
        nothing: dict[str, Any] = {}  # shared: one dict for every row that goes on
        infos = [nothing] * self.num_envs
        for row in np.flatnonzero(done).tolist():
            infos[row] = {
                "terminal_observation": _row(batched["final_obs"], row),
                "TimeLimit.truncated": bool(truncated[row] and not terminated[row]),
            }
        return observation, reward.astype(np.float32), done, infos

    def close(self) -> None:
        """Closes the batched environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the batched environment, once for each row asked for."""
        return [getattr(self.env, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets an attribute of the batched environment, for all rows at once."""
        self._refuse_some(indices, "attributes")
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Calls a method of the batched environment once; its result stands for all rows."""
        self._refuse_some(indices, "methods")
        return [getattr(self.env, method_name)(*args, **kwargs)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """No row has a wrapper of its own."""
        return [False] * len(self._rows(indices))

    def _rows(self, indices: Any) -> Sequence[int]:
        return list(self._get_indices(indices))

    def _refuse_some(self, indices: Any, what: str) -> None:
        if len(self._rows(indices)) != self.num_envs:
            raise ValueError(
                f"the {self.num_envs} sessions share one object, so {what} cannot be used for some of them; "
                "leave indices out"
            )


def _row(observation: Any, row: int) -> Any:
    if isinstance(observation, dict):
        return {name: array[row] for name, array in observation.items()}
    return observation[row]
