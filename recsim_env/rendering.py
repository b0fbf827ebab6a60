"""A session as readable text, and its last slate as a picture."""

import numpy as np
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


_HEIGHT, _COLUMN, _GAP = 120, 24, 8  # pixels
_LONGEST_S = 120.0
_PAPER, _DURATION, _WATCHED, _MISSED = (255, 255, 255), (205, 215, 230), (40, 110, 190), (235, 235, 235)


def picture(world: World, last: tuple[Request, Tensor, Feedback] | None, row: int, slate_size: int) -> np.ndarray:
    """The last slate of one session as an image, uint8 (height, width, 3).

    A column for each place: its height is the duration of the video (up to two minutes), what was watched is filled,
    places that were not reached are pale. Blank before the first slate.
    """
    image = np.full((_HEIGHT, slate_size * (_COLUMN + _GAP) + _GAP, 3), _PAPER, dtype=np.uint8)
    if last is None:
        return image
    _, items_BK, feedback = last
    for place, item in enumerate(items_BK[row].tolist()):
        left = _GAP + place * (_COLUMN + _GAP)
        column = image[:, left : left + _COLUMN]
        duration, watched = float(world.catalogue.duration_N[item]), float(feedback.signals_BKF[row, place, 0])
        column[_HEIGHT - _pixels(duration) :] = _DURATION if feedback.seen_BK[row, place] else _MISSED
        column[_HEIGHT - _pixels(watched) :] = _WATCHED
    return image


def _pixels(seconds: float) -> int:
    return round(_HEIGHT * min(seconds, _LONGEST_S) / _LONGEST_S)


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
