"""World folders: what goes in comes out, and a damaged folder is refused in one sentence."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from recsim_env import RecVectorEnv, World
from recsim_env.assumptions import DeclaredLeave, TagRepeatEffect
from recsim_env.data.histories import Histories
from recsim_env.known_worlds import short_video_world, tiny_world
from recsim_env.known_worlds.names import resolve_world
from recsim_env.types import NO_ITEM
from recsim_env.world import load_worlds


@pytest.fixture(scope="module")
def world() -> World:
    world = short_video_world(num_users=60, num_items=150, seed=2)
    return world.replace(
        list_effect=TagRepeatEffect(world.catalogue.tag_N, 0.4),
        declared={"list_effect": 0.4},
        fidelity={"x": 1.5},
    )


@pytest.fixture(scope="module")
def saved(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.save(tmp_path_factory.mktemp("worlds") / "w")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def play(world: World | Path) -> torch.Tensor:
    env = RecVectorEnv(5, world, num_candidates=20, slate_size=4, history_length=10)
    env.reset_tensors(seed=3)
    rewards = [env.step_tensors(env.request.candidates_BC[:, :4]).reward_B for _ in range(6)]
    return torch.stack(rewards)


def test_a_loaded_world_plays_the_same_bytes(world: World, saved: Path) -> None:
    loaded = World.load(saved)
    assert torch.equal(play(world), play(loaded))
    assert torch.equal(play(world), play(saved))
    assert loaded.declared == world.declared
    assert loaded.fidelity == world.fidelity
    assert loaded.provenance == json.loads(json.dumps(world.provenance))
    assert loaded.catalogue.ids.tolist() == world.catalogue.ids.tolist()


def test_saving_replaces_the_older_world_and_leaves_nothing_else(world: World, folder: Path) -> None:
    world.replace(name="second").save(folder)
    assert World.load(folder).name == "second"
    assert {p.name for p in folder.parent.iterdir()} == {"copy"}


def test_saved_worlds_can_be_read_by_others(folder: Path, world: World) -> None:
    world.save(folder)
    plain = folder.parent / "plain"
    plain.mkdir()
    assert folder.stat().st_mode == plain.stat().st_mode


def test_a_failed_save_leaves_the_older_world(world: World, folder: Path) -> None:
    class Unsaveable(DeclaredLeave):
        config = None  # type: ignore[assignment]

    before = play(folder)
    with pytest.raises(TypeError):
        world.replace(leave=Unsaveable()).save(folder)
    assert torch.equal(play(folder), before)
    assert {p.name for p in folder.parent.iterdir()} == {"copy"}


@pytest.mark.parametrize("name", ["", "."])
def test_saving_into_the_current_folder_touches_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is the current folder"):
        world.save(name)
    with pytest.raises(ValueError, match=r"holds what was not written here \(thesis.txt\)"):
        world.save(Path(shutil.copytree(tmp_path, tmp_path / "sub")))
    assert (tmp_path / "thesis.txt").read_text() == (tmp_path / "sub" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["tables.safetensors", "models.safetensors"])
def test_truncated_folders_are_refused(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{name} is truncated or missing \(\d+ bytes, \d+ expected\)"):
        World.load(folder)


def test_damaged_bytes_are_refused(folder: Path) -> None:
    path = folder / "tables.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(ValueError, match=r"tables.safetensors is damaged"):
        World.load(folder)


def test_other_versions_and_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    card = json.loads((folder / "world.json").read_text())
    (folder / "world.json").write_text(json.dumps(card | {"format": 99}))
    with pytest.raises(ValueError, match="written in world format 99, this version reads 7; build the world again"):
        World.load(folder)
    (folder / "world.json").write_text("{")
    with pytest.raises(ValueError, match=r"world.json is damaged"):
        World.load(folder)
    with pytest.raises(ValueError, match=r"is not a world folder: it has no world.json"):
        World.load(tmp_path)


def test_a_model_of_another_version_is_refused(folder: Path) -> None:
    card = json.loads((folder / "world.json").read_text())
    card["models"]["leave"]["config"]["per_parsec"] = 1.0
    (folder / "world.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"stored leave does not fit the present class .*Leave .*per_parsec"):
        World.load(folder)


def test_worlds_that_cannot_be(world: World) -> None:
    with pytest.raises(ValueError, match="first signal of a world must be 'watch_time'"):
        world.replace(signals=("click", "watch_time"))
    with pytest.raises(ValueError, match="they must be the same"):
        world.replace(signals=world.signals[:-1])
    with pytest.raises(ValueError, match="has no users to draw sessions from"):
        world.replace(population_P=torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"population codes must lie in 0\.\.59, got 3\.\.60"):
        world.replace(population_P=torch.tensor([3, 60]))


def test_a_model_that_cannot_be_saved_is_named(world: World, tmp_path: Path) -> None:
    class Bare:
        def stay(self, context_BX: torch.Tensor, signals_BKF: torch.Tensor) -> torch.Tensor:
            return signals_BKF[..., 0]

    with pytest.raises(ValueError, match=r"the world's leave \(.*Bare\) cannot be saved: it has no config\(\)"):
        world.replace(leave=Bare()).save(tmp_path / "w")
    assert not list(tmp_path.iterdir())


def test_history_windows_are_the_last_impressions_of_each_user() -> None:
    histories = Histories(
        start_U1=torch.tensor([0, 3, 3, 5]),
        item_P=torch.tensor([7, 8, 9, 4, 5]),
        feedback_PF=torch.arange(10.0).reshape(5, 2),
        known_PF=torch.ones(5, 2, dtype=torch.bool),
    )
    items, feedback, known = histories.window(torch.tensor([2, 1, 0]), 2)
    assert items.tolist() == [[4, 5], [NO_ITEM, NO_ITEM], [8, 9]]
    assert feedback[0].tolist() == [[6, 7], [8, 9]]
    assert not known[1].any()
    items, feedback, _ = histories.window(torch.tensor([2]), 4)
    assert items.tolist() == [[NO_ITEM, NO_ITEM, 4, 5]]
    assert not feedback[0, :2].any()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_named(tmp_path: Path) -> None:
    tiny_world().save(tmp_path / "world")
    for ask in (
        lambda: RecVectorEnv(2, world="tiny", device="cuda"),
        lambda: resolve_world("tiny", "cuda"),
        lambda: World.load(tmp_path / "world", "cuda"),
    ):
        with pytest.raises(ValueError, match="device 'cuda': torch finds no CUDA device"):
            ask()


@pytest.fixture
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A world folder of a stranger's: it brings a module, and its card names a class of it."""
    place = tiny_world().save(tmp_path / "strange")
    (place / "strange_model.py").write_text(
        "from pathlib import Path\n"
        "Path(__file__).with_name('ran.txt').write_text('this code ran')\n"
        "from recsim_env.known_worlds.tiny import TinyLeave as Leave\n"
    )
    monkeypatch.syspath_prepend(place)
    name_class(place / "world.json", "leave", "strange_model:Leave")
    return place


