"""Does a world put policies in the order in which the truth puts them? Figures and claims of paired results alone.

All figures are of policies that played the same sessions in the truth and in the world. The truth on *other* sessions
is asked the same questions: no world can be expected to answer better, so what it misses is called luck.

The bars are those that the project set itself before it was measured. None is moved for what a world reaches.

Shape legend: P policies.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from recsim_env.intervals import half_width
from recsim_env.results import EvaluationResult
from reward_models.fidelity.verdicts import Claim, Word

Array = NDArray[np.float64]

SECONDS, FIRST_SLATE, LIKES = "session_watch_time", "first_slate_seconds", "like_rate"
RANK_BARS = {SECONDS: 0.97, FIRST_SLATE: 0.98, LIKES: 0.8}
"""Least rank correlation with the truth, by metric."""
PAIR_GAP, PAIR_BAR = "1-5 %", 0.95
"""Share of pairs with a true gap of this size that are rightly ordered, at least."""
LEVEL_BAR = 0.05
"""Session watch time over the truth's differs from 1 by this at most, for every policy."""
LEAST_POLICIES, CLOSE_WITHIN, CLOSE_BAR = 24, 0.05, 0.5
"""Policies that have to be ranked; half of them have true session watch times this close to one another."""
GAPS = {"below 1 %": 0.01, PAIR_GAP: 0.05, "above 5 %": math.inf}
"""True gaps of pairs by size: each up to this share of the better one's worth."""

_NO_CEILING = "the truth has not played other sessions"


class Pairs(NamedTuple):
    """The pairs of policies whose true gap is of one size."""

    decided: int
    """Pairs whose true order the sessions tell."""
    right: int
    """Of these, the pairs that the world orders as the truth does."""
    undecided: int
    """Pairs left out: the interval of their true difference holds 0."""

    @property
    def share(self) -> float:
        """Share of the decided pairs that are rightly ordered; NaN where there is none."""
        return self.right / self.decided if self.decided else math.nan


class Regret(NamedTuple):
    """What choosing by the world costs."""

    best: int
    """Place of the policy that is best in truth."""
    chosen: int
    """Place of the policy that is best in the world; the first of several."""
    loss: float
    """True worth of the first less that of the second."""
    share: float
    """The same over the first's."""


def rank_correlation(world_P: Array, truth_P: Array) -> float:
    """Spearman's; NaN where either has no order at all.

    Example:
        >>> rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([3.0, 5.0, 6.0]))
        1.0
    """
    centred = [rankdata(values_P) - (len(values_P) + 1) / 2 for values_P in (world_P, truth_P)]
    size = math.sqrt(math.prod(float(ranks_P @ ranks_P) for ranks_P in centred))
    return float(centred[0] @ centred[1]) / size if size else math.nan


def ordered_pairs(world_P: Array, truth_P: Array, decided_PP: NDArray[np.bool_]) -> dict[str, Pairs]:
    """Pairs by their true gap, the difference over the better one's worth.

    Args:
        world_P: worths in the world; two that tie there are wrongly ordered.
        truth_P: true worths, above 0.
        decided_PP: whether the true order of two policies is beyond luck; the upper triangle is read.
    """
    counts = {name: [0, 0, 0] for name in GAPS}
    for i, j in itertools.combinations(range(len(truth_P)), 2):
        difference = truth_P[i] - truth_P[j]
        gap = abs(difference) / max(truth_P[i], truth_P[j])
        count = counts[next(name for name, limit in GAPS.items() if gap < limit)]
        if decided_PP[i, j]:
            count[0] += 1
            count[1] += int((world_P[i] - world_P[j]) * difference > 0)
        else:
            count[2] += 1
    return {name: Pairs(*count) for name, count in counts.items()}


def regret(world_P: Array, truth_P: Array) -> Regret:
    """What is lost, in truth, by showing what is best in the world."""
    best, chosen = int(truth_P.argmax()), int(world_P.argmax())
    loss = float(truth_P[best] - truth_P[chosen])
    return Regret(best, chosen, loss, loss / float(truth_P[best]))


def close_share(truth_P: Array, within: float = CLOSE_WITHIN) -> float:
    """Share of the policies in the largest group whose worst is worth at most this much less than its best."""
    return max(int(((truth_P <= best) & (truth_P >= (1 - within) * best)).sum()) for best in truth_P) / len(truth_P)


