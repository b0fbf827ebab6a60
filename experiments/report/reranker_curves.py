"""Curves of the rerankers table: the choice among k generators, search pressure, the network's size, reward noise."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.plots import INK, LINES, clean

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

Rows = Mapping[str, Mapping[str, Any]]
"""Policy to its row of true list values."""


def curves(rows: pd.DataFrame) -> Figure:
    """Four panels for each world, in expected seconds of a slate there.

    Best of k generators, best of k draws by evaluators of more or less log, parameters, reward noise. Bands and bars
    are 95 % intervals, the wider of those over training seeds and over requests.

    Args:
        rows: of one setting, as ``report.frames`` has them.
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


def _best_of_k(axes: Axes, rows: Rows) -> None:
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
    clean(axes, "y")


def _pressure(axes: Axes, rows: Rows) -> None:
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
    clean(axes, "y")


def _points(axes: Axes, rows: Rows, names: Mapping[str, str], label: str) -> None:
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
    clean(axes, "y")
