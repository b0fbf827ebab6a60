"""The plot of the ranking table: what policies are worth in each world against what they are worth in truth."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.report.plots import BLUE, INK, ORANGE, PALE, clean

LEVEL_BAND = 0.05
"""Shaded around equality: levels that are held to be right."""


def ranking_plot(rows: pd.DataFrame, truth: str, metric: str, label: str) -> Figure:
    """One panel for each world but the truth, one point with its 95 % intervals for each policy.

    Points on the line are at the truth's level; points that rise all the way are in its order, whatever their level.
    Named are the best in truth, the best in the world, and the policy whose level is furthest off.

    Args:
        rows: of one setting, as ``frames.frame_of`` makes them; the truth among their worlds.
        truth: its name.
        metric: what is shown, above 0.
        label: what it is called.
    """
    rows = rows[rows["metric"] == metric]
    true = rows[rows["world"] == truth].set_index("policy")
    worlds = [name for name in rows["world"].unique() if name != truth]
    figure = Figure(figsize=(1 + 3.6 * len(worlds), 4.2), layout="constrained")
    panels = figure.subplots(1, max(len(worlds), 1), squeeze=False, sharex=True, sharey=True)[0]
    for world, axes in zip(worlds, panels, strict=False):
        own = rows[rows["world"] == world].set_index("policy")
        names = [name for name in true.index if name in own.index]
        x, y = true.loc[names], own.loc[names]
        ends = np.array([0.9 * min(x["mean"].min(), y["mean"].min()), 1.08 * max(x["mean"].max(), y["mean"].max())])
        axes.fill_between(ends, (1 - LEVEL_BAND) * ends, (1 + LEVEL_BAND) * ends, color=PALE, alpha=0.6, lw=0)
        axes.plot(ends, ends, color=INK, lw=0.8)
        axes.scatter(x["mean"], y["mean"], s=22, color=BLUE, zorder=2.5)
        axes.hlines(y["mean"], x["low"], x["high"], color=BLUE, lw=1, alpha=0.35)
        axes.vlines(x["mean"], y["low"], y["high"], color=BLUE, lw=1, alpha=0.35)
        off = np.log(y["mean"] / x["mean"]).abs()
        for name in dict.fromkeys((x["mean"].idxmax(), y["mean"].idxmax(), off.idxmax())):
            axes.scatter(x.loc[name, "mean"], y.loc[name, "mean"], s=26, color=ORANGE, zorder=2.6)
            place = (x.loc[name, "mean"], y.loc[name, "mean"])
            axes.annotate(name, place, xytext=(-5, 5), textcoords="offset points", fontsize=7, ha="right")
        axes.set_title(world, fontsize=10, fontweight="bold")
        axes.set_xlabel(f"{label}, in truth")
        clean(axes)
    panels[0].set_ylabel(f"{label}, in the world")
    return figure
