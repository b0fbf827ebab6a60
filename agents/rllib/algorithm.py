"""GoalRank as an RLlib Algorithm: sample, update, synchronise.

Example:
    A plain RLlib configuration works, with any number of runners and learners::

        config = (
            GoalRankAlgorithmConfig()
            .environment("recsim_env:recsim_env/Session-v0", env_config={"world": "short_video"})
            .env_runners(num_env_runners=0, num_envs_per_env_runner=64)
            .training(goalrank=GoalRankConfig(), request_shape=shape)
        )
        algorithm = config.build_algo()
        algorithm.train()
"""

import dataclasses
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import ALL_MODULES, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)

from agents.goalrank import GoalRankConfig
from agents.networks import RequestShape
from agents.rllib.env_runner import GoalRankEnvRunner
from agents.rllib.learner import GoalRankLearner
from agents.rllib.module import GoalRankModule
from recsim_env.types import ListEvaluator


class GoalRankAlgorithmConfig(AlgorithmConfig):  # type: ignore[misc]  # ray is untyped
    """RLlib settings of GoalRank."""

    def __init__(self, algo_class: type | None = None) -> None:
        self.request_shape: RequestShape | None = None
        self.evaluator: ListEvaluator | str | None = None
        super().__init__(algo_class=algo_class or GoalRank)
        self.env_runner_cls = GoalRankEnvRunner
        self.gym_env_vectorize_mode = "vector_entry_point"
        self.num_env_runners = 0
        self.num_envs_per_env_runner = 64
        self.rollout_fragment_length = 8
        self._use_goalrank(GoalRankConfig())

    def training(
        self,
        *,
        goalrank: GoalRankConfig | None = None,
        request_shape: RequestShape | None = None,
        evaluator: ListEvaluator | str | None = None,
        **kwargs: Any,
    ) -> "GoalRankAlgorithmConfig":
        """Sets the training options.

        Args:
            goalrank: settings of the method; its learning rate, gradient clip, minibatch size, epochs and
                seed become RLlib's.
            request_shape: sizes of the environment's requests.
            evaluator: values lists in place of the world's own evaluator: an object with ``score``, or
                "module:Name" of one.
            kwargs: RLlib's own training options.
        """
        super().training(**kwargs)
        if goalrank is not None:
            self._use_goalrank(goalrank)
        if request_shape is not None:
            self.request_shape = request_shape
        if evaluator is not None:
            self.evaluator = evaluator
        return self

    def get_default_learner_class(self) -> type:
        """The learner."""
        return GoalRankLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The module, built for ``request_shape``."""
        if self.request_shape is None:
            raise ValueError(
                "GoalRank must know the sizes of a request: call .training(request_shape="
                "RequestShape.of(env.request, len(env.world.catalogue), slate_size))"
            )
        model_config = {
            "config": dataclasses.asdict(self.goalrank),
            "shape": dataclasses.asdict(self.request_shape),
        }
        return RLModuleSpec(module_class=GoalRankModule, model_config=model_config)

    def validate(self) -> None:
        """Checks the settings, and that the GPUs asked for exist."""
        super().validate()
        check_gpus(self)

    def _use_goalrank(self, goalrank: GoalRankConfig) -> None:
        self.goalrank = goalrank
        self.lr, self.grad_clip = goalrank.lr, goalrank.grad_clip
        self.minibatch_size, self.num_epochs = goalrank.minibatch_size, goalrank.num_epochs
        self.seed = goalrank.seed


def check_gpus(config: AlgorithmConfig) -> None:
    """Raises a ValueError if more GPUs are asked for than there are; Ray would wait for them for ever."""
    learners = max(config.num_learners, 1) * config.num_gpus_per_learner
    runners = config.num_env_runners * config.num_gpus_per_env_runner
    wanted = learners + runners
    found = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else torch.cuda.device_count()
    if wanted > found:
        raise ValueError(
            f"asked for {wanted:g} GPUs ({learners:g} for learners, {runners:g} for env runners), found "
            f"{found:g}; lower num_gpus_per_learner, num_learners or num_gpus_per_env_runner"
        )


class GoalRank(Algorithm):  # type: ignore[misc]  # ray is untyped
    """Samples groups with every runner, updates the learners, sends the weights back."""

    @classmethod
    def get_default_config(cls) -> GoalRankAlgorithmConfig:
        """The default settings."""
        return GoalRankAlgorithmConfig()

    def training_step(self) -> None:
        """One round."""
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            batch = self._sample()
        if batch is None:  # every runner is down; RLlib restarts them before the next round
            return
        config = self.config
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            # Learners whose shards hold different numbers of minibatches would wait for each other for ever.
            per_epoch = len(batch) // (max(config.num_learners, 1) * config.minibatch_size)
            results = self.learner_group.update(
                batch=MultiAgentBatch({DEFAULT_MODULE_ID: batch}, env_steps=len(batch)),
                num_epochs=config.num_epochs,
                minibatch_size=config.minibatch_size,
                num_total_minibatches=config.num_epochs * max(per_epoch, 1),
                shuffle_batch_per_epoch=True,
            )
            self.metrics.aggregate(results, key=LEARNER_RESULTS)
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self.env_runner_group.sync_weights(
                from_worker_or_learner_group=self.learner_group,
                policies=set(results[0]) - {ALL_MODULES},
                inference_only=True,
            )

    def _sample(self) -> SampleBatch | None:
        answers = self.env_runner_group.foreach_env_runner(
            lambda runner: (runner.sample(), runner.get_metrics()),
            local_env_runner=self.config.num_env_runners == 0,
            timeout_seconds=self.config.sample_timeout_s,
        )
        if not answers:
            return None
        batches, metrics = zip(*answers, strict=True)
        self.metrics.aggregate(list(metrics), key=ENV_RUNNER_RESULTS)
        columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        # Rows come in the order of time; minibatches and shards should be alike.
        rows = len(next(iter(columns.values())))
        order = np.random.default_rng((self.config.seed or 0, self.iteration)).permutation(rows)
        return SampleBatch({name: column[order] for name, column in columns.items()})
