"""Results: intervals against textbooks and the bootstrap, paired differences, verdicts, files."""

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from agents.baselines import PointwiseGreedy, RandomSlate, RetrieverOrder
from recsim_env.evaluation import Contender, EvaluationResult, EvaluationSettings, evaluate, judge
from recsim_env.files import write_text
from recsim_env.intervals import half_width
from recsim_env.results import Cell
from recsim_env.simulator import SessionState, Simulator
from recsim_env.types import Decision, Request
from tests.helpers.planted import planted_world

SMALL = EvaluationSettings(cold_start_below=6, duration_edges=(20.0, 40.0), max_requests=6, leaving="drawn")


class Stubborn:
    """Shows item 3 first in every slate, an item twice, and item 29 whether it is a candidate or not."""

    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        first_B = request.candidates_BC[:, 0]
        return Decision(torch.stack([torch.full_like(first_B, 3), first_B, torch.full_like(first_B, 29)], 1))


def best_in_truth(simulator: Simulator, state: SessionState) -> Tensor:
    """The candidates with the longest true watch time."""
    value_BC = simulator.expected(state, state.request.candidates_BC.unsqueeze(2)).watch_time_BG
    return state.request.candidates_BC.gather(1, value_BC.argsort(dim=1, descending=True)[:, :3])


@pytest.fixture(scope="module")
def result() -> EvaluationResult:
    policies = {
        "greedy": PointwiseGreedy(3),
        "retriever": RetrieverOrder(3),
        "random": [RandomSlate(3), RetrieverOrder(3), Stubborn()],
        "oracle": Contender(oracle=best_in_truth, feedback="branched", world_requests=7),
    }
    worlds = {"A": planted_world(slope=2.0), "truth": planted_world(hazard=0.02)}
    return evaluate(policies, worlds, num_sessions=300, seed=5, settings=SMALL, progress=False)


def test_the_interval_of_a_mean_is_students_t(result: EvaluationResult) -> None:
    values = result.cells["greedy", "A"].ratios["session_watch_time"][0][0]
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    row = result.row("greedy", "A", "session_watch_time")
    assert (row.low, row.high) == pytest.approx((low, high))
    assert (row.seeds, row.sessions) == (1, 300)


def test_the_interval_of_a_rate_agrees_with_the_bootstrap(result: EvaluationResult) -> None:
    likes, seen = (part[0] for part in result.cells["greedy", "A"].ratios["like_rate"])
    picks = np.random.default_rng(0).integers(len(likes), size=(4000, len(likes)))
    rates = likes[picks].sum(1) / seen[picks].sum(1)
    row = result.row("greedy", "A", "like_rate")
    assert (row.high - row.low) / 2 == pytest.approx(1.96 * rates.std(), rel=0.08)
    naive = stats.sem(likes / seen) * 1.96
    assert abs((row.high - row.low) / 2 - naive) > 0.1 * naive  # long sessions weigh more


def test_a_difference_is_paired_by_session(result: EvaluationResult) -> None:
    first, second = (result.cells[name, "A"].ratios["session_watch_time"][0][0] for name in ("greedy", "retriever"))
    paired = stats.ttest_rel(first, second).confidence_interval()
    row = result.difference("greedy", "retriever", "A")
    assert (row.low, row.high) == pytest.approx((paired.low, paired.high))
    assert row.mean == pytest.approx((first - second).mean())
    unpaired = stats.ttest_ind(first, second).confidence_interval()
    assert row.high - row.low < 0.75 * (unpaired.high - unpaired.low)


def test_an_exact_tie_has_an_interval_of_zero_width(result: EvaluationResult) -> None:
    """The predictor of this world knows the truth, so the sort is the oracle."""
    row = result.difference("greedy", "oracle", "A")
    assert (row.mean, row.low, row.high) == (0, 0, 0)


