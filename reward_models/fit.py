"""Fits learned users on a log: search on validation days, calibrate on held-out users, fit on all days.

Three stages share one trainer. (1) Early stopping on the validation days chooses the number of epochs.
(2) Users are cut into folds; each fold is predicted by a model that saw the other folds on all days, and
these predictions calibrate watch-time cells and signals. (3) The final model is fitted on all users and
days for the chosen number of epochs, and the calibration is folded into its last layer, at no cost later.

Legend: B users, T rows of a user, R labelled rows, M cells, A signals given the cell, N items, U users,
H hidden width, F signals.
"""

import copy
import math
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from recsim_env.data.features import item_features, user_features
from recsim_env.data.schema import LoggedDataset
from recsim_env.types import NO_ITEM
from reward_models.calibration import fit_cells, fit_platt
from reward_models.response import (
    Answer,
    Memory,
    ResponseConfig,
    ResponseCore,
    SequenceResponse,
    amounts,
    feedback_features,
)
from reward_models.sequences import SequenceBatch, Sequences, read_sequences, sequence_batches
from reward_models.trainer import TrainConfig, train
from reward_models.watch_time import WatchTimeCells, cell_log_probability, read_off_table


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How learned users are fitted."""

    response: ResponseConfig = field(default_factory=ResponseConfig)
    """Shape of the model."""
    cells: WatchTimeCells = field(default_factory=WatchTimeCells)
    """Grid of watch times."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(max_epochs=6, learning_rate_decay=0.5))
    """The trainer's settings."""
    batch_users: int = 48
    """Users in a batch, at most."""
    min_batches: int = 200
    """Batches that an epoch is cut into at least: a log of few users gets smaller batches, not fewer steps."""
    history_length: int = 50
    """Past impressions of a user that lead to the first state."""
    read_off_weight: float = 1.0
    """Weight of the loss on signals that are read off the watch time; the cells' own loss counts 1."""
    calibration_folds: int = 4
    """Folds of users for calibration; 0 leaves the model as it was fitted."""

    def __post_init__(self) -> None:
        if min(self.batch_users, self.min_batches, self.history_length) < 1:
            raise ValueError(
                "need batch_users, min_batches and history_length of at least 1, got "
                f"{self.batch_users}, {self.min_batches} and {self.history_length}"
            )
        if self.calibration_folds == 1 or self.calibration_folds < 0:
            raise ValueError(f"calibration_folds must be 0 (none) or at least 2, got {self.calibration_folds}")


