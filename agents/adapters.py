"""Learners of other libraries as policies, so that whatever plays the environment can be evaluated beside the rest."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from recsim_env.envs import RecVectorEnv
from recsim_env.types import Decision, Request


class ActionPolicy:
    """A policy made of actions: a request becomes an observation, an action of the learner, a slate.

    Args:
        env: an environment of the learner's kind: its observation and action forms and its sizes are used, its sessions
            are not. ``RecVectorEnv(1, world, action="scores", ...)`` will do.
        act: actions for a batch of observations, numpy arrays in and out.

    Example:
        >>> env = RecVectorEnv(1, world="tiny", action="weights")
        >>> sort = ActionPolicy(env, lambda observation: np.tile([1.0, 0.0, 0.0], (len(observation), 1)))
        >>> sort(env.reset_tensors(seed=0), torch.Generator()).items_BK.shape
        torch.Size([1, 3])
    """

    def __init__(self, env: RecVectorEnv, act: Callable[[Any], np.ndarray]) -> None:
        self.env, self.act = env, act

    @torch.no_grad()
    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        """Slates for B requests, as many as there are; the learner's own draws are its own."""
        return Decision(self.env.slates_of(request, self.act(self.env.observe(request))))


def sb3_policy(model: Any, env: RecVectorEnv) -> ActionPolicy:
    """A Stable-Baselines3 model as it is used: deterministic."""
    return ActionPolicy(env, lambda observation: model.predict(observation, deterministic=True)[0])


def rllib_policy(module: Any, env: RecVectorEnv) -> ActionPolicy:
    """An RLModule of stock RLlib as it is used: the likeliest action of its distribution.

    Args:
        module: ``algorithm.get_module()``, or ``RLModule.from_checkpoint(...)``.
        env: see ``ActionPolicy``.
    """

    def act(observation: Any) -> np.ndarray:
        batch = {"obs": _tensors(observation)}
        output = module.forward_inference(batch)
        if "actions" not in output:
            distribution = module.get_inference_action_dist_cls().from_logits(output["action_dist_inputs"])
            output = {"actions": distribution.to_deterministic().sample()}
        actions: np.ndarray = output["actions"].numpy()
        space = env.single_action_space
        return actions.clip(space.low, space.high) if hasattr(space, "low") else actions  # type: ignore[attr-defined]

    return ActionPolicy(env, act)


def _tensors(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {name: torch.from_numpy(array) for name, array in observation.items()}
    return torch.from_numpy(observation)
