"""When a figure passes, fails, or says nothing."""

from typing import Any

import pytest

from reward_models.fidelity.drift import probe_drift
from reward_models.fidelity.verdicts import counts, verdicts
from tests.helpers.planted import planted_world
from tests.reward_models.test_learned_world import tiring_world


def claim_of(card: dict[str, Any], name: str, declared: dict[str, Any] | None = None) -> dict[str, Any]:
    (found,) = (claim for claim in verdicts(card, declared) if claim["claim"] == name)
    return found


def rated(ratio: float, error: float) -> dict[str, Any]:
    return {"logged": {"signals": {"click": {"ratio": ratio, "ratio_error": error, "ece": None}}}}


@pytest.mark.parametrize(
    ("ratio", "error", "verdict"),
    [
        (1.04, 0.01, "pass"),
        (0.96, 0.025, "pass"),
        (1.051, 0.001, "fail"),
        (1.06, 0.02, "fail"),  # within luck of the bar, but the log is large enough to hold the world to it
        (1.0, 0.03, "cannot say"),  # a world that is right would miss the bar too often
        (1.09, 0.03, "cannot say"),
        (1.12, 0.03, "fail"),  # further off than luck takes a world that is right
        (0.88, 0.03, "fail"),
    ],
)
def test_a_bar_is_never_moved_and_luck_decides_nothing(ratio: float, error: float, verdict: str) -> None:
    assert claim_of(rated(ratio, error), "click rate")["verdict"] == verdict


def test_an_empty_card_claims_nothing() -> None:
    claims = verdicts({})
    assert {claim["verdict"] for claim in claims} == {"cannot say"}
    assert all(claim["because"] and claim["figure"] is None for claim in claims)
    assert counts(claims) == f"0 pass, 0 fail, {len(claims)} cannot say"


def test_an_earlier_versions_card_is_read_and_says_so() -> None:
    old = {"logged": {"rows": 9, "signals": {"click": {"ratio": 1.0, "ece": 0.01}}, "watch_time": {"logged_mean": 9.0}}}
    claims = [claim for claim in verdicts(old) if "earlier version" in claim["because"]]
    assert {"click rate", "click ECE", "rates by group", "coverage by duration"} <= {c["claim"] for c in claims}
    assert {claim["verdict"] for claim in claims} == {"cannot say"}


def test_nine_groups_in_ten_are_asked_for_of_those_with_positives_enough() -> None:
    def card(off: int, positives: int = 200) -> dict[str, Any]:
        ratios = [1.2] * off + [1.05] * (20 - off)
        groups = [{"group": str(i), "click": {"ratio": r, "positives": positives}} for i, r in enumerate(ratios)]
        few = {"group": "few", "click": {"ratio": 3.0, "positives": 199}}
        return {"logged": {"groups": {"tab": [*groups, few]}}}

    assert claim_of(card(2), "rates by group")["verdict"] == "pass"
    failed = claim_of(card(3), "rates by group")
    assert failed["verdict"] == "fail"
    assert failed["figure"] == pytest.approx(17 / 20)
    assert claim_of(card(9, positives=199), "rates by group")["verdict"] == "cannot say"


def test_what_is_declared_is_no_finding() -> None:
    card = {"logged": {"signals": {}}, "probes": {"uniform": {"1": {"click": 0.2, "watch_time": 9.0}}}}
    found = claim_of(card, "click on the uniform slice", {"uniform_rates": {"click": 0.18}})
    assert found["verdict"] == "cannot say"
    assert found["because"].endswith("declared: 0.180, any videos of the catalogue get 0.200")


def test_a_users_first_rows_are_met_as_later_ones() -> None:
    def card(first: float, later: float, error: float) -> dict[str, Any]:
        ends = [{"group": group, "click": {"ratio": ratio, "ratio_error": error}} for group, ratio in
                (("0", first), ("10-19", later))]  # fmt: skip
        return {"logged": {"groups": {"rows seen": ends}}}

    assert claim_of(card(0.89, 1.06, 0.03), "click by rows seen")["verdict"] == "fail"
    assert claim_of(card(0.99, 1.01, 0.01), "click by rows seen")["verdict"] == "pass"
    assert claim_of(card(0.97, 1.03, 0.04), "click by rows seen")["verdict"] == "cannot say"


def test_probes_that_fall_fail_and_those_that_stay_pass() -> None:
    still, tiring = planted_world(num_items=400, seconds=5.0), tiring_world()
    for world, verdict in ((still, "pass"), (tiring, "fail")):
        card = {"probes": probe_drift(world, num_sessions=64)}
        assert claim_of(card, "watch_time of fixed videos")["verdict"] == verdict
        assert claim_of(card, "like of fixed videos")["verdict"] == "pass", "likes do not tire"
        assert claim_of(card, "click of fixed videos")["verdict"] == "cannot say", "there are none"
    fallen = claim_of(card, "watch_time of fixed videos")
    assert fallen["figure"] < 0.3
    taught = claim_of({**card, "log_has_sessions": True}, "watch_time of fixed videos")
    assert taught["verdict"] == "cannot say"
    assert taught["because"].endswith("the log has sessions, which may have taught it")


@pytest.mark.parametrize(
    ("found", "truth", "verdict"),
    [
        (0.97, 0.98, "pass"),
        (0.90, 0.98, "fail"),  # the truth stays
        (0.80, 0.76, "pass"),
        (0.70, 0.76, "pass"),
        (0.85, 0.76, "fail"),  # by less than two thirds of the way
        (0.66, 0.76, "fail"),  # by more than four thirds
        (1.24, 0.76, "fail"),  # the other way
        (1.00, 0.76, "fail"),
    ],
)
def test_fixed_videos_move_as_they_do_in_truth_where_it_is_known(found: float, truth: float, verdict: str) -> None:
    def probes(last: float) -> dict[str, Any]:
        return {"greedy": {"1": {"click": 0.4}, "50": {"click": 0.4 * last}}}

    claims = verdicts({"probes": probes(found), "log_has_sessions": True}, true_probes=probes(truth))
    (claim,) = (claim for claim in claims if claim["claim"] == "click of fixed videos")
    assert claim["verdict"] == verdict
    assert claim["because"].endswith(f"in truth {truth:.3f}")


def test_a_step_that_falls_fails_and_one_that_may_be_nothing_does_not_pass() -> None:
    def card(*ends: tuple[float, float]) -> dict[str, Any]:
        steps = [
            {
                "worse": "a",
                "better": "b",
                "metric": "session_length",
                "mean": (low + high) / 2,
                "low": low,
                "high": high,
            }
            for low, high in ends
        ]
        return {"depth": {"steps": steps}}

    for ends, verdict in (
        ([(0.1, 0.2), (0.01, 0.4)], "pass"),
        ([(0.1, 0.2), (-0.1, 0.4)], "cannot say"),
        ([(0.1, 0.2), (-0.1, 0.4), (-0.3, -0.1)], "fail"),
    ):
        assert claim_of(card(*ends), "session_length by ranking")["verdict"] == verdict
    assert claim_of(card((0.1, 0.2)), "session_watch_time by ranking")["verdict"] == "cannot say"
