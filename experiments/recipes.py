"""Named runs: each recipe is a function that returns a full configuration.

``python -m experiments.train <recipe> [--field value]`` runs one; every field can be overridden. A method without a
recipe runs by its class path, ``python -m experiments.train my_module:MyMethod``.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agents.goalrank import GoalRankConfig
from agents.list_policy import ListPolicyConfig, sized
from agents.method import Method, MethodConfig, make_method, method_class, method_path
from agents.rerankers.log_methods import LOG_METHODS, LogMethodName, log_method
from agents.rl.behaviour_cloning import BehaviourCloningConfig
from agents.rl.ppo import PPOConfig
from agents.rl.td3 import TD3Config
from recsim_env.plugins import nearest

REQUEST_ENV = "recsim_env:recsim_env/Request-v0"


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """One training run of a method through RLlib."""

    method: str
    """The method's class path, "module:Class"."""
    config: MethodConfig
    """The method's settings."""
    size: Literal["1k", "10k", "100k", "1m", "10m", "100m"] | None = None
    """Number of parameters of a list policy: replaces width, layers, heads and embedding, and adapts the learning
    rate."""
    env: str = "recsim_env:recsim_env/Session-v0"
    """Environment id, with the module that registers it."""
    world: str = "runs/worlds/A"
    """World folder, or the name of a known world."""
    log: Path | None = None
    """For methods that learn from a log: the log that the world was built from."""
    evaluator: str | None = None
    """Values lists in place of the world's own evaluator: "module:Name"."""
    iterations: int = 120
    """Rounds of sampling and updating; a resumed run does what is missing."""
    num_envs: int = 64
    """Sessions stepped together by each runner."""
    steps_per_iteration: int = 8
    """Requests of each session between updates."""
    checkpoint_every: int = 20
    """Rounds between checkpoints."""
    num_env_runners: int = 0
    """Sampling processes; 0 samples in this one."""
    num_learners: int = 0
    """Learning processes; 0 learns in this one."""
    gpus_per_learner: float = 0
    """GPUs of each learner."""
    gpus_per_env_runner: float = 0
    """GPUs of each sampling process, of which there must be one at least."""
    device: str = "cpu"
    """Where the simulated users live in each sampling process: "cpu" or "cuda"."""
    learner_class: str | None = None
    """A learner class of your own, "module:Class"; a subclass of ``agents.rllib.learner:MethodLearner``."""
    module_class: str | None = None
    """An RLModule class of your own, "module:Class"; a subclass of ``agents.rllib.module:MethodModule``."""
    address: str | None = None
    """A running Ray cluster to join: its address, or "auto"."""
    run_dir: Path = Path("runs/train")
    """Checkpoints, TensorBoard events and the exported policy."""
    json: Path | None = None
    """Also write the outcome here."""

    def make_method(self) -> Method:
        """The method, at its size.

        Raises:
            ValueError: a size for a method that has no list policy.
        """
        config = self.config
        if self.size is not None:
            if not isinstance(config, ListPolicyConfig):
                raise ValueError(f"size {self.size!r}: {self.method} has no list policy; give its own settings instead")
            config = sized(config, self.size)
        return make_method(self.method, dataclasses.asdict(config))


def _goalrank(name: str, **settings: Any) -> TrainRun:
    return TrainRun(method="agents.goalrank:GoalRank", config=GoalRankConfig(**settings), run_dir=Path("runs") / name)


def goalrank() -> TrainRun:
    """GoalRank as published: cross-entropy to the group-relative reference, in whole sessions."""
    return _goalrank("goalrank")


def goalrank_request() -> TrainRun:
    """The same in single requests."""
    return dataclasses.replace(_goalrank("goalrank-request"), env=REQUEST_ENV)


def goalrank_grpo() -> TrainRun:
    """The clipped policy gradient on the same groups: the comparison that the paper lacks."""
    return _goalrank("goalrank-grpo", objective="grpo")


def goalrank_one_softmax() -> TrainRun:
    """One softmax over the candidates with its exact Plackett-Luce probability."""
    return _goalrank("goalrank-one-softmax", decoder="one_softmax")


def goalrank_warm() -> TrainRun:
    """Half of each group from auxiliary heuristics during the first 5,000 requests."""
    return _goalrank("goalrank-warm", auxiliary_share=0.5)


def goalrank_prm() -> TrainRun:
    """PRM's network: self-attention over the candidates and their initial ranks, one softmax."""
    return _goalrank("goalrank-prm", decoder="one_softmax", initial_ranks=50)


def goalrank_setrank() -> TrainRun:
    """SetRank's network: induced self-attention, one softmax."""
    return _goalrank("goalrank-setrank", decoder="one_softmax", mixing="induced")


def goalrank_nar4rec() -> TrainRun:
    """NAR4Rec's network: candidates matched with places, all places at once."""
    return _goalrank("goalrank-nar4rec", decoder="matching")


def ppo() -> TrainRun:
    """PPO on scores: Plackett-Luce slates, returns over the session."""
    return TrainRun(method="agents.rl.ppo:PPO", config=PPOConfig(), run_dir=Path("runs/ppo"))


def td3() -> TrainRun:
    """TD3 on scores, from a replay."""
    return TrainRun(method="agents.rl.td3:TD3", config=TD3Config(), run_dir=Path("runs/td3"))


def behaviour_cloning() -> TrainRun:
    """The log's own slates, place by place: next-item prediction, no world asked (``--log``)."""
    return TrainRun(
        method="agents.rl.behaviour_cloning:BehaviourCloning",
        config=BehaviourCloningConfig(),
        run_dir=Path("runs/behaviour-cloning"),
    )


def _from_slates(name: LogMethodName) -> Callable[[], TrainRun]:
    def run() -> TrainRun:
        method = log_method(name)
        return TrainRun(method=method_path(method), config=method.config, run_dir=Path("runs") / name)

    run.__name__, run.__doc__ = name, f"{name} fitted to logged slates and their candidate lists (``--log``)."
    return run


RECIPES: dict[str, Callable[[], TrainRun]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        goalrank, goalrank_request, goalrank_grpo, goalrank_one_softmax, goalrank_warm, goalrank_prm, goalrank_setrank,
        goalrank_nar4rec, ppo, td3, behaviour_cloning, *map(_from_slates, LOG_METHODS),
    )
}  # fmt: skip
"""Recipes by name."""


def recipe(name: str) -> TrainRun:
    """A named recipe, or a run of the method behind a class path with its default settings.

    Raises:
        ValueError: neither, with the nearest name.
    """
    if name in RECIPES:
        return RECIPES[name]()
    if ":" in name:
        kind: Any = method_class(name)
        try:
            config = kind.Config()
        except TypeError as error:
            raise ValueError(f"every setting of a method needs a default: {error}") from error
        return TrainRun(method=name, config=config, run_dir=Path("runs") / name.partition(":")[2].lower())
    raise ValueError(
        f"no recipe {name!r}{nearest(name, RECIPES)}: give one of {sorted(RECIPES)}, or a method as module:Class"
    )
