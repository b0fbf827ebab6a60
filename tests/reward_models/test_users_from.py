"""Users of a log in a world that was learned without them: they start as if they had always been there."""

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsim_env import RecVectorEnv, World
from recsim_env.data import LoggedDataset
from recsim_env.new_users import NewUsers
from recsim_env.types import CONTEXT
from reward_models.declared import declare_drop
from reward_models.judging import judge_on
from reward_models.users.fit import fit_response
from reward_models.users.response import SequenceResponse
from reward_models.users.sequences import read_sequences
from tests.helpers.learned import SMALL_BUILD, shared_learned_worlds, small_log, small_truth
from tests.helpers.sublogs import of_users, only_rows

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


@cache
def log() -> LoggedDataset:
    return small_log(small_truth())


@cache
def world_a() -> World:
    return shared_learned_worlds()["A"]


def first_day() -> int:
    """From which worlds are tested."""
    return int(world_a().provenance["days"]["test"][0])


def unseen_users() -> np.ndarray:
    """Codes of users whom world A has not learned from, in no order."""
    others = np.setdiff1d(np.arange(len(log().users)), world_a().population_P.numpy())
    return np.random.default_rng(1).permutation(others)


def expectations(world: World, user_B: torch.Tensor) -> torch.Tensor:
    items_BK = torch.arange(len(world.catalogue)).expand(len(user_B), -1)
    response: Any = world.response
    return response.expected(response.start(user_B), torch.zeros(len(user_B), len(CONTEXT)), items_BK)


