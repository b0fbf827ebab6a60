"""Curves of the rerankers table: the evaluator's choice among k generators, the size of the network, reward noise."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.plots import INK, LINES, clean

MG_E = "MG-E-"
REFERENCES = ("pointwise greedy", "best of 100", "evaluator search", "GoalRank")
SIZES = {"10k": "GoalRank, 10k", "100k": "GoalRank", "1m": "GoalRank, 1m"}
NOISES = {"0": "GoalRank", "0.2": "GoalRank, noise 0.2", "0.5": "GoalRank, noise 0.5"}

Rows = Mapping[str, Mapping[str, Any]]
"""Policy to its row of true list values."""


def curves(rows_by_world: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Three panels for each world: best of k, parameters, reward noise; expected seconds of a slate in that world.

    Bands and bars are 95 % intervals over training seeds; the luck of the requests is the same for all.
    """
    figure = Figure(figsize=(11, 2.6 * len(rows_by_world) + 0.4), layout="constrained")
    panels = figure.subplots(len(rows_by_world), 3, squeeze=False, sharey="row")
    for (world, rows), (best_of_k, sizes, noises) in zip(rows_by_world.items(), panels, strict=True):
        found = {row["policy"]: row for row in rows if row["metric"] == "true_list_value" and not row["baseline"]}
        _best_of_k(best_of_k, found)
        best_of_k.set_ylabel(f"{world}: seconds")
        _points(sizes, found, SIZES, "GoalRank: parameters")
        _points(noises, found, NOISES, "GoalRank: share of noise in the values")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def _best_of_k(axes: Axes, rows: Rows) -> None:
    by_size = sorted((int(name.removeprefix(MG_E)), row) for name, row in rows.items() if name.startswith(MG_E))
    sizes = [size for size, _ in by_size]
    axes.plot(sizes, [row["mean"] for _, row in by_size], "o-", ms=4, color=INK, label="k generators, one list each")
    for colour, name in zip(LINES, REFERENCES, strict=False):
        if name in rows:
            axes.axhline(rows[name]["mean"], color=colour, lw=1.2, label=name)
            if rows[name]["interval"] == "seeds":
                axes.axhspan(rows[name]["low"], rows[name]["high"], color=colour, alpha=0.15, lw=0)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("generators, k")
    clean(axes, "y")


def _points(axes: Axes, rows: Rows, names: Mapping[str, str], label: str) -> None:
    """One point for each setting that was run, with its interval over training seeds."""
    ticks = [tick for tick, name in names.items() if name in rows]
    for place, tick in enumerate(ticks):
        row = rows[names[tick]]
        if row["interval"] == "seeds":
            axes.plot([place, place], [row["low"], row["high"]], color=LINES[0], lw=1.5)
    axes.plot(range(len(ticks)), [rows[names[tick]]["mean"] for tick in ticks], "o-", ms=4, color=LINES[0])
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_xlabel(label)
    clean(axes, "y")
