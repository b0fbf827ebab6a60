"""Named runs: each recipe is a function that returns a full configuration.

``python -m experiments.train <recipe> [--field value]`` runs one; every field can be overridden.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agents.goalrank import GoalRankConfig, sized

REQUEST_ENV = "recsim_env:recsim_env/Request-v0"


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """One training run of a list ranker through RLlib."""

    goalrank: GoalRankConfig = field(default_factory=GoalRankConfig)
    """The method."""
    size: Literal["1k", "10k", "100k", "1m", "10m", "100m"] | None = None
    """Number of parameters: replaces the network's width, layers, heads and embedding, and adapts the learning rate."""
    env: str = "recsim_env:recsim_env/Session-v0"
    """Environment id, with the module that registers it."""
    world: str = "runs/worlds/A"
    """World folder, or the name of a known world."""
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
    run_dir: Path = Path("runs/train")
    """Checkpoints, TensorBoard events and the exported policy."""
    json: Path | None = None
    """Also write the outcome here."""

    @property
    def settings(self) -> GoalRankConfig:
        """The method, at its size."""
        return sized(self.goalrank, self.size) if self.size else self.goalrank


def goalrank() -> TrainRun:
    """GoalRank as published: cross-entropy to the group-relative reference, in whole sessions."""
    return TrainRun(run_dir=Path("runs/goalrank"))


def goalrank_request() -> TrainRun:
    """The same in single requests."""
    return TrainRun(env=REQUEST_ENV, run_dir=Path("runs/goalrank-request"))


def goalrank_grpo() -> TrainRun:
    """The clipped policy gradient on the same groups: the comparison that the paper lacks."""
    return TrainRun(goalrank=GoalRankConfig(objective="grpo"), run_dir=Path("runs/goalrank-grpo"))


def goalrank_one_softmax() -> TrainRun:
    """One softmax over the candidates with its exact Plackett-Luce probability."""
    return TrainRun(goalrank=GoalRankConfig(decoder="one_softmax"), run_dir=Path("runs/goalrank-one-softmax"))


def goalrank_warm() -> TrainRun:
    """Half of each group from auxiliary heuristics during the first 5,000 requests."""
    return TrainRun(goalrank=GoalRankConfig(auxiliary_share=0.5), run_dir=Path("runs/goalrank-warm"))


def goalrank_prm() -> TrainRun:
    """PRM's network: self-attention over the candidates and their initial ranks, one softmax."""
    config = GoalRankConfig(decoder="one_softmax", initial_ranks=50)
    return TrainRun(goalrank=config, run_dir=Path("runs/goalrank-prm"))


def goalrank_setrank() -> TrainRun:
    """SetRank's network: induced self-attention, one softmax."""
    config = GoalRankConfig(decoder="one_softmax", mixing="induced")
    return TrainRun(goalrank=config, run_dir=Path("runs/goalrank-setrank"))


def goalrank_nar4rec() -> TrainRun:
    """NAR4Rec's network: candidates matched with places, all places at once."""
    return TrainRun(goalrank=GoalRankConfig(decoder="matching"), run_dir=Path("runs/goalrank-nar4rec"))


RECIPES: dict[str, Callable[[], TrainRun]] = {
    "goalrank": goalrank,
    "goalrank-request": goalrank_request,
    "goalrank-grpo": goalrank_grpo,
    "goalrank-one-softmax": goalrank_one_softmax,
    "goalrank-warm": goalrank_warm,
    "goalrank-prm": goalrank_prm,
    "goalrank-setrank": goalrank_setrank,
    "goalrank-nar4rec": goalrank_nar4rec,
}
"""Recipes by name."""
