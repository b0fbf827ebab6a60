"""A list evaluator: what a whole slate is worth, learned from the operator's own log.

Every candidate is encoded once, with the request around it. A place then attends to the places before it
(users play a slate in order, so what comes later cannot change how an earlier place is watched, and lists
cut short by a leaving user need no special care), and heads correct the predictor's own opinion of each
signal: log seconds for watch time, log-odds for the rest. The value of a list is the sum of its places'
expected seconds, given that they are reached. ``listwise=False`` drops attention and place: the value is
then a sum over items whatever their order and company, the control that shows what lists add.

Watch time is fitted by the Poisson quasi-likelihood of ``reward_models.predictor``, so it is unbiased in the
mean; the other signals are auxiliary tasks. Members differ by bootstrap of users and initial weights.

Shape legend: B requests, C candidates, G lists, K places, F signals, M members, I inputs of a candidate,
J inputs of a request, W width, A attention width, Y = B * C candidates, L = B * G lists, P = L * K places.
"""

import dataclasses
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recsim_env.data.requests import LoggedBatch, LoggedRequests
from recsim_env.plugins import load_object
from recsim_env.types import ListEffect, ListValue, Request
from recsim_env.world import class_path
from reward_models.ensemble import FitSettings, bootstrap_weights, fit_members
from reward_models.predictor import NUM_TABS, level_shifts, signal_losses

MAX_PLACES = 32
"""Longest list an evaluator can score."""

_HIGHEST_SCORE = 30.0


@dataclass(frozen=True, kw_only=True)
class EvaluatorConfig:
    """How the list evaluator is built and fitted."""

    listwise: bool = True
    """False drops everything that depends on a place or on other places."""
    num_members: int = 2
    """Members of the ensemble, M."""
    width: int = 64
    """Width of a place's encoding, W."""
    attention_width: int = 16
    """Width of queries, keys and values, A."""
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
        for name in ("num_members", "width", "attention_width", "batch_size", "max_epochs", "patience"):
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
        """Whether the learned part looks at places and at other places."""
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
        logit_MLK = self._model(inputs, position_BX.view(batch, lists, places), judging=True)[..., 0]
        seconds_MLK = torch.exp(logit_MLK)
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
    """float32: features, predictions, their spread, retriever score."""
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


