"""A session as readable text."""

from torch import Tensor

from recsim_env.types import Feedback, Request
from recsim_env.world import World

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def describe(world: World, request: Request, last: tuple[Request, Tensor, Feedback] | None, row: int) -> str:
    """The last slate with its feedback, then what is asked now, for one session."""
    lines = [] if last is None else _slate(world, *last, row)
    tab, hour, weekday, index = (int(v) for v in request.context_BX[row, :4].tolist())
    user = world.users.ids[int(request.user_B[row])]
    lines.append(
        f"user {user} · {_DAYS[weekday]} {hour:02d}h · tab {tab} · request {index} · "
        f"{request.candidates_BC.shape[1]} candidates"
    )
    return "\n".join(lines)


def _slate(world: World, request: Request, items_BK: Tensor, feedback: Feedback, row: int) -> list[str]:
    lines = []
    for place, item in enumerate(items_BK[row].tolist()):
        name, duration = world.catalogue.ids[item], float(world.catalogue.duration_N[item])
        if not feedback.seen_BK[row, place]:
            lines.append(f"  {place + 1}. video {name}: not reached")
            continue
        signals = feedback.signals_BKF[row, place]
        given = [s for s, value in zip(world.signals[1:], signals[1:].tolist(), strict=True) if value > 0.5]
        watched = f"watched {signals[0]:.1f} of {duration:.0f} s"
        lines.append(f"  {place + 1}. video {name}: {', '.join([watched, *given])}")
    if feedback.left_B[row]:
        lines.append("  the user left")
    return lines
