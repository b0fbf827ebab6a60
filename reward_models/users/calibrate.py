"""Makes what fitted users emit as frequent as in the log: on the rows of its ranker, and on those that nobody chose.

Legend: P rows of the log, R rows, M cells, A signals given the cell, F signals, V = M + A logits, C knots of duration.
"""

from pathlib import Path

import torch
from torch import Tensor

from reward_models.calibration import fit_cells, fit_group_offsets, fit_platt
from reward_models.users.fitting import Fitting
from reward_models.users.network import ResponseNetwork
from reward_models.users.response_core import Answer


def calibrate(network: ResponseNetwork, fitting: Fitting, label_P: Tensor, epochs: int, run_dir: Path | None) -> None:
    """Folds a calibration into the last layer.

    Predictions for held-out users say how far the logits are to be trusted (their scale). The level is
    that of the final network itself on all its rows: a few offsets do not overfit, and the levels of
    networks that differ in nothing but the rows seen scatter by a few percent.
    """
    # Folds are of users, not of rows: a user's other rows would give the answer away.
    sequences, num_folds, core = fitting.sequences, fitting.config.calibration_folds, network.core
    generator = torch.Generator().manual_seed(fitting.seed)
    fold_P = (torch.randperm(len(sequences.start_U1) - 1, generator=generator) % num_folds)[sequences.user_P]
    held_out = []
    for fold in range(num_folds):
        other, _ = fitting.fit(label_P & (fold_P != fold), None, epochs, run_dir, f"fold-{fold}")
        held_out.append(fitting.answers(other, label_P & (fold_P == fold)))
    row_P, answer = _joined(held_out)
    own_P, own = fitting.answers(network, label_P)
    scale, _ = fitting.fit_cells(core, row_P, answer)
    _, offset_CM = fitting.fit_cells(core, own_P, own, scale)
    if core.given:
        # Effects of cell and first signal are counted on many rows and keep their size.
        effects_PA, own_effects_PA = fitting.effects(core, row_P), fitting.effects(core, own_P)
    with torch.no_grad():
        core.rescale_cells(scale, offset_CM)
        for index, name in enumerate(core.given):
            label_PF = sequences.signals_PF[:, core.signals.index(name)]
            slope = fit_platt(answer.given[:, index], label_PF[row_P], fixed=effects_PA[:, index]).scale
            offset = fit_platt(own.given[:, index], label_PF[own_P], slope, fixed=own_effects_PA[:, index]).offset
            core.rescale_given(index, slope, offset)
            # Then cell by cell, so that a like comes as often with a click as in the log.
            logit_P = slope * own.given[:, index] + offset + own_effects_PA[:, index]
            offset_M = fit_group_offsets(logit_P, label_PF[own_P], fitting.cell_P[own_P], core.cells.num_cells)
            core.cell_effect_MA[:, index] += torch.from_numpy(offset_M).float()


@torch.no_grad()
def set_levels(network: ResponseNetwork, fitting: Fitting, label_P: Tensor) -> None:
    """Levels where a log tells them apart: of videos that nobody chose, and of those that the log's ranker did.

    Rows of uniform exposure set the level of all slates but the log's own; what the ranker's rows are above it is kept
    as the effect of its choosing, see ``ResponseCore.answer``.
    """
    sequences, core = fitting.sequences, network.core
    uniform_P = label_P & sequences.uniform_P
    core.level_2V[0] += _missing(network, fitting, uniform_P)
    core.selection_XV[0] += _missing(network, fitting, label_P & ~uniform_P)


def _missing(network: ResponseNetwork, fitting: Fitting, label_P: Tensor) -> Tensor:
    """Offsets (V,) of all logits after which these rows have the log's rates, up to a pull towards none."""
    sequences, core = fitting.sequences, network.core
    if not label_P.any():
        return torch.zeros_like(core.level_2V[0])
    row_R, answer = fitting.answers(network, label_P)
    known_R = fitting.watch_known_P[row_R]
    log_prior_RM = core.log_prior(fitting.duration_N)[sequences.item_P[row_R[known_R]]]
    every_R1 = torch.ones(len(log_prior_RM), 1)
    _, cells_1M = fit_cells(answer.cells[known_R], log_prior_RM, every_R1, fitting.cell_P[row_R[known_R]], scale=1.0)
    offsets = [cells_1M[0]]
    for index, name in enumerate(core.given):
        label_R = sequences.signals_PF[row_R, core.signals.index(name)]
        logit_R = answer.given[:, index] + fitting.effects(core, row_R)[:, index]
        offset = fit_group_offsets(logit_R, label_R, torch.zeros(len(row_R), dtype=torch.int64), 1)
        offsets.append(torch.from_numpy(offset).float())
    return torch.cat(offsets)


def _joined(parts: list[tuple[Tensor, Answer]]) -> tuple[Tensor, Answer]:
    rows, answers = zip(*parts, strict=True)
    return torch.cat(rows), Answer(*(torch.cat(logits) for logits in zip(*answers, strict=True)))
