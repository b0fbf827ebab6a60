"""Worlds ranked against the truth: planted orders with known answers, and the table in miniature."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from experiments.report import page as results_page
from experiments.report.frames import frame_of
from experiments.report.ranking_plot import ranking_plot
from experiments.tables import ranking
from experiments.tables.ranking import MIXTURES, OTHER_SESSIONS, TEMPERATURES, RankingTable, policy_families
from experiments.tables.ranking_figures import (
    FIRST_SLATE,
    LEAST_POLICIES,
    LIKES,
    PAIR_GAP,
    RANK_BARS,
    SECONDS,
    Array,
    Pairs,
    close_share,
    level_claims,
    levels,
    ordered_pairs,
    rank_correlation,
    ranking_checks,
    regret,
    set_claims,
    share_claim,
)
from experiments.tables.runner import RunOptions, complete
from experiments.tables.settings import SLATE, LogSource, settings_of, worlds_of
from recsim_env.evaluation import EvaluationSettings, evaluate
from recsim_env.results import Cell, EvaluationResult
from recsim_env.simulator import Simulator
from recsim_env.slates import best_first
from tests.helpers.learned import ONE_JUDGE
from tests.helpers.list_bench import bench_world

TRUTH_P = np.array([100.0, 99.5, 97.0, 90.0, 60.0])
ALL = np.ones((5, 5), dtype=bool)


def cell(seconds: float, luck_n: Array, likes: float = 0.1) -> Cell:
    """Sessions of a policy around a mean that luck does not move."""
    one_1n = np.ones((1, len(luck_n)))
    watched_1n = seconds + (luck_n - luck_n.mean())[None]
    return Cell(
        ratios={SECONDS: (watched_1n, one_1n), FIRST_SLATE: (watched_1n / 5, one_1n), LIKES: (likes * one_1n, one_1n)},
        totals={},
    )


def planted(**worlds: Any) -> EvaluationResult:
    """Policies p0, p1, ... with these worths, the luck of a session the same for all."""
    luck_n = np.random.default_rng(3).normal(0, 20, 50)
    cells = {
        (f"p{i}", world): cell(value, luck_n, likes=float(value) / 1000)
        for world, value_P in worlds.items()
        for i, value in enumerate(value_P)
    }
    return EvaluationResult(cells=cells)


def checks_in(result: EvaluationResult, world: str) -> dict[tuple[str, str], dict[str, Any]]:
    found = ranking_checks(result, "truth", "other")
    return {(check["metric"], check["name"]): check for check in found if check["world"] == world}


def test_rank_correlation_is_spearmans() -> None:
    assert rank_correlation(2 * TRUTH_P, TRUTH_P) == 1.0
    assert rank_correlation(-TRUTH_P, TRUTH_P) == -1.0
    # One swapped pair of neighbours among five: 1 - 6 * 2 / (5 * 24).
    assert rank_correlation(TRUTH_P[[1, 0, 2, 3, 4]], TRUTH_P) == pytest.approx(0.9)
    drawn_2P = np.random.default_rng(0).integers(0, 6, (2, 30)).astype(float)
    assert rank_correlation(*drawn_2P) == pytest.approx(spearmanr(*drawn_2P).statistic), "ties, too"
    assert math.isnan(rank_correlation(np.ones(5), TRUTH_P))


def test_pairs_are_counted_by_their_true_gap() -> None:
    # By hand, over the better one: .5, 3, 10, 40 | 2.5, 9.5, 39.7 | 7.2, 38.1 | 33.3 per cent.
    assert ordered_pairs(TRUTH_P, TRUTH_P, ALL) == {
        "below 1 %": Pairs(1, 1, 0),
        PAIR_GAP: Pairs(2, 2, 0),
        "above 5 %": Pairs(7, 7, 0),
    }
    swapped = ordered_pairs(TRUTH_P[[0, 2, 1, 3, 4]], TRUTH_P, ALL)  # p1 and p2, 2.5 % apart
    assert (swapped[PAIR_GAP], swapped[PAIR_GAP].share) == (Pairs(2, 1, 0), 0.5)
    assert swapped["below 1 %"].share == swapped["above 5 %"].share == 1.0
    tied = ordered_pairs(np.array([100.0, 100.0, 97.0, 90.0, 60.0]), TRUTH_P, ALL)
    assert tied["below 1 %"] == Pairs(1, 0, 0), "a tie is no order"
    edge_P = np.array([95.1, 100.0])  # 4.9 % of the better one, 5.2 % of the worse
    assert ordered_pairs(edge_P, edge_P, ALL)[PAIR_GAP] == Pairs(1, 1, 0)


def test_pairs_that_the_truth_leaves_open_are_left_out_and_counted() -> None:
    open_PP = ALL.copy()
    open_PP[0, 1] = open_PP[1, 2] = False
    found = ordered_pairs(TRUTH_P[[0, 2, 1, 3, 4]], TRUTH_P, open_PP)
    assert found["below 1 %"] == Pairs(0, 0, 1)
    assert math.isnan(found["below 1 %"].share)
    assert found[PAIR_GAP] == Pairs(1, 1, 1), "the swapped pair is not counted against the world"


def test_regret_is_what_the_worlds_choice_loses_in_truth() -> None:
    assert regret(2 * TRUTH_P, TRUTH_P) == (0, 0, 0.0, 0.0)
    found = regret(np.array([5.0, 6.0, 9.0, 8.0, 7.0]), TRUTH_P)
    assert (found.best, found.chosen, found.loss, found.share) == (0, 2, 3.0, 0.03)


def test_the_largest_group_of_close_policies_is_found() -> None:
    assert close_share(TRUTH_P) == 0.6  # 95 and more
    assert close_share(np.array([100.0, 50.0, 49.0, 48.0, 47.6])) == 0.8, "whatever their worth"
    words = [claim.verdict for claim in set_claims(np.repeat(TRUTH_P, 5))]
    assert words == ["pass", "pass"]
    assert len(np.repeat(TRUTH_P, 5)) >= LEAST_POLICIES
    assert [claim.verdict for claim in set_claims(np.array([1.0, 2.0, 4.0, 8.0]))] == ["fail", "fail"]


def test_levels_are_paired_by_session() -> None:
    result = planted(truth=TRUTH_P, A=1.04 * TRUTH_P)
    level_P, half_P = levels(result, "A", "truth")
    assert level_P == pytest.approx([1.04] * 5)
    # The same luck in seconds moves the level by .04 of itself: (luck - 1.04 luck) / truth.
    own_P = [result.row(name, "truth", SECONDS) for name in result.policies]
    assert half_P == pytest.approx([0.04 * (row.high - row.mean) / row.mean for row in own_P])


def test_every_policy_is_held_to_the_level() -> None:
    least, greatest = level_claims(np.array([0.99, 1.2, 1.0]), np.full(3, 0.01), ["a", "b", "c"])
    assert (least[0].figure, least[0].verdict, greatest[0].figure, greatest[0].verdict) == (0.99, "pass", 1.2, "fail")
    assert greatest[0].because.startswith("b; 1 of 3")
    wide = level_claims(np.array([0.99, 1.04, 1.0]), np.full(3, 0.06), ["a", "b", "c"])
    assert [claim.verdict for claim, _ in wide] == ["cannot say", "cannot say"]
    # The furthest one is within the luck of its bar, and another is not.
    mixed = list(level_claims(np.array([1.11, 1.10]), np.array([0.07, 0.01]), ["a", "b"]))
    assert mixed[1][0].verdict == "fail"
    assert mixed[0][0].figure == 1.10, "the least level stands though it lies above 1"


@pytest.mark.parametrize(
    ("figure", "ceiling", "word"),
    [
        (0.98, 0.99, "pass"),
        (0.96, 0.99, "fail"),
        (0.90, 0.96, "fail"),  # further below the bar than the truth's own luck
        (0.98, 0.96, "cannot say"),
        (0.95, 0.96, "cannot say"),
        (0.98, math.nan, "cannot say"),
        (math.nan, 0.99, "cannot say"),
    ],
)
def test_what_the_truth_itself_misses_decides_nothing(figure: float, ceiling: float, word: str) -> None:
    assert share_claim("rank correlation", figure, ceiling, 0.97).verdict == word


def test_a_perfect_world_passes_and_a_swap_is_named() -> None:
    other_P = 1.01 * TRUTH_P
    result = planted(truth=TRUTH_P, A=TRUTH_P, judge=1.1 * TRUTH_P[[0, 2, 1, 3, 4]], other=other_P)
    perfect, judge, ceiling = (checks_in(result, world) for world in ("A", "judge", "other"))
    assert {check["verdict"] for check in perfect.values()} == {"pass", "no bar"}
    assert [perfect[metric, f"rank correlation, {metric}"]["value"] for metric in RANK_BARS] == pytest.approx([1.0] * 3)
    assert perfect[SECONDS, "regret, seconds"]["value"] == 0.0
    assert judge[SECONDS, f"rank correlation, {SECONDS}"]["value"] == pytest.approx(0.9)
    pairs = judge[SECONDS, f"pairs rightly ordered, gap {PAIR_GAP}"]
    assert (pairs["value"], pairs["verdict"]) == (0.5, "fail")
    assert pairs["because"].startswith("1 of 2 pairs; 0 undecided")
    assert judge[SECONDS, "greatest level over truth"]["value"] == pytest.approx(1.1 * 99.5 / 97)
    assert {check["verdict"] for check in ceiling.values()} == {"no bar"}
    assert {check["verdict"] for check in checks_in(result, "truth").values()} == {"pass", "fail"}  # five policies


def test_without_the_truth_nothing_is_asked_and_without_a_ceiling_little_said() -> None:
    assert list(ranking_checks(planted(A=TRUTH_P, other=TRUTH_P), "truth", "other")) == []
    found = checks_in(planted(truth=TRUTH_P, A=TRUTH_P), "A")
    assert found[SECONDS, f"rank correlation, {SECONDS}"]["verdict"] == "cannot say"
    assert found[SECONDS, "least level over truth"]["verdict"] == "pass"
    # A policy that has not played everywhere yet is no reason to stop.
    part = planted(truth=TRUTH_P, A=TRUTH_P, other=TRUTH_P)
    cells = {key: one for key, one in part.cells.items() if key != ("p4", "A")}
    assert checks_in(EvaluationResult(cells=cells), "truth")[SECONDS, "policies ranked"]["value"] == 4


def test_an_undecided_truth_leaves_its_pairs_out_of_the_checks() -> None:
    rng = np.random.default_rng(1)
    cells = {
        (f"p{i}", world): cell(value, rng.normal(0, 20, 50))
        for world in ("truth", "A", "other")
        for i, value in enumerate((100.0, 98.0, 50.0))
    }
    pairs = checks_in(EvaluationResult(cells=cells), "A")[SECONDS, f"pairs rightly ordered, gap {PAIR_GAP}"]
    assert (pairs["value"], pairs["verdict"]) == (None, "cannot say")
    assert pairs["because"].startswith("0 of 0 pairs; 1 undecided")


def test_the_plot_shows_every_policy_of_every_world() -> None:
    result = planted(truth=TRUTH_P, A=1.1 * TRUTH_P, other=TRUTH_P)
    figure = ranking_plot(frame_of(result.rows()), truth="truth", metric=SECONDS, label="seconds")
    assert [axes.get_title() for axes in figure.axes] == ["A", "other"]
    assert figure.axes[0].get_xlabel() == "seconds, in truth"
    for axes, factor in zip(figure.axes, (1.1, 1.0), strict=True):
        shown = np.asarray(axes.collections[1].get_offsets())
        np.testing.assert_allclose(shown, np.stack([TRUTH_P, factor * TRUTH_P], axis=1))


def test_policies_are_what_their_names_say() -> None:
    world = bench_world()
    found = {name: policy for policies in policy_families(world).values() for name, policy in policies.items()}
    assert len(found) == sum(map(len, policy_families(world).values())) >= LEAST_POLICIES
    request = Simulator(world, slate_size=SLATE).start(40, 0).request

    def show(name: str) -> Tensor:
        return found[name](request, torch.Generator().manual_seed(0)).items_BK

    def shares(*names: str) -> list[float]:
        """How much of the sort's slates these show, place by place."""
        best_BK = best_first(request, request.predicted_BCF[..., 0], SLATE)
        return [float((show(name) == best_BK).double().mean()) for name in names]

    assert shares("sort, 0 of the retriever") == [1.0]
    assert torch.equal(show("sort, 1 of the retriever"), request.candidates_BC[:, :SLATE])
    for family, values in (("sort, {:g} of the retriever", MIXTURES), ("sort, noise {:g}", TEMPERATURES)):
        falling = shares(*(family.format(value) for value in values))
        assert falling == sorted(falling, reverse=True), family
        assert falling[-1] < 0.6, family
    duration_BK = world.catalogue.duration_N[show("longest first")]
    assert bool((duration_BK.diff(dim=1) <= 0).all())
    assert bool((duration_BK.amin(1) >= world.catalogue.duration_N[show("shortest first")].amax(1)).all())
    like = world.signals.index("like")
    assert torch.equal(show("sort by like"), best_first(request, request.predicted_BCF[..., like], SLATE))


