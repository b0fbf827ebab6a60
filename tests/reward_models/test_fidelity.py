"""What is measured of users against a log: on planted users, whose figures are known."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsim_env.assumptions import DeclaredLeave
from recsim_env.candidates import LogRatePredictor
from recsim_env.known_worlds import short_video_world
from recsim_env.known_worlds.logs import synthetic_log
from recsim_env.types import Outcomes
from reward_models.calibration import expected_calibration_error
from reward_models.fidelity.card import fidelity_card
from reward_models.fidelity.depth import CLONE, LADDER, depth_figures, play_depth
from reward_models.fidelity.groups import VideoFacts, ratio_and_error
from reward_models.fidelity.logged import LEVELS, ece_floor, logged_fidelity, replay
from reward_models.fidelity.variance import between, shares
from reward_models.fidelity.verdicts import verdicts
from tests.helpers.planted import planted_world
from tests.helpers.planted_users import TEST_DAY, PlantedUsers, Urn, held_out, log_of

BETA_VARIANCE = 0.04
"""Of a Beta(2, 3) distribution, whose mean is 0.4."""


@pytest.fixture(scope="module")
def chance_U() -> np.ndarray:
    return np.random.default_rng(1).beta(2.0, 3.0, 2500)


def words(card: dict[str, Any]) -> dict[str, str]:
    return {claim["claim"]: claim["verdict"] for claim in verdicts(card)}


def asked(response: Any, chance_U: np.ndarray, **how: Any) -> dict[str, Any]:
    log = log_of(chance_U, **how)
    return {"logged": logged_fidelity(response, held_out(log), videos=VideoFacts.of(log, TEST_DAY))}


def test_a_constant_that_is_right_errs_as_much_as_the_floor_says() -> None:
    generator = np.random.default_rng(3)
    label_R, constant_R = generator.random(18_000) < 0.4, np.full(18_000, 0.4)
    floor, spread = ece_floor(constant_R)
    # 20 bins of 900 rows: the mean distance of a mean of 900 labels from its chance.
    assert floor == pytest.approx(math.sqrt(2 / math.pi) * math.sqrt(0.24 / 900), rel=0.15)
    assert abs(expected_calibration_error(constant_R, label_R) - floor) < 3 * spread
    assert expected_calibration_error(constant_R + 0.05, label_R) - floor > 0.03


def test_the_floor_is_that_of_the_chances_which_were_emitted() -> None:
    rare, few = ece_floor(np.full(18_000, 0.01))[0], ece_floor(np.full(500, 0.4))[0]
    assert rare == pytest.approx(math.sqrt(2 / math.pi) * math.sqrt(0.0099 / 900), rel=0.15)
    assert few == pytest.approx(math.sqrt(2 / math.pi) * math.sqrt(0.24 / 25), rel=0.15)
    assert ece_floor(np.full(500, 0.4)) == ece_floor(np.full(500, 0.4))


def test_a_ratio_errs_by_its_users() -> None:
    """400 users whose 10 rows are all alike are 400 rows: the error is that of 400."""
    label_R = np.repeat(np.arange(400) % 2, 10).astype(float)
    user_R = np.repeat(np.arange(400), 10)
    ratio, error = ratio_and_error(np.full(4000, 0.5), label_R, user_R)
    assert ratio == 1.0
    assert error == pytest.approx(1 / math.sqrt(400), rel=0.01)
    assert ratio_and_error(np.full(4, 0.5), np.zeros(4), np.arange(4)) == (None, None)
    assert ratio_and_error(np.full(4, 0.5), np.ones(4), np.zeros(4)) == (0.5, None), "one user"


def test_variance_between_users_is_found_under_the_noise_of_few_rows(chance_U: np.ndarray) -> None:
    generator, user_R = np.random.default_rng(2), np.repeat(np.arange(len(chance_U)), 4)
    label_R = (generator.random(len(user_R)) < chance_U[user_R]).astype(float)
    assert between(label_R, user_R) == pytest.approx(BETA_VARIANCE, rel=0.12)
    means_U = label_R.reshape(-1, 4).mean(1)
    assert means_U.var() > 2 * BETA_VARIANCE, "what means of four rows show is twice as much"
    alike_R = (generator.random(len(user_R)) < 0.4).astype(float)
    assert abs(between(alike_R, user_R)) < 0.004


def test_users_videos_and_the_rest_share_the_variance() -> None:
    generator = np.random.default_rng(4)
    user_R, item_R = generator.integers(1500, size=24_000), generator.integers(500, size=24_000)
    user_U, item_N = 2.0 * generator.normal(size=1500), generator.normal(size=500)
    logged_R = user_U[user_R] + item_N[item_R] + 2.0 * generator.normal(size=24_000)
    found = shares(logged_R, 0.5 * logged_R, user_R, item_R)
    part = {name: found["logged"][name] for name in ("user", "video", "residual")}
    assert part == pytest.approx({"user": 4 / 9, "video": 1 / 9, "residual": 4 / 9}, abs=0.03)
    assert found["user_ratio"] == pytest.approx(0.25)
    assert found["user_ratio_error"] == pytest.approx(0.0, abs=1e-6)
    alone = shares(logged_R, logged_R, np.zeros(24_000), item_R)
    assert alone["user_ratio"] is None, "one user"


def test_users_that_are_right_pass(chance_U: np.ndarray) -> None:
    found = words(asked(PlantedUsers(chance_U), chance_U))
    for claim in ("click rate", "rates by group", "click ECE", "click variance between users",
                  "watch_time variance between users"):  # fmt: skip
        assert found[claim] == "pass", claim
    assert "fail" not in found.values()
    assert found["long_view rate"] == "cannot say", "the log has none"
    assert found["click on the uniform slice"] == "cannot say"
    assert found["coverage of watch times"] == "cannot say", "these users do not tell quantiles"


def test_clicks_that_double_fail(chance_U: np.ndarray) -> None:
    card = asked(PlantedUsers(2 * chance_U), chance_U, uniform=True)
    found = words(card)
    for claim in ("click rate", "rates by group", "click ECE", "click on the uniform slice"):
        assert found[claim] == "fail", claim
    assert card["logged"]["signals"]["click"]["ratio"] == pytest.approx(
        np.minimum(2 * chance_U, 1).mean() / 0.4, rel=0.03
    )


def test_users_that_are_all_alike_fail_by_their_variance_alone(chance_U: np.ndarray) -> None:
    found = words(asked(PlantedUsers(np.full(len(chance_U), 0.4)), chance_U))
    assert {claim for claim, word in found.items() if word == "fail"} == {
        "click variance between users",
        "watch_time variance between users",
    }


def test_users_differ_as_they_act_and_not_as_they_are_expected_to(chance_U: np.ndarray) -> None:
    """Who a user is shows in what they do: the urn knows it of nobody, and its users differ as those of the log do."""
    card = asked(Urn(2.0, 3.0), chance_U, past=0, rows=12)
    assert card["logged"]["variance"]["click"]["user_ratio"] == pytest.approx(1.0, abs=0.12)
    assert words(card)["click variance between users"] == "pass"
    rows = replay(Urn(2.0, 3.0), held_out(log_of(chance_U, past=0, rows=12)))
    assert between(rows.mean_RF[:, 1], rows.user_R) < 0.8 * BETA_VARIANCE


def test_groups_tell_where_users_are_wrong(chance_U: np.ndarray) -> None:
    card = asked(PlantedUsers(chance_U, tab_factors=(0.5, 1.0)), chance_U)
    groups = {name: {one["group"]: one for one in some} for name, some in card["logged"]["groups"].items()}
    assert groups["tab"]["0"]["click"]["ratio"] == pytest.approx(0.5, rel=0.05)
    assert groups["tab"]["1"]["click"]["ratio"] == pytest.approx(1.0, rel=0.05)
    (claim,) = (one for one in verdicts(card) if one["claim"] == "rates by group")
    assert "tab 0 (click) 0.5" in claim["because"]


def test_every_row_has_its_group() -> None:
    log = log_of(np.full(60, 0.5), past=3, rows=9)
    videos, requests = VideoFacts.of(log, TEST_DAY), held_out(log)
    card = logged_fidelity(PlantedUsers(np.full(60, 0.5)), requests, videos=videos)
    rows = {name: {one["group"]: one["rows"] for one in some} for name, some in card["groups"].items()}
    assert rows["rows seen"] == {"2-4": 120, "5-9": 300, "10-19": 120}, "three before the day, then one by one"
    assert rows["activity"] == {"2-4": 540}
    assert rows["tab"] == {"0": 180, "1": 360}
    early, late = (log.rows[log.rows["date"] == date] for date in (TEST_DAY - 1, TEST_DAY))
    shown = early["item"].value_counts().reindex(late["item"], fill_value=0)
    assert rows["exposures"].get("1-9", 0) == int(shown.between(1, 9).sum())
    assert rows["exposures"].get("0", 0) == int((shown == 0).sum())
    assert sum(rows["exposures"].values()) == sum(rows["duration"].values()) == 540
    assert rows["duration"]["unknown"] == int((late["item"] % 4 == 0).sum())
    assert rows["duration"]["7-18s"] == int(((late["item"] < 8) & (late["item"] % 4 > 0)).sum())


class Timed(PlantedUsers):
    """Watches nothing with chance 0.3, and otherwise 0 to 10 s, all equally likely; says so, times a factor."""

    def __init__(self, factor: float = 1.0):
        super().__init__(np.full(3000, 0.5))
        self.factor = factor

    def outcomes(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor) -> Outcomes:
        signals_OF = torch.tensor([[0.0, 0.5], [5.0, 0.5]])
        probability_BKO = torch.tensor([0.3, 0.7]).expand(*items_BK.shape, 2)
        return Outcomes(signals_OF.expand(*items_BK.shape, 2, 2), probability_BKO)

    def watch_time_quantiles(self, probability_BKO: Tensor, items_BK: Tensor, level_L: Tensor) -> Tensor:
        return (self.factor * 10 * (level_L - 0.3).clamp(min=0.0) / 0.7).expand(*items_BK.shape, -1)


def test_levels_of_the_watch_time_are_covered_where_they_are_right() -> None:
    """Half the levels lie in the atom at 0 s, where no quantile is below what was watched."""
    log = log_of(np.full(3000, 0.5), past=1, rows=4)
    generator = np.random.default_rng(5)
    seconds = np.where(generator.random(len(log.rows)) < 0.3, 0.0, 10 * generator.random(len(log.rows)))
    log = dataclasses.replace(log, rows=log.rows.assign(watch_time=seconds.astype(np.float32)))
    claims = "coverage of watch times", "coverage by duration"
    for factor, verdict in ((1.0, "pass"), (1.5, "fail")):
        card = {"logged": logged_fidelity(Timed(factor), held_out(log), videos=VideoFacts.of(log, TEST_DAY))}
        found = card["logged"]["coverage"]
        assert [words(card)[claim] for claim in claims] == [verdict, verdict]
        assert found["overall"][:2] == pytest.approx(LEVELS[:2], abs=0.02), "in the atom"
        assert sum(bucket["rows"] for bucket in found["by_duration"]) == found["rows"] == 12_000


class OfALog(PlantedUsers):
    """Users who click half as often on what chance showed in the log, and nowhere else at all."""

    def __init__(self, chance_U: np.ndarray) -> None:
        super().__init__(0.0 * chance_U)
        self._logged_U = chance_U

    def as_logged(self, uniform: bool = False) -> PlantedUsers:
        return PlantedUsers((0.5 if uniform else 1.0) * self._logged_U)


def test_slates_of_a_log_are_asked_about_as_such_its_rankers_and_those_of_chance(chance_U: np.ndarray) -> None:
    log = log_of(chance_U, uniform=True)
    asked_of = held_out(log)
    found = logged_fidelity(OfALog(chance_U), asked_of)
    assert found["uniform"]["signals"]["click"]["ratio"] == pytest.approx(0.5, rel=0.05)
    uniform = int((log.rows["is_random"] & (log.rows["date"] == TEST_DAY)).sum())
    assert found["uniform"]["rows"] == uniform
    weight = uniform / found["rows"]
    assert found["signals"]["click"]["ratio"] == pytest.approx(1 - 0.5 * weight, rel=0.05)


def test_a_log_of_other_signals_or_other_users_is_refused(chance_U: np.ndarray) -> None:
    requests = held_out(log_of(chance_U[:20]))
    world = planted_world()
    with pytest.raises(ValueError, match="the log has 20 users, world 'planted' 7: they are not of the same data"):
        fidelity_card(world, requests)
    with pytest.raises(ValueError, match="the log has the signals watch_time, click, the users watch_time, like"):
        logged_fidelity(world.response, requests)


def test_signals_without_a_positive_and_single_users_say_nothing() -> None:
    card = asked(PlantedUsers(np.full(30, 0.1)), np.zeros(30))
    assert card["logged"]["signals"]["click"]["ratio"] is None
    assert card["logged"]["signals"]["click"]["auc"] is None
    claims = {claim["claim"]: claim for claim in verdicts(card)}
    assert claims["click rate"]["verdict"] == "cannot say"
    assert claims["click rate"]["because"] == "no positive click on the test days"
    assert claims["click variance between users"]["verdict"] == "cannot say"
    alone = held_out(log_of(np.full(2, 0.5), rows=400)).only(users=[0])
    card = {"logged": logged_fidelity(PlantedUsers(np.full(2, 0.5)), alone)}
    claims = {claim["claim"]: claim for claim in verdicts(card)}
    assert claims["click rate"]["verdict"] == "cannot say"
    assert claims["click rate"]["because"] == "all rows are of one user, who tells nothing of others"
    assert claims["click variance between users"]["verdict"] == "cannot say"


def test_the_truth_fails_nothing_on_its_own_log() -> None:
    """Nor with what the card knows nothing of: tastes that drift, slates of several places, a hidden trait."""
    truth = short_video_world(num_users=300, num_items=200, seed=3)
    log = synthetic_log(truth, num_sessions=400, days=4, seed=3)
    card = {"logged": logged_fidelity(truth.response, held_out(log), videos=VideoFacts.of(log, TEST_DAY))}
    found = words(card)
    assert "fail" not in found.values()
    for claim in ("click rate", "long_view rate", "rates by group", "click ECE", "click variance between users"):
        assert found[claim] == "pass", claim


def test_sessions_rise_with_the_ranking_where_users_stay_for_what_they_watch() -> None:
    """The same videos and users; in one world a dull place makes users leave, in the other the time that it takes."""
    world = planted_world(num_items=60)
    guess_N = torch.arange(60) + 1.0 + 15.0 * torch.randn(60, generator=torch.Generator().manual_seed(2))
    known_NF = torch.stack([guess_N, torch.zeros(60)], 1)
    world = world.replace(predictor=LogRatePredictor(known_NF, torch.zeros_like(known_NF)))
    dull = world.replace(leave=DeclaredLeave(per_place=0.0, per_second=0.0, per_dull_place=0.1, dull_below=120.0))
    hasty = world.replace(leave=DeclaredLeave(per_place=0.0, per_second=0.004, per_dull_place=0.0))
    for one, verdict in ((dull, "pass"), (hasty, "fail")):
        figures = depth_figures(play_depth({"w": one}, num_sessions=60), "w")
        assert words({"depth": figures})["session_length by ranking"] == verdict
        assert [step["better"] for step in figures["steps"][:3]] == list(LADDER[1:])
    best, sort = (figures["policies"][name]["session_watch_time"] for name in ("best", "sort"))
    assert best["mean"] > sort["mean"]
    knowing = play_depth({"w": planted_world(num_items=60)}, num_sessions=20)
    steps = depth_figures(knowing, "w")["steps"]
    assert [step["mean"] for step in steps if step["better"] == "best"] == [0.0, 0.0], "the sort knows all"


def test_the_logs_own_ranker_is_held_to_the_declared_length() -> None:
    metrics = {"session_watch_time": {"mean": 9.0, "low": 8.0, "high": 10.0}}
    declared = {"leave": {"session_cut": "30min"}}
    for mean, verdict in ((13.0, "pass"), (11.0, "fail")):
        length = {"mean": mean, "low": mean - 0.4, "high": mean + 0.4}
        card = {"depth": {"policies": {CLONE: {**metrics, "session_length": length}}}}
        found = {claim["claim"]: claim["verdict"] for claim in verdicts(card, declared)}
        assert found["session_length as declared"] == verdict
        assert words(card)["session_length as declared"] == "cannot say", "nothing is declared"
