"""Users of another log in a world that was built without them: ``World.users_from`` and ``World.requests_of``.

Legend: U users, D features.
"""

import dataclasses
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recsim_env.data.histories import Histories, user_histories
from recsim_env.data.recoding import UNKNOWN_VIDEOS, recoded
from recsim_env.data.requests import LoggedRequests, logged_requests
from recsim_env.data.schema import LoggedDataset
from recsim_env.saving import class_path
from recsim_env.types import TakesUsers

if TYPE_CHECKING:
    from recsim_env.world import World

_MODELS = {"response": "response model", "predictor": "predictor", "candidates": "candidate source"}
"""The models of a world that know its users, by what messages call them."""


@dataclass(frozen=True, kw_only=True)
class NewUsers:
    """What a model learns of users who enter a world."""

    features_UD: Tensor
    """float32, in the columns of ``World.users``."""
    histories: Histories
    """What each user did before ``before``, in the world's item codes."""
    log: LoggedDataset
    """The log they come from, in the world's item codes and its own user codes; rows of ``before`` and later days are
    not to be looked at."""
    before: int
    """YYYYMMDD: sessions begin on this day."""

    def __len__(self) -> int:
        return len(self.features_UD)


def enter(world: "World", log: LoggedDataset, before: int) -> "World":
    """See ``World.users_from``."""
    _check(world, log, before)
    assert world.users.encoder is not None
    features = world.users.encoder.encode(log)
    known = _in_catalogue(world, log)
    new = NewUsers(
        features_UD=torch.from_numpy(features.values),
        histories=user_histories(known, before_date=before),
        log=known,
        before=before,
    )
    device = world.population_P.device
    # Logs are read on the CPU.
    here = world if device.type == "cpu" else world.to("cpu")
    users = dataclasses.replace(
        here.users, ids=log.users["user_id"].to_numpy(), features_UD=new.features_UD, histories=new.histories
    )
    dropped = known.counts[UNKNOWN_VIDEOS]
    origin = {"log": log.name, "users": len(new), "before": before, UNKNOWN_VIDEOS: dropped}
    entered = here.replace(
        users=users,
        population_P=torch.arange(len(new)),
        provenance={**here.provenance, "users_from": origin},
        fidelity={},  # it was of other users
        **{name: getattr(here, name).with_users(new) for name in _MODELS},
    )
    return entered if device.type == "cpu" else entered.to(device)


def requests_of(world: "World", log: LoggedDataset, first_date: int | None, last_date: int | None) -> LoggedRequests:
    """See ``World.requests_of``."""
    _check_signals(world, log)
    missing = ~np.isin(log.users["user_id"].to_numpy(), world.users.ids)
    if missing.any():
        raise ValueError(
            f"{int(missing.sum())} of {len(log.users)} users of the log {log.name!r} are not users of the world "
            f"{world.name!r}: let them enter first, world.users_from(log, before=first_date)"
        )
    return logged_requests(
        recoded(log, world.catalogue.ids, world.users.ids),
        item_features_ND=world.catalogue.features_ND.cpu(),
        user_features_UD=world.users.features_UD.cpu(),
        first_date=first_date,
        last_date=last_date,
    )


def _in_catalogue(world: "World", log: LoggedDataset) -> LoggedDataset:
    """The log in the world's item codes; says how much of it that leaves out."""
    known = recoded(log, world.catalogue.ids)
    dropped = known.counts[UNKNOWN_VIDEOS]
    if dropped:
        warnings.warn(
            f"{dropped} of {len(log.rows)} rows of the log {log.name!r} ({dropped / len(log.rows):.1%}) show videos "
            f"that the world {world.name!r} does not have; they are left out",
            stacklevel=4,
        )
    return known


def _check(world: "World", log: LoggedDataset, before: int) -> None:
    for name, what in _MODELS.items():
        model = getattr(world, name)
        if not isinstance(model, TakesUsers):
            raise ValueError(
                f"no users can enter the world {world.name!r}: its {what} ({class_path(model)}) has no with_users(), "
                "see recsim_env.types.TakesUsers; worlds that were learned from a log can take users"
            )
    if world.users.encoder is None:
        raise ValueError(
            f"no users can enter the world {world.name!r}: it does not say how the features of its users were made; "
            "build the world again"
        )
    _check_signals(world, log)
    if not 1970_01_01 <= before <= 2999_12_31:
        raise ValueError(f"before must be a day as YYYYMMDD, got {before}")


def _check_signals(world: "World", log: LoggedDataset) -> None:
    if log.signals != tuple(world.signals):
        missing = [name for name in world.signals if name not in log.signals]
        extra = [name for name in log.signals if name not in world.signals]
        raise ValueError(
            f"the log {log.name!r} has other signals than the world {world.name!r}: it lacks {missing or 'none'} and "
            f"has {extra or 'none'} beside them; map its columns to {tuple(world.signals)}"
        )