class _ListModel(torch.nn.Module):
    """M list models side by side."""

    place_share_Y: Tensor
    mean_I: Tensor
    scale_I: Tensor
    mean_J: Tensor
    scale_J: Tensor

    def __init__(self, config: EvaluatorConfig, sizes: Sizes, seed: int):
        super().__init__()
        self.config, self.sizes = config, sizes
        generator = torch.Generator().manual_seed(seed)
        members, width, attention = config.num_members, config.width, config.attention_width

        def weight(rows: int, columns: int, gain: float = 1.0) -> torch.nn.Parameter:
            drawn = torch.randn(members, rows, columns, generator=generator) * gain * rows**-0.5
            parameter = torch.nn.Parameter(drawn)
            parameter.weight_decay = config.weight_decay  # type: ignore[attr-defined]
            return parameter

        def zeros(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.zeros(members, *shape))

        self.candidate = weight(sizes.candidate, width)
        self.request = weight(sizes.request, width, gain=0.5)
        self.hidden_bias = zeros(width)
        self.own = weight(width, width)
        self.own_bias = zeros(width)
        self.head = weight(width, sizes.signals, gain=0.1)
        self.head_bias = zeros(sizes.signals)
        if config.listwise:
            self.query = weight(width, attention)
            self.key = weight(width, attention)
            self.value = weight(width, attention)
            self.nothing = zeros(attention)  # the key of "no earlier place matters"
            self.distance = zeros(MAX_PLACES)
            self.company = weight(attention, width)
            self.likeness = zeros(sizes.candidate)
            self.repeated = weight(1, width)
            self.place = zeros(MAX_PLACES, sizes.signals)
            self.register_buffer("place_share_Y", torch.full((MAX_PLACES,), 1.0 / MAX_PLACES))
        for name, size in (("I", sizes.candidate), ("J", sizes.request)):
            self.register_buffer(f"mean_{name}", torch.zeros(size))
            self.register_buffer(f"scale_{name}", torch.ones(size))

    def forward(self, inputs: Inputs, position_BGK: Tensor, judging: bool = False) -> Tensor:
        """Log seconds and log-odds (M, B * G, K, F) of every place of every list.

        A log's places differ mostly because its ranker sorted, by things it saw and the log lacks. A level for
        each place, which training starts from the log's own, keeps that out of what places do to each other. In
        ``judging`` every place counts as the average one, and F = 1.
        """
        batch, lists, places = position_BGK.shape
        candidates = inputs.candidate_BCI.shape[1]
        if places > MAX_PLACES:
            raise ValueError(f"lists hold at most {MAX_PLACES} places, got {places}")
        signals = 1 if judging else self.sizes.signals
        first_B11 = torch.arange(batch, device=position_BGK.device)[:, None, None] * candidates
        row_P = (position_BGK + first_B11).flatten()
        hidden_MYW = self._encode(inputs)
        own_MYW = torch.baddbmm(self.own_bias.unsqueeze(1), hidden_MYW, self.own)
        head_MWF, bias_M1F = self.head[..., :signals], self.head_bias[:, None, :signals]
        base_PF = inputs.base_BCF.flatten(0, 1)[row_P, :signals]
        members = len(own_MYW)
        if self.config.listwise:
            seen_MPA = self._company(hidden_MYW, position_BGK, row_P, candidates)
            place_MPW = own_MYW.index_select(1, row_P).baddbmm_(seen_MPA, self.company)
            place_MPW = place_MPW.baddbmm_(self._likeness(inputs, position_BGK), self.repeated)
            change_MPF = torch.baddbmm(bias_M1F, place_MPW.relu_(), head_MWF)
            place_MKF = self.place[:, :places, :signals]
            if judging:
                place_MKF = torch.matmul(self.place_share_Y, self.place[..., :signals]).unsqueeze(1)
            change_MPF = change_MPF + place_MKF.expand(-1, places, -1).repeat(1, batch * lists, 1)
        else:
            change_MPF = torch.baddbmm(bias_M1F, own_MYW.relu(), head_MWF).index_select(1, row_P)
        return (base_PF + change_MPF).view(members, batch * lists, places, signals)

    def _encode(self, inputs: Inputs) -> Tensor:
        """Encodings (M, B * C, W) of all candidates in their requests."""
        candidate_BCI = ((inputs.candidate_BCI - self.mean_I) * self.scale_I).clamp(-5.0, 5.0)
        request_BJ = ((inputs.request_BJ - self.mean_J) * self.scale_J).clamp(-5.0, 5.0)
        request_MBW = torch.matmul(request_BJ, self.request) + self.hidden_bias.unsqueeze(1)
        candidate_MYW = torch.matmul(candidate_BCI.flatten(0, 1), self.candidate)
        hidden_MBCW = candidate_MYW.view(len(request_MBW), *candidate_BCI.shape[:2], -1) + request_MBW.unsqueeze(2)
        return hidden_MBCW.flatten(1, 2).relu()

    def _company(self, hidden_MYW: Tensor, position_BGK: Tensor, row_P: Tensor, candidates: int) -> Tensor:
        """What each place has attended to among the earlier places of its list, (M, B * G * K, A)."""
        members, (batch, lists, places) = len(hidden_MYW), position_BGK.shape
        query_MYA, key_MYA = torch.bmm(hidden_MYW, self.query), torch.bmm(hidden_MYW, self.key)
        # All pairs of candidates at once; lists only pick theirs.
        query_XCA = query_MYA.view(members * batch, candidates, -1)
        pair_XCC = torch.bmm(query_XCA, key_MYA.view_as(query_XCA).transpose(1, 2))
        pair_BX = (position_BGK.unsqueeze(3) * candidates + position_BGK.unsqueeze(2)).flatten(1)
        pair_MBX = pair_XCC.view(members, batch, -1).gather(2, pair_BX.expand(members, -1, -1))
        place_K = torch.arange(places, device=row_P.device)
        gap_KK = place_K.unsqueeze(1) - place_K
        nothing_MY = (query_MYA * self.nothing.unsqueeze(1)).sum(dim=-1)
        nothing_MLK = nothing_MY.index_select(1, row_P).view(members, -1, places)
        score_MLKK = pair_MBX.view(members, batch * lists, places, places) - nothing_MLK.unsqueeze(-1)
        score_MLKK = score_MLKK / self.config.attention_width**0.5 + self.distance[:, gap_KK.clamp(min=0)].unsqueeze(1)
        # A softmax over the earlier places and "nothing", whose score is 0; torch's own is slow on short rows.
        odds_MLKK = torch.exp(score_MLKK.clamp(max=_HIGHEST_SCORE)) * (gap_KK > 0)
        weight_MLKK = odds_MLKK / (1.0 + odds_MLKK.sum(dim=-1, keepdim=True))
        value_MPA = torch.bmm(hidden_MYW, self.value).index_select(1, row_P)
        value_XKA = value_MPA.view(members * batch * lists, places, -1)
        return torch.bmm(weight_MLKK.flatten(0, 1), value_XKA).view(members, len(row_P), -1)

    def _likeness(self, inputs: Inputs, position_BGK: Tensor) -> Tensor:
        """How much of each place the earlier places of its list have shown already, (M, B * G * K, 1).

        The sum over earlier places of the feature-wise product with them, weighted by feature. Attention of a
        few dimensions cannot tell fifty tags apart; this can, and fatigue from what is alike is learned from it.
        """
        batch, lists, places = position_BGK.shape
        candidate_BCI = (inputs.candidate_BCI * self.scale_I).clamp(-3.0, 3.0)
        index_BXI = position_BGK.flatten(1).unsqueeze(2).expand(-1, -1, candidate_BCI.shape[2])
        shown_BGKI = candidate_BCI.gather(1, index_BXI).view(batch, lists, places, -1)
        earlier_BGKI = shown_BGKI.cumsum(dim=2) - shown_BGKI
        product_PI = (shown_BGKI * earlier_BGKI).flatten(0, 2) / 3.0
        return torch.matmul(product_PI, self.likeness.unsqueeze(2))


