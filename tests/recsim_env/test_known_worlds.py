"""The known worlds: their law against closed forms and Monte Carlo, their dials, their oracles."""

import itertools
import math
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recsim_env.candidates import AllCandidates, LogRatePredictor, UniformCandidates
from recsim_env.known_worlds import (
    TINY_SIZES,
    greedy_oracle,
    pointwise_oracle,
    short_video_world,
    tiny_optimum,
    tiny_world,
)
from recsim_env.known_worlds.parameters import TASTE_SIZE, ShortVideoParameters
from recsim_env.known_worlds.response import ShortVideoResponse
from recsim_env.known_worlds.watch_time import Play, draw, quadrature, swipe_law
from recsim_env.simulator import SessionState, Simulator
from recsim_env.types import CONTEXT, NO_ITEM, ResponseModel
from recsim_env.world import World

PARAMETERS_SHA256 = "ca6efe6cd8157ba2447e908c8e7c53cb2fa505d973ffe0acb1858ec5546b196f"


def small_world(**dials: float) -> World:
    return short_video_world(num_users=120, num_items=300, seed=4, **dials)


def response_of(world: World) -> ShortVideoResponse:
    assert isinstance(world.response, ShortVideoResponse)
    return world.response


def context(rows: int) -> Tensor:
    context_BX = torch.zeros(rows, len(CONTEXT))
    context_BX[:, CONTEXT.index("hour")] = 16.0  # where the daily swing is nil
    return context_BX


def test_the_parameters_are_those_that_results_were_made_with() -> None:
    assert ShortVideoParameters().digest() == PARAMETERS_SHA256


# The law of watch time.


def a_play(**changes: float) -> Play:
    values = {
        "watch_probability": 0.6,
        "location": math.log(20.0),
        "scale": 0.8,
        "duration": 40.0,
        "long_view_at": 18.0,
        "replay_share": 0.5,
        "replay_scale": 0.2,
    }
    return Play(**{name: torch.full((1, 1), value) for name, value in (values | changes).items()})


