"""A world's card as tables and sections: claims, figures against the log, worth of fixed videos, depth by ranking."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.report import card_plots
from experiments.report.frames import figure, markdown
from experiments.report.html import Section
from recsim_env.types import WATCH_TIME
from reward_models.fidelity.verdicts import GROUP_POSITIVES, counts

MEANINGS = {
    "pass": "pass: the figure is within the bar",
    "fail": "fail: it is not",
    "cannot say": "cannot say: there is no figure, or one that luck alone could have put on either side",
}
"""What each verdict says."""

_Claims = Iterable[Mapping[str, Any]]


def claims_frame(claims: _Claims) -> pd.DataFrame:
    """Claims as text: what, the figure, its bar, the verdict and why."""
    lines = [
        {
            "claim": claim["claim"],
            "figure": "" if claim["figure"] is None else f"{claim['figure']:.4g}",
            "bar": claim["bar"],
            "verdict": claim["verdict"],
            "because": claim["because"],
        }
        for claim in claims
    ]
    return pd.DataFrame(lines, columns=["claim", "figure", "bar", "verdict", "because"])


def verdict_lines(claims: _Claims) -> list[str]:
    """How many claims pass, fail and cannot be judged, and the names of those that fail."""
    claims = list(claims)
    failed = [claim["claim"] for claim in claims if claim["verdict"] == "fail"]
    return [f"claims: {counts(claims)}", *([f"fails: {'; '.join(failed)}"] if failed else [])]


def signals_frame(logged: Mapping[str, Any]) -> pd.DataFrame:
    """A line for each binary signal, and one for watch time."""
    lines = []
    for name, found in logged["signals"].items():
        floor = found.get("ece_floor")
        lines.append(
            {
                "signal": name,
                "positives": f"{found['positives']:,}",
                "logged": _text(found["logged_rate"]),
                "emitted": _text(found["emitted_rate"]),
                "emitted / logged": _ratio(found),
                "AUC": _text(found["auc"], 3),
                "GAUC": _text(found["gauc"], 3),
                "ECE (a perfect model's)": f"{_text(found['ece'])} ({_text(floor)})",
            }
        )
    watch = logged[WATCH_TIME]
    means = (_text(watch.get(key), 2, " s") for key in ("logged_mean", "emitted_mean"))
    lines.append(dict(zip(("signal", "logged", "emitted"), (WATCH_TIME, *means), strict=True))
                 | {"emitted / logged": _ratio(watch)})  # fmt: skip
    return pd.DataFrame(lines).fillna("")


def groups_frame(groups: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A line for each group: rows, and by signal emitted over logged; in brackets with too few positives to tell."""
    lines = []
    for group in groups:
        line = {"group": group["group"], "rows": f"{group['rows']:,}"}
        for name in card_plots.SHOWN:
            found = group.get(name)
            if found is not None and found["ratio"] is not None:
                text = f"{found['ratio']:.3f}"
                line[name] = text if found.get("positives", GROUP_POSITIVES) >= GROUP_POSITIVES else f"({text})"
        lines.append(line)
    shown = [name for name in card_plots.SHOWN if any(name in line for line in lines)]
    return pd.DataFrame(lines, columns=["group", "rows", *shown]).fillna("")


