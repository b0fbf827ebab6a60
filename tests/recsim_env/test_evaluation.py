"""Evaluation against closed forms, a slow twin that plays one session at a time, and textbook intervals."""

import copy
import dataclasses
import itertools
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.baselines import PointwiseGreedy, RandomSlate, RetrieverOrder
from recsim_env import session_metrics
from recsim_env.evaluation import Contender, EvaluationResult, EvaluationSettings, evaluate
from recsim_env.known_worlds import pointwise_oracle, short_video_world
from recsim_env.rewards import SignalReward
from recsim_env.session_metrics import MAIN_METRICS, SessionMetrics, gini
from recsim_env.simulator import Simulator
from recsim_env.types import WATCH_TIME, Decision, Policy, Request
from recsim_env.world import World
from tests.helpers.learned import shared_learned_worlds
from tests.helpers.planted import SIGNALS, planted_world

SMALL = EvaluationSettings(cold_start_below=6, duration_edges=(20.0, 40.0), max_requests=6)


class Stubborn:
    """Shows item 3 first in every slate, an item twice, and item 29 whether it is a candidate or not."""

    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        first_B = request.candidates_BC[:, 0]
        return Decision(torch.stack([torch.full_like(first_B, 3), first_B, torch.full_like(first_B, 29)], 1))


@pytest.mark.parametrize("leaving", ["weighted", "drawn"])
def test_session_length_and_watch_time_have_their_closed_forms(leaving: Literal["weighted", "drawn"]) -> None:
    """Constant hazard and 4 s a video, none of them shown twice: the number of videos is geometric."""
    hazard, sessions = 0.1, 2000
    world = planted_world(hazard=hazard, seconds=4.0, num_items=240)
    settings = EvaluationSettings(leaving=leaving)
    result = evaluate(
        {"p": RandomSlate(3)}, {"w": world}, num_sessions=sessions, seed=0, settings=settings, progress=False
    )
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
    assert result.row("p", "w", "evaluator_over_truth").mean == pytest.approx(3 / (1 + stay + stay**2), rel=1e-4)
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
    settings = dataclasses.replace(SMALL, leaving="drawn")
    result = evaluate({"p": policy}, {"w": world}, num_sessions=40, seed=9, settings=settings, progress=False)
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


def named_metrics(**kinds: tuple[str, ...]) -> set[str]:
    """The metrics that the module's docstring names, ``<kind>`` replaced by each of its members."""
    text = str(session_metrics.__doc__).split("Metrics (")[1].split("Shape legend")[0].partition("):")[2]
    words = re.split(r",|\band\b", re.sub(r"\([^)]*\)", "", text).strip().rstrip("."))
    found = {word.strip() for word in words}
    for kind, members in kinds.items():
        found = {name.replace(f"<{kind}>", member) for name in found for member in members}
    return found


def test_the_docstring_names_every_metric_and_no_other() -> None:
    reward = SignalReward({"watch_time": 1.0, "like": 20.0}, SIGNALS)
    named = named_metrics(signal=("like",), name=("watch_time", "like"), duration=("0-20s", "20-40s", "40s+"))
    assert named == set(run(reward=reward, settings=SMALL).cells["p", "w"].metrics)
    assert set(MAIN_METRICS) <= named_metrics(signal=("click", "long_view", "like"), name=("",), duration=("",))


def test_a_metric_of_something_that_nothing_counts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table = SessionMetrics.table
    for pair, message in (
        (("sene", "sessions"), r"'seen_share' is made of 'sene', which nothing counts \(did you mean 'seen'\?\)"),
        (("seen", "requets"), r"'seen_share' is made of 'requets', .*did you mean 'requests'"),
    ):
        monkeypatch.setattr(SessionMetrics, "table", lambda self, pair=pair: {**table(self), "seen_share": pair})
        with pytest.raises(ValueError, match=message):
            run()


def test_metrics_that_a_world_cannot_have_are_left_out() -> None:
    everything = set(run().cells["p", "w"].metrics)
    bare = planted_world().replace(evaluator=None)
    no_log, no_truth = torch.zeros(30, dtype=torch.int64), EvaluationSettings(true_values=False)
    for changes, missing in (
        ({"worlds": {"w": bare}}, {"evaluator_value", "evaluator_gap", "evaluator_over_truth"}),
        ({"settings": no_truth}, {"true_list_value", "evaluator_gap", "evaluator_over_truth"}),
        ({"logged_impressions_N": no_log}, {"cold_start_share"}),
    ):
        assert everything - set(run(**changes).cells["p", "w"].metrics) == missing


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


def test_no_column_pays_for_repeats() -> None:
    """Six videos of 4 s: the same one in every place of every slate earns 4 s a session, whatever is counted."""
    world = planted_world(hazard=0.0, seconds=4.0)

    def again(request: Request, generator: torch.Generator) -> Decision:
        return Decision(torch.full((len(request.user_B), 6), 7))

    settings = EvaluationSettings(max_requests=5, slate_size=6)
    contenders = {"again": Contender(policies=[again], outside=True)}
    found = evaluate(contenders, {"w": world}, num_sessions=50, seed=3, settings=settings, progress=False)
    seconds = found.row("again", "w", "session_watch_time").mean
    assert seconds == pytest.approx(4.0, abs=3.5 * 8 / math.sqrt(12 * 50))  # uniform in (0, 8), 50 times
    assert found.row("again", "w", "session_reward").mean == pytest.approx(seconds)
    assert found.row("again", "w", "list_reward").mean == pytest.approx(seconds / 5)
    assert found.row("again", "w", "true_list_value").mean == pytest.approx(4 / 5)
    assert found.row("again", "w", "like_per_session").mean <= 1.0
    assert found.row("again", "w", "repeat_share").mean == pytest.approx(29 / 30)


@pytest.mark.parametrize("name", ["seen", "requests", "reward"])
def test_a_signal_may_bear_the_name_of_a_count(name: str) -> None:
    def counts(signal: str) -> dict[str, float]:
        world = planted_world()
        response = copy.copy(world.response)
        response.signals = (WATCH_TIME, signal)
        world = world.replace(signals=response.signals, response=response)
        found = evaluate({"p": RandomSlate(3)}, {"w": world}, num_sessions=30, seed=2, settings=SMALL, progress=False)
        return {row.metric.replace(f"{signal}_", "x_"): row.mean for row in found.rows()}

    assert counts(name) == pytest.approx(counts("like"), nan_ok=True)
