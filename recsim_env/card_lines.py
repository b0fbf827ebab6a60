"""A world's card in ten lines, which ``repr(world)`` shows."""

from collections.abc import Mapping
from typing import Any

from recsim_env.assumptions import SESSION_REQUESTS
from recsim_env.saving import class_path
from recsim_env.types import LeaveModel


def card_text(
    name: str, facts: Mapping[str, str], leave: LeaveModel, declared: Mapping[str, Any], fidelity: Mapping[str, Any]
) -> str:
    """What a world is (``facts``, by what they are of), what was declared of it, and how real it is."""
    cut = declared.get("leave", {}).get("session_cut")
    sessions = class_path(leave)
    if cut in SESSION_REQUESTS:
        sessions += f", {SESSION_REQUESTS[cut]} requests in the log's own feed"
    claims = fidelity.get("verdicts", [])
    found = [claim["verdict"] for claim in claims]
    counted = ", ".join(f"{found.count(word)} {word}" for word in ("pass", "fail", "cannot say"))
    failed = "; ".join(claim["claim"] for claim in claims if claim["verdict"] == "fail")
    lines = {
        **facts,
        "sessions": sessions,
        "declared": ", ".join(declared) or "nothing",
        "fidelity": counted if claims else "not judged; python -m experiments.fidelity",
        **({"fails": failed} if failed else {}),
    }
    return "\n".join([f"World {name!r}", *(f"  {what:10}{text}" for what, text in lines.items())])
