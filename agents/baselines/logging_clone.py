"""Logging-policy clone: a small softmax over candidates, fitted to the slates a log shows.

The likelihood is Plackett-Luce: the item at each place against the candidates still left. Where the log
kept its candidate lists, these are the alternatives. Where it did not, they are drawn from the whole catalogue, so
that the clone then explains retrieval and ranking of the production system at once; against what our own retriever
finds best for a user, it would learn to put that last. Scores are pointwise: a candidate's features, its predicted
signals and retriever score.

Shape legend: B requests, C candidates, K places, D inputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recsim_env.data.requests import LoggedBatch, LoggedRequests
from recsim_env.slates import (
    are_candidates,
    best_positions,
    first_showing,
    items_at,
    list_log_prob,
    positions_of,
    sample_lists,
)
from recsim_env.types import Decision, Request
from reward_models.trainer import TrainConfig, train


@dataclass(frozen=True, kw_only=True)
class LoggingCloneConfig:
    """How the clone is built and fitted."""

    hidden: int = 32
    """Width of the one hidden layer; 0 makes the score linear in the inputs."""
    epochs: int = 5
    """Passes over the requests."""
    batch_size: int = 512
    """Requests of one gradient step."""
    learning_rate: float = 0.01
    """Adam's step size in the first epoch; in the last one it is a tenth of that."""
    num_candidates: int = 50
    """Alternatives drawn for each request where the log has no candidate lists."""
    seed: int = 0
    """Seed of the initial weights, the batches' order and the alternatives."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.num_candidates) < 1 or self.hidden < 0:
            raise ValueError(
                f"epochs, batch_size and num_candidates must be at least 1 and hidden at least 0, got {self}"
            )
        self.trainer()  # refuses what the trainer would refuse

    def trainer(self) -> TrainConfig:
        """The settings in the trainer's own words."""
        return TrainConfig(
            max_epochs=self.epochs,
            learning_rate=self.learning_rate,
            learning_rate_decay=0.1 ** (1 / max(self.epochs - 1, 1)),
            weight_decay=0.0,
        )


class LoggingClone(nn.Module):
    """The fitted policy: draws slates by Plackett-Luce, or answers the likeliest one.

    Args:
        num_inputs: D, see ``candidate_inputs``.
        slate_size: K.
        hidden: width of the hidden layer, 0 for none.
        greedy: answers the sort instead of a draw.
    """

    mean_D: Tensor
    std_D: Tensor

    def __init__(self, num_inputs: int, slate_size: int, hidden: int = 32, greedy: bool = False):
        super().__init__()
        self.num_inputs, self.slate_size, self.hidden, self.greedy = num_inputs, slate_size, hidden, greedy
        first = [nn.Linear(num_inputs, hidden), nn.ReLU()] if hidden else []
        self.score_D = nn.Sequential(*first, nn.Linear(hidden or num_inputs, 1))
        self.register_buffer("mean_D", torch.zeros(num_inputs))
        self.register_buffer("std_D", torch.ones(num_inputs))

    def standardise(self, request: Request) -> None:
        """Sets the mean and spread of the inputs to those of an example."""
        inputs_BCD = candidate_inputs(request)
        self.mean_D.copy_(inputs_BCD.mean(dim=(0, 1)))
        self.std_D.copy_(inputs_BCD.std(dim=(0, 1)).clamp(min=1e-3))

    @torch.no_grad()
    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        """Slates with the log-probability of each place; ``None`` for it when greedy."""
        logits_BC = self.logits(request)
        if self.greedy:
            return Decision(items_at(request.candidates_BC, best_positions(logits_BC, self.slate_size)))
        positions_B1K = sample_lists(logits_BC, 1, self.slate_size, generator)
        log_prob_BK = list_log_prob(logits_BC, positions_B1K)[:, 0]
        return Decision(items_at(request.candidates_BC, positions_B1K[:, 0]), log_prob_BK)

    def logits(self, request: Request) -> Tensor:
        """Scores (B, C) of the candidates."""
        scores_BC1: Tensor = self.score_D((candidate_inputs(request) - self.mean_D) / self.std_D)
        return scores_BC1.squeeze(2)

    def log_prob(self, request: Request, items_BK: Tensor) -> Tensor:
        """Log-probability (B, K) of each place of a slate given the places before it."""
        positions_BK = positions_of(items_BK, request.candidates_BC)
        return list_log_prob(self.logits(request), positions_BK.unsqueeze(1))[:, 0]

    def config(self) -> dict[str, Any]:
        """Settings to rebuild it from; see ``recsim_env.types.Saveable``."""
        names = ("num_inputs", "slate_size", "hidden", "greedy")
        return {name: getattr(self, name) for name in names}

    def tensors(self) -> dict[str, Tensor]:
        """Weights and input statistics."""
        return dict(self.state_dict())

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "LoggingClone":
        """Rebuilds a clone."""
        clone = cls(**config)
        clone.load_state_dict(tensors)
        return clone


