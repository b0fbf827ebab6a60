"""Paired evaluation: every policy plays the same sessions to their end, in every world.

A session is a seed. All policies meet the same seeds, and addressed noise gives them the same users, the
same luck and the same first candidates, so that their differences are theirs. Nothing is reset on the
way: a batch of sessions shrinks as users leave, until it is empty. Beside what was observed, each shown
list is valued by the recommender's own evaluator and by the world's true expectation; only this module
and oracles may ask for the latter.

What is counted stands in ``session_metrics.py``; this module drives it.

Shape legend: B running sessions, n sessions, K places, F signals, N items, D features, S training seeds.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recsim_env.envs import RecVectorEnv
from recsim_env.policy_checkers import try_policy
from recsim_env.results import Cell, EvaluationResult, FeedbackClass, Row, Verdict, judge
from recsim_env.rewards import Reward
from recsim_env.session_metrics import SessionMetrics
from recsim_env.simulator import SessionState, Simulator
from recsim_env.types import NO_ITEM, Policy
from recsim_env.world import World

__all__ = [
    "Contender",
    "EvaluationResult",
    "EvaluationSettings",
    "Oracle",
    "Row",
    "Verdict",
    "evaluate",
    "judge",
    "true_list_values",
]

Oracle = Callable[[Simulator, SessionState], Tensor]
"""Chooses slates (B, K) with the truth at hand: a reference that no policy has to beat."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A policy with what a result row must say of it."""

    policies: Sequence[Policy] = ()
    """One trained policy for each training seed."""
    oracle: Oracle | None = None
    """Instead of policies: a reference that may look at the truth."""
    feedback: FeedbackClass = "logged"
    """What training saw: "logged" data only, "one slate" for each user state, or "branched" states."""
    world_requests: int = 0
    """Requests that training asked of a world."""
    outside: bool = False
    """The policy chooses from the whole catalogue: item codes below C are no sign of positions."""

    def __post_init__(self) -> None:
        if bool(self.policies) == (self.oracle is not None):
            raise ValueError("a contender needs policies (one for each training seed) or an oracle, not both")
        if self.feedback not in ("logged", "one slate", "branched"):
            raise ValueError(f"feedback must be 'logged', 'one slate' or 'branched', got {self.feedback!r}")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How sessions are played and counted."""

    num_candidates: int | None = None
    """C; None takes the world's own default, here and in the next three."""
    slate_size: int | None = None
    history_length: int | None = None
    max_requests: int | None = None
    """Requests after which a session is truncated."""
    batch_size: int = 1024
    """Sessions played side by side. It changes speed, and the draws of stochastic policies."""
    cold_start_below: int = 20
    """Items with fewer logged impressions are cold."""
    duration_edges: tuple[float, ...] = (7.0, 18.0, 30.0, 60.0, 120.0)
    """Seconds between the duration buckets."""
    true_values: bool = True
    """Whether to ask the world for the expected value of every shown list."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if list(self.duration_edges) != sorted(set(self.duration_edges)):
            raise ValueError(f"duration_edges must rise strictly, got {self.duration_edges}")


def evaluate(
    policies: Mapping[str, Policy | Sequence[Policy] | Contender],
    worlds: Mapping[str, World],
    *,
    num_sessions: int,
    seed: int,
    settings: EvaluationSettings | None = None,
    reward: Reward | None = None,
    logged_impressions_N: Tensor | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Plays every policy in every world on the sessions ``seed .. seed + num_sessions - 1``.

    The same arguments give the same bytes on a CPU. Every policy is tried on a few requests before anything is played
    (``policy_checkers.try_policy``): repeats within a slate are warned of, and counted in ``repeat_share``; positions
    in the place of item codes are refused.

    Args:
        policies: name to a policy, to one policy for each training seed, or to a ``Contender``.
        worlds: name to world; by custom "A", the judges' names and "truth".
        num_sessions: sessions for each policy, world and training seed; at least 2.
        seed: first session seed, at least 0; use seeds that no training has seen.
        settings: sizes and counting rules.
        reward: what ``list_reward`` counts; by default what an environment pays, watch time in seconds.
        logged_impressions_N: int64 impressions of each item in the log; by default those of the users'
            recorded histories. Where there are none, ``cold_start_share`` is left out.
        progress: shows a progress bar on a terminal.

    Raises:
        ValueError: nothing to evaluate, too few sessions, or a policy that ``try_policy`` refuses.
    """
    settings = settings or EvaluationSettings()
    if not policies or not worlds:
        raise ValueError(f"need policies and worlds, got {len(policies)} and {len(worlds)}")
    if num_sessions < 2 or seed < 0:
        raise ValueError(f"need num_sessions >= 2 and seed >= 0, got {num_sessions} and {seed}")
    contenders = {name: _contender(policy) for name, policy in policies.items()}
    envs = {name: _env(world, settings, reward) for name, world in worlds.items()}
    for env in envs.values():
        for name, contender in contenders.items():
            for policy in contender.policies:
                try_policy(policy, env.simulator, name=name, seed=seed, outside=contender.outside)
    runs = sum(max(len(c.policies), 1) for c in contenders.values()) * len(worlds)
    cells: dict[tuple[str, str], Cell] = {}
    with tqdm(total=runs * num_sessions, unit="session", desc="evaluate", disable=None if progress else True) as bar:
        for world_name, env in envs.items():
            counter = _metrics(env, settings, logged_impressions_N)
            for name, contender in contenders.items():
                bar.set_postfix_str(f"{name} in {world_name}")
                tallies = [
                    _play(env.simulator, counter, player, num_sessions, seed, settings.batch_size, bar)
                    for player in _players(name, contender)
                ]
                cells[name, world_name] = _cell(contender, counter, tallies)
    ordered = {(name, world): cells[name, world] for name in contenders for world in worlds}
    return EvaluationResult(
        cells=ordered,
        worlds={
            name: {"declared": world.declared, "provenance": world.provenance, "fidelity": world.fidelity}
            for name, world in worlds.items()
        },
        settings={**dataclasses.asdict(settings), "num_sessions": num_sessions, "seed": seed},
    )


