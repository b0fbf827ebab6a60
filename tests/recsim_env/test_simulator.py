"""The simulator against a slow twin, its own distribution, and the rules it promises to keep."""

import math

import numpy as np
import pytest
import torch

from recsim_env.assumptions import DeclaredContext, DeclaredLeave, TagRepeatEffect
from recsim_env.checkers import check_expected
from recsim_env.data.schema import USUAL_SIGNALS
from recsim_env.known_worlds import short_video_world
from recsim_env.randomness import address, next_key, uniform
from recsim_env.simulator import SECONDS_BETWEEN_REQUESTS, SessionState, Simulator
from recsim_env.types import NO_ITEM, Request
from recsim_env.world import World
from tests.helpers.planted import planted_world


@pytest.fixture(scope="module")
def world() -> World:
    return short_video_world(num_users=200, num_items=400, seed=3)


@pytest.fixture(scope="module")
def simulator(world: World) -> Simulator:
    return Simulator(world, num_candidates=30, slate_size=6, history_length=20, max_requests=20)


def slates(state: SessionState, salt: int = 0) -> torch.Tensor:
    """A slate for each session that depends on that session alone."""
    request = state.request
    order = uniform(address(state.key_B, salt), request.candidates_BC.shape[1]).argsort(dim=1)
    return request.candidates_BC.gather(1, order[:, :6])


