"""Any method as an RLlib Algorithm: sample, update, synchronise.

Example:
    A plain RLlib configuration works, with any number of runners and learners:

    >>> from agents.goalrank import GoalRank
    >>> from tests.helpers.list_game import ENV
    >>> config = (
    ...     MethodAlgorithmConfig(GoalRank)
    ...     .environment(ENV)  # usually "recsim_env/Session-v0" with env_config={"world": "runs/worlds/A"}
    ...     .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
    ...     .training(lr=1e-3, group_size=8)
    ... )
    >>> algorithm = config.build_algo()
    >>> results = algorithm.train()
    >>> algorithm.stop()
"""

import dataclasses
from typing import Any

import numpy as np
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
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)

from agents.method import Method, log_columns, make_method, method_class, method_path
from agents.networks import RequestShape
from agents.rllib.cluster import check_gpus
from agents.rllib.env_runner import MethodEnvRunner
from agents.rllib.evaluation import paired_evaluation
from agents.rllib.learner import MethodLearner
from agents.rllib.module import MethodModule
from agents.rllib.probe import feature_tables, request_shape_of
from agents.rllib.refusals import refuse_what_has_no_place
from agents.rllib.replay import Replay
from recsim_env.data.requests import LoggedRequests
from recsim_env.types import ListEvaluator

_OWN = "the method's own"
"""Value of a shared setting that nobody gave."""

_SHARED = ("lr", "grad_clip", "minibatch_size", "num_epochs", "seed", "gamma")
"""Settings that a method and RLlib both have, kept as RLlib's attributes; ``gamma`` only some methods."""

_ATTRIBUTES = {
    *vars(AlgorithmConfig()),
    "method",
    "method_config",
    "request_shape",
    "evaluator",
    "logged",
    "plays_elsewhere",
}
"""Attributes of a configuration that are no settings of a method, whatever a method may call its own."""


