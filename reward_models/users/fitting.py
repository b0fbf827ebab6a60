"""What the stages of a fit of learned users share: settings, the log as tensors, how a network is trained and read.

Where the log holds slates, what earlier places do to later ones is fitted last, everything else held fixed,
beside controls for what the log's ranker knew (see ``reward_models.ranker_controls``).

Legend: B users, T rows of a user, P rows of the log, R labelled rows, M cells, A signals given the cell, N items,
U users, H hidden width, F signals, Y amounts, D features or signals read off the cell, C knots of duration,
X controls.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recsim_env.digests import digest_json, digest_tensors
from reward_models.calibration import fit_cells
from reward_models.exposure import UNIFORM_WEIGHT, Exposure
from reward_models.list_effects import kinds_of
from reward_models.ranker_controls import RankerControls, ranker_controls
from reward_models.trainer import TrainConfig, train
from reward_models.users.network import FirstLayer, ResponseNetwork
from reward_models.users.response_core import Answer, ResponseConfig, ResponseCore
from reward_models.users.sequences import SequenceBatch, Sequences, sequence_batches
from reward_models.users.starting_levels import count_levels, measure_memory
from reward_models.users.watch_time import WatchTimeCells, cell_log_probability, read_off_table

_ROWS_AT_ONCE = 1 << 16
_SETTLING_STEPS = 20

_CHOICES = ("selection_XV", "passed_GV")
"""What a ranker's choices say of the videos that it showed, and of those that it passed over."""

_LIST_ROWS = 1024
"""Rows in a batch of the list effects' own fit, at most."""


@dataclass(frozen=True, kw_only=True)
class ResponseFitConfig:
    """How learned users are fitted."""

    response: ResponseConfig = field(default_factory=ResponseConfig)
    """Shape of the model."""
    cells: WatchTimeCells = field(default_factory=WatchTimeCells)
    """Grid of watch times."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(max_epochs=6, learning_rate_decay=0.6))
    """The trainer's settings."""
    list_train: TrainConfig = field(
        default_factory=lambda: TrainConfig(max_epochs=8, learning_rate=5e-3, learning_rate_decay=0.7)
    )
    """The same for what earlier places of a slate change, where the log holds slates."""
    batch_users: int = 48
    """Users in a batch, at most."""
    min_batches: int = 200
    """Batches that an epoch is cut into at least: a log of few users gets smaller batches, not fewer steps."""
    history_length: int = 50
    """Past impressions of a user that lead to the first state."""
    read_off_weight: float = 1.0
    """Weight of the loss on signals that are read off the watch time; the cells' own loss counts 1."""
    exposure_epochs: int = 5
    """Passes over the log that learn what its ranker showed to whom."""
    calibration_folds: int = 4
    """Folds of users for calibration; 0 leaves the model as it was fitted."""

    def __post_init__(self) -> None:
        if min(self.batch_users, self.min_batches, self.history_length, self.exposure_epochs) < 1:
            raise ValueError(
                "need batch_users, min_batches, history_length and exposure_epochs of at least 1, got "
                f"{self.batch_users}, {self.min_batches}, {self.history_length} and {self.exposure_epochs}"
            )
        if self.calibration_folds == 1 or self.calibration_folds < 0:
            raise ValueError(f"calibration_folds must be 0 (none) or at least 2, got {self.calibration_folds}")


