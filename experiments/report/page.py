"""The page of headline results, ``experiments/RESULTS.md``: nothing is measured here, every figure stands in a file.

A table's setting is shown from its run files where there are any, and otherwise from the rows that an earlier version
left. The page is short; every file holds more.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments.report.frames import VERDICTS, check_frame, check_text, frame_of, markdown, pivot, texts_of, wide
from experiments.report.plots import reranker_curves
from experiments.report.ranking_plot import ranking_plot
from experiments.tables import goalrank, off_the_log, offline, ranking, rerankers, response_bars
from experiments.tables.runner import Outline, judged
from experiments.tables.runs import openings
from experiments.tables.settings import TRUTH
from recsim_env.files import read_json, write_whole

HISTORY = "history"
"""Folder, in the results, of the rows and checks of earlier versions, in the form of ``compare --json``."""

HEADLINES: dict[str, Sequence[str]] = {
    "goalrank": ("pointwise greedy", "best of 20", "evaluator search", "GoalRank", "greedy oracle"),
    "rerankers": ("pointwise greedy", "best of 100", "evaluator search", "MG-E-100", "GoalRank",
                  "GoalRank, trained in sessions", "GoalRank, warm start", "GoalRank, 10m",
                  "NAR4Rec, logged slates", "CLIG, reward and GC, 3"),
}  # fmt: skip
"""Rows that the page shows of tables that have more."""

SPEEDS = {
    "requests_per_cpu_second": "full step",
    "core_requests_per_cpu_second": "core step: slates given",
    "face_requests_per_cpu_second": "Gymnasium face",
    "step_over_forward": "core step / response forward",
    "reset_over_step": "reset / full step",
}
"""What the page calls the figures of the environment's benchmark."""

RANKED = ("AUC", "GAUC", "XAUC", "MAE", "CRPS", "rate click", "rate long_view")
"""Beginnings of the checks of learned users that are shown although they hold."""


def page(folder: Path) -> str:
    """The whole page from the files of a folder: blocks of Markdown between blank lines."""
    sections = (
        _learned_users(folder),
        _off_the_log(folder),
        _demo(folder, "demo"),
        _demo(folder, "demo_kuairand"),
        _table(folder, goalrank.OUTLINE),
        _table(folder, rerankers.OUTLINE),
        _ranking(folder),
        _offline(folder),
        _benchmarks(folder),
        _openings(folder),
    )
    claim = "; it ".join(VERDICTS[word].replace(":", " where", 1) for word in ("holds", "fails"))
    intro = (
        "Made by `python -m experiments.results_page` from the files in [results](results). Brackets hold 95 % "
        "intervals over sessions and training seeds; with one seed they speak of that training run only. A claim "
        f"{claim}, and is undecided between; without a bar nothing is claimed."
    )
    return "\n\n".join(["# Results", intro, *chain(*sections)]) + "\n"


def draw_curves(folder: Path) -> Iterator[Path]:
    """Draws the curves of the rerankers table and the points of the ranking table, for each setting."""
    metric, label = next(iter(ranking.OUTLINE.metrics.items()))
    points = partial(ranking_plot, truth=TRUTH, metric=metric, label=label)
    for outline, draw in ((rerankers.OUTLINE, reranker_curves), (ranking.OUTLINE, points)):
        for setting, rows in _told(folder, outline).rows.groupby("setting", sort=False):
            path = folder / f"{outline.name}-{setting}.png"
            yield write_whole(path, partial(draw(rows).savefig, dpi=110, format="png"))


class Told(NamedTuple):
    """What the files of a table say."""

    rows: pd.DataFrame
    """As ``frame_of`` makes them, with their ``setting``."""
    checks: list[Mapping[str, Any]]
    files: list[tuple[Path, Mapping[str, Any]]]


