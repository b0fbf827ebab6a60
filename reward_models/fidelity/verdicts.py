"""Claims about a world and whether its figures carry them: pass, fail, cannot say.

A figure differs from its bar's middle by luck, too. What is within the bar passes and what is not fails, except where
the log is too small to tell: where a model that is right would miss the bar by luck more than one time in twenty, a
figure within the bar, or beyond it by no more than that luck, decides nothing.

The bars are those that the project set itself before it was measured. None is moved for what a world reaches.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from recsim_env.assumptions import SESSION_REQUESTS
from recsim_env.types import WATCH_TIME
from reward_models.fidelity.depth import CLONE, DEPTH_METRICS

Word = Literal["pass", "fail", "cannot say"]

RATE_BAR = 0.05
GROUP_BAR, GROUP_SHARE, GROUP_POSITIVES = 0.1, 0.9, 200
ECE_BAR = 0.006
UNIFORM_BAR = 0.1
COVERAGE_BAR, BUCKET_BAR = 0.02, 0.06
VARIANCE_BAR = 0.1
LENGTH_BAR = 0.1
PROBE_BARS = {WATCH_TIME: 0.05, "click": 0.05, "like": 0.15}
RATED = ("click", "long_view")
COMPARED = (*RATED, WATCH_TIME)
SLOPE_ENDS = ("0", "10-19")
"""Groups of rows seen that are compared."""

_NO_LOG = "no log was asked"
_OLD = "the stored figures are an earlier version's; ask the log again"


@dataclass(frozen=True)
class Claim:
    """One thing that a world should be."""

    claim: str
    """What is claimed."""
    figure: float | None
    """What was measured; None where nothing was."""
    bar: str
    """What the figure should be, in words."""
    verdict: Word
    because: str = ""
    """What else one should know of the figure, or why there is no verdict."""


class _Figure(NamedTuple):
    """A figure as its distance from what it should be."""

    distance: float
    noise: float
    """Standard error."""


def verdicts(
    card: Mapping[str, Any],
    declared: Mapping[str, Any] | None = None,
    true_probes: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Judges the figures of a card.

    Args:
        card: any of ``logged``, ``probes``, ``depth``, ``log_has_sessions`` and ``is_known``; see
            ``card.fidelity_card``.
        declared: the world's declared parameters.
        true_probes: what ``probe_drift`` finds in the known world that the log was drawn from: fixed videos should then
            move as they do there.

    Returns:
        Claims with ``claim``, ``figure``, ``bar``, ``verdict`` and ``because``, as JSON values.
    """
    logged = card.get("logged", {})
    claims = [
        *_rates(logged),
        _groups(logged),
        *_slopes(logged),
        *_calibration(logged),
        *_uniform(logged, declared or {}, card.get("probes", {})),
        *_coverage(logged),
        *_variance(logged),
        *_probes(card.get("probes", {}), _excuse(card, true_probes), true_probes),
        *_depth(card.get("depth", {})),
        _length(card.get("depth", {}), declared or {}),
    ]
    return [asdict(claim) for claim in claims]


def counts(claims: Iterable[Mapping[str, Any]]) -> str:
    """How many claims pass, fail and cannot be judged, in words."""
    found = [claim["verdict"] for claim in claims]
    return f"{found.count('pass')} pass, {found.count('fail')} fail, {found.count('cannot say')} cannot say"


def _word(figure: _Figure, bar: float) -> Word:
    """The rule of this module: ``distance`` is to be at most ``bar``."""
    if figure.distance > bar + 2 * figure.noise:
        return "fail"
    if not 2 * figure.noise <= bar:
        return "cannot say"
    return "pass" if figure.distance <= bar else "fail"


def _joint(words: Iterable[Word]) -> Word:
    """Of several figures with one bar: all have to be within it."""
    found = set(words)
    return "fail" if "fail" in found else "cannot say" if "cannot say" in found else "pass"


