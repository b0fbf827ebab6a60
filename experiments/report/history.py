"""Reads the result files of before there was one table runner, as they were written.

Nothing is computed but the wider of two intervals: a figure is the one in its file.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments.report.frames import frame_of
from recsim_env.files import read_json

TABLES = {
    "goalrank": "goalrank-*.json",
    "rerankers": "rerankers-*.json",
    "offline": "rerank_protocol-*.json",
    "response_bars": "response_bars.json",
}
"""Names of the files of each table."""


class Part(NamedTuple):
    """What the files of one setting hold."""

    rows: pd.DataFrame
    """As ``frames.frame_of`` makes them."""
    checks: list[dict[str, Any]]
    files: list[tuple[Path, Mapping[str, Any]]]
    """Each file with its content."""


def old_parts(folder: Path, table: str) -> dict[str, Part]:
    """Setting to what the files of a table hold; differences are left to the checks."""
    parts: dict[str, Part] = {}
    for path in sorted(folder.glob(TABLES[table])):
        content = read_json(path)
        rows, checks = _rows(content), list(_checks(content))
        for name in rows["setting"].unique() if len(rows) else [content.get("setting", "")]:
            before = parts.get(name, Part(pd.DataFrame(), [], []))
            its = pd.concat([before.rows, rows[rows["setting"] == name]])
            parts[name] = Part(its, before.checks + checks, [*before.files, (path, content)])
    return parts


def _rows(content: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a file, of which the protocol's named their methods and intervals otherwise, with their setting."""
    found = [row for row in content.get("rows", []) if not (row.get("baseline") or row.get("baseline_world"))]
    renamed = [
        {
            **row,
            "policy": row.get("policy") or row["method"],
            "session_low": row.get("session_low", row.get("request_low")),
            "session_high": row.get("session_high", row.get("request_high")),
        }
        for row in found
    ]
    settings = [content.get("setting") or f"{content['data']}, {row['setting']}" for row in found]
    return frame_of(renamed).assign(setting=settings)


def _checks(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    setting, world = content.get("setting", ""), content.get("world", "")
    for check in content.get("checks", []):
        name = str(check["name"]).removeprefix(f"{setting}, {world}: ").removeprefix(f"{setting}: ")
        for told in (f", {world}, session watch time (s)", ", true list value"):
            name = name.removesuffix(told)
        metric = "session_watch_time" if "session watch time" in check["name"] else "true_list_value"
        yield {**check, "setting": setting, "world": world, "name": name, "metric": metric}
    for row in frame_of(row for row in content.get("rows", []) if row.get("baseline")).itertuples():
        found = {"name": f"{row.policy} - {row.baseline}", "metric": row.metric, "value": row.mean}
        where = {"setting": setting, "world": row.world, "low": row.low, "high": row.high}
        yield {**found, **where, "bar": None, "verdict": "no bar"}  # nothing was claimed of these differences
