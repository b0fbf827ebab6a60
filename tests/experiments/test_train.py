"""The training verb: recipes by name, methods by class path, and what is refused before anything runs."""

import dataclasses
import sys
from pathlib import Path

import pytest

from agents.goalrank import GoalRankConfig
from agents.policies import load_policy, policy_card
from agents.rerankers.log_methods import LOG_METHODS
from agents.rllib.algorithm import MethodAlgorithmConfig
from agents.rllib.train import train_method
from experiments.policies import contender, named_policies
from experiments.recipes import RECIPES, SESSION_ENV, TrainRun, recipe
from experiments.train import parse, run
from recsim_env.data.requests import logged_requests
from recsim_env.known_worlds.logs import synthetic_log
from recsim_env.world import World
from tests.helpers.kuairand_files import write_kuairand
from tests.helpers.learned import shared_build, small_log, small_truth

STRANGER = """
from agents.method import MethodConfig, REWARD, Step, request_of
from agents.list_policy import ListPolicy, ListPolicyConfig, POSITIONS

class Nudge:
    Config, data = ListPolicyConfig, "fresh"
    def __init__(self, config):
        self.config = config
    def network(self, shape):
        return ListPolicy(self.config, shape)
    def outputs(self, network, batch):
        return {"log_prob_BG": network.group_log_prob(request_of(batch), batch[POSITIONS].unsqueeze(1))}
    def loss(self, outputs, batch):
        return -(outputs["log_prob_BG"][:, 0] * batch[REWARD]).mean(), {}
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A log as a folder, and the worlds built from it."""
    folder = tmp_path_factory.mktemp("train")
    write_kuairand(small_log(small_truth()), folder / "log")
    return {"log": folder / "log", **shared_build()}


def small(name: str, world: Path | str, run_dir: Path, **changes: object) -> TrainRun:
    base = recipe(name)
    sizes = {"width": 8, "heads": 2, "item_embedding": 0, "minibatch_size": 16}
    few = {"iterations": 1, "num_envs": 4, "steps_per_iteration": 4, "world": str(world), "run_dir": run_dir}
    return dataclasses.replace(base, config=dataclasses.replace(base.config, **sizes), **{**few, **changes})


def test_every_recipe_names_a_method_and_its_settings() -> None:
    for name in RECIPES:
        found = recipe(name)
        assert type(found.make_method().config) is type(found.config), name
    assert set(LOG_METHODS) <= set(RECIPES)
    assert recipe("agents.goalrank:GoalRank").config == GoalRankConfig()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gaolrank"], r"no recipe 'gaolrank' \(did you mean 'goalrank'\?\)"),
        (["agents.goalrank:Goal"], "has no 'Goal'; try GoalRank"),
        (["agents.goalrank:GoalRankConfig"], "is no training method"),
        (["--world", "tiny", "ppo"], r"the recipe comes before its options: python -m experiments\.train ppo --world"),
        (["--world", "tiny"], r"python -m experiments\.train <recipe> --world"),
    ],
)
def test_names_that_lead_nowhere(words: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *words])
    with pytest.raises(ValueError, match=message):
        parse()


def test_settings_of_a_class_path_are_read_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["agents.goalrank:GoalRank", "--iterations", "3", "--config.group-size", "7"]
    monkeypatch.setattr(sys, "argv", ["train", *words])
    found = parse()
    assert (found.iterations, found.config) == (3, GoalRankConfig(group_size=7))


def test_help_without_a_recipe_lists_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(SystemExit) as exit_:
        parse()
    shown = capsys.readouterr().out
    assert exit_.value.code == 0
    assert all(f"  {name} " in shown and found.summary in shown for name, found in RECIPES.items())


def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="learns from a log: give --log"):
        run(small("behaviour-cloning", "tiny", tmp_path / "run"))
    with pytest.raises(ValueError, match="learns from play, not from --log"):
        run(small("ppo", "tiny", tmp_path / "run", log=tmp_path))
    with pytest.raises(ValueError, match="has no list policy"):
        run(dataclasses.replace(recipe("td3"), size="1k"))
    with pytest.raises(ValueError, match=r"needs a list evaluator .* \(--evaluator module:Name\)"):
        run(small("goalrank", "short_video", tmp_path / "other"))
    assert not (tmp_path / "run").exists()


def test_a_log_trains_what_learns_from_it(build: dict[str, Path], tmp_path: Path) -> None:
    policy = run(small("behaviour-cloning", build["A"], tmp_path / "run", log=build["log"]))
    told = policy_card(policy)["training"]
    assert (told["requests"], told["feedback"]) == (0, "logged")
    assert contender(policy).feedback == "logged"
    assert load_policy(policy).shape.num_items == len(World.load(build["A"]).catalogue)


def test_slates_teach_where_the_log_keeps_their_candidates(build: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this log holds no candidate lists"):
        run(small("prm", build["A"], tmp_path / "no", log=build["log"]))
    world, prm = World.load(build["A"]), small("prm", build["A"], tmp_path).make_method()
    logged = logged_requests(
        synthetic_log(small_truth(), num_sessions=400, days=6, seed=4, keep_candidates=True),
        item_features_ND=world.catalogue.features_ND,
        user_features_UD=world.users.features_UD,
        predictor=world.predictor,
        retriever=world.candidates,
    )
    config = MethodAlgorithmConfig(type(prm)).environment(SESSION_ENV, env_config={"world": str(build["A"])})
    config.env_runners(num_envs_per_env_runner=8).training(method_config=prm.config, logged=logged)
    policy = train_method(config, iterations=1, run_dir=tmp_path / "run")
    assert policy_card(policy)["method"] == "agents.rerankers.scorers:Scorer"


def test_a_strangers_method_is_trained_and_trusted_by_name(
    build: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nudge.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    policy = run(small("nudge:Nudge", build["A"], tmp_path / "run"))
    world = World.load(build["A"])
    with pytest.raises(ValueError, match=r"give trusted=\('nudge',\)"):
        named_policies([f"mine={policy}"], world, 6)
    assert "mine" in named_policies([f"mine={policy}"], world, 6, trusted=("nudge",))
