"""A learned world as a whole: bytes of its rows at any thread count, and its move to another device."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsim_env import RecEnv, RecVectorEnv, Request, Simulator, World
from recsim_env.checkers import check_expected
from recsim_env.known_worlds import short_video_world, tiny_world
from recsim_env.slates import are_candidates
from recsim_env.types import CONTEXT, Outcomes
from reward_models.fidelity.drift import _worth, probe_drift
from tests.helpers.learned import shared_learned_worlds
from tests.helpers.planted import PlantedResponse, planted_world

NAMES = ("A", "judge-final-1")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_the_single_environment_at_any_number_of_threads(name: str) -> None:
    world, size = shared_learned_worlds()[name], 70
    vector = RecVectorEnv(size, world, observation="both", autoreset_mode="Disabled")
    singles = {row: RecEnv(world, observation="both") for row in (0, 33, size - 1)}
    vector.action_space.seed(1)
    many, _ = vector.reset(seed=40)
    alone = {row: env.reset(seed=40 + row)[0] for row, env in singles.items()}
    for _ in range(8):
        for row, one in alone.items():
            assert all(np.array_equal(many[part][row], one[part]) for part in one)
        actions = vector.action_space.sample()
        many, rewards, *_ = vector.step(actions)
        for row, env in singles.items():
            alone[row], reward, *_ = env.step(actions[row])
            assert reward == rewards[row]


@pytest.mark.parametrize("name", NAMES)
def test_expectations_are_what_is_played(name: str) -> None:
    check_expected(shared_learned_worlds()[name], num_samples=2000)


@pytest.mark.parametrize("step", [0, 2])
def test_lists_from_outside_the_candidates_get_what_they_would_get_as_candidates(step: int) -> None:
    world = shared_learned_worlds()["A"]
    few, all_items = (
        Simulator(world, num_candidates=count, slate_size=4, history_length=10) for count in (20, len(world.catalogue))
    )
    requests = []
    for simulator in (few, all_items):
        state = simulator.start(6, seed=3)
        for _ in range(step):
            state, _ = simulator.step(state, torch.arange(24).view(6, 4))
        requests.append(state.request)
        shown_BM = state.memory.shown_BM
    fresh_BN = requests[1].candidates_BC.gather(1, requests[1].retriever_score_BC.argsort(dim=1, descending=True))
    fresh_BX = fresh_BN[:, : len(world.catalogue) - shown_BM.shape[1]]
    order = torch.randperm(fresh_BX.shape[1], generator=torch.Generator().manual_seed(0))[:48]
    lists_BGK = fresh_BX[:, order].view(6, 12, 4)
    assert not are_candidates(lists_BGK, requests[0].candidates_BC).all()
    found, expected = (world.evaluator.score(request, lists_BGK) for request in requests)  # type: ignore[union-attr]
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-4)
    inside_BGK = requests[0].candidates_BC[:, :12].view(6, 3, 4)
    known, alone = (world.evaluator.score(r, inside_BGK) for r in (requests[0], Request(*requests[0])))  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(known, alone, strict=True))
    with pytest.raises(ValueError, match="is not among the 20 candidates"):
        world.evaluator.score(Request(*requests[0]), lists_BGK)  # type: ignore[union-attr]


def left_behind(value: Any, path: str, seen: set[int], device: str) -> list[str]:
    """Paths of all tensors within an object that are not on the device."""
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, Tensor):
        return [] if value.device.type == device else [path]
    if isinstance(value, dict):
        parts = [(f"{path}[{key!r}]", inner) for key, inner in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{path}[{index}]", inner) for index, inner in enumerate(value)]
    else:
        names = [*getattr(value, "__dict__", {}), *getattr(type(value), "__slots__", ())]
        parts = [(f"{path}.{name}", getattr(value, name)) for name in names if hasattr(value, name)]
    return [found for where, inner in parts for found in left_behind(inner, where, seen, device)]


def some_world(name: str) -> World:
    if name == "tiny":
        return tiny_world()
    if name == "short_video":
        return short_video_world(num_users=20, num_items=60)
    return shared_learned_worlds()[name]


@pytest.mark.parametrize("name", ["tiny", "short_video", *NAMES])
def test_a_world_moves_to_another_device_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On "meta", which has shapes and no values and refuses to mix with the CPU: a GPU that everyone owns."""
    world = some_world(name)
    assert left_behind(world, "world", set(), "cpu") == []
    monkeypatch.setattr(World, "__post_init__", lambda self: None)  # it looks at values
    moved = world.to("meta")
    assert left_behind(moved, "world", set(), "meta") == []
    user_B = torch.zeros(3, dtype=torch.int64, device="meta")
    context_BX = torch.zeros(3, len(CONTEXT), device="meta")
    items_BK = torch.zeros(3, 4, dtype=torch.int64, device="meta")
    draws_BKJ = torch.zeros(3, 4, world.response.num_draws, device="meta")
    state_BS = moved.response.start(user_B)
    signals_BKF = moved.response.respond(state_BS, context_BX, items_BK, draws_BKJ)
    shown = (context_BX, items_BK, signals_BKF, torch.ones(3, 4, dtype=torch.bool, device="meta"))
    predictor_BS, source_BS = moved.predictor.start(user_B), moved.candidates.start(user_B)
    outcomes = moved.response.outcomes(state_BS, context_BX, items_BK)
    found = [
        signals_BKF,
        moved.response.observe(state_BS, *shown),
        *outcomes,
        moved.leave.stay(context_BX, outcomes.signals_BKOF),
        *moved.contexts.start(torch.zeros(3, 2, device="meta")),
        *moved.predictor.predict(moved.predictor.observe(predictor_BS, *shown), context_BX, items_BK),
        moved.candidates.score(moved.candidates.observe(source_BS, *shown), draws_BKJ[:, 0, 0], items_BK),
    ]
    assert {tensor.device.type for tensor in found} == {"meta"}


