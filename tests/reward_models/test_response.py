"""The learned response model as a simulator uses it: bytes, distributions, states, storage."""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from recsim_env.data.schema import USUAL_SIGNALS
from recsim_env.types import CONTEXT, ResponseModel
from reward_models.users.response import SequenceResponse
from reward_models.users.response_core import ResponseConfig, ResponseCore
from reward_models.users.user_state import UserState, amounts
from reward_models.users.watch_time import WatchTimeCells

NUM_ITEMS, NUM_USERS, NUM_TABS, NUM_KINDS = 40, 30, 3, 12
FAMILIES = {
    "decayed": ResponseConfig(width=16, event_width=6),
    "gated": ResponseConfig(width=16, event_width=6, memory="gated"),
}


def make_model(family: str = "decayed", has_lists: bool = False, seed: int = 0) -> SequenceResponse:
    """A model with random weights: what is tested here does not depend on a fit."""
    config, generator = FAMILIES[family], torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    num_kinds, session_kinds = (NUM_KINDS, NUM_KINDS) if has_lists else (0, None)
    core = ResponseCore(config, USUAL_SIGNALS, WatchTimeCells(), NUM_TABS, num_kinds, session_kinds)
    for parameter in core.parameters():
        parameter.data.copy_(noise(*parameter.shape) * 0.5)
    core.read_off_TGMD.copy_(torch.rand(core.read_off_TGMD.shape, generator=generator))
    core.memory.usual_TGY.copy_(0.1 + torch.rand(core.memory.usual_TGY.shape, generator=generator))
    tables = {
        "item_NH": noise(NUM_ITEMS, config.width),
        "item_event_NE": noise(NUM_ITEMS, config.event_width),
        "user_UH": noise(NUM_USERS, config.width),
        "state_US": torch.rand(NUM_USERS, core.memory.state_width, generator=generator),
        "tab_TH": noise(NUM_TABS, config.width),
        "hour_24H": noise(24, config.width),
        "duration_N": torch.exp(noise(NUM_ITEMS) + 3.5),
        "exposure_Ud": 0.5 * noise(NUM_USERS, 5),
        "exposure_Nd": noise(NUM_ITEMS, 5),
        "item_kind_NY": (noise(NUM_ITEMS, NUM_KINDS) > 0).float(),
    }
    return SequenceResponse(core, tables)


