"""The one table runner: every missing run of a table is measured, every kept one is read, and rows and checks follow.

A table is an outline, which says what is shown and claimed, and its runs, each of which knows how it is measured.
Resuming, Ray, files, seeds, intervals and verdicts are here. Missing runs are Ray tasks where there are several, so
that a cluster shortens a table; a table that was killed goes on run by run.
"""

import importlib.util
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from experiments.report.frames import check_frame, frame_of, markdown, pivot
from experiments.tables.runs import (
    Measured,
    Run,
    check_publishable,
    count_opening,
    keep,
    openings,
    publish_json,
    published_stamp,
    result_of,
)
from recsim_env.files import differences, read_json
from recsim_env.plugins import nearest
from recsim_env.results import EvaluationResult, Row, as_json, judge


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a table is run, the same for all tables."""

    results: Path = Path("experiments/results")
    """Where finished runs leave their files; another folder is for trials, from a changed checkout too."""
    again: bool = False
    """Measure again what is kept with other settings, logs or worlds; without this it is refused."""
    worlds: tuple[str, ...] = ()
    """Worlds to play in, "A judge-dev" to develop; by default all, those that decide among them."""
    jobs: int | None = None
    """Runs side by side, as Ray tasks; by default as many as there are cores. 1 runs all in this process."""
    address: str | None = None
    """Address of a running Ray cluster to join ("auto" finds it); its machines must share this folder."""
    json: Path | None = None
    """Also write rows and checks here."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A claim about two rows of one world, paired by session and training seed."""

    name: str
    other: str
    metric: str
    how: Literal["minus", "over"] = "minus"
    """Whether ``other`` is subtracted, or divides."""
    bar: float | None = 0.0
    """What the whole interval should clear; nothing is claimed without it."""
    side: Literal["above", "below"] = "above"
    """The side of the bar on which the whole interval should lie."""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a table shows and claims, known before anything is measured."""

    name: str
    """Folder of its files in the results."""
    title: str
    metrics: Mapping[str, str]
    """Metrics that are shown, each with its heading, the main one first."""
    comparisons: Sequence[Comparison] = ()
    claims: Callable[[str, str], bool] = lambda setting, world: True
    """Whether a comparison in this setting and world is held to its bar, or only told."""
    min_seeds: int = 2
    """Training seeds that a trained method needs for its comparisons to be held to a bar."""
    scale: float = 1.0
    """Factor of shown figures: 100 for per cent."""
    further: Callable[[EvaluationResult], Iterable[Mapping[str, Any]]] = lambda result: ()
    """Checks that all rows of a setting make together, each with its ``world``."""


class Table(Protocol):
    """What a table file declares; its fields are the flags of ``compare``."""

    outline: ClassVar[Outline]

    @property
    def run(self) -> RunOptions:
        """How it is run."""

    def runs(self) -> Iterable[Run]:
        """Every run, in the order of the rows; builds the worlds that are missing."""


@dataclass(frozen=True)
class Finished:
    """A complete table."""

    outline: Outline
    contents: Sequence[Mapping[str, Any]]
    """The files, in the order of the runs; ``file`` says of each whether it is "kept" or "new"."""
    results: Mapping[str, EvaluationResult]
    """Setting to rows."""
    checks: Sequence[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Rows and checks of all settings as JSON values."""
        rows = [
            {"setting": setting, **as_json(row)} for setting, result in self.results.items() for row in result.rows()
        ]
        return {"table": self.outline.name, "rows": rows, "checks": list(self.checks), **published_stamp()}


def complete(outline: Outline, runs: Iterable[Run], options: RunOptions) -> Finished:
    """Measures what is missing, reads everything back and judges it.

    Raises:
        ValueError: a kept file is of other settings, logs or worlds; or results would be published from a changed
            checkout.
    """
    name, folder = outline.name, options.results / outline.name
    runs = chosen_runs(list(runs), options.worlds)
    missing = missing_runs(runs, folder, options.again)
    print(f"{name}: {len(runs) - len(missing)} of {len(runs)} runs are kept in {folder}", flush=True)
    if missing:
        check_publishable(folder)
        begun = time.perf_counter()
        for number, (run, measured) in enumerate(_outcomes(name, missing, options), start=1):
            keep(run.path(folder), run, measured)
            minutes = (time.perf_counter() - begun) / 60
            print(f"{name}: measured {number} of {len(missing)} ({run}); {minutes:.1f} minutes", flush=True)
    finished = judged(
        outline, [{**read_json(run.path(folder)), "file": "new" if run in missing else "kept"} for run in runs]
    )
    if options.json:
        publish_json(options.json, finished.to_json())
    return finished


def chosen_runs(runs: Sequence[Run], worlds: Sequence[str]) -> list[Run]:
    """The runs in some worlds, or all.

    Raises:
        ValueError: there is no such world.
    """
    known = dict.fromkeys(run.world for run in runs)
    for name in worlds:
        if name not in known:
            raise ValueError(f"no world {name!r}{nearest(name, known)}: this table plays in {', '.join(known)}")
    return [run for run in runs if not worlds or run.world in worlds]


