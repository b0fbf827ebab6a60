"""How real a world is: its card, with a verdict for each claim.

    python -m experiments.fidelity WORLD [--json PATH] [--html FOLDER] [--log LOG [--first-day DAY]] [--against ...]

``WORLD`` is a world folder, the name of a known world, or a folder of worlds: the card is then that of the first, and
the others are its judges, as those of ``--against`` are. Stored figures are shown as they are; what a stored card lacks
is measured. ``--log`` measures against a log anew and lets its own ranker, imitated, play too; with ``--first-day`` the
log's users enter the world first. Claims and bars stand in ``reward_models.fidelity.verdicts``.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import tyro
from scipy.stats import spearmanr

from experiments.command import run_command
from experiments.policies import logging_clone, worlds_in
from experiments.report.card import MEANINGS, claims_frame, printed, sections_of, verdict_lines
from experiments.report.frames import frame_of, markdown, pivot
from experiments.report.html import Section, write_page
from recsim_env.data import PRESETS, LoggedDataset, load_log, parse_map
from recsim_env.data.recoding import recoded
from recsim_env.data.requests import LoggedRequests, logged_requests
from recsim_env.files import write_json
from recsim_env.results import EvaluationResult, to_plain
from recsim_env.types import Policy
from recsim_env.world import World
from reward_models.fidelity.card import acted_figures, log_figures, with_verdicts
from reward_models.fidelity.depth import CLONE, DEPTH_SESSIONS, DEPTH_SLATE, depth_figures, play_depth
from reward_models.fidelity.drift import rollout_drift
from reward_models.fidelity.groups import VideoFacts

AGREEMENT = (
    "Worlds of one build share a log and a logging policy: that they agree shows that a ranking does not hang on one "
    "model's mistakes, not that it is right."
)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Prints how real a world is."""

    world: tyro.conf.Positional[Path]
    """A world folder, a folder of them, or the name of a known world."""
    against: tuple[Path, ...] = ()
    """Further worlds of the same data, or folders of them, that the rankings are compared in."""
    log: Path | None = None
    """Measure against this log anew: the one that the world was built from, its test days and the world's users."""
    first_day: int | None = None
    """For a log of users that the world never saw, YYYYMMDD: they enter the worlds with what they did before this day,
    and are compared from this day on."""
    preset: Literal["kuairand", "kuairec", "ratings", "open_bandit"] | None = None
    """Column map of a published table."""
    map: str | None = None
    """Columns of a table or changes to the preset, as in ``experiments.inspect``."""
    json: Path | None = None
    """Also write the card here."""
    html: Path | None = None
    """Also write a page with plots, ``report.html``, into this folder."""
    num_sessions: int = DEPTH_SESSIONS
    """Sessions of each ranking, where depth is measured."""
    trust: tuple[str, ...] = ()
    """Modules of yours whose classes a world folder may name; importing one runs its code."""

    def __post_init__(self) -> None:
        if self.num_sessions < 2:
            raise ValueError(f"an interval needs num_sessions >= 2, got {self.num_sessions}")
        if self.first_day is not None and self.log is None:
            raise ValueError(f"first_day={self.first_day} is a day of a log: give --log, too")


def run(arguments: Arguments) -> tuple[World, dict[str, Any], EvaluationResult | None]:
    """The world, its card, and what was played in it and its judges, if it was."""
    worlds = worlds_in(arguments.world, arguments.trust)
    for path in arguments.against:
        for name, other in worlds_in(path, arguments.trust).items():
            worlds[name if name not in worlds else f"{path}/{name}"] = other
    name, world = next(iter(worlds.items()))
    for other_name, other in list(worlds.items())[1:]:
        check_same_data(world, other, (name, other_name))
    log = _read(arguments) if arguments.log else None
    if log is not None and arguments.first_day is not None:
        worlds = {one: known.users_from(log, before=arguments.first_day) for one, known in worlds.items()}
        world = worlds[name]
        log = recoded(log, world.catalogue.ids, world.users.ids)
    card, clones = dict(world.fidelity), dict[str, Policy]()
    if log is not None:
        card |= asked_of(log, world, arguments.first_day)
        clones[CLONE] = logging_clone(log, world, int(world.defaults.get("slate_size", DEPTH_SLATE)))
        card["clone_drift"] = rollout_drift(world, clones[CLONE])
    card = acted_figures(world, depth_sessions=0, known=card) | card
    result = None
    if len(worlds) > 1 or clones or "depth" not in card:
        print(f"playing {arguments.num_sessions} sessions of each ranking in {len(worlds)} world(s)", flush=True)
        result = play_depth(worlds, policies=clones, num_sessions=arguments.num_sessions, progress=True)
    if result is not None and (clones or "depth" not in card):
        card["depth"] = depth_figures(result, name)
    return world, with_verdicts(card, world), result