def test_watch_time_has_the_closed_form_shares() -> None:
    swipe, play, count = swipe_law(1.9, 0.3), a_play(), 400_000
    grid_B1 = ((torch.arange(count) + 0.5) / count).unsqueeze(1)
    watch_B1, ended_B1 = draw(play, swipe, grid_B1)

    def below(seconds: float) -> float:
        return 1 / (1 + (20.0 / seconds) ** (1 / 0.8))

    ended = 0.6 * (1 - below(0.985 * 40))
    assert float((watch_B1 < 7).float().mean()) == pytest.approx(0.4 + 0.6 * below(7), abs=1e-4)
    assert float((watch_B1 < 18).float().mean()) == pytest.approx(0.4 + 0.6 * below(18), abs=1e-4)
    assert float(ended_B1.float().mean()) == pytest.approx(ended, abs=1e-4)
    assert float((watch_B1 > 1.03 * 40).float().mean()) == pytest.approx(ended / 2, abs=1e-4)
    assert float(watch_B1[grid_B1 < 0.4].max()) <= 7.0

    seconds_O, probability_O = (tensor.flatten() for tensor in quadrature(play, swipe))
    assert float(probability_O.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float((seconds_O * probability_O).sum()) == pytest.approx(float(watch_B1.mean()), rel=0.005)
    assert float(probability_O[seconds_O < 18].sum()) == pytest.approx(0.4 + 0.6 * below(18), abs=1e-5)


def test_more_interest_means_fewer_swipes_and_longer_plays_under_the_same_luck() -> None:
    swipe = swipe_law(1.9, 0.3)
    luck_B1 = torch.rand(5000, 1, generator=torch.Generator().manual_seed(0))
    dull_B1, keen_B1 = (
        draw(a_play(watch_probability=p, location=m), swipe, luck_B1)[0] for p, m in ((0.3, 2.0), (0.7, 3.5))
    )
    watched_B1 = luck_B1 >= 0.7  # by both
    assert bool((keen_B1 >= dull_B1)[watched_B1].all())
    assert float(keen_B1.mean()) > 2 * float(dull_B1.mean())


# The users of the short-video world.


def test_outcomes_are_the_law_that_respond_draws_from() -> None:
    world = small_world()
    model, draws = response_of(world), 60_000
    state_BS = model.start(torch.arange(4))
    state_BS[:, TASTE_SIZE : 3 * TASTE_SIZE] = 0.5  # drifted and satiated
    state_BS[:, -1] = 0.3
    state_BS[2:, 3 * TASTE_SIZE + 2] = 8.0  # two users who like nearly everything, so that rare signals show
    items_BK = torch.arange(24).reshape(4, 6) * 7
    outcomes = model.outcomes(state_BS, context(4), items_BK)
    mean_BKF = (outcomes.signals_BKOF * outcomes.probability_BKO.unsqueeze(-1)).sum(2)
    generator = torch.Generator().manual_seed(1)
    for b in range(4):
        rows = torch.full((draws,), b)
        uniform_BKJ = torch.rand(draws, 6, model.num_draws, generator=generator)
        signals_BKF = model.respond(state_BS[rows], context(draws), items_BK[rows], uniform_BKJ)
        error_KF = signals_BKF.std(dim=0) / draws**0.5
        # 5 standard errors; a rare signal may have no positive at all, so its error has a floor.
        floor_KF = (mean_BKF[b].clamp(max=1) / draws).sqrt()
        allowed_KF = 5 * torch.maximum(error_KF, floor_KF) + 0.01 * mean_BKF[b] * (torch.arange(8) == 0)
        assert bool(((signals_BKF.mean(dim=0) - mean_BKF[b]).abs() <= allowed_KF).all())


def test_signals_follow_from_watch_time() -> None:
    world = small_world()
    model, rows = response_of(world), 4000
    generator = torch.Generator().manual_seed(2)
    items_BK = torch.randint(300, (rows, 6), generator=generator)
    uniform_BKJ = torch.rand(rows, 6, model.num_draws, generator=generator)
    state_BS = model.start(torch.randint(120, (rows,), generator=generator))
    watch, click, long_view, *_ = model.respond(state_BS, context(rows), items_BK, uniform_BKJ).unbind(-1)
    duration = world.catalogue.duration_N[items_BK]
    assert torch.equal(click == 1, watch >= 7)
    assert torch.equal(long_view == 1, watch >= torch.minimum(torch.tensor(18.0), 0.95 * duration))
    near_end = ((watch >= 0.985 * duration) & (watch <= 1.03 * duration)).float().mean()
    just_before = ((watch >= 0.94 * duration) & (watch < 0.985 * duration)).float().mean()
    assert float(near_end) > 2 * float(just_before)


@pytest.mark.parametrize("name", ["short_video", "tiny"])
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    world = small_world() if name == "short_video" else tiny_world()
    model, rows, places = world.response, 33, 3
    generator = torch.Generator().manual_seed(3)
    users_B = torch.randint(len(world.users), (rows,), generator=generator)
    items_BK = torch.randint(len(world.catalogue), (rows, places), generator=generator)
    uniform_BKJ = torch.rand(rows, places, model.num_draws, generator=generator)
    seen_BK = torch.ones(rows, places, dtype=torch.bool)

    def play(b: slice) -> tuple[Tensor, ...]:
        state_BS = model.start(users_B[b])
        context_BX = context(len(state_BS))
        for _ in range(3):
            signals_BKF = model.respond(state_BS, context_BX, items_BK[b], uniform_BKJ[b])
            state_BS = model.observe(state_BS, context_BX, items_BK[b], signals_BKF, seen_BK[b])
        outcomes = model.outcomes(state_BS, context_BX, items_BK[b])
        return signals_BKF, state_BS, outcomes.probability_BKO

    together = play(slice(None))
    for b in range(rows):
        for whole, alone in zip(together, play(slice(b, b + 1)), strict=True):
            assert torch.equal(whole[b], alone[0])


@pytest.mark.parametrize("name", ["short_video", "tiny"])
def test_unseen_places_change_nothing(name: str) -> None:
    world = small_world() if name == "short_video" else tiny_world()
    model = world.response
    assert isinstance(model, ResponseModel)
    state_BS = model.start(torch.zeros(2, dtype=torch.int64))
    items_BK = torch.tensor([[1, 2, 3], [1, 6, 7]])
    seen_BK = torch.tensor([[True, False, False]] * 2)
    signals_BKF = torch.ones(2, 3, len(model.signals))
    after_BS = model.observe(state_BS, context(2), items_BK, signals_BKF, seen_BK)
    assert torch.equal(after_BS[0], after_BS[1])
    assert not torch.equal(after_BS, state_BS)
    unseen_BS = model.observe(state_BS, context(2), items_BK, signals_BKF, torch.zeros_like(seen_BK))
    assert torch.equal(unseen_BS, state_BS)


def interest_in_slate(model: ShortVideoResponse, user: int, items_BK: Tensor) -> Tensor:
    """Interest recovered from the chance of not being swiped away."""
    users_B = torch.full((len(items_BK),), user)
    outcomes = model.outcomes(model.start(users_B), context(len(items_BK)), items_BK)
    watch_BK = 1 - outcomes.probability_BKO[..., 0].double()
    p = model.parameters
    return (torch.log(watch_BK / (1 - watch_BK)) - p.usual_interest) / p.interest_in_swipe + p.usual_interest


def test_list_effect_is_the_decayed_sum_over_earlier_tags() -> None:
    model = response_of(small_world(list_effect=2.0))
    items_K = torch.tensor([3, 14, 15, 92, 65, 35])
    shown = interest_in_slate(model, 5, items_K.unsqueeze(0))[0]
    alone = interest_in_slate(model, 5, items_K.unsqueeze(1))[:, 0]
    tags, memory = model.tag_N[items_K].tolist(), model.parameters.list_memory
    pair_KK = model.pair_TT[tags][:, tags]
    assert not torch.equal(pair_KK, pair_KK.T)  # else the order of the pair would go untested
    for k in range(6):
        expected = sum(2.0 * memory ** (k - j - 1) * float(pair_KK[j, k]) for j in range(k))
        assert float(shown[k] - alone[k]) == pytest.approx(expected, abs=2e-3)


def test_dials_at_zero_switch_each_mechanism_off() -> None:
    model = response_of(small_world(list_effect=0, drift=0, hidden_trait=0, auxiliary=0))
    slate_BK = torch.tensor([[3, 14, 15], [15, 3, 14]])
    first, second = interest_in_slate(model, 5, slate_BK)
    assert torch.equal(first, second[[1, 2, 0]])

    state_BS = model.start(torch.tensor([5]))
    signals_BKF, seen_BK = torch.ones(1, 3, 8), torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(model.observe(state_BS, context(1), slate_BK[:1], signals_BKF, seen_BK), state_BS)

    trait = 3 * TASTE_SIZE + 1
    other_BS = state_BS.clone()
    other_BS[:, trait] += 5
    items_BK = slate_BK[:1]
    assert torch.equal(model.interest(state_BS, context(1), items_BK), model.interest(other_BS, context(1), items_BK))
    like_O = model.outcomes(state_BS, context(1), items_BK).signals_BKOF[..., 3]
    keener_BS = state_BS.clone()
    keener_BS[:, 3 * TASTE_SIZE] += 2  # general interest
    assert torch.equal(like_O, model.outcomes(keener_BS, context(1), items_BK).signals_BKOF[..., 3])

    on = response_of(small_world())
    assert not torch.equal(on.interest(state_BS, context(1), items_BK), on.interest(other_BS, context(1), items_BK))
    assert not torch.equal(
        on.outcomes(state_BS, context(1), items_BK).signals_BKOF[..., 3],
        on.outcomes(keener_BS, context(1), items_BK).signals_BKOF[..., 3],
    )


def test_feedback_moves_taste_mood_and_satiation() -> None:
    model = response_of(small_world())
    state_BS, items_BK = model.start(torch.tensor([5])), torch.tensor([[3, 14, 15]])
    seen_BK = torch.ones(1, 3, dtype=torch.bool)
    loved = model.observe(state_BS, context(1), items_BK, torch.ones(1, 3, 8), seen_BK)
    hated = model.observe(state_BS, context(1), items_BK, torch.zeros(1, 3, 8), seen_BK)
    likeness = (model.item_ND[3, :TASTE_SIZE] * (loved - hated)[0, TASTE_SIZE : 2 * TASTE_SIZE]).sum()
    assert float(likeness) > 0
    assert float(loved[0, -1]) > 0 > float(hated[0, -1])
    assert torch.equal(loved[:, 2 * TASTE_SIZE : 3 * TASTE_SIZE], hated[:, 2 * TASTE_SIZE : 3 * TASTE_SIZE])


def test_features_do_not_hold_the_hidden_trait() -> None:
    world = short_video_world(num_users=4000, num_items=4000)
    model = response_of(world)
    pairs = (
        (world.catalogue.features_ND, model.item_ND[:, TASTE_SIZE + 1]),
        (world.users.features_UD, model.user_UD[:, TASTE_SIZE + 1]),
    )
    for features_ND, trait_N in pairs:
        table = torch.cat([features_ND, trait_N.unsqueeze(1)], dim=1)
        assert float(torch.corrcoef(table.T)[-1, :-1].abs().max()) < 0.06


@pytest.mark.parametrize("dial", ["list_effect", "drift", "hidden_trait", "auxiliary"])
def test_a_dial_out_of_range_is_refused(dial: str) -> None:
    with pytest.raises(ValueError, match=f"{dial} must lie in 0"):
        short_video_world(**{dial: -1.0})


def test_a_stored_world_plays_the_same(tmp_path: Path) -> None:
    world = small_world()
    again = World.load(world.save(tmp_path / "world"))
    results = []
    for each in (world, again):
        simulator = Simulator(each)
        state = simulator.start(8, 1)
        for _ in range(3):
            state, feedback = simulator.step(state, state.request.candidates_BC[:, :6])
        results.append((feedback.signals_BKF, state.response_BS, state.request.predicted_BCF))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


# Oracles.


def expected_watch(simulator: Simulator, state: SessionState, items_BK: Tensor) -> float:
    return float(simulator.expected(state, items_BK.unsqueeze(1)).watch_time_BG.mean())


def test_the_list_effect_is_worth_a_tenth_between_the_oracles() -> None:
    gains = []
    for dial in (0.0, 0.5, 1.0, 2.0):
        simulator = Simulator(short_video_world(num_users=500, num_items=1000, list_effect=dial))
        state = simulator.start(48, 7)
        best = expected_watch(simulator, state, greedy_oracle(simulator, state))
        gains.append(best / expected_watch(simulator, state, pointwise_oracle(simulator, state)) - 1)
    assert gains[0] < 0.005
    assert gains[0] < gains[1] < gains[2] < gains[3]
    assert gains[2] >= 0.10


@pytest.mark.parametrize(("dial", "share"), [(0.0, 1.0), (1.0, 0.98), (2.0, 0.96)])
def test_greedy_oracle_comes_close_to_the_best_of_all_slates(dial: float, share: float) -> None:
    simulator = Simulator(small_world(list_effect=dial), num_candidates=6, slate_size=3)
    state = simulator.start(40, 11)
    orders_GK = torch.tensor(list(itertools.permutations(range(6), 3)))
    lists_BGK = state.request.candidates_BC[:, orders_GK]
    best_B = simulator.expected(state, lists_BGK).watch_time_BG.max(dim=1).values
    found_BK = greedy_oracle(simulator, state)
    found_B = simulator.expected(state, found_BK.unsqueeze(1)).watch_time_BG[:, 0]
    assert bool((found_B <= best_B + 1e-3).all())
    assert float((found_B / best_B).mean()) > share - 1e-4
    assert all(len(set(slate)) == 3 for slate in found_BK.tolist())


# The tiny world.


def tiny_session_watch_time(choose: str, sessions: int = 20_000) -> tuple[float, float]:
    """Mean session watch time over simulated sessions, and its standard error."""
    world = tiny_world()
    simulator = Simulator(world, **TINY_SIZES)  # type: ignore[arg-type]
    slates_URK = tiny_optimum(world).slates_URK
    generator = torch.Generator().manual_seed(5)
    state, going_on_B = simulator.start(sessions, 100), torch.ones(sessions, dtype=torch.bool)
    watch_B = torch.zeros(sessions)
    for request in range(3):
        if choose == "optimum":
            items_BK = slates_URK[state.request.user_B, request]
        elif choose == "pointwise":
            items_BK = pointwise_oracle(simulator, state)
        else:
            items_BK = torch.rand(sessions, 8, generator=generator).topk(3).indices
        state, feedback = simulator.step(state, items_BK)
        watch_B += feedback.signals_BKF[..., 0].sum(dim=1) * going_on_B
        going_on_B &= ~feedback.left_B
    return float(watch_B.mean()), float(watch_B.std() / sessions**0.5)


def test_the_simulator_reaches_the_enumerated_optimum() -> None:
    optimum = tiny_optimum(tiny_world()).session_watch_time
    mean, error = tiny_session_watch_time("optimum")
    assert mean == pytest.approx(optimum, abs=4 * error)
    assert 4 * error < 0.02 * optimum


@pytest.mark.parametrize(("choose", "at_most"), [("pointwise", 0.9), ("random", 0.7)])
def test_simple_rankers_stay_clearly_below_the_optimum(choose: str, at_most: float) -> None:
    mean, _ = tiny_session_watch_time(choose)
    assert mean < at_most * tiny_optimum(tiny_world()).session_watch_time


def test_the_optimum_is_that_of_all_plans_and_all_outcomes() -> None:
    """Two requests of two places: every plan, every outcome, by plain loops."""
    world = tiny_world()
    model, slates = world.response, list(itertools.permutations(range(8), 2))

    def play(state_S: Tensor, slate: tuple[int, ...], shown: Collection[int] = ()) -> tuple[float, float, Tensor]:
        """Expected seconds, chance of still being there, next state; what was shown before earns nothing."""
        items_BK, state_BS = torch.tensor([slate]), state_S.unsqueeze(0)
        outcomes = model.outcomes(state_BS, context(1), items_BK)
        seconds, there = 0.0, 0.0
        is_first_K = torch.tensor([item not in shown for item in slate])
        signals_BKOF = outcomes.signals_BKOF * is_first_K[:, None, None]
        stay_KO = world.leave.stay(context(1), signals_BKOF)[0]
        signals_KOF, chance_KO = signals_BKOF[0], outcomes.probability_BKO[0]
        for first, second in itertools.product(range(2), repeat=2):
            chance = float(chance_KO[0, first] * chance_KO[1, second])
            goes_on = float(stay_KO[0, first])
            seconds += chance * float(signals_KOF[0, first, 0] + goes_on * signals_KOF[1, second, 0])
            there += chance * goes_on * float(stay_KO[1, second])
        seen_BK = torch.ones(1, 2, dtype=torch.bool)
        after = model.observe(state_BS, context(1), items_BK, torch.zeros(1, 2, 3), seen_BK)
        return seconds, there, after[0]

    start_S = model.start(torch.tensor([1]))[0]
    second_best: dict[tuple[tuple[float, ...], frozenset[int]], float] = {}
    best = 0.0
    for slate in slates:
        seconds, there, after_S = play(start_S, slate)
        key = tuple(after_S.tolist()), frozenset(slate)
        if key not in second_best:
            second_best[key] = max(play(after_S, other, slate)[0] for other in slates)
        best = max(best, seconds + there * second_best[key])
    optimum = tiny_optimum(world, slate_size=2, horizon=2)
    assert float(optimum.watch_time_U[1]) == pytest.approx(best, rel=1e-5)


# The default recommender.


def test_candidates_leave_out_what_was_shown_until_nothing_else_is_left() -> None:
    source = UniformCandidates(torch.zeros(20), seed=1)
    shown_BM = torch.full((2, 15), NO_ITEM)
    shown_BM[0, :12] = torch.arange(12)
    state_BS = source.start(torch.zeros(2, dtype=torch.int64))
    items_BC, score_BC = source.retrieve(state_BS, shown_BM, torch.tensor([0.3, 0.3]), 10)
    assert set(items_BC[0, :8].tolist()) == set(range(12, 20))
    assert set(items_BC[0, 8:].tolist()) <= set(range(12))
    assert bool((score_BC.diff(dim=1) <= 0).all())
    assert all(len(set(row)) == 10 for row in items_BC.tolist())
    assert len(set(items_BC[1].tolist()) & set(range(12))) > 0  # empty places of the list hide nothing


def test_candidates_come_in_proportion_to_reach() -> None:
    reach_N = torch.zeros(100)
    reach_N[:50] = math.log(3.0)
    nothing_BM, state_BS, uniform_B = torch.full((1, 1), NO_ITEM), torch.zeros(1, 0), torch.tensor([0.4])
    first = [
        int(UniformCandidates(reach_N, seed=seed).retrieve(state_BS, nothing_BM, uniform_B, 1)[0])
        for seed in range(3000)
    ]
    error = (0.75 * 0.25 / len(first)) ** 0.5
    assert sum(item < 50 for item in first) / len(first) == pytest.approx(0.75, abs=4 * error)


def test_rates_are_counted_towards_the_overall_mean() -> None:
    items_P = torch.tensor([0, 0, 0, 1])
    signals_PF = torch.tensor([[8.0, 1.0], [8.0, 1.0], [8.0, 0.0], [0.0, 0.0]])
    predictor = LogRatePredictor.count(items_P, signals_PF, num_items=3, prior_count=2.0)
    mean_BCF, error_BCF = predictor.predict(torch.zeros(1, 0), context(1), torch.tensor([[0, 1, 2]]))
    assert mean_BCF[0, :, 0].tolist() == pytest.approx([(24 + 12) / 5, 12 / 3, 6.0])
    assert mean_BCF[0, :, 1].tolist() == pytest.approx([(2 + 1) / 5, 1 / 3, 0.5])
    # Never seen: the overall variance 12 of the watch time over two imagined impressions.
    assert float(error_BCF[0, 2, 0]) == pytest.approx(math.sqrt(12 / 2))
    assert float(error_BCF[0, 0, 1]) < float(error_BCF[0, 2, 1])


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="empty log"):
        LogRatePredictor.count(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2), 3)
    with pytest.raises(ValueError, match="set num_candidates=8, got 5"):
        AllCandidates(8).retrieve(torch.zeros(1, 0), torch.zeros(1, 1), torch.zeros(1), 5)
    with pytest.raises(ValueError, match="num_items=3"):
        short_video_world(num_items=3)
    with pytest.raises(ValueError, match="two types"):
        tiny_world(num_users=1)