def _told(folder: Path, outline: Outline) -> Told:
    """What a table's run files say and, of settings without any, the rows and checks that an earlier version left."""
    files = _files(folder, f"{outline.name}/**/*.json")
    told = judged(outline, [content for _, content in files]).to_json()
    measured = {content["card"]["setting"] for _, content in files}
    old = [
        (path, content)
        for path, content in _files(folder, f"{HISTORY}/*.json")
        if content["table"] == outline.name
        and any(one["setting"] not in measured for one in content["rows"] + content["checks"])
    ]

    def older(part: str) -> list[Any]:
        return [one for _, content in old for one in content[part] if one["setting"] not in measured]

    rows = [row for row in older("rows") + told["rows"] if not row.get("baseline")]
    frame = frame_of(rows).assign(setting=[row["setting"] for row in rows])
    return Told(frame, older("checks") + told["checks"], old + files)


def _files(folder: Path, names: str) -> list[tuple[Path, Any]]:
    """The files of these names that are there."""
    return [(path, read_json(path)) for path in sorted(folder.glob(names))]


def _table(folder: Path, outline: Outline) -> Iterator[str]:
    metric, heading = next(iter(outline.metrics.items()))
    told = _told(folder, outline)
    if told.rows.empty:
        return
    rows = told.rows[told.rows["metric"] == metric]
    seeds = rows.groupby("setting")["seeds"].transform("max").astype(str)
    shown = rows.assign(setting=rows["setting"] + " (" + seeds + " training seeds)")
    shown = shown[shown["policy"].isin(HEADLINES[outline.name])]
    yield f"## {outline.title}"
    yield f"{heading[0].upper()}{heading[1:]}."
    yield _by_setting(wide(shown, texts_of(shown), index=["setting", "policy"]))
    yield _origin(folder, told.files)
    if claims := [check for check in told.checks if check["metric"] == metric and check["world"] != "A"]:
        yield _by_setting(_claims(claims))


def _by_setting(frame: pd.DataFrame) -> str:
    """Markdown that names a setting only where it changes."""
    names = frame["setting"]
    return markdown(frame.assign(setting=names.where(names != names.shift(), "")))


