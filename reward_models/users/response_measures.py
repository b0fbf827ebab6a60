"""What learned users are measured by on the test days: ranking, watch time, rates and joint behaviour.

The bars are those set for KuaiRand-Pure.

Legend: P rows of the log, R test rows, F signals, M cells, L quantile levels, Q resamples of users.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import chi2
from torch import Tensor
from tqdm import tqdm

from recsim_env.data.features import known_durations
from recsim_env.data.schema import LoggedDataset
from recsim_env.randomness import address, uniform
from recsim_env.types import CONTEXT
from reward_models.calibration import expected_calibration_error, rate_ratio
from reward_models.metrics import auc, grouped_auc_terms, ordered_pair_share, pinball_crps
from reward_models.users.boosted_trees import boosted, tree_inputs
from reward_models.users.response import SequenceResponse
from reward_models.users.sequences import Sequences

RANKED = {"click": (0.742, 0.622), "long_view": (0.745, 0.635), "like": (0.873, 0.623)}
"""Bars of AUC and GAUC."""
CAP_S = 300.0
LEVELS = np.linspace(0.02, 0.98, 25)
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How intervals are made."""

    seed: int = 0
    """Seed of the draws and the resampling."""
    resamples: int = 400
    """Resamples of users behind each interval."""


@dataclass(frozen=True)
class TestRows:
    """The rows of the test days and what the model says of them."""

    first_day: int
    """YYYYMMDD; the test days begin here."""
    index_R: NDArray[np.int64]
    user_R: NDArray[np.int64]
    tab_R: NDArray[np.int64]
    duration_R: Array
    """Seconds, NaN where the log does not know it."""
    logged_RF: Array
    expected_RF: Array
    """The user's state follows their own test rows."""
    frozen_RF: Array
    """The user's state stays as it was when the test days began."""
    drawn_RF: Array
    quantiles_RL: Array
    """Watch time at ``LEVELS``."""
    coverage_R5: Array
    """Watch time at 5, 25, 50, 75 and 95 %."""
    completion_R: Array
    """Probability of a watch time within 3 % of the duration."""


def replay(
    model: SequenceResponse, dataset: LoggedDataset, sequences: Sequences, first_day: int, seed: int
) -> TestRows:
    """Plays the days from ``first_day`` on through the model as a simulation would, with the feedback of the log.

    Users answer as they do before the log's own ranker; rows of uniform exposure are left out.
    """
    model = model.as_logged()
    index_R = torch.nonzero((sequences.date_P >= first_day) & ~sequences.uniform_P).squeeze(-1)
    user_R = sequences.user_P[index_R]
    is_first = torch.ones(len(user_R), dtype=torch.bool)
    is_first[1:] = user_R[1:] != user_R[:-1]
    first_R = torch.where(is_first, torch.arange(len(user_R)), 0).cummax(0).values
    rank_R = torch.arange(len(user_R)) - first_R
    state_RS = model.start(user_R)
    frozen_RS = state_RS.clone()
    context_RX = torch.zeros(len(user_R), len(CONTEXT))
    context_RX[:, CONTEXT.index("tab")] = sequences.tab_P[index_R].float()
    context_RX[:, CONTEXT.index("hour")] = sequences.hour_P[index_R].float()
    items_R1, signals_R1F = sequences.item_P[index_R].unsqueeze(1), sequences.signals_PF[index_R].unsqueeze(1)
    for rank in range(1, int(rank_R.max()) + 1):
        now = torch.nonzero(rank_R == rank).squeeze(-1)
        before = now - 1
        seen_B1 = torch.ones(len(now), 1, dtype=torch.bool)
        state_RS[now] = model.observe(
            state_RS[before], context_RX[before], items_R1[before], signals_R1F[before], seen_B1
        )
    uniform_R1J = uniform(address(index_R, seed), 1, model.num_draws)
    outcomes = model.outcomes(state_RS, context_RX, items_R1)
    mass_RM = outcomes.probability_BKO[:, 0]

    def levels(level_L: Array) -> Tensor:
        return model.watch_time_quantiles(outcomes.probability_BKO, items_R1, torch.tensor(level_L).float())[:, 0]

    inside = (model.core.cells.config()["ratios"].index(0.97), model.core.cells.config()["ratios"].index(1.03))
    first_ratio = len(model.core.cells.seconds)
    return TestRows(
        first_day,
        index_R.numpy(),
        user_R.numpy(),
        sequences.tab_P[index_R].numpy(),
        dataset.rows["duration"].to_numpy(np.float64, na_value=np.nan)[index_R.numpy()],
        _array(signals_R1F[:, 0]),
        _array(model.expected(state_RS, context_RX, items_R1)[:, 0]),
        _array(model.expected(frozen_RS, context_RX, items_R1)[:, 0]),
        _array(model.respond(state_RS, context_RX, items_R1, uniform_R1J)[:, 0]),
        _array(levels(LEVELS)),
        _array(levels(np.array([0.05, 0.25, 0.5, 0.75, 0.95]))),
        _array(mass_RM[:, first_ratio + inside[0] : first_ratio + inside[1]].sum(1)),
    )


