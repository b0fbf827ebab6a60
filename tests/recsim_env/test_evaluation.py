"""Evaluation against closed forms, a slow twin that plays one session at a time, and textbook intervals."""

import csv
import dataclasses
import itertools
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from agents.baselines import PointwiseGreedy, RandomSlate, RetrieverOrder
from recsim_env.evaluation import Contender, EvaluationResult, EvaluationSettings, evaluate, gini, judge
from recsim_env.files import write_text
from recsim_env.known_worlds import pointwise_oracle, short_video_world
from recsim_env.results import Cell
from recsim_env.rewards import SignalReward
from recsim_env.simulator import SessionState, Simulator
from recsim_env.types import Decision, Policy, Request
from recsim_env.world import World
from tests.helpers.learned import shared_learned_worlds
from tests.helpers.planted import SIGNALS, planted_world

SMALL = EvaluationSettings(cold_start_below=6, duration_edges=(20.0, 40.0), max_requests=6)


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


def test_session_length_and_watch_time_have_their_closed_forms() -> None:
    """Constant hazard and 4 s a video: the number of videos is geometric."""
    hazard, sessions = 0.1, 2000
    world = planted_world(hazard=hazard, seconds=4.0)
    result = evaluate({"p": RandomSlate(3)}, {"w": world}, num_sessions=sessions, seed=0, progress=False)
    stay = math.exp(-hazard)
    videos = (1 - stay**180) / (1 - stay)
    requests = (1 - stay**180) / (1 - stay**3)
    for metric, truth in (
        ("videos_seen", videos),
        ("session_length", requests),
        ("session_watch_time", 4 * videos),
    ):
        row = result.row("p", "w", metric)
        error = (row.high - row.low) / 2 / 1.96
        assert abs(row.mean - truth) < 3.5 * error
        assert error < 0.04 * truth
    assert result.row("p", "w", "true_list_value").mean == pytest.approx(4 * (1 + stay + stay**2), rel=1e-5)
    assert result.row("p", "w", "evaluator_value").mean == pytest.approx(12.0)
    assert result.row("p", "w", "evaluator_gap").mean == pytest.approx(12 - 4 * (1 + stay + stay**2), rel=1e-4)
    like_rate = float(world.response.like_N.mean())  # type: ignore[attr-defined]
    assert result.row("p", "w", "like_rate").mean == pytest.approx(like_rate, abs=0.01)


