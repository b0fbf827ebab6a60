"""Speed, always as CPU-seconds of one process and as ratios measured in one run.

    python -m experiments.benchmark env   [--world FOLDER] [--json PATH] [--peers]
    python -m experiments.benchmark rllib [--world FOLDER] [--json PATH]
    python -m experiments.benchmark rerankers --world FOLDER [--json PATH]
    python -m experiments.benchmark gpu [--world FOLDER] [--json PATH]

Figures are CPU-seconds over all threads that the environment gives (``OMP_NUM_THREADS``; ``make bench`` gives one, as
the published figures have it), and how many these were stands beside them. What is measured, and the keys of the JSON,
stand in ``experiments.benchmarks``, one file for each subject.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments.command import run_command
from experiments.tables.runs import check_publishable, publish_json
from recsim_env.known_worlds.names import resolve_world


@dataclass(frozen=True, kw_only=True)
class Env:
    """Requests per CPU-second of the simulator and its faces."""

    world: str = "short_video"
    """A world folder or the name of a known world."""
    json: Path | None = None
    """Also write the figures here."""
    peers: bool = False
    """Also run SARDINE and RecSim, each in a virtual environment of its own."""
    seconds: float = 2.0
    """CPU-seconds spent on each figure."""

    def run(self) -> dict[str, Any]:
        """Measures and returns every figure."""
        from experiments.benchmarks.environment import measure_env
        from experiments.benchmarks.peers import measure_peers

        report = measure_env(resolve_world(self.world), self.seconds)
        return report | ({"peers": measure_peers()} if self.peers else {})


@dataclass(frozen=True, kw_only=True)
class Rllib:
    """What RLlib's Python costs above the environment and the policy, ours and stock."""

    world: str = "short_video"
    """A world folder or the name of a known world."""
    json: Path | None = None
    """Also write the figures here."""
    num_envs: int = 256
    """Sessions stepped side by side."""

    def run(self) -> dict[str, Any]:
        """Measures and returns every figure."""
        from experiments.benchmarks.rllib import measure_rllib  # imports ray

        return measure_rllib(resolve_world(self.world), self.num_envs)


@dataclass(frozen=True, kw_only=True)
class Rerankers:
    """What one list costs and what k lists cost, by generator and method."""

    world: str
    """A world folder; it must hold a list evaluator."""
    json: Path | None = None
    """Also write the figures here."""
    seconds: float = 2.0
    """CPU-seconds spent on each figure."""

    def run(self) -> dict[str, Any]:
        """Measures and returns every figure."""
        from experiments.benchmarks.rerankers import measure_rerankers

        return measure_rerankers(resolve_world(self.world), self.seconds)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """CPU against GPU: whether they agree, and how fast each is."""

    world: Path | None = None
    """A world folder; a small world is fitted by default."""
    json: Path | None = None
    """Also write the figures here."""
    device: str = "cuda"
    """What is compared with the CPU."""
    quick: bool = False
    """Small batches and short windows, to try it."""

    def run(self) -> dict[str, Any]:
        """Measures and returns every figure."""
        from experiments.benchmarks.gpu import measure

        return measure(self.world, self.device, self.quick)


def main(command: Env | Rllib | Rerankers | Gpu) -> None:
    """Runs one benchmark and prints it."""
    if command.json:
        check_publishable(command.json)
    report = command.run()
    for key, value in report.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, figure in value.items():
                print(f"  {name}: {figure}")
        else:
            print(f"{key}: {value}")
    if command.json:
        publish_json(command.json, report)


if __name__ == "__main__":
    run_command(main, lambda: tyro.cli(Env | Rllib | Rerankers | Gpu, description=__doc__))