def missing_runs(runs: Sequence[Run], folder: Path, again: bool = False) -> list[Run]:
    """The runs without a file of just their card; the one rule of using a kept result.

    Raises:
        ValueError: there are files of other cards, and they are not to be measured again.
    """
    missing, others = [], []
    for run in runs:
        path = run.path(folder)
        changes = differences(read_json(path)["card"], run.full_card, most=3) if path.exists() else ""
        if changes:
            others.append(f"{path} ({changes})")
        if changes or not path.exists():
            missing.append(run)
    if others and not again:
        raise ValueError(
            f"{len(others)} kept files are of other work, the first one {others[0]}; measure them again with --again, "
            "ask for what they hold, or choose another --results folder"
        )
    return missing


def _outcomes(table: str, missing: Sequence[Run], options: RunOptions) -> Iterator[tuple[Run, Measured]]:
    jobs = min(options.jobs or os.cpu_count() or 1, len(missing))
    if len(missing) > 1 and (jobs > 1 or options.address) and importlib.util.find_spec("ray"):
        yield from _as_tasks(table, missing, options, jobs)
        return
    prepared = set()
    for run in missing:
        if run.training not in prepared:
            run.prepare()
            prepared.add(run.training)
        count_opening(options.results, table, run)
        yield run, run.measure()


def _as_tasks(table: str, missing: Sequence[Run], options: RunOptions, jobs: int) -> Iterator[tuple[Run, Measured]]:
    """Ray tasks, a few more than there are cores at a time; what is shared is prepared once, before its runs."""
    import ray

    from agents.rllib.cluster import running_ray

    with running_ray(jobs, options.address):
        prepare = ray.remote(num_cpus=1)(lambda run: run.prepare())
        measure = ray.remote(num_cpus=1)(lambda run, _: run.measure())
        at_once = options.jobs or 2 * int(ray.cluster_resources().get("CPU", jobs))
        prepared: dict[tuple[str, str, int], Any] = {}
        running: dict[Any, Run] = {}
        waiting = list(missing)
        while waiting or running:
            while waiting and len(running) < at_once:
                run = waiting.pop(0)
                if run.training not in prepared:
                    prepared[run.training] = prepare.remote(run)
                count_opening(options.results, table, run)
                running[measure.remote(run, prepared[run.training])] = run
            (done,), _ = ray.wait(list(running), num_returns=1)
            yield running.pop(done), ray.get(done)


def judged(outline: Outline, contents: Sequence[Mapping[str, Any]]) -> Finished:
    """Rows and checks of the files of a table."""
    by_setting: dict[str, list[Mapping[str, Any]]] = {}
    for content in contents:
        by_setting.setdefault(content["card"]["setting"], []).append(content)
    results = {name: result_of(some) for name, some in by_setting.items()}
    checks = [check for name, result in results.items() for check in _checks(outline, name, result)]
    checks += [{"setting": name, **check} for name, result in results.items() for check in outline.further(result)]
    for content in contents:
        where = {name: content["card"][name] for name in ("setting", "world")}
        checks += [{**where, **check} for check in content["checks"]]
    return Finished(outline, contents, results, checks)


def _checks(outline: Outline, setting: str, result: EvaluationResult) -> Iterator[dict[str, Any]]:
    for comparison, world in product(outline.comparisons, result.world_names):
        row = compared(result, comparison, world)
        if row is None:
            continue
        cells = [result.cells[name, world] for name in (comparison.name, comparison.other)]
        enough = all(len(cell.value(comparison.metric)) >= outline.min_seeds for cell in cells if cell.world_requests)
        verdict = judge(
            f"{comparison.name} {'-' if comparison.how == 'minus' else '/'} {comparison.other}",
            value=row.mean,
            low=row.low,
            high=row.high,
            bar=comparison.bar if enough and outline.claims(setting, world) else None,
            side=comparison.side,
        )
        where = {"setting": setting, "world": world, "metric": comparison.metric}
        yield {**where, **as_json(verdict), "side": comparison.side, "seeds": row.seeds}


def compared(result: EvaluationResult, comparison: Comparison, world: str) -> Row | None:
    """The difference or ratio of two rows, or nothing where they did not play the same sessions."""
    asked = (comparison.name, comparison.other, world, comparison.metric)
    if not result.paired(*asked):
        return None
    return result.difference(*asked) if comparison.how == "minus" else result.ratio(*asked)


def show(finished: Finished, options: RunOptions) -> None:
    """Prints rows, checks and how often the deciding worlds were opened."""
    outline = finished.outline
    files: dict[tuple[str, str], list[str]] = {}
    for content in finished.contents:
        for policy in content["cells"]:
            files.setdefault((content["card"]["setting"], policy), []).append(content["file"])
    for setting, result in finished.results.items():
        rows = frame_of(result.rows())
        for metric, heading in outline.metrics.items():
            if metric in result.metrics:
                shown = pivot(rows, metric, scale=outline.scale)
                shown["files"] = [" and ".join(sorted(set(files[setting, policy]))) for policy in shown["policy"]]
                print(f"\n{setting}: {heading}\n\n{markdown(shown)}")
    if finished.checks:
        print(f"\n{markdown(check_frame(finished.checks))}")
    dates = sorted({content["date"] for content in finished.contents})
    print(f"\n{len(finished.contents)} runs, measured {' and '.join(dict.fromkeys((dates[0], dates[-1])))}")
    for world, count in openings(options.results).items():
        print(f"opened {count} times: {world}")
