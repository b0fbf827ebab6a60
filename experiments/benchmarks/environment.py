"""Requests per CPU-second of the simulator and its faces, and what each size costs.

Keys: ``requests_per_cpu_second`` (by batch size: candidates, predictor, response, leaving and state update),
``core_requests_per_cpu_second`` (slates given, nothing retrieved or predicted), ``face_requests_per_cpu_second``
(``RecVectorEnv.step``, at 1 ``RecEnv.step``), ``step_over_forward`` (core step over the response model's forward on
the same places), ``reset_over_step``, ``bytes_per_session``, ``cost`` (microseconds per request as B, C, K, H or N
varies), ``peers``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.benchmarks.timing import Player, microseconds
from recsim_env import RecEnv, RecVectorEnv, SessionState, Simulator, World
from recsim_env.provenance import stamp
from recsim_env.types import NO_ITEM
from reward_models.recommender.retrieval import TwoTowerCandidates

BATCHES = (1, 64, 256, 1024)
SIZES = {"num_candidates": (20, 50, 100, 200), "slate_size": (3, 6, 12), "history_length": (20, 50, 100, 200)}
"""Sizes whose cost is measured, each while the others keep their defaults."""


class FirstItems(TwoTowerCandidates):
    """A candidate source over the first items of its catalogue alone."""

    def __init__(self, source: TwoTowerCandidates, num_items: int):
        tensors = source.tensors()
        super().__init__(source.config(), {**tensors, "items_Nd": tensors["items_Nd"][:num_items]})
        self.num_items = num_items

    def retrieve(
        self, state_BS: Tensor, shown_BM: Tensor, uniform_B: Tensor, num_candidates: int
    ) -> tuple[Tensor, Tensor]:
        """Candidates among the first items."""
        known_BM = shown_BM.masked_fill(shown_BM >= self.num_items, NO_ITEM)
        return super().retrieve(state_BS, known_BM, uniform_B, num_candidates)


def measure_env(world: World, seconds: float) -> dict[str, Any]:
    """All figures of one world, measured in this process."""
    report: dict[str, Any] = {
        "world": world.name,
        "items": len(world.catalogue),
        "sizes": {"candidates": 50, "slate": 6, "history": 100, "signals": len(world.signals)},
        **stamp(),
    }
    simulator, found = Simulator(world), {}
    for batch in tqdm(BATCHES, desc="batch sizes", disable=None):
        player = Player(simulator, batch)
        full_us = microseconds(player, seconds)
        core_us = microseconds(Player(simulator, batch, reads=False), seconds)
        reset_us = microseconds(partial(_restart, simulator, player.state), seconds / 2)
        found[batch] = {
            "requests_per_cpu_second": round(1e6 / full_us),
            "core_requests_per_cpu_second": round(1e6 / core_us),
            "face_requests_per_cpu_second": round(1e6 / _face_us(world, batch, seconds)),
            "step_over_forward": round(core_us / microseconds(_forward(simulator, player.state), seconds / 2), 2),
            "reset_over_step": round(reset_us / full_us, 2),
        }
        report["bytes_per_session"] = player.state.bytes_per_session
    for name in found[BATCHES[0]]:
        report[name] = {batch: figures[name] for batch, figures in found.items()}
    return report | {"cost": _costs(world, seconds / 2)}


def _restart(simulator: Simulator, state: SessionState) -> int:
    return simulator.restart(state, torch.ones(state.num_sessions, dtype=torch.bool)).num_sessions


def _forward(simulator: Simulator, state: SessionState) -> Callable[[], int]:
    """The response model alone, on the same B x K places."""
    items_BK = state.request.candidates_BC[:, : simulator.slate_size]
    uniform_BKJ = torch.rand(*items_BK.shape, simulator.world.response.num_draws)
    context_BX, state_BS = state.request.context_BX, state.response_BS

    @torch.no_grad()
    def forward() -> int:
        return len(simulator.world.response.respond(state_BS, context_BX, items_BK, uniform_BKJ))

    return forward


def _face_us(world: World, batch: int, seconds: float) -> float:
    env = RecEnv(world) if batch == 1 else RecVectorEnv(batch, world)
    env.reset(seed=0)
    env.action_space.seed(0)
    action = env.action_space.sample()

    begins = 0  # a vector row that ended begins anew in the next step, which answers no request

    def step() -> int:
        nonlocal begins
        _, _, terminated, truncated, _ = env.step(action)
        if batch == 1:
            if terminated or truncated:
                env.reset()
            return 1
        answered = batch - begins
        begins = int(np.count_nonzero(terminated | truncated))
        return answered

    return microseconds(step, seconds)


def _costs(world: World, seconds: float) -> dict[str, dict[int, float]]:
    """Microseconds per request at batch 256 as one size varies and the others keep their defaults."""

    def cost(batch: int = 256, world: World = world, **sizes: Any) -> float:
        return round(microseconds(Player(Simulator(world, **sizes), batch), seconds), 1)

    costs = {"batch": {batch: cost(batch) for batch in (16, 64, 256, 1024)}}
    for name, values in SIZES.items():
        costs[name] = {value: cost(**dict[str, Any]({name: value})) for value in values}
    source = world.candidates
    if isinstance(source, TwoTowerCandidates):
        sizes = (1000, 2000, 4000, len(world.catalogue))
        costs["num_items"] = {n: cost(world=world.replace(candidates=FirstItems(source, n))) for n in sizes}
    return costs