def variance_frame(variance: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Shares of users, videos and the rest in the variance of each signal, logged and emitted."""
    lines = [
        {
            "signal": name,
            **{
                f"{part}, {side}": "" if found[side][part] is None else f"{found[side][part]:.1%}"
                for part in ("user", "video", "residual")
                for side in ("logged", "emitted")
            },
            "users, emitted / logged": _ratio({"ratio": found["user_ratio"], "ratio_error": found["user_ratio_error"]}),
        }
        for name, found in variance.items()
    ]
    return pd.DataFrame(lines)


def requests_frame(found: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Means of signals at some requests, a line for each request."""
    names = [name for name in (WATCH_TIME, "click", "long_view", "like") if name in next(iter(found.values()))]
    return pd.DataFrame(
        [{"request": request, **{name: _text(means[name]) for name in names}} for request, means in found.items()]
    )


def probes_frame(probes: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> pd.DataFrame:
    """Worth of fixed videos at each request, a line for each policy and request."""
    parts = [requests_frame(found).assign(policy=policy) for policy, found in probes.items()]
    frame = pd.concat(parts)
    return frame[["policy", *frame.columns.drop("policy")]]


def depth_frame(depth: Mapping[str, Any]) -> pd.DataFrame:
    """Requests and seconds of a session by ranking, with 95 % intervals."""
    lines = [
        {
            "ranking": policy,
            "requests": figure(**metrics["session_length"]),
            "seconds": figure(**metrics["session_watch_time"]),
        }
        for policy, metrics in depth["policies"].items()
    ]
    return pd.DataFrame(lines)


def sections_of(card: Mapping[str, Any]) -> Iterator[Section]:
    """Everything on a card, from top to bottom, with its plots."""
    if logged := card.get("logged"):
        days = card.get("test_days")
        where = f", {days[0]}..{days[-1]}" if days else ""
        heading = f"Against the log: {logged['rows']:,} rows of {logged['users']:,} users{where}"
        yield Section(heading, signals_frame(logged))
        if "uniform" in logged:
            caption = "Emitted over logged, with two standard errors; dashed: the bar of the uniform slice."
            heading = f"The uniform slice: {logged['uniform']['rows']:,} rows"
            image = card_plots.uniform_slice(logged)
            yield Section(heading, signals_frame(logged["uniform"]), "uniform_slice", image, caption)
        yield from _grouped(logged)
    if probes := card.get("probes"):
        caption = (
            "What 50 fixed videos, shown alone, are worth after requests of three policies that nobody leaves, over "
            "what they were worth at the first; dashed: the bars."
        )
        yield Section("Worth of fixed videos", probes_frame(probes), "probes", card_plots.probes(probes), caption)
    for name, title in (("drift", "the retriever's order"), ("clone_drift", "the log's own ranker, imitated")):
        if name in card:
            yield Section(f"Emitted over many requests of {title}", requests_frame(card[name]))
    if depth := card.get("depth"):
        caption = (
            "Sessions by ranking: by lowest predicted watch time (worst), at random, as retrieved, by highest "
            "predicted watch time (sort), by the world's own expectation of each video (best). Means with 95 % "
            "intervals."
        )
        heading = f"Sessions by quality of ranking ({depth['sessions']} each)"
        yield Section(heading, depth_frame(depth), "depth", card_plots.depth(depth), caption)


def _grouped(logged: Mapping[str, Any]) -> Iterator[Section]:
    if groups := logged.get("groups"):
        caption = (
            f"Emitted over logged, with two standard errors; hollow: fewer than {GROUP_POSITIVES} positives (of watch "
            f"time: rows); dashed: the bar of a group. Groups of fewer than {card_plots.FEWEST_ROWS} rows are not "
            "drawn. Activity: showings to the user before the test days; exposures: of the video before them; rows "
            "seen: rows of the user before this one."
        )
        yield Section("Emitted over logged by group", None, "groups", card_plots.groups(groups), caption)
        for name, some in groups.items():
            yield Section(f"By {name}", groups_frame(some))
    if image := card_plots.coverage(logged.get("coverage")):
        caption = (
            "Share of the logged watch times below the model's own quantile of their row, less the level; dashed: the "
            "bar of a duration bucket."
        )
        yield Section("Coverage of watch-time levels", None, "coverage", image, caption)
    if variance := logged.get("variance"):
        yield Section("Who differs: shares of the variance", variance_frame(variance))


def printed(card: Mapping[str, Any]) -> str:
    """The card as Markdown: claims first, then every table."""
    parts = [markdown(claims_frame(card["verdicts"]))]
    for section in sections_of(card):
        if section.table is not None:
            parts.append(f"{section.heading}\n\n{markdown(section.table)}")
    return "\n\n".join([*parts, "\n".join(verdict_lines(card["verdicts"]))])


def _text(value: float | None, digits: int = 4, unit: str = "") -> str:
    return "" if value is None else f"{value:.{digits}f}{unit}"


def _ratio(found: Mapping[str, Any]) -> str:
    ratio, error = found.get("ratio"), found.get("ratio_error")
    return "" if ratio is None else f"{ratio:.3f}" + ("" if error is None else f" +- {2 * error:.3f}")
