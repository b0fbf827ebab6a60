"""Users of a log on their way into a world that was built without them; ``World.users_from`` lets them in.

Legend: U users, D features.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsim_env.data.features import UserEncoder
from recsim_env.data.histories import Histories, user_histories
from recsim_env.data.recoding import UNKNOWN_VIDEOS, recoded
from recsim_env.data.schema import LoggedDataset
from recsim_env.saving import class_path

MODELS = {"response": "response model", "predictor": "predictor", "candidates": "candidate source"}
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

    @property
    def origin(self) -> dict[str, Any]:
        """Where they come from, as JSON values."""
        dropped = self.log.counts[UNKNOWN_VIDEOS]
        return {"log": self.log.name, "users": len(self), "before": self.before, UNKNOWN_VIDEOS: dropped}


@runtime_checkable
class TakesUsers(Protocol):
    """A model that can also speak of other users than those it was fitted to."""

    def with_users(self, users: NewUsers) -> Self:
        """The same model for these users in place of its own; user codes are theirs."""
        ...


def read_users(
    log: LoggedDataset,
    before: int | str,
    *,
    world: str,
    signals: Sequence[str],
    encoder: UserEncoder | None,
    item_ids: NDArray[np.generic],
) -> NewUsers:
    """The users of a log as a world knows users; see ``World.users_from`` for what is refused.

    Args:
        log: a checked log.
        before: YYYYMMDD, the day on which their sessions begin.
        world: its name.
        signals: its signals.
        encoder: how its user features are made.
        item_ids: ids of its videos, in the order of their codes.
    """
    if encoder is None:
        raise ValueError(
            f"no users can enter the world {world!r}: it does not say how the features of its users were made; "
            "build the world again"
        )
    check_signals(log, world, signals)
    if not (str(before).isdecimal() and 1970_01_01 <= int(before) <= 2999_12_31):
        raise ValueError(f"before must be a day as YYYYMMDD, got {before!r}")
    features, known = encoder.encode(log), recoded(log, item_ids)
    dropped = known.counts[UNKNOWN_VIDEOS]
    if dropped:
        warnings.warn(
            f"{dropped} of {len(log.rows)} rows of the log {log.name!r} ({dropped / len(log.rows):.1%}) show videos "
            f"that the world {world!r} does not have; they are left out",
            stacklevel=3,
        )
    return NewUsers(
        features_UD=torch.from_numpy(features.values),
        histories=user_histories(known, before_date=int(before)),
        log=known,
        before=int(before),
    )


def check_models(world: str, models: Mapping[str, object]) -> None:
    """Refuses models that cannot take users.

    Raises:
        ValueError: there is such a model; the message names it.
    """
    for name, model in models.items():
        if not isinstance(model, TakesUsers):
            raise ValueError(
                f"no users can enter the world {world!r}: its {MODELS[name]} ({class_path(model)}) has no "
                "with_users(), see recsim_env.new_users.TakesUsers; worlds that were learned from a log can take users"
            )


def check_signals(log: LoggedDataset, world: str, signals: Sequence[str]) -> None:
    """Refuses a log with other signals than a world's.

    Raises:
        ValueError: it has; the message names them.
    """
    if log.signals != tuple(signals):
        missing = [name for name in signals if name not in log.signals]
        extra = [name for name in log.signals if name not in signals]
        raise ValueError(
            f"the log {log.name!r} has other signals than the world {world!r}: it lacks {missing or 'none'} and "
            f"has {extra or 'none'} beside them; map its columns to {tuple(signals)}"
        )
