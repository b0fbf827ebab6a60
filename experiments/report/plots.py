"""Plots of evaluation results: small multiples that share one order of policies, best on top.

Colour marks only what an interval carries.

Every function returns a ``Figure`` of its own; nothing touches matplotlib's global state.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recsim_env.results import EvaluationResult, Row

INK, PALE, BLUE, ORANGE = "#222222", "#d8d8d8", "#0072b2", "#d55e00"
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c8c")
"""The Okabe-Ito colours, which colour-blind readers can tell apart."""


def ranked(result: EvaluationResult, metric: str = "session_watch_time") -> list[str]:
    """Policies, best first: by their mean share of each world's best, over the worlds they played in."""

    def share(policy: str) -> float:
        shares = []
        for world in result.world_names:
            means = {
                other: result.row(other, world, metric).mean
                for other in result.policies
                if result.measured(other, world, metric)
            }
            if policy in means:
                shares.append(means[policy] / (max(means.values()) or 1.0))
        return float(np.mean(shares)) if shares else -math.inf

    return sorted(result.policies, key=share, reverse=True)


def metric_by_world(result: EvaluationResult, metric: str, label: str) -> Figure:
    """One panel for each world: every policy's mean with its 95 % interval."""
    policies, worlds = ranked(result), _worlds_with(result, metric)
    figure, panels = _panels(worlds, policies)
    for world, axes in zip(worlds, panels, strict=True):
        rows = _rows(result, policies, world, metric)
        reach = max(row.widest[0] for row in rows.values() if not math.isnan(row.mean))
        for place, row in rows.items():  # several are blue where their intervals do not tell them apart
            _interval(axes, place, row, BLUE if row.widest[1] >= reach else INK)
        axes.set_xlabel(label)
    return figure


def differences(result: EvaluationResult, baseline: str, metric: str, label: str) -> Figure:
    """One panel for each world: every policy minus a baseline, paired by session."""
    policies = [policy for policy in ranked(result) if policy != baseline]
    worlds = [world for world in _worlds_with(result, metric) if result.measured(baseline, world, metric)]
    figure, panels = _panels(worlds, policies)
    for world, axes in zip(worlds, panels, strict=True):
        axes.axvline(0, color=INK, lw=0.8)
        for place, policy in enumerate(policies):
            if result.paired(policy, baseline, world):
                row = result.difference(policy, baseline, world, metric)
                low, high = row.widest
                _interval(axes, place, row, BLUE if low > 0 else ORANGE if high < 0 else INK)
        axes.set_xlabel(label)
    return figure


