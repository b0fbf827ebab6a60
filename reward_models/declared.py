"""What a log cannot say and a build declares for it: how sessions end, main tags, what uniform slates get.

All of it stands in ``world.json`` and is equal in all worlds of a build.

Legend: P logged rows, or pairs of user and video; N items, M cells, D signals, V = M + A logits.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from torch import Tensor

from recsim_env.assumptions import DeclaredLeave, SessionCut
from recsim_env.data.schema import LoggedDataset
from recsim_env.types import CONTEXT, NO_ITEM, WATCH_TIME
from reward_models.exposure import lift
from reward_models.users.response import SequenceResponse
from reward_models.users.sequences import Sequences

PUBLISHED_SHARES = {"click": 0.18 / 0.45, "long_view": 0.085 / 0.318}
"""Rates of uniform slates over those of the ranker: KuaiRand-Pure's two logs, as its authors report them."""

_PAIRS = 8192
_LEAST_SHORT = 0.1  # mean lift that uniform pairs must be short of; a ranker with less chose nothing in particular


def declared_leave(dataset: LoggedDataset, users: NDArray[np.int64], until: int, cut: SessionCut) -> DeclaredLeave:
    """Leaving as declared, for what the log's own ranker showed to some users until a day."""
    rows = dataset.rows[dataset.rows["user"].isin(users) & (dataset.rows["date"] <= until)]
    if "is_random" in rows and not rows["is_random"].all():
        rows = rows[~rows["is_random"]]
    return DeclaredLeave.calibrated(torch.tensor(rows[WATCH_TIME].dropna().to_numpy()), cut)


def main_tags(dataset: LoggedDataset) -> Tensor:
    """The first tag of each item, -1 where it has none: int64 (N,)."""
    if "tags" not in dataset.items:
        return torch.full((len(dataset.items),), NO_ITEM)
    tags = [tags[0] if len(tags) else NO_ITEM for tags in dataset.items["tags"]]
    return torch.tensor(tags, dtype=torch.int64)


def uniform_rates(
    dataset: LoggedDataset, users: NDArray[np.int64], until: int, amount: float | None
) -> dict[str, float]:
    """Declared rates of uniform slates by signal, where no log's rows teach them and a figure is published.

    Args:
        dataset: the log.
        users: codes of the users whose rows give the rates of the log's ranker.
        until: YYYYMMDD, last day of these rows.
        amount: share of the published drop, 0..1; ``None`` for all of it.
    """
    amount = 1.0 if amount is None else amount
    if amount == 0.0 or not can_declare_drop(dataset):
        return {}
    rows = dataset.rows[dataset.rows["user"].isin(users) & (dataset.rows["date"] <= until)]
    means = {name: float(rows[name].mean()) for name in PUBLISHED_SHARES if name in dataset.signals}
    # What nobody ever did cannot become rarer.
    return {name: mean * (1.0 + amount * (PUBLISHED_SHARES[name] - 1.0)) for name, mean in means.items() if mean > 0}


def can_declare_drop(dataset: LoggedDataset) -> bool:
    """Whether the log leaves open what uniform slates get, and has a signal that a drop was published for."""
    is_open = "is_random" not in dataset.rows or not dataset.rows["is_random"].any()
    return is_open and any(name in dataset.signals for name in PUBLISHED_SHARES)


@torch.no_grad()
def declare_drop(
    response: SequenceResponse, sequences: Sequences, label_P: Tensor, rates: dict[str, float], seed: int = 0
) -> None:
    """Lowers what users emit to uniform slates, in place; slates of the log's ranker stay as they were fitted.

    A log's ranker shows what it knows to be liked. Learned from its rows alone, users like everything it might have
    shown. Rows of uniform exposure tell the difference (``calibrate.set_levels``); a log without them needs a figure
    from elsewhere: the rates of uniform slates as shares of the log's own. The drop grows with what a pair of user
    and video is short of the ranker's usual ``lift``, and pairs above have none: where a log has uniform rows, that is
    about how it goes. Among all changes of the watch-time law with these rates it is the one that changes least (an
    exponential tilt); signals drawn given the watch time follow it.

    Args:
        response: fitted to a log without rows of uniform exposure.
        sequences: the log.
        label_P: bool, rows that it was fitted to.
        rates: see ``uniform_rates``; without any nothing changes.
        seed: of the pairs that stand for uniform slates.
    """
    core = response.core
    if not rates:
        return
    row_P = label_P.nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(seed)
    row_P = row_P[torch.randint(len(row_P), (_PAIRS,), generator=generator)]
    user_P, item_P = sequences.user_P[row_P], torch.randint(len(response.duration_N), (_PAIRS,), generator=generator)
    column_D, rate_D = [core.signals.index(name) for name in rates], torch.tensor(list(rates.values()))
    # Full on average over uniform pairs, none where the ranker was as likely to choose so as it usually is.
    short_P = torch.relu(core.ranker_lift - lift(response.exposure_Ud[user_P], response.exposure_Nd[item_P]))
    row_2 = torch.tensor([0.0, 1.0 / float(short_P.mean())] if short_P.mean() > _LEAST_SHORT else [1.0, 0.0])
    weight_P = row_2[0] + row_2[1] * short_P
    context_PX = torch.zeros(_PAIRS, len(CONTEXT))
    context_PX[:, CONTEXT.index("tab")] = sequences.tab_P[row_P].float()
    context_PX[:, CONTEXT.index("hour")] = sequences.hour_P[row_P].float()
    outcomes = response.outcomes(response.start(user_P), context_PX, item_P.unsqueeze(1))
    chance_PM, signal_PMD = outcomes.probability_BKO[:, 0], outcomes.signals_BKOF[:, 0][..., column_D]
    height_MD = signal_PMD.mean(0)
    tilt_D = _tilt(chance_PM, signal_PMD, height_MD, weight_P, rate_D)
    change_M = (height_MD.double() @ torch.from_numpy(tilt_D)).float()
    core.level_2V[:, : len(change_M)] += row_2.unsqueeze(1) * change_M


def _tilt(
    chance_PM: Tensor, signal_PMD: Tensor, height_MD: Tensor, weight_P: Tensor, rate_D: Tensor
) -> NDArray[np.float64]:
    """Slopes (D,) of the tilt ``exp(weight * height @ slope)`` after which the pairs have these rates on average."""
    chance, signal, height = (part.double().numpy() for part in (chance_PM, signal_PMD, height_MD))
    weight, rate = weight_P.double().numpy()[:, None], rate_D.double().numpy()

    def excess(slope_D: NDArray[np.float64]) -> NDArray[np.float64]:
        tilted = chance * np.exp(weight * (height @ slope_D))
        tilted /= tilted.sum(axis=1, keepdims=True)
        gap: NDArray[np.float64] = np.log(np.einsum("pm,pmd->d", tilted, signal) / len(tilted)) - np.log(rate)
        return gap

    # Least squares, since few-row fits may leave no law at all with both rates.
    return np.asarray(least_squares(excess, np.zeros(len(rate)), bounds=(-20.0, 20.0)).x)