def slow_twin(world: World, policy: Policy, num_sessions: int, seed: int) -> dict[str, float]:
    """Every count once more, one session and one place at a time."""
    total: defaultdict[str, float] = defaultdict(float)
    exposures: defaultdict[int, int] = defaultdict(int)
    logged = np.bincount(world.users.histories.item_P.numpy(), minlength=len(world.catalogue))
    features = world.catalogue.features_ND.numpy()
    simulator = Simulator(world, num_candidates=10, slate_size=3, history_length=4, max_requests=6)
    for session in range(seed, seed + num_sessions):
        state, seen_before, left = simulator.start(1, session), set(), False
        requests = 0
        while not left and requests < 6:
            items = policy(state.request, torch.Generator()).items_BK
            candidates = state.request.candidates_BC[0].tolist()
            state, feedback = simulator.step(state, items)
            left = bool(feedback.left_B)
            requests += 1
            for place, item in enumerate(items[0].tolist()):
                if not feedback.seen_BK[0, place]:
                    continue
                watch, like = feedback.signals_BKF[0, place].tolist()
                bucket = "0-20s" if 2 * (item + 1) < 20 else "20-40s" if 2 * (item + 1) < 40 else "40s+"
                total["seen"] += 1
                total["watch"] += watch
                total["like"] += like
                total[f"seen/{bucket}"] += 1
                total[f"watch/{bucket}"] += watch
                total["outside"] += item not in candidates
                total["repeats"] += item in seen_before
                total["cold"] += logged[item] < 6
                seen_before.add(item)
                exposures[item] += 1
            for i, j in itertools.combinations(items[0].tolist(), 2):
                total["pairs"] += 1
                total["tags"] += i % 3 != j % 3
                norms = np.linalg.norm(features[i]) * np.linalg.norm(features[j])
                total["distance"] += 1 - features[i] @ features[j] / norms
        total["requests"] += requests
        total["truncated"] += not left
    counts = np.array([exposures[item] for item in range(len(world.catalogue))], dtype=float)
    spread = np.abs(counts[:, None] - counts[None]).mean() / (2 * counts.mean())
    return {
        "session_watch_time": total["watch"] / num_sessions,
        "session_length": total["requests"] / num_sessions,
        "videos_seen": total["seen"] / num_sessions,
        "watch_time_per_video": total["watch"] / total["seen"],
        "truncated_share": total["truncated"] / num_sessions,
        "like_rate": total["like"] / total["seen"],
        "like_per_session": total["like"] / num_sessions,
        "repeat_share": total["repeats"] / total["seen"],
        "outside_share": total["outside"] / total["seen"],
        "cold_start_share": total["cold"] / total["seen"],
        "tag_diversity": total["tags"] / total["pairs"],
        "feature_diversity": total["distance"] / total["pairs"],
        **{f"exposure_share/{b}": total[f"seen/{b}"] / total["seen"] for b in ("0-20s", "20-40s", "40s+")},
        **{f"watch_time_per_video/{b}": total[f"watch/{b}"] / total[f"seen/{b}"] for b in ("0-20s", "20-40s", "40s+")},
        "catalogue_coverage": float((counts > 0).mean()),
        "exposure_gini": float(spread),
    }


@pytest.mark.parametrize("policy", [Stubborn(), RetrieverOrder(3)], ids=["stubborn", "retriever"])
def test_every_count_agrees_with_a_slow_twin(policy: Policy) -> None:
    world = planted_world()
    result = evaluate({"p": policy}, {"w": world}, num_sessions=40, seed=9, settings=SMALL, progress=False)
    twin = slow_twin(world, policy, 40, 9)
    for metric, value in twin.items():
        assert result.row("p", "w", metric).mean == pytest.approx(value, rel=1e-5, abs=1e-6), metric


def test_batch_size_changes_nothing_for_a_deterministic_policy() -> None:
    def rows(batch_size: int) -> list[float]:
        settings = EvaluationSettings(batch_size=batch_size, max_requests=6)
        result = evaluate(
            {"p": PointwiseGreedy(3)},
            {"w": planted_world()},
            num_sessions=50,
            seed=1,
            settings=settings,
            progress=False,
        )
        return [row.mean for row in result.rows()]

    np.testing.assert_array_equal(rows(50), rows(7))
    np.testing.assert_array_equal(rows(50), rows(1))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not() -> None:
    def run(seed: int) -> str:
        result = evaluate(
            {"p": RandomSlate(3)},
            {"w": planted_world()},
            num_sessions=60,
            seed=seed,
            settings=SMALL,
            progress=False,
        )
        return json.dumps([row.mean for row in result.rows()])

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_the_interval_of_a_mean_is_students_t(result: EvaluationResult) -> None:
    values = result.cells["greedy", "A"].ratios["session_watch_time"][0][0]
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    row = result.row("greedy", "A", "session_watch_time")
    assert (row.low, row.high) == pytest.approx((low, high))
    assert (row.interval, row.seeds, row.sessions) == ("sessions", 1, 300)


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


