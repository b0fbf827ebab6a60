"""The report of an evaluation: one self-contained HTML page, CSV, JSON and TensorBoard scalars.

``report.html`` needs no other file. ``report.json`` holds ``settings``, ``worlds``, ``rows``, ``differences``
(each policy minus each baseline, paired by session), ``gaps`` (the first world minus the others) and ``checks``;
``report.csv`` the same figures, one a line. ``plots/`` keeps the figures as PNG files, and ``tensorboard/``
one run for each policy and world.
"""

import base64
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from experiments.policies import TO_BEAT
from experiments.report import plots
from experiments.report.frames import VERDICTS, check_frame, differences, frame_of, pivot, repeaters, texts_of, wide
from experiments.tables.runs import slug
from recsim_env.files import write_json, write_text, write_whole
from recsim_env.results import EvaluationResult, Row, as_json, to_plain, write_csv
from recsim_env.session_metrics import REPORT_TABLES

CURVES = ("session/watch_time", "session/length", "train/", "evaluator/", "reward/", "feedback/", "validation/")
"""Tags of a training run worth a panel, the first groups first."""

MAX_CURVES = 9

INTERVALS = (
    "Brackets hold 95 % intervals over sessions and training seeds; with one seed they speak of that training run only."
)


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
    rows, lead, gaps = result.rows(), differences(result, result.policies, TO_BEAT), list(_gaps(result))
    curves = {name: read_curves(run) for name, run in (training_runs or {}).items()}
    sections = list(_sections(frame_of(rows), frame_of(lead), frame_of(gaps), curves))
    content = {
        "title": title,
        **result.to_json(),
        "differences": [as_json(row) for row in lead],
        "gaps": [as_json(row) for row in gaps],
        "checks": list(checks),
        **(extra or {}),
    }
    write_json(folder / "report.json", to_plain(content))
    write_csv(folder / "report.csv", [*rows, *lead, *gaps])
    write_scalars(result, folder / "tensorboard")
    number, seed = (result.settings.get(name) for name in ("num_sessions", "seed"))
    played = f"{number} paired sessions for each policy and world, seed {seed}. " if number else ""
    return write_page(
        folder,
        title=title,
        intro=[played + INTERVALS, repeaters(result)],
        sections=sections,
        claims=check_frame(checks) if checks else None,
        meanings=VERDICTS,
        details=dict(_metrics(frame_of(rows))) | dict(_about_worlds(result)),
    )


