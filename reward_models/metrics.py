"""How well predictions rank and how well predicted distributions fit, on plain arrays.

Legend: P rows, L quantile levels.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Share of (positive, negative) pairs ranked rightly, ties counting half; NaN without both classes."""
    positive = np.asarray(labels).astype(bool)
    _, code, count = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[code]
    num_positive = int(positive.sum())
    pairs = num_positive * (len(positive) - num_positive)
    if pairs == 0:
        return float("nan")
    return float((rank[positive].sum() - num_positive * (num_positive + 1) / 2) / pairs)


def grouped_auc_terms(scores: ArrayLike, labels: ArrayLike, groups: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """AUC and number of rows of each group that holds both classes, in the order of the group codes.

    Args:
        scores: (P,).
        labels: (P,) 0/1.
        groups: (P,) user codes.
    """
    order = np.lexsort((np.asarray(scores), np.asarray(groups)))
    score, label = np.asarray(scores)[order], np.asarray(labels)[order].astype(np.float64)
    group = np.asarray(groups)[order]
    _, start, code, rows = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
    is_new = np.ones(len(score), bool)
    is_new[1:] = (score[1:] != score[:-1]) | (group[1:] != group[:-1])
    tie = np.cumsum(is_new) - 1
    tie_start, tie_rows = np.flatnonzero(is_new), np.bincount(tie)
    rank = (tie_start + (tie_rows + 1) / 2)[tie] - start[code]
    positive = np.bincount(code, label)
    pairs = positive * (rows - positive)
    both = pairs > 0
    area = np.bincount(code, label * rank)[both] - positive[both] * (positive[both] + 1) / 2
    return area / pairs[both], rows[both].astype(np.float64)


def grouped_auc(scores: ArrayLike, labels: ArrayLike, groups: ArrayLike) -> float:
    """GAUC: AUC within each user, averaged over users with both classes, weighted by their rows."""
    area, rows = grouped_auc_terms(scores, labels, groups)
    return float(np.average(area, weights=rows)) if len(area) else float("nan")


def ordered_pair_share(predicted: ArrayLike, actual: ArrayLike) -> float:
    """XAUC: share of pairs of rows with different actual values that are predicted in the right order.

    Counted exactly in O(P log P) from sorted blocks; predicted ties count half.
    """
    order = np.lexsort((np.asarray(predicted), np.asarray(actual)))
    values = np.unique(np.asarray(predicted), return_inverse=True)[1][order]
    actual_sorted = np.asarray(actual)[order]
    total_less, total_tied = _count_pairs(values)
    # Pairs with equal actual values are no pairs: take out what they added.
    starts = np.flatnonzero(np.r_[True, actual_sorted[1:] != actual_sorted[:-1]])
    sizes = np.diff(np.r_[starts, len(values)])
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        less, tied = _count_pairs(values[start : start + size])
        total_less, total_tied = total_less - less, total_tied - tied
    pairs = len(values) * (len(values) - 1) / 2 - (sizes * (sizes - 1) / 2).sum()
    return float((total_less + 0.5 * total_tied) / pairs) if pairs else float("nan")


def _count_pairs(values: NDArray[np.int64]) -> tuple[float, float]:
    """Pairs (i < j) with values[i] < values[j], and pairs with equal values: a bottom-up merge count."""
    count = np.unique(values, return_counts=True)[1].astype(np.float64)
    tied = float((count * (count - 1) / 2).sum())
    less, width, current, span = 0.0, 1, values.astype(np.int64), int(values.max()) + 1
    while width < len(current):
        block = np.arange(len(current)) // width
        pair = block // 2
        key = pair * span + current
        left = block % 2 == 0
        left_keys = key[left]  # sorted: pairs in order, each block sorted
        below = np.searchsorted(left_keys, key[~left])
        pair_start = np.searchsorted(left_keys, pair[~left] * span)
        less += float((below - pair_start).sum())
        current = np.sort(key, kind="stable") - np.sort(pair) * span
        width *= 2
    return less, tied


def pinball_crps(quantiles: ArrayLike, levels: ArrayLike, actual: ArrayLike) -> float:
    """Continuous ranked probability score as twice the mean pinball loss over levels, in the actual's units.

    Args:
        quantiles: (P, L) predicted, or (L,) the same for all rows.
        levels: (L,) in (0, 1), evenly spread.
        actual: (P,).
    """
    error = np.asarray(actual, np.float64)[:, None] - np.asarray(quantiles, np.float64)
    level = np.asarray(levels, np.float64)
    return float(2.0 * np.maximum(level * error, (level - 1.0) * error).mean())