def test_seeds_are_the_unit_where_there_are_several(result: EvaluationResult) -> None:
    cell = result.cells["random", "A"]
    per_seed = cell.ratios["session_watch_time"][0].mean(1)
    low, high = stats.t.interval(0.95, 2, per_seed.mean(), stats.sem(per_seed))
    row = result.row("random", "A", "session_watch_time")
    assert (row.interval, row.seeds) == ("seeds", 3)
    assert (row.low, row.high) == pytest.approx((low, high))
    per_session = cell.ratios["session_watch_time"][0].mean(0)
    session = stats.t.interval(0.95, 299, per_session.mean(), stats.sem(per_session))
    assert (row.session_low, row.session_high) == pytest.approx(session)
    assert row.widest == (min(low, session[0]), max(high, session[1]))
    difference = result.difference("random", "retriever", "A")
    baseline = result.row("retriever", "A", "session_watch_time").mean
    assert (difference.low, difference.high) == pytest.approx((low - baseline, high - baseline))


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


def test_totals_have_no_interval_over_sessions(result: EvaluationResult) -> None:
    row = result.row("greedy", "A", "catalogue_coverage")
    assert math.isnan(row.low)
    assert math.isnan(row.session_low)
    over_seeds = result.row("random", "A", "catalogue_coverage")
    assert over_seeds.low < over_seeds.mean < over_seeds.high
    assert not math.isnan(over_seeds.widest[0])


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


def test_several_reward_components_are_reported_one_by_one() -> None:
    reward = SignalReward({"watch_time": 1.0, "like": 20.0}, SIGNALS)
    result = evaluate(
        {"p": RetrieverOrder(3)},
        {"w": planted_world()},
        num_sessions=50,
        seed=0,
        reward=reward,
        progress=False,
    )

    def mean(metric: str) -> float:
        return result.row("p", "w", metric).mean

    assert mean("reward/watch_time") == pytest.approx(mean("session_watch_time"))
    assert mean("reward/like") == pytest.approx(mean("like_per_session"))
    assert mean("session_reward") == pytest.approx(mean("session_watch_time") + 20 * mean("like_per_session"))
    assert mean("list_reward") == pytest.approx(mean("session_reward") / mean("session_length"))


def test_the_known_world_orders_random_pointwise_sort_and_oracle() -> None:
    world = short_video_world(num_users=200, num_items=300)
    policies = {
        "random": RandomSlate(6),
        "greedy": PointwiseGreedy(6),
        "oracle": Contender(oracle=pointwise_oracle, feedback="branched"),
    }
    settings = EvaluationSettings(num_candidates=20, max_requests=20)
    result = evaluate(policies, {"truth": world}, num_sessions=150, seed=0, settings=settings, progress=False)
    for better, worse in (("greedy", "random"), ("oracle", "greedy")):
        assert result.difference(better, worse, "truth").low > 0
        assert result.difference(better, worse, "truth", "true_list_value").low > 0
    # Realised and expected seconds of the shown lists agree: one is drawn from the other.
    for policy in policies:
        row = result.row(policy, "truth", "list_reward")
        assert row.mean == pytest.approx(result.row(policy, "truth", "true_list_value").mean, rel=0.1)


def test_gini_against_all_pairs() -> None:
    counts = np.random.default_rng(1).integers(0, 9, size=50).astype(float)
    pairs = np.abs(counts[:, None] - counts[None]).mean()
    assert gini(counts) == pytest.approx(pairs / (2 * counts.mean()))
    assert math.isnan(gini(np.zeros(3)))