@pytest.fixture
def table(tmp_path: Path) -> RankingTable:
    source = LogSource(num_users=120, num_items=150, log_sessions=200, folder=tmp_path / "runs", build=ONE_JUDGE)
    return RankingTable(source=source, num_sessions=12, run=RunOptions(results=tmp_path / "results", jobs=1))


@pytest.mark.slow
def test_the_table_ranks_all_worlds_on_the_same_sessions_and_goes_on_where_it_was(
    table: RankingTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = complete(table.outline, table.runs(), table.run)
    ((setting, result),) = finished.results.items()
    assert result.world_names == ("A", "judge-final-1", "truth", OTHER_SESSIONS)
    assert len(result.policies) >= LEAST_POLICIES
    assert all(result.cells[key].num_sessions == 12 for key in result.cells)
    # The whole session and the first slate of it, played here once more, by the users that the truth has.
    worlds = worlds_of(settings_of(table.source)[0])
    world = worlds["A"].replace(population_P=worlds["truth"].population_P)
    assert not torch.equal(world.population_P, worlds["A"].population_P)
    policy = policy_families(world)["durations"]["longest first"]
    for most, metric in ((None, SECONDS), (1, FIRST_SLATE)):
        again = evaluate(
            {"longest first": policy},
            {"w": world},
            num_sessions=12,
            seed=ranking.FIRST_SESSION,
            settings=EvaluationSettings(max_requests=most),
        )
        mean = result.row("longest first", "A", metric).mean
        assert mean == pytest.approx(again.row("longest first", "w", SECONDS).mean, rel=1e-5)
    assert result.row("random", "truth", SECONDS).mean != result.row("random", OTHER_SESSIONS, SECONDS).mean
    checked = {check["world"] for check in finished.checks if check["name"] == f"rank correlation, {SECONDS}"}
    assert checked == {"A", "judge-final-1", OTHER_SESSIONS}

    def never(self: RankingTable, setting: object, world: str, *work: object) -> None:
        raise AssertionError(f"{world}, {work[0]} was measured before")

    monkeypatch.setattr(RankingTable, "measure", never)
    assert complete(table.outline, table.runs(), table.run).checks == finished.checks
    with pytest.raises(ValueError, match="num_sessions was 12, now 13"):
        complete(table.outline, dataclasses.replace(table, num_sessions=13).runs(), table.run)
    (table.run.results / "ranking" / setting / "truth" / "MMR-0.json").unlink()
    with pytest.raises(AssertionError, match="truth, MMR was measured before"):
        complete(table.outline, table.runs(), table.run)
    page = results_page.page(table.run.results)
    assert "truth, other sessions" in page
    drawn = [path.name for path in results_page.draw_curves(table.run.results)]
    assert drawn == [f"ranking-{setting}.png"]


def test_a_log_without_a_known_truth_is_refused() -> None:
    with pytest.raises(ValueError, match="nobody knows that of somewhere: leave out --data"):
        RankingTable(source=LogSource(data=Path("somewhere")))
    with pytest.raises(ValueError, match="num_sessions must be at least 2"):
        RankingTable(num_sessions=1)
