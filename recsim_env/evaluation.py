"""Paired evaluation: every policy plays the same sessions to their end, in every world.

A session is a seed. All policies meet the same seeds, and addressed noise gives them the same users, the
same luck and the same first candidates, so that their differences are theirs. Nothing is reset on the
way: a batch of sessions shrinks as they end, until it is empty. Beside what was observed, each shown
list is valued by the recommender's own evaluator and by the world's true expectation; only this module
and oracles may ask for the latter.

When users leave is the greatest luck in a session, and the least telling. So by default it is not drawn: every user
stays, and what comes later counts by the chance that this one would still be there, a *survival weight*. It is the
product of the chances to go on, given the feedback as it was drawn: feedback and staying are one event, and the
session goes on from this feedback. That is unbiased for any leave model. Places count by the chance to be reached,
given the feedback before them, times the *expected* feedback: that at a place is independent of what came before it,
given the session and the slate. Against drawn feedback that leaves paired rates (click, long view, watch time per
video) a quarter of their variance, rare signals a twentieth, and session watch time what it was. Against drawn leaving,
session watch time minus the pointwise sort's keeps a hundredth of its variance, at twice the time. Expected feedback is
as right as the world's ``outcomes``: ``checkers.check_expected`` compares them with draws.

What is counted stands in ``session_metrics.py``; this module drives it.

Shape legend: B running sessions, n sessions, K places, F signals, N items, D features, S training seeds.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recsim_env.envs import RecVectorEnv
from recsim_env.leaving import reached
from recsim_env.policy_checkers import try_policy
from recsim_env.randomness import Purpose, address, uniform
from recsim_env.results import Cell, EvaluationResult, FeedbackClass, Row, Verdict, judge
from recsim_env.rewards import Reward, SignalReward
from recsim_env.session_metrics import SessionMetrics, Shown, repeated
from recsim_env.simulator import SessionState, Simulator
from recsim_env.types import NO_ITEM, Feedback, Policy
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
    """Whether to report the expected value of every shown list."""
    leaving: Literal["weighted", "drawn"] = "weighted"
    """"weighted" counts a request by the chance that its user is still there; "drawn" lets users leave, as they do in
    an environment. Both have the same expectation."""
    roulette_below: float = 0.2
    """Where the weight falls below this, sessions end by chance, and the others go on with this weight; 0 plays all to
    the last request. Variance times time is flat around the least, at 0.2 to 0.3."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if list(self.duration_edges) != sorted(set(self.duration_edges)):
            raise ValueError(f"duration_edges must rise strictly, got {self.duration_edges}")
        if self.leaving not in ("weighted", "drawn"):
            raise ValueError(f"leaving must be 'weighted' or 'drawn', got {self.leaving!r}")
        if not 0 <= self.roulette_below <= 1:
            raise ValueError(f"roulette_below must lie in 0..1, got {self.roulette_below}")


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
                    _play(counter, player, num_sessions, seed, settings, bar) for player in _players(name, contender)
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
    counter: SessionMetrics,
    player: _Player,
    num_sessions: int,
    seed: int,
    settings: EvaluationSettings,
    bar: "tqdm[Any]",
) -> _Tally:
    """Plays all sessions, batch by batch, each to its end."""
    simulator, lowest = counter.simulator, settings.roulette_below
    device, places = simulator.device, simulator.slate_size
    show = _weighted if settings.leaving == "weighted" else _drawn
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(num_sessions, dtype=torch.float64, device=device))
    exposures = _Exposures(len(simulator.world.catalogue), device)
    for begin in range(0, num_sessions, settings.batch_size):
        size = min(settings.batch_size, num_sessions - begin)
        generator = torch.Generator(device).manual_seed(seed + begin)
        state = simulator.start(size, seed + begin)
        row_B, luck_B = torch.arange(size, device=device), _roulette(state)
        there_B = torch.ones_like(luck_B)
        watched_nT = row_B.new_full((size, simulator.max_requests * places), NO_ITEM)
        seen_nT = there_B.new_zeros(watched_nT.shape)
        for request_index in range(simulator.max_requests):
            # Draws come from one generator a batch: a stochastic policy's luck depends on who is still there, unlike
            # the users' luck, which is addressed and the same for every policy.
            items_BK = player.choose(simulator, state, generator)
            following, shown, stay_B = show(counter, state, items_BK)
            weight_B = there_B.clamp(min=lowest)
            for name, values_B in counter.of_request(state, items_BK, shown).items():
                sums[name].index_add_(0, begin + row_B, weight_B * values_B)
            # Only what can be seen is an exposure or can be repeated: unreached places are shown to nobody.
            columns = slice(request_index * places, (request_index + 1) * places)
            watched_nT[row_B, columns] = items_BK.masked_fill(shown.seen_BK == 0, NO_ITEM)
            seen_nT[row_B, columns] = weight_B.unsqueeze(1) * shown.seen_BK
            there_B = there_B * stay_B
            stays = (there_B > lowest * luck_B).nonzero().squeeze(1)
            bar.update(len(row_B) - len(stays))
            row_B, luck_B, there_B, state = row_B[stays], luck_B[stays], there_B[stays], following.select(stays)
            if not len(row_B):
                break
        bar.update(len(row_B))
        stayed_n = there_B.new_zeros(size).index_copy(0, row_B, there_B.clamp(min=lowest))
        repeated_nT = repeated(watched_nT)
        for name, values_n in counter.of_sessions(seen_nT, repeated_nT, stayed_n).items():
            sums[name][begin : begin + size] = values_n
        exposures.add(watched_nT, seen_nT, repeated_nT)
    return _Tally(dict(sums), counter.of_catalogue(exposures.times_N, exposures.log_missed_N.exp()))


