"""Gradient-boosted trees on the inputs of the learned users: the reference they are measured against.

Legend: P rows, B users, T rows of a user, S floats of state, N items.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor

from recsim_env.data.features import item_features, user_features
from recsim_env.data.schema import LoggedDataset
from recsim_env.types import NO_ITEM
from reward_models.fit import known_durations
from reward_models.response import Memory, ResponseConfig, feedback_features
from reward_models.sequences import Sequences, sequence_batches

FloatArray = NDArray[np.float32]


def tree_inputs(dataset: LoggedDataset, sequences: Sequences, frozen_from: int) -> tuple[FloatArray, FloatArray]:
    """Item, user and context features and the decayed sums of each user's own feedback.

    Args:
        dataset: the log.
        sequences: the same log as tensors.
        frozen_from: YYYYMMDD; the second table leaves users as they were when this day began.

    Returns:
        Two float32 tables of P rows, the user's past up to each row and up to ``frozen_from`` at most.
    """
    duration_N = known_durations(dataset)
    item, user = sequences.item_P.numpy(), sequences.user_P.numpy()
    static = [
        item_features(dataset).values[item],
        user_features(dataset).values[user],
        np.stack([sequences.tab_P.numpy(), sequences.hour_P.numpy(), duration_N.numpy()[item]], 1),
    ]
    state = _feedback_sums(sequences, duration_N)
    later = np.flatnonzero(sequences.date_P.numpy() >= frozen_from)
    users, first = np.unique(user[later], return_index=True)
    source = np.arange(len(user))
    source[later] = later[first][np.searchsorted(users, user[later])]
    tables = [np.concatenate([*static, rows], 1).astype(np.float32) for rows in (state, state[source])]
    return tables[0], tables[1]


@torch.no_grad()
def _feedback_sums(sequences: Sequences, duration_N: Tensor) -> FloatArray:
    """What the learned users' memory holds before each row, without its learned item vectors."""
    memory = Memory(ResponseConfig(event_width=1), sequences.signals_PF.shape[1])
    sums_PS = torch.zeros(len(sequences.item_P), memory.state_width)
    everything_P = torch.ones(len(sequences.item_P), dtype=torch.bool)
    for batch in sequence_batches(sequences, everything_P, 512):
        items_BH, feedback_BHF, known_BHF = sequences.past.window(batch.user_B, 50)
        happened_BH, items_BH = items_BH != NO_ITEM, items_BH.clamp(min=0)
        past = feedback_features(feedback_BHF, duration_N[items_BH], known_BHF)
        start_BS = memory.update(
            torch.zeros(len(items_BH), memory.state_width),
            *memory.events(torch.zeros(*items_BH.shape, 1), past, happened_BH),
        )
        row_BT = batch.row_BT
        feedback = feedback_features(
            sequences.signals_PF[row_BT], duration_N[sequences.item_P[row_BT]], sequences.known_PF[row_BT]
        )
        events = memory.events(torch.zeros(*row_BT.shape, 1), feedback, batch.valid_BT)
        begin_BT = (sequences.begin_P[row_BT] - row_BT[:, :1]).clamp(min=0)
        sums_PS[row_BT[batch.valid_BT]] = memory.scan(start_BS, *events, begin_BT)[batch.valid_BT]
    sums = sums_PS.reshape(len(sums_PS), memory.num_sums, -1).numpy()
    rates = sums / (sums[..., -1:] + 1.0)
    return np.concatenate([sums.reshape(len(sums), -1), rates.reshape(len(sums), -1)], 1)


def boosted(inputs: FloatArray, labels: NDArray[np.float32], seed: int = 0) -> HistGradientBoostingClassifier:
    """Trees fitted on all rows given: 80 rounds, as in the published reference."""
    return HistGradientBoostingClassifier(max_iter=80, random_state=seed).fit(inputs, labels)
