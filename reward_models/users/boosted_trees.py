"""Gradient-boosted trees on the inputs of the learned users: the reference they are measured against.

Legend: P rows, B users, T rows of a user, S floats of state, N items.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor

from recsim_env.data.features import item_features, known_durations, user_features
from recsim_env.data.schema import LoggedDataset
from recsim_env.types import NO_ITEM
from reward_models.users.response import ResponseConfig
from reward_models.users.sequences import Sequences, sequence_batches
from reward_models.users.starting_levels import measure_memory
from reward_models.users.user_state import UserState, feedback_features
from reward_models.users.watch_time import WatchTimeCells

FloatArray = NDArray[np.float32]


def tree_inputs(dataset: LoggedDataset, sequences: Sequences, frozen_from: int) -> tuple[FloatArray, FloatArray]:
    """Features of item, user and context, decayed sums of the user's own feedback, and the memory's reading of them.

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


@torch.no_grad()
def _feedback_sums(sequences: Sequences, duration_N: Tensor, before_date: int) -> FloatArray:
    """What the learned users' memory holds before each row, without its learned item vectors."""
    cells, num_tabs = WatchTimeCells(), int(sequences.tab_P.max()) + 1
    memory = UserState(ResponseConfig().decays, False, 1, sequences.signals_PF.shape[1], num_tabs, cells.num_groups)
    measure_memory(memory, sequences, sequences.date_P < before_date, duration_N, cells)

    def events(
        items_BT: Tensor, tab_BT: Tensor, signals_BTF: Tensor, known_BTF: Tensor, happened_BT: Tensor
    ) -> tuple[Tensor, Tensor]:
        duration_BT = duration_N[items_BT]
        usual_BTY = memory.usual_TGY[tab_BT, cells.group(duration_BT)]
        feedback = feedback_features(signals_BTF, duration_BT, usual_BTY, known_BTF)
        return memory.events(torch.zeros(*items_BT.shape, 1), feedback, happened_BT)

    sums_PS = torch.zeros(len(sequences.item_P), memory.state_width)
    everything_P = torch.ones(len(sequences.item_P), dtype=torch.bool)
    for batch in sequence_batches(sequences, everything_P, 512):
        items_BH, signals_BHF, known_BHF = sequences.past.window(batch.user_B, 50)
        past_BH = items_BH.clamp(min=0)
        history = events(past_BH, torch.full_like(past_BH, num_tabs), signals_BHF, known_BHF, items_BH != NO_ITEM)
        start_BS = memory.update(torch.zeros(len(items_BH), memory.state_width), *history)
        row_BT = batch.row_BT
        rows = (sequences.item_P[row_BT], sequences.tab_P[row_BT], sequences.signals_PF[row_BT])
        begin_BT = (sequences.begin_P[row_BT] - row_BT[:, :1]).clamp(min=0)
        scanned = memory.scan(start_BS, *events(*rows, sequences.known_PF[row_BT], batch.valid_BT), begin_BT)
        sums_PS[row_BT[batch.valid_BT]] = scanned[batch.valid_BT]
    sums = sums_PS.reshape(len(sums_PS), memory.num_sums, -1).numpy()
    rates = sums / (sums[..., -1:] + 1.0)
    flat = [part.reshape(len(sums), -1) for part in (sums, rates)]
    return np.concatenate([*flat, memory.features(sums_PS).numpy()], 1)


def boosted(inputs: FloatArray, labels: NDArray[np.float32], seed: int = 0) -> HistGradientBoostingClassifier:
    """Trees fitted on all rows given: 80 rounds, as in the published reference."""
    return HistGradientBoostingClassifier(max_iter=80, random_state=seed).fit(inputs, labels)