def values_of(result: EvaluationResult, world: str, metric: str) -> Array:
    """The worth (P,) of every policy in a world."""
    return np.array([result.row(policy, world, metric).mean for policy in result.policies])


def decided_in(result: EvaluationResult, world: str, metric: str) -> NDArray[np.bool_]:
    """Whether the difference of two policies (P, P) is beyond luck, paired by session; upper triangle."""
    policies = result.policies
    decided_PP = np.zeros((len(policies), len(policies)), dtype=bool)
    for i, j in itertools.combinations(range(len(policies)), 2):
        row = result.difference(policies[i], policies[j], world, metric)
        decided_PP[i, j] = row.low > 0 or row.high < 0
    return decided_PP


def levels(result: EvaluationResult, world: str, truth: str, metric: str = SECONDS) -> tuple[Array, Array]:
    """Every policy's worth in the world over that in truth (P,), and half the width of its 95 % interval (P,).

    Sessions are paired by their seeds, which is right whether or not the same users stand behind them.
    """
    found, halves = [], []
    for policy in result.policies:
        own, true = result.cells[policy, world], result.cells[policy, truth]
        own_S, true_S = own.value(metric), true.value(metric)
        level_S = own_S / true_S
        moves_Sn = (own.moves(metric) - level_S[:, None] * true.moves(metric)) / true_S[:, None]
        found.append(float(level_S.mean()))
        halves.append(half_width(level_S, moves_Sn))
    return np.array(found), np.array(halves)


def ranking_checks(result: EvaluationResult, truth: str, ceiling: str) -> Iterator[dict[str, Any]]:
    """What every world makes of the truth's order, as checks of a table; none where the truth did not play.

    Policies that did not play everywhere, in a table that was stopped, are left out.

    Args:
        result: one training seed of each policy, the same policies and sessions in every world.
        truth: the world that the others are compared with.
        ceiling: the truth on other sessions, which is held to no bar.

    Yields:
        ``world``, ``metric``, ``name``, ``bar`` in words, ``value``, ``low``, ``high``, ``verdict`` (pass, fail, cannot
        say, no bar) and ``because``.
    """
    names = result.world_names
    everywhere = [name for name in result.policies if all(result.measured(name, world) for world in names)]
    if truth not in names or len(everywhere) < 2:
        return
    result = EvaluationResult(
        cells={(name, world): result.cells[name, world] for world in names for name in everywhere}
    )
    for claim in set_claims(values_of(result, truth, SECONDS)):
        yield _check(truth, SECONDS, claim)
    decided_PP = decided_in(result, truth, SECONDS)
    for world in names:
        if world != truth:
            told = world == ceiling
            for metric, claim, half in _world_claims(result, world, truth, ceiling, decided_PP):
                yield _check(world, metric, claim, half, told)


def _world_claims(
    result: EvaluationResult, world: str, truth: str, ceiling: str, decided_PP: NDArray[np.bool_]
) -> Iterator[tuple[str, Claim, float]]:
    """Metric, claim and half the width of its interval (NaN without one) of all that is asked of one world."""
    there = ceiling in result.world_names
    for metric, bar in RANK_BARS.items():
        truth_P = values_of(result, truth, metric)
        found = rank_correlation(values_of(result, world, metric), truth_P)
        best = rank_correlation(values_of(result, ceiling, metric), truth_P) if there else math.nan
        yield metric, share_claim(f"rank correlation, {metric}", found, best, bar), math.nan
    world_P, truth_P = values_of(result, world, SECONDS), values_of(result, truth, SECONDS)
    best_pairs = ordered_pairs(values_of(result, ceiling, SECONDS), truth_P, decided_PP) if there else {}
    for claim in pair_claims(ordered_pairs(world_P, truth_P, decided_PP), best_pairs):
        yield SECONDS, claim, math.nan
    for claim, half in level_claims(*levels(result, world, truth), result.policies):
        yield SECONDS, claim, half
    lost = regret(world_P, truth_P)
    best_name, chosen = (result.policies[place] for place in (lost.best, lost.chosen))
    half = result.difference(best_name, chosen, truth, SECONDS).high - lost.loss
    because = f"it would show {chosen}" + ("" if chosen == best_name else f"; best in truth is {best_name}")
    yield SECONDS, Claim("regret, seconds", lost.loss, "", "cannot say", because), half
    per_cent = 100 / float(truth_P[lost.best])
    yield SECONDS, Claim("regret, per cent", 100 * lost.share, "", "cannot say", because), per_cent * half