def evaluator_against_truth(result: EvaluationResult) -> Figure | None:
    """What the list evaluator promised of the shown lists beside what the world expects of them."""
    worlds = _worlds_with(result, "evaluator_gap")
    if not worlds:
        return None
    policies = ranked(result)
    figure, panels = _panels(worlds, policies)
    for world, axes in zip(worlds, panels, strict=True):
        truth = _rows(result, policies, world, "true_list_value")
        promise = _rows(result, policies, world, "evaluator_value")
        for place in promise:
            axes.plot([truth[place].mean, promise[place].mean], [place, place], color=PALE, lw=3, zorder=1)
        axes.plot([r.mean for r in truth.values()], list(truth), "o", color=INK, label="true expected value")
        axes.plot(
            [r.mean for r in promise.values()],
            list(promise),
            "D",
            mfc="white",
            mec=ORANGE,
            mew=1.5,
            label="evaluator's estimate",
        )
        axes.set_xlabel("seconds of a shown list")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def durations(result: EvaluationResult, world: str) -> Figure:
    """What each policy shows by duration, and how long it is watched there."""
    policies = [policy for policy in ranked(result) if result.measured(policy, world)]
    names = [metric for metric in result.metrics if metric.startswith("exposure_share/")]
    buckets = [name.partition("/")[2] for name in names]
    figure = Figure(figsize=(11, 1.4 + 0.34 * len(policies)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    share = _matrix(result, policies, world, names)
    watch = _matrix(result, policies, world, [f"watch_time_per_video/{bucket}" for bucket in buckets])
    _heatmap(left, 100 * share, policies, buckets, "share of videos seen (%), by duration", "Blues")
    _heatmap(right, watch, policies, buckets, "seconds watched per video seen, by duration", "Oranges")
    return figure


def what_was_shown(result: EvaluationResult, world: str) -> Figure:
    """Coverage, concentration, diversity and cold videos in one world, a panel each."""
    labels = {
        "catalogue_coverage": "catalogue seen (share)",
        "exposure_gini": "concentration (Gini)",
        "tag_diversity": "pairs with two tags (share)",
        "cold_start_share": "cold videos (share)",
    }
    metrics = [metric for metric in labels if world in _worlds_with(result, metric)]
    policies = [policy for policy in ranked(result) if result.measured(policy, world)]
    figure, panels = _panels(metrics, policies)
    for metric, axes in zip(metrics, panels, strict=True):
        for place, row in _rows(result, policies, world, metric).items():
            _interval(axes, place, row, INK)
        axes.set_title("")
        axes.set_xlabel(labels[metric])
        axes.set_xlim(0, 1.03)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    return figure


def training_curves(curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> Figure | None:
    """One panel for each tag, one line for each run: run to tag to (step, value) pairs."""
    tags = list(dict.fromkeys(tag for tagged in curves.values() for tag in tagged))
    if not tags:
        return None
    columns = min(3, len(tags))
    rows = math.ceil(len(tags) / columns)
    figure = Figure(figsize=(3.7 * columns, 0.4 + 2.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for tag, axes in zip(tags, grid, strict=False):
        for number, (run, tagged) in enumerate(curves.items()):
            if tag in tagged:
                steps, values = zip(*tagged[tag], strict=True)
                axes.plot(steps, values, color=LINES[number % len(LINES)], lw=1.4, label=run)
        axes.set_title(tag, fontsize=10)
        axes.set_xlabel("iteration")
        clean(axes, "both")
    for axes in grid[len(tags) :]:
        axes.set_visible(False)
    if len(curves) > 1:
        handles = {line.get_label(): line for axes in grid for line in axes.get_lines()}
        figure.legend(
            list(handles.values()), [str(run) for run in handles], loc="outside upper center", frameon=False, ncols=5
        )
    return figure


def _panels(titles: Sequence[str], policies: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Panels side by side, at most four in a row, with the policies down the left edge."""
    rows = math.ceil(len(titles) / 4)
    columns = math.ceil(len(titles) / rows)
    size = (1.8 + 2.6 * columns, rows * (1.1 + 0.3 * len(policies)))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for title, axes in zip(titles, grid, strict=False):
        axes.set_title(title, fontsize=10, fontweight="bold")
        axes.set_yticks(range(len(policies)), policies)
        axes.set_ylim(len(policies) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, min_n_ticks=3))
        clean(axes, "x")
    for axes in grid[len(titles) :]:
        axes.set_visible(False)
    return figure, list(grid[: len(titles)])


def _interval(axes: Axes, place: int, row: Row, colour: str) -> None:
    low, high = row.widest
    if not math.isnan(low):
        axes.plot([low, high], [place, place], color=colour, lw=2, solid_capstyle="butt", alpha=0.55)
    axes.plot([row.mean], [place], "o", color=colour, ms=5)


def _heatmap(
    axes: Axes, values: np.ndarray, policies: Sequence[str], buckets: Sequence[str], title: str, colours: str
) -> None:
    axes.imshow(np.nan_to_num(values), cmap=colours, aspect="auto", vmin=0)
    # Dark cells carry white figures.
    middle = 0.6 * float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
    for (row, column), value in np.ndenumerate(values):
        text = "–" if math.isnan(value) else f"{value:.1f}"
        colour = "white" if value > middle else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(buckets)), buckets)
    axes.set_yticks(range(len(policies)), policies)
    axes.set_title(title, fontsize=10)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def clean(axes: Axes, grid: str) -> None:
    """Leaves an axis its left and lower spine and a pale grid along ``grid``: "x", "y" or "both"."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="x" if grid == "x" else "both", color=PALE, lw=0.6)
    axes.set_axisbelow(True)


def _worlds_with(result: EvaluationResult, metric: str) -> list[str]:
    return [
        world
        for world in result.world_names
        if any(result.measured(policy, world, metric) for policy in result.policies)
    ]


def _rows(result: EvaluationResult, policies: Sequence[str], world: str, metric: str) -> dict[int, Row]:
    """Place on the axis to figure, for the policies that have one."""
    return {
        place: result.row(policy, world, metric)
        for place, policy in enumerate(policies)
        if result.measured(policy, world, metric)
    }


def _matrix(result: EvaluationResult, policies: Sequence[str], world: str, metrics: Sequence[str]) -> np.ndarray:
    return np.array([[result.row(policy, world, metric).mean for metric in metrics] for policy in policies])
