"""Plots of a world's card: what is emitted over what was logged, worth of fixed videos, depth by ranking.

Dashed lines are the bars. Every function returns a ``Figure`` of its own, or None where there is nothing to draw.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.plots import BLUE, INK, LINES, PALE, clean
from recsim_env.types import WATCH_TIME
from reward_models.fidelity.depth import DEPTH_METRICS
from reward_models.fidelity.verdicts import BUCKET_BAR, GROUP_BAR, GROUP_POSITIVES, PROBE_BARS, UNIFORM_BAR

SHOWN = ("click", "long_view", "like", WATCH_TIME)
"""Signals that are drawn."""
_COLOURS = dict(zip(SHOWN, LINES, strict=False))
FEWEST_ROWS = 100
"""Groups of fewer rows are not drawn."""
_WIDEST = 2.5  # ratios beyond are drawn at the edge


def probes(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure | None:
    """One panel for each signal: worth of fixed videos over that at the first request, a line for each policy.

    With two standard errors over users.
    """
    first = next(iter(found.values()), {}).get("1", {})
    names = [name for name in SHOWN if first.get(name, 0.0) > 0]
    if not names:
        return None
    figure = Figure(figsize=(0.6 + 2.9 * len(names), 2.9), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for name, axes in zip(names, panels, strict=True):
        for (policy, requests), colour in zip(found.items(), LINES, strict=False):
            ratios = [figures[name] / requests["1"][name] for figures in requests.values()]
            errors = [2 * ((figures.get("ratio_error") or {}).get(name) or 0.0) for figures in requests.values()]
            axes.errorbar([int(request) for request in requests], ratios, errors, fmt="o-", ms=4, color=colour,
                          lw=1.4, elinewidth=0.7, label=policy)  # fmt: skip
        if name in PROBE_BARS:
            _bars(axes, PROBE_BARS[name], horizontal=True)
        axes.set_title(name, fontsize=10, fontweight="bold")
        axes.set_xlabel("request")
        clean(axes)
    panels[0].set_ylabel("worth over the first request's")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def groups(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure | None:
    """One panel for each grouping: emitted over logged of each group; hollow where it has too few positives."""
    found = {
        title: [group for group in some if group["rows"] >= FEWEST_ROWS]
        for title, some in found.items()
        if any(group["rows"] >= FEWEST_ROWS for group in some)
    }
    if not found:
        return None
    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    tallest = max(len(some) for some in found.values())
    size = (0.6 + 4.0 * columns, 0.6 + rows * (0.9 + 0.34 * tallest))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for (title, some), axes in zip(found.items(), grid, strict=False):
        for number, name in enumerate(SHOWN):
            _ratios(axes, some, name, 0.16 * (number - (len(SHOWN) - 1) / 2))
        _bars(axes, GROUP_BAR)
        axes.set_yticks(range(len(some)), [f"{group['group']} ({group['rows']:,})" for group in some], fontsize=8)
        axes.set_ylim(len(some) - 0.4, -0.6)
        axes.set_xlim(1 / _WIDEST, _WIDEST)
        axes.set_xscale("log")
        axes.set_xticks([0.5, 0.8, 1.0, 1.25, 2.0], ["0.5", "0.8", "1", "1.25", "2"])
        axes.minorticks_off()
        axes.set_title(f"{title} (rows)", fontsize=10, fontweight="bold")
        clean(axes)
    for axes in grid[len(found) :]:
        axes.remove()
    _signal_legend(figure)
    return figure


def uniform_slice(logged: Mapping[str, Any]) -> Figure | None:
    """Emitted over logged on all rows and on those of uniform exposure, with two standard errors."""
    if "uniform" not in logged:
        return None
    parts = {"all rows": logged, "uniform exposure": logged["uniform"]}
    figure = Figure(figsize=(6.4, 2.4), layout="constrained")
    axes = figure.add_subplot()
    rows = [
        {"group": title, "rows": part["rows"], WATCH_TIME: part[WATCH_TIME], **part["signals"]}
        for title, part in parts.items()
    ]
    for number, name in enumerate(SHOWN):
        _ratios(axes, rows, name, 0.16 * (number - (len(SHOWN) - 1) / 2))
    _bars(axes, UNIFORM_BAR)
    axes.set_yticks(range(len(rows)), [f"{row['group']} ({row['rows']:,})" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("emitted over logged")
    clean(axes)
    _signal_legend(figure)
    return figure


def coverage(found: Mapping[str, Any] | None) -> Figure | None:
    """Share of logged watch times below the model's own quantiles, less the level, by duration."""
    if not found:
        return None
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    levels = [100 * level for level in found["levels"]]
    lines = [("all rows", found["rows"], found["overall"])]
    lines += [(bucket["group"], bucket["rows"], bucket["covered"]) for bucket in found["by_duration"]]
    for number, (title, rows, covered) in enumerate(lines):
        colour, width = (INK, 2.2) if number == 0 else (LINES[(number - 1) % len(LINES)], 1.2)
        gaps = [100 * share - level for share, level in zip(covered, levels, strict=True)]
        axes.plot(levels, gaps, "o-", ms=3.5, lw=width, color=colour, label=f"{title} ({rows:,})")
    for bar in (-100 * BUCKET_BAR, 100 * BUCKET_BAR):
        axes.axhline(bar, color=INK, lw=0.8, ls="--")
    axes.set_xlabel("level of the watch time (%)")
    axes.set_ylabel("points too many below it")
    clean(axes)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def depth(found: Mapping[str, Any] | None) -> Figure | None:
    """Requests and seconds of a session by ranking, means with 95 % intervals."""
    if not found:
        return None
    names = list(found["policies"])
    figure = Figure(figsize=(8.4, 0.9 + 0.34 * len(names)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    labels = ("requests of a session", "seconds watched in a session")
    for metric, label, axes in zip(DEPTH_METRICS, labels, panels, strict=True):
        rows = [found["policies"][name][metric] for name in names]
        axes.hlines(range(len(names)), [row["low"] for row in rows], [row["high"] for row in rows], color=BLUE, lw=2,
                    alpha=0.55)  # fmt: skip
        axes.scatter([row["mean"] for row in rows], range(len(names)), color=BLUE, s=25, zorder=2)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel(label)
        clean(axes)
    return figure


def _ratios(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str, shift: float) -> None:
    """A point for each row, with two standard errors; hollow where too few positives make it a matter of luck."""
    for place, row in enumerate(rows):
        found = row.get(name) or {}
        if found.get("ratio") is None:
            continue
        ratio, error = found["ratio"], 2 * (found.get("ratio_error") or 0.0)
        ends = [min(max(end, 1 / _WIDEST), _WIDEST) for end in (ratio - error, ratio + error)]
        is_firm = found.get("positives", row["rows"]) >= GROUP_POSITIVES
        colour, height = _COLOURS[name], place + shift
        axes.hlines(height, *ends, color=colour, lw=1.2, alpha=0.5)
        edge = min(max(ratio, 1 / _WIDEST), _WIDEST)
        axes.plot(edge, height, "o", ms=4.5, mec=colour, mfc=colour if is_firm else "white")


def _bars(axes: Axes, bar: float, *, horizontal: bool = False) -> None:
    line = axes.axhline if horizontal else axes.axvline
    line(1.0, color=PALE, lw=1.2, zorder=0)
    for end in (1.0 - bar, 1.0 + bar):
        line(end, color=INK, lw=0.8, ls="--", zorder=0)


def _signal_legend(figure: Figure) -> None:
    handles = [figure.axes[0].plot([], [], "o", ms=5, color=colour, label=name)[0] for name, colour in _COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
