"""Plots of results: small multiples that share one order of policies, best on top, and curves of training and lists.

Colour marks only what an interval carries.

Rows are those of ``frames.frame_of``. Every function returns a ``Figure`` of its own; nothing touches matplotlib's
global state.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

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
    return _intervals(some, ranked(rows), np.where(some["high"] >= reach, BLUE, INK), label)


def differences(rows: pd.DataFrame, policies: Sequence[str], label: str) -> Figure:
    """One panel for each world: policies minus a baseline, paired by session."""
    colours = np.select([rows["low"] > 0, rows["high"] < 0], [BLUE, ORANGE], INK)
    figure = _intervals(rows, policies, colours, label)
    for axes in figure.axes:
        axes.axvline(0, color=INK, lw=0.8, zorder=1.9)
    return figure


def evaluator_against_truth(rows: pd.DataFrame) -> Figure | None:
    """What the list evaluator promised of the shown lists beside what the world expects of them."""
    worlds = list(rows.loc[rows["metric"] == "evaluator_over_truth", "world"].unique())
    if not worlds:
        return None
    policies = ranked(rows)
    figure, panels = _panels(worlds, policies)
    for world, axes in zip(worlds, panels, strict=True):
        means = rows[rows["world"] == world].pivot(index="policy", columns="metric", values="mean").reindex(policies)
        truth, promise, places = means["true_list_value"], means["evaluator_value"], range(len(policies))
        axes.hlines(places, truth, promise, color=PALE, lw=3, zorder=1)
        axes.plot(truth, places, "o", color=INK, label="true expected value")
        axes.plot(promise, places, "D", mfc="white", mec=ORANGE, mew=1.5, label="evaluator's estimate")
        axes.set_xlabel("seconds of a shown list")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def training_curves(curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> Figure | None:
    """One panel for each tag, one line for each run: run to tag to (step, value) pairs."""
    tags = list(dict.fromkeys(tag for tagged in curves.values() for tag in tagged))
    if not tags:
        return None
    columns = min(3, len(tags))
    rows = math.ceil(len(tags) / columns)
    figure = Figure(figsize=(3.7 * columns, 0.4 + 2.4 * rows), layout="constrained")
    for place, tag in enumerate(tags, start=1):
        axes = figure.add_subplot(rows, columns, place, title=tag, xlabel="iteration")
        for (run, tagged), colour in zip(curves.items(), cycle(LINES), strict=False):
            if tag in tagged:
                axes.plot(*zip(*tagged[tag], strict=True), color=colour, lw=1.4, label=run)
        clean(axes)
    if len(curves) > 1:
        handles = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
        figure.legend(handles=list(handles.values()), loc="outside upper center", frameon=False, ncols=5)
    return figure


def reranker_curves(rows: pd.DataFrame) -> Figure:
    """Four panels for each world of the rerankers table, in expected seconds of a slate there.

    Best of k generators, best of k draws by evaluators of more or less log, parameters, reward noise. Bands and bars
    are 95 % intervals over requests and training seeds.

    Args:
        rows: of one setting, as ``frames.frame_of`` makes them.
    """
    rows = rows[rows["metric"] == "true_list_value"]
    worlds = list(rows["world"].unique())
    figure = Figure(figsize=(13, 2.6 * len(worlds) + 0.4), layout="constrained")
    panels = figure.subplots(len(worlds), 4, squeeze=False, sharey="row")
    for world, (best_of_k, pressure, sizes, noises) in zip(worlds, panels, strict=True):
        found = rows[rows["world"] == world].set_index("policy")
        ks = {name.removeprefix(MG_E): name for name in found.index if name.removeprefix(MG_E).isdigit()}
        _curve(best_of_k, found, ks, "generators, k", INK, "k generators, one list each")
        best_of_k.set_ylabel(f"{world}: seconds")
        for name, colour in zip(REFERENCES, LINES, strict=False):
            if name in found.index:
                mean, low, high, seeds = found.loc[name, ["mean", "low", "high", "seeds"]]
                best_of_k.axhline(mean, color=colour, lw=1.2, label=name)
                best_of_k.axhspan(low, high, color=colour, alpha=0.15 if seeds > 1 else 0, lw=0)
        evaluators = found.index[found.index.str.startswith(EVALUATOR)].to_series()
        parts = evaluators.str.removeprefix(EVALUATOR).str.split(" of users, ", expand=True)
        for (users, hows), colour in zip(parts.groupby(0, sort=False) if len(parts) else (), LINES, strict=False):
            ticks = hows[1].str.removeprefix("best of ")
            names = dict(zip(ticks, hows.index, strict=True))
            _curve(pressure, found, names, "lists drawn; evaluators by share of users", colour, str(users))
            pressure.legend(frameon=False)
        pressure.set_visible(len(evaluators) > 0)  # a log without slates has no evaluators of less log
        _curve(sizes, found, SIZES, "GoalRank: parameters")
        _curve(noises, found, NOISES, "GoalRank: share of noise in the values")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def _curve(
    axes: Axes, found: pd.DataFrame, names: Mapping[str, str], xlabel: str, colour: str = LINES[0], label: str = ""
) -> None:
    """One point for each tick whose row there is, with its interval where it has several training seeds."""
    ticks = [tick for tick, name in names.items() if name in found.index]
    some = found.loc[[names[tick] for tick in ticks]]
    reach = np.where(some["seeds"] > 1, [some["mean"] - some["low"], some["high"] - some["mean"]], 0.0)
    axes.errorbar(ticks, some["mean"], reach, fmt="o-", ms=4, color=colour, label=label)
    axes.set_xlabel(xlabel)
    clean(axes)


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
        clean(axes)
        axes.grid(visible=False, axis="y")
    for axes in grid[len(titles) :]:
        axes.remove()
    return figure, list(grid[: len(titles)])


def _intervals(rows: pd.DataFrame, policies: Sequence[str], colours: np.ndarray, label: str) -> Figure:
    """A panel for each world, and in it the mean and interval of each policy's row."""
    worlds = list(rows["world"].unique())
    figure, panels = _panels(worlds, policies)
    for (_, some), axes in zip(rows.assign(colour=colours).groupby("world", sort=False), panels, strict=True):
        places = some["policy"].map(policies.index)
        axes.hlines(places, some["low"], some["high"], colors=list(some["colour"]), lw=2, alpha=0.55)
        axes.scatter(some["mean"], places, c=some["colour"], s=25, zorder=2)
        axes.set_xlabel(label)
    return figure


def clean(axes: Axes) -> None:
    """Leaves an axis its left and lower spine and a pale grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=PALE, lw=0.6)
    axes.set_axisbelow(True)
