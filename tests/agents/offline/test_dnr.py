"""DNR's made scores, its divergence, which side each loss trains, and its limit case."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from agents.offline import dnr
from agents.offline.data import LabelledRequests, RerankData
from agents.offline.dnr import (
    DenoisingLoss,
    DnrConfig,
    ScoreGenerator,
    fit_dnr,
    heuristic_scores,
    score_divergence,
)
from agents.offline.protocol import ProtocolConfig, build_rerank_data
from agents.offline.retriever import FactorisationConfig, fit_matrix_factorisation
from agents.offline.scorers import fit_scorer, new_scorer
from agents.offline.training import OfflineTrainingConfig
from agents.rerankers.scorers import scorer_config
from tests.helpers.planted_ratings import planted_ratings

SCORER = scorer_config("prm", width=8, heads=2, item_embedding=4)


@pytest.fixture(scope="module")
def data() -> RerankData:
    retriever = FactorisationConfig(vector_width=6, sweeps=3)
    return build_rerank_data(
        planted_ratings(),
        lambda u, i, n: fit_matrix_factorisation(u, i, n, retriever),
        ProtocolConfig(protocol="papers", positive="like", num_candidates=20),
    )


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_made_scores_stay_in_range_and_hold_the_label(share: float, generator: torch.Generator) -> None:
    label = (torch.rand((50, 40), generator=generator) < 0.3).float()
    config = DnrConfig(noise="beta", noise_share=share)
    network = ScoreGenerator(config, seed=0)
    with torch.no_grad():
        network.noise[-1].weight.mul_(50)  # noise at both ends
    for made in (network(label, generator).detach(), heuristic_scores(label, config, generator)):
        assert made.min() >= 0
        assert made.max() <= 1
        assert made[label == 1].min() >= 1 - share - 1e-6
        assert made[label == 0].max() <= share + 1e-6
        assert made[label == 0].max() > 0.9 * share  # the range is used
        assert made[label == 0].min() < 0.1 * share


def test_drawn_noise_follows_its_law(generator: torch.Generator) -> None:
    nothing = torch.zeros(400, 500)
    normal = heuristic_scores(nothing, DnrConfig(noise="gaussian", noise_share=1.0), generator)
    assert normal.mean().abs() < 0.01
    assert abs(normal.std() - 1) < 0.01
    beta = heuristic_scores(nothing, DnrConfig(noise="beta", noise_share=1.0), generator)
    level = torch.tensor([0.1, 0.25, 0.5, 0.9])
    expected = 2 / torch.pi * torch.asin(level.sqrt())  # the arcsine law
    torch.testing.assert_close((beta.flatten() < level[:, None]).float().mean(dim=1), expected, atol=0.01, rtol=0)


def test_the_divergence_is_zero_for_equal_distributions_and_known_otherwise(generator: torch.Generator) -> None:
    scores = torch.rand((30, 20), generator=generator)
    order = torch.randperm(600, generator=generator)
    assert score_divergence(scores.flatten()[order].view(30, 20), scores).abs() < 1e-5
    made, real = torch.tensor([[0.0, 2.0]]), torch.tensor([[-1.0, 3.0]])  # N(1, 1) and N(1, 4)
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(1.0, 1.0), torch.distributions.Normal(1, 2))
    torch.testing.assert_close(score_divergence(made, real), expected, atol=1e-4, rtol=0)
    assert score_divergence(made + 1, real) > score_divergence(made, real)


def test_each_loss_trains_its_own_side(data: RerankData, generator: torch.Generator) -> None:
    scorer = new_scorer(data, SCORER)
    loss = DenoisingLoss(scorer, DnrConfig(), heuristic_steps=0, seed=0)
    before = [parameter.clone() for parameter in loss.generator.parameters()]
    weights = {name: parameter.clone() for name, parameter in scorer.named_parameters()}
    value = loss(data.train.batch(torch.arange(16)), generator)
    moved = [not torch.equal(old, new) for old, new in zip(before, loss.generator.parameters(), strict=True)]
    assert all(moved)  # the network took its own step
    assert all(torch.equal(weights[name], parameter) for name, parameter in scorer.named_parameters())
    assert all(parameter.grad is None for parameter in scorer.parameters())
    for parameter in loss.generator.parameters():
        parameter.grad = None
    value.backward()
    assert all(parameter.grad is None for parameter in loss.generator.parameters())
    assert sum(float(p.grad.abs().sum()) for p in scorer.parameters() if p.grad is not None) > 0


def test_the_network_waits_for_its_epochs(data: RerankData, generator: torch.Generator) -> None:
    scorer = new_scorer(data, SCORER)
    loss = DenoisingLoss(scorer, DnrConfig(), heuristic_steps=4, seed=0)
    first = loss.generator.noise[0].weight.clone()
    batch = data.train.batch(torch.arange(16))
    for _ in range(4):
        loss(batch, generator)
        assert torch.equal(loss.generator.noise[0].weight, first)
    loss(batch, generator)
    assert not torch.equal(loss.generator.noise[0].weight, first)


def lead_after_training(trust: float, batch: LabelledRequests) -> float:
    """By how much made scores of positives exceed the others, against a reranker that trusts the score so much."""
    generator = torch.Generator().manual_seed(0)
    config = DnrConfig(noise_share=0.5, generator_learning_rate=0.02)
    decoder = SimpleNamespace(begin=lambda request: trust * request.retriever_score_BC.unsqueeze(1))
    loss = DenoisingLoss(SimpleNamespace(encoder=lambda request: request, decoder=decoder), config, 0, seed=0)
    for _ in range(100):
        loss(batch, generator)
    made = loss.generator(batch.label_BC, generator).detach()
    return float(made[batch.label_BC == 1].mean() - made[batch.label_BC == 0].mean())


def test_the_adversary_misleads_who_trusts_the_score(data: RerankData) -> None:
    batch = data.train.batch(torch.arange(64))
    assert lead_after_training(10.0, batch) < lead_after_training(0.0, batch) - 0.05


def test_without_weight_it_is_plain_training_bit_for_bit(data: RerankData) -> None:
    """Every epoch may be the best where none has drawn noise."""
    fit = OfflineTrainingConfig(max_epochs=3, seed=5)
    plain = fit_scorer(data, SCORER, fit, "bce").state_dict()
    limit = fit_dnr(data, SCORER, DnrConfig(weight=0.0, heuristic_share=0.0), fit).state_dict()
    assert all(torch.equal(plain[name], limit[name]) for name in plain)
    other = fit_dnr(data, SCORER, DnrConfig(weight=0.5, heuristic_share=0.0), fit).state_dict()
    assert not torch.equal(plain["decoder.score.0.weight"], other["decoder.score.0.weight"])


@pytest.mark.parametrize("share", [0.0, 1 / 3, 0.5, math.nextafter(1, 0)])
def test_some_epochs_are_left_for_the_adversary(share: float) -> None:
    config = DnrConfig(heuristic_share=share)
    for epochs in range(1, 200):
        assert config.heuristic_epochs(epochs) < epochs
        assert share * epochs - 1 < config.heuristic_epochs(epochs) <= share * epochs
    assert DnrConfig().heuristic_epochs(12) == 4


@pytest.mark.parametrize("max_epochs", [1, 3, 6])
def test_the_kept_weights_have_met_the_adversary(
    max_epochs: int, data: RerankData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quality on the validation part falls from the first epoch on: plain early stopping would keep that one."""
    quality = iter(torch.linspace(0.1, 0.9, 100).tolist())
    events: list[str] = []

    def adversarial_loss(self: DenoisingLoss, *given: object) -> torch.Tensor:
        events.append("adversary")
        return original(self, *given)  # type: ignore[arg-type]

    def validation(*given: object) -> Callable[[], float]:
        def validate() -> float:
            events.append("validation")
            return next(quality)

        return validate

    original = DenoisingLoss.adversarial_loss
    monkeypatch.setattr(DenoisingLoss, "adversarial_loss", adversarial_loss)
    monkeypatch.setattr(dnr, "validation_loss", validation)
    fit = OfflineTrainingConfig(max_epochs=max_epochs, patience=1, batch_size=256)
    config = DnrConfig(heuristic_share=0.5)
    fit_dnr(data, SCORER, config, fit)
    steps_per_epoch = -(-len(data.train) // 256)
    assert events[: steps_per_epoch + 1] == ["adversary"] * steps_per_epoch + ["validation"]
    # The first epoch with the adversary is the best, one more is waited for; there is none if epochs are over.
    assert events.count("validation") == min(
        2, max_epochs - DnrConfig(heuristic_share=0.5).heuristic_epochs(max_epochs)
    )


def test_bad_settings_are_named() -> None:
    for settings, message in (
        ({"noise": "uniform"}, "noise must be one of"),
        ({"noise_share": 1.5}, "share from 0 to 1, got 1.5"),
        ({"weight": -1.0}, "must not be negative"),
        ({"heuristic_share": 1.0}, "share from 0 to below 1"),
        ({"generator_width": 0}, "generator_width must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            DnrConfig(**settings)