@torch.no_grad()
def true_list_values(simulator: Simulator, state: SessionState, items_BGK: Tensor, at_once: int = 100) -> Tensor:
    """Expected seconds (B, G) of G lists for each current request, by the world itself.

    Args:
        simulator: of the world that judges.
        state: B sessions.
        items_BGK: int64 item codes.
        at_once: requests valued side by side, which bounds memory.
    """
    rows = torch.split(torch.arange(len(items_BGK), device=items_BGK.device), at_once)
    return torch.cat([simulator.expected(state.select(row_R), items_BGK[row_R]).watch_time_BG for row_R in rows])


@dataclass(frozen=True)
class _Player:
    """One policy of one training seed, or an oracle."""

    name: str
    policy: Policy | None = None
    oracle: Oracle | None = None

    def choose(self, simulator: Simulator, state: SessionState, generator: torch.Generator) -> Tensor:
        """Slates (B, K) of the simulator's size."""
        if self.oracle is not None:
            items_BK = self.oracle(simulator, state)
        else:
            assert self.policy is not None
            items_BK = self.policy(state.request, generator).items_BK
        wanted = (state.num_sessions, simulator.slate_size)
        if items_BK.shape != wanted:
            raise ValueError(
                f"policy {self.name!r} answered slates of shape {tuple(items_BK.shape)}, need {wanted}; "
                f"build it with slate_size={simulator.slate_size}"
            )
        return items_BK


@dataclass(frozen=True)
class _Tally:
    """What one player was counted for."""

    sums: dict[str, Tensor]
    """Name to float64 (n,), one for each session."""
    totals: dict[str, float]
    """Metrics of all sessions together."""


