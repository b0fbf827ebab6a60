"""DNR: the retriever's scores as noisy labels, and a reranker that learns to denoise them (arXiv 2509.18736).

A training wrapper around a scorer q(z | x, request) of labels z whose request holds the retriever's scores x in
[0, 1]. Beside the real scores, the reranker is shown scores made from the labels, ``x' = (1 - share) z + share e``:

- reranker: ``L_direct + weight * L_z``, the binary cross-entropy of the labels given x, and given x';
- in the first epochs the noise e is drawn, Gaussian or Beta(0.5, 0.5); after them it comes from a two-layer network,
  which is trained on ``L_adv + L_x``: the reranker's likelihood given x' is pushed down, and the distribution of x'
  kept near that of x. These later epochs are DNR, so they cannot be missed: the first ones are a share of all, and
  early stopping neither ends in them nor keeps their weights.

Filled in, where the notes at hand leave the form open:

- the network's input is a candidate's label and four Gaussian draws; a sigmoid keeps e, and so x', in [0, 1];
- L_x is the KL divergence between the normal distributions with the mean and spread of a batch's x' and of its x;
- the network has Adam steps of its own, one for each batch, and is judged on fresh draws.

Left out: the PIER backbone; any scorer of ``agents.rerankers.scorers`` can be wrapped.

To know before use: with bounded noise and a share below one half, the labels can be read off x' without error, so
L_z alone teaches to trust the score, further than the real one deserves.

Shape legend: B requests, C candidates, I inputs of the network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.list_policy import ListPolicy
from agents.method import require_at_least, require_one_of, require_positive
from agents.offline.data import LabelledRequests, RerankData
from agents.offline.scorers import new_scorer
from agents.offline.training import OfflineTrainingConfig, fit_reranker, validation_loss
from agents.rerankers.scorers import ScorerConfig, candidate_scores
from recsim_env.types import Request

Noise = Literal["gaussian", "beta"]
NOISES: tuple[str, ...] = get_args(Noise)
_DRAWS = 4


@dataclass(frozen=True, kw_only=True)
class DnrConfig:
    """How scores are made and what they weigh."""

    noise: Noise = "gaussian"
    """What is drawn in the first epochs: "gaussian", N(0, 1), or "beta", Beta(0.5, 0.5)."""
    noise_share: float = 0.4
    """Share of the noise in a made score; the rest is the label."""
    weight: float = 0.5
    """Weight of the loss on made scores; 0 is plain training."""
    heuristic_share: float = 1 / 3
    """Share of the epochs, rounded down, with drawn noise before the network takes over; below 1."""
    generator_width: int = 32
    """Hidden units of the network that makes noise."""
    generator_learning_rate: float = 1e-3
    """Adam's step size for that network."""

    def __post_init__(self) -> None:
        require_one_of(self, "noise", NOISES)
        require_at_least(self, 0, "weight")
        require_at_least(self, 1, "generator_width")
        require_positive(self, "generator_learning_rate")
        if not 0 <= self.noise_share <= 1:
            raise ValueError(f"noise_share is a share from 0 to 1, got {self.noise_share}")
        if not 0 <= self.heuristic_share < 1:
            raise ValueError(f"heuristic_share is a share from 0 to below 1, got {self.heuristic_share}")

    def heuristic_epochs(self, max_epochs: int) -> int:
        """Epochs with drawn noise, of ``max_epochs`` in all: at least one is left for the network."""
        return int(self.heuristic_share * max_epochs)


def heuristic_scores(label_BC: Tensor, config: DnrConfig, generator: torch.Generator) -> Tensor:
    """Scores (B, C) float32 made from labels and drawn noise; in [0, 1] if the noise is Beta."""
    if config.noise == "gaussian":
        noise_BC = torch.randn(label_BC.shape, generator=generator)
    else:  # Beta(0.5, 0.5) is the arcsine law
        noise_BC = torch.sin(torch.pi / 2 * torch.rand(label_BC.shape, generator=generator)).square()
    return (1 - config.noise_share) * label_BC + config.noise_share * noise_BC