def candidate_inputs(request: Request) -> Tensor:
    """What the clone sees of each candidate, (B, C, D): features, log-scaled predictions, their spread."""
    scores_BCF = torch.cat([request.predicted_BCF, request.predicted_std_BCF], dim=2)
    return torch.cat(
        [request.candidate_features_BCD, scores_BCF.abs().log1p(), request.retriever_score_BC.unsqueeze(2)],
        dim=2,
    )


def fit_logging_clone(
    requests: LoggedRequests,
    slate_size: int,
    *,
    among: Tensor | None = None,
    config: LoggingCloneConfig | None = None,
) -> LoggingClone:
    """Fits a clone by maximum likelihood.

    Args:
        requests: logged requests, annotated with the predictor and retriever the clone will meet.
        slate_size: K of the slates it will answer.
        among: int64 indices of the requests to fit to; by default all but those of uniform exposure.
        config: settings.
    """
    config = config or LoggingCloneConfig()
    among = (~requests.uniform_L).nonzero().squeeze(1) if among is None else among

    def batches(generator: torch.Generator) -> Iterator[LoggedBatch]:
        for batch in requests.batches(config.batch_size, generator, among):
            yield _offered(requests, batch, config.num_candidates, generator)

    def loss(batch: LoggedBatch, generator: torch.Generator) -> Tensor:
        return -_mean_log_prob(clone, batch)

    generator = torch.Generator().manual_seed(config.seed)
    largest_B = max(requests.batch_indices(config.batch_size, generator, among), key=len)
    example = _offered(requests, requests.batch(largest_B), config.num_candidates, generator)
    with torch.random.fork_rng(devices=[]):  # initial weights depend on the seed alone
        torch.manual_seed(config.seed)
        clone = LoggingClone(candidate_inputs(example.request).shape[2], slate_size, config.hidden)
    clone.standardise(example.request)
    train(
        clone,
        batches=batches,
        loss=loss,
        validate=None,
        config=config.trainer(),
        seed=config.seed,
        label="logging clone",
    )
    return clone


def _mean_log_prob(clone: LoggingClone, batch: LoggedBatch) -> Tensor:
    """Mean log-probability of a place, leaving out candidates offered twice.

    Slates with items that were no candidates (uniform exposure, say) are not this policy's and do not count.
    """
    own_B = are_candidates(batch.items_BK, batch.request.candidates_BC).all(dim=1)
    batch = batch._replace(items_BK=batch.items_BK[own_B], request=Request(*(t[own_B] for t in batch.request)))
    candidates_BC = batch.request.candidates_BC
    logits_BC = clone.logits(batch.request).masked_fill(~first_showing(candidates_BC), -torch.inf)
    positions_BK = positions_of(batch.items_BK, candidates_BC)
    total = list_log_prob(logits_BC, positions_BK.unsqueeze(1)).sum()
    return total / max(positions_BK.numel(), 1)


def _offered(
    requests: LoggedRequests, batch: LoggedBatch, num_candidates: int, generator: torch.Generator
) -> LoggedBatch:
    """The batch with its candidate lists; without any, the shown items first and any of the catalogue after them."""
    if requests.candidate_item_Q is not None:
        return batch
    shape = (len(batch.items_BK), num_candidates)
    drawn_BC = torch.randint(len(requests.item_features_ND), shape, generator=generator)
    candidates_BC = torch.cat([batch.items_BK, drawn_BC], dim=1)
    return batch._replace(request=requests.offering(batch.request, candidates_BC))
