"""From a log to worlds: who learns from whom, what is kept, and what is refused before it costs an hour."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from recsim_env.data import LoggedDataset
from recsim_env.simulator import Simulator
from recsim_env.world import FORMAT, World, load_worlds
from reward_models.build import build_worlds
from reward_models.declared import declared_leave
from reward_models.fidelity.verdicts import verdicts
from reward_models.plan import BuildConfig, days_of, obstacles, users_of
from reward_models.recommender.operator_requests import operator_requests
from reward_models.variants import with_recommender, without_list_effect
from tests.helpers.learned import ONE_JUDGE, SMALL_BUILD, small_log, small_truth


@pytest.fixture(scope="module")
def truth() -> World:
    return small_truth()


@pytest.fixture(scope="module")
def log(truth: World) -> LoggedDataset:
    return small_log(truth)


@pytest.fixture(scope="module")
def folders(log: LoggedDataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_worlds(log, tmp_path_factory.mktemp("build"), SMALL_BUILD)


@pytest.fixture(scope="module")
def worlds(folders: dict[str, Path]) -> dict[str, World]:
    return load_worlds(folders)


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["A"].parent, tmp_path / "copy"))


def flipped(log: LoggedDataset, users: np.ndarray) -> LoggedDataset:
    """The same log, in which these users answered everything the other way round."""
    tables = {}
    for name in ("rows", "history"):
        table = getattr(log, name)
        if table is None:
            continue
        theirs = table["user"].isin(users)
        tables[name] = table.copy()
        for signal in log.signals:
            if signal in table:
                other = 1 - table[signal] if signal != "watch_time" else 40.0 - table[signal].clip(upper=40.0)
                tables[name][signal] = table[signal].where(~theirs, other).astype(table[signal].dtype)
    return dataclasses.replace(log, **tables)


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], foreign: np.ndarray) -> set[str]:
    """Names of tensors that differ; in what starts from each user's own past, rows of ``foreign`` do not count."""
    own = torch.ones(400, dtype=torch.bool)
    own[torch.from_numpy(foreign)] = False
    starts = ("start_US", "state_US")
    assert first.keys() == second.keys()
    same = {
        name: torch.equal(first[name][own], second[name][own]) if name in starts else torch.equal(first[name], other)
        for name, other in second.items()
    }
    return {name for name, is_same in same.items() if not is_same}


def test_days_are_split_from_the_end(log: LoggedDataset) -> None:
    days = days_of(log, SMALL_BUILD)
    assert days.test == (20220429, 20220430)
    assert days.stopping == (20220428,)
    assert days.fit_until == 20220428
    unstopped = days_of(log, dataclasses.replace(SMALL_BUILD, stopping_days=0))
    assert (unstopped.test, unstopped.stopping, unstopped.fit_until) == (days.test, (), days.fit_until)
    with pytest.raises(ValueError, match=r"has 6 days; 4 test days and 2 stopping days need at least 7"):
        days_of(log, BuildConfig())


def test_every_user_has_one_role(log: LoggedDataset) -> None:
    parts = users_of(log, SMALL_BUILD)
    assert list(parts) == ["A", "choosing", "judge-dev", "judge-final"]
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(400))
    shares = {name: len(codes) / 400 for name, codes in parts.items()}
    assert shares == pytest.approx({"A": 0.45, "choosing": 0.1, "judge-dev": 0.15, "judge-final": 0.3}, abs=0.06)
    without = users_of(log, ONE_JUDGE)
    assert without["A"].tolist() == parts["A"].tolist()
    both = sorted([*parts["judge-dev"].tolist(), *parts["judge-final"].tolist()])
    assert without["judge-final"].tolist() == both