class MethodAlgorithmConfig(AlgorithmConfig):  # type: ignore[misc]  # ray is untyped
    """RLlib settings of a training method.

    Args:
        method: the method's class, or its path "module:Class".
    """

    def __init__(self, method: type | str | None = None, algo_class: type | None = None) -> None:
        self.method: str | None = None
        self.method_config: dict[str, Any] = {}
        self.request_shape: RequestShape | None = None
        self.evaluator: ListEvaluator | str | None = None
        self.logged: LoggedRequests | None = None
        self.plays_elsewhere = False
        super().__init__(algo_class=algo_class or MethodAlgorithm)
        self.env_runner_cls = MethodEnvRunner
        self.gym_env_vectorize_mode = "vector_entry_point"
        self.num_env_runners = 0
        self.num_envs_per_env_runner = 64
        self.rollout_fragment_length = 8
        self.sample_timeout_s = 600.0
        self.custom_evaluation_function = paired_evaluation
        self.evaluation_duration = 200
        # A method's error would kill a runner, and RLlib would begin another for ever; a run can be resumed instead.
        self.restart_failed_env_runners = False
        self.shuffle_batch_per_epoch = True
        self.lr = self.grad_clip = self.minibatch_size = self.num_epochs = self.gamma = _OWN
        if method is not None:
            self.training(method=method)

    def __setattr__(self, name: str, value: Any) -> None:
        """Takes a method's setting for what it is: Tune and ``update_from_dict`` set attributes."""
        if name in self._method_fields() - _ATTRIBUTES:
            name, value = "method_config", {**self.method_config, name: value}
        super().__setattr__(name, value)
        if name == "method" and value is not None:  # what was set before the method was known
            for early in (self._method_fields() - _ATTRIBUTES) & vars(self).keys():
                setattr(self, early, self.__dict__.pop(early))

    def training(
        self,
        *,
        method: type | str | None = None,
        method_config: Any = None,
        request_shape: RequestShape | None = None,
        evaluator: ListEvaluator | str | None = None,
        logged: LoggedRequests | None = None,
        **settings: Any,
    ) -> "MethodAlgorithmConfig":
        """Sets the training options; what is given last counts.

        Args:
            method: the method's class, or its path "module:Class".
            method_config: the method's settings, as its config or as a dict of some of them.
            request_shape: sizes of the environment's requests; found out from the environment by default.
            evaluator: values lists in place of the world's own evaluator: an object with ``score``, or
                "module:Name" of one.
            logged: requests that a method learns from which learns from a log.
            settings: any field of the method's config by name, and RLlib's own training options. Where both have one
                of a name (lr, grad_clip, minibatch_size, num_epochs), it is the same setting.

        Raises:
            ValueError: a setting that neither the method nor RLlib has, or one that is given two values at once.
        """
        if method is not None:
            self.method = method if isinstance(method, str) else method_path(method)
        given = _given(method_config) if dataclasses.is_dataclass(method_config) else dict(method_config or {})
        for name in given.keys() & settings.keys() & set(_SHARED):
            if given[name] != settings[name]:
                raise ValueError(
                    f"{name} was given twice: {given[name]!r} in method_config, {settings[name]!r} beside it; give one"
                )
        own = given | {name: settings.pop(name) for name in self._method_fields() & settings.keys()}
        for name in own.keys() & set(_SHARED):
            setattr(self, name, own.pop(name))
        self.method_config = {**self.method_config, **own}
        self.request_shape = request_shape or self.request_shape
        self.evaluator = evaluator if evaluator is not None else self.evaluator
        self.logged = logged if logged is not None else self.logged
        try:
            super().training(**settings)
        except TypeError as error:
            raise ValueError(f"{error}; settings of the method: {sorted(self._method_fields())}") from error
        return self

    def make_method(self) -> Method:
        """The method with all settings as they will be used.

        Raises:
            ValueError: no method, unknown or contradictory settings.
        """
        if self.method is None:
            raise ValueError("no method to train: call .training(method=...), such as 'agents.goalrank:GoalRank'")
        given = {name: getattr(self, name) for name in _SHARED if getattr(self, name) != _OWN}
        if given["seed"] is None:  # as RLlib says that nobody gave one
            del given["seed"]
        for name in given.keys() - self._method_fields():
            raise ValueError(f"{self.method} has no {name}, so that {name}={given[name]!r} would have no effect")
        if isinstance(given.get("lr"), list):  # a schedule: its highest rate stands for it
            given["lr"] = max(rate for _, rate in given["lr"])
        return make_method(self.method, {**self.method_config, **given})

    def get_default_learner_class(self) -> type:
        """The learner."""
        return MethodLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The module, built for the environment's requests."""
        method = self.make_method()
        model_config = {
            "method": self.method,
            "config": dataclasses.asdict(method.config),
            "shape": dataclasses.asdict(self.request_shape or request_shape_of(self.env, self.env_config)),
        }
        return RLModuleSpec(module_class=MethodModule, model_config=model_config)

    def validate(self) -> None:
        """Checks the settings and writes them down as they will be used; refuses what would have no effect."""
        method = self._settle()
        if not self.in_evaluation:  # RLlib sets some of these itself for evaluation
            refuse_what_has_no_place(self, method)
        super().validate()
        check_gpus(self)
        if not (self.explore or self.in_evaluation or method.data == "log"):
            raise ValueError("explore=False would leave nothing to learn from; evaluate() does not explore as it is")
        if method.data == "log" and self.logged is None:
            raise ValueError(f"{self.method} learns from a log: give .training(logged=...), a LoggedRequests")

    def build_learner(self, **kwargs: Any) -> Any:
        """A learner by itself, as tests and custom loops use it."""
        self._settle()
        return super().build_learner(**kwargs)

    def get_evaluation_config_object(self) -> "MethodAlgorithmConfig | None":
        """RLlib's, which also remembers whether another environment is to be played."""
        found: MethodAlgorithmConfig | None = super().get_evaluation_config_object()
        if found is not None:
            given = self.evaluation_config or {}
            found.plays_elsewhere = isinstance(given, AlgorithmConfig) or bool({"env", "env_config"} & given.keys())
        return found

    def _settle(self) -> Method:
        """The method; its settings are written down where RLlib looks for them."""
        method = self.make_method()
        for name in _SHARED:
            if hasattr(method.config, name) and not isinstance(getattr(self, name), list):
                setattr(self, name, getattr(method.config, name))
        self.request_shape = self.request_shape or request_shape_of(self.env, self.env_config)
        return method

    def rows_per_round(self) -> int:
        """Steps that all environments of all runners take in a round, those that only reset a session included.

        Raises:
            ValueError: a length that is no number.
        """
        length = self.rollout_fragment_length
        if not isinstance(length, int):
            raise ValueError(f"rollout_fragment_length must be a number of steps, got {length!r}")
        return length * self.num_envs_per_env_runner * max(self.num_env_runners, 1)

    def _method_fields(self) -> set[str]:
        method = vars(self).get("method")
        if method is None:
            return set()
        kind: Any = method_class(method)
        return {field.name for field in dataclasses.fields(kind.Config)}


