"""``algo.evaluate()``: the policy as it is used, beside the pointwise sort, on the same sessions of the same world.

Sessions are played to their end, whether short or long; averages over whatever ends first, as samplers log them, lean
towards short ones.
"""

from functools import partial
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EPISODE_LEN_MEAN, EPISODE_RETURN_MEAN, EVALUATION_RESULTS
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from agents.baselines.pointwise_greedy import PointwiseGreedy
from agents.method import as_used
from recsim_env.evaluation import EvaluationSettings, evaluate
from recsim_env.intervals import half_width

FIRST_SEED = 1_000_000_000
"""First seed of evaluation's sessions. Samplers' seeds are hashes: that one of theirs is among these is unlikely."""

_METRICS = {"watch_time": "session_watch_time", "length": "session_length", "return": "session_reward"}


def paired_evaluation(algorithm: Algorithm, eval_runners: Any) -> tuple[dict[str, Any], int, int]:
    """RLlib's ``custom_evaluation_function``, and this path's default.

    Plays ``evaluation_duration`` sessions (``evaluation_duration_unit="episodes"``) with each of the two policies,
    spread over ``evaluation_num_env_runners``; ``evaluation_config`` may name another world.

    Returns:
        Means by name, with ``watch_time_minus_pointwise`` and the ends ``_low`` and ``_high`` of its 95 % interval over
        sessions, which speaks of this training run; and twice the number of requests that these sessions are expected
        to hold.

    Raises:
        ValueError: a duration that is not a number of sessions.
    """
    config = algorithm.evaluation_config or algorithm.config
    duration = algorithm.config.evaluation_duration
    if not isinstance(duration, int) or algorithm.config.evaluation_duration_unit != "episodes" or duration < 2:
        raise ValueError(
            f"the paired evaluation plays whole sessions: give evaluation_duration= a number of at least 2 and "
            f"evaluation_duration_unit='episodes', got {duration!r} {algorithm.config.evaluation_duration_unit}"
        )
    runners = eval_runners or algorithm.env_runner_group
    remote = min(runners.num_healthy_remote_workers(), duration // 2)  # a share is 2 sessions at least
    seed = FIRST_SEED + (config.seed or 0) * duration
    if remote:
        shares = [duration // remote + (number < duration % remote) for number in range(remote)]
        begins = seed + np.cumsum([0, *shares])
        parts = runners.foreach_env_runner(
            [partial(play_paired, num_sessions=n, seed=int(first)) for n, first in zip(shares, begins, strict=False)],
            local_env_runner=False,
            remote_worker_ids=runners.healthy_worker_ids()[:remote],
            timeout_seconds=config.sample_timeout_s,
        )
    else:
        parts = [play_paired(runners.local_env_runner, duration, seed)]
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    difference = values["watch_time"] - values["pointwise_watch_time"]
    half = half_width(difference.mean(keepdims=True), difference[None])
    results: dict[str, Any] = {f"session_{name}": float(values[name].mean()) for name in _METRICS}
    results |= {
        "watch_time_minus_pointwise": float(difference.mean()),
        "watch_time_minus_pointwise_low": float(difference.mean()) - half,
        "watch_time_minus_pointwise_high": float(difference.mean()) + half,
        "num_sessions": len(difference),
        EPISODE_RETURN_MEAN: float(values["return"].mean()),
        EPISODE_LEN_MEAN: float(values["length"].mean()),
    }
    told = MetricsLogger()  # RLlib reads back only what was aggregated from another logger
    told.log_dict(results, window=1)
    algorithm.metrics.aggregate([told.reduce()], key=(EVALUATION_RESULTS, ENV_RUNNER_RESULTS))
    steps = int(values["length"].sum() + values["pointwise_length"].sum())
    return results, steps, steps


def play_paired(runner: Any, num_sessions: int, seed: int) -> dict[str, np.ndarray]:
    """Figures of each session, in a runner's world and with its sizes: the policy's, and the pointwise sort's.

    Raises:
        ValueError: an environment that no simulator plays.
    """
    env = runner.env.unwrapped
    if not hasattr(env, "simulator"):
        raise ValueError(f"the paired evaluation needs a RecVectorEnv, got {type(env).__name__}")
    sizes = ("num_candidates", "slate_size", "history_length", "max_requests")
    settings = EvaluationSettings(
        **{name: getattr(env.config, name) for name in sizes}, device=env.config.device, true_values=False
    )
    with as_used(runner.module.network) as network:
        result = evaluate(
            {"policy": network, "pointwise": PointwiseGreedy(env.config.slate_size)},
            {"world": env.world},
            num_sessions=num_sessions,
            seed=seed,
            settings=settings,
            reward=env.reward,
            progress=False,
        )
    found = {}
    for prefix, policy in (("", "policy"), ("pointwise_", "pointwise")):
        for name, metric in _METRICS.items():
            found[prefix + name] = result.cells[policy, "world"].ratios[metric][0][0]
    return found
