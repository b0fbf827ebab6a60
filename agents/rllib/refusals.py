"""What RLlib lets one set and the batched path has no place for: refused aloud, because it would change nothing."""

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback

from agents.method import Method

_NO_EPISODES = (
    "it moves tensors and no episodes; change what the policy sees in its network, or use RLlib's own PPO, SAC or DQN "
    "on the same environment"
)
_NO_ACTIONS = "it shows slates and takes rewards as they are; env_config sets the reward"
_NETWORK = "the method builds its network; give the method's own settings"
_NO_PLACE = {
    "env_to_module_connector": _NO_EPISODES,
    "module_to_env_connector": _NO_EPISODES,
    "learner_connector": _NO_EPISODES,
    "model": _NETWORK,
    "model_config": _NETWORK,
    "optimizer": "the method names its optimisers; give lr",
    "shuffle_batch_per_epoch": "every pass is shuffled",
    "batch_mode": "a batch holds steps, whether or not their sessions have ended",
    "train_batch_size": "num_envs_per_env_runner and rollout_fragment_length say what a round samples",
    "observation_filter": _NO_EPISODES,
    "clip_rewards": _NO_ACTIONS,
    "clip_actions": _NO_ACTIONS,
    "normalize_actions": _NO_ACTIONS,
    "input_": "give .training(logged=...) to a method that learns from a log",
}
"""RLlib's settings that would change nothing here, and why."""

_UNCALLED = ("on_episode_created", "on_episode_start", "on_episode_step")
"""Callbacks that the batched path has no place for: it has no episodes while they run."""


def refuse_what_has_no_place(config: AlgorithmConfig, method: Method) -> None:
    """Raises a ValueError that names a setting without effect and says why, for a MethodAlgorithmConfig."""
    mine, default = vars(config), vars(type(config)())
    for name, why in _NO_PLACE.items():
        attribute = name if name in default else f"_{name}"
        if mine[attribute] != default[attribute]:
            raise ValueError(f"{name} has no place in the batched path: {why}")
    if method.data == "replay" and method.config.num_epochs != 1:
        raise ValueError(
            f"num_epochs={method.config.num_epochs} would have no effect on what learns from a replay; "
            "updates_per_round says how many minibatches are drawn"
        )
    kinds = config.callbacks_class if isinstance(config.callbacks_class, list) else [config.callbacks_class]
    for name in _UNCALLED:
        overridden = any(getattr(kind, name) is not getattr(RLlibCallback, name) for kind in kinds)
        if overridden or mine[f"callbacks_{name}"]:
            raise ValueError(
                f"{name} would never be called: sessions run as batched tensors and exist for callbacks when they "
                "end; use on_episode_end, on_sample_end or on_train_result"
            )
    asked, per_round = config._train_batch_size_per_learner, config.rows_per_round()
    if asked is not None and asked * max(config.num_learners, 1) != per_round:
        raise ValueError(
            f"train_batch_size_per_learner={asked} contradicts what a round samples: {per_round} rows from "
            f"num_envs_per_env_runner={config.num_envs_per_env_runner}, rollout_fragment_length="
            f"{config.rollout_fragment_length} and num_env_runners={config.num_env_runners}; leave it out"
        )
