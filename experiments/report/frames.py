"""Results as pandas frames: rows with the wider of their intervals, policies by worlds, checks in words."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from recsim_env.results import EvaluationResult, Row

MAIN_METRICS = (
    "session_watch_time", "session_length", "list_reward", "click_rate", "long_view_rate", "like_rate",
    "catalogue_coverage", "exposure_gini", "cold_start_share", "tag_diversity", "evaluator_value",
    "true_list_value", "evaluator_gap",
)  # fmt: skip
"""What committed files keep; ``report.json`` has everything."""

VERDICTS = {
    "holds": "holds: the whole interval lies on the wanted side of the bar",
    "fails": "fails: the whole interval lies on the other side of the bar",
    "undecided": "undecided: the interval holds the bar",
    "no bar": "no bar: told, not claimed",
}
"""What each verdict says."""


def frame_of(rows: Iterable[Row]) -> pd.DataFrame:
    """One line for each row; ``low`` and ``high`` span its interval over seeds and the one over sessions."""
    columns = ["policy", "world", "metric", "mean", "low", "high", "seeds", "sessions", "feedback", "world_requests",
               "baseline", "baseline_world"]  # fmt: skip
    lines = []
    for row in rows:
        low, high = row.widest
        lines.append({name: getattr(row, name) for name in columns} | {"low": low, "high": high})
    return pd.DataFrame(lines, columns=columns)


def rows_of(result: EvaluationResult) -> pd.DataFrame:
    """Every row of a result."""
    return frame_of(result.rows())


def figure(mean: float, low: float = math.nan, high: float = math.nan, *, sign: str = "", scale: float = 1.0) -> str:
    """A figure with its interval, with as many decimals as the interval's width can carry."""
    if _missing(mean):
        return ""
    known = not (_missing(low) or _missing(high))
    mean, low, high = (scale * value if not _missing(value) else math.nan for value in (mean, low, high))
    width = (high - low) / 2 if known and high > low else abs(mean) / 100
    digits = max(0, min(4, 1 - math.floor(math.log10(width)))) if width > 0 else 1
    digits = min(digits, 1) if abs(mean) >= 100 else digits
    text = f"{mean:{sign},.{digits}f}"
    return f"{text} [{low:{sign},.{digits}f}, {high:{sign},.{digits}f}]" if known else text


def texts_of(rows: pd.DataFrame, *, sign: str = "", scale: float = 1.0) -> list[str]:
    """``figure`` of every row."""
    values = rows[["mean", "low", "high"]].astype(float).to_numpy()
    return [figure(*value, sign=sign, scale=scale) for value in values]


def wide(rows: pd.DataFrame, texts: Iterable[Any], *, index: str = "policy", by: str = "world") -> pd.DataFrame:
    """One line for each value of ``index``, one column for each value of ``by``, in the order given."""
    cells = pd.Series(list(texts), index=rows.index, dtype=object)  # marked-up text stays what it is
    table = rows.assign(text=cells).pivot_table(index=index, columns=by, values="text", aggfunc="first", sort=False)
    return table.reindex(index=rows[index].unique(), columns=rows[by].unique()).fillna("").reset_index()


def pivot(rows: pd.DataFrame, metric: str, *, by: str = "world", sign: str = "", scale: float = 1.0) -> pd.DataFrame:
    """Policies by worlds, or by another column, as text."""
    some = rows[rows["metric"] == metric]
    return wide(some, texts_of(some, sign=sign, scale=scale), by=by)


def check_frame(checks: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Checks as text: where, what, the figure with its interval, the bar and the verdict."""
    lines = []
    for check in checks:
        bar, side = check["bar"], check.get("side", "")
        sign = "+" if " minus " in check["name"] or " - " in check["name"] else ""
        lines.append(
            {
                "setting": check.get("setting", ""),
                "world": check.get("world") or "",
                "check": check["name"],
                "value [95 % interval]": figure(check["value"], check["low"], check["high"], sign=sign),
                "bar": "" if bar is None else bar if isinstance(bar, str) else f"{side} {bar:g}".strip(),
                "verdict": check["verdict"],
            }
        )
    found = pd.DataFrame(lines)
    return found.loc[:, [name for name in found.columns if name == "verdict" or (found[name] != "").any()]]


def markdown(frame: pd.DataFrame) -> str:
    """A Markdown table; a bar in a cell would end it."""
    texts = frame.map(lambda cell: str(cell).replace("|", "/"))
    return str(texts.to_markdown(index=False, disable_numparse=True))


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)
