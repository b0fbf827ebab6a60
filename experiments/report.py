"""The report of an evaluation: one self-contained HTML page, CSV, JSON and TensorBoard scalars.

``report.html`` needs no other file. ``report.json`` holds ``settings``, ``worlds``, ``rows``, ``differences``
(each policy minus each baseline, paired by session) and ``gaps`` (the first world minus the others);
``report.csv`` the same figures, one a line. ``plots/`` keeps the figures as PNG files, and ``tensorboard/``
one run for each policy and world.
"""

import base64
import html
import io
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments import plots
from recsim_env.files import write_json, write_text
from recsim_env.results import EvaluationResult, Row, as_json, to_plain, write_csv

BASELINES = ("pointwise greedy", "best of 20")
"""What a trained ranker has to beat."""

MAIN_METRICS = (
    "session_watch_time", "session_length", "list_reward", "click_rate", "long_view_rate", "like_rate",
    "catalogue_coverage", "exposure_gini", "cold_start_share", "tag_diversity", "evaluator_value",
    "true_list_value", "evaluator_gap",
)  # fmt: skip
"""What the small committed files keep; ``report.json`` has everything."""

CURVES = ("session/watch_time", "session/length", "train/", "evaluator/", "reward/", "feedback/", "validation/")
"""Tags of a training run worth a panel, the first groups first."""

MAX_CURVES = 9

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em } h2 { font-size: 1.2em; margin-top: 2em }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: 3px 12px 3px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4 }
th:first-child, td:first-child { text-align: left }
small { color: #777 } .above { color: #0072b2; font-weight: 600 } .below { color: #b3400a; font-weight: 600 }
img { max-width: 100% } .scroll { overflow-x: auto } summary { cursor: pointer; color: #0072b2 }
"""


def write_report(
    result: EvaluationResult,
    folder: str | Path,
    *,
    title: str,
    training_runs: Mapping[str, str | Path] | None = None,
    baselines: Sequence[str] = BASELINES,
) -> Path:
    """Writes the report; each file appears whole or not at all.

    Args:
        result: what ``evaluate`` returned.
        folder: where the files go.
        title: heading of the page.
        training_runs: name to a run folder with TensorBoard events, drawn as training curves.
        baselines: policies that all others are compared with, as far as the result holds them.

    Returns:
        The path of ``report.html``.
    """
    folder = Path(folder)
    found = [name for name in baselines if name in result.policies]
    differences = list(_differences(result, found))
    gaps = list(_gaps(result))
    figures = _figures(result, found, training_runs or {})
    for name, (_, png) in figures.items():
        path = folder / "plots" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)
    extra = {"differences": [as_json(row) for row in differences], "gaps": [as_json(row) for row in gaps]}
    write_json(folder / "report.json", to_plain({"title": title, **result.to_json(), **extra}))
    write_csv(folder / "report.csv", [*result.rows(), *differences, *gaps])
    write_scalars(result, folder / "tensorboard")
    sections = _sections(result, differences, gaps, figures)
    body = "\n".join(f"<section>{section}</section>" for section in sections)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )
    return write_text(folder / "report.html", page)


def write_scalars(result: EvaluationResult, folder: Path) -> None:
    """Writes every figure as a TensorBoard scalar: run ``<policy>@<world>``, tag ``evaluation/<metric>``."""
    from torch.utils.tensorboard import SummaryWriter  # takes a second to import

    for policy, world in result.cells:
        run = folder / _slug(f"{policy}@{world}")
        shutil.rmtree(run, ignore_errors=True)
        with SummaryWriter(str(run)) as writer:
            for metric in result.cells[policy, world].metrics:
                mean = result.row(policy, world, metric).mean
                if math.isfinite(mean):
                    writer.add_scalar(f"evaluation/{metric}", mean, 0)


def read_curves(run: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of a training run from its TensorBoard events: tag to (step, value) pairs.

    Raises:
        ValueError: the folder holds no events.
    """
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    if not any(Path(run).glob("events.out.tfevents.*")):
        raise ValueError(f"{run} holds no TensorBoard events; give the folder that training wrote to")
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for group in CURVES for tag in sorted(events.Tags()["scalars"]) if tag.startswith(group)]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags[:MAX_CURVES]}


