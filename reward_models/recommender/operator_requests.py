"""The requests of a log as a world's recommender sees them: what methods that learn from a log are fitted to."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from recsim_env.data.requests import LoggedRequests, logged_requests
from recsim_env.data.schema import LoggedDataset
from recsim_env.world import World


def operator_requests(
    log: LoggedDataset, world: World, users: Sequence[int] | np.ndarray | Tensor | None = None
) -> LoggedRequests:
    """The requests that the world's recommender was fitted to, with its candidates' scores and predictions.

    Args:
        log: the log that the world was built from.
        world: a learned world.
        users: codes of the users whose requests are kept; by default all that the world was fitted to.

    Raises:
        ValueError: the world does not fit the log, or no request is left.
    """
    return logged_requests(
        log,
        item_features_ND=world.catalogue.features_ND,
        user_features_UD=world.users.features_UD,
        users=world.population_P if users is None else users,
        last_date=world.provenance.get("days", {}).get("fit_until"),
        predictor=world.predictor,  # type: ignore[arg-type]
        retriever=world.candidates,  # type: ignore[arg-type]
    )
