"""What a log can and cannot teach, before anything is fitted to it.

``inspect_log`` answers a dictionary that is plain JSON:

- ``log``, ``rows``, ``users``, ``items`` (counts of those that occur in rows), ``reading`` (rows read,
  duplicates dropped, rows without a time, features missing or repeated)
- ``days``: ``first``, ``last`` (YYYYMMDD), ``count``
- ``sessions``: ``source`` (column or gap), ``gap_s``, ``count``, ``mean_rows``, ``one_row_share``
- ``requests``: ``source`` (column or equal time), ``count``, ``shared_row_share`` (rows whose request holds
  another row), ``sizes`` (requests by number of rows)
- ``propensities``, ``candidates``: ``known_share`` and, for propensities, ``lowest`` and ``highest``
- ``random_exposure``: ``known``, ``rows``, ``share``
- ``watch_time``, ``duration``: ``known_share``, ``median_s``; watch time also ``zero_share``,
  ``over_duration_share``, ``median_ratio`` (watch time over duration)
- ``times``: ``first``, ``last`` (UTC), to see at a glance that the unit of time is right
- ``tabs``: share of rows by tab; ``places``: places of a slate that occur; ``production_scores``: signals
  that the production system predicted
- ``signals``: by name ``rate``, ``positives``, ``enough`` (200 positives and 200 negatives)
- ``capabilities``: each with ``name``, ``verdict`` (yes, partly, no) and ``reason``
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from recsim_env.data.features import USUAL_DURATION_S
from recsim_env.data.schema import LoggedDataset
from recsim_env.types import WATCH_TIME
from reward_models.plan import obstacles

ENOUGH = 200
"""Positives below which a rate, let alone a model of it, is too uncertain to judge by."""
MOST = 0.5
"""Share that makes a property one of the log rather than of a few rows."""
WEEK = 7
"""Days below which returning users cannot be told from weekly habit."""


class Capability(NamedTuple):
    """One thing that a log may support."""

    name: str
    verdict: Literal["yes", "partly", "no"]
    reason: str


def inspect_log(dataset: LoggedDataset, session_gap_s: float = 300.0) -> dict[str, Any]:
    """Findings on a checked log, with the keys that the module names."""
    rows = dataset.rows
    days = rows["date"]
    findings: dict[str, Any] = {
        "log": dataset.name,
        "rows": len(rows),
        "users": int(rows["user"].nunique()),
        "items": int(rows["item"].nunique()),
        "reading": dict(dataset.counts),
        "days": {"first": int(days.min()), "last": int(days.max()), "count": int(days.nunique())},
        "sessions": _sessions(rows, session_gap_s),
        "requests": _requests(rows),
        "propensities": _propensities(rows),
        "candidates": {"known_share": float("candidates" in rows)},
        "random_exposure": _random_exposure(rows),
        "watch_time": _watch_time(rows),
        "duration": _known(rows["duration"]),
        "tabs": _shares(rows["tab"]) if "tab" in rows else {},
        "times": {"first": _utc(rows["time_ms"].min()), "last": _utc(rows["time_ms"].max())},
        "production_scores": [str(name)[5:] for name in rows.columns if str(name).startswith("pxtr_")],
        "signals": {name: _signal(rows[name]) for name in dataset.signals if name != WATCH_TIME},
        "places": int(rows["place"].nunique()) if "place" in rows else 0,
    }
    capabilities = _capabilities(findings)
    capabilities.insert(0, _worlds(obstacles(dataset), capabilities[:2]))
    findings["capabilities"] = [capability._asdict() for capability in capabilities]
    return findings


def _sessions(rows: pd.DataFrame, gap_s: float) -> dict[str, Any]:
    user_R = rows["user"].to_numpy()
    if "session" in rows:
        size_S = rows.groupby(["user", "session"], sort=False).size().to_numpy()
    else:
        pause_R = np.diff(rows["time_ms"].to_numpy()) > gap_s * 1e3
        size_S = _run_lengths((user_R[1:] != user_R[:-1]) | pause_R)
    return {
        "source": "column" if "session" in rows else "gap",
        "gap_s": None if "session" in rows else gap_s,
        "count": len(size_S),
        "mean_rows": float(size_S.mean()),
        "one_row_share": float((size_S == 1).mean()),
    }


def _requests(rows: pd.DataFrame) -> dict[str, Any]:
    key = "request" if "request" in rows else "time_ms"
    size_L = rows.groupby(["user", key], sort=False).size()
    sizes = size_L.value_counts().sort_index()
    return {
        "source": "column" if key == "request" else "equal time",
        "count": len(size_L),
        "shared_row_share": float(size_L[size_L > 1].sum() / len(rows)),
        "sizes": {str(size): int(count) for size, count in sizes.items()},
    }


def _run_lengths(starts_R: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Lengths of runs, where the flags mark every row but the first that begins a new one."""
    begin = np.concatenate([[0], np.flatnonzero(starts_R) + 1, [len(starts_R) + 1]])
    return np.diff(begin).astype(np.int64)


