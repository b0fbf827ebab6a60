"""Learning from logged slates without an evaluator: what of a log can be learned from, and the fit.

A log of slates says what was shown together and how long each video was watched. ``agents.rerankers.log_methods`` names
the methods that learn from that; each follows ``agents.method`` with ``data = "log"``. As everywhere, seconds watched
stand in for clicks.

Shape legend: L requests of the log, B requests of a batch, C candidates, K places of a logged slate, F signals,
N items, D features; Q and P as in ``recsim_env.data.requests``.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.list_policy import ListPolicy, ListPolicyConfig
from agents.method import Columns, MethodConfig, log_columns, method_path
from agents.networks import RequestShape
from agents.rl.behaviour_cloning import WEIGHT
from recsim_env.data.requests import LoggedBatch, LoggedRequests
from recsim_env.digests import digest_tensors
from recsim_env.slates import are_candidates, first_showing, items_at, positions_of
from reward_models.trainer import TrainConfig, train

POSITIONS, SECONDS, EXPECTED = "slate_positions_BK", "seconds_BK", "expected_seconds_BK"
"""Columns of logged slates: int64 positions in the candidate list, seconds watched, and what the predictor expected."""


class SlateMethod:
    """What the methods of logged slates share: a list policy as the network, and what a slate's columns are."""

    Config = ListPolicyConfig
    data = "log"

    def __init__(self, config: ListPolicyConfig) -> None:
        self.config = config

    def network(self, shape: RequestShape) -> ListPolicy:
        """The paper's network."""
        return ListPolicy(self.config, shape)

    def prepare_log(self, requests: LoggedRequests) -> LoggedRequests:
        """The requests as they are.

        Raises:
            ValueError: a log without candidate lists or predictor.
        """
        if requests.candidate_item_Q is None or requests.predictor is None:
            raise ValueError(
                "needs logged candidate lists and a predictor's opinion of them; this log holds "
                f"{'no' if requests.candidate_item_Q is None else 'its'} candidate lists and the requests have "
                f"{'no' if requests.predictor is None else 'a'} predictor"
            )
        return requests

    def from_log(self, batch: LoggedBatch) -> Columns:
        """Slates as positions, the seconds watched and expected, and which slates teach.

        Those do that were chosen from their candidates, unlike uniform exposure, and watched for a recorded time.
        """
        candidates_BC, items_BK = batch.request.candidates_BC, batch.items_BK
        own_BK = are_candidates(items_BK, candidates_BC) & first_showing(items_BK)
        teaches_B = (own_BK & batch.known_BKF[..., 0]).all(dim=1)
        anything_BK = candidates_BC[:, : items_BK.shape[1]]
        positions_BK = positions_of(torch.where(teaches_B.unsqueeze(1), items_BK, anything_BK), candidates_BC)
        return {
            POSITIONS: positions_BK,
            SECONDS: batch.feedback.signals_BKF[..., 0],
            EXPECTED: items_at(batch.request.predicted_BCF[..., 0], positions_BK),
            WEIGHT: teaches_B.to(torch.float32),
        }


def weighted_mean(loss_B: Tensor, batch: Columns) -> Tensor:
    """The mean over the slates that teach, a scalar; 0 where none does."""
    return (loss_B * batch[WEIGHT]).sum() / batch[WEIGHT].sum().clamp(min=1)


def teaching_slates(requests: LoggedRequests, method: Any, among: Tensor | None = None) -> Tensor:
    """The requests, int64, whose slates teach the method something.

    Args:
        requests: logged requests.
        method: one that learns from a log and says by the column "weight_B" which slates teach.
        among: the requests to look at; by default all but those of uniform exposure.
    """
    among = (~requests.uniform_L).nonzero().squeeze(1) if among is None else among
    bare, found = requests.annotated(None), [among[:0]]
    for index_B in bare.batch_indices(1024, None, among):
        found.append(index_B[method.from_log(bare.batch(index_B))[WEIGHT] > 0])
    return torch.cat(found).sort().values


