"""From a log to worlds, training and a report, in miniature: everything the verbs promise."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from agents.goalrank import GoalRank, GoalRankConfig
from agents.networks import RequestShape
from agents.policies import save_policy
from experiments.demo import DemoConfig
from experiments.demo import run as run_demo
from experiments.evaluate import Arguments, run
from experiments.evaluate import main as print_evaluation
from experiments.policies import baselines, contender, named_policy, worlds_in
from experiments.report import page as results_page
from experiments.tables.goalrank import GoalRankTable
from experiments.tables.runner import RunOptions, complete
from experiments.tables.settings import LogSource, Setting, worlds_of
from recsim_env.evaluation import EvaluationSettings, evaluate
from recsim_env.results import as_json
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
    assert set(result.policies) == {*baselines(worlds_in(folder)["A"], 4), "mine"}
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"policy", "world", "metric", "mean", "low", "high", "seeds", "feedback"} <= set(report["rows"][0])
    assert set(report["worlds"]) == set(result.world_names) == set(worlds_in(folder))
    assert (tmp_path / "report.html").stat().st_size > 10_000
    played = evaluate({"mine": Constant(4)}, worlds_in(folder), num_sessions=20, seed=1_000_000,
                      settings=arguments.settings, progress=False)  # fmt: skip
    mine = [as_json(row) for row in result.rows() if row.policy == "mine"]
    assert mine == [as_json(row) for row in played.rows()], "one world after the other is all worlds at once"


def test_evaluate_refuses_a_place_in_use_before_it_plays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: object, **settings: object) -> None:
        raise AssertionError("played before it looked where the report goes")

    monkeypatch.setattr("experiments.evaluate.evaluate", never)
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for out, told in (("notes", "is a file"), ("full", "holds files but no evaluation.json")):
        with pytest.raises(ValueError, match=told):
            run(Arguments(worlds=folder / "A", out=tmp_path / out, num_sessions=2))
    monkeypatch.undo()
    few = EvaluationSettings(num_candidates=20, slate_size=4, max_requests=1)
    first = Arguments(worlds=folder / "A", out=tmp_path / "new", num_sessions=2, settings=few)
    run(first)
    monkeypatch.setattr("experiments.evaluate.evaluate", never)
    with pytest.raises(ValueError, match="num_sessions was 2, now 3"):
        run(dataclasses.replace(first, num_sessions=3))


def test_a_policy_tells_what_its_training_consumed(tmp_path: Path) -> None:
    shape = RequestShape(num_items=9, num_signals=1, num_user_features=1, num_candidate_features=1, slate_size=2)
    method = GoalRank(GoalRankConfig())
    save_policy(tmp_path / "fitted", method, method.network(shape), shape)
    assert (contender(tmp_path / "fitted").world_requests, contender(tmp_path / "fitted").feedback) == (0, "logged")
    told = {"requests": 61_440, "feedback": "one slate"}
    save_policy(tmp_path / "played", method, method.network(shape), shape, training=told)
    assert (contender(tmp_path / "played").world_requests, contender(tmp_path / "played").feedback) == (
        61_440,
        "one slate",
    )


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
    assert "twin - pointwise greedy, A: +0.0 [+0.0, +0.0], tie within 0.0\n" in capsys.readouterr().out
    report = json.loads((tmp_path / "copy.json").read_text())
    assert report == json.loads((tmp_path / "report.json").read_text())
    rows = [row for row in report["rows"] if row["metric"] == "evaluator_value"]
    value = {row["policy"]: row["mean"] for row in rows}
    assert value["many"] > value["pointwise greedy"], "the sort is among the generators"


def test_policies_are_named_in_several_ways(folder: Path, tmp_path: Path) -> None:
    world = World.load(folder / "A")
    assert isinstance(named_policy("tests.experiments.test_experiments:Constant", world, 4), Constant)
    assert isinstance(named_policy("tests.experiments.test_experiments:WithoutSize", world, 4), WithoutSize)
    assert named_policy("random", world, 4) is not None
    with pytest.raises(ValueError, match="MG-E needs a list evaluator to choose by, and world 'tiny' has none"):
        named_policy("MG-E", worlds_in(Path("tiny"))["tiny"], 4)
    with pytest.raises(ValueError, match="no policy 'nothing': give one of"):
        named_policy("nothing", world, 4)
    with pytest.raises(ValueError, match="holds no world"):
        worlds_in(tmp_path)
    assert list(worlds_in(Path("tiny"))) == ["tiny"]


def test_references_play_what_they_promise(folder: Path) -> None:
    """More search on the evaluator never looks worse to the evaluator."""
    world = World.load(folder / "A")
    result = evaluate(
        baselines(world, 4),
        {"A": world},
        num_sessions=40,
        seed=0,
        settings=EvaluationSettings(num_candidates=20, slate_size=4, max_requests=1),
        progress=False,
    )
    value = {name: result.row(name, "A", "evaluator_value").mean for name in result.policies}
    assert value["evaluator search"] >= value["best of 20"] >= value["pointwise greedy"]
    assert value["evaluator search"] > value["random"]


@pytest.fixture
def table(tmp_path: Path) -> GoalRankTable:
    source = LogSource(num_users=120, num_items=150, log_sessions=200, folder=tmp_path / "runs", build=SMALL_BUILD)
    run = RunOptions(results=tmp_path / "results", jobs=1)
    return GoalRankTable(source=source, seeds=2, iterations=2, num_sessions=12, search_sessions=6, run=run)


@pytest.mark.slow
def test_compare_runs_what_is_missing_and_nothing_else(table: GoalRankTable, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = complete(table.outline, table.runs(), table.run)
    (setting,) = finished.results
    result = finished.results[setting]
    worlds = tuple(worlds_of(table.settings[0]))
    assert result.world_names == worlds
    assert result.row("GoalRank", "truth", "session_watch_time").seeds == 2
    assert {"logging clone", "evaluator search", "greedy oracle"} <= set(result.policies)
    assert len(finished.checks) == 2 * len(worlds)
    assert {check["world"] for check in finished.checks if check["verdict"] == "no bar"} == {"A"}

    def never(self: GoalRankTable, setting: Setting, world: str, *work: object) -> None:
        raise AssertionError(f"{world}, {work[:2]} was measured before")

    monkeypatch.setattr(GoalRankTable, "measure", never)
    assert complete(table.outline, table.runs(), table.run).checks == finished.checks
    with pytest.raises(ValueError, match="num_sessions was 12, now 13"):
        complete(table.outline, dataclasses.replace(table, num_sessions=13).runs(), table.run)
    (table.run.results / "goalrank" / setting / "truth" / "GoalRank-1.json").unlink()
    with pytest.raises(AssertionError, match=r"truth, \('GoalRank', .*seed=1.* was measured before"):
        complete(table.outline, table.runs(), table.run)
    monkeypatch.undo()
    assert complete(table.outline, table.runs(), table.run).checks == finished.checks
    page = results_page.page(table.run.results)
    assert "GoalRank beside the baselines" in page


def test_runs_differ_where_their_logs_do(table: GoalRankTable) -> None:
    """Settings of other seeds, sizes or training never share a policy's folder."""
    (setting,) = table.settings
    one, other = (dataclasses.replace(table, iterations=n).training(setting, 0) for n in (2, 3))
    assert one.run_dir != other.run_dir
    assert one.run_dir == table.training(setting, 0).run_dir
    assert table.training(setting, 1).run_dir != one.run_dir


@pytest.mark.slow
def test_a_demo_runs_again_from_what_it_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DemoConfig(
        out=tmp_path / "demo", num_users=120, num_items=150, log_sessions=200, iterations=2, num_sessions=12,
        build=SMALL_BUILD,
    )  # fmt: skip
    first = run_demo(config)
    assert {row["policy"] for row in first["rows"]} >= {"GoalRank", "pointwise greedy", "best of 20", "greedy oracle"}
    assert contender(tmp_path / "demo" / "policy").world_requests > 0

    def never(self: GoalRankTable, setting: Setting, world: str, *work: object) -> None:
        raise AssertionError(f"{world}, {work[:2]} was measured before")

    monkeypatch.setattr(GoalRankTable, "measure", never)
    again = run_demo(config)
    assert (again["rows"], again["checks"]) == (first["rows"], first["checks"])
