"""What may not enter a world, and how a log comes into the codes of one."""

import dataclasses
import json
from typing import Any, Self

import numpy as np
import pandas as pd
import pytest
import torch

from recsim_env import World
from recsim_env.data import LoggedDataset
from recsim_env.data.features import UserEncoder, user_features
from recsim_env.data.recoding import recoded
from recsim_env.known_worlds import short_video_world, tiny_world
from recsim_env.known_worlds.logs import synthetic_log
from recsim_env.new_users import NewUsers, TakesUsers


class Taking:
    """Stands for a model that takes users and remembers which."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.users: NewUsers | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def with_users(self, users: NewUsers) -> Self:
        taken = type(self)(self._model)
        taken.users = users
        return taken


@pytest.fixture(scope="module")
def known() -> World:
    return short_video_world(num_users=60, num_items=100, seed=2)


@pytest.fixture(scope="module")
def log(known: World) -> LoggedDataset:
    return synthetic_log(known, num_sessions=40, days=4, seed=1)


@pytest.fixture(scope="module")
def taking(known: World, log: LoggedDataset) -> World:
    """A world all of whose models take users."""
    models = {name: Taking(getattr(known, name)) for name in ("response", "predictor", "candidates")}
    encoder = UserEncoder.fitted(log)
    users = dataclasses.replace(known.users, encoder=encoder, feature_names=encoder.names)
    return known.replace(users=users, **models)


DAY = 20220427


def test_models_are_told_who_comes(taking: World, log: LoggedDataset) -> None:
    assert isinstance(taking.response, TakesUsers)
    entered = taking.users_from(log, before=DAY)
    for name in ("response", "predictor", "candidates"):
        users = getattr(entered, name).users
        assert users.before == DAY
        assert np.array_equal(users.features_UD.numpy(), user_features(log).values)
        assert users.histories is entered.users.histories
        assert np.array_equal(users.log.items["item_id"], taking.catalogue.ids)
    assert log.history is not None
    past = pd.concat([log.history["user"], log.rows.loc[log.rows["date"] < DAY, "user"]])
    counts = past.value_counts().sort_index().clip(upper=200)
    assert entered.users.histories.start_U1.diff().tolist() == counts.tolist()
    assert entered.users.ids.tolist() == log.users["user_id"].tolist()


@pytest.mark.parametrize(
    "world", [tiny_world(), short_video_world(num_users=20, num_items=60)], ids=["tiny", "short_video"]
)
def test_known_worlds_take_no_users(world: World, log: LoggedDataset) -> None:
    with pytest.raises(ValueError, match=rf"no users can enter the world '{world.name}': its response model \(recsim"):
        world.users_from(log, before=DAY)


@pytest.mark.parametrize(("name", "what"), [("predictor", "predictor"), ("candidates", "candidate source")])
def test_a_model_that_takes_no_users_is_named(
    taking: World, known: World, log: LoggedDataset, name: str, what: str
) -> None:
    other = taking.replace(**{name: getattr(known, name)})
    with pytest.raises(ValueError, match=rf"its {what} \(.*:.*\) has no with_users\(\)"):
        other.users_from(log, before=DAY)


def test_a_world_that_does_not_say_what_features_mean_takes_none(taking: World, log: LoggedDataset) -> None:
    other = taking.replace(users=dataclasses.replace(taking.users, encoder=None))
    with pytest.raises(ValueError, match="does not say how the features of its users were made; build the world again"):
        other.users_from(log, before=DAY)


def test_other_signals_are_refused(taking: World, log: LoggedDataset) -> None:
    fewer = dataclasses.replace(log, signals=log.signals[:-1])
    renamed = dataclasses.replace(
        log, rows=log.rows.rename(columns={"hate": "zap"}), signals=(*log.signals[:-1], "zap"), history=None
    )
    for other, said in ((fewer, r"lacks \['hate'\] and has none"), (renamed, r"lacks \['hate'\] and has \['zap'\]")):
        with pytest.raises(ValueError, match=f"other signals than the world .*: it {said}"):
            taking.users_from(other, before=DAY)
        with pytest.raises(ValueError, match="other signals than the world"):
            taking.requests_of(other)


def test_a_missing_feature_column_is_named(taking: World, log: LoggedDataset) -> None:
    other = dataclasses.replace(log, users=log.users.drop(columns=["user_active_degree", "onehot_feat0"]))
    with pytest.raises(ValueError, match="lack the columns onehot_feat0, user_active_degree, which features were made"):
        taking.users_from(other, before=DAY)
    bare = dataclasses.replace(log, users=log.users[["user_id"]])
    with pytest.raises(ValueError, match="lack the columns onehot_feat0, onehot_feat1"):
        taking.users_from(bare, before=DAY)


def test_a_world_that_knows_nothing_of_its_users_takes_any(known: World, taking: World, log: LoggedDataset) -> None:
    bare = dataclasses.replace(log, users=log.users[["user_id"]], history=None)
    nothing = dataclasses.replace(taking.users, encoder=UserEncoder.fitted(bare), feature_names=())
    for other in (bare, log):
        entered = taking.replace(users=nothing).users_from(other, before=DAY)
        assert entered.users.features_UD.shape == (len(log.users), 0)


def test_other_videos_are_refused(taking: World, log: LoggedDataset) -> None:
    items = log.items.assign(item_id=[f"v{n}" for n in range(len(log.items))])
    with pytest.raises(
        ValueError, match=r"no row .* shows one of the 100 videos here: its ids are such as 'v0', those"
    ):
        taking.users_from(dataclasses.replace(log, items=items), before=DAY)


@pytest.mark.parametrize("before", [427, "2022-04-27"])
def test_a_day_is_a_day(taking: World, log: LoggedDataset, before: int | str) -> None:
    with pytest.raises(ValueError, match=f"before must be a day as YYYYMMDD, got {before!r}"):
        taking.users_from(log, before=before)


def test_requests_are_asked_of_users_who_are_there(taking: World, log: LoggedDataset) -> None:
    requests = taking.requests_of(log, DAY)
    assert len(requests) == log.rows[log.rows["date"] >= DAY].groupby(["user", "request"]).ngroups
    strangers = dataclasses.replace(log, users=log.users.assign(user_id=log.users["user_id"] + 5))
    with pytest.raises(ValueError, match=r"5 of 60 users .* let them enter a world first, World\.users_from"):
        taking.requests_of(strangers, DAY)


def test_a_log_in_other_codes_says_the_same(log: LoggedDataset) -> None:
    draws = np.random.default_rng(0)
    candidates = pd.Series([draws.permutation(100)[:7].astype(np.int32) for _ in range(len(log.rows))], dtype=object)
    log = dataclasses.replace(log, rows=log.rows.assign(candidates=candidates))
    item_ids = draws.permutation(log.items["item_id"].to_numpy())[10:]
    user_ids = draws.permutation(np.append(log.users["user_id"].to_numpy(), 777))
    other = recoded(log, item_ids, user_ids)

    def told(part: pd.DataFrame, users: Any, items: Any) -> pd.DataFrame:
        named = part.drop(columns=["user", "item", "candidates"], errors="ignore")
        named = named.assign(user_id=users[part["user"]], item_id=items[part["item"]])
        if "candidates" in part:
            named["candidates"] = [str([i for i in items[codes] if i in item_ids]) for codes in part["candidates"]]
        named = named[named["item_id"].isin(item_ids)]
        return named.sort_values("user_id", kind="stable", ignore_index=True)

    tables = (log.users["user_id"].to_numpy(), log.items["item_id"].to_numpy())
    pd.testing.assert_frame_equal(told(log.rows, *tables), told(other.rows, user_ids, item_ids))
    assert log.history is not None
    assert other.history is not None
    pd.testing.assert_frame_equal(told(log.history, *tables), told(other.history, user_ids, item_ids))
    assert other.counts["rows_of_unknown_videos"] == len(log.rows) - len(other.rows) > 0


def test_features_of_other_users_are_in_the_units_of_the_first() -> None:
    rows = pd.DataFrame(
        {
            "user": np.int32([0, 1]),
            "item": np.int32([0, 0]),
            "time_ms": np.int64([1650000000000] * 2),
            "date": np.int32([20220415] * 2),
            "watch_time": np.float32([1, 2]),
            "duration": np.float32([10, 10]),
        }
    )
    items = pd.DataFrame({"item_id": [0], "duration": np.float32([10])})

    def logged(users: pd.DataFrame) -> LoggedDataset:
        return LoggedDataset("small", rows, users.assign(user_id=np.arange(len(users))), items, ("watch_time",))

    fans = np.arange(20) ** 2
    first = pd.DataFrame({"kind": ["a", "b", "c", "a"] * 5, "flag": [0, 1] * 10, "fans": fans, "same": 1})
    encoder = UserEncoder.restore(json.loads(json.dumps(UserEncoder.fitted(logged(first)).config())))
    other = pd.DataFrame(
        {"kind": ["c", "new", None], "flag": [1.0, np.nan, -124], "fans": [9.0, np.nan, 1e12], "more": [1, 2, 3]}
    )
    table = encoder.encode(logged(other))
    column = dict(zip(table.names, table.values.T, strict=True))
    assert table.names == ("kind=a", "kind=b", "kind=c", "flag=0", "flag=1", "log_fans")
    assert column["kind=a"].tolist() == [0, 0, 0]
    assert column["kind=c"].tolist() == [1, 0, 0]
    assert column["flag=1"].tolist() == [1, 0, 0]
    logs = np.log1p(fans)
    assert column["log_fans"] == pytest.approx([(np.log(10) - logs.mean()) / logs.std(), 0.0, 4.0])
    with pytest.raises(ValueError, match="column 'fans' must hold numbers"):
        encoder.encode(logged(other.assign(fans="many")))


def test_what_never_differed_among_the_first_users_says_nothing_of_others(log: LoggedDataset) -> None:
    assert log.history is not None
    assert log.history["user"].value_counts().nunique() == 1
    encoder, half = UserEncoder.fitted(log), log.history[log.history["position"] % 2 == 0]
    table = encoder.encode(dataclasses.replace(log, history=half))
    assert not table.values[:, table.names.index("log_history_length")].any()


def test_encoders_travel_with_the_world(taking: World, known: World, tmp_path: Any) -> None:
    kept = known.replace(users=dataclasses.replace(known.users, encoder=taking.users.encoder))
    assert World.load(kept.save(tmp_path / "w")).users.encoder == taking.users.encoder
    assert kept.to("cpu").users.encoder == taking.users.encoder
    assert torch.equal(kept.users.features_UD, known.users.features_UD)