def _array(tensor: Tensor) -> Array:
    return tensor.double().numpy()


class Report:
    """Collects figures and checks, and prints them as they come."""

    def __init__(self) -> None:
        self.checks: list[dict[str, Any]] = []
        self.figures: dict[str, Any] = {}

    def check(
        self, name: str, bar: str, value: float, holds: bool, low: float | None = None, high: float | None = None
    ) -> None:
        """Notes one bar and whether it holds."""
        verdict = "holds" if holds else "fails"
        self.checks.append({"name": name, "bar": bar, "value": value, "low": low, "high": high, "verdict": verdict})
        interval = "" if low is None else f" [{low:.4f}, {high:.4f}]"
        print(f"{verdict:6}  {name:44} {value:9.4f}{interval}   (bar: {bar})")

    def note(self, name: str, **figures: float) -> None:
        """Notes figures without a bar."""
        self.figures[name] = figures
        print(f"        {name:44} " + "  ".join(f"{key} {value:.4f}" for key, value in figures.items()))


def user_weights(user_R: NDArray[np.int64], resamples: int, seed: int) -> NDArray[np.int64]:
    """How often each row counts (Q, R) when users are drawn with replacement."""
    _, code_R = np.unique(user_R, return_inverse=True)
    num_users = int(code_R.max()) + 1
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(num_users, np.full(num_users, 1.0 / num_users), size=resamples)
    return np.asarray(counts[:, code_R])


def weighted_auc(scores_R: Array, labels_R: Array, weights_QR: NDArray[np.int64]) -> Array:
    """AUC (Q,) under each row of weights; ties are rare and broken by order."""
    order = np.argsort(scores_R, kind="stable")
    weight_QR = weights_QR[:, order].astype(np.float64)
    positive_QR = weight_QR * labels_R[order]
    negative_QR = weight_QR - positive_QR
    below_QR = negative_QR.cumsum(1) - 0.5 * negative_QR
    pairs_Q = positive_QR.sum(1) * negative_QR.sum(1)
    return np.asarray((positive_QR * below_QR).sum(1) / pairs_Q)


