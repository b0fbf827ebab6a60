"""What a batched environment says of itself, found by making a small one: sizes of its requests, feature tables.

With remote runners there is no environment in the process that has to know.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry
from torch import Tensor

from agents.networks import RequestShape


def request_shape_of(env: Any, env_config: Mapping[str, Any]) -> RequestShape:
    """Sizes of an environment's requests, found by asking one.

    Raises:
        ValueError: an environment without a tensor twin.
    """
    base = _probe(env, env_config)
    if not hasattr(base, "reset_tensors"):
        raise ValueError(f"the batched path needs an environment with reset_tensors, got {type(base).__name__}")
    shape = RequestShape.of(base.reset_tensors(0), len(base.world.catalogue), base.config.slate_size)
    base.close()
    return shape


def feature_tables(env: Any, env_config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The world's tables whose rows a replay need not keep: user features (U, D), candidate features (N, D)."""
    world = getattr(_probe(env, env_config), "world", None)
    users, catalogue = getattr(world, "users", None), getattr(world, "catalogue", None)
    tables = {}
    if users is not None:
        tables["user_features_BD"] = users.features_UD.cpu()
    if catalogue is not None:
        tables["candidate_features_BCD"] = catalogue.features_ND.cpu()
    return tables


def _probe(env: Any, env_config: Mapping[str, Any]) -> Any:
    """A single environment of the kind that runners make."""
    if isinstance(env, str) and _global_registry.contains(ENV_CREATOR, env):  # Ray's own names of environments
        context = EnvContext({**env_config, "num_envs": 1}, worker_index=0)
        return _global_registry.get(ENV_CREATOR, env)(context).unwrapped
    return gym.make_vec(env, num_envs=1, vectorization_mode="vector_entry_point", **env_config).unwrapped
