"""A list evaluator: what a whole slate is worth, learned from the operator's own log.

A model has two parts. The first judges every candidate alone: heads correct the predictor's own opinion of each signal,
log seconds for watch time and log-odds for the rest, by what is known of the candidate and of the request. The second
adds what the earlier places of the list change, again in log seconds and log-odds, for each pair of kinds of videos
(``reward_models.list_effects``). These changes are cut at the size that the log's own slates showed, because rankers
find lists for which an uncut sum of effects promises far too much. Users play a slate in order, so later places change
nothing, and slates cut short by a leaving user are used as they are. ``listwise=False`` drops the second part: items
are then worth the same whatever stands before them, the control that shows what lists add.

The value of a list is the sum over places of the expected seconds there, times the chance that the place is reached:
that of going on after every place before it, by the leave model that the operator declares (``recsim_env.leaving``, as
in ``Simulator.expected``). The leave model is asked about the members' mean signals, so watch time is held to its mean:
chances to go on are close to linear over the seconds of one video. In the short-video world this moves the mean value
by 0.01 %, and by 0.1 % where users leave three times as easily.

The parts are fitted one after the other. The second is fitted beside controls for what the log's ranker knew (see
``reward_models.ranker_controls``); fitted alone it would take the ranker's order for an effect of the list.

Watch time is fitted by the Poisson quasi-likelihood of ``reward_models.recommender.predictor``, so it is unbiased in
the mean; the other signals are auxiliary tasks. Members differ by bootstrap of users and initial weights.

Chosen by the log likelihood of held-out slates of uniform exposure: attention over the earlier places added nothing
there and was exploited by rankers, controls fitted together with the first part did harm, and uniform slates alone were
too few to fit the second part on.

Shape legend: B requests, C candidates, G lists, K places, F signals, M members, I inputs of a candidate,
J inputs of a request, Z kinds, W width, X controls or pairs, Y = B * C candidates, L = B * G lists, P = L * K places.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recsim_env.data.requests import LoggedBatch, LoggedRequests
from recsim_env.leaving import expected_stay, reached
from recsim_env.plugins import load_object
from recsim_env.saving import class_path, saveable
from recsim_env.slates import find, first_in_session, positions_of
from recsim_env.types import LeaveModel, ListEffect, ListValue, Request
from reward_models.list_effects import kinds_of
from reward_models.ranker_controls import RankerControls, ranker_controls
from reward_models.recommender.ensemble import bootstrap_weights, fit_members
from reward_models.recommender.list_evaluator_network import (
    Inputs,
    ListEvaluatorConfig,
    ListModel,
    Sizes,
    request_inputs,
)
from reward_models.recommender.losses import level_shifts, signal_losses

_DECLARED = ("list_effect", "leave")
"""What an operator may declare beside what its log taught."""


class SlateEvaluator:
    """A fitted list evaluator; see ``recsim_env.types.ListEvaluator``.

    Args:
        model: the trained networks.
        list_effect: a within-slate effect that the operator declares beside what the log taught: each
            place's signals are multiplied by the chance that the place is not interrupted.
        leave: how users leave, as the operator declares it; without it every place counts as reached.
    """

    def __init__(self, model: ListModel, list_effect: ListEffect | None = None, leave: LeaveModel | None = None):
        self._model = model.requires_grad_(False)
        self.list_effect, self.leave = list_effect, leave

    @property
    def listwise(self) -> bool:
        """Whether the learned part looks at other places."""
        return self._model.config.listwise

    @property
    def is_additive(self) -> bool:
        """Whether a list is worth the sum of its items, in any order."""
        return not self.listwise and self.list_effect is None and self.leave is None

    @torch.no_grad()
    def score(self, request: Request, items_BGK: Tensor) -> ListValue:
        """Values of G lists per request, in expected seconds watched; a repeated video is worth nothing.

        Each place counts by the chance that it is reached.

        Args:
            request: all fields are read but the item codes of the history.
            items_BGK: int64 item codes. Those that are no candidates of the request are valued as if they were.

        Raises:
            ValueError: an item is not among the candidates of a request that does not know the recommender (see
                ``Request.offering``), the lists are longer than ``MAX_PLACES``, or the request comes from a world with
                other features or signals than the evaluator was fitted to.
        """
        batch, lists, places = items_BGK.shape
        if not lists or not places:
            raise ValueError(
                f"need at least one list of at least one place, got items of shape {tuple(items_BGK.shape)}"
            )
        inputs, position_LGK = self._inputs(request, items_BGK)
        found = (inputs.candidate_BCI.shape[-1], inputs.request_BJ.shape[-1], inputs.base_BCF.shape[-1])
        if found != self._model.sizes[:3]:
            raise ValueError(
                f"this evaluator was fitted to {self._model.sizes}, the request has candidate={found[0]}, "
                f"request={found[1]}, signals={found[2]}: it is of another world; use the evaluator of this one"
            )
        items_LK = items_BGK.flatten(0, 1)
        answered_LK = first_in_session(request, items_BGK).flatten(0, 1)
        if self.list_effect is not None:
            answered_LK = answered_LK * (1.0 - self.list_effect.interrupt(items_LK))
        num_signals = 1 if self.leave is None else self._model.sizes.signals  # leaving may hang on any of them
        logit_MLKF = self._model(inputs, position_LGK, num_signals).view(-1, *items_LK.shape, num_signals)
        seconds_MLK = torch.exp(logit_MLKF[..., 0]) * answered_LK
        if self.leave is not None:
            chance_LKF = torch.sigmoid(logit_MLKF[..., 1:]).mean(dim=0) * answered_LK.unsqueeze(-1)
            signals_LKF = torch.cat([seconds_MLK.mean(dim=0).unsqueeze(-1), chance_LKF], dim=-1)
            context_LX = request.context_BX.repeat_interleave(lists, dim=0)
            stay_LK1 = expected_stay(self.leave, context_LX, signals_LKF.unsqueeze(2))
            seconds_MLK = seconds_MLK * reached(stay_LK1.squeeze(2))
        value_ML = seconds_MLK.sum(dim=-1)
        members = len(value_ML)
        value_L = value_ML.sum(dim=0) / members
        square_L = (value_ML - value_L).square().sum(dim=0)
        return ListValue(
            value_BG=value_L.view(batch, lists),
            per_place_BGK=(seconds_MLK.sum(dim=0) / members).view(batch, lists, places),
            std_BG=(square_L / max(members - 1, 1)).sqrt().view(batch, lists),
        )

    def _inputs(self, request: Request, items_BGK: Tensor) -> tuple[Inputs, Tensor]:
        """Inputs of requests, and which of their candidates stand at the places of which list."""
        if request.side is None:
            return request_inputs(request), positions_of(items_BGK, request.candidates_BC)
        position_BGK, is_candidate_BGK = find(items_BGK, request.candidates_BC)
        if bool(is_candidate_BGK.all()):
            return request_inputs(request), position_BGK
        # Every list becomes the candidate set of a request of its own, so that cost grows with the items listed only.
        batch, lists, places = items_BGK.shape
        inputs = request_inputs(request.offering(items_BGK.flatten(1))).of_lists(places)
        in_order_K = torch.arange(places, device=items_BGK.device)
        return inputs, in_order_K.expand(batch * lists, 1, places)

    def with_list_effect(self, list_effect: ListEffect | None) -> "SlateEvaluator":
        """The same evaluator for an operator who knows of this within-slate effect."""
        return SlateEvaluator(self._model, list_effect, self.leave)

    def additive(self) -> "SlateEvaluator":
        """The same evaluator without effects of the list and without leaving: a list is worth the sum of its items.

        This is the control with which every list method ties a sort.
        """
        config = dataclasses.replace(self._model.config, listwise=False)
        model = ListModel(config, self._model.sizes, seed=0)
        model.alone.load_state_dict(self._model.alone.state_dict())
        return SlateEvaluator(model.to(self._model.alone.mean_I.device))

    def config(self) -> dict[str, Any]:
        """Settings as JSON values."""
        settings = {"config": dataclasses.asdict(self._model.config), "sizes": self._model.sizes._asdict()}
        declared = {name: {"class": class_path(one), "config": one.config()} for name, one in self._declared().items()}
        return {**settings, **declared}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, by name."""
        declared = {f"{name}.{k}": t for name, one in self._declared().items() for k, t in one.tensors().items()}
        return {**self._model.state_dict(), **declared}

    def _declared(self) -> dict[str, Any]:
        """What the operator declares, by name."""
        both = {name: getattr(self, name) for name in _DECLARED}
        return {name: saveable(name, one) for name, one in both.items() if one is not None}

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "SlateEvaluator":
        """Rebuilds a saved evaluator."""
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in _DECLARED}
        own = dict(tensors)
        for name, part in parts.items():
            part.update({k.removeprefix(f"{name}."): own.pop(k) for k in tensors if k.startswith(f"{name}.")})
        model = ListModel(ListEvaluatorConfig(**config["config"]), Sizes(**config["sizes"]), seed=0)
        model = model.to(next(iter(own.values())).device)
        bounds = ("effects.low_M1F", "effects.high_M1F")  # older evaluators have none
        unbounded = {name: tensor for name, tensor in model.state_dict().items() if name in bounds}
        model.load_state_dict({**unbounded, **own})
        stored = {name: config[name] for name in _DECLARED if name in config}
        return cls(model, **{k: load_object(s["class"]).restore(s["config"], parts[k]) for k, s in stored.items()})


