"""The command: a world's card, printed, kept and drawn; worlds of other data are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import fidelity
from experiments.fidelity import Arguments, asked_of, check_same_data
from recsim_env.assumptions import DeclaredLeave
from recsim_env.known_worlds import short_video_world
from recsim_env.known_worlds.logs import synthetic_log
from recsim_env.world import World
from tests.experiments.test_report import Page
from tests.helpers.learned import shared_build, small_log, small_truth
from tests.helpers.sublogs import of_users


@pytest.fixture(scope="module")
def world() -> World:
    return short_video_world(num_users=60, num_items=80, seed=6)


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two worlds that differ in how users leave, and one of other users."""
    path = tmp_path_factory.mktemp("worlds")
    world.replace(name="A").save(path / "A")
    world.replace(name="hasty", leave=DeclaredLeave().scaled(3.0)).save(path / "hasty")
    short_video_world(num_users=50, num_items=80, seed=6).replace(name="other").save(path / "other")
    return path


def run(capsys: pytest.CaptureFixture[str], **arguments: Any) -> str:
    fidelity.main(Arguments(num_sessions=10, **arguments))
    return capsys.readouterr().out


def test_a_card_is_measured_printed_kept_and_drawn(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run(
        capsys, world=folder / "A", against=(folder / "hasty",), json=tmp_path / "c.json", html=tmp_path / "page"
    )
    stored = json.loads((tmp_path / "c.json").read_text())
    card = stored["fidelity"]
    assert set(card) == {"drift", "probes", "depth", "verdicts", "is_known"}, "no log was asked"
    assert card["depth"]["sessions"] == 10
    claims = {claim["claim"]: claim for claim in card["verdicts"]}
    assert claims["click rate"]["because"] == "no log was asked"
    for claim in claims.values():
        assert f"| {claim['claim']} " in text
    seconds = stored["session_watch_time"]
    assert set(seconds) == {"A", "hasty"}
    assert all(seconds["hasty"][ranking] < seconds["A"][ranking] for ranking in seconds["A"])
    ranks = [np.argsort(np.argsort(list(rankings.values()))) for rankings in seconds.values()]
    assert stored["agreement"] == {"A, hasty": pytest.approx(np.corrcoef(*ranks)[0, 1])}
    page = Page((tmp_path / "page" / "report.html").read_text())
    assert page.open == []
    assert page.count["img"] == len(list((tmp_path / "page" / "plots").glob("*.png"))) == 2
    assert "Claims" in page.words
    assert "rank correlation" in page.words


def test_what_is_stored_is_shown_as_it_is(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, world=folder / "A", json=tmp_path / "c.json")
    card = json.loads((tmp_path / "c.json").read_text())["fidelity"]
    for requests in card["probes"].values():
        requests["50"]["watch_time"] = 3 * requests["1"]["watch_time"]
    World.load(folder / "A").replace(fidelity=card).save(tmp_path / "A")
    text = run(capsys, world=tmp_path / "A", json=tmp_path / "again.json")
    assert "playing" not in text
    again = json.loads((tmp_path / "again.json").read_text())["fidelity"]
    assert again["probes"] == card["probes"]
    assert again["depth"] == card["depth"]
    (claim,) = (one for one in again["verdicts"] if one["claim"] == "watch_time of fixed videos")
    assert claim["figure"] == pytest.approx(3.0)
    assert claim["verdict"] == "cannot say"
    assert claim["because"].endswith("this world is the truth itself")


def test_worlds_of_other_data_are_refused(folder: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"worlds 'A' and 'other' are not of the same data: they differ in users"):
        run(capsys, world=folder / "A", against=(folder / "other",))
    with pytest.raises(ValueError, match="worlds 'A' and 'other' are not of the same data"):
        run(capsys, world=folder)
    logs = [world.replace(provenance={"log": name, "content": name}) for name in ("may", "june")]
    with pytest.raises(ValueError, match="differ in log, content"):
        check_same_data(*logs, ("A", "B"))
    check_same_data(logs[0], world, ("A", "B"))  # a known world tells no log


def test_a_log_is_asked_of_its_own_world_alone(world: World) -> None:
    log = synthetic_log(world, num_sessions=40, days=3, seed=6)
    card = asked_of(log, world)
    first_showing_P = ~log.rows.duplicated(["user", "session", "item"])  # a repeat tells nothing
    assert card["logged"]["rows"] == first_showing_P.sum() < len(log.rows)
    assert card["log_has_sessions"]
    first = int(log.rows["date"].max())
    judged = world.replace(provenance={"days": {"test": [first]}}, population_P=world.population_P[:30])
    asked = asked_of(log, judged)
    own = log.rows[first_showing_P & (log.rows["date"] == first) & (log.rows["user"] < 30)]
    assert asked["logged"]["rows"] == len(own)
    assert asked["test_days"] == [first]
    stranger = short_video_world(num_users=50, num_items=80, seed=6)
    with pytest.raises(ValueError, match="has other users than world 'short_video'"):
        asked_of(log, stranger)
    bare = synthetic_log(world, num_sessions=40, days=3, seed=6)
    object.__setattr__(bare, "signals", ("watch_time", "click"))
    with pytest.raises(
        ValueError, match="the log has the signals watch_time, click, the users watch_time, click, long"
    ):
        asked_of(bare, world)


def test_users_that_the_world_never_saw_are_asked_of_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Judge users as a log of their own: the card says what the world says of them as users of its own log."""
    log, folders = small_log(small_truth()), shared_build()
    world, judge = (World.load(folders[name]) for name in ("A", "judge-final-1"))
    strangers, (first, last) = (
        judge.population_P.numpy(),
        (min(world.provenance["days"]["test"]), log.rows["date"].max()),
    )
    monkeypatch.setattr(fidelity, "_read", lambda _: of_users(log, strangers))
    paths = {"world": folders["A"], "against": (folders["judge-final-1"],), "log": tmp_path / "other.csv"}
    run(capsys, **paths, first_day=first, json=tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())["fidelity"]
    as_own = asked_of(log, world.replace(population_P=judge.population_P))
    assert found["test_days"] == [first, last]
    assert found["logged"]["rows"] == as_own["logged"]["rows"]
    for name, signal in as_own["logged"]["signals"].items():
        assert found["logged"]["signals"][name]["emitted_rate"] == pytest.approx(signal["emitted_rate"], rel=1e-4)
    assert {"depth", "probes", "clone_drift"} <= set(found)
    with pytest.raises(ValueError, match=r"has other (videos|users) than world 'A'.*--first-day"):
        run(capsys, **paths)
    with pytest.raises(ValueError, match="first_day=20220501 is a day of a log: give --log"):
        Arguments(world=Path("tiny"), first_day=20220501)


def test_one_session_is_no_interval() -> None:
    with pytest.raises(ValueError, match="needs num_sessions >= 2, got 1"):
        Arguments(world=Path("tiny"), num_sessions=1)