def set_claims(truth_P: Array) -> Iterator[Claim]:
    """Is the set of policies large enough, and are they alike enough to be hard to rank?"""
    count, share = len(truth_P), close_share(truth_P)
    word: Word = "pass" if count >= LEAST_POLICIES else "fail"
    yield Claim("policies ranked", count, f"at least {LEAST_POLICIES}", word)
    bar = f"at least {CLOSE_BAR:g} of them within {100 * CLOSE_WITHIN:g} % of one another"
    yield Claim("policies that are close in truth", share, bar, "pass" if share >= CLOSE_BAR else "fail")


def share_claim(name: str, figure: float, ceiling: float, bar: float) -> Claim:
    """A figure that is 1 at best and should reach a bar; what the truth on other sessions misses is luck."""
    words = f"at least {bar:g}"
    if math.isnan(figure):
        return Claim(name, None, words, "cannot say", "nothing can be compared")
    if math.isnan(ceiling):
        return Claim(name, figure, words, "cannot say", _NO_CEILING)
    word = verdict(1 - figure, 1 - ceiling, 1 - bar)
    return Claim(name, figure, words, word, f"the truth on other sessions has {ceiling:.3f}")


def pair_claims(pairs: Mapping[str, Pairs], ceiling: Mapping[str, Pairs]) -> Iterator[Claim]:
    """Shares of rightly ordered pairs by true gap; only one size of gap has a bar."""
    for gap, found in pairs.items():
        name = f"pairs rightly ordered, gap {gap}"
        counts = f"{found.right} of {found.decided} pairs; {found.undecided} undecided in truth are left out"
        best = ceiling[gap].share if gap in ceiling else math.nan
        if gap == PAIR_GAP:
            claim = share_claim(name, found.share, best, PAIR_BAR)
            yield replace(claim, because=f"{counts}; {claim.because}")
        else:
            share = None if math.isnan(found.share) else found.share
            yield Claim(name, share, "", "cannot say", counts)


def level_claims(level_P: Array, half_P: Array, policies: Sequence[str]) -> Iterator[tuple[Claim, float]]:
    """The least and the greatest level over truth, each with half the width of its interval.

    A verdict speaks of all policies on its side of 1: every one of them has to be within the bar.
    """
    bar = f"within {LEVEL_BAR:g} of 1 for every policy"
    for name, place, side_P in (
        ("least level over truth", int(level_P.argmin()), level_P <= 1),
        ("greatest level over truth", int(level_P.argmax()), level_P >= 1),
    ):
        judged_P = side_P.copy()
        judged_P[place] = True
        words = {
            verdict(abs(level - 1), half, LEVEL_BAR)
            for level, half in zip(level_P[judged_P], half_P[judged_P], strict=True)
        }
        word: Word = "fail" if "fail" in words else "cannot say" if "cannot say" in words else "pass"
        off = int((np.abs(level_P[judged_P] - 1) > LEVEL_BAR).sum())
        because = f"{policies[place]}; {off} of {len(policies)} policies are off on this side"
        yield Claim(name, float(level_P[place]), bar, word, because), float(half_P[place])


def verdict(distance: float, luck: float, bar: float) -> Word:
    """The rule of ``reward_models.fidelity.verdicts``: ``distance`` should be at most ``bar``, and luck may hide it."""
    if distance > bar + luck:
        return "fail"
    if not luck <= bar:
        return "cannot say"
    return "pass" if distance <= bar else "fail"


def _check(world: str, metric: str, claim: Claim, half: float = math.nan, told: bool = False) -> dict[str, Any]:
    """A claim as a table's check, with its interval where it has one; what has no bar is told, not claimed."""
    known = claim.figure is not None and not math.isnan(half)
    low, high = (claim.figure - half, claim.figure + half) if known else (None, None)  # type: ignore[operator]
    return {
        "world": world,
        "metric": metric,
        "name": claim.claim,
        "bar": None if told or not claim.bar else claim.bar,
        "value": claim.figure,
        "low": low,
        "high": high,
        "verdict": "no bar" if told or not claim.bar else claim.verdict,
        "because": claim.because,
    }
