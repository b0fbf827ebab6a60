"""Reads the result files of before there was one table runner, as they were written.

Nothing is computed but the wider of two intervals: a figure is the one in its file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from recsim_env.files import read_json

TABLES = {
    "goalrank": "goalrank-*.json",
    "rerankers": "rerankers-*.json",
    "offline": "rerank_protocol-*.json",
    "response_bars": "response_bars.json",
}
"""Names of the files of each table."""


@dataclass(frozen=True)
class OldFile:
    """One file of a table."""

    path: Path
    content: Mapping[str, Any]
    rows: pd.DataFrame
    """``setting``, ``policy``, ``world``, ``metric``, ``mean``, ``low``, ``high``, ``seeds``."""
    checks: list[dict[str, Any]]


def old_files(folder: Path, table: str) -> Iterator[OldFile]:
    """The files of a table, in the order of their names."""
    for path in sorted(folder.glob(TABLES[table])):
        content = read_json(path)
        yield OldFile(path, content, rows_in(content), list(_checks(content)))


def rows_in(content: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a file, ``low`` and ``high`` being the wider interval; differences are left to the checks."""
    lines = []
    for row in content.get("rows", []):
        if row.get("baseline") or row.get("baseline_world"):
            continue
        ends = [(row.get(f"{unit}low"), row.get(f"{unit}high")) for unit in ("", "session_", "request_")]
        known = [(low, high) for low, high in ends if low is not None and high is not None]
        lines.append(
            {
                "setting": content.get("setting") or f"{content.get('data', '')}, {row.get('setting', '')}",
                "policy": row.get("policy") or row["method"],
                "world": row.get("world", ""),
                "metric": row["metric"],
                "mean": row["mean"],
                "low": min((low for low, _ in known), default=None),
                "high": max((high for _, high in known), default=None),
                "seeds": row["seeds"],
            }
        )
    return pd.DataFrame(lines)


def _checks(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    setting, world = content.get("setting", ""), content.get("world", "")
    for check in content.get("checks", []):
        name = str(check["name"]).removeprefix(f"{setting}, {world}: ").removeprefix(f"{setting}: ")
        for told in (f", {world}, session watch time (s)", ", true list value"):
            name = name.removesuffix(told)
        metric = "session_watch_time" if "session watch time" in check["name"] else "true_list_value"
        yield {**check, "setting": setting, "world": world, "name": name, "metric": metric}
    for row in content.get("rows", []):
        if row.get("baseline"):  # a difference in whole sessions, of which nothing was claimed
            low, high = min(row["low"], row["session_low"]), max(row["high"], row["session_high"])
            found = {"name": f"{row['policy']} - {row['baseline']}", "metric": row["metric"], "value": row["mean"]}
            where = {"setting": setting, "world": row["world"], "low": low, "high": high}
            yield {**found, **where, "bar": None, "side": "above", "verdict": "no bar", "seeds": row["seeds"]}
