"""How every reranker is fitted to labelled requests, and judged on them.

One trainer for all: Adam with decoupled weight decay, minibatches in a seeded order, the running average of the
weights kept, and early stopping on the validation part, by NDCG@K of the lists that the reranker would show there.

Shape legend: L requests of a part, B requests of a batch, C candidates, K places.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.offline.data import LabelledRequests, RequestPart, RerankData
from agents.offline.metrics import LIST_METRICS, labels_of
from recsim_env.types import Policy
from reward_models.trainer import TrainConfig, TrainResult, train

_REQUESTS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class OfflineTrainingConfig(TrainConfig):
    """How long and how fast a reranker is fitted: the trainer's settings with defaults of their own, and two more."""

    max_epochs: int = 20
    patience: int = 3
    learning_rate: float = 1e-3
    learning_rate_decay: float = 0.9
    weight_decay: float = 1e-3
    averaging: float = 0.99
    batch_size: int = 128
    """Requests of one gradient step."""
    seed: int = 0
    """Seed of the batches' order and of whatever the loss draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1 or self.weight_decay < 0:
            raise ValueError(
                f"batch_size must be at least 1 and weight_decay at least 0, got {self.batch_size}, {self.weight_decay}"
            )


def fit_reranker(
    model: nn.Module,
    loss: Callable[[LabelledRequests, torch.Generator], Tensor],
    data: RerankData,
    config: OfflineTrainingConfig,
    *,
    validate: Callable[[], float] | None = None,
    label: str = "reranker",
) -> TrainResult:
    """Fits ``model`` in place; it ends with the weights of the epoch that was best on the validation part.

    Args:
        model: what is trained.
        loss: a scalar to be minimised on a batch; draws come from the generator.
        data: the protocol's parts; the test part is not looked at.
        config: settings.
        validate: a loss on the validation part after each epoch, lower is better; by default ``validation_loss`` of the
            model as a policy.
        label: shown beside the progress bar.
    """

    def batches(generator: torch.Generator) -> Iterator[LabelledRequests]:
        for index_B in torch.split(torch.randperm(len(data.train), generator=generator), config.batch_size):
            yield data.train.batch(index_B)

    validate = validate or validation_loss(model, data, config.seed)
    return train(model, batches=batches, loss=loss, validate=validate, config=config, seed=config.seed, label=label)


def validation_loss(policy: Policy, data: RerankData, seed: int) -> Callable[[], float]:
    """The usual ``validate``: one minus NDCG@K of the policy's lists on the validation part."""
    return lambda: 1 - list_quality(policy, data.validation, seed)["NDCG"]


@torch.no_grad()
def request_quality(policy: Policy, part: RequestPart, seed: int = 0) -> dict[str, Tensor]:
    """Each list metric of every request of a part, (L,) float32, by the names of ``LIST_METRICS``.

    Args:
        policy: any ranker.
        part: the requests to judge on.
        seed: seed of the generator that the policy is given.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {name: [] for name in LIST_METRICS}
    for index_B in torch.split(torch.arange(len(part)), _REQUESTS_AT_ONCE):
        request, label_BC, num_positives_B = part.batch(index_B)
        label_BK = labels_of(policy(request, generator).items_BK, request.candidates_BC, label_BC)
        for name, metric in LIST_METRICS.items():
            found[name].append(metric(label_BK, num_positives_B))
    return {name: torch.cat(values) for name, values in found.items()}


def list_quality(policy: Policy, part: RequestPart, seed: int = 0) -> dict[str, float]:
    """Means of ``request_quality`` over the requests."""
    return {name: float(value_L.mean()) for name, value_L in request_quality(policy, part, seed).items()}
