"""The report of an evaluation: one self-contained HTML page, CSV, JSON and TensorBoard scalars.

``report.html`` needs no other file. ``report.json`` holds ``settings``, ``worlds``, ``rows``, ``differences``
(each policy minus each baseline, paired by session), ``gaps`` (the first world minus the others) and ``checks``;
``report.csv`` the same figures, one a line. ``plots/`` keeps the figures as PNG files, and ``tensorboard/``
one run for each policy and world.
"""

import base64
import io
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from experiments.policies import TO_BEAT
from experiments.report import plots
from experiments.report.frames import VERDICTS, check_frame, frame_of, pivot, rows_of, texts_of, wide
from experiments.tables.runs import slug
from recsim_env.files import write_json, write_text, write_whole
from recsim_env.results import EvaluationResult, Row, as_json, to_plain, write_csv

CURVES = ("session/watch_time", "session/length", "train/", "evaluator/", "reward/", "feedback/", "validation/")
"""Tags of a training run worth a panel, the first groups first."""

MAX_CURVES = 9


def write_report(
    result: EvaluationResult,
    folder: str | Path,
    *,
    title: str,
    training_runs: Mapping[str, str | Path] | None = None,
    checks: Sequence[Mapping[str, Any]] = (),
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the report; each file appears whole or not at all.

    Args:
        result: what ``evaluate`` returned, or the rows of a table.
        folder: where the files go.
        title: heading of the page.
        training_runs: name to a run folder with TensorBoard events, drawn as training curves.
        checks: claims with their verdicts, as ``report.frames.check_frame`` takes them.
        extra: further JSON values of ``report.json``.

    Returns:
        The path of ``report.html``.
    """
    folder = Path(folder)
    found = [name for name in TO_BEAT if name in result.policies]
    differences, gaps = list(_differences(result, found)), list(_gaps(result))
    figures = _figures(result, found, training_runs or {})
    for name, (_, png) in figures.items():
        write_whole(folder / "plots" / f"{name}.png", lambda path, png=png: path.write_bytes(png))  # type: ignore[misc]
    content = {
        "title": title,
        **result.to_json(),
        "differences": [as_json(row) for row in differences],
        "gaps": [as_json(row) for row in gaps],
        "checks": list(checks),
        **(extra or {}),
    }
    write_json(folder / "report.json", to_plain(content))
    write_csv(folder / "report.csv", [*result.rows(), *differences, *gaps])
    write_scalars(result, folder / "tensorboard")
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = templates.get_template("page.html").render(
        title=title,
        settings=result.settings,
        sections=list(_sections(result, differences, gaps, figures)),
        checks=check_frame(checks) if checks else None,
        verdicts=VERDICTS,
        figures={name: (caption, base64.b64encode(png).decode()) for name, (caption, png) in figures.items()},
        details={world: _metrics(result, world) for world in result.world_names} | dict(_world_tables(result)),
    )
    return write_text(folder / "report.html", page)


def write_scalars(result: EvaluationResult, folder: Path) -> None:
    """Writes every figure as a TensorBoard scalar: run ``<policy>@<world>``, tag ``evaluation/<metric>``."""
    from torch.utils.tensorboard import SummaryWriter  # takes a second to import

    for policy, world in result.cells:
        run = folder / slug(f"{policy}@{world}")
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
    world = "truth" if "truth" in result.world_names else result.world_names[-1]  # the one that decides
    curves = {name: read_curves(run) for name, run in training_runs.items()}
    drawn: dict[str, tuple[str, Figure | None]] = {
        "session_watch_time": (
            "Session watch time by world, mean and 95 % interval; blue: no other policy is clearly better.",
            plots.metric_by_world(result, "session_watch_time", "seconds watched per session"),
        ),
        **{
            slug(f"minus {baseline}"): (
                f"Each policy minus {baseline} on the same sessions; blue where the whole interval lies above zero, "
                "orange where it lies below.",
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
        "training_curves": (
            "Training curves; in the first rounds only short sessions end, so their means rise by themselves.",
            plots.training_curves(curves),
        ),
    }
    return {name: (caption, _png(image)) for name, (caption, image) in drawn.items() if image is not None}


def _sections(
    result: EvaluationResult, differences: Sequence[Row], gaps: Sequence[Row], figures: Mapping[str, Any]
) -> Iterator[tuple[str, pd.DataFrame | None, str]]:
    """Heading, table and name of the figure of each section, from top to bottom."""
    watch = pivot(rows_of(result), "session_watch_time").set_index("policy")
    rows = {policy: next(row for row in result.rows() if row.policy == policy) for policy in result.policies}
    watch["trained on"] = [rows[policy].feedback for policy in watch.index]
    watch["world requests"] = [f"{rows[policy].world_requests:,}" for policy in watch.index]
    watch["seeds"] = [str(rows[policy].seeds) for policy in watch.index]
    yield "Session watch time (s)", watch.loc[plots.ranked(result)].reset_index(), "session_watch_time"
    for baseline in dict.fromkeys(str(row.baseline) for row in differences):
        some = frame_of(row for row in differences if row.baseline == baseline)
        heading = f"Paired difference to {baseline} (s per session)"
        yield heading, _coloured(some, "world"), slug(f"minus {baseline}")
    for name, heading in (
        ("evaluator_against_truth", "Evaluator against truth"),
        ("durations", "Durations"),
        ("what_was_shown", "What was shown"),
        ("training_curves", "Training"),
    ):
        if name in figures:
            yield heading, None, name
    if gaps:
        heading = f"Gap: {result.world_names[0]} minus the other worlds (s per session)"
        yield heading, _coloured(frame_of(gaps), "baseline_world"), ""


def _coloured(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Policies by worlds; figures whose whole interval lies on one side of zero are marked."""
    marks = np.select([rows["low"] > 0, rows["high"] < 0], ["above", "below"], "")
    span = Markup('<span class="{}">{}</span>')
    return wide(rows, [span.format(*pair) for pair in zip(marks, texts_of(rows, sign="+"), strict=True)], by=by)


def _metrics(result: EvaluationResult, world: str) -> pd.DataFrame:
    """All metrics by policies in one world."""
    rows = rows_of(result)
    rows = rows[rows["world"] == world]
    return wide(rows, texts_of(rows), index="metric", by="policy")


def _world_tables(result: EvaluationResult) -> Iterator[tuple[str, pd.DataFrame]]:
    """Fidelity and declared parameters of the worlds, one line for each leaf."""
    for part, heading in (("fidelity", "Fidelity of the worlds"), ("declared", "Declared, not learned")):
        leaves = {name: dict(_leaves(card.get(part, {}))) for name, card in result.worlds.items()}
        if any(leaves.values()):
            yield heading, pd.DataFrame(leaves, dtype=object).fillna("–").rename_axis("").reset_index()


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path} · {key}" if path else str(key))
    elif not isinstance(value, list | tuple) or len(value) <= 8:
        yield path, "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _png(image: Figure) -> bytes:
    held = io.BytesIO()
    image.savefig(held, format="png", dpi=130)
    return held.getvalue()
