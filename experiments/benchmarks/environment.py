"""Requests per CPU-second of the simulator and its faces, and what each size costs.

Keys: ``requests_per_cpu_second`` (by batch size: candidates, predictor, response, leaving and state update),
``core_requests_per_cpu_second`` (slates given, nothing retrieved or predicted), ``face_requests_per_cpu_second``
(``RecVectorEnv.step``, at 1 ``RecEnv.step``), ``step_over_forward`` (core step over the response model's forward on
the same places), ``reset_over_step``, ``bytes_per_session``, ``cost`` (microseconds per request as B, C, K, H or N
varies), ``peers``.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.benchmarks.timing import microseconds
from recsim_env import RecEnv, RecVectorEnv, SessionState, Simulator, World
from recsim_env.provenance import stamp
from recsim_env.types import NO_ITEM
from reward_models.recommender.retrieval import TwoTowerCandidates

BATCHES = (1, 64, 256, 1024)


class FixedCandidates:
    """A candidate source that costs nothing: measures the core step."""

    def __init__(self, num_items: int):
        self.num_items = num_items

    def start(self, user_B: Tensor) -> Tensor:
        """No state."""
        return torch.zeros(len(user_B), 1)

    def observe(self, state_BS: Tensor, *shown: Tensor) -> Tensor:
        """No state."""
        return state_BS

    def retrieve(
        self, state_BS: Tensor, shown_BM: Tensor, uniform_B: Tensor, num_candidates: int
    ) -> tuple[Tensor, Tensor]:
        """The first items of the catalogue, for everyone."""
        items_C = torch.arange(num_candidates)
        return items_C.expand(len(state_BS), -1), torch.zeros(1, 1).expand(len(state_BS), num_candidates)


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


class NoPrediction:
    """A predictor that costs nothing: measures the core step."""

    def __init__(self, num_signals: int):
        self.num_signals = num_signals

    def start(self, user_B: Tensor) -> Tensor:
        """No state."""
        return torch.zeros(len(user_B), 1)

    def observe(self, state_BS: Tensor, *shown: Tensor) -> Tensor:
        """No state."""
        return state_BS

    def predict(self, state_BS: Tensor, context_BX: Tensor, items_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros."""
        zeros = torch.zeros(1, 1, 1).expand(*items_BC.shape, self.num_signals)
        return zeros, zeros


def measure_env(world: World, seconds: float) -> dict[str, Any]:
    """All figures of one world, measured in this process."""
    core = world.replace(candidates=FixedCandidates(len(world.catalogue)), predictor=NoPrediction(len(world.signals)))
    report: dict[str, Any] = {
        "world": world.name,
        "items": len(world.catalogue),
        "sizes": {"candidates": 50, "slate": 6, "history": 100, "signals": len(world.signals)},
        **stamp(),
    }
    figures = ("requests_per_cpu_second", "core_requests_per_cpu_second", "face_requests_per_cpu_second")
    report |= {name: {} for name in figures} | {"step_over_forward": {}, "reset_over_step": {}}
    for batch in tqdm(BATCHES, desc="batch sizes", disable=None):
        simulator, bare = Simulator(world), Simulator(core)
        player = _Player(simulator, batch)
        full_us = microseconds(player, seconds)
        core_us = microseconds(_Player(bare, batch), seconds)
        state, everyone = player.state, torch.ones(batch, dtype=torch.bool)
        forward_us = microseconds(_forward(simulator, state), seconds / 2)
        reset_us = microseconds(
            lambda: simulator.restart(state, everyone).num_sessions,  # noqa: B023
            seconds / 2,
        )
        report["requests_per_cpu_second"][batch] = round(1e6 / full_us)
        report["core_requests_per_cpu_second"][batch] = round(1e6 / core_us)
        report["face_requests_per_cpu_second"][batch] = round(1e6 / _face_us(world, batch, seconds))
        report["step_over_forward"][batch] = round(core_us / forward_us, 2)
        report["reset_over_step"][batch] = round(reset_us / full_us, 2)
        report["bytes_per_session"] = state.bytes_per_session
    report["cost"] = _costs(world, seconds / 2)
    return report


class _Player:
    """Plays one request of every session: the retriever's first K; where one ended, the next call begins another."""

    def __init__(self, simulator: Simulator, batch: int):
        self.simulator = simulator
        self.state = simulator.start(batch, seed=0)
        self.over_B = torch.zeros(batch, dtype=torch.bool)
        for _ in range(3):  # histories and states are then ordinary
            self()

    def __call__(self) -> int:
        """Returns how many requests were answered."""
        begins_B, items_BK = self.over_B, self.state.request.candidates_BC[:, : self.simulator.slate_size]
        self.state, feedback = self.simulator.step(self.state, items_BK, begins_B)
        is_last_B = self.state.request_index_B >= self.simulator.max_requests
        self.over_B = (feedback.left_B | is_last_B) & ~begins_B
        return len(begins_B) - int(begins_B.sum())


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
    sizes = {
        "num_candidates": (20, 50, 100, 200),
        "slate_size": (3, 6, 12),
        "history_length": (20, 50, 100, 200),
    }
    costs: dict[str, dict[int, float]] = {"batch": {}}
    for batch in (16, 64, 256, 1024):
        costs["batch"][batch] = microseconds(_Player(Simulator(world), batch), seconds)
    for name, values in sizes.items():
        costs[name] = {}
        for value in values:
            simulator = Simulator(world, **dict[str, Any]({name: value}))
            costs[name][value] = microseconds(_Player(simulator, 256), seconds)
    if isinstance(world.candidates, TwoTowerCandidates):
        costs["num_items"] = {}
        for value in (1000, 2000, 4000, len(world.catalogue)):
            some = world.replace(candidates=FirstItems(world.candidates, value))
            costs["num_items"][value] = microseconds(_Player(Simulator(some), 256), seconds)
    return {name: {k: round(v, 1) for k, v in row.items()} for name, row in costs.items()}