def test_worlds_hold_disjoint_users_and_one_recommender(folders: dict[str, Path], worlds: dict[str, World]) -> None:
    assert list(worlds) == ["A", "judge-dev", "judge-final-1", "judge-final-2"]
    a, dev, final, other = worlds.values()
    populations = [set(world.population_P.tolist()) for world in (a, dev, final)]
    assert not populations[0] & populations[1]
    assert not populations[0] & populations[2]
    assert not populations[1] & populations[2]
    assert torch.equal(final.population_P, other.population_P)
    assert all(world.recommender is a.recommender for world in worlds.values())
    out = folders["A"].parent
    assert [path.name for path in out.rglob("recommender.json")] == ["recommender.json"], "saved once"
    for world in (dev, final, other):
        assert torch.equal(world.catalogue.features_ND, a.catalogue.features_ND)
        shapes = [tuple(t.shape) for t in a.response.tensors().values()]  # type: ignore[attr-defined]
        assert shapes != [tuple(t.shape) for t in world.response.tensors().values()]  # type: ignore[attr-defined]
    assert a.declared.keys() == {"leave", "contexts", "uniform_rates"}, "a log with slates teaches its list effects"
    assert a.evaluator.leave.config() == a.leave.config()  # type: ignore[union-attr, attr-defined]
    assert a.declared["leave"] == {"session_cut": "30min", **a.leave.config()}  # type: ignore[attr-defined]
    assert a.fidelity["logged"]["rows"] > 0
    assert set(a.fidelity["drift"]) == {"1", "5", "20", "50"}
    assert a.fidelity["log_has_sessions"]
    assert "depth" not in a.fidelity, "these builds leave it out"
    assert a.fidelity["verdicts"] == verdicts(a.fidelity, a.declared)
    assert a.fidelity["logged"]["coverage"]["rows"] == a.fidelity["logged"]["rows"]
    assert {one["group"] for one in a.fidelity["logged"]["groups"]["tab"]} == {"1"}


def test_leaving_is_declared_for_the_ranked_rows_of_a_users(log: LoggedDataset, worlds: dict[str, World]) -> None:
    """Equal in all worlds, and of the same mean hazard as 13.6 requests of six places, whatever uniform rows hold."""
    users, days = users_of(log, SMALL_BUILD)["A"], days_of(log, SMALL_BUILD)
    rows = log.rows[log.rows["user"].isin(users) & (log.rows["date"] <= days.fit_until)]
    for world in worlds.values():
        signals_PKF = torch.zeros(len(rows), 1, len(world.signals))
        signals_PKF[:, 0, 0] = torch.tensor(rows["watch_time"].to_numpy())
        hazard_PK = -world.leave.stay(torch.zeros(len(rows), 7), signals_PKF).double().log()
        assert float(hazard_PK.mean()) == pytest.approx(0.01273, abs=2e-5)
        assert world.declared["leave"] == worlds["A"].declared["leave"]
    assert worlds["A"].declared["leave"]["session_cut"] == "30min"

    spoiled = log.rows.assign(is_random=np.arange(len(log.rows)) % 3 == 0)
    spoiled["watch_time"] *= np.where(spoiled["is_random"], 0.1, 1.0).astype(np.float32)
    kept = dataclasses.replace(log, rows=log.rows[~spoiled["is_random"].to_numpy()].reset_index(drop=True))
    usual, other = (
        declared_leave(each, users, days.fit_until, "30min").config()
        for each in (kept, dataclasses.replace(log, rows=spoiled))
    )
    assert other == pytest.approx(usual)