class _Example(NamedTuple):
    """One batch of logged slates, ready for training steps."""

    inputs: Inputs
    target_PF: Tensor
    known_PF: Tensor
    user_P: Tensor
    slate_size: int


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
    model = _ListModel(config, _sizes(examples), seed)
    _standardise(model, examples)
    _train(model, examples, len(requests.user_features_UD), requests.user_L, generator, run_dir)
    return SlateEvaluator(model, list_effect)


def _example(batch: LoggedBatch) -> _Example:
    slate_size = batch.items_BK.shape[1]
    position_BK = positions(batch.request.candidates_BC, batch.items_BK)
    return _Example(
        inputs=request_inputs(batch.request).at(position_BK),
        target_PF=batch.feedback.signals_BKF.flatten(0, 1),
        known_PF=batch.known_BKF.flatten(0, 1).to(torch.float32),
        user_P=batch.request.user_B.repeat_interleave(slate_size),
        slate_size=slate_size,
    )


def _sizes(examples: list[_Example]) -> Sizes:
    first = examples[0]
    return Sizes(first.inputs.candidate_BCI.shape[-1], first.inputs.request_BJ.shape[-1], first.target_PF.shape[-1])


@torch.no_grad()
def _standardise(model: _ListModel, examples: list[_Example]) -> None:
    """Sets the inputs' mean and scale, and starts watch time at the log's mean."""
    candidate_PI = torch.cat([example.inputs.candidate_BCI.flatten(0, 1) for example in examples])
    request_LJ = torch.cat([example.inputs.request_BJ for example in examples])
    for rows, mean, scale in (
        (candidate_PI, model.mean_I, model.scale_I),
        (request_LJ, model.mean_J, model.scale_J),
    ):
        mean.copy_(rows.mean(dim=0))
        deviation = (rows - mean).square().mean(dim=0).sqrt()
        scale.copy_(torch.where(deviation > 1e-4, 1.0 / deviation.clamp(min=1e-4), 0.0))
    base_PF = torch.cat([example.inputs.base_BCF.flatten(0, 1) for example in examples])
    target_PF = torch.cat([example.target_PF for example in examples])
    known_PF = torch.cat([example.known_PF for example in examples])
    shift_MF = level_shifts(base_PF.unsqueeze(0), target_PF, known_PF.unsqueeze(0))
    model.head_bias.add_(shift_MF)
    if model.config.listwise:
        place_P = torch.cat([torch.arange(e.slate_size).repeat(len(e.inputs.request_BJ)) for e in examples])
        model.place_share_Y.copy_(torch.bincount(place_P, minlength=MAX_PLACES) / len(place_P))
        for place in range(int(place_P.max()) + 1):
            here_P1 = (place_P == place).unsqueeze(1)
            level_MF = level_shifts(base_PF.unsqueeze(0) + shift_MF[:1], target_PF, (known_PF * here_P1).unsqueeze(0))
            model.place[:, place] = level_MF


def _train(
    model: _ListModel,
    examples: list[_Example],
    num_users: int,
    user_L: Tensor,
    generator: torch.Generator,
    run_dir: str | Path | None,
) -> None:
    config = model.config
    weight_UM = bootstrap_weights(num_users, user_L, config.num_members, generator)
    watched = torch.cat([example.target_PF[:, 0][example.known_PF[:, 0] > 0] for example in examples])
    mean_watch = watched.mean().clamp(min=1e-3) if len(watched) else torch.tensor(1.0)

    def batches(shuffle: torch.Generator | None) -> Iterable[_Example]:
        order = range(len(examples)) if shuffle is None else torch.randperm(len(examples), generator=shuffle).tolist()
        return (examples[i] for i in order)

    def logits(example: _Example) -> Tensor:
        requests = len(example.inputs.request_BJ)
        position_BGK = torch.arange(example.slate_size).expand(requests, 1, -1)
        logit_MLKF: Tensor = model(example.inputs, position_BGK)
        return logit_MLKF.flatten(1, 2)

    def losses(example: _Example) -> tuple[Tensor, Tensor]:
        loss_MP = signal_losses(
            logits(example), example.target_PF, example.known_PF, mean_watch, 1.0, config.auxiliary_weight
        )
        return loss_MP, example.user_P

    fit_members(
        model,
        batches,
        losses,
        weight_UM,
        generator,
        FitSettings(
            learning_rate=config.learning_rate,
            max_epochs=config.max_epochs,
            patience=config.patience,
            label="evaluator",
            run_dir=run_dir,
        ),
    )
    with torch.no_grad():
        logit_MPF = torch.cat([logits(example) for example in examples], dim=1)
        target_PF = torch.cat([example.target_PF for example in examples])
        known_PF = torch.cat([example.known_PF for example in examples])
        user_P = torch.cat([example.user_P for example in examples])
        out_MP1 = (weight_UM[user_P].T == 0).unsqueeze(-1)
        model.head_bias.add_(level_shifts(logit_MPF, target_PF, known_PF * out_MP1))
