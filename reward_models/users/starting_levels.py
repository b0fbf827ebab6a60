"""What is counted on the log before a network is trained, so that it has only the differences to learn.

Legend: R labelled rows, P rows, M cells, A signals given the cell, C knots of duration, F signals, T tabs, G duration
groups, Y what is remembered of an impression.
"""

import torch
from torch import Tensor, nn

from reward_models.users.response_core import ResponseCore
from reward_models.users.sequences import Sequences
from reward_models.users.user_state import UserState, amounts
from reward_models.users.watch_time import WatchTimeCells


def count_levels(core: ResponseCore, cell_R: Tensor, duration_R: Tensor, given_RA: Tensor, prior: float = 20.0) -> None:
    """Starts the training from what is counted, so that the network has only the differences to learn.

    Levels of cells (over all durations, then at each knot of duration) and of signals, and the effects of
    cell and first signal on the others, are those of the log; the effects are shrunk by ``prior`` rows.
    """

    def log_odds(selected_RC: Tensor) -> Tensor:
        selected_RC = selected_RC.double()
        hits_CA = selected_RC.T @ given_RA.double() + prior * given_RA.double().mean(0)
        return torch.logit(hits_CA / (selected_RC.sum(0).unsqueeze(1) + prior), eps=1e-6).float()

    is_cell_RM = nn.functional.one_hot(cell_R, core.cells.num_cells)
    base_A = torch.logit(given_RA.double().mean(0), eps=1e-6).float()
    share_RM, hat_RC = core.cells.share(duration_R), core.cells.hats(duration_R)
    rate_M = (is_cell_RM.float().mean(0) + 1e-5) / 1.001
    start_M = (rate_M / share_RM.mean(0).clamp(min=1e-3)).log()
    expected_RM = share_RM * start_M.exp()
    expected_CM = hat_RC.T @ (expected_RM / expected_RM.sum(1, keepdim=True))
    level_CM = ((hat_RC.T @ is_cell_RM.float() + prior * rate_M) / (expected_CM + prior * rate_M)).log()
    with torch.no_grad():
        core.tab_logit_TV.copy_(torch.cat([start_M, base_A]))
        core.duration_logit_CM.copy_(level_CM)
        if core.given:
            parent_R = given_RA[:, 0]
            core.cell_effect_MA.copy_(log_odds(is_cell_RM) - base_A)
            without_A, with_A = log_odds(torch.stack([1.0 - parent_R, parent_R], 1))
            core.parent_effect_A.copy_(with_A - without_A)
            core.parent_effect_A[0] = 0.0  # the first signal has no effect on itself


def measure_memory(
    memory: UserState, sequences: Sequences, label_P: Tensor, duration_N: Tensor, cells: WatchTimeCells
) -> None:
    """Sets what a user's state takes for usual feedback, since it moves only by what is beyond it.

    Measured on the labelled rows, and on what the users of these rows did before the log.
    """
    past = sequences.past
    is_theirs_U = torch.zeros(len(past.start_U1) - 1, dtype=torch.bool)
    is_theirs_U[sequences.user_P[label_P]] = True
    earlier = is_theirs_U.repeat_interleave(past.start_U1.diff())
    item_P = torch.cat([sequences.item_P[label_P], past.item_P[earlier]])
    signals_PF = torch.cat([sequences.signals_PF[label_P], past.feedback_PF[earlier]])
    known_PF = torch.cat([sequences.known_PF[label_P], past.known_PF[earlier]])
    unknown = memory.usual_TGY.shape[0] - 1
    tab_P = torch.cat([sequences.tab_P[label_P], torch.full_like(past.item_P[earlier], unknown)])
    known_PY = torch.cat([known_PF, known_PF[:, :1]], 1)
    memory.measure(amounts(signals_PF, duration_N[item_P]), known_PY, tab_P, cells.group(duration_N[item_P]))
