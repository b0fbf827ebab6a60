"""A list evaluator: what a whole slate is worth, learned from the operator's own log.

Every candidate is judged alone first: heads correct the predictor's own opinion of each signal, log seconds for
watch time and log-odds for the rest, by what is known of the candidate and of the request. Then comes the company:
what the earlier places of the list change, again in log seconds and log-odds, kind by kind: fatigue from what is
alike, and what leads well to what (``reward_models.company``). Users play a slate in order, so later places change
nothing, and lists cut short by a leaving user need no special care. The value of a list is the sum of its places'
expected seconds, given that they are reached. ``listwise=False`` drops the company: the value is then a sum over
items whatever their order, the control that shows what lists add.

The two parts are fitted one after the other, the second beside controls for what the log's ranker knew (see
``reward_models.ranker_controls``).

Watch time is fitted by the Poisson quasi-likelihood of ``reward_models.predictor``, so it is unbiased in the
mean; the other signals are auxiliary tasks. Members differ by bootstrap of users and initial weights.

Chosen by the log likelihood of held-out slates of uniform exposure: attention over the earlier places added nothing
there and was exploited by rankers, controls fitted together with the videos did harm, and fitting the company on
uniform slates alone left it too few.

Shape legend: B requests, C candidates, G lists, K places, F signals, M members, I inputs of a candidate,
J inputs of a request, Z kinds, W width, X controls or pairs, Y = B * C candidates, L = B * G lists, P = L * K places.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recsim_env.data.requests import LoggedBatch, LoggedRequests
from recsim_env.plugins import load_object
from recsim_env.types import ListEffect, ListValue, Request
from recsim_env.world import class_path
from reward_models.company import Company, kinds_of
from reward_models.ensemble import FitSettings, bootstrap_weights, fit_members
from reward_models.predictor import NUM_TABS, level_shifts, signal_losses
from reward_models.ranker_controls import MAX_PLACES, RankerControls, ranker_controls


@dataclass(frozen=True, kw_only=True)
class EvaluatorConfig:
    """How the list evaluator is built and fitted."""

    listwise: bool = True
    """False drops everything that depends on other places."""
    num_members: int = 6
    """Members of the ensemble, M."""
    width: int = 32
    """Width of a candidate's encoding, W."""
    pair_decay: float = 0.1
    """Weight decay of the effects of pairs of kinds."""
    auxiliary_weight: float = 0.2
    """Weight of each other signal's log loss beside the watch-time loss."""
    min_slates: int = 200
    """Requests with two places or more that a list-wise fit needs."""
    weight_decay: float = 1.0
    """Weight decay of all matrices."""
    learning_rate: float = 3e-3
    """Adam's step size."""
    batch_size: int = 128
    """Requests of a training step."""
    max_epochs: int = 30
    """Upper bound on passes over the log."""
    patience: int = 3
    """Epochs without a better out-of-bag loss in any member before training stops."""

    def __post_init__(self) -> None:
        for name in ("num_members", "width", "batch_size", "max_epochs", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


class SlateEvaluator:
    """A fitted list evaluator; see ``recsim_env.types.ListEvaluator``.

    Args:
        model: the trained networks.
        list_effect: a within-slate effect that the operator declares beside what the log taught: each
            place's value is multiplied by the chance that the place is not interrupted.
    """

    def __init__(self, model: "_ListModel", list_effect: ListEffect | None = None):
        self._model = model.requires_grad_(False)
        self.list_effect = list_effect

    @property
    def listwise(self) -> bool:
        """Whether the learned part looks at other places."""
        return self._model.config.listwise

    @torch.no_grad()
    def score(self, request: Request, items_BGK: Tensor) -> ListValue:
        """Values of G lists per request, in expected seconds watched.

        Args:
            request: all fields are read but the item codes of the history.
            items_BGK: int64 item codes out of the request's candidates.

        Raises:
            ValueError: an item is not among the candidates, or the lists are longer than ``MAX_PLACES``.
        """
        batch, lists, places = items_BGK.shape
        position_BX = positions(request.candidates_BC, items_BGK.flatten(1))
        inputs = request_inputs(request)
        logit_MPF = self._model(inputs, position_BX.view(batch, lists, places), num_signals=1)
        seconds_MLK = torch.exp(logit_MPF).view(-1, batch * lists, places)
        if self.list_effect is not None:
            seconds_MLK = seconds_MLK * (1.0 - self.list_effect.interrupt(items_BGK.flatten(0, 1)))
        value_ML = seconds_MLK.sum(dim=-1)
        members = len(value_ML)
        value_L = value_ML.sum(dim=0) / members
        square_L = (value_ML - value_L).square().sum(dim=0)
        return ListValue(
            value_BG=value_L.view(batch, lists),
            per_place_BGK=(seconds_MLK.sum(dim=0) / members).view(batch, lists, places),
            std_BG=(square_L / max(members - 1, 1)).sqrt().view(batch, lists),
        )

    def with_list_effect(self, list_effect: ListEffect | None) -> "SlateEvaluator":
        """The same evaluator for an operator who knows of this within-slate effect."""
        return SlateEvaluator(self._model, list_effect)

    def config(self) -> dict[str, Any]:
        """Settings as JSON values."""
        settings = {"config": dataclasses.asdict(self._model.config), "sizes": self._model.sizes._asdict()}
        if self.list_effect is None:
            return settings
        effect: Any = self.list_effect
        return {**settings, "list_effect": {"class": class_path(effect), "config": effect.config()}}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, by name."""
        effect: Any = self.list_effect
        declared = {} if effect is None else {f"list_effect.{k}": v for k, v in effect.tensors().items()}
        return {**self._model.state_dict(), **declared}

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "SlateEvaluator":
        """Rebuilds a saved evaluator."""
        prefix = "list_effect."
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
        model = _ListModel(EvaluatorConfig(**config["config"]), Sizes(**config["sizes"]), seed=0)
        model = model.to(next(iter(own.values())).device)
        model.load_state_dict(own)
        if "list_effect" not in config:
            return cls(model)
        declared = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        stored = config["list_effect"]
        return cls(model, load_object(stored["class"]).restore(stored["config"], declared))


def positions(candidates_BC: Tensor, items_BX: Tensor) -> Tensor:
    """Where items stand in their request's candidate set, int64 (B, X).

    Raises:
        ValueError: an item is not among the candidates.
    """
    match_BXC = items_BX.unsqueeze(2) == candidates_BC.unsqueeze(1)
    found_BX = match_BXC.any(dim=2)
    if not bool(found_BX.all()):
        row, place = (~found_BX).nonzero()[0].tolist()
        raise ValueError(
            f"item {int(items_BX[row, place])} is not among the {candidates_BC.shape[1]} candidates of request "
            f"{row}; an evaluator can only judge lists made of the request's candidates"
        )
    return match_BXC.to(torch.uint8).argmax(dim=2)


class Inputs(NamedTuple):
    """What the evaluator reads of a request."""

    candidate_BCI: Tensor
    """float32: item features, predictions, their spread, retriever score."""
    request_BJ: Tensor
    """float32: user features, recent rates of every signal, tab."""
    base_BCF: Tensor
    """float32: the predictor's own opinion, as log seconds and log-odds."""

    def at(self, position_BK: Tensor) -> "Inputs":
        """The inputs of some candidates only."""

        def gather(tensor_BCX: Tensor) -> Tensor:
            return tensor_BCX.gather(1, position_BK.unsqueeze(-1).expand(-1, -1, tensor_BCX.shape[-1]))

        return Inputs(gather(self.candidate_BCI), self.request_BJ, gather(self.base_BCF))


def request_inputs(request: Request) -> Inputs:
    """Inputs of a batch of requests; see ``Inputs``."""
    predicted_BCF = request.predicted_BCF
    watch_BC1 = predicted_BCF[..., :1].clamp(min=0.1).log()
    chance_BCF = predicted_BCF[..., 1:].clamp(1e-4, 1 - 1e-4)
    base_BCF = torch.cat([watch_BC1, chance_BCF.log() - torch.log1p(-chance_BCF)], dim=-1)
    spread_BCF = torch.log1p(request.predicted_std_BCF)
    score_BC1 = request.retriever_score_BC.unsqueeze(-1)
    known_BHF = request.history_known_BHF.to(torch.float32)
    feedback_BHF = torch.cat(
        [torch.log1p(request.history_feedback_BHF[..., :1]), request.history_feedback_BHF[..., 1:]], dim=-1
    )
    num_known_BF = known_BHF.sum(dim=1)
    rate_BF = (feedback_BHF * known_BHF).sum(dim=1) / (num_known_BF + 5.0)
    tab_B = request.context_BX[:, 0].to(torch.int64).clamp(0, NUM_TABS - 1)
    tab_BT = torch.nn.functional.one_hot(tab_B, NUM_TABS).to(torch.float32)
    return Inputs(
        torch.cat([request.candidate_features_BCD, base_BCF, spread_BCF, score_BC1], dim=-1),
        torch.cat([request.user_features_BD, rate_BF, torch.log1p(num_known_BF), tab_BT], dim=-1),
        base_BCF,
    )


class Sizes(NamedTuple):
    """Widths of the inputs and outputs."""

    candidate: int
    request: int
    signals: int
    kinds: int
    """Yes/no features among the item features."""


class _ListModel(torch.nn.Module):
    """M list models side by side: what candidates are alone, and what company changes."""

    def __init__(self, config: EvaluatorConfig, sizes: Sizes, seed: int):
        super().__init__()
        self.config, self.sizes = config, sizes
        generator = torch.Generator().manual_seed(seed)
        self.alone = _Alone(config, sizes, generator)
        self.effects = _ListEffects(config, sizes) if config.listwise else None

    def forward(self, inputs: Inputs, position_BGK: Tensor, num_signals: int) -> Tensor:
        """Log seconds and log-odds (M, P, F) of every place of every list, for the first F signals."""
        if position_BGK.shape[2] > MAX_PLACES:
            raise ValueError(f"lists hold at most {MAX_PLACES} places, got {position_BGK.shape[2]}")
        candidates = inputs.candidate_BCI.shape[1]
        first_B11 = torch.arange(len(position_BGK), device=position_BGK.device)[:, None, None] * candidates
        row_P = (position_BGK + first_B11).flatten()
        logit_MPF: Tensor = self.alone(inputs, num_signals).index_select(1, row_P)
        if self.effects is None:
            return logit_MPF
        change_MPF: Tensor = self.effects(inputs.candidate_BCI, position_BGK, num_signals)
        return logit_MPF + change_MPF


class _Alone(torch.nn.Module):
    """What each candidate is worth whatever stands around it."""

    mean_I: Tensor
    scale_I: Tensor
    mean_J: Tensor
    scale_J: Tensor

    def __init__(self, config: EvaluatorConfig, sizes: Sizes, generator: torch.Generator):
        super().__init__()
        width = config.width
        self.candidate = _weight(config, generator, sizes.candidate, width)
        self.request = _weight(config, generator, sizes.request, width, gain=0.5)
        self.hidden_bias = _zeros(config, width)
        self.own = _weight(config, generator, width, width)
        self.own_bias = _zeros(config, width)
        self.head = _weight(config, generator, width, sizes.signals, gain=0.1)
        self.head_bias = _zeros(config, sizes.signals)
        for name, size in (("I", sizes.candidate), ("J", sizes.request)):
            self.register_buffer(f"mean_{name}", torch.zeros(size))
            self.register_buffer(f"scale_{name}", torch.ones(size))

    def forward(self, inputs: Inputs, num_signals: int) -> Tensor:
        """Log seconds and log-odds (M, Y, F)."""
        candidate_BCI = ((inputs.candidate_BCI - self.mean_I) * self.scale_I).clamp(-5.0, 5.0)
        request_BJ = ((inputs.request_BJ - self.mean_J) * self.scale_J).clamp(-5.0, 5.0)
        request_MBW = torch.matmul(request_BJ, self.request) + self.hidden_bias.unsqueeze(1)
        candidate_MYW = torch.matmul(candidate_BCI.flatten(0, 1), self.candidate)
        hidden_MBCW = candidate_MYW.view(len(request_MBW), *candidate_BCI.shape[:2], -1) + request_MBW.unsqueeze(2)
        own_MYW = torch.baddbmm(self.own_bias.unsqueeze(1), hidden_MBCW.flatten(1, 2).relu(), self.own)
        bias_M1F = self.head_bias[:, None, :num_signals]
        change_MYF = torch.baddbmm(bias_M1F, own_MYW.relu(), self.head[..., :num_signals])
        return inputs.base_BCF.flatten(0, 1)[:, :num_signals] + change_MYF


class _ListEffects(torch.nn.Module):
    """What the earlier places of a list change at a later one, and how much of it each signal shows."""

    kind_Z: Tensor
    """int64 columns of the item features that are kinds."""

    def __init__(self, config: EvaluatorConfig, sizes: Sizes):
        super().__init__()
        self.company = Company(sizes.kinds, (config.num_members,))
        self.company.pair.weight_decay = config.pair_decay  # type: ignore[attr-defined]
        self.slope = torch.nn.Parameter(torch.ones(config.num_members, 1, sizes.signals))
        self.register_buffer("kind_Z", torch.zeros(sizes.kinds, dtype=torch.int64))

    def forward(self, candidate_BCI: Tensor, position_BGK: Tensor, num_signals: int) -> Tensor:
        """Changes of log seconds and log-odds (M, P, F)."""
        batch, lists, places = position_BGK.shape
        candidates = candidate_BCI.shape[1]
        kind_BCZ = candidate_BCI[..., self.kind_Z]
        effect_MBCZ = torch.matmul(kind_BCZ, self.company.pair.unsqueeze(1))
        effect_MBX = torch.matmul(effect_MBCZ, kind_BCZ.transpose(1, 2)).flatten(2)
        both_BGKK = position_BGK.unsqueeze(3) * candidates + position_BGK.unsqueeze(2)
        index_MBY = both_BGKK.view(1, batch, -1).expand(len(effect_MBX), -1, -1)
        effect_MBGKK = effect_MBX.gather(2, index_MBY).view(-1, batch, lists, places, places)
        strength_MP1 = self.company.strength(effect_MBGKK).view(-1, batch * lists * places, 1)
        return strength_MP1 * self.slope[..., :num_signals]


def _weight(
    config: EvaluatorConfig, generator: torch.Generator, rows: int, columns: int, gain: float = 1.0
) -> torch.nn.Parameter:
    drawn = torch.randn(config.num_members, rows, columns, generator=generator) * gain * rows**-0.5
    parameter = torch.nn.Parameter(drawn)
    parameter.weight_decay = config.weight_decay  # type: ignore[attr-defined]
    return parameter


def _zeros(config: EvaluatorConfig, *shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(config.num_members, *shape))


class _Example(NamedTuple):
    """One batch of logged slates, ready for training steps."""

    inputs: Inputs
    """Of the shown items alone, in the order of their places."""
    target_PF: Tensor
    known_PF: Tensor
    user_P: Tensor
    control_PX: Tensor


def fit_evaluator(
    requests: LoggedRequests,
    *,
    list_effect: ListEffect | None = None,
    config: EvaluatorConfig | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
) -> SlateEvaluator:
    """Fits a list evaluator on logged slates.

    Args:
        requests: the operator's log, annotated with its predictor and retriever. The same fitted predictor
            may serve: its predictions of rows it was fitted on are a little too sure, which the
            evaluator's heads cannot see; predictions by a predictor of other users avoid that.
        list_effect: declared within-slate effect, see ``SlateEvaluator``.
        config: settings. A list-wise model is refused, with a warning, where the log holds fewer than
            ``min_slates`` slates of two places or more; the additive one is fitted instead.
        seed: fixes initial weights, bootstrap and the order of batches.
        run_dir: where TensorBoard finds the losses; none are written by default.

    Raises:
        ValueError: fewer than two users.
    """
    config = config or EvaluatorConfig()
    num_slates = int((requests.slate_size_L > 1).sum())
    if config.listwise and num_slates < config.min_slates:
        warnings.warn(
            f"the log holds {num_slates} slates of two places or more and a list-wise evaluator needs "
            f"{config.min_slates}: fitting the additive one, whose best list is a sort of single items",
            stacklevel=2,
        )
        config = dataclasses.replace(config, listwise=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        examples = [_example(batch) for batch in requests.batches(config.batch_size, generator)]
    kind_Z = kinds_of(requests.item_features_ND)
    model = _ListModel(config, _sizes(examples, kind_Z), seed)
    if model.effects is not None:
        model.effects.kind_Z.copy_(kind_Z)
    _standardise(model, examples)
    _train(model, examples, len(requests.user_features_UD), requests.user_L, generator, run_dir)
    return SlateEvaluator(model, list_effect)


def _example(batch: LoggedBatch) -> _Example:
    slate_size = batch.items_BK.shape[1]
    inputs = request_inputs(batch.request).at(positions(batch.request.candidates_BC, batch.items_BK))
    return _Example(
        inputs=inputs,
        target_PF=batch.feedback.signals_BKF.flatten(0, 1),
        known_PF=batch.known_BKF.flatten(0, 1).to(torch.float32),
        user_P=batch.request.user_B.repeat_interleave(slate_size),
        control_PX=ranker_controls(
            torch.arange(slate_size).repeat(len(batch.items_BK)),
            torch.arange(len(batch.items_BK)).repeat_interleave(slate_size),
            batch.propensity_BK.flatten(),
            batch.uniform_B.repeat_interleave(slate_size),
            inputs.base_BCF.flatten(0, 1),
        ),
    )


def _sizes(examples: list[_Example], kind_Z: Tensor) -> Sizes:
    first = examples[0]
    return Sizes(
        candidate=first.inputs.candidate_BCI.shape[-1],
        request=first.inputs.request_BJ.shape[-1],
        signals=first.target_PF.shape[-1],
        kinds=len(kind_Z),
    )


@torch.no_grad()
def _standardise(model: _ListModel, examples: list[_Example]) -> None:
    """Sets the inputs' mean and scale, and starts watch time at the log's mean."""
    alone = model.alone
    candidate_PI = torch.cat([example.inputs.candidate_BCI.flatten(0, 1) for example in examples])
    request_LJ = torch.cat([example.inputs.request_BJ for example in examples])
    for rows, mean, scale in (
        (candidate_PI, alone.mean_I, alone.scale_I),
        (request_LJ, alone.mean_J, alone.scale_J),
    ):
        mean.copy_(rows.mean(dim=0))
        deviation = (rows - mean).square().mean(dim=0).sqrt()
        scale.copy_(torch.where(deviation > 1e-4, 1.0 / deviation.clamp(min=1e-4), 0.0))
    base_PF = torch.cat([example.inputs.base_BCF.flatten(0, 1) for example in examples])
    target_PF = torch.cat([example.target_PF for example in examples])
    known_PF = torch.cat([example.known_PF for example in examples])
    alone.head_bias.add_(level_shifts(base_PF.unsqueeze(0), target_PF, known_PF.unsqueeze(0)))


def _train(
    model: _ListModel,
    examples: list[_Example],
    num_users: int,
    user_L: Tensor,
    generator: torch.Generator,
    run_dir: str | Path | None,
) -> None:
    """First the candidates alone; then, with these held fixed, their company beside the controls."""
    config, num_signals = model.config, model.sizes.signals
    weight_UM = bootstrap_weights(num_users, user_L, config.num_members, generator)
    watched = torch.cat([example.target_PF[:, 0][example.known_PF[:, 0] > 0] for example in examples])
    mean_watch = watched.mean().clamp(min=1e-3) if len(watched) else torch.tensor(1.0)

    def batches(shuffle: torch.Generator | None) -> Iterable[int]:
        return range(len(examples)) if shuffle is None else torch.randperm(len(examples), generator=shuffle).tolist()

    def fit(part: torch.nn.Module, logits: Callable[[int], Tensor], label: str) -> None:
        def losses(number: int) -> tuple[Tensor, Tensor]:
            example = examples[number]
            loss_MP = signal_losses(
                logits(number), example.target_PF, example.known_PF, mean_watch, 1.0, config.auxiliary_weight
            )
            return loss_MP, example.user_P

        settings = FitSettings(
            learning_rate=config.learning_rate,
            max_epochs=config.max_epochs,
            patience=config.patience,
            label=label,
            run_dir=run_dir,
        )
        fit_members(part, batches, losses, weight_UM, generator, settings)

    def alone(number: int) -> Tensor:
        logit_MPF: Tensor = model.alone(examples[number].inputs, num_signals)
        return logit_MPF

    def company(number: int) -> Tensor:
        assert model.effects is not None
        candidate_BKI = examples[number].inputs.candidate_BCI
        in_order_B1K = torch.arange(candidate_BKI.shape[1]).expand(len(candidate_BKI), 1, -1)
        change_MPF: Tensor = model.effects(candidate_BKI, in_order_B1K, num_signals)
        return change_MPF

    fit(model.alone, alone, "evaluator")
    with torch.no_grad():
        final = [alone(number) for number in range(len(examples))]
        if model.effects is not None:
            all_PX = torch.cat([example.control_PX for example in examples])
            controls = RankerControls(all_PX, (config.num_members, num_signals))
            parts = torch.nn.ModuleList([model.effects, controls])
            with torch.enable_grad():
                fit(controls, lambda n: final[n] + controls(examples[n].control_PX), "evaluator_controls")
                fit(parts, lambda n: final[n] + company(n) + controls(examples[n].control_PX), "evaluator_company")
            model.effects.company.settle(model.alone.mean_I[model.effects.kind_Z])
            final = [logit_MPF + company(number) for number, logit_MPF in enumerate(final)]
        target_PF = torch.cat([example.target_PF for example in examples])
        known_PF = torch.cat([example.known_PF for example in examples])
        user_P = torch.cat([example.user_P for example in examples])
        out_MP1 = (weight_UM[user_P].T == 0).unsqueeze(-1)
        model.alone.head_bias.add_(level_shifts(torch.cat(final, dim=1), target_PF, known_PF * out_MP1))