def test_sessions_that_all_seeds_play_alike_are_not_luck_of_training(result: EvaluationResult) -> None:
    """Against one seed of another policy the interval is that of the seeds' differences to it."""
    values_Sn = result.cells["random", "A"].ratios["session_watch_time"][0]
    baseline_1n = result.cells["retriever", "A"].ratios["session_watch_time"][0]
    row, lead = (result.row("random", "A", "session_watch_time"), result.difference("random", "retriever", "A"))
    assert (row.seeds, row.sessions, lead.seeds) == (3, 300, 3)
    for found, table_Sn in ((row, values_Sn), (lead, values_Sn - baseline_1n)):
        moves_Sn = table_Sn - table_Sn.mean(1, keepdims=True)
        half = half_width(table_Sn.mean(1), moves_Sn)
        assert (found.low, found.high) == pytest.approx((table_Sn.mean() - half, table_Sn.mean() + half))


def test_two_policies_with_other_numbers_of_seeds_cannot_be_paired() -> None:
    def cell(seeds: int) -> Cell:
        values = np.arange(float(seeds * 4)).reshape(seeds, 4)
        return Cell(ratios={"m": (values, np.ones_like(values))}, totals={})

    result = EvaluationResult(cells={("a", "w"): cell(3), ("b", "w"): cell(2)})
    with pytest.raises(ValueError, match="cannot pair 3 training seeds of 'a' with 2 of 'b'"):
        result.difference("a", "b", "w", "m")


def test_a_gap_between_worlds_adds_both_variances(result: EvaluationResult) -> None:
    first, second = (result.cells["greedy", w].ratios["session_watch_time"][0][0] for w in ("A", "truth"))
    row = result.gap("greedy", "A", "truth")
    half = math.hypot(stats.sem(first), stats.sem(second)) * stats.t.ppf(0.975, 299)
    assert (row.low, row.high) == pytest.approx((row.mean - half, row.mean + half))
    assert row.mean == pytest.approx(first.mean() - second.mean())
    assert (row.world, row.baseline_world) == ("A", "truth")
    several = result.gap("random", "A", "truth")
    cells = [result.cells["random", w].ratios["session_watch_time"][0] for w in ("A", "truth")]
    moves = [table_Sn - table_Sn.mean(1, keepdims=True) for table_Sn in cells]
    half = half_width(cells[0].mean(1) - cells[1].mean(1), *moves)
    assert (several.low, several.high) == pytest.approx((several.mean - half, several.mean + half))


def test_totals_have_no_interval_over_sessions(result: EvaluationResult) -> None:
    row = result.row("greedy", "A", "catalogue_coverage")
    assert math.isnan(row.low)
    over_seeds = result.row("random", "A", "catalogue_coverage")
    values = result.cells["random", "A"].totals["catalogue_coverage"]
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert (over_seeds.low, over_seeds.high) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        ({"value": 2.0, "low": 1.0, "high": 3.0, "bar": 0.5}, "holds"),
        ({"value": 2.0, "low": 1.0, "high": 3.0, "bar": 1.0}, "undecided"),
        ({"value": 2.0, "low": 1.0, "high": 3.0, "bar": 3.5}, "fails"),
        ({"value": 2.0, "low": 1.0, "high": 3.0, "bar": 3.5, "side": "below"}, "holds"),
        ({"value": 2.0, "low": 1.0, "high": 3.0, "bar": 0.5, "side": "below"}, "fails"),
        ({"value": 2.0, "low": 1.0, "high": 3.0}, "no bar"),
        ({"value": 2.0, "bar": 2.0}, "holds"),
        ({"value": 1.9, "bar": 2.0}, "fails"),
        ({"value": math.nan, "bar": 2.0}, "fails"),
        ({"value": 0.0, "low": 0.0, "high": 0.0, "bar": 0.0}, "undecided"),
    ],
)
def test_verdicts(numbers: dict[str, float], word: str) -> None:
    assert judge("claim", **numbers).verdict == word  # type: ignore[arg-type]