def ranking(report: Report, rows: TestRows, dataset: LoggedDataset, sequences: Sequences, settings: Resampling) -> None:
    """AUC and GAUC beside trees on the same rows and features and beside tab + duration alone."""
    inputs, frozen = tree_inputs(dataset, sequences, rows.first_day)
    train = (sequences.date_P < rows.first_day).numpy()
    simple = np.stack([sequences.tab_P.numpy(), known_durations(dataset)[sequences.item_P.numpy()]], 1)
    weights_QR = user_weights(rows.user_R, settings.resamples, settings.seed)
    for name, (auc_bar, gauc_bar) in tqdm(RANKED.items(), desc="trees", leave=False):
        signal = dataset.signals.index(name)
        label_P, label_R = sequences.signals_PF[:, signal].numpy(), rows.logged_RF[:, signal]
        trees = boosted(inputs[train], label_P[train], settings.seed)
        tree_R = trees.predict_proba(inputs[rows.index_R])[:, 1]
        tree_frozen_R = trees.predict_proba(frozen[rows.index_R])[:, 1]
        baseline = boosted(simple[train].astype(np.float32), label_P[train], settings.seed)
        simple_R = baseline.predict_proba(simple[rows.index_R].astype(np.float32))[:, 1]
        score_R, frozen_R = rows.expected_RF[:, signal], rows.frozen_RF[:, signal]
        difference_Q = weighted_auc(score_R, label_R, weights_QR) - weighted_auc(tree_R, label_R, weights_QR)
        own = auc(score_R, label_R)
        report.check(f"AUC {name}", f">= {auc_bar}", own, own >= auc_bar)
        _against(report, f"AUC {name} minus trees", own - auc(tree_R, label_R), difference_Q)
        area_V, rows_V = grouped_auc_terms(frozen_R, label_R, rows.user_R)
        tree_area_V, _ = grouped_auc_terms(tree_frozen_R, label_R, rows.user_R)
        weight_QV = np.random.default_rng(settings.seed).multinomial(
            len(area_V), np.full(len(area_V), 1.0 / len(area_V)), size=settings.resamples
        )
        gauc = float(np.average(area_V, weights=rows_V))
        report.check(f"GAUC {name}, state frozen", f">= {gauc_bar}", gauc, gauc >= gauc_bar)
        gap_V = area_V - tree_area_V
        gap_Q = (weight_QV * rows_V) @ gap_V / ((weight_QV * rows_V).sum(1))
        _against(report, f"GAUC {name} minus trees", float(np.average(gap_V, weights=rows_V)), gap_Q)
        area_online_V, _ = grouped_auc_terms(score_R, label_R, rows.user_R)
        simple_area_V, _ = grouped_auc_terms(simple_R, label_R, rows.user_R)
        report.note(
            f"ranking {name}",
            positives=float(label_R.sum()),
            users_in_gauc=float(len(area_V)),
            auc_state_frozen=auc(frozen_R, label_R),
            gauc_state_updated=float(np.average(area_online_V, weights=rows_V)),
            trees_auc=auc(tree_R, label_R),
            trees_gauc=float(np.average(tree_area_V, weights=rows_V)),
            tab_duration_auc=auc(simple_R, label_R),
            tab_duration_gauc=float(np.average(simple_area_V, weights=rows_V)),
            ece=expected_calibration_error(score_R, label_R),
        )


def _against(report: Report, name: str, value: float, resampled_Q: Array) -> None:
    low, high = np.quantile(resampled_Q, [0.025, 0.975])
    report.check(name, "lower end > -0.005", value, bool(low > -0.005), float(low), float(high))


def watch_time(report: Report, rows: TestRows, dataset: LoggedDataset) -> None:
    """The watch-time distribution on tab 1 where the duration is known."""
    log = dataset.rows
    past = log[(log["date"] < rows.first_day) & (log["tab"] == 1) & log["duration"].notna()]
    here = (rows.tab_R == 1) & np.isfinite(rows.duration_R)
    actual, quantiles = rows.logged_RF[here, 0], rows.quantiles_RL[here]
    median = rows.coverage_R5[here, 2]
    capped = np.minimum(actual, CAP_S)
    edges = np.array([7.0, 10, 15, 20, 30, 60, 120, 240, 600])
    past_group = np.digitize(past["duration"].to_numpy(np.float64), edges)
    past_seconds = past["watch_time"].to_numpy(np.float64)
    by_group = np.stack([np.quantile(past_seconds[past_group == g], LEVELS) for g in range(len(edges) + 1)])
    group_quantiles = by_group[np.digitize(rows.duration_R[here], edges)]
    order = ordered_pair_share(median, actual)
    report.check("XAUC by median, tab 1", ">= 0.62", order, order >= 0.62)
    error = float(np.abs(np.minimum(median, CAP_S) - capped).mean())
    constant = float(np.abs(np.median(past_seconds) - capped).mean())
    report.check("MAE of the median, cap 300 s", "<= 21.2", error, error <= 21.2)
    score = pinball_crps(quantiles, LEVELS, actual)
    reference = pinball_crps(group_quantiles, LEVELS, actual)
    report.check("CRPS over duration-group quantiles", "<= 0.96", score / reference, score / reference <= 0.96)
    for level, edge in zip((5, 25, 50, 75, 95), rows.coverage_R5[here].T, strict=True):
        covered = 100.0 * float((actual <= edge).mean())
        report.check(f"coverage of the {level} % level", "within 2 points", covered, abs(covered - level) <= 2.0)
    ratio = actual / rows.duration_R[here]
    logged = float(((ratio >= 0.97) & (ratio < 1.03)).mean())
    emitted = float(rows.completion_R[here].mean())
    report.check("completion mass over log", "within 20 %", emitted / logged, abs(emitted / logged - 1) <= 0.2)
    report.note(
        "watch time, tab 1",
        rows=float(here.sum()),
        crps=score,
        crps_duration_groups=reference,
        mae_constant=constant,
        completion_logged=logged,
        completion_emitted=emitted,
        mean_logged=float(actual.mean()),
        mean_emitted=float(rows.expected_RF[here, 0].mean()),
    )


