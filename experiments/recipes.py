"""Named runs: a table of methods with their settings.

``python -m experiments.train <recipe> [--field value]`` runs one; every field can be overridden. A method without a
recipe runs by its class path, ``python -m experiments.train my_module:MyMethod``.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from agents.list_policy import ListPolicyConfig, sized
from agents.method import Method, MethodConfig, make_method, method_class, method_path
from agents.rerankers.log_methods import LOG_METHODS, log_method
from recsim_env.plugins import nearest

SESSION_ENV = "recsim_env:recsim_env/Session-v0"
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
    env: str = SESSION_ENV
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


class Recipe(NamedTuple):
    """A row of the table."""

    summary: str
    method: str
    """Class path."""
    settings: dict[str, Any]
    """Those that differ from the method's defaults."""
    env: str = SESSION_ENV


_GOALRANK = "agents.goalrank:GoalRank"
_SINGLE: dict[str, Any] = {"decoder": "one_softmax"}

RECIPES = {
    "goalrank": Recipe(
        "GoalRank as published: cross-entropy to the group-relative reference, in whole sessions.", _GOALRANK, {}
    ),
    "goalrank-request": Recipe("The same in single requests.", _GOALRANK, {}, env=REQUEST_ENV),
    "goalrank-grpo": Recipe(
        "The clipped policy gradient on the same groups: the comparison that the paper lacks.",
        _GOALRANK,
        {"objective": "grpo"},
    ),
    "goalrank-one-softmax": Recipe(
        "One softmax over the candidates with its exact Plackett-Luce probability.", _GOALRANK, _SINGLE
    ),
    "goalrank-warm": Recipe(
        "Half of each group from auxiliary heuristics during the first 5,000 requests.",
        _GOALRANK,
        {"auxiliary_share": 0.5},
    ),
    "goalrank-prm": Recipe(
        "PRM's network: self-attention over the candidates and their initial ranks, one softmax.",
        _GOALRANK,
        _SINGLE | {"initial_ranks": 50},
    ),
    "goalrank-setrank": Recipe(
        "SetRank's network: induced self-attention, one softmax.", _GOALRANK, _SINGLE | {"mixing": "induced"}
    ),
    "goalrank-nar4rec": Recipe(
        "NAR4Rec's network: candidates matched with places, all places at once.", _GOALRANK, {"decoder": "matching"}
    ),
    "ppo": Recipe("PPO on scores: Plackett-Luce slates, returns over the session.", "agents.rl.ppo:PPO", {}),
    "td3": Recipe("TD3 on scores, from a replay.", "agents.rl.td3:TD3", {}),
    "behaviour-cloning": Recipe(
        "The log's own slates, place by place: next-item prediction, no world asked (--log).",
        "agents.rl.behaviour_cloning:BehaviourCloning",
        {},
    ),
} | {
    name: Recipe(
        f"{name} fitted to logged slates and their candidate lists (--log).",
        method_path(log_method(name)),
        dataclasses.asdict(log_method(name).config),
    )
    for name in LOG_METHODS
}
"""Recipes by name."""


def recipe(name: str) -> TrainRun:
    """A named recipe, or a run of the method behind a class path with its default settings.

    Raises:
        ValueError: neither, with the nearest name.
    """
    if name not in RECIPES and ":" not in name:
        raise ValueError(
            f"no recipe {name!r}{nearest(name, RECIPES)}: give one of {sorted(RECIPES)}, or a method as module:Class"
        )
    found = RECIPES.get(name) or Recipe("", name, {})
    kind: Any = method_class(found.method)
    try:
        config = kind.Config(**found.settings)
    except TypeError as error:
        raise ValueError(f"every setting of a method needs a default: {error}") from error
    folder = Path("runs") / name.rpartition(":")[2].lower()
    return TrainRun(method=found.method, config=config, env=found.env, run_dir=folder)