def same_bytes(a: SessionState, b: SessionState) -> bool:
    pairs = zip([*a.tensors(), *a.request], [*b.tensors(), *b.request], strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("num_sessions", [2, 3, 17, 64, 250])
def test_a_row_equals_the_same_session_alone(simulator: Simulator, num_sessions: int) -> None:
    batch = simulator.start(num_sessions, seed=11)
    rows = sorted({0, num_sessions // 2, num_sessions - 1})
    alone = {row: simulator.start(1, seed=11 + row) for row in rows}
    for _ in range(8):
        for row in rows:
            assert same_bytes(batch.select(torch.tensor([row])), alone[row])
        batch, feedback = simulator.step(batch, slates(batch))
        batch = simulator.restart(batch, feedback.left_B)
        for row in rows:
            stepped, own = simulator.step(alone[row], slates(alone[row]))
            assert torch.equal(own.signals_BKF[0], feedback.signals_BKF[row])
            alone[row] = simulator.restart(stepped, own.left_B)


def test_beginning_anew_within_a_step_is_a_restart_after_it(simulator: Simulator) -> None:
    state = simulator.start(50, seed=2)
    for _ in range(6):
        items = slates(state)
        begin = torch.rand(50, generator=torch.Generator().manual_seed(int(state.request_index_B.sum()))) < 0.3
        stepped, feedback = simulator.step(state, items)
        state, at_once = simulator.step(state, items, begin)
        assert same_bytes(state, simulator.restart(stepped, begin))
        assert torch.equal(at_once.signals_BKF, feedback.signals_BKF)
    assert bool(begin.any())
    assert int(state.session_B.max()) > 1


def test_changing_one_slate_leaves_every_other_session_alone(simulator: Simulator) -> None:
    state = simulator.start(40, seed=5)
    other = state
    for _ in range(5):
        items = slates(state)
        changed = slates(other)
        changed[7] = changed[7].flip(0)
        state, _ = simulator.step(state, items)
        other, _ = simulator.step(other, changed)
    keep = torch.arange(40) != 7
    assert same_bytes(state.select(keep), other.select(keep))
    assert not same_bytes(state.select(~keep), other.select(~keep))


def test_stepping_does_not_touch_the_state_it_was_given(simulator: Simulator) -> None:
    state = simulator.start(8, seed=0)
    before = [t.clone() for t in state.tensors()]
    simulator.step(state, slates(state))
    simulator.restart(state, torch.ones(8, dtype=torch.bool))
    assert all(torch.equal(a, b) for a, b in zip(before, state.tensors(), strict=True))


def test_one_step_against_a_slow_twin(simulator: Simulator) -> None:
    """Leaving, history, clock and shown items, one session and one place at a time."""
    world = simulator.world
    state = simulator.start(60, seed=2)
    for _ in range(4):
        items = slates(state)
        following, feedback = simulator.step(state, items)
        per_place = world.response.num_draws + 2
        draws = uniform(state.key_B, 6 * per_place + 1)[:, :-1].reshape(60, 6, per_place)
        drawn = world.response.respond(state.response_BS, state.request.context_BX, items, draws[..., :-2].contiguous())
        stay = world.leave.stay(state.request.context_BX, drawn)
        for row in range(60):
            history = [int(i) for i in state.request.history_BH[row]]
            watched, left = 0.0, False
            for place in range(6):
                assert bool(feedback.seen_BK[row, place]) is (not left)
                if left:
                    assert not feedback.signals_BKF[row, place].any()
                    continue
                assert torch.equal(feedback.signals_BKF[row, place], drawn[row, place])
                history = [*history[1:], int(items[row, place])]
                watched += float(drawn[row, place, 0])
                left = not bool(draws[row, place, -1] < stay[row, place])
            assert bool(feedback.left_B[row]) is left
            assert following.request.history_BH[row].tolist() == history
            clock = float(following.clock_s_B[row] - state.clock_s_B[row])
            assert clock == pytest.approx(watched + SECONDS_BETWEEN_REQUESTS, abs=1e-2)
            assert set(items[row].tolist()) <= set(following.memory.shown_BM[row].tolist())
        state = simulator.restart(following, feedback.left_B)


def test_those_who_stay_play_on_as_they_do_in_a_step(simulator: Simulator) -> None:
    state = simulator.start(300, seed=8)
    items = slates(state)
    stepped, feedback = simulator.step(state, items)
    through, everything, stay_BK = simulator.stay_through(state, items)
    stays = ~feedback.left_B
    assert 0.2 < stays.float().mean() < 0.95
    assert same_bytes(stepped.select(stays), through.select(stays))
    seen_BK1 = feedback.seen_BK.unsqueeze(-1)
    assert torch.equal(everything.signals_BKF * seen_BK1, feedback.signals_BKF)
    assert everything.seen_BK.all()
    assert not everything.left_B.any()
    expected = simulator.world.leave.stay(state.request.context_BX, everything.signals_BKF)
    assert torch.equal(stay_BK, expected)


def test_candidates_are_new_distinct_and_best_first(simulator: Simulator) -> None:
    state = simulator.start(32, seed=9)
    for _ in range(10):
        for row in range(32):
            candidates = state.request.candidates_BC[row].tolist()
            assert len(set(candidates)) == 30
            assert not set(candidates) & (set(state.memory.shown_BM[row].tolist()) - {NO_ITEM})
        state, feedback = simulator.step(state, slates(state))
        state = simulator.restart(state, feedback.left_B)


def test_branches_share_their_luck_unless_asked_otherwise(simulator: Simulator) -> None:
    state = simulator.start(6, seed=1)
    items = slates(state)
    branched = simulator.branch(state, 4)
    for g in range(4):
        assert same_bytes(branched.select(torch.arange(6) * 4 + g), state)
    _, once = simulator.step(state, items)
    _, copies = simulator.step(branched, items.repeat_interleave(4, dim=0))
    assert torch.equal(copies.signals_BKF, once.signals_BKF.repeat_interleave(4, dim=0))
    apart = simulator.branch(state, 4, noise="independent")
    _, varied = simulator.step(apart, items.repeat_interleave(4, dim=0))
    varied_signals = varied.signals_BKF.unflatten(0, (6, 4))
    assert torch.equal(varied_signals[:, 0], once.signals_BKF)
    assert not torch.equal(varied_signals[:, 0], varied_signals[:, 1])
    with pytest.raises(ValueError, match="noise must be"):
        simulator.branch(state, 2, noise="other")  # type: ignore[arg-type]


def test_branches_of_branches_draw_anew(simulator: Simulator) -> None:
    state = simulator.start(3, seed=1)
    twice = simulator.branch(simulator.branch(state, 3, noise="independent"), 4, noise="independent")
    keys = twice.key_B.unflatten(0, (3, 12))
    assert all(len(set(row.tolist())) == 12 for row in keys)
    assert torch.equal(keys[:, 0], state.key_B)
    shared = simulator.branch(simulator.branch(state, 3, noise="independent"), 4)
    assert all(len(set(row.tolist())) == 3 for row in shared.key_B.unflatten(0, (3, 12)))


class Counted:
    """A candidate source and a predictor that note when they are asked."""

    def __init__(self, world: World):
        self.world, self.asked = world, []

    def __getattr__(self, name: str) -> object:
        if name in ("retrieve", "predict"):
            self.asked.append(name)
        return getattr(self.world.candidates if name in ("retrieve", "score") else self.world.predictor, name)


def counted_world(world: World) -> tuple[World, list[str]]:
    counted = Counted(world)
    return world.replace(candidates=counted, predictor=counted), counted.asked


def test_nothing_is_retrieved_or_predicted_unless_it_is_read(world: World) -> None:
    world, asked = counted_world(world)
    simulator = Simulator(world, num_candidates=20, slate_size=3, history_length=10, max_requests=9)
    state = simulator.start(5, seed=0)
    items = torch.arange(15).view(5, 3)
    for _ in range(3):
        state, _ = simulator.step(state, items, torch.arange(5) == 2)
        state = simulator.branch(state.select(torch.arange(5)), 2).select(torch.arange(0, 10, 2))
        simulator.expected(state, items.unsqueeze(1))
        assert state.request.history_BH.shape == (5, 10)
    assert not asked
    for name in ("candidates_BC", "retriever_score_BC", "candidate_features_BCD"):
        getattr(state.request, name)
    assert asked == ["retrieve"]
    assert len(list(state.request)) == 11
    assert asked == ["retrieve", "predict"]
    assert state.select(torch.tensor([1])).request.predicted_BCF.shape[0] == 1
    assert asked == ["retrieve", "predict"]


def test_reading_early_or_late_changes_no_byte(simulator: Simulator) -> None:
    """Copies, branches, selections and replaced rows, of a state whose request was read and of one where it was not."""
    rows, done = torch.tensor([6, 0, 3]), torch.tensor([True, False] * 4)

    def results(read: bool) -> list[SessionState]:
        state = simulator.start(8, seed=21)
        items = torch.arange(48).view(8, 6)
        found = []
        for _ in range(3):
            if read:
                list(state.request)
            found += [state, state.select(rows), simulator.branch(state, 2, noise="independent")]
            found += [state.put(rows, simulator.start(3, seed=5)), simulator.restart(state, done)]
            state, _ = simulator.step(state, items, done)
        return found

    for early, late in zip(results(True), results(False), strict=True):
        assert same_bytes(early, late)


def test_a_request_is_a_named_tuple_that_cannot_be_changed(simulator: Simulator) -> None:
    request = simulator.start(4, seed=0).request
    assert len(request) == len(request._fields) == 11
    assert list(request._asdict()) == list(request._fields)
    twin = Request(*request)
    assert all(torch.equal(a, b) for a, b in zip(request, twin, strict=True))
    changed = request._replace(retriever_score_BC=torch.zeros(4, 30))
    assert not changed.retriever_score_BC.any()
    assert torch.equal(changed.predicted_BCF, request.predicted_BCF)
    with torch.inference_mode():
        fresh = simulator.start(4, seed=0).request
        assert not fresh.predicted_BCF.is_inference()
    with pytest.raises(AttributeError, match=r"use request\._replace"):
        request.user_B = request.user_B
    with pytest.raises(ValueError, match=r"not \['scores'\]"):
        request._replace(scores=request.retriever_score_BC)
    with pytest.raises(ValueError, match=r"missing \['context_BX'"):
        Request(request.user_B, request.user_features_BD)
    with pytest.raises(ValueError, match="put together from tensors"):
        twin.offering(torch.zeros(4, 1, dtype=torch.int64))


def test_items_offered_are_what_they_are_as_candidates(simulator: Simulator) -> None:
    request = simulator.start(4, seed=0).request
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    offered = request.offering(request.candidates_BC[:, order])
    for name in request._fields[6:]:
        assert torch.equal(getattr(offered, name), getattr(request, name)[:, order]), name
    whole = Simulator(simulator.world, num_candidates=400, history_length=20).start(4, seed=0).request
    outside = torch.arange(400).repeat(4, 1)
    expected = whole.retriever_score_BC.gather(1, whole.candidates_BC.argsort(1))
    new = expected > -1e5  # the rest was shown before
    assert torch.equal(request.offering(outside).retriever_score_BC[new], expected[new])


def test_slates_of_any_length_are_left_out_afterwards(world: World) -> None:
    patient = world.replace(leave=DeclaredLeave(per_place=0, per_second=0, per_dull_place=0))
    simulator = Simulator(patient, num_candidates=30, slate_size=6, history_length=5, max_requests=10)
    state, shown = simulator.start(3, seed=0), []
    for places in (6, 3, 1, 5, 2):
        items = state.request.candidates_BC[:, :places]
        shown.append(items)
        state, _ = simulator.step(state, items)
        left_out = state.memory.shown_BM
        assert all(set(torch.cat(shown, 1)[row].tolist()) <= set(left_out[row].tolist()) for row in range(3))
    assert not (state.request.candidates_BC.unsqueeze(2) == torch.cat(shown, 1).unsqueeze(1)).any()


def test_seeds_may_be_numpy_integers(simulator: Simulator) -> None:
    assert same_bytes(simulator.start(2, np.int64(7)), simulator.start(2, 7))
    with pytest.raises(TypeError):
        simulator.start(2, 7.0)  # type: ignore[arg-type]


class TemperLeave:
    """Nobody stays after a like, half of the others do; and each second costs a little: far from linear in a rate."""

    def stay(self, context_BX: torch.Tensor, signals_BKF: torch.Tensor) -> torch.Tensor:
        liked = signals_BKF[..., USUAL_SIGNALS.index("like")]
        return torch.exp(-6.0 * liked - 0.05 * signals_BKF[..., 0])


def test_expected_is_exact_for_a_leave_model_that_is_not_linear(world: World) -> None:
    check_expected(world.replace(leave=TemperLeave()), num_samples=8000)


@pytest.mark.parametrize("declared_effect", [False, True])
def test_expected_agrees_with_many_draws(world: World, declared_effect: bool) -> None:
    if declared_effect:
        world = world.replace(list_effect=TagRepeatEffect(world.catalogue.tag_N, strength=0.6))
    simulator = Simulator(world, num_candidates=20, slate_size=6, history_length=20, max_requests=5)
    state = simulator.start(8, seed=4)
    items = slates(state)
    expected = simulator.expected(state, items.unsqueeze(1))
    copies = 6000
    _, feedback = simulator.step(
        simulator.branch(state, copies, noise="independent"), items.repeat_interleave(copies, dim=0)
    )
    watch = feedback.signals_BKF[..., 0].sum(1).reshape(8, copies).double()
    error = (watch.mean(1) - expected.watch_time_BG[:, 0]) / (watch.std(1) / math.sqrt(copies))
    assert error.abs().max() < 4.5, error
    reached = feedback.seen_BK.reshape(8, copies, 6).double().mean(1)
    assert (reached - expected.reached_BGK[:, 0]).abs().max() < 0.025


def test_a_constant_hazard_gives_geometric_sessions(world: World) -> None:
    leave = DeclaredLeave(per_place=0.05, per_second=0.0, per_dull_place=0.0)
    simulator = Simulator(
        world.replace(leave=leave), num_candidates=20, slate_size=6, history_length=10, max_requests=60
    )
    state = simulator.start(3000, seed=0)
    alive, places = torch.ones(3000, dtype=torch.bool), torch.zeros(3000)
    for _ in range(40):
        state, feedback = simulator.step(state, slates(state))
        places += feedback.seen_BK.sum(1) * alive
        alive &= ~feedback.left_B
    mean = 1 / (1 - math.exp(-0.05))  # places of a geometric session
    assert float(places.mean()) == pytest.approx(mean, abs=4 * mean / math.sqrt(3000))


def test_declared_leave_consumes_time_and_patience() -> None:
    leave = DeclaredLeave(per_place=0.1, per_second=0.01, per_dull_place=0.2, dull_below=20.0)
    signals = torch.tensor([[[30.0, 1.0], [5.0, 0.0], [0.0, 0.0]]])
    stay = leave.stay(torch.zeros(1, 7), signals)
    assert stay[0].tolist() == pytest.approx([math.exp(-0.4), math.exp(-0.3), math.exp(-0.3)])
    with pytest.raises(ValueError, match="per_second must be at least 0, got -1"):
        DeclaredLeave(per_second=-1)
    with pytest.raises(ValueError, match="dull_below must be above 0, got 0"):
        DeclaredLeave(dull_below=0)


def test_tag_repeats_interrupt_later_places() -> None:
    effect = TagRepeatEffect(torch.tensor([5, 5, 5, 7, -1, -1]), strength=0.5)
    chance = effect.interrupt(torch.tensor([[0, 1, 3, 2, 4, 5]]))
    assert chance[0].tolist() == pytest.approx([0, 0.5, 0, 0.75, 0, 0])


def test_a_skip_that_the_list_drew_changes_no_user() -> None:
    """Users of the planted world count the seconds they watch: those of skipped places do not count."""
    calm = planted_world(num_items=30, hazard=0.0, seconds=20.0)
    strict = calm.replace(list_effect=TagRepeatEffect(torch.zeros(30, dtype=torch.int64), strength=0.999))
    items_BK = torch.arange(6).expand(50, -1)
    for world, places in ((calm, 6), (strict, 1)):  # all of one tag: but for 1 in 1,000 only the first is answered
        simulator = Simulator(world, num_candidates=10, slate_size=6, history_length=4, max_requests=4)
        state, feedback = simulator.step(simulator.start(50, seed=0), items_BK)
        answered_B = feedback.signals_BKF[:, :places, 0].sum(1)
        same_B = (state.response_BS[:, 0] - answered_B).abs() < 1e-3
        assert float(same_B.float().mean()) > 0.95
        remembered_BH = state.request.history_BH
        assert remembered_BH.tolist() == [[2, 3, 4, 5]] * 50, "the recommender has seen them all"


def test_sessions_start_by_the_hour_profile() -> None:
    weights = tuple(float(h == 3) * 3 + float(h == 20) for h in range(24))
    draws = uniform(address(torch.arange(20000)), 2)
    _, clock = DeclaredContext(hour_weights=weights).start(draws)
    hours = np.bincount((clock / 3600 % 24).long().numpy(), minlength=24) / 20000
    assert hours[3] == pytest.approx(0.75, abs=0.015)
    assert hours[3] + hours[20] == 1.0
    days = np.bincount((clock / 86400).long().numpy(), minlength=7)
    assert days.min() > 20000 / 7 * 0.93


def test_draws_look_uniform_and_independent() -> None:
    key = address(torch.arange(4000), 0)
    first, second = uniform(key, 5), uniform(next_key(key), 5)
    draws = torch.cat([first, second], dim=1).double()
    assert (draws > 0).all()
    assert (draws < 1).all()
    assert draws.mean(0).sub(0.5).abs().max() < 5 * math.sqrt(1 / 12 / 4000)
    correlation = torch.corrcoef(torch.cat([draws[1:], draws[:-1]], dim=1).T) - torch.eye(20)
    assert correlation.abs().max() < 5 / math.sqrt(4000)


def test_a_user_is_never_shown_a_future_or_foreign_item(simulator: Simulator) -> None:
    state = simulator.start(4, seed=0)
    good = slates(state)
    bad = good.clone()
    bad[0, 0] = 400
    with pytest.raises(ValueError, match=r"item codes 0\.\.399, got \d+\.\.400"):
        simulator.step(state, bad)
    with pytest.raises(ValueError, match="int64 tensor of 4 rows"):
        simulator.step(state, good.int())
    with pytest.raises(ValueError, match="int64 tensor of 4 rows"):
        simulator.step(state, good[:2])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"slate_size": 20, "num_candidates": 10}, "need slate_size <= num_candidates, got 20 and 10"),
        ({"num_candidates": 401}, "need num_candidates <= items of the catalogue, got 401 and 400"),
        ({"history_length": 0}, "history_length must be at least 1, got 0"),
    ],
)
def test_sizes_that_cannot_work(world: World, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Simulator(world, **sizes)
