"""A world judged by a log that it never saw.

figures = judge_on(World.load("runs/worlds/A"), load_log("other.csv", columns), first_date=20220505)
"""

from typing import Any

from recsim_env.data.schema import LoggedDataset
from recsim_env.world import World
from reward_models.fidelity import logged_fidelity


def judge_on(
    world: World, log: LoggedDataset, *, first_date: int, last_date: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Lets the users of a log enter a world and compares them there with what they did.

    Args:
        world: a world that was learned from a log, this one or another.
        log: a log with the world's signals and videos, see ``World.users_from``.
        first_date: YYYYMMDD: users enter with what they did before this day, and are compared from this day on.
        last_date: YYYYMMDD, last day of the comparison.
        seed: seed of the drawn watch times.

    Returns:
        The figures of ``reward_models.fidelity.logged_fidelity``.

    Raises:
        ValueError: the log's users cannot enter the world, or the log has no requests on these days.
    """
    entered = world.users_from(log, before=first_date)
    return logged_fidelity(entered.response, entered.requests_of(log, first_date, last_date), seed=seed)
