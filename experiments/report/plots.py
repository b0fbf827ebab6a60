"""Plots of results: small multiples that share one order of policies, best on top, and curves of training and lists.

Colour marks only what an interval carries.

Rows are those of ``frames.frame_of``. Every function returns a ``Figure`` of its own; nothing touches matplotlib's
global state.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, PALE, BLUE, ORANGE = "#222222", "#d8d8d8", "#0072b2", "#d55e00"
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c8c")
"""The Okabe-Ito colours, which colour-blind readers can tell apart."""

MG_E = "MG-E-"
EVALUATOR = "evaluator of "
REFERENCES = ("pointwise greedy", "best of 100", "evaluator search", "GoalRank")
SIZES = {
    "1k": "GoalRank, 1k",
    "10k": "GoalRank, 10k",
    "100k": "GoalRank",
    "1m": "GoalRank, 1m",
    "10m": "GoalRank, 10m",
}
NOISES = {"0": "GoalRank", "0.2": "GoalRank, noise 0.2", "0.5": "GoalRank, noise 0.5"}


def ranked(rows: pd.DataFrame, metric: str = "session_watch_time") -> list[str]:
    """Policies, best first: by their mean share of each world's best, over the worlds they played in."""
    means = rows[rows["metric"] == metric].pivot(index="policy", columns="world", values="mean")
    share = (means / means.max().replace(0.0, 1.0)).mean(axis=1).reindex(rows["policy"].unique())
    return [str(name) for name in share.sort_values(ascending=False, kind="stable").index]


def metric_by_world(rows: pd.DataFrame, metric: str, label: str) -> Figure:
    """One panel for each world: every policy's mean with its 95 % interval."""
    some = rows[rows["metric"] == metric]
    reach = some["low"].where(some["mean"].notna()).groupby(some["world"]).transform("max")
    # Several are blue where their intervals do not tell them apart.
    figure, panels = _intervals(some, "world", ranked(rows), np.where(some["high"] >= reach, BLUE, INK))
    for axes in panels.values():
        axes.set_xlabel(label)
    return figure


def differences(rows: pd.DataFrame, policies: Sequence[str], label: str) -> Figure:
    """One panel for each world: policies minus a baseline, paired by session."""
    colours = np.select([rows["low"] > 0, rows["high"] < 0], [BLUE, ORANGE], INK)
    figure, panels = _intervals(rows, "world", policies, colours)
    for axes in panels.values():
        axes.axvline(0, color=INK, lw=0.8, zorder=1.9)
        axes.set_xlabel(label)
    return figure