def write_page(
    folder: Path,
    *,
    title: str,
    intro: Iterable[str],
    sections: Iterable["Section"],
    claims: pd.DataFrame | None = None,
    meanings: Mapping[str, str] | None = None,
    details: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Writes ``report.html``, which needs no other file, and its plots as PNG files.

    Args:
        folder: where the files go.
        title: heading of the page.
        intro: paragraphs below it; empty ones are left out.
        sections: parts of the page.
        claims: a table with a column ``verdict``, shown first.
        meanings: what each verdict says.
        details: tables by heading, folded away at the end.
    """
    sections, images = list(sections), {}
    for section in sections:
        if section.image:
            path = folder / "plots" / f"{section.name}.png"
            write_whole(path, partial(section.image.savefig, format="png", dpi=130))
            images[section.name] = base64.b64encode(path.read_bytes()).decode()
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = templates.get_template("page.html").render(
        title=title,
        intro=[text for text in intro if text],
        sections=sections,
        images=images,
        claims=claims,
        meanings=meanings or {},
        details=details or {},
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


def _gaps(result: EvaluationResult) -> Iterator[Row]:
    first, *others = result.world_names
    for policy, world in product(result.policies, others):
        if result.measured(policy, first) and result.measured(policy, world):
            yield result.gap(policy, first, world)


class Section(NamedTuple):
    """One part of the page, from top to bottom."""

    heading: str
    table: pd.DataFrame | None = None
    name: str = ""
    """Name of the figure's file."""
    image: Figure | None = None
    caption: str = ""


def _sections(
    rows: pd.DataFrame, lead: pd.DataFrame, gaps: pd.DataFrame, curves: Mapping[str, Mapping[str, Any]]
) -> Iterator[Section]:
    """All of them, of rows, differences, gaps and the training curves of each run."""
    worlds, order = list(rows["world"].unique()), plots.ranked(rows)
    world = "truth" if "truth" in worlds else worlds[-1]  # the one that decides
    first = rows.drop_duplicates("policy").set_index("policy").loc[order]
    about = {"trained on": first["feedback"], "world requests": first["world_requests"].map("{:,}".format),
             "seeds": first["seeds"].astype(str)}  # fmt: skip
    watch = pivot(rows, "session_watch_time").set_index("policy").loc[order].assign(**about)
    yield Section(
        "Session watch time (s)",
        watch.reset_index(),
        "session_watch_time",
        plots.metric_by_world(rows, "session_watch_time", "seconds watched per session"),
        "Session watch time by world, mean and 95 % interval; blue: no other policy is clearly better.",
    )
    for baseline, some in lead.groupby("baseline", sort=False):
        yield Section(
            f"Paired difference to {baseline} (s per session)",
            _coloured(some, "world"),
            slug(f"minus {baseline}"),
            plots.differences(some, [policy for policy in order if policy != baseline], "seconds per session"),
            f"Each policy minus {baseline} on the same sessions; blue where the whole interval lies above zero, "
            "orange where it lies below.",
        )
    if image := plots.evaluator_against_truth(rows):
        caption = (
            "What the evaluator promised of the lists that were shown, and what the world truly expects of them. A "
            "diamond far to the right of its dot is over-optimism: the policy found the evaluator's mistakes."
        )
        promise = pivot(rows, "evaluator_over_truth").set_index("policy").reindex(order).fillna("").reset_index()
        yield Section("Evaluator over truth", promise, "evaluator_against_truth", image, caption)
    here = rows[rows["world"] == world]
    for heading, names in REPORT_TABLES.items():
        metrics = [metric for metric in here["metric"].unique() if metric.startswith(names)]
        some = here[here["metric"].isin(metrics)].assign(metric=lambda rows: rows["metric"].str.split("/").str[-1])
        table = wide(some, texts_of(some), by="metric").set_index("policy")
        ours = [policy for policy in order if policy in table.index]
        yield Section(f"{heading}; world {world}", table.loc[ours].reset_index())
    if image := plots.training_curves(curves):
        caption = "Training curves; in the first rounds only short sessions end, so their means rise by themselves."
        yield Section("Training", None, "training_curves", image, caption)
    if len(gaps):
        heading = f"Gap: {worlds[0]} minus the other worlds (s per session)"
        yield Section(heading, _coloured(gaps, "baseline_world"))


def _coloured(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Policies by worlds; figures whose whole interval lies on one side of zero are marked."""
    marks = np.select([rows["low"] > 0, rows["high"] < 0], ["above", "below"], "")
    span = Markup('<span class="{}">{}</span>')
    return wide(rows, [span.format(*pair) for pair in zip(marks, texts_of(rows, sign="+"), strict=True)], by=by)


def _metrics(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """World to all metrics by policies."""
    for world, some in rows.groupby("world", sort=False):
        yield str(world), wide(some, texts_of(some), index=["metric"], by="policy")


def _about_worlds(result: EvaluationResult) -> Iterator[tuple[str, pd.DataFrame]]:
    """Fidelity and declared parameters of the worlds, one line for each leaf."""
    for part, heading in (("fidelity", "Fidelity of the worlds"), ("declared", "Declared, not learned")):
        leaves = pd.json_normalize([card.get(part, {}) for card in result.worlds.values()], sep=" · ").T
        if len(leaves):
            leaves.columns = pd.Index(result.worlds)
            yield heading, leaves.map(_leaf).rename_axis("").reset_index()


def _leaf(value: Any) -> str:
    if isinstance(value, list | tuple):
        is_short = len(value) <= 8 and not any(isinstance(one, dict) for one in value)
        return str(value) if is_short else f"{len(value)} values"
    return "–" if pd.isna(value) else f"{value:.4g}" if isinstance(value, float) else str(value)
