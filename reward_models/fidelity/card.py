"""The whole card of a world: every figure, and what is claimed of them."""

from collections.abc import Mapping
from typing import Any

from recsim_env.data.requests import LoggedRequests
from recsim_env.world import World
from reward_models.fidelity.depth import DEPTH_SESSIONS, depth_figures, play_depth
from reward_models.fidelity.drift import probe_drift, retriever_order, rollout_drift
from reward_models.fidelity.groups import VideoFacts
from reward_models.fidelity.logged import logged_fidelity
from reward_models.fidelity.verdicts import verdicts


def fidelity_card(
    world: World,
    held_out: LoggedRequests | None = None,
    videos: VideoFacts | None = None,
    *,
    depth_sessions: int = DEPTH_SESSIONS,
) -> dict[str, Any]:
    """Measures a world.

    Args:
        world: the world; its own card does not count.
        held_out: requests that taught none of its users; without them nothing is said of a log.
        videos: durations and exposures in that log.
        depth_sessions: sessions of each ranking that depth is measured on; 0 leaves depth out.

    Returns:
        ``log_has_sessions`` and ``logged`` (``logged.logged_fidelity``), ``drift`` and ``probes`` (``drift``),
        ``depth`` (``depth.depth_figures``), ``verdicts`` (``verdicts.verdicts``), and ``is_known`` of a hand-written
        world; all JSON values.

    Raises:
        ValueError: the log has other signals, users or videos than the world.
    """
    card = {} if held_out is None else log_figures(world, held_out, videos)
    return with_verdicts(card | acted_figures(world, depth_sessions=depth_sessions), world)


def log_figures(world: World, held_out: LoggedRequests, videos: VideoFacts | None = None) -> dict[str, Any]:
    """The part of the card that compares with a log: ``log_has_sessions`` and ``logged``; see ``fidelity_card``."""
    _check_codes(world, held_out)
    figures = logged_fidelity(world.response, held_out, videos=videos)
    return {"log_has_sessions": bool(held_out.left_L.any()), "logged": figures}


def acted_figures(
    world: World, *, depth_sessions: int = DEPTH_SESSIONS, known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The part of the card that needs no log: ``drift``, ``probes`` and ``depth``; what is ``known`` is left out."""
    card: dict[str, Any] = {}
    known = known or {}
    if "drift" not in known:
        card["drift"] = rollout_drift(world, retriever_order)
    if "probes" not in known:
        card["probes"] = probe_drift(world)
    if "depth" not in known and depth_sessions:
        card["depth"] = depth_figures(play_depth({"w": world}, num_sessions=depth_sessions), "w")
    return card


def with_verdicts(card: dict[str, Any], world: World, true_probes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The card with its claims judged anew; see ``verdicts.verdicts``."""
    if str(world.provenance.get("kind", "")).startswith("synthetic"):
        card = card | {"is_known": True}
    return card | {"verdicts": verdicts(card, world.declared, true_probes)}


def _check_codes(world: World, requests: LoggedRequests) -> None:
    """Codes of users and videos are rows of the world's tables: those of another log would mean others."""
    for name, there, here in (
        ("users", len(requests.user_features_UD), len(world.users)),
        ("videos", len(requests.item_features_ND), len(world.catalogue)),
    ):
        if there != here:
            raise ValueError(
                f"the log has {there} {name}, world {world.name!r} {here}: they are not of the same data; give the log "
                "that the world was built from"
            )
