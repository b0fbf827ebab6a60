"""Watch-time cells: a partition of seconds, its inverse, its means, and what is read off it."""

import numpy as np
import pytest
import torch

from reward_models.users.watch_time import (
    KNOTS_S,
    WatchTimeCells,
    cell_log_probability,
    cell_mass,
    draw_cell,
    quantile,
    read_off_table,
)

DURATIONS = torch.tensor([3.0, 6.9, 7.2, 11.0, 18.3, 45.0, 300.0, 2000.0])


@pytest.fixture
def cells() -> WatchTimeCells:
    return WatchTimeCells()


def test_cells_of_a_video_touch_and_cover_everything_up_to_the_last_ratio(cells: WatchTimeCells) -> None:
    index_M = torch.arange(1, cells.num_cells)
    low, high = cells.bounds(index_M, cells.log_duration(DURATIONS).unsqueeze(-1))
    assert torch.equal(low[:, 1:], high[:, :-1])
    torch.testing.assert_close(low[:, 0].exp(), torch.full((len(DURATIONS),), cells.seconds[0]))
    torch.testing.assert_close(high[:, -1].exp(), DURATIONS * cells.ratios[-1])


def test_index_finds_the_cell_whose_bounds_hold_the_watch_time(cells: WatchTimeCells) -> None:
    generator = torch.Generator().manual_seed(0)
    duration = DURATIONS[torch.randint(len(DURATIONS), (5000,), generator=generator)]
    watch_time = duration * torch.rand(5000, generator=generator) * 4.9
    watch_time = watch_time.clamp(min=0.11)
    index = cells.index(watch_time, duration)
    low, high = cells.bounds(index, cells.log_duration(duration))
    assert (index > 0).all()
    assert (watch_time >= low.exp() * (1 - 1e-5)).all()
    assert (watch_time <= high.exp() * (1 + 1e-5)).all()
    assert (cells.index(torch.zeros(3), DURATIONS[:3]) == 0).all()


def test_a_click_and_a_long_view_never_split_a_cell(cells: WatchTimeCells) -> None:
    duration = torch.tensor(60.0)
    for mark in (7.0, 18.0):
        below, above = cells.index(torch.tensor([mark - 1e-3, mark + 1e-3]), duration)
        assert below + 1 == above


def test_share_is_the_part_of_a_cell_before_the_end_of_the_video(cells: WatchTimeCells) -> None:
    share_NM = cells.share(torch.tensor([10.0]))[0]
    position = cells.seconds.index(9.0)  # the cell from 9 to 12 s is cut at 9.4 s
    assert share_NM[1 + position] == pytest.approx(np.log(9.4 / 9.0) / np.log(12.0 / 9.0), rel=1e-4)
    assert (share_NM[1:position] == 1).all()
    assert (share_NM[2 + position : len(cells.seconds)] == 0).all()
    assert (share_NM[len(cells.seconds) :] == 1).all()


def test_means_agree_with_numerical_integration(cells: WatchTimeCells) -> None:
    log_duration = cells.log_duration(DURATIONS)
    steps = (torch.arange(2000) + 0.5) / 2000
    index = torch.arange(cells.num_cells)
    seconds = cells.seconds_at(
        index.expand(2000, len(DURATIONS), -1), steps[:, None, None], log_duration[None, :, None]
    )
    torch.testing.assert_close(cells.mean(log_duration), seconds.mean(0), rtol=1e-3, atol=1e-4)
    assert (cells.mean(log_duration)[:, 0] == 0).all()


def test_draws_follow_the_cells_and_are_monotone(cells: WatchTimeCells) -> None:
    generator = torch.Generator().manual_seed(1)
    log_share = cells.log_share(torch.tensor([30.0]))[0]
    mass = cell_mass(torch.randn(cells.num_cells, generator=generator), log_share)
    uniform = (torch.arange(200_000) + 0.5) / 200_000
    cell, position = draw_cell(mass.expand(len(uniform), -1), uniform)
    counts = torch.bincount(cell, minlength=cells.num_cells) / len(uniform)
    torch.testing.assert_close(counts, mass / mass.sum(), atol=2e-5, rtol=0)
    seconds = cells.seconds_at(cell, position, cells.log_duration(torch.tensor(30.0)))
    assert (seconds.diff() >= 0).all()
    inside = cell == int(mass[1:].argmax()) + 1
    assert position[inside].mean() == pytest.approx(0.5, abs=0.01)


def test_quantiles_of_equal_masses_are_found(cells: WatchTimeCells) -> None:
    mass = torch.zeros(1, cells.num_cells)
    mass[0, 0] = 0.5  # half at zero, half in the cell from 7 to 9 s
    mass[0, 1 + cells.seconds.index(7.0)] = 0.5
    found = quantile(cells, mass, torch.tensor([100.0]), torch.tensor([0.25, 0.75]))
    assert found[0, 0] == 0
    assert found[0, 1] == pytest.approx(np.sqrt(7.0 * 9.0), rel=1e-5)


def test_log_probability_is_the_normalised_mass(cells: WatchTimeCells) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(5, cells.num_cells, generator=generator)
    log_share = cells.log_share(DURATIONS[:5])
    mass = cell_mass(logits, log_share)
    torch.testing.assert_close(cell_log_probability(logits, log_share).exp(), mass / mass.sum(-1, keepdim=True))


def test_some_cell_has_mass_however_large_the_logits(cells: WatchTimeCells) -> None:
    log_share = cells.log_share(torch.tensor([10.0]))[0]
    logits = torch.zeros(cells.num_cells)
    logits[cells.seconds.index(600.0)] = 60.0  # a cell that ten seconds leave no width
    mass = cell_mass(logits, log_share)
    assert mass.isfinite().all()
    assert float(mass.max()) == 1.0


def test_hats_sum_to_one_and_peak_at_their_knots(cells: WatchTimeCells) -> None:
    torch.testing.assert_close(cells.hats(torch.tensor(KNOTS_S)), torch.eye(len(KNOTS_S)), atol=1e-5, rtol=0)
    torch.testing.assert_close(cells.hats(torch.tensor([1.0, 30.0, 5000.0])).sum(1), torch.ones(3))


def test_read_off_counts_each_cell_and_borrows_where_there_are_no_rows() -> None:
    cell = torch.tensor([0] * 900 + [1] * 900)
    signal = (cell == 1).float().unsqueeze(1)
    tab, group = torch.zeros(1800, dtype=torch.int64), torch.zeros(1800, dtype=torch.int64)
    table = read_off_table(cell, group, tab, signal, (2, 2, 2), prior=1.0)
    assert table[0, 0, 1, 0] > 0.999
    assert table[0, 0, 0, 0] < 0.001
    assert table[1, 1, 1, 0] > 0.999  # a tab without rows follows the cell, not the overall rate
    assert table[1, 1, 0, 0] < 0.001


@pytest.mark.parametrize("field", ["seconds", "ratios", "durations"])
def test_edges_that_do_not_increase_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} needs two or more increasing edges"):
        WatchTimeCells(**{field: (3.0, 2.0)})