def _metrics(env: RecVectorEnv, settings: EvaluationSettings, logged_impressions_N: Tensor | None) -> SessionMetrics:
    world = env.world
    if logged_impressions_N is None:
        past_P = world.users.histories.item_P
        logged_impressions_N = torch.bincount(past_P[past_P >= 0], minlength=len(world.catalogue))
    return SessionMetrics(
        env.simulator,
        reward=env.reward,
        logged_impressions_N=logged_impressions_N,
        true_values=settings.true_values,
        duration_edges=settings.duration_edges,
        cold_start_below=settings.cold_start_below,
    )


def _env(world: World, settings: EvaluationSettings, reward: Reward | None) -> RecVectorEnv:
    """Gives the world its sizes and the reward its default; sessions are played by its simulator, of any number."""
    sizes = ("num_candidates", "slate_size", "history_length", "max_requests")
    chosen = {name: getattr(settings, name) for name in sizes if getattr(settings, name) is not None}
    return RecVectorEnv(1, world, reward=reward, device=settings.device, **chosen)


def _contender(policy: Policy | Sequence[Policy] | Contender) -> Contender:
    if isinstance(policy, Contender):
        return policy
    return Contender(policies=tuple(policy) if isinstance(policy, Sequence) else (policy,))


def _players(name: str, contender: Contender) -> list[_Player]:
    if contender.oracle is not None:
        return [_Player(name, oracle=contender.oracle)]
    return [_Player(name, policy=policy) for policy in contender.policies]


@torch.no_grad()
def _play(
    simulator: Simulator,
    counter: SessionMetrics,
    player: _Player,
    num_sessions: int,
    seed: int,
    batch_size: int,
    bar: "tqdm[Any]",
) -> _Tally:
    """Plays all sessions, batch by batch, each to its end."""
    device, places = simulator.device, simulator.slate_size
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(num_sessions, dtype=torch.float64, device=device))
    exposures_N = torch.zeros(len(simulator.world.catalogue), dtype=torch.int64, device=device)
    for begin in range(0, num_sessions, batch_size):
        size = min(batch_size, num_sessions - begin)
        generator = torch.Generator(device).manual_seed(seed + begin)
        state = simulator.start(size, seed + begin)
        row_B = torch.arange(size, device=device)
        watched_nT = row_B.new_full((size, simulator.max_requests * places), NO_ITEM)
        for request_index in range(simulator.max_requests):
            # Draws come from one generator a batch: a stochastic policy's luck depends on who is still there, unlike
            # the users' luck, which is addressed and the same for every policy.
            items_BK = player.choose(simulator, state, generator)
            following, feedback = simulator.step(state, items_BK)
            for name, values_B in counter.of_request(state, items_BK, feedback).items():
                sums[name].index_add_(0, begin + row_B, values_B.to(torch.float64))
            # Only what was seen counts as an exposure or can be repeated: unreached places were shown to nobody.
            columns = slice(request_index * places, (request_index + 1) * places)
            watched_nT[row_B, columns] = items_BK.masked_fill(~feedback.seen_BK, NO_ITEM)
            stays = (~feedback.left_B).nonzero().squeeze(1)
            bar.update(len(row_B) - len(stays))
            row_B, state = row_B[stays], following.select(stays)
            if not len(row_B):
                break
        bar.update(len(row_B))
        stayed_n = torch.zeros(size, dtype=torch.bool, device=device).index_fill_(0, row_B, True)
        for name, values_n in counter.of_sessions(watched_nT, stayed_n).items():
            sums[name][begin : begin + size] = values_n.to(torch.float64)
        exposures_N += torch.bincount(watched_nT[watched_nT != NO_ITEM], minlength=len(exposures_N))
    return _Tally(dict(sums), counter.of_catalogue(exposures_N))


def _cell(contender: Contender, counter: SessionMetrics, tallies: Sequence[_Tally]) -> Cell:
    sums = {name: np.stack([tally.sums[name].cpu().numpy() for tally in tallies]) for name in tallies[0].sums}
    return Cell(
        ratios=counter.ratios(sums),
        totals={name: np.array([tally.totals[name] for tally in tallies]) for name in tallies[0].totals},
        feedback=contender.feedback,
        world_requests=contender.world_requests,
    )
