"""A world's card in ten lines, which ``repr(world)`` shows."""

from typing import TYPE_CHECKING

from recsim_env.assumptions import SESSION_REQUESTS
from recsim_env.saving import class_path

if TYPE_CHECKING:
    from recsim_env.world import World


def card_lines(world: "World") -> str:
    """What the world is, what was declared, how real it is."""
    cut = world.declared.get("leave", {}).get("session_cut")
    sessions = class_path(world.leave)
    if cut in SESSION_REQUESTS:
        sessions += f", {SESSION_REQUESTS[cut]} requests in the log's own feed"
    claims = world.fidelity.get("verdicts", [])
    found = [claim["verdict"] for claim in claims]
    counted = ", ".join(f"{found.count(word)} {word}" for word in ("pass", "fail", "cannot say"))
    failed = "; ".join(claim["claim"] for claim in claims if claim["verdict"] == "fail")
    lines = {
        "log": world.provenance.get("log") or world.provenance.get("kind") or "not told",
        "signals": ", ".join(world.signals),
        "users": f"{len(world.population_P):,} of {len(world.users):,}",
        "videos": f"{len(world.catalogue):,}",
        "response": class_path(world.response),
        "sessions": sessions,
        "declared": ", ".join(world.declared) or "nothing",
        "fidelity": counted if claims else "not judged; python -m experiments.fidelity",
        **({"fails": failed} if failed else {}),
    }
    return "\n".join([f"World {world.name!r}", *(f"  {name:10}{text}" for name, text in lines.items())])