def test_feedback_of_judges_reaches_nobody_else(log: LoggedDataset, worlds: dict[str, World], tmp_path: Path) -> None:
    """Neither the recommender nor world A nor judges of other users: they come out the same, byte for byte."""
    foreign = users_of(log, SMALL_BUILD)["judge-final"]
    one = dataclasses.replace(SMALL_BUILD, judges=1)
    strange = load_worlds(build_worlds(flipped(log, foreign), tmp_path, one))
    a, other = worlds["A"], strange["A"]
    for name in ("predictor", "candidates", "evaluator"):
        tensors = [getattr(world, name).tensors() for world in (a, other)]
        assert differing(*tensors, foreign) == set(), name
    for name in ("A", "judge-dev"):
        responses = [world[name].response.tensors() for world in (worlds, strange)]  # type: ignore[attr-defined]
        assert differing(*responses, foreign) == set(), name
        assert worlds[name].fidelity == strange[name].fidelity
    assert torch.equal(a.catalogue.features_ND, other.catalogue.features_ND)
    assert torch.equal(a.users.features_UD, other.users.features_UD)
    # The test can see: where the flipped users are one's own, everything has changed.
    own = [world["judge-final-1"].response.tensors() for world in (worlds, strange)]  # type: ignore[attr-defined]
    assert len(differing(*own, foreign)) > 10


def test_a_build_goes_on_where_it_stopped(copy: Path, folders: dict[str, Path], log: LoggedDataset) -> None:
    before = (copy / "A" / "models.safetensors").stat().st_mtime_ns
    shutil.rmtree(copy / "judge-final-2")
    build_worlds(log, copy, SMALL_BUILD)
    assert (copy / "A" / "models.safetensors").stat().st_mtime_ns == before
    again, first = (World.load(folder / "judge-final-2") for folder in (copy, folders["A"].parent))
    assert again.digest == first.digest
    shutil.rmtree(copy / "recommender")
    shutil.rmtree(copy / "judge-dev")
    build_worlds(log, copy, SMALL_BUILD)
    assert World.load(copy / "A").digest == World.load(folders["A"]).digest


def test_a_build_folder_is_for_one_log_and_one_setting(copy: Path, log: LoggedDataset) -> None:
    with pytest.raises(ValueError, match=r"holds other work \(config.seed was 0, now 9\)"):
        build_worlds(log, copy, dataclasses.replace(SMALL_BUILD, seed=9))
    shutil.rmtree(copy / "judge-final-1")
    with pytest.raises(ValueError, match=r"holds other work \(content was"):
        build_worlds(flipped(log, np.arange(400)), copy, SMALL_BUILD)
    assert not (copy / "judge-final-1").exists()
    build_worlds(log, copy, dataclasses.replace(SMALL_BUILD, jobs=2))


