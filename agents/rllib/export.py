"""From a trained algorithm to a plain policy that runs without Ray."""

from typing import Any

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID


def learned_network(algorithm: Algorithm, *, greedy: bool = True) -> Any:
    """A copy on the CPU of the network that an algorithm has learned so far, ready to rank.

    ``agents.policies.save_policy`` makes a folder of it.
    """
    path = (COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID)
    state = algorithm.learner_group.get_state(components="/".join(path))
    for part in path:
        state = state[part]
    network: Any = algorithm.config.make_method().network(algorithm.config.request_shape)
    # A module of the user's may hold more than the network.
    weights = {n.removeprefix("network."): torch.tensor(v) for n, v in state.items() if n.startswith("network.")}
    network.load_state_dict(weights)
    if hasattr(network, "greedy"):
        network.greedy = greedy
    return network.eval()