class ScoreGenerator(nn.Module):
    """Makes scores in [0, 1] from labels and random numbers.

    Args:
        config: settings.
        seed: seed of the initial weights.
    """

    def __init__(self, config: DnrConfig, seed: int) -> None:
        super().__init__()
        self.noise_share = config.noise_share
        with torch.random.fork_rng(devices=[]):  # initial weights depend on the seed alone
            torch.manual_seed(seed)
            self.noise = nn.Sequential(
                nn.Linear(1 + _DRAWS, config.generator_width), nn.ReLU(), nn.Linear(config.generator_width, 1)
            )

    def forward(self, label_BC: Tensor, generator: torch.Generator) -> Tensor:
        """Scores (B, C) float32; carries gradients."""
        draws_BCI = torch.randn((*label_BC.shape, _DRAWS), generator=generator)
        inputs_BCI = torch.cat([label_BC.unsqueeze(2), draws_BCI], dim=2)
        noise_BC = torch.sigmoid(self.noise(inputs_BCI)).squeeze(2)
        scores_BC: Tensor = (1 - self.noise_share) * label_BC + self.noise_share * noise_BC
        return scores_BC


def score_divergence(made_BC: Tensor, real_BC: Tensor) -> Tensor:
    """L_x: KL(made || real) of normal distributions with the batches' means and spreads; a scalar, 0 if these agree."""
    made_variance, real_variance = made_BC.var(correction=0) + 1e-6, real_BC.var(correction=0) + 1e-6
    distance = (made_BC.mean() - real_BC.mean()).square()
    return 0.5 * ((made_variance + distance) / real_variance - 1 + torch.log(real_variance / made_variance))


def loss_given_scores(scorer: ListPolicy, request: Request, score_BC: Tensor, label_BC: Tensor) -> Tensor:
    """Binary cross-entropy of the labels when the retriever's scores are these; a scalar."""
    logit_BC = candidate_scores(scorer, request._replace(retriever_score_BC=score_BC))
    return functional.binary_cross_entropy_with_logits(logit_BC, label_BC)


class DenoisingLoss:
    """The reranker's loss; each call also trains the network that makes noise, once its time has come.

    Args:
        scorer: the reranker.
        config: settings.
        heuristic_steps: calls with drawn noise before the network takes over.
        seed: seed of the network's initial weights.
    """

    def __init__(self, scorer: ListPolicy, config: DnrConfig, heuristic_steps: int, seed: int) -> None:
        self.scorer, self.config = scorer, config
        self.generator = ScoreGenerator(config, seed)
        self._optimiser = torch.optim.Adam(self.generator.parameters(), lr=config.generator_learning_rate)
        self._heuristic_steps = heuristic_steps

    def __call__(self, batch: LabelledRequests, generator: torch.Generator) -> Tensor:
        """``L_direct + weight * L_z`` of a batch, a scalar."""
        if self._heuristic_steps > 0:
            self._heuristic_steps -= 1
            made_BC = heuristic_scores(batch.label_BC, self.config, generator)
        else:
            self._train_generator(batch, generator)
            made_BC = self.generator(batch.label_BC, generator).detach()
        direct = loss_given_scores(self.scorer, batch.request, batch.request.retriever_score_BC, batch.label_BC)
        return direct + self.config.weight * loss_given_scores(self.scorer, batch.request, made_BC, batch.label_BC)

    def adversarial_loss(self, batch: LabelledRequests, generator: torch.Generator) -> Tensor:
        """``L_adv + L_x`` of a batch, a scalar."""
        made_BC = self.generator(batch.label_BC, generator)
        likelihood = -loss_given_scores(self.scorer, batch.request, made_BC, batch.label_BC)
        return likelihood + score_divergence(made_BC, batch.request.retriever_score_BC)

    def _train_generator(self, batch: LabelledRequests, generator: torch.Generator) -> None:
        parameters = list(self.generator.parameters())
        gradients = torch.autograd.grad(self.adversarial_loss(batch, generator), parameters)  # none for the reranker
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimiser.step()


def fit_dnr(data: RerankData, scorer: ScorerConfig, config: DnrConfig, fit: OfflineTrainingConfig) -> ListPolicy:
    """A scorer fitted with denoising; with ``weight=0`` the loss is that of ``fit_scorer`` with ``loss="bce"``."""
    model = new_scorer(data, scorer)
    heuristic_epochs = config.heuristic_epochs(fit.max_epochs)
    steps_per_epoch = -(-len(data.train) // fit.batch_size)
    loss = DenoisingLoss(model, config, heuristic_epochs * steps_per_epoch, scorer.seed)
    validate = _after(heuristic_epochs, validation_loss(model, data, fit.seed))
    fit_reranker(model, loss, data, fit, validate=validate, label="DNR")
    return model


def _after(epochs: int, validate: Callable[[], float]) -> Callable[[], float]:
    """The loss from a later epoch on; until then numbers that fall, all above any real loss, which is at most 1.

    So early stopping waits, and the weights of the epochs before are never the best ones.
    """
    waiting = iter(range(1 + epochs, 1, -1))
    return lambda: next(waiting, None) or validate()