class ResponseNetwork(nn.Module):
    """A response model in training: encoders of items, users and contexts around the shared core."""

    item_features_ND: Tensor
    user_features_UD: Tensor
    duration_N: Tensor
    duration_hat_NC: Tensor

    def __init__(self, core: ResponseCore, item_features_ND: Tensor, user_features_UD: Tensor, duration_N: Tensor):
        super().__init__()
        config, width = core.config, core.config.width
        self.core = core
        self.register_buffer("item_features_ND", item_features_ND, persistent=False)
        self.register_buffer("user_features_UD", user_features_UD, persistent=False)
        self.register_buffer("duration_N", duration_N, persistent=False)
        self.item_vector = nn.Embedding(len(item_features_ND), config.item_width)
        self.register_buffer("duration_hat_NC", core.cells.hats(duration_N), persistent=False)
        item_inputs = item_features_ND.shape[1] + self.duration_hat_NC.shape[1] + config.item_width
        self.item_layer = nn.Linear(item_inputs, width)
        self.event_layer = nn.Linear(item_inputs, config.event_width)
        self.list_layer = nn.Linear(item_inputs, config.list_width)
        self.user_layer = nn.Linear(user_features_UD.shape[1], width)
        self.tab_vector = nn.Embedding(core.num_tabs, width)
        self.hour_vector = nn.Embedding(24, width)

    def initialise(self, generator: torch.Generator) -> None:
        """Draws fresh weights from ``generator``."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = 1.0 / math.sqrt(max(module.in_features, 1))
                module.weight.data.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.data.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.data.zero_()  # an item without rows stays at its features
        self.core.memory.initialise_fading()

    def item_inputs(self, items: Tensor) -> Tensor:
        """Features, duration and learned vector of items (...), side by side."""
        return torch.cat([self.item_features_ND[items], self.duration_hat_NC[items], self.item_vector(items)], -1)

    def past_sums(self, window: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Decayed sums (B, S) of a history window (items, feedback, known), see ``Histories.window``."""
        items_BH, feedback_BHF, known_BHF = window
        happened_BH, items_BH = items_BH != NO_ITEM, items_BH.clamp(min=0)
        unknown_BH = torch.full_like(items_BH, self.core.num_tabs)
        events = self.events(items_BH, unknown_BH, feedback_BHF, known_BHF, happened_BH)
        return self.core.memory.update(feedback_BHF.new_zeros(len(items_BH), self.core.memory.state_width), *events)

    def events(
        self, items_BT: Tensor, tab_BT: Tensor, signals_BTF: Tensor, known_BTF: Tensor, happened_BT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Impressions as the memory takes them, see ``Memory.events``."""
        duration_BT, memory = self.duration_N[items_BT], self.core.memory
        usual_BTY = memory.usual_TGY[tab_BT, self.core.cells.group(duration_BT)]
        features = feedback_features(signals_BTF, duration_BT, usual_BTY, known_BTF)
        return memory.events(self.event_layer(self.item_inputs(items_BT)), features, happened_BT)

    def row_events(self, sequences: Sequences, row_BT: Tensor, happened_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The same for rows of the log."""
        tab_BT = sequences.tab_P[row_BT].clamp(0, self.core.num_tabs - 1)
        known_BTF = sequences.known_PF[row_BT]
        return self.events(sequences.item_P[row_BT], tab_BT, sequences.signals_PF[row_BT], known_BTF, happened_BT)

    def states(self, sequences: Sequences, batch: SequenceBatch, history_length: int) -> Tensor:
        """Decayed sums (B, T, S) with which users come to each of their rows."""
        past_BS = self.past_sums(sequences.past.window(batch.user_B, history_length))
        events = self.row_events(sequences, batch.row_BT, batch.valid_BT)
        begin_BT = (sequences.begin_P[batch.row_BT] - batch.row_BT[:, :1]).clamp(min=0)
        return self.core.memory.scan(past_BS, *events, begin_BT)

    def last_states(self, sequences: Sequences, before_date: int, history_length: int) -> Tensor:
        """Decayed sums (U, S) with which users come to ``before_date``: their history, then their rows."""
        is_past_P = sequences.date_P < before_date
        users = torch.split(torch.arange(len(self.user_features_UD)), 4096)
        sums_US = torch.cat([self.past_sums(sequences.past.window(user_B, history_length)) for user_B in users])
        for batch in sequence_batches(sequences, is_past_P, 512):
            events = self.row_events(sequences, batch.row_BT, batch.label_BT)
            sums_US[batch.user_B] = self.core.memory.update(sums_US[batch.user_B], *events)
        return sums_US

    def forward(
        self,
        sequences: Sequences,
        batch: SequenceBatch,
        history_length: int,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Answer]:
        """Answers for a batch's labelled rows.

        Args:
            sequences: the log.
            batch: users.
            history_length: pre-log impressions to begin with.
            generator: draws the dropout; ``None`` for none.

        Returns:
            Rows (R,) of ``sequences`` and their logits.
        """
        sums_RS = self.states(sequences, batch, history_length)[batch.label_BT]
        row_R = batch.row_BT[batch.label_BT]
        items_R = sequences.item_P[row_R]
        inputs_RD = self.item_inputs(items_R)
        user_RV, taste_RE = self.core.user(sums_RS, self.user_layer(self.user_features_UD[sequences.user_P[row_R]]))
        tab_R = sequences.tab_P[row_R].clamp(0, self.core.num_tabs - 1)
        context_RH = self.tab_vector(tab_R) + self.hour_vector(sequences.hour_P[row_R])
        item_RH, event_RE = self.item_layer(inputs_RD), self.event_layer(inputs_RD)
        hidden_RH = self.core.hidden(user_RV, taste_RE, item_RH, event_RE, context_RH)
        if sequences.earlier_PQ is not None:
            earlier_RQ = sequences.earlier_PQ[row_R]
            vector_RQL = self.list_layer(self.item_inputs(earlier_RQ.clamp(min=0)))
            earlier_RL = (vector_RQL * (earlier_RQ != NO_ITEM).unsqueeze(-1)).sum(1)
            hidden_RH = hidden_RH + self.core.lists(earlier_RL, self.list_layer(inputs_RD))
        rate = self.core.config.dropout
        if generator is not None and rate > 0:
            keep_RH = torch.rand(hidden_RH.shape, generator=generator) >= rate
            hidden_RH = hidden_RH * keep_RH / (1.0 - rate)
        return row_R, self.core.answer(hidden_RH, user_RV, tab_R)

    @torch.no_grad()
    def export(self, sequences: Sequences, before_date: int, history_length: int) -> SequenceResponse:
        """Turns the encoders into tables; users start from what they did before ``before_date``."""
        inputs_ND = self.item_inputs(torch.arange(len(self.item_features_ND)))
        tables = {
            "item_NH": self.item_layer(inputs_ND),
            "item_event_NE": self.event_layer(inputs_ND),
            "user_UH": self.user_layer(self.user_features_UD),
            "sums_US": self.last_states(sequences, before_date, history_length),
            "tab_TH": self.tab_vector.weight,
            "hour_24H": self.hour_vector.weight,
            "duration_N": self.duration_N,
        }
        if self.core.has_lists:
            tables["item_list_NL"] = self.list_layer(inputs_ND)
        return SequenceResponse(copy.deepcopy(self.core), tables)


class _Fitting:
    """What the three stages share: the log as tensors, and how to build, train and read a network."""

    def __init__(self, dataset: LoggedDataset, config: FitConfig, seed: int) -> None:
        self.dataset, self.config, self.seed = dataset, config, seed
        self.sequences = read_sequences(dataset, config.history_length)
        self.item_features = torch.from_numpy(item_features(dataset).values)
        users = torch.from_numpy(user_features(dataset).values)
        self.user_features = users if users.shape[1] else users.new_zeros(len(users), 1)
        self.duration_N = known_durations(dataset)
        self.num_tabs = int(self.sequences.tab_P.max()) + 1
        self.hat_NC = config.cells.hats(self.duration_N)
        duration_P = self.duration_N[self.sequences.item_P]
        self.cell_P = config.cells.index(self.sequences.signals_PF[:, 0], duration_P)
        self.group_P = config.cells.group(duration_P)
        self.watch_known_P = self.sequences.known_PF[:, 0]

    def network(self, label_P: Tensor) -> ResponseNetwork:
        """A fresh network; what signals a cell brings is counted on the labelled rows."""
        signals, has_lists = self.dataset.signals, self.sequences.earlier_PQ is not None
        core = ResponseCore(self.config.response, signals, self.config.cells, self.num_tabs, has_lists)
        network = ResponseNetwork(core, self.item_features, self.user_features, self.duration_N)
        network.initialise(torch.Generator().manual_seed(self.seed))
        rows = label_P & self.watch_known_P
        columns = [signals.index(name) for name in core.read_off]
        if columns:
            core.read_off_TGMD.copy_(
                read_off_table(
                    self.cell_P[rows],
                    self.group_P[rows],
                    self.sequences.tab_P[rows],
                    self.sequences.signals_PF[rows][:, columns],
                    (self.num_tabs, core.cells.num_groups, core.cells.num_cells),
                )
            )
        sequences = self.sequences
        measure_memory(core.memory, sequences, label_P, self.duration_N, core.cells)
        given_RA = sequences.signals_PF[rows][:, [signals.index(name) for name in core.given]]
        _count_levels(core, self.cell_P[rows], self.duration_N[sequences.item_P[rows]], given_RA)
        return network

    def loss(self, network: ResponseNetwork, batch: SequenceBatch, generator: torch.Generator | None) -> Tensor:
        """Mean over labelled rows of minus the log-likelihood of everything recorded."""
        sequences, core = self.sequences, network.core
        row_R, answer = network(sequences, batch, self.config.history_length, generator)
        cell_R, signals_RF = self.cell_P[row_R], sequences.signals_PF[row_R]
        log_prior_NM = core.log_prior(network.duration_N)
        log_cell_RM = cell_log_probability(answer.cells, log_prior_NM[sequences.item_P[row_R]])
        known_R = self.watch_known_P[row_R].float()
        total_R = -log_cell_RM.gather(1, cell_R.unsqueeze(1)).squeeze(1) * known_R
        if core.read_off and self.config.read_off_weight > 0:
            table_RMD = core.read_off_TGMD[sequences.tab_P[row_R], self.group_P[row_R]]
            chance_RD = (log_cell_RM.exp().unsqueeze(-1) * table_RMD).sum(1).clamp(1e-6, 1.0 - 1e-6)
            label_RD = signals_RF[:, [core.signals.index(name) for name in core.read_off]]
            losses_RD = nn.functional.binary_cross_entropy(chance_RD, label_RD, reduction="none")
            total_R = total_R + self.config.read_off_weight * losses_RD.sum(1)
        if core.given:
            label_RA = signals_RF[:, [core.signals.index(name) for name in core.given]]
            logit_RA = answer.given + core.effects(cell_R, label_RA[:, 0])
            losses_RA = nn.functional.binary_cross_entropy_with_logits(logit_RA, label_RA, reduction="none")
            total_R = total_R + losses_RA.sum(1)
        return total_R.mean()

    def fit(
        self, label_P: Tensor, validation_P: Tensor | None, max_epochs: int, run_dir: Path | None, label: str
    ) -> tuple[ResponseNetwork, int]:
        """Trains one network; returns it with the epoch that was kept."""
        network, num_users = self.network(label_P), len(self.sequences.user_P[label_P].unique())
        size = min(self.config.batch_users, max(1, num_users // self.config.min_batches))

        def batches(generator: torch.Generator) -> Iterator[SequenceBatch]:
            return sequence_batches(self.sequences, label_P, size, generator)

        def validate() -> float:
            assert validation_P is not None
            total = rows = 0.0
            for batch in sequence_batches(self.sequences, validation_P, 4 * size):
                count = float(batch.label_BT.sum())
                total, rows = total + float(self.loss(network, batch, None)) * count, rows + count
            return total / rows

        result = train(
            network,
            batches=batches,
            loss=lambda batch, generator: self.loss(network, batch, generator),
            validate=None if validation_P is None else validate,
            config=replace(self.config.train, max_epochs=max_epochs),
            seed=self.seed,
            run_dir=None if run_dir is None else run_dir / label,
            label=label,
            undecayed=("tab_logit_TV", "duration_logit_CM", "cell_effect_MA", "parent_effect_A"),
            identity={"fit": asdict(self.config), "rows": int(label_P.sum()), "log": self.dataset.name},
        )
        return network, result.best_epoch

    @torch.no_grad()
    def answers(self, network: ResponseNetwork, label_P: Tensor) -> tuple[Tensor, Answer]:
        """Rows and logits of all labelled rows, without dropout."""
        batches = sequence_batches(self.sequences, label_P, 4 * self.config.batch_users)
        return _joined([network(self.sequences, batch, self.config.history_length) for batch in batches])

    @torch.no_grad()
    def effects(self, core: ResponseCore, row_R: Tensor) -> Tensor:
        """What the recorded cell and first signal add to the logits (R, A) of given signals."""
        parent_R = self.sequences.signals_PF[row_R, core.signals.index(core.given[0])]
        return core.effects(self.cell_P[row_R], parent_R)

    @torch.no_grad()
    def fit_cells(
        self, core: ResponseCore, row_R: Tensor, answer: Answer, scale: float | None = None
    ) -> tuple[float, Tensor]:
        """Calibrates the cells of rows whose watch time is known."""
        known_R = self.watch_known_P[row_R]
        row_R = row_R[known_R]
        item_R = self.sequences.item_P[row_R]
        log_prior_RM, hat_RC = (table[item_R] for table in (core.log_prior(self.duration_N), self.hat_NC))
        return fit_cells(answer.cells[known_R], log_prior_RM, hat_RC, self.cell_P[row_R], scale)


def _count_levels(
    core: ResponseCore, cell_R: Tensor, duration_R: Tensor, given_RA: Tensor, prior: float = 20.0
) -> None:
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
    memory: Memory, sequences: Sequences, label_P: Tensor, duration_N: Tensor, cells: WatchTimeCells
) -> None:
    """Shows a memory what is usual: labelled rows, and what their users did before the log."""
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


def known_durations(dataset: LoggedDataset) -> Tensor:
    """Float32 seconds (N,) of every item, the catalogue's median where unknown."""
    duration = dataset.items["duration"].to_numpy(np.float32, na_value=np.nan)
    known = np.isfinite(duration) & (duration > 0)
    if not known.any():
        raise ValueError(
            f'no item of "{dataset.name}" has a duration, and watch times cannot be modelled without; '
            "map a duration column when reading the log"
        )
    return torch.from_numpy(np.where(known, duration, np.median(duration[known])).astype(np.float32))


def fit_response(
    dataset: LoggedDataset,
    *,
    users: ArrayLike | None = None,
    train_until: int,
    validation_dates: Collection[int] = (),
    config: FitConfig | None = None,
    seed: int = 0,
    run_dir: Path | str | None = None,
) -> SequenceResponse:
    """Learns users from a log.

    Args:
        dataset: a checked log; only its pre-log history and rows up to the last training or validation day
            are looked at.
        users: codes of the users to learn from; ``None`` takes all. The model can simulate every user.
        train_until: YYYYMMDD, last day to learn from.
        validation_dates: YYYYMMDD days that the search leaves out and stops early on; the calibration and
            the final fit include them. Without any, training takes ``config.train.max_epochs``.
        config: settings; defaults suit logs of 1e5 to 1e7 rows.
        seed: of weights, order and dropout.
        run_dir: keeps checkpoints and TensorBoard files; the same call resumes a run that was killed.

    Returns:
        The calibrated model, users starting from what they did up to the last of these days.

    Raises:
        ValueError: no rows are left to learn from, or ``run_dir`` holds another run.
    """
    config, run_dir = config or FitConfig(), None if run_dir is None else Path(run_dir)
    fitting = _Fitting(dataset, config, seed)
    sequences = fitting.sequences
    chosen_U = torch.zeros(len(dataset.users), dtype=torch.bool)
    chosen_U[torch.arange(len(chosen_U)) if users is None else torch.as_tensor(np.asarray(users))] = True
    is_chosen_P = chosen_U[sequences.user_P]
    is_held_out_P = torch.isin(sequences.date_P, torch.tensor(sorted(validation_dates)).long())
    validation_P = is_chosen_P & is_held_out_P
    train_P = is_chosen_P & (sequences.date_P <= train_until) & ~is_held_out_P
    last_date = max([train_until, *validation_dates])
    all_P = is_chosen_P & (sequences.date_P <= last_date)
    if not train_P.any() or (len(validation_dates) > 0 and not validation_P.any()):
        raise ValueError(
            f"{int(chosen_U.sum())} users have {int(train_P.sum())} rows up to {train_until} and "
            f"{int(validation_P.sum())} rows on validation dates {sorted(validation_dates)}; the log covers "
            f"{int(sequences.date_P.min())} to {int(sequences.date_P.max())}: choose days within it"
        )
    epochs = config.train.max_epochs
    if len(validation_dates) > 0:
        _, epochs = fitting.fit(train_P, validation_P, epochs, run_dir, "search")
    network, _ = fitting.fit(all_P, None, epochs, run_dir, "final")
    if config.calibration_folds:
        _calibrate(network, fitting, all_P, epochs, run_dir)
    return network.export(sequences, _next_day(last_date), config.history_length)


def _calibrate(network: ResponseNetwork, fitting: _Fitting, label_P: Tensor, epochs: int, run_dir: Path | None) -> None:
    """Folds a calibration into the last layer.

    Predictions for held-out users say how far the logits are to be trusted (their scale). The level is
    that of the final network itself on all its rows: a few offsets do not overfit, and the levels of
    networks that differ in nothing but the rows seen scatter by a few percent.
    """
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


def _joined(parts: list[tuple[Tensor, Answer]]) -> tuple[Tensor, Answer]:
    rows, answers = zip(*parts, strict=True)
    return torch.cat(rows), Answer(*(torch.cat(logits) for logits in zip(*answers, strict=True)))


def _next_day(date: int) -> int:
    day = np.datetime64(f"{date // 10000:04d}-{date // 100 % 100:02d}-{date % 100:02d}") + np.timedelta64(1, "D")
    return int(str(day).replace("-", ""))
