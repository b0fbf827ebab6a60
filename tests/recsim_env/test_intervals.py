"""One interval over sessions and training seeds: a case by hand, textbooks at its ends, and coverage by simulation."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from recsim_env.intervals import half_width


def halves(table_Sn: np.ndarray) -> float:
    """The interval of the mean of a table, seeds by sessions."""
    return half_width(table_Sn.mean(1), table_Sn - table_Sn.mean(1, keepdims=True))


def test_a_case_by_hand() -> None:
    """Two seeds, three sessions.

    Seeds' means 2 and 6, variance 8, over S: 4. Sessions' means 2, 3 and 7, variance 7, over n: 7/3. The rest is 0 in
    the first session, -1 and 1 in the second, 1 and -1 in the third: 4 over (S - 1)(n - 1) = 2, over S n: 1/3.
    """
    table_Sn = np.array([[0.0, 0.0, 6.0], [4.0, 6.0, 8.0]])
    variance = 4 + 7 / 3 - 1 / 3
    share = (4 / variance) ** 1.5
    square = share * stats.t.ppf(0.975, 1) ** 2 + (1 - share) * stats.t.ppf(0.975, 2) ** 2
    assert halves(table_Sn) == pytest.approx(math.sqrt(square * variance))


def test_one_seed_and_equal_seeds_give_students_interval_over_sessions() -> None:
    values_n = np.random.default_rng(0).normal(size=40)
    low, high = stats.t.interval(0.95, 39, values_n.mean(), stats.sem(values_n))
    assert halves(values_n[None]) == pytest.approx((high - low) / 2)
    assert halves(np.stack([values_n] * 4)) == pytest.approx((high - low) / 2)


def test_equal_sessions_give_students_interval_over_seeds() -> None:
    seeds = np.array([1.0, 2.0, 6.0])
    low, high = stats.t.interval(0.95, 2, seeds.mean(), stats.sem(seeds))
    assert halves(np.repeat(seeds[:, None], 50, axis=1)) == pytest.approx((high - low) / 2)
    assert half_width(seeds) == pytest.approx((high - low) / 2)  # a figure of all sessions together


def test_what_cannot_be_told_is_nan_and_an_exact_tie_has_no_width() -> None:
    assert math.isnan(half_width(np.ones(1)))
    assert math.isnan(halves(np.ones((1, 1))))
    assert math.isnan(halves(np.full((3, 5), np.nan)))
    assert halves(np.ones((1, 5))) == halves(np.ones((4, 5))) == 0


def test_sessions_of_two_worlds_add_up_also_where_one_seed_stands_for_all() -> None:
    rng = np.random.default_rng(1)
    first_1n, second_1n = rng.normal(size=(1, 30)), rng.normal(size=(1, 30))
    moves = [table - table.mean(1, keepdims=True) for table in (first_1n, second_1n)]
    error = math.hypot(stats.sem(first_1n[0]), stats.sem(second_1n[0]))
    assert half_width(np.ones(1), *moves) == pytest.approx(stats.t.ppf(0.975, 29) * error)
    assert half_width(np.ones(3), *moves) == pytest.approx(stats.t.ppf(0.975, 29) * error)


RATIOS = [(0.0, 1.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.05, 1.0, 1.0), (0.2, 1.0, 0.0),
          (0.2, 1.0, 2.0), (0.5, 1.0, 0.5), (1.0, 0.2, 3.0), (0.0, 0.3, 3.0)]  # fmt: skip
"""Spread of seeds (in errors of the sessions' mean, so that both count), of sessions, and of the rest."""


@pytest.mark.parametrize(("seeds", "ratio"), list(product((1, 3, 5, 10), RATIOS)))
def test_intervals_cover_what_they_say(seeds: int, ratio: tuple[float, float, float]) -> None:
    """With one seed: of the mean that this training run has over all sessions."""
    sessions, trials = 60, 6000
    of_seed, of_session, of_rest = ratio
    rng = np.random.default_rng([seeds, *(int(100 * part) for part in ratio)])
    # Spread of the seeds' mean beside that of the sessions' mean: of_seed times the root of S / n.
    seed_TS1 = of_seed * math.sqrt(seeds / 4) * rng.normal(size=(trials, seeds, 1))
    session_T1n = of_session * math.sqrt(sessions / 4) * rng.normal(size=(trials, 1, sessions))
    table_TSn = seed_TS1 + session_T1n + of_rest * rng.normal(size=(trials, seeds, sessions))
    truth_T = seed_TS1[:, 0, 0] if seeds == 1 else np.zeros(trials)
    half_T = np.array([halves(table_Sn) for table_Sn in table_TSn])
    missed_T = np.abs(table_TSn.mean((1, 2)) - truth_T) > half_T + 1e-12
    if of_session == of_rest == 0 and seeds == 1:
        assert not missed_T.any()  # every session tells the same
    else:
        assert 0.93 <= 1 - missed_T.mean() <= 0.97
