"""The reranking protocol's data with one thing changed on purpose: labels without meaning, scores with noise.

Shape legend: L requests, C candidates.
"""

from dataclasses import replace

import torch

from agents.offline.data import RequestPart, RerankData, unit_scaled


def with_shuffled_labels(data: RerankData, generator: torch.Generator) -> RerankData:
    """The data with each request's labels dealt anew to its candidates, but for the test part.

    A control: whoever learns from it can do no better than chance, unless something leaks.
    """

    def shuffled(part: RequestPart) -> RequestPart:
        order_LC = torch.rand(part.label_LC.shape, generator=generator).argsort(dim=1)
        return replace(part, label_LC=part.label_LC.gather(1, order_LC))

    return replace(data, train=shuffled(data.train), validation=shuffled(data.validation))


def with_noisy_scores(data: RerankData, sigma: float, generator: torch.Generator) -> RerankData:
    """The data with Gaussian noise on the retriever's scores in every part, scaled to [0, 1] again.

    Args:
        data: the protocol's data; scores lie in [0, 1] within each request.
        sigma: standard deviation of the noise, in these units. The candidates stay those of the clean scores.
        generator: draws the noise.

    Raises:
        ValueError: sigma is negative.
    """
    if sigma < 0:
        raise ValueError(f"sigma must be at least 0, got {sigma}")

    def noisy(part: RequestPart) -> RequestPart:
        noise_LC = sigma * torch.randn(part.score_LC.shape, generator=generator)
        return replace(part, score_LC=unit_scaled(part.score_LC + noise_LC))

    return replace(data, train=noisy(data.train), validation=noisy(data.validation), test=noisy(data.test))


def without_scores(data: RerankData) -> RerankData:
    """The data with every retriever score 0: what rankers can do that never see it."""

    def blind(part: RequestPart) -> RequestPart:
        return replace(part, score_LC=torch.zeros_like(part.score_LC))

    return replace(data, train=blind(data.train), validation=blind(data.validation), test=blind(data.test))
