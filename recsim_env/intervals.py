"""One 95 % interval for everything that several training runs were measured for on the same sessions.

A figure varies with the training run and with the sessions it was played on. Both are samples, and every run plays the
same sessions, so session i of run s is worth ``mean + run_s + session_i + rest_si`` (two-way random effects), and the
mean over all of them has the variance::

    s_seed^2 / S + s_session^2 / n - s_residual^2 / (S n)

where s_seed is the spread of the runs' means, s_session that of the sessions' means, and s_residual that of the rest.
Each of the first two contains the rest once, hence the last term.

Shape legend: S training seeds, n sessions.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]


def half_width(value_S: Array, *moves_Sn: Array) -> float:
    """Half the width of the 95 % interval of the mean of ``value_S``; NaN where nothing tells it.

    With one training seed this is Student's interval over the sessions: it speaks of that training run only. Without
    sessions, for figures of all of them together, it is Student's interval over the seeds.

    Args:
        value_S: the figure of each training seed.
        moves_Sn: how far each session moves each seed's figure. A difference between two sets of sessions that share
            nothing has one such array for each: their variances add up.

    Example:
        >>> round(half_width(np.array([1.0, 3.0])), 3)  # the error of the mean is 1, and t of one degree of freedom
        12.706
        >>> moves_Sn = np.array([[-1.0, 0.0, 1.0]])  # one training run: error 1 / sqrt(3), t of two degrees of freedom
        >>> round(half_width(np.array([2.0]), moves_Sn) * 3**0.5, 3)
        4.303
    """
    seeds, sessions = len(value_S), min((part.shape[1] for part in moves_Sn), default=0)
    if max(seeds, sessions) < 2 or (moves_Sn and sessions < 2):
        return math.nan
    if seeds < 2:
        return _quantile(sessions) * math.sqrt(sum(_mean_square(part[0]) / part.shape[1] for part in moves_Sn))
    of_seeds = _mean_square(value_S) / seeds
    if not moves_Sn:
        return _quantile(seeds) * math.sqrt(of_seeds)
    of_sessions = sum(_of_sessions(part) for part in moves_Sn)
    variance = of_seeds + of_sessions
    if not variance > 0:
        return math.sqrt(variance)  # 0 for an exact tie, and NaN stays NaN
    # The square of Student's quantile goes from that of the sessions to that of the seeds with the seeds' share of the
    # variance. Satterthwaite's degrees of freedom let it go, to first order, with the share's square. But at two or
    # three seeds the estimated share is small where the interval is too short already, and a share of .9 is covered by
    # 92.2 % at three seeds, 87.3 % at two. The power 1.5 covers 94.8 to 96.5 % at any share from three seeds on, and
    # 94.1 to 97.5 % at two; at shares of 0 and 1, plain Student intervals, it is exact.
    share = (of_seeds / variance) ** 1.5
    square = share * _quantile(seeds) ** 2 + (1 - share) * _quantile(sessions) ** 2
    return math.sqrt(square * variance)


def _of_sessions(moves_Sn: Array) -> float:
    """What sessions add to the variance: the spread they have in all seeds alike; the seeds' own holds the rest."""
    seeds, sessions = moves_Sn.shape
    mean_n: Array = moves_Sn.mean(0)
    # One row stands for all seeds alike: its rest is common to them, and not in their spread.
    rest = float(((moves_Sn - mean_n) ** 2).sum()) / ((seeds - 1) * (sessions - 1)) if seeds > 1 else 0.0
    # The difference of two estimates may be negative where sessions have nothing in common: then they add nothing.
    added = _mean_square(mean_n) / sessions - rest / (seeds * sessions)
    return math.nan if math.isnan(added) else max(added, 0.0)


def _mean_square(values: Array) -> float:
    return float(values.var(ddof=1))


def _quantile(units: int) -> float:
    return float(stdtrit(units - 1, 0.975))