def opinions(world: World, user_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What predictor and candidate source say of all videos to these users."""
    items_BC, draw_B = torch.arange(len(world.catalogue)).expand(len(user_B), -1), torch.full((len(user_B),), 0.3)
    predicted_BCF, _ = world.predictor.predict(
        world.predictor.start(user_B), torch.zeros(len(user_B), len(CONTEXT)), items_BC
    )
    return predicted_BCF, world.candidates.score(world.candidates.start(user_B), draw_B, items_BC)


def check_same(world: World, user_B: torch.Tensor, entered: World) -> None:
    """Users of one world are, in this order, those of the other."""
    here_B = torch.arange(len(user_B))
    assert np.array_equal(world.users.ids[user_B], entered.users.ids)
    assert torch.equal(world.users.features_UD[user_B], entered.users.features_UD)
    for one, other in zip(
        world.users.histories.window(user_B, 40), entered.users.histories.window(here_B, 40), strict=True
    ):
        assert torch.equal(one, other)
    torch.testing.assert_close(world.response.start(user_B)[:, 1:], entered.response.start(here_B)[:, 1:], **CLOSE)
    torch.testing.assert_close(expectations(world, user_B), expectations(entered, here_B), **CLOSE)
    for party in ("predictor", "candidates"):
        there, here = getattr(world, party).start(user_B), getattr(entered, party).start(here_B)
        assert torch.equal(here[:, 0], here_B.float())
        torch.testing.assert_close(there[:, 1:], here[:, 1:], **CLOSE)
    for one, other in zip(opinions(world, user_B), opinions(entered, here_B), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("name", ["A", "judge-final-1"])
def test_users_who_enter_again_are_who_they_were(name: str) -> None:
    world = shared_learned_worlds()[name]
    entered = world.users_from(log(), before=str(first_day()))
    check_same(world, torch.arange(len(log().users)), entered)
    assert torch.equal(entered.population_P, torch.arange(len(log().users)))
    assert entered.fidelity == {}
    assert entered.provenance["users_from"] == {
        "log": log().name,
        "users": len(log().users),
        "before": first_day(),
        "rows_of_unknown_videos": 0,
    }


def test_users_the_world_never_learned_from_enter_under_codes_of_their_own() -> None:
    unseen = unseen_users()
    entered = world_a().users_from(of_users(log(), unseen), before=first_day())
    check_same(world_a(), torch.from_numpy(unseen), entered)


def test_what_users_do_from_the_day_on_is_not_looked_at() -> None:
    part = of_users(log(), unseen_users())
    past = only_rows(part, (part.rows["date"] < first_day()).to_numpy())
    entered, of_past = (world_a().users_from(rows, before=first_day()) for rows in (part, past))
    everyone = torch.arange(len(part.users))
    torch.testing.assert_close(entered.response.start(everyone), of_past.response.start(everyone), **CLOSE)
    later = world_a().users_from(part, before=20991231)
    assert not torch.allclose(entered.response.start(everyone), later.response.start(everyone), **CLOSE)


def test_without_a_past_all_users_of_one_kind_start_alike() -> None:
    bare = dataclasses.replace(log(), history=None)
    entered = world_a().users_from(bare, before=int(log().rows["date"].min()))
    column = entered.users.feature_names.index("log_history_length")
    assert not entered.users.features_UD[:, column].any()
    assert not entered.response.start(torch.arange(len(log().users)))[:, 1:].any()


def test_rows_of_videos_that_the_world_lacks_are_left_out_and_counted() -> None:
    part = of_users(log(), unseen_users())
    gone = part.items["item_id"].to_numpy()[:5]
    shows_gone_R = part.rows["item"].isin(range(5)).to_numpy()
    ids = np.where(np.arange(len(part.items)) < 5, part.items["item_id"] + 10_000, part.items["item_id"])
    renamed = dataclasses.replace(part, items=part.items.assign(item_id=ids))
    message = f"{shows_gone_R.sum()} of {len(part.rows)} rows .* show videos that the world 'A' does not have"
    with pytest.warns(UserWarning, match=message):
        entered = world_a().users_from(renamed, before=first_day())
    assert part.history is not None
    without = dataclasses.replace(
        only_rows(part, ~shows_gone_R),
        history=part.history[~part.history["item"].isin(range(5))].reset_index(drop=True),
    )
    expected, everyone = world_a().users_from(without, before=first_day()), torch.arange(len(part.users))
    torch.testing.assert_close(entered.response.start(everyone), expected.response.start(everyone), **CLOSE)
    assert entered.provenance["users_from"]["rows_of_unknown_videos"] == shows_gone_R.sum()
    assert not set(gone) & set(entered.catalogue.ids[entered.users.histories.item_P.numpy()].tolist())


def test_a_log_without_requests_and_sessions_enters_row_by_row() -> None:
    part = of_users(log(), unseen_users())
    rows = part.rows.assign(time_ms=part.rows["time_ms"] + part.rows["place"])  # a moment of its own for each
    plain = dataclasses.replace(part, rows=rows.drop(columns=["request", "place", "session"]))
    number = np.arange(len(rows))
    alone = dataclasses.replace(part, rows=rows.assign(session=number, request=number, place=np.int8(0)))
    response: Any = world_a().response
    assert response.core.num_kinds
    assert response.core.satiation is not None
    everyone = torch.arange(len(part.users))
    of_plain, of_alone, of_lists = (
        world_a().users_from(entering, before=first_day()).response.start(everyone) for entering in (plain, alone, part)
    )
    torch.testing.assert_close(of_plain, of_alone, **CLOSE)
    assert not torch.allclose(of_plain, of_lists, **CLOSE)


@pytest.mark.parametrize("has_uniform", [False, True])
def test_what_a_log_or_a_declaration_says_of_uniform_slates_does_not_move_those_who_enter(has_uniform: bool) -> None:
    """The drop is declared after states were read: it must leave what the log's own ranker showed as it was."""
    rows = log().rows.drop(columns=["request", "place", "session", "propensity"])
    is_random = (rows["time_ms"] // 1000 % 5 == 0).to_numpy() & has_uniform
    assert is_random.any() == has_uniform
    plain = dataclasses.replace(log(), rows=rows.assign(is_random=is_random))
    until = int(rows["date"].max())
    model = fit_response(plain, train_until=until, config=SMALL_BUILD.fit)
    if not has_uniform:
        sequences = read_sequences(plain, SMALL_BUILD.fit.history_length)
        before = model.core.level_2V.clone()
        declare_drop(model, sequences, torch.ones(len(rows), dtype=torch.bool), {"click": 0.1, "long_view": 0.05})
        assert float((model.core.level_2V - before).abs().max()) > 0.5
    encoder = world_a().users.encoder
    assert encoder is not None
    new = NewUsers(
        features_UD=torch.from_numpy(encoder.encode(plain).values),
        histories=world_a().users.histories,
        log=plain,
        before=until + 1,
    )
    everyone = torch.arange(len(log().users))
    torch.testing.assert_close(model.start(everyone), model.with_users(new).start(everyone), **CLOSE)


def play(world: World) -> torch.Tensor:
    env = RecVectorEnv(6, world)
    env.reset_tensors(seed=3)
    return torch.stack([env.step_tensors(env.request.candidates_BC[:, :6]).rewards_BR for _ in range(6)])


def test_a_saved_world_with_other_users_plays_as_before_and_takes_more(tmp_path: Path) -> None:
    part = of_users(log(), unseen_users())
    entered = world_a().users_from(part, before=first_day())
    loaded = World.load(entered.save(tmp_path / "w"))
    assert torch.equal(play(entered), play(loaded))
    assert not torch.equal(play(entered), play(world_a()))
    assert loaded.digest == entered.digest != world_a().digest
    assert loaded.provenance["users_from"] == entered.provenance["users_from"]
    again = loaded.users_from(log(), before=first_day())
    check_same(world_a(), torch.arange(len(log().users)), again)


def test_the_users_of_the_world_are_judged_on_their_log_as_when_it_was_built() -> None:
    own = world_a().population_P.numpy()
    figures, built = judge_on(world_a(), of_users(log(), own), first_date=first_day()), world_a().fidelity["logged"]
    assert figures["rows"] == built["rows"]
    for name, signal in built["signals"].items():
        assert figures["signals"][name] == pytest.approx(signal, rel=2e-3, abs=1e-4)
    assert figures["watch_time"]["logged_quantiles"] == built["watch_time"]["logged_quantiles"]
    assert figures["watch_time"]["emitted_mean"] == pytest.approx(built["watch_time"]["emitted_mean"], rel=0.05)


def test_users_never_seen_are_judged_as_those_that_were() -> None:
    figures = judge_on(world_a(), of_users(log(), unseen_users()), first_date=first_day())
    rows = log().rows[~log().rows.duplicated(["user", "session", "item"])]  # a repeat tells nothing
    assert figures["rows"] == int((rows["user"].isin(unseen_users()) & (rows["date"] >= first_day())).sum())
    built = world_a().fidelity["logged"]["signals"]["click"]
    assert figures["signals"]["click"]["ratio"] == pytest.approx(built["ratio"], rel=0.15)
    assert figures["signals"]["click"]["auc"] == pytest.approx(built["auc"], abs=0.05)


def test_learned_users_stored_without_what_reads_others_refuse_them() -> None:
    model: Any = world_a().response
    tables = {name: tensor for name, tensor in model.tensors().items() if not name.startswith(("core.", "user_weight"))}
    old = world_a().replace(response=SequenceResponse(model.core, tables, history_length=50))
    with pytest.raises(ValueError, match="do not say how others are read: build the world again"):
        old.users_from(log(), before=first_day())
