"""The replay ring: newest rows kept, features gathered again, a checkpoint that gives them back."""

import pytest
import torch

from agents.method import NEXT
from agents.rllib.replay import Replay

ITEMS = torch.arange(20.0).view(10, 2)
USERS = torch.arange(6.0).view(3, 2)


def rows(first: int, number: int) -> dict[str, torch.Tensor]:
    code = torch.arange(first, first + number)
    user, items = code % 3, torch.stack([code % 10, (code + 4) % 10], dim=1)
    columns = {"code": code}
    for prefix in ("", NEXT):
        columns |= {
            f"{prefix}user_B": user,
            f"{prefix}user_features_BD": USERS[user],
            f"{prefix}candidates_BC": items,
            f"{prefix}candidate_features_BCD": ITEMS[items],
        }
    return columns


def full(tables: bool = True) -> Replay:
    found = {"user_features_BD": USERS, "candidate_features_BCD": ITEMS} if tables else None
    replay = Replay(10, found)
    for first in range(0, 21, 3):
        replay.add(rows(first, 3))
    return replay


def test_the_newest_rows_are_kept_and_drawn_evenly() -> None:
    replay = full()
    assert len(replay) == 10
    drawn = replay.draw(20_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn["code"])
    assert counts[:11].sum() == 0
    assert (counts[11:] / 20_000).tolist() == pytest.approx([0.1] * 10, abs=0.01)


def test_features_are_gathered_again_and_cost_no_memory() -> None:
    drawn, plain = full().draw(50, torch.Generator()), full(tables=False).draw(50, torch.Generator())
    assert drawn.keys() == plain.keys()
    assert all(torch.equal(drawn[name], plain[name]) for name in plain)
    features = 2 * (2 + 4) * 4  # now and next: two floats of the user, two candidates of two
    assert full(tables=False).bytes_per_row - full().bytes_per_row == features


def test_features_that_are_no_rows_of_the_table_are_kept() -> None:
    replay = Replay(10, {"user_features_BD": USERS, "candidate_features_BCD": ITEMS})
    columns = rows(0, 3)
    columns["user_features_BD"] = columns["user_features_BD"] + 1
    replay.add(columns)
    drawn = replay.draw(5, torch.Generator())
    assert torch.equal(drawn["user_features_BD"], USERS[drawn["user_B"]] + 1)


@pytest.mark.parametrize("tables", [True, False])
def test_a_checkpoint_gives_everything_back(tables: bool) -> None:
    replay = full(tables)
    other = Replay(10, {"user_features_BD": USERS, "candidate_features_BCD": ITEMS} if tables else None)
    other.restore(replay.state())
    a, b = (r.draw(30, torch.Generator().manual_seed(1)) for r in (replay, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    replay.add(rows(40, 3))
    other.add(rows(40, 3))
    a, b = (r.draw(30, torch.Generator().manual_seed(2)) for r in (replay, other))
    assert torch.equal(a["code"], b["code"])


@pytest.mark.parametrize(("size", "expected"), [(5, range(16, 21)), (20, range(11, 21))])
def test_a_replay_of_another_size_takes_the_newest_rows(size: int, expected: range) -> None:
    other = Replay(size, {"user_features_BD": USERS, "candidate_features_BCD": ITEMS})
    other.restore(full().state())
    assert set(other.draw(1000, torch.Generator().manual_seed(0))["code"].tolist()) == set(expected)
    other.add(rows(40, 3))
    newest = set([*expected, 40, 41, 42][-size:])
    assert set(other.draw(1000, torch.Generator().manual_seed(0))["code"].tolist()) == newest


def test_a_replay_without_the_tables_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the world's tables for"):
        Replay(10).restore(full().state())


def test_a_replay_of_another_world_is_refused() -> None:
    other = Replay(10, {"user_features_BD": USERS, "candidate_features_BCD": ITEMS + 1})
    with pytest.raises(ValueError, match=r"filled in another world: candidate_features_BCD are rows of other tables"):
        other.restore(full().state())
    assert len(other) == 0
    other.restore(full(tables=False).state())  # rows that were kept whole need no tables
    drawn = other.draw(50, torch.Generator())
    assert torch.equal(drawn["candidate_features_BCD"], ITEMS[drawn["candidates_BC"]])


def test_a_replay_of_an_earlier_version_is_refused() -> None:
    with pytest.raises(ValueError, match="earlier version and does not say whose tables it needs"):
        full().restore({"code": torch.arange(3), "_written": torch.tensor(3)})


def test_features_that_leave_the_table_later_are_kept_from_then_on() -> None:
    replay = Replay(10, {"user_features_BD": USERS, "candidate_features_BCD": ITEMS})
    replay.add(rows(0, 3))
    columns = rows(3, 3)
    columns["user_features_BD"] = columns["user_features_BD"] + 1
    replay.add(columns)
    drawn = replay.draw(100, torch.Generator().manual_seed(0))
    shift = (drawn["code"] >= 3).float().unsqueeze(1)
    assert torch.equal(drawn["user_features_BD"], USERS[drawn["user_B"]] + shift)
    assert torch.equal(drawn["next_user_features_BD"], USERS[drawn["user_B"]])


def test_an_empty_replay_says_so() -> None:
    with pytest.raises(ValueError, match="the replay is empty"):
        Replay(3).draw(1, torch.Generator())