def _claims(checks: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """For each setting one line for each comparison, one column for each world that decides."""

    def line(check: Mapping[str, Any]) -> dict[str, str]:
        word = "" if check["verdict"] == "no bar" else f" **{check['verdict']}**"
        bar = "" if check["bar"] in (None, 0.0) else f" ({check.get('side', 'above')} {check['bar']:g})"
        where = {"setting": check["setting"], "world": check["world"]}
        return {**where, "claim": check["name"] + bar, "text": check_text(check) + word}

    frame = pd.DataFrame(map(line, checks))
    return wide(frame, frame["text"], index=["setting", "claim"])


def _learned_users(folder: Path) -> Iterator[str]:
    told = _told(folder, response_bars.OUTLINE)
    if told.checks:
        held = sum(check["verdict"] == "holds" for check in told.checks)
        shown = [check for check in told.checks if check["verdict"] != "holds" or check["name"].startswith(RANKED)]
        yield f"## {response_bars.OUTLINE.title}"
        yield f"{held} of {len(told.checks)} bars hold; shown are the main ones and all that do not hold."
        yield markdown(check_frame(shown).drop(columns=["setting", "world"]))
        yield _origin(folder, told.files)


def _off_the_log(folder: Path) -> Iterator[str]:
    told = _told(folder, off_the_log.OUTLINE)
    if told.checks:
        yield f"## {off_the_log.OUTLINE.title}"
        yield "Users learned from three logs of one world, all asked about the same held-out rows of uniform exposure."
        yield markdown(check_frame(told.checks).drop(columns=["setting", "world"]))
        yield _origin(folder, told.files)


def _demo(folder: Path, name: str) -> Iterator[str]:
    for path, content in _files(folder, f"{name}.json"):
        rows = frame_of(content["rows"])
        yield f"## Demo: {content['title']}"
        yield f"Seconds watched in a session; one training seed; {content['wall_seconds'] / 60:.1f} minutes."
        yield markdown(pivot(rows[rows["policy"].isin([*HEADLINES["goalrank"], "random"])], "session_watch_time"))
        yield markdown(_claims(content["checks"]).drop(columns="setting"))
        yield _origin(folder, [(path, content)])


def _ranking(folder: Path) -> Iterator[str]:
    told = _told(folder, ranking.OUTLINE)
    if not told.checks:
        return
    yield f"## {ranking.OUTLINE.title}"
    yield (
        f"{len(told.rows['policy'].unique())} policies without training, so without GoalRank. "
        f'"{ranking.OTHER_SESSIONS}" is the ceiling; where it misses a bar by luck, a world\'s figure cannot say. '
        "Pairs, levels and regret are of session watch time."
    )

    def line(check: Mapping[str, Any]) -> dict[str, str]:
        word = "" if check["verdict"] == "no bar" else f" **{check['verdict']}**"
        where = {"setting": check["setting"], "world": check["world"], "claim": check["name"]}
        return {**where, "bar": bars.get(check["name"], ""), "text": check_text(check) + word}

    bars = {check["name"]: check["bar"] for check in told.checks if check["bar"]}
    frame = pd.DataFrame(map(line, told.checks))
    yield _by_setting(wide(frame, frame["text"], index=["setting", "claim", "bar"]))
    yield _origin(folder, told.files)


def _offline(folder: Path) -> Iterator[str]:
    told = _told(folder, offline.OUTLINE)
    if told.rows.empty:
        return
    yield f"## {offline.OUTLINE.title}"
    yield "NDCG@6 in per cent, by setting."
    for log, rows in told.rows.groupby(told.rows["setting"].str.partition(", ")[0], sort=False):
        yield f"### {log}"
        kinds = rows.assign(setting=rows["setting"].str.partition(", ")[2])
        yield markdown(pivot(kinds, "NDCG", by="setting", scale=100))
    yield _origin(folder, told.files)


def _benchmarks(folder: Path) -> Iterator[str]:
    yield "## Speed"
    for path, found in _files(folder, "benchmark_env.json"):
        frame = pd.DataFrame({label: found[key] for key, label in SPEEDS.items()}).T
        where = f"world {found['world']} with {found['items']:,} videos"
        yield f"Requests per CPU-second of one thread, {where}, by sessions side by side."
        yield markdown(frame.map("{:,g}".format).rename_axis("").reset_index())
        peers = {
            name: peer.get("error") or f"{peer['requests_per_cpu_second']:,} requests per CPU-second"
            for name, peer in found.get("peers", {}).items()
        }
        if peers:
            yield "\n".join(f"- {name}, one user at a time: {text}" for name, text in peers.items())
        yield _origin(folder, [(path, found)])
    for path, found in _files(folder, "benchmark_rllib.json"):
        own, stock = f"{found['overhead_us']} us per step", f"stock RLlib {found['stock_overhead_us']} us"
        yield f"RLlib's Python at {found['num_envs']} environments, above environment and policy: {own}, {stock}."
        yield _origin(folder, [(path, found)])
    for path, found in _files(folder, "benchmark_rerankers.json"):
        costs = pd.DataFrame(found["methods_us"], index=["1", "256"]).T
        costs = costs[costs.index.isin(HEADLINES["rerankers"])].map("{:,.0f}".format)
        yield "CPU-microseconds of a shown slate."
        yield markdown(costs.set_axis(["one request", "256 side by side"], axis=1).rename_axis("method").reset_index())
        yield _origin(folder, [(path, found)])


def _openings(folder: Path) -> Iterator[str]:
    if counts := openings(folder):
        yield "## Runs that looked at the worlds that decide"
        yield "\n".join(f"- {world}: {count}" for world, count in counts.items())


def _origin(folder: Path, files: Iterable[tuple[Path, Mapping[str, Any]]]) -> str:
    """The commands, days, commits and machine of some files, with links."""
    files = list(files)
    contents = [content for _, content in files]
    commands = dict.fromkeys(f"`{one['command']}`" for one in contents if "command" in one)
    stamps = dict.fromkeys(f"{one['date']} {one['commit']}" for one in contents if "date" in one)
    machine = contents[0].get("machine", {})
    told = [*commands, ", ".join(stamps)]
    if machine:
        told.append(f"{machine['processor']}, {machine['cores']} cores, {machine['device']}, torch {machine['torch']}")
    parts = [path.relative_to(folder).parts for path, _ in files]
    shown = dict.fromkeys("/".join(part) if part[0] == HISTORY or len(part) == 1 else part[0] for part in parts)
    links = ", ".join(f"[{name.split('/')[-1]}](results/{name})" for name in shown)  # of run files, their folder
    return f"*{' · '.join([*filter(None, told), links])}*"