def asked_of(log: LoggedDataset, world: World, first_day: int | None = None) -> dict[str, Any]:
    """The part of the card that compares with a log: on the world's test days where it names them, of its users.

    Args:
        log: in the codes of the world.
        world: the world.
        first_day: YYYYMMDD, of a log whose users have entered the world; in the place of the test days.

    Raises:
        ValueError: the log has other videos, users or signals than the world.
    """
    for what, theirs, ours in (
        ("videos", log.items["item_id"], world.catalogue.ids),
        ("users", log.users["user_id"], world.users.ids),
    ):
        if not np.array_equal(theirs.to_numpy(), ours):
            raise ValueError(
                f"the log {log.name!r} has other {what} than world {world.name!r}; give the log it was built from, or "
                "let the users of another one enter, --first-day YYYYMMDD"
            )
    days = world.provenance.get("days", {}).get("test") or [int(log.rows["date"].min()), int(log.rows["date"].max())]
    if first_day is not None:
        days = [first_day, int(log.rows["date"].max())]
    videos = VideoFacts.of(log, days[0])
    if first_day is not None:  # a log in other codes no longer tells them
        videos = replace(videos, duration_N=world.catalogue.duration_N.double().numpy())
    held_out: LoggedRequests = logged_requests(
        log,
        item_features_ND=world.catalogue.features_ND,
        user_features_UD=world.users.features_UD,
        users=world.population_P,
        first_date=days[0],
        last_date=days[-1],
    )
    return {"test_days": list(days), **log_figures(world, held_out, videos)}


def check_same_data(first: World, second: World, names: tuple[str, str]) -> None:
    """Refuses two worlds whose policies would not be shown the same: their rankings could not be compared.

    Raises:
        ValueError: they are of different logs, or served by different recommenders.
    """
    pairs: dict[str, tuple[Any, Any]] = {
        "signals": (first.signals, second.signals),
        "videos": (first.catalogue.ids.tolist(), second.catalogue.ids.tolist()),
        "users": (first.users.ids.tolist(), second.users.ids.tolist()),
        **{
            key: (first.provenance[key], second.provenance[key])
            for key in ("log", "content", "days")
            if key in first.provenance and key in second.provenance
        },
        "recommender": (first.recommender.digest, second.recommender.digest),
    }
    different = [key for key, (one, other) in pairs.items() if one != other]
    if different:
        raise ValueError(
            f"worlds {names[0]!r} and {names[1]!r} are not of the same data: they differ in {', '.join(different)}; "
            "compare worlds of one build"
        )


def agreement(result: EvaluationResult, metric: str = "session_watch_time") -> dict[str, float]:
    """Rank correlation of the policies' session watch times for each pair of worlds, ``"A, judge"`` to Spearman's."""
    means = {
        world: [result.row(policy, world, metric).mean for policy in result.policies] for world in result.world_names
    }
    return {
        f"{one}, {other}": float(spearmanr(means[one], means[other]).statistic)
        for one, other in itertools.combinations(means, 2)
    }


def _read(arguments: Arguments) -> LoggedDataset:
    base = PRESETS[arguments.preset] if arguments.preset else None
    assert arguments.log is not None
    return load_log(arguments.log, parse_map(arguments.map, base) if arguments.map else base)


def _compared(result: EvaluationResult) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Session watch times by world, and how far the worlds agree on them."""
    found = pd.DataFrame(
        [{"worlds": pair, "rank correlation": f"{value:.3f}"} for pair, value in agreement(result).items()]
    )
    return pivot(frame_of(result.rows()), "session_watch_time"), found


def main(arguments: Arguments) -> None:
    """Prints the card and writes what was asked for."""
    world, card, result = run(arguments)
    print(printed(card))
    sections, agreed = list(sections_of(card)), {}
    if result is not None and len(result.world_names) > 1:
        watched, found = _compared(result)
        print(f"\nseconds of a session by world\n\n{markdown(watched)}\n\n{markdown(found)}\n{AGREEMENT}")
        heading = "Do the worlds agree? Seconds of a session, and rank correlation of the rankings"
        sections += [Section(heading, watched), Section("Rank correlation of the rankings", found)]
        agreed = {"agreement": agreement(result), "session_watch_time": _means(result)}
    if arguments.json:
        write_json(arguments.json, to_plain({"world": world.name, "provenance": world.provenance,
                                             "declared": world.declared, "fidelity": card, **agreed}))  # fmt: skip
    if arguments.html:
        intro = ["; ".join(verdict_lines(card["verdicts"])) + ".", AGREEMENT if agreed else ""]
        title = f"How real is world {world.name}?"
        claims = claims_frame(card["verdicts"])
        page = write_page(arguments.html, title=title, intro=intro, sections=sections, claims=claims, meanings=MEANINGS)
        print(f"report: {page}")


def _means(result: EvaluationResult) -> Mapping[str, Mapping[str, float]]:
    return {
        world: {policy: result.row(policy, world, "session_watch_time").mean for policy in result.policies}
        for world in result.world_names
    }


if __name__ == "__main__":
    run_command(main, lambda: tyro.cli(Arguments, description=__doc__))