def _propensities(rows: pd.DataFrame) -> dict[str, Any]:
    if "propensity" not in rows:
        return {"known_share": 0.0, "lowest": None, "highest": None}
    values = rows["propensity"]
    return {"known_share": 1.0, "lowest": float(values.min()), "highest": float(values.max())}


def _random_exposure(rows: pd.DataFrame) -> dict[str, Any]:
    known = "is_random" in rows
    count = int(rows["is_random"].sum()) if known else 0
    return {"known": known, "rows": count, "share": count / len(rows)}


def _watch_time(rows: pd.DataFrame) -> dict[str, Any]:
    watch = rows[WATCH_TIME]
    ratio = (watch / rows["duration"]).dropna()
    return {
        **_known(watch),
        "zero_share": float((watch == 0).sum() / max(int(watch.notna().sum()), 1)),
        "over_duration_share": float((ratio > 1).mean()) if len(ratio) else 0.0,
        "median_ratio": float(ratio.median()) if len(ratio) else None,
    }


def _utc(time_ms: int) -> str:
    return pd.Timestamp(time_ms, unit="ms", tz="UTC").isoformat(timespec="seconds")


def _known(values: pd.Series) -> dict[str, Any]:
    share = float(values.notna().mean())
    return {"known_share": share, "median_s": float(values.median()) if share else None}


def _shares(values: pd.Series) -> dict[str, float]:
    shares = values.value_counts(normalize=True)
    return {str(level): float(share) for level, share in shares.items()}


def _signal(values: pd.Series) -> dict[str, Any]:
    positives = int(values.sum())
    enough = min(positives, len(values) - positives) >= ENOUGH
    return {"rate": positives / len(values), "positives": positives, "enough": enough}


def _capabilities(found: dict[str, Any]) -> list[Capability]:
    return [
        _response(found["signals"]),
        _watch_model(found["watch_time"], found["duration"]),
        *_sessions_and_returns(found["sessions"], found["days"]),
        _list_effect(found["requests"]),
        _place_effect(found["places"]),
        _off_policy(found["propensities"]),
        _unbiased(found["random_exposure"]),
        _time_split(found["days"]),
        _given("logged candidate sets", found["candidates"]["known_share"] > 0, "candidates"),
        _given("production scores", bool(found["production_scores"]), "pxtr.SIGNAL"),
    ]


def _worlds(problems: list[str], models: list[Capability]) -> Capability:
    """Whether ``experiments.build_world`` builds worlds from this log with its default settings."""
    name = "learned worlds"
    if problems:
        return Capability(name, "no", "; ".join(problems))
    weak = [model.name for model in models if model.verdict != "yes"]
    if weak:
        return Capability(name, "partly", f"build_world builds them, with a weak {' and '.join(weak)} (see below)")
    return Capability(name, "yes", "build_world builds them")


def _response(signals: dict[str, Any]) -> Capability:
    few = [f"{name} ({signal['positives']})" for name, signal in signals.items() if not signal["enough"]]
    if len(few) == len(signals):
        reason = f"no 0/1 signal has {ENOUGH} positives and negatives" if signals else "no 0/1 signal"
        return Capability("response model", "no", f"{reason}: there is watch time alone")
    reason = f"too few positives: {', '.join(few)}" if few else f"every signal has {ENOUGH} positives or more"
    return Capability("response model", "partly" if few else "yes", reason)


def _watch_model(watch: dict[str, Any], duration: dict[str, Any]) -> Capability:
    name = "watch-time model"
    if watch["known_share"] < MOST:
        return Capability(name, "no", f"watch time is known in {watch['known_share']:.0%} of rows")
    if duration["known_share"] < MOST:
        reason = f"duration is known in {duration['known_share']:.0%} of rows: no completion, no duration bias"
        if not duration["known_share"]:
            reason += f"; every video is taken to last {USUAL_DURATION_S:g} s"
        return Capability(name, "partly", reason)
    reason = f"watch time known in {watch['known_share']:.0%} of rows, duration in {duration['known_share']:.0%}"
    return Capability(name, "yes", reason)


