"""Logging-policy clone: a small softmax over candidates, fitted to the slates a log shows.

The likelihood is Plackett-Luce: the item at each place against the candidates still left. Where the log
kept its candidate lists, these are the alternatives. Where it did not, they are drawn from the whole catalogue, so
that the clone then explains retrieval and ranking of the production system at once; against what our own retriever
finds best for a user, it would learn to put that last. Scores are pointwise: a candidate's features, its predicted
signals and retriever score.

Shape legend: B requests, C candidates, K places, D inputs.
"""

import logging
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

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

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoggingCloneConfig:
    """How the clone is built and fitted."""

    hidden: int = 32
    """Width of the one hidden layer; 0 makes the score linear in the inputs."""
    epochs: int = 5
    batch_size: int = 512
    learning_rate: float = 0.01
    num_candidates: int = 50
    """Alternatives drawn for each request where the log has no candidate lists."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.num_candidates) < 1 or self.hidden < 0:
            raise ValueError(
                f"epochs, batch_size and num_candidates must be at least 1 and hidden at least 0, got {self}"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


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
    generator = torch.Generator().manual_seed(config.seed)
    among = (~requests.uniform_L).nonzero().squeeze(1) if among is None else among

    def offered(batch: LoggedBatch) -> LoggedBatch:
        if requests.candidate_item_Q is not None:
            return batch
        return _with_alternatives(requests, batch, config.num_candidates, generator)

    chunks = requests.batch_indices(config.batch_size, generator, among)
    example = candidate_inputs(offered(requests.batch(max(chunks, key=len))).request)
    clone = LoggingClone(example.shape[2], slate_size, config.hidden)
    for name, parameter in clone.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.kaiming_uniform_(parameter, nonlinearity="relu", generator=generator)
    clone.mean_D.copy_(example.mean(dim=(0, 1)))
    clone.std_D.copy_(example.std(dim=(0, 1)).clamp(min=1e-3))
    optimizer = torch.optim.Adam(clone.parameters(), lr=config.learning_rate)
    steps = config.epochs * len(chunks)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with tqdm(total=steps, unit="batch", desc="logging clone", disable=None) as bar:
        for _ in range(config.epochs):
            for batch in requests.batches(config.batch_size, generator, among):
                log_prob = _mean_log_prob(clone, offered(batch))
                optimizer.zero_grad()
                (-log_prob).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(nats_per_place=f"{-float(log_prob.detach()):.3f}")
    _LOGGER.info("logging clone fitted to %d requests with %s", len(requests), asdict(config))
    return clone.eval()


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


def _with_alternatives(
    requests: LoggedRequests,
    batch: LoggedBatch,
    num_candidates: int,
    generator: torch.Generator,
) -> LoggedBatch:
    """The batch with the shown items first among its candidates and any of the catalogue after them."""
    request = batch.request
    drawn_BC = torch.randint(len(requests.item_features_ND), (len(request.user_B), num_candidates), generator=generator)
    candidates_BC = torch.cat([batch.items_BK, drawn_BC], dim=1)
    request = request._replace(
        candidates_BC=candidates_BC,
        candidate_features_BCD=requests.item_features_ND[candidates_BC],
        retriever_score_BC=torch.zeros(candidates_BC.shape),
        predicted_BCF=torch.zeros(*candidates_BC.shape, len(requests.signals)),
        predicted_std_BCF=torch.zeros(*candidates_BC.shape, len(requests.signals)),
    )
    if requests.predictor is not None:
        predicted_BCF, std_BCF = requests.predictor.predict_request(request, candidates_BC)
        request = request._replace(predicted_BCF=predicted_BCF, predicted_std_BCF=std_BCF)
    if requests.retriever is not None:
        score_BC = requests.retriever.score_request(request, candidates_BC)
        request = request._replace(retriever_score_BC=score_BC)
    return batch._replace(request=request)