def test_the_search_for_tensors_finds_what_is_hidden() -> None:
    @dataclasses.dataclass
    class Hides:
        deep: list[dict[str, Tensor]]

    assert left_behind(Hides([{"a": torch.zeros(1)}]), "it", set(), "meta") == ["it.deep[0]['a']"]


class _Tiring(PlantedResponse):
    """Every second watched takes from what all videos are worth."""

    def outcomes(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor) -> Outcomes:
        outcomes = super().outcomes(state_BS, context_BX, items_BK)
        signals_BKOF = outcomes.signals_BKOF.clone()
        signals_BKOF[..., 0] *= torch.exp(-state_BS / 1000.0).unsqueeze(-1)
        return outcomes._replace(signals_BKOF=signals_BKOF)


def tiring_world() -> World:
    """400 videos of 5 s to a fresh user."""
    still = planted_world(num_items=400, seconds=5.0)
    return still.replace(response=_Tiring(torch.full((400,), 5.0), still.response.like_N))  # type: ignore[attr-defined]


def test_the_worth_of_probes_errs_by_what_users_change_and_not_by_how_they_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    first_BF = 1.0 + 9.0 * torch.rand(400, 2, generator=generator).double()
    noise_BF = torch.randn(400, 2, generator=generator).double()
    worth_BF = torch.stack([0.9 * first_BF[:, 0], first_BF[:, 1] + noise_BF[:, 1]], 1)
    found = _worth(("watch_time", "like"), worth_BF, first_BF)
    assert found["watch_time"] == pytest.approx(0.9 * float(first_BF[:, 0].mean()))
    assert found["ratio_error"]["watch_time"] == pytest.approx(0.0, abs=1e-9)
    assert found["ratio_error"]["like"] == pytest.approx(1 / 5.5 / 20, rel=0.15)
    none = _worth(("watch_time",), torch.zeros(3, 1), torch.zeros(3, 1))
    assert none["ratio_error"] == {"watch_time": None}


def test_probes_stay_where_users_do_and_fall_where_users_tire() -> None:
    still = planted_world(num_items=400, seconds=5.0)
    for requests in probe_drift(still, num_sessions=16).values():
        assert len({tuple(round(means[name], 4) for name in still.signals) for means in requests.values()}) == 1
        assert requests["50"]["ratio_error"]["like"] == pytest.approx(0.0, abs=1e-6)
        assert len(requests) == 4
    found = probe_drift(tiring_world(), num_sessions=64)
    for policy in ("retriever", "greedy"):  # 6 places of 5 s a request, all new to the user
        for request, means in found[policy].items():
            assert means["watch_time"] == pytest.approx(5 * math.exp(-30 * (int(request) - 1) / 1000), rel=0.12)
    # Any video of the catalogue may be shown again, and then earns nothing.
    assert found["uniform"]["10"]["watch_time"] > found["uniform"]["50"]["watch_time"]
    assert found["uniform"]["50"]["watch_time"] > found["greedy"]["50"]["watch_time"]
