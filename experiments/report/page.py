"""The page of headline results, ``experiments/RESULTS.md``: nothing is measured here, every figure stands in a file.

A table's setting is shown from its run files where there are any, and otherwise from the files of before there was
one table runner. The page is short; every file holds more.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.report.frames import VERDICTS, check_frame, figure, markdown, pivot, rows_of, wide
from experiments.report.history import old_files, rows_in
from experiments.report.reranker_curves import curves
from experiments.tables import goalrank, offline, rerankers, response_bars
from experiments.tables.runner import Outline, judged
from experiments.tables.runs import openings
from recsim_env.files import read_json, write_whole

HISTORY = "history"
"""Folder, in the results, of files of before there was one table runner."""

HEADLINES: dict[str, Sequence[str]] = {
    "goalrank": ("pointwise greedy", "best of 20", "evaluator search", "GoalRank", "greedy oracle"),
    "rerankers": ("pointwise greedy", "best of 100", "evaluator search", "MG-E-100", "GoalRank",
                  "GoalRank, trained in sessions", "GoalRank, warm start", "GoalRank, 10m",
                  "NAR4Rec, logged slates", "CLIG, reward and GC, 3"),
}  # fmt: skip
"""Rows that the page shows of tables that have more."""

RANKED = ("AUC", "GAUC", "XAUC", "MAE", "CRPS", "rate click", "rate long_view")
"""Beginnings of the checks of learned users that are shown although they hold."""


def page(folder: Path) -> str:
    """The whole page from the files of a folder."""
    lines = [
        "# Results",
        "",
        "Made by `python -m experiments.results_page` from the files in [results](results). Brackets hold 95 % "
        "intervals, the wider of those over training seeds and over sessions. A claim "
        + "; it ".join(VERDICTS[word].replace(":", " where", 1) for word in ("holds", "fails"))
        + ", and is undecided between; without a bar nothing is claimed.",
    ]
    for section in (
        _learned_users(folder),
        _demo(folder, "demo"),
        _demo(folder, "demo_kuairand"),
        _table(folder, goalrank.OUTLINE),
        _table(folder, rerankers.OUTLINE),
        _offline(folder),
        _benchmarks(folder),
        _openings(folder),
    ):
        lines += ["", *section]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def draw_curves(folder: Path) -> Iterator[Path]:
    """Draws the curves of the rerankers table beside the files, for each setting that has run files."""
    for setting, (rows, _, _) in _settings(folder, rerankers.OUTLINE, old=False).items():
        image = curves(rows)
        yield write_whole(
            folder / f"rerankers-{setting}.png",
            lambda path, image=image: image.savefig(path, dpi=110, format="png"),  # type: ignore[misc]
        )


Part = tuple[pd.DataFrame, list[dict[str, Any]], list[tuple[Path, Mapping[str, Any]]]]
"""Rows, checks and files of one setting."""


def _settings(folder: Path, outline: Outline, *, old: bool = True) -> dict[str, Part]:
    """Setting to rows, checks and files; run files replace the old ones of the same setting."""
    parts: dict[str, Part] = {}
    for file in old_files(folder / HISTORY, outline.name) if old else ():
        for name in dict.fromkeys(file.rows["setting"]) if len(file.rows) else [str(file.content.get("setting", ""))]:
            some = file.rows[file.rows["setting"] == name] if len(file.rows) else file.rows
            rows, checks, files = parts.get(name, (pd.DataFrame(), [], []))
            parts[name] = (pd.concat([rows, some]), checks + file.checks, [*files, (file.path, file.content)])
    paths = sorted((folder / outline.name).rglob("*.json"))
    contents = [read_json(path) for path in paths]
    finished = judged(outline, contents)
    for name, result in finished.results.items():
        files = [(path, one) for path, one in zip(paths, contents, strict=True) if one["card"]["setting"] == name]
        parts[name] = (rows_of(result), [one for one in finished.checks if one["setting"] == name], files)
    return parts


def _table(folder: Path, outline: Outline) -> Iterator[str]:
    metric, heading = next(iter(outline.metrics.items()))
    parts = _settings(folder, outline)
    if not parts:
        return
    yield from [f"## {outline.title}", "", f"{heading[0].upper()}{heading[1:]}.", ""]
    tables, checks, files = [], [], []
    for setting, (rows, some, its_files) in parts.items():
        shown = rows[rows["policy"].isin(HEADLINES[outline.name])]
        seeds = f"{setting} ({rows['seeds'].max()} training seeds)"
        tables.append(pivot(shown, metric).assign(setting=seeds))
        checks += [check for check in some if check["metric"] == metric and check["world"] != "A"]
        files += its_files
    yield from [markdown(_by_setting(pd.concat(tables))), "", _origin(folder, files), ""]
    yield from [markdown(_by_setting(_claims(checks))), ""]


def _by_setting(frame: pd.DataFrame) -> pd.DataFrame:
    """The setting first, and named only where it changes."""
    frame = frame.fillna("")
    names = frame["setting"].where(frame["setting"] != frame["setting"].shift(), "")
    return frame.drop(columns="setting").pipe(lambda rest: pd.concat([names, rest], axis=1))


def _claims(checks: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One line for each setting and comparison, one column for each world that decides."""
    lines = []
    for check in checks:
        text = figure(check["value"], check["low"], check["high"], sign="+" if " - " in check["name"] else "")
        word = "" if check["verdict"] == "no bar" else f" **{check['verdict']}**"
        bar = "" if check["bar"] in (None, 0.0) else f" ({check.get('side', 'above')} {check['bar']:g})"
        line = {"setting": check["setting"], "claim": check["name"] + bar, "world": check["world"]}
        lines.append(line | {"text": text + word})
    frame = pd.DataFrame(lines)
    return pd.concat(
        [
            wide(some, some["text"], index="claim").assign(setting=name)
            for name, some in frame.groupby("setting", sort=False)
        ]
    )