def _ratio_claim(claim: str, found: Mapping[str, Any] | None, bar: float, missing: str) -> Claim:
    """A ratio, emitted over logged, that should be 1 to within ``bar``."""
    words = f"emitted over logged within {100 * bar:g} % of 1"
    if found is None or found.get("ratio") is None or found.get("ratio_error") is None:
        return Claim(claim, None, words, "cannot say", missing)
    figure = _Figure(abs(found["ratio"] - 1.0), found["ratio_error"])
    luck = f"+- {2 * figure.noise:.3f} by luck"
    word = _word(figure, bar)
    because = f"too few positives or users: {luck}" if word == "cannot say" else luck
    return Claim(claim, found["ratio"], words, word, because)


def _found(figures: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    found = figures.get(name) if name == WATCH_TIME else figures.get("signals", {}).get(name)
    return found or None


def _why_missing(figures: Mapping[str, Any], name: str) -> str:
    if not figures:
        return _NO_LOG
    found = _found(figures, name)
    if found is None:
        return f"the log has no signal {name}"
    if "ratio_error" not in found:
        return _OLD
    if found["ratio"] is not None:
        return "all rows are of one user, who tells nothing of others"
    return f"no positive {name} on the test days" if name != WATCH_TIME else "no watch time on the test days"


def _rates(logged: Mapping[str, Any]) -> Iterable[Claim]:
    for name in RATED:
        yield _ratio_claim(f"{name} rate", _found(logged, name), RATE_BAR, _why_missing(logged, name))


def _groups(logged: Mapping[str, Any]) -> Claim:
    claim, bar = (
        "rates by group",
        f"{100 * GROUP_SHARE:g} % of those with {GROUP_POSITIVES} positives within {100 * GROUP_BAR:g} % of 1",
    )
    ratios = {
        f"{grouping} {found['group']} ({name})": figures["ratio"]
        for grouping, groups in logged.get("groups", {}).items()
        for found in groups
        for name, figures in found.items()
        if isinstance(figures, Mapping) and figures.get("positives", 0) >= GROUP_POSITIVES
    }
    if not ratios:
        few = f"no group has {GROUP_POSITIVES} positives" if "groups" in logged else _OLD
        return Claim(claim, None, bar, "cannot say", few if logged else _NO_LOG)
    off = {name: ratio for name, ratio in ratios.items() if abs(ratio - 1.0) > GROUP_BAR}
    share = 1.0 - len(off) / len(ratios)
    furthest = sorted(off, key=lambda name: -abs(math.log(max(off[name], 1e-9))))[:4]
    because = f"{len(ratios)} groups" + (": off are " if off else "")
    because += ", ".join(f"{name} {off[name]:.2f}" for name in furthest) + (", ..." if len(off) > 4 else "")
    return Claim(claim, share, bar, "pass" if share >= GROUP_SHARE else "fail", because)


def _slopes(logged: Mapping[str, Any]) -> Iterable[Claim]:
    """Users of few rows and of many should be met alike: the ratio at 10 to 19 rows less that at a user's first."""
    groups = {found["group"]: found for found in logged.get("groups", {}).get("rows seen", [])}
    bar = f"no change beyond luck, which is at most {RATE_BAR:g}"
    for name in COMPARED:
        claim = f"{name} by rows seen"
        ends = [groups.get(group, {}).get(name, {}) for group in SLOPE_ENDS]
        if any(end.get("ratio_error") is None for end in ends):
            why = "no users, or one alone, at their first row or at 10 to 19" if "groups" in logged else _OLD
            yield Claim(claim, None, bar, "cannot say", why if logged else _NO_LOG)
            continue
        change, luck = ends[1]["ratio"] - ends[0]["ratio"], 2 * math.hypot(*(end["ratio_error"] for end in ends))
        word: Word = "fail" if abs(change) > luck else "pass" if luck <= RATE_BAR else "cannot say"
        because = "{:.3f} at the first row, {:.3f} at 10 to 19".format(*(end["ratio"] for end in ends))
        yield Claim(claim, change, bar, word, f"{because}, +- {luck:.3f} by luck")


def _calibration(logged: Mapping[str, Any]) -> Iterable[Claim]:
    for name in RATED:
        claim, bar = f"{name} ECE", f"at most {ECE_BAR:g} above a perfect model's"
        found = _found(logged, name)
        if found is None or found["ece"] is None or "ece_floor" not in found:
            yield Claim(claim, None, bar, "cannot say", _why_missing(logged, name))
            continue
        above = found["ece"] - found["ece_floor"]
        word = _word(_Figure(above, found["ece_spread"]), ECE_BAR)
        because = f"a perfect model has {found['ece_floor']:.4f} +- {2 * found['ece_spread']:.4f}"
        yield Claim(claim, above, bar, word, f"too few rows: {because}" if word == "cannot say" else because)


def _uniform(logged: Mapping[str, Any], declared: Mapping[str, Any], probes: Mapping[str, Any]) -> Iterable[Claim]:
    figures = logged.get("uniform")
    rates = declared.get("uniform_rates", {})
    first = probes.get("uniform", {}).get("1", {})
    for name in COMPARED:
        missing = _why_missing(figures or logged, name)
        if logged and figures is None:
            missing = "the log has no rows of uniform exposure on the test days"
            if name in rates:
                missing += f"; declared: {rates[name]:.3f}"
                missing += f", any videos of the catalogue get {first[name]:.3f}" if name in first else ""
        found = _found(figures, name) if figures else None
        yield _ratio_claim(f"{name} on the uniform slice", found, UNIFORM_BAR, missing)


def _coverage(logged: Mapping[str, Any]) -> Iterable[Claim]:
    claims = "coverage of watch times", "coverage by duration"
    bars = [f"every level within {100 * bar:g} points" for bar in (COVERAGE_BAR, BUCKET_BAR)]
    found = logged.get("coverage")
    if not found:
        why = "the users' model does not tell its quantiles" if "coverage" in logged else _OLD if logged else _NO_LOG
        yield from (Claim(claim, None, bar, "cannot say", why) for claim, bar in zip(claims, bars, strict=True))
        return
    levels = found["levels"]
    off, word, where = _furthest(levels, found["overall"], found["rows"], COVERAGE_BAR)
    yield Claim(claims[0], off, bars[0], word, f"furthest at the {where}")
    judged = [
        (bucket["group"], *_furthest(levels, bucket["covered"], bucket["rows"], BUCKET_BAR))
        for bucket in found["by_duration"]
    ]
    told = [one for one in judged if one[2] != "cannot say"]
    if not told:
        yield Claim(claims[1], None, bars[1], "cannot say", "no bucket has the rows to tell")
        return
    group, off, _, where = max(told, key=lambda one: one[1])
    few = ", ".join(name for name, _, word, _ in judged if word == "cannot say")
    because = f"furthest in {group}, at the {where}" + (f"; too few rows to tell: {few}" if few else "")
    failed = any(word == "fail" for _, _, word, _ in told)
    yield Claim(claims[1], off, bars[1], "fail" if failed else "pass", because)


def _furthest(levels: list[float], covered: list[float], rows: int, bar: float) -> tuple[float, Word, str]:
    """The level furthest off: by how much, the verdict over all levels, and which it is."""
    figures = [
        _Figure(abs(share - level), math.sqrt(level * (1.0 - level) / rows))
        for level, share in zip(levels, covered, strict=True)
    ]
    worst = max(range(len(levels)), key=lambda index: figures[index].distance)
    word = _joint(_word(figure, bar) for figure in figures)
    return (
        figures[worst].distance,
        word,
        f"{100 * levels[worst]:g} % level: {100 * covered[worst]:.1f} % of {rows} rows",
    )


def _variance(logged: Mapping[str, Any]) -> Iterable[Claim]:
    for name in COMPARED:
        found = logged.get("variance", {}).get(name)
        missing = _why_missing(logged, name)
        if logged and "variance" not in logged:
            missing = _OLD
        elif found is not None:
            missing = "the log's rows show no variance between users"
            found = {"ratio": found["user_ratio"], "ratio_error": found["user_ratio_error"]}
        yield _ratio_claim(f"{name} variance between users", found, VARIANCE_BAR, missing)


def _excuse(card: Mapping[str, Any], truth: Mapping[str, Any] | None) -> str:
    """Why fixed videos may well change in worth; empty where they should not."""
    if card.get("is_known"):
        return "this world is the truth itself"
    # Sessions teach how videos of a session take from one another, and only the truth says by how much.
    return "the log has sessions, which may have taught it" if card.get("log_has_sessions") and not truth else ""


def _probes(probes: Mapping[str, Any], excuse: str, truth: Mapping[str, Any] | None) -> Iterable[Claim]:
    for name, bar in PROBE_BARS.items():
        claim, words = f"{name} of fixed videos", f"within {100 * bar:g} % of the first request's, over 50"
        if truth:
            words += "; where the truth moves further, within a third of that"
        ratios, true_ratios = _worth(probes, name), _worth(truth or {}, name)
        if not ratios:
            why = f"the world has no {name}" if probes else "no probes were shown"
            yield Claim(claim, None, words, "cannot say", why)
            continue
        figures: dict[tuple[str, str], tuple[_Figure, float]] = {}
        for key, (ratio, noise) in ratios.items():
            true, true_noise = true_ratios.get(key, (1.0, 0.0))
            moves = abs(true - 1.0) > bar
            middle, allowed = (true, abs(true - 1.0) / 3) if moves else (1.0, bar)
            figures[key] = _Figure(abs(ratio - middle), math.hypot(noise, true_noise if moves else 0.0)), allowed
        furthest = max(figures, key=lambda key: figures[key][0].distance / figures[key][1])
        noise = figures[furthest][0].noise
        because = f"furthest at request {furthest[1]} of {furthest[0]}"
        because += f", +- {2 * noise:.3f} by luck" if noise else ""  # earlier versions stored none
        if furthest in true_ratios:
            because += f", in truth {true_ratios[furthest][0]:.3f}"
        word = _joint(_word(figure, allowed) for figure, allowed in figures.values())
        if word == "fail" and excuse:
            word, because = "cannot say", f"{because}; {excuse}"
        yield Claim(claim, ratios[furthest][0], words, word, because)


def _worth(probes: Mapping[str, Any], name: str) -> dict[tuple[str, str], tuple[float, float]]:
    """By policy and request what probes are worth over the first request's, and its standard error."""
    return {
        (policy, request): (
            figures[name] / requests["1"][name],
            (figures.get("ratio_error") or {}).get(name) or 0.0,
        )
        for policy, requests in probes.items()
        for request, figures in requests.items()
        if request != "1" and requests["1"].get(name, 0.0) > 0
    }


def _depth(depth: Mapping[str, Any]) -> Iterable[Claim]:
    for metric in DEPTH_METRICS:
        claim, bar = f"{metric} by ranking", "rises from the worst to the best in every step"
        steps = [step for step in depth.get("steps", []) if step["metric"] == metric]
        if not steps:
            yield Claim(claim, None, bar, "cannot say", "no sessions were played")
            continue
        least = min(steps, key=lambda step: step["mean"])
        because = "least: {worse} to {better}, {low:+.2f} to {high:+.2f}".format(**least)
        word: Word = "pass"
        if any(step["high"] < 0 for step in steps):
            word = "fail"
        elif not all(step["low"] > 0 for step in steps):
            word, because = "cannot say", f"too few sessions: {because}"
        yield Claim(claim, least["mean"], bar, word, because)


def _length(depth: Mapping[str, Any], declared: Mapping[str, Any]) -> Claim:
    cut = declared.get("leave", {}).get("session_cut")
    claim, bar = "session_length as declared", f"within {100 * LENGTH_BAR:g} % under the log's own ranker, imitated"
    found = depth.get("policies", {}).get(CLONE)
    if cut is None or found is None:
        why = "no length of sessions is declared" if cut is None else f"no {CLONE} has played"
        return Claim(claim, None, bar, "cannot say", why)
    wanted, length = SESSION_REQUESTS[cut], found["session_length"]
    noise = (length["high"] - length["low"]) / 4 / wanted
    word = _word(_Figure(abs(length["mean"] / wanted - 1.0), noise), LENGTH_BAR)
    because = "{low:.1f} to {high:.1f}".format(**length) + f", declared {wanted}"
    return Claim(claim, length["mean"], bar, word, f"too few sessions: {because}" if word == "cannot say" else because)
