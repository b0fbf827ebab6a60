"""A plain table on the command line: what inspect says of it is what build_world does with it."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from agents.goalrank import GoalRank, GoalRankConfig
from agents.networks import RequestShape
from experiments import build_world
from experiments.inspect import Inspect
from recsim_env import RecVectorEnv
from recsim_env.world import World
from reward_models.trainer import TrainConfig
from reward_models.users.fitting import ResponseFitConfig
from tests.helpers.learned import ONE_JUDGE

LONGER = dataclasses.replace(
    ONE_JUDGE,
    fit=ResponseFitConfig(calibration_folds=0, train=TrainConfig(max_epochs=6, learning_rate_decay=0.8)),
)
NUM_USERS, NUM_ITEMS, ROWS = 120, 30, 42


def plain_table(path: Path, **renamed: str) -> Path:
    """Nothing but who watched what, when and for how long, over seven days; even items are watched longer."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(NUM_USERS), ROWS)
    item = rng.integers(0, NUM_ITEMS, len(user))
    rows = pd.DataFrame(
        {
            "uid": user,
            "vid": item,
            "ts": 1_650_000_000 + np.tile(np.arange(ROWS), NUM_USERS) * 7 * 86_400 // ROWS,
            "seconds": rng.exponential(np.where(item % 2 == 0, 30.0, 6.0)).round(1),
        }
    )
    rows["liked"] = (rng.random(len(rows)) < 0.2).astype(int)
    rows.rename(columns=renamed)[[*renamed.values()] or rows.columns].to_csv(path, index=False)
    return path


def verdict(log: Path, columns: str, preset: str | None = None) -> tuple[str, str]:
    found = Inspect(log=log, columns=columns, preset=preset).run()["capabilities"][0]  # type: ignore[arg-type]
    assert found["name"] == "learned worlds"
    return found["verdict"], found["reason"]


def watched(world: World) -> torch.Tensor:
    """Mean seconds of the first places, even and odd items apart."""
    env = RecVectorEnv(256, world)
    request = env.reset_tensors(seed=0)
    slate_BK = request.candidates_BC[:, :6]
    transition = env.step_tensors(slate_BK)
    seconds_BK, seen_BK = transition.feedback.signals_BKF[..., 0], transition.feedback.seen_BK
    even_BK = torch.from_numpy(world.catalogue.ids)[slate_BK] % 2 == 0
    return torch.stack([seconds_BK[seen_BK & even_BK].mean(), seconds_BK[seen_BK & ~even_BK].mean()])


@pytest.mark.parametrize("signals", [("like=liked", "watch_time", "like"), ("", "watch_time")])
def test_a_table_of_four_columns_becomes_worlds(tmp_path: Path, signals: tuple[str, ...]) -> None:
    """No features of users or items, no durations, and without likes nothing but seconds."""
    log = plain_table(tmp_path / "log.csv")
    columns = f"user=uid,item=vid,time=ts,time_unit=s,watch_time=seconds,watch_time_unit=s,{signals[0]}"
    assert verdict(log, columns)[0] == "partly"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layer of width 0 makes torch warn
        build_world.main(build_world.Arguments(log=log, map=columns, out=tmp_path / "worlds", build=LONGER))
    world = World.load(tmp_path / "worlds" / "A")
    assert world.signals == signals[1:]
    assert world.users.features_UD.shape == (NUM_USERS, 0)
    assert world.catalogue.duration_N.tolist() == [60.0] * NUM_ITEMS
    assert RecVectorEnv(2, world).config.num_candidates == NUM_ITEMS, "a small catalogue is a small candidate set"
    request = RecVectorEnv(4, world).reset_tensors(seed=0)
    shape = RequestShape.of(request, NUM_ITEMS, 6)
    policy = GoalRank(GoalRankConfig(width=16, heads=2, item_embedding=4)).network(shape)
    assert policy(request, torch.Generator()).items_BK.shape == (4, 6)
    even, odd = watched(world)
    assert even > 1.5 * odd, "videos differ by their rows, where nothing else is known of them"
    for observation in ("features", "ids", "both"):
        env = RecVectorEnv(2, world, observation=observation)
        env.reset(seed=0)
        env.step(env.action_space.sample())


def test_the_kuairec_preset_becomes_worlds(tmp_path: Path) -> None:
    names = {"uid": "user_id", "vid": "video_id", "ts": "timestamp", "seconds": "play_duration"}
    log = plain_table(tmp_path / "log.csv", **names)
    table = pd.read_csv(log)
    table["play_duration"] *= 1000
    table["video_duration"] = np.where(table["video_id"] % 2 == 0, 60_000, 8_000)
    table.to_csv(log, index=False)
    assert verdict(log, "", "kuairec")[0] == "partly"
    build_world.main(build_world.Arguments(log=log, preset="kuairec", out=tmp_path / "worlds", build=LONGER))
    even, odd = watched(World.load(tmp_path / "worlds" / "A"))
    assert even > 1.5 * odd


def test_a_table_without_watch_time_is_refused_by_both(tmp_path: Path) -> None:
    log = plain_table(tmp_path / "log.csv")
    columns = "user=uid,item=vid,time=ts,time_unit=s,like=liked"
    answer, reason = verdict(log, columns)
    assert answer == "no"
    with pytest.raises(ValueError, match="no row says how long a video was watched") as error:
        build_world.main(build_world.Arguments(log=log, map=columns, out=tmp_path / "worlds", build=ONE_JUDGE))
    assert reason in str(error.value)
    assert not (tmp_path / "worlds").exists()
