"""From a trained algorithm to a plain policy that runs without Ray."""

from pathlib import Path

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule

from agents.goalrank import GoalRankPolicy
from agents.rllib.module import GoalRankModule


def policy_of(algorithm: Algorithm, *, greedy: bool = True) -> GoalRankPolicy:
    """A copy of the policy that an algorithm has learned so far, on the CPU."""
    path = (COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID)
    state = algorithm.learner_group.get_state(components="/".join(path), inference_only=True)
    for part in path:
        state = state[part]
    policy = GoalRankPolicy(algorithm.config.goalrank, algorithm.config.request_shape, greedy=greedy)
    policy.load_state_dict({name.removeprefix("policy."): torch.tensor(value) for name, value in state.items()})
    return policy.eval()


def policy_of_checkpoint(folder: str | Path, *, greedy: bool = True) -> GoalRankPolicy:
    """The policy inside a checkpoint folder; needs no running Ray.

    Checkpoints are pickles: open only those you trust.

    Raises:
        ValueError: the folder is no checkpoint of GoalRank.
    """
    inside = Path(folder) / "learner_group" / COMPONENT_LEARNER / COMPONENT_RL_MODULE / DEFAULT_MODULE_ID
    if not inside.is_dir():
        raise ValueError(f"{folder} is not a checkpoint of an algorithm: it has no {inside.relative_to(folder)}")
    module = RLModule.from_checkpoint(inside)
    if not isinstance(module, GoalRankModule):
        raise ValueError(f"{folder} holds a {type(module).__name__}, need a GoalRankModule")
    policy: GoalRankPolicy = module.policy.cpu().eval()
    policy.greedy = greedy
    return policy
