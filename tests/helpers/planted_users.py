"""Users whose chance of a click is known, and logs drawn from them."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recsim_env.data.requests import LoggedRequests, logged_requests
from recsim_env.data.schema import LoggedDataset
from recsim_env.types import CONTEXT, Outcomes

FIRST_DAY, TEST_DAY, NUM_ITEMS = 20220401, 20220402, 40
_TAB = CONTEXT.index("tab")


class PlantedUsers:
    """A click has the user's own chance, times that of the tab, and takes 20 s; whoever does not click watches 2 s."""

    signals = ("watch_time", "click")
    num_draws = 1

    def __init__(self, chance_U: np.ndarray, tab_factors: tuple[float, ...] = (1.0, 1.0)):
        self.chance_U = torch.tensor(chance_U, dtype=torch.float32)
        self.factor_T = torch.tensor(tab_factors)

    def start(self, user_B: Tensor) -> Tensor:
        return user_B.unsqueeze(1).float()

    def chance(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor) -> Tensor:
        chance_B = self.chance_U[state_BS[:, 0].long()] * self.factor_T[context_BX[:, _TAB].long()]
        return chance_B.clamp(max=1.0).unsqueeze(1).expand(items_BK.shape)

    def respond(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, uniform_BKJ: Tensor) -> Tensor:
        click_BK = (uniform_BKJ[..., 0] < self.chance(state_BS, context_BX, items_BK)).float()
        return torch.stack([2.0 + 18.0 * click_BK, click_BK], -1)

    def outcomes(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor) -> Outcomes:
        chance_BK = self.chance(state_BS, context_BX, items_BK)
        signals_OF = torch.tensor([[2.0, 0.0], [20.0, 1.0]])
        return Outcomes(signals_OF.expand(*items_BK.shape, 2, 2), torch.stack([1 - chance_BK, chance_BK], -1))

    def observe(
        self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, signals_BKF: Tensor, seen_BK: Tensor
    ) -> Tensor:
        return state_BS


class Urn(PlantedUsers):
    """Knows nothing of a user but the clicks so far: the chance is the share of black balls, and each draw adds one.

    Of users whose chances are Beta distributed this is the law: rows drawn one after the other are distributed as those
    of such users, while no single expectation is as far from the mean as a user is.
    """

    def __init__(self, clicks: float, others: float):
        super().__init__(np.zeros(1))
        self.clicks, self.others = clicks, others

    def start(self, user_B: Tensor) -> Tensor:
        return torch.tensor([[self.clicks, self.others]]).repeat(len(user_B), 1)

    def chance(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor) -> Tensor:
        return (state_BS[:, :1] / state_BS.sum(1, keepdim=True)).expand(items_BK.shape)

    def observe(
        self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, signals_BKF: Tensor, seen_BK: Tensor
    ) -> Tensor:
        click_BK = signals_BKF[..., 1] * seen_BK
        return state_BS + torch.stack([click_BK.sum(1), (seen_BK.float() - click_BK).sum(1)], 1)


def log_of(
    chance_U: np.ndarray, *, past: int = 3, rows: int = 8, uniform: bool = False, seed: int = 0
) -> LoggedDataset:
    """Every user's ``past`` rows on the first day and ``rows`` on the second; every third row is on tab 0.

    Args:
        chance_U: chance of a click of each user, whatever is shown.
        past: rows of each user before the test day.
        rows: rows on the test day.
        uniform: whether every fourth row of each user is of uniform exposure, at other moments for other users.
        seed: of the draws.
    """
    generator, per_user = np.random.default_rng(seed), past + rows
    size = len(chance_U) * per_user
    user, number = np.repeat(np.arange(len(chance_U)), per_user), np.tile(np.arange(per_user), len(chance_U))
    click = generator.random(size) < chance_U[user]
    day = (number >= past).astype(np.int64)
    table = pd.DataFrame(
        {
            "user": user.astype(np.int32),
            "item": generator.integers(NUM_ITEMS, size=size).astype(np.int32),
            "time_ms": pd.Timestamp(2022, 4, 1).value // 10**6 + day * 86_400_000 + number * 60_000,
            "date": (FIRST_DAY + day).astype(np.int32),
            "watch_time": np.where(click, 20.0, 2.0).astype(np.float32),
            "duration": np.float32(60.0),
            "click": click.astype(np.int8),
            "tab": (number % 3 > 0).astype(np.int8),
        }
    )
    if uniform:
        table["is_random"] = (user + number) % 4 == 0
    durations = np.where(np.arange(NUM_ITEMS) % 4 == 0, np.nan, 10.0 + np.arange(NUM_ITEMS)).astype(np.float32)
    return LoggedDataset(
        "planted",
        table,
        pd.DataFrame({"user_id": np.arange(len(chance_U))}),
        pd.DataFrame({"item_id": np.arange(NUM_ITEMS), "duration": durations}),
        ("watch_time", "click"),
    )


def held_out(log: LoggedDataset) -> LoggedRequests:
    """Its requests on the test day."""
    features = torch.zeros(len(log.items), 1), torch.zeros(len(log.users), 1)
    everything = logged_requests(log, item_features_ND=features[0], user_features_UD=features[1])
    return everything.only(first_date=TEST_DAY)