class _Example(NamedTuple):
    """One batch of logged slates, ready for training steps."""

    inputs: Inputs
    """Of the shown items alone, in the order of their places."""
    target_PF: Tensor
    known_PF: Tensor
    user_P: Tensor
    uniform_P: Tensor
    control_PX: Tensor


def fit_list_evaluator(
    requests: LoggedRequests,
    *,
    list_effect: ListEffect | None = None,
    leave: LeaveModel | None = None,
    config: ListEvaluatorConfig | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
) -> SlateEvaluator:
    """Fits a list evaluator on logged slates.

    Args:
        requests: the operator's log, annotated with its predictor and retriever. The same fitted predictor
            may serve: its predictions of rows it was fitted on are a little too sure, which the
            evaluator's heads cannot see; predictions by a predictor of other users avoid that.
        list_effect: declared within-slate effect, see ``SlateEvaluator``.
        leave: declared leave model, likewise.
        config: settings. A list-wise model is refused, with a warning, where the log holds fewer than
            ``min_slates`` slates of two places or more; the additive one is fitted instead.
        seed: fixes initial weights, bootstrap and the order of batches.
        run_dir: where TensorBoard finds the losses; none are written by default.

    Raises:
        ValueError: fewer than two users.
    """
    config = config or ListEvaluatorConfig()
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
    model = ListModel(config, _sizes(examples, kind_Z), seed)
    if model.effects is not None:
        model.effects.kind_Z.copy_(kind_Z)
    _standardise(model, examples)
    _train(model, examples, len(requests.user_features_UD), requests.user_L, generator, run_dir)
    return SlateEvaluator(model, list_effect, leave)