def test_files_hold_every_row_in_strict_json(result: EvaluationResult, tmp_path: Path) -> None:
    stored = json.loads(
        result.write_json(tmp_path / "r.json").read_text(), parse_constant=lambda name: pytest.fail(name)
    )
    assert len(stored["rows"]) == len(result.rows())
    row = next(r for r in stored["rows"] if (r["policy"], r["metric"]) == ("oracle", "session_watch_time"))
    wanted = {
        "policy",
        "world",
        "metric",
        "mean",
        "low",
        "high",
        "seeds",
        "feedback",
        "world_requests",
        "sessions",
    }
    assert wanted <= set(row)
    assert (row["feedback"], row["world_requests"]) == ("branched", 7)
    assert row["mean"] == result.row("oracle", "A", "session_watch_time").mean
    assert next(r for r in stored["rows"] if r["metric"] == "catalogue_coverage")["low"] is None
    with result.write_csv(tmp_path / "r.csv").open() as file:
        lines = list(csv.DictReader(file))
    means = [float(line["mean"] or "nan") for line in lines]
    np.testing.assert_array_equal(means, [row.mean for row in result.rows()])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "r.json", "old")

    def fail(*_: object) -> None:
        raise OSError("disk")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_cell_comes_back_from_json_and_seeds_join_in_order() -> None:
    generator = np.random.default_rng(0)
    ones = np.ones((1, 30))
    cells = [
        Cell(
            ratios={"a": (generator.normal(size=(1, 30)), ones), "b": (ones, 2 * ones), "c": (ones, ones)},
            totals={"t": np.array([float(seed)])},
            feedback="one slate",
            world_requests=10 + seed,
        )
        for seed in range(3)
    ]
    plain = json.loads(json.dumps(cells[0].merged(10).to_json()))
    assert len(plain["counts"]) == 2  # what two metrics are divided by is kept once
    back = Cell.from_json(plain)
    assert (back.num_sessions, back.feedback, back.world_requests) == (30, "one slate", 10)
    for metric in ("a", "b", "c", "t"):
        assert back.value(metric) == pytest.approx(cells[0].value(metric), rel=1e-6)
    joined = Cell.of_seeds(cells)
    assert joined.value("t").tolist() == [0, 1, 2]
    assert joined.value("a") == pytest.approx([cell.value("a")[0] for cell in cells])
    assert joined.world_requests == 12


def test_a_ratio_of_rows_is_paired_by_session() -> None:
    luck, ones = np.random.default_rng(0).normal(100, 20, size=(1, 50)), np.ones((1, 50))
    twice = np.concatenate([2 * luck, 3 * luck, 7 * luck])
    cells = {
        ("ours", "w"): Cell(ratios={"s": (twice, np.ones_like(twice))}, totals={}),
        ("one", "w"): Cell(ratios={"s": (luck, ones)}, totals={}),
        ("two", "w"): Cell(ratios={"s": (np.concatenate([luck, luck]), np.ones((2, 50)))}, totals={}),
        ("few", "w"): Cell(ratios={"s": (luck[:, :9], ones[:, :9])}, totals={}),
    }
    result = EvaluationResult(cells=cells)
    row = result.ratio("ours", "one", "w", "s")
    assert (row.mean, row.seeds) == (pytest.approx(4), 3)
    low, high = stats.t.interval(0.95, 2, 4, stats.sem([2, 3, 7]))
    assert (row.low, row.high) == pytest.approx((low, high))  # the same luck in every session: seeds alone differ
    assert result.ratio("ours", "two", "w", "s").mean == pytest.approx(2.5)  # of the seeds that both have
    with pytest.raises(ValueError, match="only the same sessions can be paired"):
        result.ratio("ours", "few", "w", "s")


def test_the_interval_of_a_ratio_over_seeds_and_that_of_a_difference_cover_the_truth() -> None:
    """Likes per video seen: seeds and sessions differ in both, and so do two policies in the same sessions."""
    rng = np.random.default_rng(0)
    sessions, trials, hits = 80, 1500, np.zeros(2)
    for _ in range(trials):
        (patience_1n, taste_1n), cells = rng.gamma(4.0, 0.25, size=(2, 1, sessions)), {}
        for policy, rate in (("ours", 0.3), ("theirs", 0.2)):
            seen_Sn = rng.poisson(20 * patience_1n, size=(3, sessions)) + 1.0
            rate_Sn = rate * (1 + 0.05 * rng.normal(size=(3, 1))) * taste_1n
            cells[policy, "w"] = Cell(ratios={"rate": (rng.poisson(seen_Sn * rate_Sn) * 1.0, seen_Sn)}, totals={})
        result = EvaluationResult(cells=cells)
        rows = result.row("ours", "w", "rate"), result.difference("ours", "theirs", "w", "rate")
        hits += [row.low <= truth <= row.high for row, truth in zip(rows, (0.3, 0.1), strict=True)]
    assert np.all(np.abs(hits / trials - 0.95) < 0.02)