def name_class(path: Path, model: str, class_path: str) -> None:
    card = json.loads(path.read_text())
    card["models"][model]["class"] = class_path
    path.write_text(json.dumps(card))


def test_nothing_of_a_strangers_folder_runs_unless_it_is_trusted(strange: Path) -> None:
    for load in (World.load, resolve_world, lambda folder: RecVectorEnv(2, folder)):
        with pytest.raises(ValueError, match=r"wants to run code .* pass trusted=\('strange_model',\)"):
            load(strange)
    assert not (strange / "ran.txt").exists()
    assert World.load(strange, trusted=("strange_model",)).leave.config() == tiny_world().leave.config()  # type: ignore[attr-defined]
    assert (strange / "ran.txt").read_text() == "this code ran"


def test_classes_deep_in_a_card_are_checked_too(strange: Path) -> None:
    """The declared list effect of an evaluator stands inside its settings, and in a file of its own."""
    name_class(strange / "world.json", "leave", "recsim_env.known_worlds.tiny:TinyLeave")
    path = strange / "recommender" / "recommender.json"
    card = json.loads(path.read_text())
    card["models"]["predictor"]["config"]["list_effect"] = {"class": "strange_model:Leave", "config": {}}
    path.write_text(json.dumps(card))
    with pytest.raises(ValueError, match="wants to run code"):
        World.load(strange)
    assert not (strange / "ran.txt").exists()


def test_trust_is_by_whole_names(strange: Path) -> None:
    for name in ("recsim_envious.models:Leave", "os:system", "reward_modelsx:Leave"):
        name_class(strange / "world.json", "leave", name)
        with pytest.raises(ValueError, match="in none of recsim_env, reward_models, agents, strange"):
            World.load(strange, trusted=("strange",))


def test_worlds_differ_by_what_they_hold_and_not_by_name(world: World, saved: Path) -> None:
    assert World.load(saved).digest == world.digest
    assert world.replace(name="other", provenance={}, fidelity={}).digest == world.digest
    tables = {"population_P": world.population_P[:-1], "leave": DeclaredLeave(per_place=0.5), "defaults": {"a": 1}}
    predictor = short_video_world(num_users=60, num_items=150, seed=3).predictor
    changed = [world.replace(**{name: value}) for name, value in {**tables, "predictor": predictor}.items()]
    digests = {other.digest for other in [world, *changed]}
    assert len(digests) == len(changed) + 1


def test_a_recommender_is_shared_by_the_worlds_that_refer_to_it(world: World, tmp_path: Path) -> None:
    shared = world.recommender.save(tmp_path / "recommender")
    folders = {name: world.replace(name=name).save(tmp_path / name, recommender=shared) for name in ("one", "two")}
    worlds = load_worlds(folders)
    assert worlds["one"].recommender is worlds["two"].recommender
    assert worlds["one"].digest == world.digest
    assert not (folders["one"] / "recommender").exists()
    assert torch.equal(play(folders["two"]), play(world))
    other = short_video_world(num_users=60, num_items=150, seed=3)
    with pytest.raises(ValueError, match="holds another recommender"):
        other.save(tmp_path / "three", recommender=shared)
    other.recommender.save(shared)
    with pytest.raises(ValueError, match=r"holds another recommender .* build the worlds again"):
        World.load(folders["one"])


def test_parts_of_the_recommender_are_replaced_through_the_world(world: World) -> None:
    other = tiny_world()
    changed = world.replace(candidates=other.candidates, name="changed")
    assert changed.candidates is other.candidates
    assert changed.predictor is world.predictor
    assert changed.recommender.replace(candidates=world.candidates) == world.recommender


def test_a_world_says_what_it_is_in_a_few_lines(world: World) -> None:
    text = repr(world)
    assert text.splitlines()[0] == f"World {world.name!r}"
    assert len(text.splitlines()) == 9
    assert f"{len(world.catalogue):,}" in text
    assert "not judged" in text
    claims = [
        {"claim": "click rate", "verdict": "fail"},
        {"claim": "like rate", "verdict": "pass"},
        {"claim": "depth", "verdict": "pass"},
    ]
    declared = {"leave": {"session_cut": "2h"}, "list_effect": {}}
    judged = repr(world.replace(fidelity={"verdicts": claims}, declared=declared))
    assert "2 pass, 1 fail, 0 cannot say" in judged
    assert judged.splitlines()[-1].split() == ["fails", "click", "rate"]
    assert "29.0 requests" in judged
    assert "leave, list_effect" in judged