def _learned_users(folder: Path) -> Iterator[str]:
    for _, checks, files in _settings(folder, response_bars.OUTLINE).values():
        held = sum(check["verdict"] == "holds" for check in checks)
        shown = [check for check in checks if check["verdict"] != "holds" or check["name"].startswith(RANKED)]
        frame = check_frame(shown).drop(columns=["setting", "world"], errors="ignore")
        yield from [f"## {response_bars.OUTLINE.title}", ""]
        yield f"{held} of {len(checks)} bars hold; shown are the main ones and all that do not hold."
        yield from ["", markdown(frame), "", _origin(folder, files)]


def _demo(folder: Path, name: str) -> Iterator[str]:
    path = folder / f"{name}.json"
    if not path.exists():
        return
    content = read_json(path)
    yield from [f"## Demo: {content['title']}", ""]
    yield f"Seconds watched in a session; one training seed; {content['wall_seconds'] / 60:.1f} minutes."
    rows = rows_in(content)
    shown = rows[rows["policy"].isin([*HEADLINES["goalrank"], "random"])]
    yield from ["", markdown(pivot(shown, "session_watch_time")), ""]
    words = {"holds": "ahead", "fails": "behind", "undecided": "undecided", "no bar": ""}
    told = []
    for check in content["checks"]:
        name = check["name"].removesuffix(", session watch time (s)")
        where = f", {check['world']}" if check.get("world") else ""
        text = figure(check["value"], check["low"], check["high"], sign="+")
        told.append(f"{name}{where} {text} {words[check['verdict']]}".rstrip())
    yield from ["Paired differences: " + "; ".join(told) + ".", "", _origin(folder, [(path, content)])]


def _offline(folder: Path) -> Iterator[str]:
    parts = _settings(folder, offline.OUTLINE)
    if not parts:
        return
    yield from [f"## {offline.OUTLINE.title}", "", "NDCG@6 in per cent, by setting."]
    logs: dict[str, list[str]] = {}
    for setting in parts:
        logs.setdefault(setting.split(",")[0], []).append(setting)
    for log, settings in logs.items():
        rows = pd.concat([parts[setting][0].assign(setting=setting.removeprefix(f"{log}, ")) for setting in settings])
        files = {path: content for setting in settings for path, content in parts[setting][2]}
        yield from [
            "",
            f"### {log}",
            "",
            markdown(pivot(rows, "NDCG", by="setting", scale=100)),
            "",
            _origin(folder, files.items()),
        ]


def _benchmarks(folder: Path) -> Iterator[str]:
    yield from ["## Speed", ""]
    env, rllib, lists = (folder / f"benchmark_{name}.json" for name in ("env", "rllib", "rerankers"))
    if env.exists():
        found = read_json(env)
        keys = {
            "requests_per_cpu_second": "full step",
            "core_requests_per_cpu_second": "core step: slates given",
            "face_requests_per_cpu_second": "Gymnasium face",
            "step_over_forward": "core step / response forward",
            "reset_over_step": "reset / full step",
        }
        frame = pd.DataFrame({label: found[key] for key, label in keys.items()}).T
        where = f"world {found['world']} with {found['items']:,} videos"
        yield f"Requests per CPU-second of one thread, {where}, by sessions side by side."
        yield from ["", markdown(frame.map(lambda x: f"{x:,g}").rename_axis("").reset_index()), ""]
        for name, peer in found.get("peers", {}).items():
            told = peer.get("error") or f"{peer['requests_per_cpu_second']:,} requests per CPU-second"
            yield f"- {name}, one user at a time: {told}"
        yield from ["", _origin(folder, [(env, found)]), ""]
    if rllib.exists():
        found = read_json(rllib)
        own, stock = f"{found['overhead_us']} us per step", f"stock RLlib {found['stock_overhead_us']} us"
        yield f"RLlib's Python at {found['num_envs']} environments, above environment and policy: {own}, {stock}."
        yield from ["", _origin(folder, [(rllib, found)]), ""]
    if lists.exists():
        found = read_json(lists)
        main = {name: costs for name, costs in found["methods_us"].items() if name in HEADLINES["rerankers"]}
        frame = pd.DataFrame(main).T.map(lambda x: f"{x:,.0f}")
        frame.columns = ["one request", "256 side by side"]
        yield from ["CPU-microseconds of a shown slate.", "", markdown(frame.rename_axis("method").reset_index()), ""]
        yield _origin(folder, [(lists, found)])


def _openings(folder: Path) -> Iterator[str]:
    if counts := openings(folder):
        yield from ["## Runs that looked at the worlds that decide", ""]
        yield from (f"- {world}: {count}" for world, count in counts.items())


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
