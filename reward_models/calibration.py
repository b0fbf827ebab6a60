"""Makes predicted probabilities mean what they say, and measures whether they do.

Scales are fitted on predictions for users that the model was not fitted on: on its own rows it looks surer than it is.
Offsets may be fitted on its own rows, see ``reward_models.users.fit``.
Legend: P rows, M watch-time cells, C knots of duration.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from reward_models.users.watch_time import cell_log_probability

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Platt:
    """Calibrated logit = ``scale`` x logit + ``offset``."""

    scale: float
    offset: float

    def __call__(self, logits: ArrayLike) -> FloatArray:
        """Probabilities of logits."""
        return np.asarray(expit(self.scale * np.asarray(logits, np.float64) + self.offset))


def fit_platt(
    logits: ArrayLike,
    labels: ArrayLike,
    scale: float | None = None,
    scale_prior: float = 20.0,
    fixed: ArrayLike = 0.0,
) -> Platt:
    """Maximum likelihood by Newton's method, the scale pulled towards 1.

    Args:
        logits: (P,).
        labels: (P,) 0/1 with at least one of each; otherwise nothing is changed.
        scale: keeps this scale and fits the offset alone.
        scale_prior: strength of the pull; it matters for signals with few positives alone.
        fixed: (P,) part of the logits that is to be added as it is, unscaled.
    """
    x, y, base = (np.asarray(column, np.float64) for column in (logits, labels, fixed))
    slope, offset = 1.0 if scale is None else scale, 0.0
    if not 0.0 < y.mean() < 1.0:
        return Platt(slope, offset)
    # A first offset that matches the mean keeps Newton's steps inside its region of convergence.
    for _ in range(50):
        probability = expit(slope * x + base + offset)
        offset += float(np.clip(np.log(y.mean() / probability.mean()), -2.0, 2.0))
    free = np.array([scale is None, True])
    for _ in range(50):
        probability = expit(slope * x + base + offset)
        error, weight = y - probability, np.maximum(probability * (1.0 - probability), 1e-12)
        gradient = np.array([(error * x).sum() - scale_prior * (slope - 1.0), error.sum()])
        cross = (weight * x).sum()
        hessian = np.array([[(weight * x * x).sum() + scale_prior, cross], [cross, weight.sum()]])
        # Where the scale is fixed, its row and column are left out: the solution of the whole system with one step set
        # to 0 afterwards would be another offset.
        step = np.zeros(2)
        step[free] = np.linalg.solve(hessian[free][:, free], gradient[free])
        slope, offset = slope + float(step[0]), offset + float(step[1])
        if np.abs(step).max() < 1e-9:
            break
    return Platt(slope, offset)


def fit_group_offsets(
    logits: ArrayLike, labels: ArrayLike, group: ArrayLike, num_groups: int, prior: float = 5.0
) -> FloatArray:
    """Offsets (num_groups,) after which predictions and labels agree in sum within every group of rows.

    Maximum likelihood by Newton's method, each offset pulled towards 0.

    Args:
        logits: (P,).
        labels: (P,) 0/1.
        group: (P,) integers.
        num_groups: groups; one without rows gets 0.
        prior: precision of the pull; a group needs this much variance in its labels to move halfway.
    """
    x, y, index = np.asarray(logits, np.float64), np.asarray(labels, np.float64), np.asarray(group)
    offsets = np.zeros(num_groups)
    for _ in range(50):
        probability = expit(x + offsets[index])
        error = np.bincount(index, weights=y - probability, minlength=num_groups) - prior * offsets
        slope = np.bincount(index, weights=probability * (1.0 - probability), minlength=num_groups) + prior
        # Groups share nothing, so the Hessian is diagonal and every group takes its own Newton step; an early one may
        # overshoot where nearly all labels are equal.
        step = np.clip(error / slope, -2.0, 2.0)
        offsets += step
        if np.abs(step).max() < 1e-9:
            break
    return offsets


@dataclass(frozen=True)
class Isotonic:
    """A rising step-free map from scores to probabilities, given by its corners."""

    scores: FloatArray
    probabilities: FloatArray

    def __call__(self, scores: ArrayLike) -> FloatArray:
        """Probabilities of scores; flat beyond the corners."""
        return np.interp(np.asarray(scores, np.float64), self.scores, self.probabilities)


def fit_isotonic(scores: ArrayLike, labels: ArrayLike) -> Isotonic:
    """Least squares among all rising maps of (P,) scores to (P,) labels."""
    fitted = IsotonicRegression(out_of_bounds="clip").fit(np.asarray(scores), np.asarray(labels))
    return Isotonic(np.asarray(fitted.X_thresholds_, np.float64), np.asarray(fitted.y_thresholds_, np.float64))


def fit_cells(
    logits_PM: Tensor,
    log_prior_PM: Tensor,
    hat_PC: Tensor,
    cell_P: Tensor,
    scale: float | None = None,
    prior: float = 20.0,
) -> tuple[float, Tensor]:
    """Platt's method for a whole distribution: cell logits become ``scale`` x logits + offset of cell and duration.

    Maximum likelihood (convex), with a pull of ``prior`` rows towards no change. After it, each cell's mean
    probability is its share of the rows around every knot of duration, up to that pull.

    Args:
        logits_PM: float32 logits of cells.
        log_prior_PM: float32, added to them unscaled, see ``ResponseCore.log_prior``.
        hat_PC: float32, how near each row is to each knot, see ``WatchTimeCells.hats``.
        cell_P: int64 cells that were observed.
        scale: keeps this scale and fits the offsets alone.
        prior: rows.

    Returns:
        The scale and float32 offsets (C, M).
    """
    # L-BFGS, because C x M offsets are too many for Newton's matrix; float64, because float32 stalls too early.
    slope = torch.tensor(1.0 if scale is None else scale, dtype=torch.float64, requires_grad=scale is None)
    offset_CM = torch.zeros(hat_PC.shape[1], logits_PM.shape[1], dtype=torch.float64, requires_grad=True)
    logits_PM, log_prior_PM, hat_PC = logits_PM.double(), log_prior_PM.double(), hat_PC.double()
    free = [offset_CM] if scale is not None else [slope, offset_CM]
    optimiser = torch.optim.LBFGS(free, max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        log_PM = cell_log_probability(slope * logits_PM, log_prior_PM + hat_PC @ offset_CM)
        chosen = log_PM.gather(1, cell_P.unsqueeze(1))
        pull = 0.5 * prior * ((slope - 1.0) ** 2 + (offset_CM**2).mean(1).sum())
        value = (pull - chosen.sum()) / len(cell_P)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return float(slope.detach()), offset_CM.detach().float()


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, num_bins: int = 20) -> float:
    """Mean distance between predicted and actual rate over bins that hold equally many rows."""
    probability, label = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64)
    order = np.argsort(probability, kind="stable")
    gaps = [
        abs(float(probability[part].mean() - label[part].mean())) * len(part)
        for part in np.array_split(order, num_bins)
        if len(part)
    ]
    return float(sum(gaps) / len(label))


def rate_ratio(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Predicted over actual number of positives; infinite where there are none."""
    actual = float(np.asarray(labels, np.float64).sum())
    predicted = float(np.asarray(probabilities, np.float64).sum())
    return predicted / actual if actual else float("inf")