def make_inputs(num_sessions: int, num_places: int = 6, seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Users, contexts, items and uniforms."""
    generator = torch.Generator().manual_seed(seed)
    context_BX = torch.zeros(num_sessions, len(CONTEXT))
    context_BX[:, 0] = torch.randint(NUM_TABS, (num_sessions,), generator=generator).float()
    context_BX[:, 1] = torch.randint(24, (num_sessions,), generator=generator).float()
    return (
        torch.randint(NUM_USERS, (num_sessions,), generator=generator),
        context_BX,
        torch.randint(NUM_ITEMS, (num_sessions, num_places), generator=generator),
        torch.rand(num_sessions, num_places, 7, generator=generator).clamp(1e-6, 1 - 1e-6),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_follows_the_protocol(family: str) -> None:
    model = make_model(family)
    assert isinstance(model, ResponseModel)
    assert model.num_draws == 7  # watch time, what is read off it, five more signals


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("has_lists", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_places", [1, 6])
def test_a_row_has_the_same_bytes_in_any_batch(family: str, has_lists: bool, num_places: int) -> None:
    model = make_model(family, has_lists)
    user_B, context_BX, items_BK, uniform_BKJ = make_inputs(517, num_places)
    seen_BK = torch.arange(num_places) < (torch.arange(517) % (num_places + 1)).unsqueeze(1)

    def play(rows: slice) -> list[Tensor]:
        state_BS, context, items = model.start(user_B[rows]), context_BX[rows], items_BK[rows]
        signals = model.respond(state_BS, context, items, uniform_BKJ[rows])
        after = model.observe(state_BS, context, items, signals, seen_BK[rows])
        return [signals, after, *model.outcomes(after, context, items), model.expected(after, context, items)]

    whole = play(slice(None))
    for size in (1, 2, 3, 5, 8, 33):
        for start in (0, 100, 517 - size):
            rows = slice(start, start + size)
            for part, full in zip(play(rows), whole, strict=True):
                assert torch.equal(part, full[rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_follow_the_outcomes(family: str) -> None:
    model = make_model(family)
    user_B, context_BX, items_BK, _ = make_inputs(1, 2)
    state_BS, copies = model.start(user_B), 60_000
    uniform = torch.rand(copies, 2, 7, generator=torch.Generator().manual_seed(3)).clamp(1e-6, 1 - 1e-6)
    drawn = model.respond(
        state_BS.expand(copies, -1), context_BX.expand(copies, -1), items_BK.expand(copies, -1), uniform
    )
    expected = model.expected(state_BS, context_BX, items_BK)[0]
    spread = drawn.std(0) / copies**0.5
    assert ((drawn.mean(0) - expected).abs() <= 5 * spread + 1e-4).all()
    outcomes = model.outcomes(state_BS, context_BX, items_BK)
    torch.testing.assert_close(outcomes.probability_BKO.sum(-1), torch.ones(1, 2))


def test_a_second_signal_is_drawn_given_the_first() -> None:
    model = make_model()
    for layer in (model.core.head, model.core.user_layer):  # every signal has a chance of 1/2 by itself
        layer.weight.data[-5:] = 0.0
        layer.bias.data[-5:] = 0.0
    model.core.cell_effect_MA.data.zero_()
    model.core.tab_logit_TV.data.zero_()
    model.core.parent_effect_A.data[1:] = 2.0
    user_B, context_BX, items_BK, _ = make_inputs(1, 1)
    copies = 20_000
    uniform = torch.rand(copies, 1, 7, generator=torch.Generator().manual_seed(4)).clamp(1e-6, 1 - 1e-6)
    drawn = model.respond(
        model.start(user_B).expand(copies, -1), context_BX.expand(copies, -1), items_BK.expand(copies, -1), uniform
    )[:, 0]
    liked = drawn[:, USUAL_SIGNALS.index("like")] == 1
    follow = drawn[:, USUAL_SIGNALS.index("follow")]
    assert liked.float().mean() == pytest.approx(0.5, abs=0.02)
    assert follow[~liked].mean() == pytest.approx(0.5, abs=0.02)
    assert follow[liked].mean() == pytest.approx(1 / (1 + np.exp(-2.0)), abs=0.02)


def test_a_long_view_rarer_than_a_click_never_comes_without_it() -> None:
    model = make_model()
    table = model.core.read_off_TGMD
    table[..., 1] = table[..., 0] * 0.7
    user_B, context_BX, items_BK, uniform_BKJ = make_inputs(2000)
    drawn = model.respond(model.start(user_B), context_BX, items_BK, uniform_BKJ)
    click, long_view = drawn[..., USUAL_SIGNALS.index("click")], drawn[..., USUAL_SIGNALS.index("long_view")]
    assert 0 < long_view.sum() < click.sum()
    assert ((long_view <= click) | (click == 1)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_observing_a_slate_is_taking_its_surprises_one_by_one(family: str) -> None:
    """What is expected of all places is what the user's state at the beginning of the slate says."""
    model = make_model(family)
    user_B, context_BX, items_BK, uniform_BKJ = make_inputs(9)
    state_BS = model.start(user_B)
    signals_BKF = model.respond(state_BS, context_BX, items_BK, uniform_BKJ)
    seen_BK = torch.arange(6) < torch.tensor([0, 1, 2, 3, 4, 5, 6, 6, 6]).unsqueeze(1)
    found_BS = model.observe(state_BS, context_BX, items_BK, signals_BKF, seen_BK)
    outcomes = model.outcomes(state_BS, context_BX, items_BK)
    duration_BK = model.duration_N[items_BK]
    # Each cell many times over, for what is not linear in the seconds: log watch time and completion.
    draws = torch.rand(4000, 1, generator=torch.Generator().manual_seed(3))
    surprise_BKY = torch.zeros(9, 6, len(USUAL_SIGNALS) + 1)
    for session, place in itertools.product(range(9), range(6)):
        cell_D = torch.multinomial(
            outcomes.probability_BKO[session, place], len(draws), True, generator=torch.Generator().manual_seed(4)
        )
        log_duration_D = model.core.cells.log_duration(duration_BK[session, place]).expand(len(draws))
        seconds_D = model.core.cells.seconds_at(cell_D, draws[:, 0], log_duration_D)
        signals_DF = outcomes.signals_BKOF[session, place, cell_D].clone()
        signals_DF[:, 0] = seconds_D
        expected_Y = amounts(signals_DF, duration_BK[session, place].expand(len(draws))).mean(0)
        surprise_BKY[session, place] = amounts(signals_BKF[session, place], duration_BK[session, place]) - expected_Y
    memory = model.core.memory
    by_hand_BS = state_BS[:, 1:]
    for place in range(6):
        event_B1E = model.item_event_NE[items_BK[:, place : place + 1]]
        events = memory.events(event_B1E, surprise_BKY[:, place : place + 1], seen_BK[:, place : place + 1])
        by_hand_BS = memory.update(by_hand_BS, *events)
    scale_S = (by_hand_BS - state_BS[:, 1:]).abs().amax(0).clamp(min=1e-3)
    assert float(((found_BS[:, 1:] - by_hand_BS) / scale_S).abs().max()) < 0.05
    assert torch.equal(found_BS[0], state_BS[0])
    assert not torch.equal(found_BS[1], state_BS[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_no_slate_changes_what_is_expected_of_a_user(family: str) -> None:
    """Rule 10: under the model's own law traits move nowhere on average, whether slates are good or bad."""
    model = make_model(family)
    repeats = 80_000  # enough that the rarest signal comes now and then
    _, context_BX, items_BK, _ = make_inputs(2, 6)
    state_BS = model.start(torch.tensor([3, 8]).repeat_interleave(repeats))
    shown = (context_BX.repeat_interleave(repeats, 0), items_BK.repeat_interleave(repeats, 0))
    uniform_BKJ = torch.rand(2 * repeats, 6, 7, generator=torch.Generator().manual_seed(2)).clamp(1e-6, 1 - 1e-6)
    signals_BKF = model.respond(state_BS, *shown, uniform_BKJ)
    seen_BK = torch.ones(2 * repeats, 6, dtype=torch.bool)
    change_BS = model.observe(state_BS, *shown, signals_BKF, seen_BK) - state_BS
    memory = model.core.memory
    traits_BX = change_BS[:, 2:].reshape(2, repeats, memory.num_sums, -1)[:, :, : memory.num_traits].flatten(2)
    error_X = traits_BX.std(1) / repeats**0.5
    # Some hundred comparisons, so 4.5 errors; cells are averaged at eight places, hence the small rest.
    assert bool((traits_BX.mean(1).abs() < 4.5 * error_X + 2e-3 * traits_BX.std(1) + 1e-6).all())
    assert torch.equal(change_BS[:, 1], torch.full((2 * repeats,), 6.0))


def test_traits_are_learned_means_and_moods_are_geometric_series() -> None:
    memory = UserState((2.0,), (0.5,), gated=False, event_width=1, num_signals=1, num_tabs=1, num_groups=1)
    happened = torch.tensor([[True, True, False, True]])
    events = memory.events(
        torch.zeros(1, 4, 1), torch.tensor([1.0, 2.0, 9.0, 4.0]).reshape(1, 4, 1).repeat(1, 1, 2), happened
    )
    state = memory.update(torch.zeros(1, memory.state_width), *events)
    trait, mood = state[:, 1:].reshape(2, -1)[:, -1].tolist()
    assert state[0, 0] == 3.0  # events that happened
    assert trait == pytest.approx(1 / 3 + 2 / 4 + 4 / 5)
    assert mood == pytest.approx(0.5 * (1 * 0.25 + 2 * 0.5 + 4))


def test_what_is_usual_is_counted_by_tab_and_group_and_shrunk() -> None:
    memory = UserState((5.0,), (0.7,), gated=False, event_width=24, num_signals=1, num_tabs=2, num_groups=2)
    tab_P, group_P = torch.tensor([0] * 150 + [1] * 50), torch.tensor([0] * 100 + [1] * 50 + [0] * 50)
    amounts_PY = torch.zeros(200, 2)
    amounts_PY[:100, 0], amounts_PY[150:, 0] = 1.0, 2.0
    known_PY = torch.ones(200, 2, dtype=torch.bool)
    known_PY[150:, 0] = False  # what is not recorded must not count
    memory.measure(amounts_PY, known_PY, tab_P, group_P)
    mean = 100 / 150
    tab_0 = (100 + 50 * mean) / (150 + 50)
    assert memory.usual_TGY[0, 0, 0] == pytest.approx((100 + 50 * tab_0) / 150)
    assert memory.usual_TGY[0, 1, 0] == pytest.approx(50 * tab_0 / 100)
    assert memory.usual_TGY[1:, :, 0].flatten().tolist() == pytest.approx([mean] * 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_scanning_a_sequence_is_updating_event_by_event(family: str) -> None:
    memory = make_model(family).core.memory
    generator = torch.Generator().manual_seed(5)
    surprise = torch.randn(3, 7, len(USUAL_SIGNALS) + 1, generator=generator)
    happened = torch.arange(7) < torch.tensor([[7], [4], [1]])
    vectors, fades, counted = memory.events(torch.randn(3, 7, 6, generator=generator), surprise, happened)
    start = torch.rand(3, memory.state_width, generator=generator)
    begin = torch.tensor([[0, 0, 2, 3, 3, 3, 6]]).expand(3, -1)  # requests of 2, 1, 3 and 1 places
    scanned = memory.scan(start, vectors, fades, counted, begin)
    for row in range(7):
        first = int(begin[0, row])
        earlier = (vectors[:, :first], fades[:, :first], counted[:, :first])
        direct = memory.update(start, *earlier) if first else start
        torch.testing.assert_close(scanned[:, row], direct, rtol=1e-5, atol=1e-5)


def test_earlier_places_act_on_later_ones_only_with_lists() -> None:
    user_B, context_BX, items_BK, _ = make_inputs(4, 3)
    swapped_BK = items_BK.clone()
    swapped_BK[:, 0] = (items_BK[:, 0] + 1) % NUM_ITEMS
    for has_lists in (False, True):
        model = make_model(has_lists=has_lists)
        state_BS = model.start(user_B)
        change = model.expected(state_BS, context_BX, items_BK) - model.expected(state_BS, context_BX, swapped_BK)
        assert bool((change[:, 1:] != 0).any()) == has_lists
        last_BK = items_BK.clone()
        last_BK[:, 2] = (items_BK[:, 2] + 1) % NUM_ITEMS
        later = model.expected(state_BS, context_BX, items_BK) - model.expected(state_BS, context_BX, last_BK)
        assert (later[:, :2] == 0).all()


@pytest.mark.parametrize("has_lists", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_restored_model_answers_with_the_same_bytes(family: str, has_lists: bool) -> None:
    model = make_model(family, has_lists)
    twin = SequenceResponse.restore(model.config(), model.tensors())
    user_B, context_BX, items_BK, uniform_BKJ = make_inputs(5)
    drawn = model.respond(model.start(user_B), context_BX, items_BK, uniform_BKJ)
    assert torch.equal(drawn, twin.respond(twin.start(user_B), context_BX, items_BK, uniform_BKJ))
    assert twin.signals == model.signals
    assert twin.config() == model.config()


def test_the_first_place_of_a_list_knows_no_list() -> None:
    model = make_model(has_lists=True)
    user_B, context_BX, items_BK, _ = make_inputs(4, 3)
    before = model.expected(model.start(user_B), context_BX, items_BK)
    model.core.pair_slope_V.data.zero_()
    change = model.expected(model.start(user_B), context_BX, items_BK) - before
    assert (change[:, 0] == 0).all()
    assert (change[:, 1:] != 0).any()


def test_rescaling_changes_logits_and_nothing_else() -> None:
    core = make_model(has_lists=True).core
    generator = torch.Generator().manual_seed(6)
    assert core.satiation is not None
    recent = torch.rand(50, core.satiation.state_width, generator=generator)
    hidden, user = torch.randn(50, 16, generator=generator), torch.randn(50, 16, generator=generator)
    tab, lift = torch.arange(50) % NUM_TABS, torch.linspace(-4.0, 4.0, 50)
    core.level_2V.copy_(torch.randn(core.level_2V.shape, generator=generator))
    duration = torch.linspace(5.0, 300.0, 50)

    def logits() -> tuple[Tensor, Tensor, Tensor]:
        answer = core.answer(hidden, core.user_layer(user), tab, lift, recent, chosen=(tab % 2).float())
        return answer.cells, answer.given, core.log_prior(duration)

    cells, given, log_prior = logits()
    offset_CM = torch.randn(core.duration_logit_CM.shape, generator=generator)
    core.rescale_cells(0.5, offset_CM)
    core.rescale_given(2, 0.7, -1.0)
    expected = given.clone()
    expected[:, 2] = 0.7 * given[:, 2] - 1.0
    new_cells, new_given, new_log_prior = logits()
    torch.testing.assert_close(new_cells, 0.5 * cells, rtol=1e-4, atol=1e-4)
    added = core.cells.hats(duration) @ offset_CM
    torch.testing.assert_close(new_log_prior, log_prior + added, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(new_given, expected, rtol=1e-4, atol=1e-4)


def test_signals_come_in_the_order_of_the_log() -> None:
    reordered = ("watch_time", "like", "click")
    core = ResponseCore(FAMILIES["decayed"], reordered, WatchTimeCells(), 1, 0)
    core.read_off_TGMD.fill_(1.0)
    core.head.bias.data.fill_(-50.0)
    template = make_model()
    tables = {name: getattr(template, name) for name in ("item_NH", "item_event_NE", "user_UH", "duration_N")}
    tables |= {"state_US": torch.zeros(NUM_USERS, core.memory.state_width), "hour_24H": template.hour_24H}
    tables |= {name: getattr(template, name) for name in ("exposure_Ud", "exposure_Nd", "item_kind_NY")}
    model = SequenceResponse(core, tables | {"tab_TH": template.tab_TH[:1]})
    user_B, context_BX, items_BK, _ = make_inputs(3)
    uniform = torch.full((3, 6, model.num_draws), 0.5)
    drawn = model.respond(model.start(user_B), context_BX, items_BK, uniform)
    assert (drawn[..., 2] == 1).all()
    assert (drawn[..., 1] == 0).all()


def test_settings_out_of_range_are_refused() -> None:
    for change, message in (
        ({"memory": "gru"}, "memory must be"),
        ({"decays": (1.0,)}, "decays need"),
        ({"trait_rows": (0.0,)}, "trait_rows need"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"width": 0}, "widths must be"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(ResponseConfig(), **change)
    with pytest.raises(ValueError, match="must begin with"):
        ResponseCore(ResponseConfig(), ("click",), WatchTimeCells(), 1, 0)