def _roulette(state: SessionState) -> Tensor:
    """A uniform draw (B,) for each session: below the lowest weight it goes on while its chance exceeds this share.

    A session that is still there with chance p < lowest survives with chance p / lowest, at the weight ``lowest``: as
    with a draw for each request. But one draw for all of them ends two policies' sessions within a request or two of
    each other, where draws of their own let one go on for long after the other: at a lowest weight of 0.2 that takes
    three quarters of the variance off paired differences.
    """
    return uniform(address(state.key_B, Purpose.ROULETTE), 1).squeeze(1).to(torch.float64)


def _drawn(counter: SessionMetrics, state: SessionState, items_BK: Tensor) -> tuple[SessionState, Shown, Tensor]:
    """Shows slates to users who leave as it happens: the state after, what is counted, and 1 for who stays."""
    simulator = counter.simulator
    following, feedback = simulator.step(state, items_BK)
    rewards_BR = counter.reward(state.request, items_BK, feedback)
    expected = simulator.expected(state, items_BK.unsqueeze(1)) if counter.true_values else None
    shown = Shown(feedback.seen_BK.to(torch.float64), feedback.signals_BKF, rewards_BR, expected)
    return following, shown, (~feedback.left_B).to(torch.float64)


def _weighted(counter: SessionMetrics, state: SessionState, items_BK: Tensor) -> tuple[SessionState, Shown, Tensor]:
    """Shows slates to users who stay: the state after, what is counted, and the chance to stay given the feedback."""
    following, feedback, stay_BK = counter.simulator.stay_through(state, items_BK)
    expected = counter.simulator.expected(state, items_BK.unsqueeze(1))
    stay_BK = stay_BK.to(torch.float64)
    through_BK, reached_BK = stay_BK.cumprod(dim=1), reached(stay_BK)
    signals_BKF = expected.signals_BGKF[:, 0]
    reward, request = counter.reward, state.request
    if type(reward) is SignalReward:  # linear in the signals, and nothing else is known to be
        mean = feedback._replace(signals_BKF=signals_BKF * reached_BK.unsqueeze(-1))
        rewards_BR = reward(request, items_BK, mean)
    else:
        rewards_BR = torch.zeros(len(items_BK), len(reward.names), dtype=torch.float64, device=items_BK.device)
        for chance_B, seen in _endings(feedback, reached_BK, through_BK):
            rewards_BR += chance_B.unsqueeze(1) * reward(request, items_BK, seen)
    return following, Shown(reached_BK, signals_BKF, rewards_BR, expected), through_BK[:, -1]


def _endings(feedback: Feedback, reached_BK: Tensor, through_BK: Tensor) -> Iterator[tuple[Tensor, Feedback]]:
    """Every way a slate can end for users who give this feedback: its chance (B,), and what is seen of it."""
    yield through_BK[:, -1], feedback
    for last in range(reached_BK.shape[1]):
        seen_BK = feedback.seen_BK.clone()
        seen_BK[:, last + 1 :] = False
        signals_BKF = feedback.signals_BKF * seen_BK.unsqueeze(-1)
        left_B = torch.ones_like(feedback.left_B)
        yield reached_BK[:, last] - through_BK[:, last], Feedback(signals_BKF, seen_BK, left_B)


class _Exposures:
    """How often each item is seen, and whether ever, over all sessions."""

    def __init__(self, num_items: int, device: torch.device):
        self.times_N = torch.zeros(num_items, dtype=torch.float64, device=device)
        self.log_missed_N = torch.zeros_like(self.times_N)

    def add(self, watched_nT: Tensor, seen_nT: Tensor, repeated_nT: Tensor) -> None:
        """Adds sessions: items, the chance that each is seen, and whether it stands earlier in the session."""
        shown_nT = watched_nT != NO_ITEM
        self.times_N.index_add_(0, watched_nT[shown_nT], seen_nT[shown_nT])
        # Sessions are independent: an item is missed by all with the product of the chances that each misses it, and a
        # session sees it if it sees its first showing.
        first_nT = shown_nT & ~repeated_nT
        self.log_missed_N.index_add_(0, watched_nT[first_nT], torch.log1p(-seen_nT[first_nT]))


def _cell(contender: Contender, counter: SessionMetrics, tallies: Sequence[_Tally]) -> Cell:
    sums = {name: np.stack([tally.sums[name].cpu().numpy() for tally in tallies]) for name in tallies[0].sums}
    return Cell(
        ratios=counter.ratios(sums),
        totals={name: np.array([tally.totals[name] for tally in tallies]) for name in tallies[0].totals},
        feedback=contender.feedback,
        world_requests=contender.world_requests,
    )
