"""The measuring stick for learned users: its weighted statistics against brute force."""

import numpy as np
import pytest

from reward_models.metrics import auc
from reward_models.users.response_measures import _phi, user_weights, weighted_auc


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, scores and labels of 200 rows."""
    generator = np.random.default_rng(0)
    user, score = np.sort(generator.integers(20, size=200)), generator.random(200)
    return user, score, (generator.random(200) < score).astype(float)


def test_a_user_drawn_twice_counts_twice_in_every_row(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    user, _, _ = rows
    weights = user_weights(user, 50, 0)
    for code in np.unique(user):
        assert (weights[:, user == code] == weights[:, user == code][:, :1]).all()
    first = [int(np.flatnonzero(user == code)[0]) for code in np.unique(user)]
    assert (weights[:, first].sum(1) == len(first)).all()


def test_weighted_auc_is_the_auc_of_repeated_rows(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    user, score, label = rows
    weights = user_weights(user, 5, 1)
    for weight, value in zip(weights, weighted_auc(score, label, weights), strict=True):
        assert value == pytest.approx(auc(np.repeat(score, weight), np.repeat(label, weight)))


def test_weighted_phi_is_the_correlation_of_repeated_rows(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    user, score, label = rows
    other, weights = (score > 0.6).astype(float), user_weights(user, 5, 2)
    for weight, value in zip(weights, _phi(label, other, weights.astype(float)), strict=True):
        repeated = np.repeat(label, weight), np.repeat(other, weight)
        assert value == pytest.approx(np.corrcoef(*repeated)[0, 1])