def evaluator_against_truth(rows: pd.DataFrame) -> Figure | None:
    """What the list evaluator promised of the shown lists beside what the world expects of them."""
    worlds = list(rows.loc[rows["metric"] == "evaluator_gap", "world"].unique())
    if not worlds:
        return None
    policies = ranked(rows)
    figure, panels = _panels(worlds, policies)
    for world, axes in zip(worlds, panels, strict=True):
        truth, promise = (
            _means(rows, policies, world, [name])[:, 0] for name in ("true_list_value", "evaluator_value")
        )
        places = np.arange(len(policies))
        axes.plot([truth, promise], [places, places], color=PALE, lw=3, zorder=1)
        axes.plot(truth, places, "o", color=INK, label="true expected value")
        axes.plot(promise, places, "D", mfc="white", mec=ORANGE, mew=1.5, label="evaluator's estimate")
        axes.set_xlabel("seconds of a shown list")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def durations(rows: pd.DataFrame, world: str) -> Figure:
    """What each policy shows by duration, and how long it is watched there."""
    policies = _players(rows, world)
    names = [metric for metric in rows["metric"].unique() if metric.startswith("exposure_share/")]
    buckets = [name.partition("/")[2] for name in names]
    figure = Figure(figsize=(11, 1.4 + 0.34 * len(policies)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    share = _means(rows, policies, world, names)
    watch = _means(rows, policies, world, [f"watch_time_per_video/{bucket}" for bucket in buckets])
    _heatmap(left, 100 * share, policies, buckets, "share of videos seen (%), by duration", "Blues")
    _heatmap(right, watch, policies, buckets, "seconds watched per video seen, by duration", "Oranges")
    return figure


def what_was_shown(rows: pd.DataFrame, world: str) -> Figure:
    """Coverage, concentration, diversity and cold videos in one world, a panel each."""
    labels = {
        "catalogue_coverage": "catalogue seen (share)",
        "exposure_gini": "concentration (Gini)",
        "tag_diversity": "pairs with two tags (share)",
        "cold_start_share": "cold videos (share)",
    }
    policies = _players(rows, world)
    here = rows[(rows["world"] == world) & rows["policy"].isin(policies)]
    some = pd.concat([here[here["metric"] == metric] for metric in labels])
    figure, panels = _intervals(some, "metric", policies, [INK] * len(some))
    for metric, axes in panels.items():
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
        _clean(axes)
    for axes in grid[len(tags) :]:
        axes.set_visible(False)
    if len(curves) > 1:
        handles = {line.get_label(): line for axes in grid for line in axes.get_lines()}
        figure.legend(
            list(handles.values()), [str(run) for run in handles], loc="outside upper center", frameon=False, ncols=5
        )
    return figure


def reranker_curves(rows: pd.DataFrame) -> Figure:
    """Four panels for each world of the rerankers table, in expected seconds of a slate there.

    Best of k generators, best of k draws by evaluators of more or less log, parameters, reward noise. Bands and bars
    are 95 % intervals, the wider of those over training seeds and over requests.

    Args:
        rows: of one setting, as ``frames.frame_of`` makes them.
    """
    rows = rows[rows["metric"] == "true_list_value"]
    worlds = list(rows["world"].unique())
    figure = Figure(figsize=(13, 2.6 * len(worlds) + 0.4), layout="constrained")
    panels = figure.subplots(len(worlds), 4, squeeze=False, sharey="row")
    for world, (best_of_k, pressure, sizes, noises) in zip(worlds, panels, strict=True):
        found = {row["policy"]: row for row in rows[rows["world"] == world].to_dict("records")}
        _best_of_k(best_of_k, found)
        best_of_k.set_ylabel(f"{world}: seconds")
        _pressure(pressure, found)
        _points(sizes, found, SIZES, "GoalRank: parameters")
        _points(noises, found, NOISES, "GoalRank: share of noise in the values")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
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
        _clean(axes, "x")
    for axes in grid[len(titles) :]:
        axes.set_visible(False)
    return figure, list(grid[: len(titles)])


def _intervals(
    rows: pd.DataFrame, by: str, policies: Sequence[str], colours: Iterable[str]
) -> tuple[Figure, dict[str, Axes]]:
    """A panel for each value of ``by``, and in it the mean and interval of each policy's row."""
    titles = list(rows[by].unique())
    figure, panels = _panels(titles, policies)
    found = dict(zip(titles, panels, strict=True))
    for row, colour in zip(rows.to_dict("records"), colours, strict=True):
        axes, place = found[row[by]], policies.index(row["policy"])
        if not math.isnan(row["low"]):
            axes.plot([row["low"], row["high"]], [place, place], color=colour, lw=2, solid_capstyle="butt", alpha=0.55)
        axes.plot([row["mean"]], [place], "o", color=colour, ms=5)
    return figure, found


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


def _clean(axes: Axes, grid: Literal["x", "both"] = "both") -> None:
    """Leaves an axis its left and lower spine and a pale grid."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis=grid, color=PALE, lw=0.6)
    axes.set_axisbelow(True)


def _players(rows: pd.DataFrame, world: str) -> list[str]:
    """Those who played in a world, best first."""
    played = set(rows.loc[(rows["world"] == world) & (rows["metric"] == "session_watch_time"), "policy"])
    return [policy for policy in ranked(rows) if policy in played]


def _means(rows: pd.DataFrame, policies: Sequence[str], world: str, metrics: Sequence[str]) -> np.ndarray:
    """Policies by metrics, NaN where nothing was measured."""
    means = rows[rows["world"] == world].pivot(index="policy", columns="metric", values="mean")
    return means.reindex(index=list(policies), columns=list(metrics)).to_numpy()


def _best_of_k(axes: Axes, rows: Mapping[str, Mapping[str, Any]]) -> None:
    by_size = sorted(
        (int(name.removeprefix(MG_E)), row)
        for name, row in rows.items()
        if name.startswith(MG_E) and name.removeprefix(MG_E).isdigit()
    )
    sizes = [size for size, _ in by_size]
    axes.plot(sizes, [row["mean"] for _, row in by_size], "o-", ms=4, color=INK, label="k generators, one list each")
    for colour, name in zip(LINES, REFERENCES, strict=False):
        if name in rows:
            axes.axhline(rows[name]["mean"], color=colour, lw=1.2, label=name)
            if rows[name]["seeds"] > 1:
                axes.axhspan(rows[name]["low"], rows[name]["high"], color=colour, alpha=0.15, lw=0)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("generators, k")
    _clean(axes)


def _pressure(axes: Axes, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """One line for each evaluator: what it shows when it chooses from more and more lists, and when it is climbed."""
    lines: dict[str, list[tuple[str, float]]] = {}
    for name, row in rows.items():
        if name.startswith(EVALUATOR):
            users, how = name.removeprefix(EVALUATOR).split(" of users, ")
            lines.setdefault(users, []).append((how.removeprefix("best of "), row["mean"]))
    for colour, (users, points) in zip(LINES, lines.items(), strict=False):
        axes.plot(range(len(points)), [value for _, value in points], "o-", ms=4, color=colour)
        axes.annotate(users, (len(points) - 1, points[-1][1]), (4, 0), textcoords="offset points", color=colour)
    if not lines:  # a log without slates has no evaluators of less log
        axes.set_visible(False)
        return
    ticks = next(iter(lines.values()))
    axes.set_xticks(range(len(ticks)), [tick for tick, _ in ticks])
    axes.set_xlim(-0.5, len(ticks) + 0.2)
    axes.set_xlabel("lists drawn; evaluators by share of users")
    _clean(axes)


def _points(axes: Axes, rows: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], label: str) -> None:
    """One point for each setting that was run, with its interval over training seeds."""
    ticks = [tick for tick, name in names.items() if name in rows]
    for place, tick in enumerate(ticks):
        row = rows[names[tick]]
        if row["seeds"] > 1:
            axes.plot([place, place], [row["low"], row["high"]], color=LINES[0], lw=1.5)
    axes.plot(range(len(ticks)), [rows[names[tick]]["mean"] for tick in ticks], "o-", ms=4, color=LINES[0])
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_xlabel(label)
    _clean(axes)
