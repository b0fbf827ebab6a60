"""Gradient-boosted trees on the inputs of the learned users: the reference they are measured against.

Legend: P rows, U users, V users who still have a row, H past events, Z decay rates, F signals, Y amounts, E floats of
an event, N items.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor

from recsim_env.data.features import item_features, known_durations, user_features
from recsim_env.data.schema import LoggedDataset
from recsim_env.types import NO_ITEM
from reward_models.users.sequences import Sequences
from reward_models.users.starting_levels import measure_memory
from reward_models.users.user_state import UserState, amounts
from reward_models.users.watch_time import WatchTimeCells

FloatArray = NDArray[np.float32]

_DECAYS = (0.7, 0.93, 0.99)
_PRIOR = 1.0  # amounts that a user begins with, both own and usual


def tree_inputs(dataset: LoggedDataset, sequences: Sequences, frozen_from: int) -> tuple[FloatArray, FloatArray]:
    """Features of item, user and context, and decayed sums of the user's own feedback.

    Args:
        dataset: the log.
        sequences: the same log as tensors.
        frozen_from: YYYYMMDD; the second table leaves users as they were when this day began.

    Returns:
        Two float32 tables of P rows, the user's past up to each row and up to ``frozen_from`` at most.
    """
    duration_N = torch.from_numpy(known_durations(dataset))
    item, user = sequences.item_P.numpy(), sequences.user_P.numpy()
    static = [
        item_features(dataset).values[item],
        user_features(dataset).values[user],
        np.stack([sequences.tab_P.numpy(), sequences.hour_P.numpy(), duration_N.numpy()[item]], 1),
    ]
    state = _feedback_sums(sequences, duration_N, frozen_from)
    later = np.flatnonzero(sequences.date_P.numpy() >= frozen_from)
    users, first = np.unique(user[later], return_index=True)
    source = np.arange(len(user))
    source[later] = later[first][np.searchsorted(users, user[later])]
    tables = [np.concatenate([*static, rows], 1).astype(np.float32) for rows in (state, state[source])]
    return tables[0], tables[1]


def _feedback_sums(sequences: Sequences, duration_N: Tensor, before_date: int) -> FloatArray:
    """Decayed sums of each user's past before each row: how much of everything there was, and how much is usual.

    Sums, means and the log of amounts over usual ones, with three rates of decay; no surprise of any model.
    """
    cells, num_tabs, width = WatchTimeCells(), int(sequences.tab_P.max()) + 1, sequences.signals_PF.shape[1] + 1
    memory = UserState(trait_rows=(1.0,), decays=(0.5,), gated=False, event_width=1, num_signals=width - 1,
                       num_tabs=num_tabs, num_groups=cells.num_groups)  # fmt: skip
    measure_memory(memory, sequences, sequences.date_P < before_date, duration_N, cells)

    def events(item: Tensor, tab: Tensor, signals: Tensor, known: Tensor) -> Tensor:
        known = torch.cat([known, known[..., :1]], -1)
        usual = memory.usual_TGY[tab, cells.group(duration_N[item])] * known
        held = amounts(signals, duration_N[item]) * known
        return torch.cat([held, usual, torch.ones_like(usual[..., :1])], -1)

    event_PE = events(sequences.item_P, sequences.tab_P, sequences.signals_PF, sequences.known_PF)
    decay_Z1 = torch.tensor(_DECAYS).unsqueeze(1)
    items_UH, signals_UHF, known_UHF = sequences.past.window(torch.arange(len(sequences.start_U1) - 1), 50)
    past_UH = items_UH.clamp(min=0)
    past_UHE = events(past_UH, torch.full_like(past_UH, num_tabs), signals_UHF, known_UHF)
    sums_UZE = torch.zeros(len(past_UH), len(_DECAYS), event_PE.shape[1])
    for column in range(past_UH.shape[1]):
        happened_U11 = (items_UH[:, column] != NO_ITEM)[:, None, None]
        sums_UZE = torch.where(happened_U11, sums_UZE * decay_Z1 + past_UHE[:, column].unsqueeze(1), sums_UZE)
    before_PZE = torch.zeros(len(event_PE), len(_DECAYS), event_PE.shape[1])
    length_U = sequences.start_U1.diff()
    for step in range(int(length_U.max())):  # all users side by side, as long as they have rows
        user_V = (length_U > step).nonzero().squeeze(1)
        row_V = sequences.start_U1[user_V] + step
        before_PZE[row_V] = sums_UZE[user_V]
        sums_UZE[user_V] = sums_UZE[user_V] * decay_Z1 + event_PE[row_V].unsqueeze(1)
    sums_PZE = before_PZE[sequences.begin_P]  # places of one request come with the same past
    amount_PZY, usual_PZY, count_PZ1 = torch.split(sums_PZE, [width, width, 1], -1)
    rates_PZE = sums_PZE / (count_PZ1 + 1.0)
    beyond_PZY = torch.log((amount_PZY + _PRIOR) / (usual_PZY + _PRIOR))
    return torch.cat([part.flatten(1) for part in (sums_PZE, rates_PZE, beyond_PZY)], 1).numpy()


def boosted(inputs: FloatArray, labels: NDArray[np.float32], seed: int = 0) -> HistGradientBoostingClassifier:
    """Trees fitted on all rows given: 80 rounds, as in the published reference."""
    return HistGradientBoostingClassifier(max_iter=80, random_state=seed).fit(inputs, labels)
