"""Declared leaving: as long as real sessions, longer for better slates, and no gift to long videos.

Shape legend: B requests, C candidates, P rows.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from agents.baselines import PointwiseGreedy, RandomSlate
from recsim_env.assumptions import SESSION_REQUESTS, DeclaredLeave, SessionCut, hazard_per_place
from recsim_env.data import LoggedDataset
from recsim_env.evaluation import Contender, EvaluationResult, EvaluationSettings, evaluate
from recsim_env.known_worlds import pointwise_oracle, short_video_world
from recsim_env.known_worlds.logs import synthetic_log
from recsim_env.slates import best_first
from recsim_env.types import Decision, Request
from recsim_env.world import World
from tests.helpers.planted import planted_world

CUTS: list[tuple[SessionCut, float]] = [("5min", 4.8), ("30min", 13.6), ("2h", 29.0)]


def played(policies: Mapping[str, Any], world: World, num_sessions: int, **how: Any) -> EvaluationResult:
    settings = EvaluationSettings(true_values=False, **how)
    return evaluate(policies, {"w": world}, num_sessions=num_sessions, seed=50_000, settings=settings, progress=False)


def planted_session(leave: DeclaredLeave, seconds: float) -> float:
    """Mean requests of sessions of at most 50 in which every video is watched for 0 to twice so many seconds."""
    world = planted_world(seconds=seconds, num_items=400).replace(leave=leave)
    sizes = {"num_candidates": 20, "slate_size": 6, "max_requests": 50, "roulette_below": 0.0}
    return played({"p": RandomSlate(6)}, world, 200, **sizes).row("p", "w", "session_length").mean


def mean_hazard(leave: DeclaredLeave, watch_time_P: Tensor) -> float:
    stay_P = leave.stay(torch.zeros(len(watch_time_P), 7), watch_time_P.view(-1, 1, 1))[:, 0]
    return float(-stay_P.to(torch.float64).log().mean())


@pytest.mark.parametrize(("cut", "requests"), CUTS)
@pytest.mark.parametrize("seconds", [4.0, 25.0])
def test_calibrated_sessions_have_the_length_that_was_counted(cut: SessionCut, requests: float, seconds: float) -> None:
    leave = DeclaredLeave.calibrated(torch.linspace(0.0, 2 * seconds, 1001), cut)
    until_50 = requests * (1 - (1 - 1 / requests) ** 50)  # the usual end of a session cuts some short
    assert planted_session(leave, seconds) == pytest.approx(until_50, rel=0.005)
    assert set(SESSION_REQUESTS) == set(get_args(SessionCut)) == {name for name, _ in CUTS}


def test_calibration_makes_the_mean_hazard_of_the_rows_the_declared_one() -> None:
    watch_time_P = torch.tensor([0.0, 2.0, 8.0, 30.0, 300.0])  # mean 68 s, dull below 340 s
    leave = DeclaredLeave.calibrated(watch_time_P)
    assert mean_hazard(leave, watch_time_P) == pytest.approx(hazard_per_place("30min"), rel=1e-4)
    assert hazard_per_place("30min") == pytest.approx(0.0127, abs=5e-5)
    assert leave.per_second * 68 == pytest.approx(0.05 * hazard_per_place("30min"))


@pytest.fixture(scope="module")
def log() -> LoggedDataset:
    return synthetic_log(short_video_world(seed=7), num_sessions=2500, days=3, seed=7)


def test_sessions_under_the_logging_policy_are_as_long_as_real_ones(log: LoggedDataset) -> None:
    requests_n = log.rows.groupby("session")["request"].nunique()
    error = requests_n.std() / math.sqrt(len(requests_n))
    assert abs(requests_n.mean() - 13.6) + 2 * error < 1.36


def test_the_defaults_are_calibrated_to_the_known_world(log: LoggedDataset) -> None:
    watch_time_P = torch.tensor(log.rows["watch_time"].to_numpy())
    assert mean_hazard(DeclaredLeave(), watch_time_P) == pytest.approx(hazard_per_place("30min"), rel=0.05)


class ByKey:
    """Sorts the candidates by a number of each item, by default by predicted watch time; lowest first."""

    def __init__(self, key_N: Tensor | None = None):
        self.key_N = key_N

    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        key_BC = request.predicted_BCF[..., 0] if self.key_N is None else self.key_N[request.candidates_BC]
        return Decision(best_first(request, -key_BC, 6))


def test_depth_and_watch_time_rise_together_and_long_videos_buy_neither() -> None:
    world = short_video_world(num_users=500, num_items=1000, seed=2)
    ladder = {
        "lowest": ByKey(),
        "random": RandomSlate(6),
        "sort": PointwiseGreedy(6),
        "oracle": Contender(oracle=pointwise_oracle),
    }
    longest = {"longest": ByKey(-world.catalogue.duration_N)}
    result = played({**ladder, **longest}, world, 300)
    names = list(ladder)
    for metric, at_least in (("session_length", 0.02), ("session_watch_time", 0.1)):
        for worse, better in itertools.pairwise(names):
            gain = result.difference(better, worse, "w", metric)
            assert gain.low > at_least * result.row(worse, "w", metric).mean, (metric, worse, better)
        assert result.difference("longest", "sort", "w", metric).high < 0
    assert result.difference("longest", "random", "w", "watch_time_per_video").low > 0, "longer videos, longer watched"


def test_beyond_dull_below_seconds_only_cost() -> None:
    leave = DeclaredLeave.calibrated(torch.tensor([10.0, 40.0]))
    dull_below = 5 * 25.0
    lengths = [planted_session(leave, seconds) for seconds in (5.0, 60.0, dull_below, 2 * dull_below, 500.0)]
    assert lengths[0] < lengths[1] < lengths[2] > lengths[3] > lengths[4]


@pytest.mark.parametrize("watch_time", [[], [0.0, 0.0], [5.0, -1.0], [5.0, float("nan")], [float("inf")]])
def test_watch_times_that_tell_nothing_are_refused(watch_time: list[float]) -> None:
    with pytest.raises(ValueError, match="leaving needs finite watch times with a mean above 0 s"):
        DeclaredLeave.calibrated(torch.tensor(watch_time))


def test_an_unknown_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="sessions are counted with cuts of 5min, 30min, 2h, got '1h'"):
        DeclaredLeave.calibrated(torch.ones(3), "1h")  # type: ignore[arg-type]