class Fitting:
    """What the stages of a fit share: the log as tensors, and how to build, train and read a network."""

    def __init__(
        self,
        sequences: Sequences,
        item_features_ND: Tensor,
        user_features_UD: Tensor,
        exposure: Exposure,
        config: ResponseFitConfig,
        seed: int,
    ) -> None:
        self.sequences, self.exposure, self.config, self.seed = sequences, exposure, config, seed
        self.item_features, self.user_features = item_features_ND, user_features_UD
        features = digest_tensors({"items": item_features_ND, "users": user_features_UD})
        self.content = digest_json([sequences.digest, features])
        self.duration_N = sequences.duration_N
        self.num_tabs = int(self.sequences.tab_P.max()) + 1
        self.hat_NC = config.cells.hats(self.duration_N)
        duration_P = self.duration_N[self.sequences.item_P]
        self.cell_P = config.cells.index(self.sequences.signals_PF[:, 0], duration_P)
        self.group_P = config.cells.group(duration_P)
        self.watch_known_P = self.sequences.known_PF[:, 0]

    def network(self, label_P: Tensor) -> ResponseNetwork:
        """A fresh network; what signals a cell brings is counted on the labelled rows."""
        signals = self.sequences.signals
        kinds = len(kinds_of(self.item_features))
        num_kinds = 0 if self.sequences.earlier_PQ is None else kinds
        session_kinds = None if self.sequences.session_P is None else kinds
        core = ResponseCore(self.config.response, signals, self.config.cells, self.num_tabs, num_kinds, session_kinds)
        network = ResponseNetwork(core, self.item_features, self.user_features, self.duration_N, self.exposure)
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
        core.ranker_lift.copy_(self.exposure.lift_P[label_P & ~sequences.uniform_P].mean().nan_to_num())
        if core.satiation is not None:
            core.satiation.usual_Y.copy_(network.kind_NY[sequences.item_P[label_P]].mean(0))
        measure_memory(core.memory, sequences, label_P, self.duration_N, core.cells)
        given_RA = sequences.signals_PF[rows][:, [signals.index(name) for name in core.given]]
        count_levels(core, self.cell_P[rows], self.duration_N[sequences.item_P[rows]], given_RA)
        return network

    def batch_loss(
        self, network: ResponseNetwork, example: tuple[SequenceBatch, Tensor], generator: torch.Generator | None
    ) -> Tensor:
        """``loss`` of a batch's labelled rows, each as if it were shown alone, with what is expected of them (P, Y)."""
        batch, expected_PY = example
        first = network(self.sequences, batch, expected_PY, self.config.history_length, generator)
        return self.loss(network, first.row_R, network.answer(self.sequences, first))

    def loss(self, network: ResponseNetwork, row_R: Tensor, answer: Answer) -> Tensor:
        """Mean over rows of minus the log-likelihood of everything recorded."""
        # Three parts, as the users are drawn: the cell of the watch time; signals read off the cell; signals given it.
        sequences, core = self.sequences, network.core
        cell_R, signals_RF = self.cell_P[row_R], sequences.signals_PF[row_R]
        log_prior_NM = core.log_prior(network.duration_N)
        log_cell_RM = cell_log_probability(answer.cells, log_prior_NM[sequences.item_P[row_R]])
        known_R = self.watch_known_P[row_R].float()
        total_R = -log_cell_RM.gather(1, cell_R.unsqueeze(1)).squeeze(1) * known_R
        if core.read_off and self.config.read_off_weight > 0:
            table_RMD = core.read_off_TGMD[sequences.tab_P[row_R], self.group_P[row_R]]
            # The table is counted and fixed, so this term trains the cells: they must add up to the right rate of
            # clicks, which their own loss pins down only loosely.
            chance_RD = (log_cell_RM.exp().unsqueeze(-1) * table_RMD).sum(1).clamp(1e-6, 1.0 - 1e-6)
            label_RD = signals_RF[:, [core.signals.index(name) for name in core.read_off]]
            losses_RD = nn.functional.binary_cross_entropy(chance_RD, label_RD, reduction="none")
            total_R = total_R + self.config.read_off_weight * losses_RD.sum(1)
        if core.given:
            label_RA = signals_RF[:, [core.signals.index(name) for name in core.given]]
            # The recorded cell and first signal are given, not drawn: each factor of the joint likelihood by itself.
            logit_RA = answer.given + core.effects(cell_R, label_RA[:, 0])
            losses_RA = nn.functional.binary_cross_entropy_with_logits(logit_RA, label_RA, reduction="none")
            total_R = total_R + losses_RA.sum(1)
        weight_R = self.weights(row_R)
        return (total_R * weight_R).sum() / weight_R.sum()

    def weights(self, row_R: Tensor) -> Tensor:
        """What rows weigh in the loss, (R,)."""
        return torch.where(self.sequences.uniform_P[row_R], UNIFORM_WEIGHT, 1.0)

    def fit(
        self, label_P: Tensor, validation_P: Tensor | None, max_epochs: int, run_dir: Path | None, label: str
    ) -> tuple[ResponseNetwork, int]:
        """Trains one network; returns it with the epoch that was kept."""
        network, num_users = self.network(label_P), len(torch.unique(self.sequences.user_P[label_P]))
        # A user's rows stay together, since each row's state comes from the rows before it.
        size = min(self.config.batch_users, max(1, num_users // self.config.min_batches))

        def batches(generator: torch.Generator) -> Iterator[tuple[SequenceBatch, Tensor]]:
            shuffled = list(sequence_batches(self.sequences, label_P, size, generator))
            for number, batch in enumerate(shuffled):
                if number in (0, len(shuffled) // 2):  # often enough: from one replay to the next little changes
                    expected_PY, _ = network.replay(self.sequences, label_P, self.config.history_length)
                yield batch, expected_PY

        def validate() -> float:
            assert validation_P is not None
            total = rows = 0.0
            expected_PY, _ = network.replay(self.sequences, validation_P, self.config.history_length)
            for batch in sequence_batches(self.sequences, validation_P, 4 * size):
                count = float(batch.label_BT.sum())
                total, rows = total + float(self.batch_loss(network, (batch, expected_PY), None)) * count, rows + count
            return total / rows

        result = train(
            network,
            batches=batches,
            loss=lambda example, generator: self.batch_loss(network, example, generator),
            validate=None if validation_P is None else validate,
            config=replace(self.config.train, max_epochs=max_epochs),
            seed=self.seed,
            run_dir=None if run_dir is None else run_dir / label,
            label=label,
            undecayed=(
                "tab_logit_TV",
                "duration_logit_CM",
                "cell_effect_MA",
                "parent_effect_A",
                *_CHOICES,
            ),
            quick=_CHOICES,  # far from 0, and nothing counts them beforehand
            identity=self.identity(label_P, validation_P),
        )
        self.settle_choices(network, label_P)
        return network, result.best_epoch

    def settle_choices(self, network: ResponseNetwork, label_P: Tensor) -> None:
        """Brings what a ranker's choices say to its optimum, everything else held fixed.

        The problem is convex, few rows decide it, and epochs leave it half solved: held-out rows gain by the rest.
        Without rows of uniform exposure nothing tells choices from others, and nothing is done.
        """
        if not self.sequences.uniform_P.any():
            return
        first, choices = self.first_layer(network, label_P), [getattr(network.core, name) for name in _CHOICES]
        parts = torch.split(torch.arange(len(first.row_R)), _ROWS_AT_ONCE)
        share_by_part = torch.stack([self.weights(first.row_R[index_R]).sum() for index_R in parts])
        share_by_part /= share_by_part.sum()
        optimiser = torch.optim.LBFGS(choices, max_iter=_SETTLING_STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            total = torch.zeros(())
            optimiser.zero_grad()
            for index_R, share in zip(parts, share_by_part, strict=True):
                rows = first.at(index_R)
                part = share * self.loss(network, rows.row_R, network.answer(self.sequences, rows))
                part.backward(inputs=choices)
                total += part.detach()
            return total

        optimiser.step(loss)  # type: ignore[no-untyped-call]
        optimiser.zero_grad()

    def settle_lists(self, network: ResponseNetwork, label_P: Tensor) -> None:
        """Learns the level of the effects of earlier places from slates that nobody put in order.

        In a log without any it stays what the convention makes it, see ``PairEffects.settle``.
        """
        uniform_P = label_P & self.sequences.uniform_P
        if not uniform_P.any():
            return
        first, effects = self.first_layer(network, uniform_P), network.core.pair_effects
        strength_R = network.earlier_strength(self.sequences, first.row_R)
        with torch.no_grad():
            effects.pair.add_(1.0)
            rise_R = network.earlier_strength(self.sequences, first.row_R) - strength_R
            effects.pair.sub_(1.0)
        # What the videos are worth alone moves along, or its level would stay that of the average place.
        level, alone_V = torch.zeros((), requires_grad=True), torch.zeros_like(network.core.pair_slope_V)
        alone_V.requires_grad_()
        optimiser = torch.optim.LBFGS([level, alone_V], max_iter=_SETTLING_STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            answer = network.answer(self.sequences, first, strength_R + level * rise_R)
            cells_M, given_A = torch.split(alone_V, [network.core.cells.num_cells, len(network.core.given)])
            value = self.loss(network, first.row_R, Answer(answer.cells + cells_M, answer.given + given_A))
            value.backward(inputs=[level, alone_V])  # type: ignore[no-untyped-call]
            return value

        optimiser.step(loss)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            effects.pair.add_(level)

    def identity(self, label_P: Tensor, validation_P: Tensor | None) -> dict[str, Any]:
        """What shapes a training, but for its own settings: those of the fit, and the content of every row it reads."""
        rows = {"labels": label_P} if validation_P is None else {"labels": label_P, "validation": validation_P}
        return {"fit": asdict(self.config), "content": self.content, "rows": digest_tensors(rows)}

    def fit_lists(
        self,
        network: ResponseNetwork,
        label_P: Tensor,
        validation_P: Tensor | None,
        max_epochs: int,
        run_dir: Path | None,
        label: str,
    ) -> int:
        """Fits what earlier places of a request change, everything else held fixed; returns the epoch kept.

        Without a request key in the log there is nothing to fit, and the answer is 0.
        """
        if not network.core.num_kinds:
            return 0
        # What videos are worth alone is finished and its first layer computed once; only effects and controls move.
        core, num_cells = network.core, network.core.cells.num_cells
        shown, held_out = (
            None if chosen_P is None else self.first_layer(network, chosen_P) for chosen_P in (label_P, validation_P)
        )
        assert shown is not None
        control_RX = self.controls(network, shown)
        controls = RankerControls(control_RX, (num_cells + len(core.given),))
        slope = nn.ParameterList([core.pair_slope_V])
        parts = nn.ModuleDict({"pairs": core.pair_effects, "slope": slope, "controls": controls})
        size = min(_LIST_ROWS, max(1, len(shown.row_R) // self.config.min_batches))

        def loss(first: FirstLayer, control_RX: Tensor, in_list: bool) -> Tensor:
            answer = network.answer(
                self.sequences, first, network.earlier_strength(self.sequences, first.row_R) if in_list else None
            )
            cells_RM, given_RA = torch.split(controls(control_RX), [num_cells, len(core.given)], 1)
            return self.loss(network, first.row_R, Answer(answer.cells + cells_RM, answer.given + given_RA))

        def batches(generator: torch.Generator) -> Iterable[Tensor]:
            return torch.split(torch.randperm(len(shown.row_R), generator=generator), size)

        def fit(trained: nn.Module, in_list: bool, label: str) -> int:
            validate = None
            if held_out is not None:
                validate = partial(loss, held_out, self.controls(network, held_out), in_list)
            return train(
                trained,
                batches=batches,
                loss=lambda index_R, _: loss(shown.at(index_R), control_RX[index_R], in_list),
                validate=None if validate is None else lambda: float(validate()),
                config=replace(self.config.list_train, max_epochs=max_epochs),
                seed=self.seed,
                run_dir=None if run_dir is None else run_dir / label,
                label=label,
                undecayed=("weight",) if trained is controls else ("controls.weight",),
                identity=self.identity(label_P, validation_P),
            ).best_epoch

        # The controls alone, then effects beside controls: what the ranker knew is never taken for an effect of the
        # list. The controls are not kept, for in the simulation another ranker fills the places.
        fit(controls, False, f"{label}-controls")
        epoch = fit(parts, True, label)
        core.pair_effects.settle(network.kind_NY[self.sequences.item_P[shown.row_R]].mean(dim=0))
        self.settle_lists(network, label_P)
        return epoch

    @torch.no_grad()
    def controls(self, network: ResponseNetwork, first: FirstLayer) -> Tensor:
        """Ranker controls (R, X) of rows; the opinion is the log of the seconds expected of the video alone."""
        sequences, cells, row_R = self.sequences, network.core.cells, first.row_R
        duration_R = self.duration_N[sequences.item_P[row_R]]
        probability_RM = cell_log_probability(
            network.answer(self.sequences, first, chosen=False).cells, network.core.log_prior(duration_R)
        ).exp()
        seconds_R = (probability_RM * cells.mean(cells.log_duration(duration_R))).sum(1)
        return ranker_controls(
            row_R - sequences.begin_P[row_R],
            sequences.begin_P[row_R],
            sequences.propensity_P[row_R],
            sequences.uniform_P[row_R],
            seconds_R.log().unsqueeze(1),
        )

    @torch.no_grad()
    def first_layer(self, network: ResponseNetwork, label_P: Tensor) -> FirstLayer:
        """All labelled rows as if shown alone, without dropout."""
        length = self.config.history_length
        expected_PY, _ = network.replay(self.sequences, label_P, length)
        batches = sequence_batches(self.sequences, label_P, 4 * self.config.batch_users)
        parts = [network(self.sequences, batch, expected_PY, length) for batch in batches]
        return FirstLayer(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    @torch.no_grad()
    def answers(self, network: ResponseNetwork, label_P: Tensor) -> tuple[Tensor, Answer]:
        """Rows and logits of all labelled rows in their lists, without dropout."""
        first = self.first_layer(network, label_P)
        strength_R = network.earlier_strength(self.sequences, first.row_R) if network.core.num_kinds else None
        return first.row_R, network.answer(self.sequences, first, strength_R)

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