def test_files_of_the_users_are_left_alone(log: LoggedDataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "A").mkdir(parents=True)
    (out / "A" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds files but no build.json"):
        build_worlds(log, out, ONE_JUDGE)
    shutil.rmtree(out)
    out.mkdir()
    config = json.loads(json.dumps(dataclasses.asdict(ONE_JUDGE)))
    del config["jobs"]
    card = {"format": FORMAT, "log": log.name, "content": log.digest, "config": config}
    (out / "build.json").write_text(json.dumps(card))
    (out / "A").mkdir()
    (out / "A" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"A holds what was not written here \(thesis.txt\)"):
        build_worlds(log, out, ONE_JUDGE)
    assert sorted(path.name for path in out.rglob("*")) == ["A", "build.json", "thesis.txt"], "nothing has been fitted"


def test_a_world_without_its_build_says_what_is_missing(copy: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(copy / "A", tmp_path / "elsewhere" / "A")
    with pytest.raises(ValueError, match="move or copy the folder of a build as a whole, or save the world alone"):
        World.load(alone)
    world = World.load(copy / "A")
    world.save(tmp_path / "saved")
    shutil.rmtree(copy)
    assert World.load(tmp_path / "saved").digest == world.digest


def test_a_log_without_slates_gets_declared_effects(log: LoggedDataset, tmp_path: Path) -> None:
    rows = log.rows.drop(columns=["request", "place", "session"])
    bare = dataclasses.replace(log, name="bare", rows=rows)
    folders = build_worlds(bare, tmp_path, ONE_JUDGE)
    world = World.load(folders["A"])
    assert world.declared["list_effect"]["strength"] == 0.3
    assert world.list_effect is not None
    assert not world.evaluator.listwise  # type: ignore[union-attr]
    assert World.load(folders["judge-final-1"]).declared == world.declared
    plain = without_list_effect(world)
    assert plain.list_effect is plain.evaluator.list_effect is None  # type: ignore[union-attr]
    assert plain.evaluator.leave.config() == world.leave.config()  # type: ignore[union-attr, attr-defined]
    assert plain.declared.keys() == {"leave", "contexts", "uniform_rates"}
    assert plain.fidelity["logged"] == world.fidelity["logged"]
    assert plain.fidelity["drift"] != world.fidelity["drift"]
    assert plain.fidelity["verdicts"] == verdicts(plain.fidelity, plain.declared)
    request = Simulator(world).start(8, seed=0).request
    lists_BGK = request.candidates_BC[:, None, :6]
    values = [one.evaluator.score(request, lists_BGK).value_BG for one in (world, plain)]  # type: ignore[union-attr]
    assert bool((values[1] > values[0]).any()), "repeated tags cost nothing any more"
    assert bool((values[1] >= values[0]).all())


def test_the_recommender_shares_nothing_with_the_world(folders: dict[str, Path]) -> None:
    """Spoiling the world after a request was made leaves everything the recommender says as it was."""
    world = World.load(folders["A"])
    request = Simulator(world).start(8, seed=0).request
    for tensor in world.response.tensors().values():  # type: ignore[attr-defined]
        tensor.zero_()
    spoilt = Simulator(world).start(8, seed=0).request
    assert all(torch.equal(a, b) for a, b in zip(request, spoilt, strict=True))
    lists = request.candidates_BC[:, :6].unsqueeze(1)
    clean = World.load(folders["A"]).evaluator
    assert world.evaluator is not None
    assert clean is not None
    assert torch.equal(world.evaluator.score(request, lists).value_BG, clean.score(request, lists).value_BG)


def test_the_truth_judges_as_the_same_recommender_sees_it(worlds: dict[str, World], truth: World) -> None:
    learned = worlds["judge-final-1"]
    judged = with_recommender(truth, learned)
    assert judged.response is truth.response
    first, second = (Simulator(world).start(16, seed=3).request for world in (learned, judged))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_single_session_says_nothing_of_depth() -> None:
    with pytest.raises(ValueError, match="depth_sessions must be 0, or at least 2 for an interval, got 1"):
        BuildConfig(depth_sessions=1)


def test_what_cannot_be_built_is_said_first(log: LoggedDataset, tmp_path: Path) -> None:
    assert obstacles(log, SMALL_BUILD) == []
    unwatched = dataclasses.replace(log, signals=log.signals[1:])
    with pytest.raises(ValueError, match="no row says how long a video was watched"):
        build_worlds(unwatched, tmp_path / "out", SMALL_BUILD)
    assert "has 6 days; 4 test days" in obstacles(log)[0]
    choosing = users_of(log, SMALL_BUILD)["choosing"]
    idle = log.rows[~(log.rows["user"].isin(choosing) & (log.rows["date"] == 20220428))].reset_index(drop=True)
    found = obstacles(dataclasses.replace(log, rows=idle), SMALL_BUILD)
    assert len(found) == 1
    assert found[0].startswith("users of 'choosing' have no rows on the stopping days: take a log of more users")
    assert not (tmp_path / "out").exists()


def test_the_operators_requests_are_those_its_recommender_was_fitted_to(
    log: LoggedDataset, worlds: dict[str, World]
) -> None:
    world = worlds["A"]
    early = log.rows[log.rows["date"] <= world.provenance["days"]["fit_until"]]
    population = set(np.asarray(world.population_P).tolist())
    requests = operator_requests(log, world)
    assert set(requests.user_L.tolist()) == set(early["user"]) & population
    assert set(requests.user_L.tolist()) < set(early["user"])  # the judges' users are not among them
    some = requests.user_L[:3]
    assert set(operator_requests(log, world, some).user_L.tolist()) == set(some.tolist())
