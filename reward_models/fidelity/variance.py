"""How much users differ from one another, and videos, in a signal: logged, and as users of a world act.

Shape legend: R rows, G groups (users or videos).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CAP_S = 300.0
"""Watch times count up to here: a few hours on one page would be all that the variance tells."""


def shares(logged_R: Array, acted_R: Array, user_R: Array, item_R: Array) -> dict[str, Any]:
    """Variance of a signal between users and between videos, logged and emitted.

    The between-user variance is what two rows of one user have in common beyond any two rows: the mean product of
    their deviations. Rows are never paired with themselves, so that the noise of a row, which makes means of few rows
    differ even where users do not, has no part in it. The same for videos; the rest is the residual.

    Args:
        logged_R: the signal as logged, 0/1 or seconds.
        acted_R: the same rows as users of a model drew them, each user's state following its own draws.
        user_R: user of each row.
        item_R: video of each row.

    Returns:
        ``logged`` and ``emitted``, each with ``total`` variance and the shares ``user``, ``video`` and ``residual`` of
        it (None where there is none); ``user_ratio``, emitted over logged between-user variance, and its standard
        error over users, ``user_ratio_error`` (None where the log has no such variance).
    """
    logged_R, acted_R = np.minimum(logged_R, CAP_S), np.minimum(acted_R, CAP_S)
    sums = [_sums(values_R, user_R) for values_R in (logged_R, acted_R)]
    (logged_G, weight_G), (acted_G, _) = sums
    found: dict[str, Any] = {
        "logged": _parts(logged_R, user_R, item_R),
        "emitted": _parts(acted_R, user_R, item_R),
        "user_ratio": None,
        "user_ratio_error": None,
    }
    common = float((weight_G * logged_G).sum())
    if common > 0 and len(weight_G) > 1:
        ratio = float((weight_G * acted_G).sum()) / common
        move_G = weight_G * (acted_G - ratio * logged_G) / common
        found |= {"user_ratio": ratio, "user_ratio_error": float(np.sqrt((move_G**2).sum()))}
    return found


def between(values_R: Array, group_R: Array) -> float:
    """Variance of the groups' true means, without bias; it may come out below 0 where there is next to none.

    Groups count by their rows; those of one row tell nothing.

    Example:
        >>> bool(abs(between(np.array([0.0, 0, 1, 1]), np.array([0, 0, 1, 1])) - 0.25) < 1e-12)
        True
    """
    common_G, weight_G = _sums(values_R, group_R)
    return float((weight_G * common_G).sum() / weight_G.sum()) if len(weight_G) else 0.0


def _sums(values_R: Array, group_R: Array) -> tuple[Array, Array]:
    """Of each group of two rows or more: the mean product of two rows' deviations, and the number of rows."""
    deviation_R = values_R - values_R.mean()
    _, code_R = np.unique(group_R, return_inverse=True)
    rows_G = np.bincount(code_R).astype(np.float64)
    sum_G, square_G = np.bincount(code_R, deviation_R), np.bincount(code_R, deviation_R**2)
    kept_G = rows_G > 1
    pairs_G = rows_G[kept_G] * (rows_G[kept_G] - 1)
    return (sum_G[kept_G] ** 2 - square_G[kept_G]) / pairs_G, rows_G[kept_G]


def _parts(values_R: Array, user_R: Array, item_R: Array) -> dict[str, float | None]:
    total = float(values_R.var())
    if not total > 0:
        return {"total": total, "user": None, "video": None, "residual": None}
    user, video = between(values_R, user_R) / total, between(values_R, item_R) / total
    return {"total": total, "user": user, "video": video, "residual": 1.0 - user - video}
