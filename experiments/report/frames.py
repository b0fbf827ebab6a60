"""Results as pandas frames: rows with their intervals, policies by worlds, checks in words."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from recsim_env.results import EvaluationResult, Row

VERDICTS = {
    "holds": "holds: the whole interval lies on the wanted side of the bar",
    "fails": "fails: the whole interval lies on the other side of the bar",
    "undecided": "undecided: the interval holds the bar",
    "no bar": "no bar: told, not claimed",
}
"""What each verdict says."""


def frame_of(rows: Iterable[Row | Mapping[str, Any]]) -> pd.DataFrame:
    """One line for each row, given as such or as a file holds it."""
    plain = [_of_file(row) if isinstance(row, Mapping) else dataclasses.asdict(row) for row in rows]
    frame = pd.DataFrame(plain, columns=[field.name for field in dataclasses.fields(Row)])
    ends = ["mean", "low", "high"]
    frame[ends] = frame[ends].astype(float)
    return frame


def _of_file(row: Mapping[str, Any]) -> dict[str, Any]:
    """Files of earlier versions hold two intervals, over sessions too where seeds were the unit: the span of both."""
    spans = {}
    for end, furthest in (("low", min), ("high", max)):
        known = [row[name] for name in (end, f"session_{end}") if row.get(name) is not None]
        spans[end] = furthest(known) if known else None
    return {**row, **spans}


def differences(result: EvaluationResult, policies: Iterable[str], baselines: Iterable[str]) -> list[Row]:
    """Each policy minus each baseline in every world where both played the same sessions."""
    return [
        result.difference(policy, baseline, world)
        for baseline in baselines
        for policy in policies
        for world in result.world_names
        if policy != baseline and result.paired(policy, baseline, world)
    ]


def repeaters(result: EvaluationResult, above: float = 0.01) -> str:
    """Names the policies that repeat more than a share of what is seen in some world; empty where none does."""
    named: dict[str, float] = {}
    for policy, world in result.cells:
        if result.measured(policy, world, "repeat_share"):
            named[policy] = max(named.get(policy, 0.0), result.row(policy, world, "repeat_share").mean)
    some = [f"{policy} ({share:.0%} of the videos seen)" for policy, share in named.items() if share > above]
    return f"Shows videos again in a session, which earns nothing: {', '.join(some)}." if some else ""


def figure(
    mean: float | None,
    low: float | None = None,
    high: float | None = None,
    *,
    sign: str = "",
    scale: float = 1.0,
) -> str:
    """A figure with its interval, with as many decimals as the interval's width can carry.

    With ``sign="+"`` it is a difference: one whose interval holds 0 is called a tie, with the bound it keeps to.

    Example:
        >>> figure(2.1, -3.04, 7.24, sign="+"), figure(12.0, 9.5, 14.5, sign="+")
        ('+2.1 [-3.0, +7.2], tie within 7.2', '+12.0 [+9.5, +14.5]')
    """
    mean, low, high = (math.nan if value is None else scale * value for value in (mean, low, high))
    if math.isnan(mean):
        return ""
    known = not (math.isnan(low) or math.isnan(high))
    width = (high - low) / 2 if known and high > low else abs(mean) / 100
    digits = max(0, min(4, 1 - math.floor(math.log10(width)))) if width > 0 else 1
    digits = min(digits, 1) if abs(mean) >= 100 else digits
    text = f"{mean:{sign},.{digits}f}"
    if not known:
        return text
    tie = f", tie within {max(abs(low), abs(high)):,.{digits}f}" if sign == "+" and low <= 0 <= high else ""
    return f"{text} [{low:{sign},.{digits}f}, {high:{sign},.{digits}f}]{tie}"


def texts_of(rows: pd.DataFrame, *, sign: str = "", scale: float = 1.0) -> list[str]:
    """``figure`` of every row."""
    values = rows[["mean", "low", "high"]].astype(float).to_numpy()
    return [figure(*value, sign=sign, scale=scale) for value in values]


def wide(
    rows: pd.DataFrame, texts: Iterable[Any], *, index: Sequence[str] = ("policy",), by: str = "world"
) -> pd.DataFrame:
    """One line for each value of the ``index`` columns, one column for each value of ``by``, in the order given."""
    cells = pd.Series(list(texts), index=rows.index, dtype=object)  # marked-up text stays what it is
    keys = list(index)
    table = rows.assign(text=cells).groupby([*keys, by], sort=False)["text"].first().unstack(by)
    lines = rows[keys].drop_duplicates()
    order = pd.MultiIndex.from_frame(lines) if len(keys) > 1 else lines[keys[0]]
    return table.reindex(index=order, columns=rows[by].unique()).fillna("").reset_index()


def pivot(rows: pd.DataFrame, metric: str, *, by: str = "world", sign: str = "", scale: float = 1.0) -> pd.DataFrame:
    """Policies by worlds, or by another column, as text."""
    some = rows[rows["metric"] == metric]
    return wide(some, texts_of(some, sign=sign, scale=scale), by=by)


def check_text(check: Mapping[str, Any]) -> str:
    """The figure of a check with its interval, a difference with its sign."""
    sign = "+" if " minus " in check["name"] or " - " in check["name"] else ""
    return figure(check["value"], check["low"], check["high"], sign=sign)


def check_frame(checks: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Checks as text: where, what, the figure with its interval, the bar and the verdict."""

    def line(check: Mapping[str, Any]) -> dict[str, str]:
        bar = check["bar"]
        return {
            "setting": check.get("setting", ""),
            "world": check.get("world") or "",
            "check": check["name"],
            "value [95 % interval]": check_text(check),
            "bar": "" if bar is None else bar if isinstance(bar, str) else f"{check.get('side', '')} {bar:g}".strip(),
            "verdict": check["verdict"],
        }

    found = pd.DataFrame(map(line, checks))
    return found.loc[:, (found != "").any() | (found.columns == "verdict")]


def markdown(frame: pd.DataFrame) -> str:
    """A Markdown table; a bar in a cell would end it."""
    texts = frame.map(lambda cell: str(cell).replace("|", "/"))
    return str(texts.to_markdown(index=False, disable_numparse=True))