def _sessions_and_returns(sessions: dict[str, Any], days: dict[str, Any]) -> list[Capability]:
    single = f"{sessions['one_row_share']:.0%} of sessions have one row"
    if sessions["one_row_share"] > MOST:
        return [
            Capability("leave model", "no", f"{single}: declare how users leave"),
            Capability("return model", "no", f"{single}: pauses between them are not absences"),
        ]
    keyed = sessions["source"] == "column"
    found: Literal["yes", "partly"] = "yes" if keyed else "partly"
    source = "by the session key" if keyed else f"guessed from pauses of {sessions['gap_s']:g} s"
    reason = f"{single}, {sessions['mean_rows']:.1f} rows on average, {source}"
    enough_days = days["count"] >= WEEK
    return [
        Capability("leave model", found, reason),
        Capability("return model", found if enough_days else "no", f"{days['count']} days, sessions {source}"),
    ]


def _list_effect(requests: dict[str, Any]) -> Capability:
    share = f"{requests['shared_row_share']:.1%} of rows"
    most = requests["shared_row_share"] > MOST
    if requests["source"] == "column":
        return Capability("list effect", "yes" if most else "no", f"{share} share a request")
    if most:
        reason = f"{share} share their time with another: set request_by_time if these are slates"
        return Capability("list effect", "partly", reason)
    return Capability("list effect", "no", f"no request key, and {share} share their time with another")


def _place_effect(places: int) -> Capability:
    reason = f"{places} places" if places > 1 else "the log does not say where in a slate an item stood"
    return Capability("place effect", "yes" if places > 1 else "no", reason)


def _off_policy(propensities: dict[str, Any]) -> Capability:
    if not propensities["known_share"]:
        return Capability("off-policy evaluation", "no", "no propensities: estimators need an estimated logging policy")
    reason = f"propensities from {propensities['lowest']:.2g} to {propensities['highest']:.2g}"
    return Capability("off-policy evaluation", "yes", reason)


def _unbiased(exposure: dict[str, Any]) -> Capability:
    if not exposure["known"]:
        return Capability("unbiased test", "no", "the log does not say which rows were exposed at random")
    reason = f"{exposure['rows']:,} rows ({exposure['share']:.1%}) exposed at random"
    return Capability("unbiased test", "yes" if exposure["rows"] else "no", reason)


def _time_split(days: dict[str, Any]) -> Capability:
    reason = f"{days['count']} days, {days['first']} to {days['last']}"
    return Capability("time split", "yes" if days["count"] >= 3 else "no", reason)


def _given(name: str, present: bool, map_field: str) -> Capability:
    return Capability(
        name, "yes" if present else "no", "in the log" if present else f"map {map_field} if there are any"
    )


def describe(found: dict[str, Any]) -> str:
    """The findings as text for a terminal."""
    days, sessions, requests, watch = (found[key] for key in ("days", "sessions", "requests", "watch_time"))
    counts = [f"{name.replace('_', ' ')} {count:,}" for name, count in found["reading"].items() if count]
    ratio = "" if watch["median_ratio"] is None else f", {watch['median_ratio']:.2f} of the duration"
    lines = [
        f"{found['log']}: {found['rows']:,} rows, {found['users']:,} users, {found['items']:,} items, "
        f"{days['count']} days ({days['first']} to {days['last']})",
        f"reading: {', '.join(counts)}",
        f"times: {found['times']['first']} to {found['times']['last']}",
        f"sessions: {sessions['count']:,} ({sessions['source']}), {sessions['mean_rows']:.2f} rows on "
        f"average, {sessions['one_row_share']:.1%} with one row",
        f"requests: {requests['count']:,} ({requests['source']}), {requests['shared_row_share']:.1%} of rows share one",
        f"watch time: {_seconds(watch)}{ratio}, zero in {watch['zero_share']:.1%}, "
        f"above the duration in {watch['over_duration_share']:.1%}",
        f"duration: {_seconds(found['duration'])}",
    ]
    if found["tabs"]:
        lines.append("tabs: " + ", ".join(f"{tab} {share:.1%}" for tab, share in found["tabs"].items()))
    lines += ["", f"{'signal':<12}{'rate':>9}{'positives':>12}"]
    for name, signal in found["signals"].items():
        flag = "" if signal["enough"] else f"   fewer than {ENOUGH}"
        lines.append(f"{name:<12}{signal['rate']:>9.4f}{signal['positives']:>12,}{flag}")
    lines += ["", *(f"{c['name']}: {c['verdict']} - {c['reason']}" for c in found["capabilities"])]
    return "\n".join(lines)


def _seconds(values: dict[str, Any]) -> str:
    median = "" if values["median_s"] is None else f", median {values['median_s']:.1f} s"
    return f"known in {values['known_share']:.1%} of rows{median}"