def _differences(result: EvaluationResult, baselines: Sequence[str]) -> Iterator[Row]:
    for baseline in baselines:
        for policy in result.policies:
            for world in result.world_names:
                if policy != baseline and result.paired(policy, baseline, world):
                    yield result.difference(policy, baseline, world)


def _gaps(result: EvaluationResult) -> Iterator[Row]:
    first, *others = result.world_names
    for policy in result.policies:
        for world in others:
            if result.measured(policy, first) and result.measured(policy, world):
                yield result.gap(policy, first, world)


def _figures(
    result: EvaluationResult, baselines: Sequence[str], training_runs: Mapping[str, str | Path]
) -> dict[str, tuple[str, bytes]]:
    """Name to (caption, PNG), in the order of the page."""
    world = _reference_world(result)
    curves = {name: read_curves(run) for name, run in training_runs.items()}
    drawn: dict[str, tuple[str, Figure | None]] = {
        "session_watch_time": (
            "Session watch time by world, mean and 95 % interval; the best policy of each world in blue.",
            plots.metric_by_world(result, "session_watch_time", "seconds watched per session"),
        ),
        **{
            _slug(f"minus {baseline}"): (
                f"Each policy minus {baseline} on the same sessions; blue above zero, orange below.",
                plots.differences(result, baseline, "session_watch_time", "seconds per session"),
            )
            for baseline in baselines
        },
        "evaluator_against_truth": (
            "What the evaluator promised of the lists that were shown, and what the world truly expects of "
            "them. A diamond far to the right of its dot is over-optimism: the policy found the "
            "evaluator's mistakes.",
            plots.evaluator_against_truth(result),
        ),
        "durations": (f"What was shown, and watched, by duration; world {world}.", plots.durations(result, world)),
        "what_was_shown": (
            f"Coverage, concentration, diversity and cold videos; world {world}.",
            plots.what_was_shown(result, world),
        ),
        "training_curves": ("Training curves.", plots.training_curves(curves)),
    }
    return {name: (caption, _png(figure)) for name, (caption, figure) in drawn.items() if figure is not None}


def _reference_world(result: EvaluationResult) -> str:
    """The world that decides: the truth where it is known, otherwise the last judge."""
    return "truth" if "truth" in result.world_names else result.world_names[-1]


def _sections(
    result: EvaluationResult,
    differences: Sequence[Row],
    gaps: Sequence[Row],
    figures: Mapping[str, tuple[str, bytes]],
) -> Iterator[str]:
    """The page from top to bottom."""
    settings = result.settings
    yield (
        f"<p>{settings.get('num_sessions', '')} paired sessions for each policy and world, seed "
        f"{settings.get('seed', '')}. Brackets hold 95 % intervals: over training seeds where a policy has several, "
        "otherwise over sessions.</p>"
    )
    yield "<h2>Session watch time (s)</h2>" + _watch_time_table(result) + _image(figures, "session_watch_time")
    for baseline in dict.fromkeys(row.baseline for row in differences):
        rows = [row for row in differences if row.baseline == baseline]
        yield (
            f"<h2>Paired difference to {html.escape(str(baseline))} (s per session)</h2>"
            + _pivot(rows, lambda row: row.world)
            + "<p><small>Coloured: the whole interval, over sessions and over training seeds, lies on one side of "
            "zero.</small></p>" + _image(figures, _slug(f"minus {baseline}"))
        )
    for name, heading in (
        ("evaluator_against_truth", "Evaluator against truth"),
        ("durations", "Durations"),
        ("what_was_shown", "What was shown"),
        ("training_curves", "Training"),
    ):
        if name in figures:
            yield f"<h2>{heading}</h2>" + _image(figures, name)
    if gaps:
        heading = f"<h2>Gap: {html.escape(result.world_names[0])} minus the other worlds (s per session)</h2>"
        yield heading + _pivot(gaps, lambda row: str(row.baseline_world))
    details = "".join(_metrics_table(result, world) for world in result.world_names)
    yield "<h2>All figures</h2>" + details
    yield from _world_tables(result)