def fit_to_slates(
    requests: LoggedRequests,
    method: Any,
    slate_size: int,
    *,
    among: Tensor | None = None,
    max_epochs: int = 8,
    patience: int = 1,
    run_dir: Path | None = None,
) -> Any:
    """Fits a method that learns from logged slates, and returns its network, ready to rank.

    Every tenth user is held out to stop early. The method's config says step size and minibatch.

    Args:
        requests: logged requests with candidate lists, annotated with the predictor and retriever that the policy will
            meet.
        method: one that learns from a log and says by the column "weight_B" which slates teach, such as
            ``agents.rerankers.log_methods.log_method("prm")``.
        slate_size: K of the lists it will write, at least 2 and no less than the log's.
        among: int64 indices of the requests to use; by default all but those of uniform exposure. Of these only the
            ``teaching_slates`` count.
        max_epochs: passes over the slates, at most.
        patience: epochs without a better loss on the users held out before the fit stops.
        run_dir: checkpoints and TensorBoard events; a fit that was stopped goes on from there.

    Raises:
        ValueError: a method that learns from something else, a log without candidate lists or predictor, slates longer
            than ``slate_size``, or no slate to fit to.
    """
    if hasattr(method, "prepare_log"):
        requests = method.prepare_log(requests)
    fitted, validation = _split(requests, method, slate_size, among)
    shape = RequestShape.of(requests.batch(fitted[:1]).request, len(requests.item_features_ND), slate_size)
    network: Any = method.network(shape)
    config = method.config

    def batches(generator: torch.Generator) -> Iterator[LoggedBatch]:
        return requests.batches(config.minibatch_size, generator, fitted)

    def loss(batch: LoggedBatch, generator: torch.Generator) -> Tensor:
        columns = log_columns(method, batch)
        value: Tensor = method.loss(method.outputs(network, columns), columns)[0]
        return value

    def validate() -> float:
        unused = torch.Generator()
        losses = [(len(b.items_BK), float(loss(b, unused))) for b in requests.batches(1024, None, validation)]
        return sum(size * value for size, value in losses) / len(validation)

    train(
        network,
        batches=batches,
        loss=loss,
        validate=validate,
        config=_trainer(config, max_epochs, patience),
        seed=config.seed,
        run_dir=run_dir,
        label=type(method).__name__,
        identity=_identity(method, shape, requests, fitted, validation),
    )
    if hasattr(network, "greedy"):
        network.greedy = True
    return network.eval()


def _split(requests: LoggedRequests, method: Any, slate_size: int, among: Tensor | None) -> tuple[Tensor, Tensor]:
    """The slates to fit to and those to stop on; refuses what cannot be fitted."""
    if method.data != "log":
        raise ValueError(
            f"{type(method).__name__} learns from {method.data!r}, not from a log; train it with python -m "
            "experiments.train"
        )
    usable = teaching_slates(requests, method, among)
    held_out = requests.user_L[usable] % 10 == 0
    fitted, validation = usable[~held_out], usable[held_out]
    if not len(fitted) or not len(validation):
        raise ValueError(
            "need slates made of their candidates and with recorded watch time, of users to fit to and of users to "
            f"hold out; got {len(fitted)} and {len(validation)}"
        )
    longest = int(requests.slate_size_L[usable].max())
    if slate_size < max(longest, 2):
        raise ValueError(f"slate_size must be at least 2 and hold the log's slates of {longest}, got {slate_size}")
    return fitted, validation


def _trainer(config: MethodConfig, max_epochs: int, patience: int) -> TrainConfig:
    return TrainConfig(
        max_epochs=max_epochs,
        patience=patience,
        learning_rate=config.lr,
        learning_rate_decay=0.75,
        weight_decay=1e-3,
        gradient_clip=math.inf if config.grad_clip is None else config.grad_clip,
        averaging=0.99,
    )


def _identity(
    method: Any, shape: RequestShape, requests: LoggedRequests, fitted: Tensor, validation: Tensor
) -> dict[str, Any]:
    """Everything that shapes a fit: the method, the log, which slates are used, and what the models say of some."""
    asked = requests.batch(requests.batch_indices(64, None, fitted)[0]).request
    opinions = {"predicted": asked.predicted_BCF, "spread": asked.predicted_std_BCF, "scores": asked.retriever_score_BC}
    return {
        "method": method_path(method),
        "config": dataclasses.asdict(method.config),
        "shape": dataclasses.asdict(shape),
        "log": requests.digest,
        "used": digest_tensors({"fitted": fitted, "validation": validation}),
        "models": digest_tensors(opinions),
    }
