"""Calibrators and ranking metrics against brute force and closed forms."""

import numpy as np
import pytest
import torch

from reward_models.calibration import (
    expected_calibration_error,
    fit_cells,
    fit_group_offsets,
    fit_isotonic,
    fit_platt,
    rate_ratio,
)
from reward_models.metrics import auc, grouped_auc, ordered_pair_share, pinball_crps
from reward_models.users.watch_time import WatchTimeCells, cell_log_probability


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def test_platt_undoes_a_known_distortion() -> None:
    generator = np.random.default_rng(0)
    logit = generator.normal(-1.0, 1.5, 200_000)
    label = generator.random(len(logit)) < sigmoid(logit)
    platt = fit_platt(2.0 * logit + 1.0, label)
    assert platt.scale == pytest.approx(0.5, abs=0.02)
    assert platt.offset == pytest.approx(-0.5, abs=0.03)
    assert rate_ratio(platt(2.0 * logit + 1.0), label) == pytest.approx(1.0, abs=1e-3)


def test_platt_with_a_given_scale_matches_the_rate_exactly() -> None:
    generator = np.random.default_rng(1)
    logit, label = generator.normal(size=5000), generator.random(5000) < 0.01
    platt = fit_platt(logit, label, scale=0.7)
    assert platt.scale == 0.7
    assert rate_ratio(platt(logit), label) == pytest.approx(1.0, abs=1e-6)


def test_platt_leaves_a_signal_without_positives_alone() -> None:
    assert fit_platt(np.zeros(10), np.zeros(10)).offset == 0.0


def test_every_group_gets_its_own_level() -> None:
    generator = np.random.default_rng(4)
    group = generator.integers(0, 3, 30_000)
    logits = generator.standard_normal(len(group)) - 2.0
    truth = np.array([0.5, -0.7, 0.0])
    label = generator.random(len(group)) < 1.0 / (1.0 + np.exp(-(logits + truth[group])))
    offsets = fit_group_offsets(logits, label, group, 4)
    np.testing.assert_allclose(offsets[:3], truth, atol=0.12)
    assert offsets[3] == 0.0  # nobody there


def test_isotonic_is_the_pooled_average_of_violators() -> None:
    isotonic = fit_isotonic([1.0, 2.0, 3.0, 4.0], [0, 1, 0, 1])
    np.testing.assert_allclose(isotonic([1.0, 2.0, 3.0, 4.0]), [0.0, 0.5, 0.5, 1.0])


def test_cells_get_the_shares_that_were_observed() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=generator)
    nothing, one_knot = torch.zeros(20_000, 5), torch.ones(20_000, 1)
    truth = torch.softmax(0.6 * logits + torch.tensor([0.0, 1.0, -1.0, 0.5, 0.0]), -1)
    cell = torch.multinomial(truth, 1, generator=generator).squeeze(1)
    scale, offset = fit_cells(logits, nothing, one_knot, cell)
    assert scale == pytest.approx(0.6, abs=0.03)
    predicted = cell_log_probability(scale * logits, offset).exp().mean(0)
    torch.testing.assert_close(predicted, torch.bincount(cell) / 20_000, atol=2e-3, rtol=0)
    fixed, _ = fit_cells(logits, nothing, one_knot, cell, scale=0.9)
    assert fixed == pytest.approx(0.9)


def test_cells_get_the_shares_of_their_own_durations() -> None:
    cells = WatchTimeCells()
    duration = torch.tensor([10.0, 100.0]).repeat(500)
    watched = duration * torch.tensor([1.3, 0.1]).repeat(500)  # short videos are played again, long ones skipped
    cell = cells.index(watched, duration)
    flat, log_share, hats = torch.zeros(1000, cells.num_cells), cells.log_share(duration), cells.hats(duration)
    _, offset = fit_cells(flat, log_share, hats, cell, scale=1.0)
    predicted = cell_log_probability(flat, log_share + hats @ offset).exp()
    right = predicted.gather(1, cell.unsqueeze(1))
    assert float(right.min()) > 0.9


def test_calibration_error_of_constant_predictions_is_their_distance_from_the_rate() -> None:
    label = np.tile([0, 1], 500)
    assert expected_calibration_error(np.full(1000, 0.8), label, 10) == pytest.approx(0.3)
    assert expected_calibration_error(np.full(1000, 0.5), label, 10) == pytest.approx(0.0)


def test_auc_counts_pairs() -> None:
    generator = np.random.default_rng(2)
    score, label = generator.integers(0, 20, 300), generator.random(300) < 0.3
    difference = score[label][:, None] - score[~label][None, :]
    assert auc(score, label) == pytest.approx((difference > 0).mean() + 0.5 * (difference == 0).mean())
    assert np.isnan(auc(score, np.zeros(300)))


def test_grouped_auc_is_the_weighted_mean_of_each_users_auc() -> None:
    generator = np.random.default_rng(3)
    score, label = generator.integers(0, 6, 400) / 6, generator.random(400) < 0.4
    group = generator.integers(0, 40, 400)
    areas, rows = [], []
    for user in range(40):
        mine = group == user
        if 0 < label[mine].sum() < mine.sum():
            areas.append(auc(score[mine], label[mine]))
            rows.append(mine.sum())
    assert grouped_auc(score, label, group) == pytest.approx(np.average(areas, weights=rows))


def test_ordered_pair_share_counts_pairs() -> None:
    generator = np.random.default_rng(4)
    predicted, actual = generator.integers(0, 30, 257), generator.integers(0, 30, 257)
    first, second = np.triu_indices(257, 1)
    sign = np.sign(actual[first] - actual[second]) * np.sign(predicted[first] - predicted[second])
    differs = actual[first] != actual[second]
    expected = (sign[differs] > 0).mean() + 0.5 * (sign[differs] == 0).mean()
    assert ordered_pair_share(predicted, actual) == pytest.approx(expected)


def test_crps_of_the_true_quantiles_of_a_uniform_law() -> None:
    levels = (np.arange(200) + 0.5) / 200
    actual = np.random.default_rng(5).random(20_000)
    assert pinball_crps(levels, levels, actual) == pytest.approx(1 / 6, abs=2e-3)  # twice the mean of u (1 - u) / 2
    assert pinball_crps(levels * 0.5, levels, actual) > 0.18


def test_a_fixed_part_of_the_logits_keeps_its_size() -> None:
    generator = np.random.default_rng(5)
    x, z = generator.normal(size=(2, 60_000))
    label = generator.random(len(x)) < 1 / (1 + np.exp(-(0.5 * x + 2.0 * z - 1.0)))
    fitted = fit_platt(x, label, fixed=2.0 * z)
    assert fitted.scale == pytest.approx(0.5, abs=0.03)
    assert fitted.offset == pytest.approx(-1.0, abs=0.03)
    assert fit_platt(x, label, 0.5, fixed=2.0 * z).offset == pytest.approx(-1.0, abs=0.03)