def rates(report: Report, rows: TestRows, dataset: LoggedDataset, settings: Resampling) -> None:
    """Emitted over logged rates on the test days."""
    weights_QR = user_weights(rows.user_R, settings.resamples, settings.seed + 1).astype(np.float64)
    for signal, name in enumerate(dataset.signals[1:], start=1):
        label_R, expected_R = rows.logged_RF[:, signal], rows.expected_RF[:, signal]
        ratio, positives = rate_ratio(expected_R, label_R), int(label_R.sum())
        if positives < 30:
            # Exact 99 % interval of a Poisson count, over what the model expects.
            low = float(expected_R.sum() / (chi2.ppf(0.995, 2 * positives + 2) / 2))
            high = float(expected_R.sum() / max(chi2.ppf(0.005, 2 * positives) / 2, 1e-9)) if positives else np.inf
        else:
            ratio_Q = (weights_QR @ expected_R) / np.maximum(weights_QR @ label_R, 1.0)
            low, high = (float(edge) for edge in np.quantile(ratio_Q, [0.005, 0.995]))
        if name in ("click", "long_view"):
            report.check(f"rate {name} over log", "within 5 %", ratio, abs(ratio - 1) <= 0.05, low, high)
        else:
            holds = abs(ratio - 1) <= 0.1 or low <= 1.0 <= high
            report.check(f"rate {name} over log", "within 10 % or interval", ratio, holds, low, high)
        report.note(
            f"rate {name}",
            positives=float(positives),
            logged=float(label_R.mean()),
            expected=float(expected_R.mean()),
            drawn=float(rows.drawn_RF[:, signal].mean()),
        )


def joint(report: Report, rows: TestRows, dataset: LoggedDataset, settings: Resampling) -> None:
    """Correlations between signals of one impression, drawn and logged."""
    names = dataset.signals[1:]
    click, long_view = dataset.signals.index("click"), dataset.signals.index("long_view")
    drawn = float(rows.drawn_RF[rows.drawn_RF[:, click] == 0, long_view].mean())
    report.check("P(long_view given no click)", "<= 0.02", drawn, drawn <= 0.02)
    weights_QR = user_weights(rows.user_R, settings.resamples, settings.seed + 2).astype(np.float64)
    for first in range(1, len(names) + 1):
        for second in range(first + 1, len(names) + 1):
            pair = f"phi({dataset.signals[first]}, {dataset.signals[second]})"
            logged_Q = _phi(rows.logged_RF[:, first], rows.logged_RF[:, second], weights_QR)
            ones = np.ones((1, len(rows.user_R)))
            value = float(_phi(rows.drawn_RF[:, first], rows.drawn_RF[:, second], ones)[0])
            logged = float(_phi(rows.logged_RF[:, first], rows.logged_RF[:, second], ones)[0])
            low, high = (float(edge) for edge in np.nanquantile(logged_Q, [0.005, 0.995]))
            if (first, second) == (click, long_view):
                report.check(pair, f"within 0.05 of {logged:.3f}", value, abs(value - logged) <= 0.05, low, high)
            else:
                report.check(pair, f"inside the log's interval ({logged:.3f})", value, low <= value <= high, low, high)


def _phi(a_R: Array, b_R: Array, weights_QR: Array) -> Array:
    """Correlation (Q,) of two 0/1 columns under each row of weights."""
    total_Q = weights_QR.sum(1)
    a_Q, b_Q, both_Q = (weights_QR @ column / total_Q for column in (a_R, b_R, a_R * b_R))
    with np.errstate(invalid="ignore"):
        return np.asarray((both_Q - a_Q * b_Q) / np.sqrt(a_Q * (1 - a_Q) * b_Q * (1 - b_Q)))