def _watch_time_table(result: EvaluationResult) -> str:
    """Policies, best first, by worlds; with what each was trained on."""
    head = ["policy", *result.world_names, "trained on", "world requests", "seeds"]
    lines = []
    for policy in plots.ranked(result):
        rows = {
            world: result.row(policy, world, "session_watch_time")
            for world in result.world_names
            if result.measured(policy, world)
        }
        any_row = next(iter(rows.values()))
        figures = [_figure_text(rows[world]) if world in rows else "–" for world in result.world_names]
        seen = [any_row.feedback, f"{any_row.world_requests:,}", str(any_row.seeds)]
        lines.append([html.escape(policy), *figures, *seen])
    return _table(head, lines)


def _pivot(rows: Sequence[Row], column: Any) -> str:
    """Policies by the column's values; figures whose whole interval has one sign are coloured."""
    columns = list(dict.fromkeys(column(row) for row in rows))
    by_policy: dict[str, dict[str, str]] = {}
    for row in rows:
        low, high = row.widest
        sign = "above" if low > 0 else "below" if high < 0 else ""
        text = f'<span class="{sign}">{_figure_text(row, "+")}</span>'
        by_policy.setdefault(row.policy, {})[column(row)] = text
    lines = [[html.escape(policy), *(texts.get(name, "–") for name in columns)] for policy, texts in by_policy.items()]
    return _table(["policy", *columns], lines)


def _metrics_table(result: EvaluationResult, world: str) -> str:
    policies = [policy for policy in plots.ranked(result) if result.measured(policy, world)]
    lines = []
    for metric in result.metrics:
        cells = [
            _figure_text(result.row(policy, world, metric)) if result.measured(policy, world, metric) else "–"
            for policy in policies
        ]
        lines.append([html.escape(metric), *cells])
    return f"<details><summary>{html.escape(world)}</summary>{_table(['metric', *policies], lines)}</details>"


def _world_tables(result: EvaluationResult) -> Iterator[str]:
    """Fidelity and declared parameters of the worlds, one line for each leaf."""
    for part, heading in (("fidelity", "Fidelity of the worlds"), ("declared", "Declared, not learned")):
        leaves = {name: dict(_leaves(card.get(part, {}))) for name, card in result.worlds.items()}
        keys = list(dict.fromkeys(key for values in leaves.values() for key in values))
        if keys:
            lines = [[html.escape(key), *(_value_text(values.get(key)) for values in leaves.values())] for key in keys]
            table = _table(["", *leaves], lines)
            yield f"<h2>{heading}</h2><details><summary>{len(keys)} entries</summary>{table}</details>"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path} · {key}" if path else str(key))
    elif not isinstance(value, list | tuple) or len(value) <= 8:
        yield path, value


def _value_text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))


def _figure_text(row: Row, sign: str = "") -> str:
    """Mean and interval with as many digits as the mean deserves."""
    if math.isnan(row.mean):
        return "–"
    digits = max(0, min(5, 3 - math.floor(math.log10(abs(row.mean))))) if row.mean else 1
    digits = min(digits, 1) if abs(row.mean) >= 10 else digits
    text = f"{row.mean:{sign}.{digits}f}"
    if math.isnan(row.low):
        return text
    return f"{text} <small>[{row.low:{sign}.{digits}f}, {row.high:{sign}.{digits}f}]</small>"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """An HTML table; the head is escaped here, the cells by whoever made them."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _image(figures: Mapping[str, tuple[str, bytes]], name: str) -> str:
    caption, png = figures[name]
    text, data = html.escape(caption), base64.b64encode(png).decode()
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption><small>{text}</small></figcaption></figure>"


def _slug(name: str) -> str:
    """The name as a file's name."""
    return re.sub(r"[^\w.@-]+", "_", name)


def _png(figure: Figure) -> bytes:
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=130)
    return held.getvalue()