def _example(batch: LoggedBatch) -> _Example:
    slate_size = batch.items_BK.shape[1]
    uniform_P = batch.uniform_B.repeat_interleave(slate_size)
    inputs = request_inputs(batch.request).at(positions_of(batch.items_BK, batch.request.candidates_BC))
    return _Example(
        inputs=inputs,
        target_PF=batch.feedback.signals_BKF.flatten(0, 1),
        known_PF=batch.known_BKF.flatten(0, 1).to(torch.float32),
        user_P=batch.request.user_B.repeat_interleave(slate_size),
        uniform_P=uniform_P,
        control_PX=ranker_controls(
            torch.arange(slate_size).repeat(len(batch.items_BK)),
            torch.arange(len(batch.items_BK)).repeat_interleave(slate_size),
            batch.propensity_BK.flatten(),
            uniform_P,
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
def _standardise(model: ListModel, examples: list[_Example]) -> None:
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
        # An input that never varied in the log says nothing, and must not begin to in another world.
        scale.copy_(torch.where(deviation > 1e-4, 1.0 / deviation.clamp(min=1e-4), 0.0))
    base_PF = torch.cat([example.inputs.base_BCF.flatten(0, 1) for example in examples])
    target_PF = torch.cat([example.target_PF for example in examples])
    known_PF = torch.cat([example.known_PF for example in examples])
    alone.head_bias.add_(level_shifts(base_PF.unsqueeze(0), target_PF, known_PF.unsqueeze(0)))


def _train(
    model: ListModel,
    examples: list[_Example],
    num_users: int,
    user_L: Tensor,
    generator: torch.Generator,
    run_dir: str | Path | None,
) -> None:
    """First the candidates alone; then, with these held fixed, the effects of the list beside the controls."""
    config, num_signals = model.config, model.sizes.signals
    weight_UM = bootstrap_weights(num_users, user_L, config.num_members, generator)
    watched = torch.cat([example.target_PF[:, 0][example.known_PF[:, 0] > 0] for example in examples])
    mean_watch = watched.mean().clamp(min=1e-3) if len(watched) else torch.tensor(1.0)

    def batches(shuffle: torch.Generator | None) -> Iterable[int]:
        return range(len(examples)) if shuffle is None else torch.randperm(len(examples), generator=shuffle).tolist()

    def loss(logit_MPF: Tensor, target_PF: Tensor, known_PF: Tensor) -> Tensor:
        return signal_losses(logit_MPF, target_PF, known_PF, mean_watch, 1.0, config.auxiliary_weight)

    def fit(part: torch.nn.Module, logits: Callable[[int], Tensor], label: str) -> None:
        def losses(number: int) -> tuple[Tensor, Tensor]:
            example = examples[number]
            return loss(logits(number), example.target_PF, example.known_PF), example.user_P

        fit_members(part, batches, losses, weight_UM, generator, config, label=label, run_dir=run_dir)

    def alone(number: int) -> Tensor:
        logit_MPF: Tensor = model.alone(examples[number].inputs, num_signals)
        return logit_MPF

    def list_effects(number: int) -> Tensor:
        assert model.effects is not None
        candidate_BKI = examples[number].inputs.candidate_BCI
        in_order_B1K = torch.arange(candidate_BKI.shape[1]).expand(len(candidate_BKI), 1, -1)
        change_MPF: Tensor = model.effects(candidate_BKI, in_order_B1K, num_signals)
        return change_MPF

    def uniform_changes(uniform_R: Tensor, rise: float) -> Tensor:
        """Changes (M, R, F) of uniform rows, all effects of a kind on another raised by this much."""
        assert model.effects is not None
        pair = model.effects.pair_effects.pair
        pair.add_(rise)
        change_MPF = torch.cat([list_effects(number) for number in range(len(examples))], dim=1)
        pair.sub_(rise)
        return change_MPF[:, uniform_R]

    fit(model.alone, alone, "evaluator")
    with torch.no_grad():
        final = [alone(number) for number in range(len(examples))]
        target_PF = torch.cat([example.target_PF for example in examples])
        known_PF = torch.cat([example.known_PF for example in examples])
        user_P = torch.cat([example.user_P for example in examples])
        uniform_P = torch.cat([example.uniform_P for example in examples])
        if model.effects is not None:
            all_PX = torch.cat([example.control_PX for example in examples])
            controls = RankerControls(all_PX, (config.num_members, num_signals))
            parts = torch.nn.ModuleList([model.effects, controls])
            # The controls go first, so that the effects begin with what these leave unexplained; then both together,
            # and the controls are thrown away: a ranker of ours is not the log's.
            with torch.enable_grad():
                fit(controls, lambda n: final[n] + controls(examples[n].control_PX), "evaluator_controls")
                fit(parts, lambda n: final[n] + list_effects(n) + controls(examples[n].control_PX), "evaluator_lists")
            model.effects.pair_effects.settle(model.alone.mean_I[model.effects.kind_Z])
            if uniform_P.any():
                uniform_R = uniform_P.nonzero().squeeze(1)
                change_MRF, raised_MRF = uniform_changes(uniform_R, 0.0), uniform_changes(uniform_R, 1.0)
                level_M11 = _list_level(
                    torch.cat(final, dim=1)[:, uniform_R] + change_MRF,
                    raised_MRF - change_MRF,
                    lambda logit_MRF: loss(logit_MRF, target_PF[uniform_R], known_PF[uniform_R]),
                    weight_UM[user_P[uniform_R]].T,
                )
                model.effects.pair_effects.pair.add_(level_M11)
            model.effects.bound(torch.cat([list_effects(number) for number in range(len(examples))], dim=1))
            final = [logit_MPF + list_effects(number) for number, logit_MPF in enumerate(final)]
        # Levels last, by out-of-bag rows, since dropping the controls has moved them.
        out_MP1 = (weight_UM[user_P].T == 0).unsqueeze(-1)
        model.alone.head_bias.add_(level_shifts(torch.cat(final, dim=1), target_PF, known_PF * out_MP1))


def _list_level(logit_MRF: Tensor, rise_MRF: Tensor, loss: Callable[[Tensor], Tensor], weight_MR: Tensor) -> Tensor:
    """What to add to all effects of each member, (M, 1, 1), by slates that nobody put in order.

    Args:
        logit_MRF: of rows of uniform slates, with the effects as they are.
        rise_MRF: how much they change where all effects rise by 1.
        loss: of such logits, (M, R).
        weight_MR: of rows in the mean.
    """
    level_M11 = torch.zeros(len(logit_MRF), 1, 1, requires_grad=True)
    # What videos are worth alone moves along, or its level would stay that of the average place.
    alone_M1F = torch.zeros_like(logit_MRF[:, :1]).requires_grad_()
    optimiser = torch.optim.LBFGS([level_M11, alone_M1F], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = (loss(logit_MRF + level_M11 * rise_MRF + alone_M1F) * weight_MR).sum() / weight_MR.sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return level_M11.detach()