def run(**changes: object) -> EvaluationResult:
    arguments = {
        "policies": {"p": RetrieverOrder(3)}, "worlds": {"w": planted_world()}, "num_sessions": 4, "seed": 0,
    }  # fmt: skip
    return evaluate(**{**arguments, "progress": False, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: run(policies={}), "need policies and worlds, got 0 and 1"),
        (lambda: run(num_sessions=1), "need num_sessions >= 2"),
        (
            lambda: run(policies={"p": RetrieverOrder(4)}),
            r"policy 'p' in world 'planted': .*\s*.*has shape \(8, 4\), need \(8, 3\)\s*2. build it for slates of 3",
        ),
        (lambda: run(logged_impressions_N=torch.ones(3)), "each of the 30 items, got shape \\(3,\\)"),
        (lambda: run(policies={"p": Contender()}), "or an oracle, not both"),
        (lambda: EvaluationSettings(batch_size=0), "batch_size must be at least 1"),
        (lambda: EvaluationSettings(duration_edges=(5.0, 5.0)), "must rise strictly"),
        (lambda: run().row("q", "w", "session_length"), "no policy 'q' in this result; it holds p"),
        (lambda: run().row("p", "w", "session_lenght"), "no metric 'session_lenght'"),
    ],
)
def test_bad_input_gets_one_clear_sentence(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_only_the_same_sessions_are_paired() -> None:
    world = planted_world()
    many = evaluate({"p": RetrieverOrder(3)}, {"w": world}, num_sessions=20, seed=0, progress=False)
    few = evaluate({"q": RetrieverOrder(3)}, {"w": world}, num_sessions=10, seed=0, progress=False)
    both = dataclasses.replace(many, cells={**many.cells, **few.cells})
    assert not both.paired("p", "q", "w")
    with pytest.raises(ValueError, match="'p' played 20 sessions in 'w' and 'q' 10: only the same"):
        both.difference("p", "q", "w")


def answers(choose: Callable[[Request], Tensor]) -> Policy:
    return lambda request, generator: Decision(choose(request))


def positions(request: Request) -> Tensor:
    return request.predicted_BCF[..., 0].topk(3, dim=1).indices


def whole_catalogue(request: Request) -> Tensor:
    return torch.arange(3).repeat(len(request.user_B), 1) * 14 + 1


def written_into(request: Request) -> Tensor:
    request.history_BH[:, 0] = 2
    return request.candidates_BC[:, :3]


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (positions, "below 10, the number of candidates, .* these look like positions"),
        (
            lambda request: request.candidates_BC[:, :3] + 25,
            r"slates hold item codes \d+..\d+, the catalogue has 0..29",
        ),
        (lambda request: request.candidates_BC[:, :3].float(), "items_BK is torch.float32, need torch.int64"),
        (written_into, "the call changes the request it was given"),
    ],
)
def test_a_policy_that_cannot_be_measured_is_refused_before_it_plays(
    choose: Callable[[Request], Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate({"p": answers(choose)}, {"w": planted_world()}, num_sessions=4, seed=0, settings=SMALL, progress=False)


def test_a_generator_over_the_whole_catalogue_is_measured_like_any_other() -> None:
    """Also where its codes are low, if it says so, and where the world has an evaluator."""
    learned = shared_learned_worlds()["A"]
    low = answers(lambda request: torch.arange(6).repeat(len(request.user_B), 1))
    generators = {"all": answers(lambda r: 25 * torch.arange(6).repeat(len(r.user_B), 1)), "low": low}
    with pytest.raises(ValueError, match=r"(?s)'low' in world .* declared by Contender"):
        evaluate(generators, {"A": learned}, num_sessions=4, seed=0, progress=False)
    generators["low"] = Contender(policies=[low], outside=True)
    found = evaluate(generators, {"A": learned}, num_sessions=40, seed=0, progress=False)
    for name in generators:
        assert 0.3 < found.row(name, "A", "outside_share").mean < 1
        assert math.isfinite(found.row(name, "A", "evaluator_value").mean)
    planted = evaluate(
        {"p": answers(whole_catalogue)}, {"w": planted_world()}, num_sessions=4, seed=0, settings=SMALL, progress=False
    )
    assert planted.row("p", "w", "outside_share").mean > 0


def test_repeats_are_warned_of_and_counted() -> None:
    same_video = answers(lambda request: request.candidates_BC[:, :1].expand(-1, 3).contiguous())
    with pytest.warns(UserWarning, match="policy 'p' in world 'planted': a slate shows the same video twice"):
        found = evaluate(
            {"p": same_video}, {"w": planted_world()}, num_sessions=20, seed=0, settings=SMALL, progress=False
        )
    assert found.row("p", "w", "repeat_share").mean > 0.5