class MethodAlgorithm(Algorithm):  # type: ignore[misc]  # ray is untyped
    """Samples with every runner, updates the learners, sends the weights back."""

    @classmethod
    def get_default_config(cls) -> MethodAlgorithmConfig:
        """The default settings; a method has to be named."""
        return MethodAlgorithmConfig()

    def setup(self, config: AlgorithmConfig) -> None:
        """Builds runners, learners and, where the method needs one, the replay."""
        super().setup(config)
        self._method = self.config.make_method()
        self._logged = self.config.logged
        if self._logged is not None and hasattr(self._method, "prepare_log"):
            self._logged = self._method.prepare_log(self._logged)
        self._replay: Replay | None = None
        if self._method.data == "replay":
            tables = feature_tables(self.config.env, self.config.env_config)
            self._replay = Replay(self._method.config.replay_size, tables)

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: AlgorithmConfig) -> bool:
        """Also where another environment is to be played: the samplers play theirs."""
        return bool(super()._should_create_evaluation_env_runners(eval_config) or eval_config.plays_elsewhere)

    def training_step(self) -> None:
        """One round."""
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            batch = self._logged_batch() if self._method.data == "log" else self._sample()
        if not _num_rows(batch):  # every runner is down, or all steps of the round only reset a session
            return
        if self._replay is not None:
            settings = self._method.config
            self._replay.add(batch)
            if len(self._replay) < max(settings.replay_warmup, settings.minibatch_size):
                return
            drawn = settings.updates_per_round * settings.minibatch_size * max(self.config.num_learners, 1)
            batch = {name: c.numpy() for name, c in self._replay.draw(drawn, self._round_generator()).items()}
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            results = self._update(batch)
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self.env_runner_group.sync_weights(
                from_worker_or_learner_group=self.learner_group,
                policies=set(results[0]) - {ALL_MODULES},
                inference_only=True,
            )

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state, and the replay."""
        state: dict[str, Any] = super().get_state(*args, **kwargs)
        return state if self._replay is None else {**state, "replay": self._replay.state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over a state."""
        super().set_state(state)
        if self._replay is not None and "replay" in state:
            self._replay.restore(state["replay"])

    def _update(self, batch: dict[str, np.ndarray]) -> list[Any]:
        config, num_rows = self.config, _num_rows(batch)
        # Learners whose shards hold different numbers of minibatches would wait for each other for ever.
        per_epoch = num_rows // (max(config.num_learners, 1) * config.minibatch_size)
        sampled = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0)
        if self._method.data == "log":  # schedules count rows of the log, for nothing is played
            sampled = self.iteration * config.rows_per_round()
        results: list[Any] = self.learner_group.update(
            batch=MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(batch)}, env_steps=num_rows),
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: sampled},
            num_epochs=config.num_epochs,
            minibatch_size=config.minibatch_size,
            num_total_minibatches=config.num_epochs * max(per_epoch, 1),
            shuffle_batch_per_epoch=True,
        )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        return results

    def _sample(self) -> dict[str, np.ndarray]:
        answers = self.env_runner_group.foreach_env_runner(
            lambda runner: (runner.sample(), runner.get_metrics()),
            local_env_runner=self.config.num_env_runners == 0,
            timeout_seconds=self.config.sample_timeout_s,
        )
        if not answers:
            return {}
        batches, metrics = zip(*answers, strict=True)
        self.metrics.aggregate(list(metrics), key=ENV_RUNNER_RESULTS)
        return self._shuffled({name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]})

    def _logged_batch(self) -> dict[str, np.ndarray]:
        """As many logged requests as a round would have sampled, all of one slate size and candidate count."""
        logged = self._logged
        chunks = logged.batch_indices(self.config.rows_per_round(), self._round_generator())
        columns = log_columns(self._method, logged.batch(max(chunks[:8], key=len)))
        return self._shuffled({name: column.numpy() for name, column in columns.items()})

    def _round_generator(self) -> torch.Generator:
        """Draws of this round: a resumed run goes on with those of the rounds to come."""
        entropy = np.random.SeedSequence((self._method.config.seed, self.iteration))
        return torch.Generator().manual_seed(int(entropy.generate_state(1)[0]))

    def _shuffled(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # Rows come in the order of time; minibatches and shards should be alike.
        order = np.random.default_rng((self.config.seed or 0, self.iteration)).permutation(_num_rows(columns))
        return {name: column[order] for name, column in columns.items()}


def _num_rows(batch: dict[str, np.ndarray]) -> int:
    return len(next(iter(batch.values()), ()))


def _given(config: Any) -> dict[str, Any]:
    """The fields of a whole config; those that RLlib has too only where they differ from the default.

    A default of these says nothing: RLlib's own setting, given before or after, is what somebody chose.
    """
    default = type(config)()
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: v for name, v in fields.items() if name not in _SHARED or v != getattr(default, name)}
