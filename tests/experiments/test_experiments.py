"""From a log to worlds, training and a report, in miniature: everything the verbs promise."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from agents.baselines import PointwiseGreedy, RandomSlate
from experiments import compare, results_page
from experiments.compare import GoalRankTable, checks
from experiments.evaluate import Arguments, run, table, worlds_in
from experiments.evaluate import main as print_evaluation
from experiments.policies import policy_of, references
from recsim_env.evaluation import Contender, EvaluationSettings, evaluate
from recsim_env.types import Decision, Request
from recsim_env.world import World
from reward_models.build import build_worlds
from tests.helpers.learned import SMALL_BUILD, small_log, small_truth


class WithoutSize:
    """A policy class that is built without arguments, as the README's own is."""

    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        return Decision(request.candidates_BC[:, :4])


class Constant:
    """A plugged-in policy: the last candidates."""

    def __init__(self, slate_size: int):
        self.slate_size = slate_size

    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        return Decision(request.candidates_BC[:, -self.slate_size :])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("build")
    build_worlds(small_log(small_truth()), out, SMALL_BUILD)
    return out


def test_evaluate_writes_its_report(folder: Path, tmp_path: Path) -> None:
    arguments = Arguments(
        worlds=folder,
        policies=("mine=tests.experiments.test_experiments:Constant",),
        num_sessions=20,
        out=tmp_path,
        settings=EvaluationSettings(num_candidates=20, slate_size=4, max_requests=4),
    )
    result = run(arguments)
    assert set(result.policies) == {*references(worlds_in(folder)["A"], 4), "mine"}
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert {"policy", "world", "metric", "mean", "low", "high", "seeds", "feedback"} <= set(rows[0])
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert "mine" in table(result)


def test_evaluate_says_by_how_much_a_policy_leads(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pointwise sort under another name plays the same sessions, so nothing is left between the two."""
    arguments = Arguments(
        worlds=folder / "A",
        policies=("twin=pointwise greedy", "many=MG-E"),
        num_sessions=20,
        out=tmp_path,
        json=tmp_path / "copy.json",
        settings=EvaluationSettings(num_candidates=20, slate_size=4, max_requests=1),
    )
    print_evaluation(arguments)
    assert "twin - pointwise greedy, A: +0.0 [+0.0, +0.0]\n" in capsys.readouterr().out
    report = json.loads((tmp_path / "copy.json").read_text())
    assert report == json.loads((tmp_path / "report.json").read_text())
    rows = [row for row in report["rows"] if row["metric"] == "evaluator_value"]
    value = {row["policy"]: row["mean"] for row in rows}
    assert value["many"] > value["pointwise greedy"], "the sort is among the generators"


def test_policies_are_named_in_several_ways(folder: Path, tmp_path: Path) -> None:
    world = World.load(folder / "A")
    assert isinstance(policy_of("tests.experiments.test_experiments:Constant", world, 4), Constant)
    assert isinstance(policy_of("tests.experiments.test_experiments:WithoutSize", world, 4), WithoutSize)
    assert policy_of("random", world, 4) is not None
    with pytest.raises(ValueError, match="MG-E needs a list evaluator to choose by, and world 'tiny' has none"):
        policy_of("MG-E", worlds_in(Path("tiny"))["tiny"], 4)
    with pytest.raises(ValueError, match="no policy 'nothing': give one of"):
        policy_of("nothing", world, 4)
    with pytest.raises(ValueError, match="holds no world"):
        worlds_in(tmp_path)
    assert list(worlds_in(Path("tiny"))) == ["tiny"]


def test_a_claim_clears_seeds_and_sessions(folder: Path) -> None:
    """The verdict takes the wider of the two intervals; in world A, where the policy was trained, there is no bar."""
    world = World.load(folder / "A")
    seeds = [PointwiseGreedy(4), RandomSlate(4)]  # as different as two training seeds can be
    contenders = {"GoalRank": Contender(policies=seeds), **references(world, 4)}
    sizes = EvaluationSettings(num_candidates=20, slate_size=4, max_requests=2)
    result = evaluate(contenders, {"judge-final-1": world}, num_sessions=30, seed=0, settings=sizes, progress=False)
    setting = GoalRankTable().settings[0]
    for check in checks(result, setting, "judge-final-1"):
        (low, high), (session_low, session_high) = check["over_seeds"], check["over_sessions"]
        assert check["low"] == min(low, session_low)
        assert check["high"] == max(high, session_high)
        assert check["verdict"] == "undecided"
        assert check["seeds"] == 2
    renamed = dataclasses.replace(result, cells={(policy, "A"): cell for (policy, _), cell in result.cells.items()})
    assert {check["verdict"] for check in checks(renamed, setting, "A")} == {"no bar"}


def test_references_play_what_they_promise(folder: Path) -> None:
    """More search on the evaluator never looks worse to the evaluator."""
    world = World.load(folder / "A")
    result = evaluate(
        references(world, 4),
        {"A": world},
        num_sessions=40,
        seed=0,
        settings=EvaluationSettings(num_candidates=20, slate_size=4, max_requests=1),
        progress=False,
    )
    value = {name: result.row(name, "A", "evaluator_value").mean for name in result.policies}
    assert value["evaluator search"] >= value["best of 20"] >= value["pointwise greedy"]
    assert value["evaluator search"] > value["random"]


@pytest.mark.slow
def test_compare_runs_what_is_missing_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"num_users": 120, "num_items": 150, "log_sessions": 200, "iterations": 2, "num_sessions": 12}
    config = GoalRankTable(seeds=2, folder=tmp_path / "runs", results=tmp_path / "results", **sizes)  # type: ignore[arg-type]
    report = compare.run(config)
    assert {row["world"] for row in report["rows"]} == {"A", "judge-dev", "judge-final-1", "judge-final-2", "truth"}
    assert {row["seeds"] for row in report["rows"] if row["policy"] == "GoalRank"} == {2}
    assert {"logging clone", "evaluator search", "greedy oracle"} <= {row["policy"] for row in report["rows"]}
    assert len(report["checks"]) == 8
    page = results_page.page(tmp_path / "results")
    assert "Times these worlds were opened: A 1, judge-dev 1, judge-final-1 1, judge-final-2 1, truth 1." in page
    monkeypatch.setattr(compare, "play", None)
    assert compare.run(config) == report
    monkeypatch.undo()
    (tmp_path / "results" / "goalrank-synthetic-truth.json").unlink()
    again = compare.run(config)
    openings = json.loads((tmp_path / "results" / "goalrank-synthetic-truth.json").read_text())["openings"]
    assert openings == 2
    assert again["checks"] == report["checks"]
