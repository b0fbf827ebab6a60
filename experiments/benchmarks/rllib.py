"""What RLlib's own Python costs per environment step, above the environment's step and the policy's forward.

Our batched runner and RLlib's stock ``SingleAgentEnvRunner`` (on ``vector_entry_point``) sample with the same
ranker in the same environment. The environment, the policy and the evaluator are timed from inside; overhead is
what is left of the sampling call. Stock RLlib is handed flat observations, its cheapest form, and its module
reads the request from the environment directly, so the comparison leans its way.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from agents.goalrank import GoalRank, GoalRankConfig
from agents.list_policy import ListPolicy
from agents.networks import RequestShape
from agents.rllib.algorithm import MethodAlgorithmConfig
from agents.rllib.env_runner import MethodEnvRunner
from recsim_env import RecVectorEnv, World
from recsim_env.provenance import stamp
from recsim_env.slates import positions_of
from recsim_env.types import Decision, ListValue, Request

STEPS = 8
_GOALRANK = GoalRankConfig(group_size=2, layers=1, width=64)


class _Clock:
    """CPU-seconds spent inside wrapped calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - begin

        return timed


class _NoOpinion:
    """An evaluator that costs nothing: the bench is about Python, not models."""

    def score(self, request: Request, items_BGK: torch.Tensor) -> ListValue:
        zeros = torch.zeros(items_BGK.shape[:2])
        return ListValue(zeros, zeros.unsqueeze(-1), zeros)


class _StockModule(TorchRLModule):  # type: ignore[misc]  # ray is untyped
    """The ranker in stock RLlib: it draws one slate for each request of the environment at hand."""

    env: RecVectorEnv
    policy: ListPolicy
    clock: _Clock

    def setup(self) -> None:
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.generator = torch.Generator().manual_seed(0)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        begin = time.process_time()
        decision: Decision = self.policy(self.env.request, self.generator)
        positions_BK = positions_of(decision.items_BK, self.env.request.candidates_BC)
        self.clock.seconds += time.process_time() - begin
        assert decision.log_prob_BK is not None
        return {Columns.ACTIONS: positions_BK, Columns.ACTION_LOGP: decision.log_prob_BK.sum(1)}


def measure_rllib(world: World, num_envs: int, repeats: int = 6) -> dict[str, Any]:
    """Overheads in microseconds per environment step, ours and stock."""
    ours, stock = _ours(world, num_envs, repeats), _stock(world, num_envs, repeats)
    return {
        "num_envs": num_envs,
        "overhead_us": round(ours["overhead"], 1),
        "stock_overhead_us": round(stock["overhead"], 1),
        "overhead_over_stock": round(ours["overhead"] / stock["overhead"], 3),
        "ours_us": {name: round(value, 1) for name, value in ours.items()},
        "stock_us": {name: round(value, 1) for name, value in stock.items()},
        **stamp(),
    }


def _settings(config: AlgorithmConfig, world: World, num_envs: int) -> AlgorithmConfig:
    env_config = {"world": world, "num_candidates": 50, "slate_size": 6}
    return config.environment("recsim_env/Session-v0", env_config=env_config).env_runners(
        num_env_runners=0,
        num_envs_per_env_runner=num_envs,
        rollout_fragment_length=STEPS,
        gym_env_vectorize_mode="vector_entry_point",
    )


def _ours(world: World, num_envs: int, repeats: int) -> dict[str, float]:
    config = _settings(MethodAlgorithmConfig(GoalRank), world, num_envs).training(
        method_config=_GOALRANK, evaluator=_NoOpinion()
    )
    runner = MethodEnvRunner(config=config, worker_index=0, num_workers=0)
    env_clock, policy_clock = _Clock(), _Clock()
    env = runner.env.unwrapped
    env.step_tensors = env_clock.wrap(env.step_tensors)
    policy = runner.module.network
    policy.sample_group = policy_clock.wrap(policy.sample_group)
    return _measure(lambda: runner.sample(), env_clock, policy_clock, num_envs, repeats)


def _stock(world: World, num_envs: int, repeats: int) -> dict[str, float]:
    env_clock, policy_clock = _Clock(), _Clock()
    spec = RLModuleSpec(module_class=_StockModule)
    config = _settings(PPOConfig(), world, num_envs).rl_module(rl_module_spec=spec)
    runner = SingleAgentEnvRunner(config=config, worker_index=0, num_workers=0)
    env = runner.env.unwrapped
    _StockModule.env, _StockModule.clock = env, policy_clock
    _StockModule.policy = ListPolicy(_GOALRANK, RequestShape.of(env.reset_tensors(0), len(world.catalogue), 6))
    env.step = env_clock.wrap(env.step)
    steps = num_envs * STEPS
    return _measure(
        lambda: runner.sample(num_timesteps=steps, random_actions=False), env_clock, policy_clock, num_envs, repeats
    )


def _measure(
    sample: Callable[[], Any], env_clock: _Clock, policy_clock: _Clock, num_envs: int, repeats: int
) -> dict[str, float]:
    """Microseconds per environment step of the sampling call with the least overhead."""
    sample()
    found = []
    steps = num_envs * STEPS
    for _ in range(repeats):
        env_clock.seconds = policy_clock.seconds = 0.0
        begin = time.process_time()
        sample()
        total = time.process_time() - begin
        inside = {"env": env_clock.seconds, "policy": policy_clock.seconds}
        found.append({"overhead": total - sum(inside.values()), **inside, "total": total})
    best = min(found, key=lambda row: row["overhead"])
    return {name: seconds / steps * 1e6 for name, seconds in best.items()}
