"""From a log to worlds, training and a report, in miniature: everything the verbs promise."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from agents.baselines import PointwiseGreedy, RandomSlate
from experiments import compare, results_page
from experiments.compare import GoalRankTable, checks
from experiments.evaluate import Arguments, run, table, worlds_in
from experiments.evaluate import main as print_evaluation
from experiments.policies import policy_of, references
from recsim_env.data import LoggedDataset
from recsim_env.evaluation import Contender, EvaluationSettings, evaluate
from recsim_env.known_worlds import short_video_world
from recsim_env.known_worlds.logs import synthetic_log
from recsim_env.simulator import Simulator
from recsim_env.types import Decision, Request
from recsim_env.world import World
from reward_models.build import BuildConfig, build_worlds, days_of, with_recommender, without_list_effect
from reward_models.recommender.list_evaluator_network import ListEvaluatorConfig
from reward_models.recommender.predictor import PredictorConfig
from reward_models.recommender.retrieval import RetrievalConfig
from reward_models.trainer import TrainConfig
from reward_models.users.fit import ResponseFitConfig

SMALL = BuildConfig(
    test_days=2,
    stopping_days=1,
    jobs=1,
    fit=ResponseFitConfig(calibration_folds=0, train=TrainConfig(max_epochs=1)),
    predictor=PredictorConfig(max_epochs=1),
    retrieval=RetrievalConfig(max_epochs=1),
    evaluator=ListEvaluatorConfig(max_epochs=1),
)


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
def truth() -> World:
    return short_video_world(num_users=400, num_items=150, seed=4)


@pytest.fixture(scope="module")
def log(truth: World) -> LoggedDataset:
    return synthetic_log(truth, num_sessions=400, days=6, seed=4)


@pytest.fixture(scope="module")
def folder(log: LoggedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("build")
    build_worlds(log, out, SMALL)
    return out


def test_days_are_split_from_the_end(log: LoggedDataset) -> None:
    days = days_of(log, SMALL)
    assert days.test == (20220429, 20220430)
    assert days.stopping == (20220428,)
    assert days.fit_until == 20220428
    unstopped = days_of(log, dataclasses.replace(SMALL, stopping_days=0))
    assert (unstopped.test, unstopped.stopping, unstopped.fit_until) == (days.test, (), days.fit_until)
    with pytest.raises(ValueError, match=r"has 6 days; 4 test days and 2 stopping days need at least 7"):
        days_of(log, BuildConfig())


def test_worlds_hold_disjoint_users_and_one_recommender(folder: Path) -> None:
    worlds = worlds_in(folder)
    assert list(worlds) == ["A", "judge-1", "judge-2"]
    a, judge, other = worlds.values()
    assert not set(a.population_P.tolist()) & set(judge.population_P.tolist())
    assert torch.equal(judge.population_P, other.population_P)
    for world in (judge, other):
        for model in ("predictor", "candidates", "evaluator"):
            mine, theirs = getattr(a, model).tensors(), getattr(world, model).tensors()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        shapes = [tuple(t.shape) for t in a.response.tensors().values()]
        assert shapes != [tuple(t.shape) for t in world.response.tensors().values()]
    assert a.declared.keys() == {"leave", "contexts"}, "a log with slates teaches its list effects"
    assert a.fidelity["logged"]["rows"] > 0
    assert set(a.fidelity["drift"]) == {"1", "5", "20", "50"}


def test_a_build_resumes_and_guards_its_folder(folder: Path, log: LoggedDataset, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    before = (copy / "A" / "models.safetensors").stat().st_mtime_ns
    shutil.rmtree(copy / "judge-2")
    build_worlds(log, copy, SMALL)
    assert (copy / "A" / "models.safetensors").stat().st_mtime_ns == before
    again, first = World.load(copy / "judge-2").response.tensors(), World.load(folder / "judge-2").response.tensors()
    assert all(torch.equal(again[name], first[name]) for name in first)
    with pytest.raises(ValueError, match="holds another build, of a different seed; give another folder"):
        build_worlds(log, copy, dataclasses.replace(SMALL, seed=9))


def test_a_log_without_slates_gets_declared_effects(log: LoggedDataset, tmp_path: Path) -> None:
    rows = log.rows.drop(columns=["request", "place", "session"])
    bare = dataclasses.replace(log, name="bare", rows=rows)
    folders = build_worlds(bare, tmp_path, dataclasses.replace(SMALL, judges=1))
    world = World.load(folders["A"])
    assert world.declared["list_effect"]["strength"] == 0.3
    assert world.list_effect is not None
    assert not world.evaluator.listwise  # type: ignore[union-attr]
    assert World.load(folders["judge-1"]).declared == world.declared
    plain = without_list_effect(world)
    assert plain.list_effect is None
    assert plain.declared.keys() == {"leave", "contexts"}
    request = Simulator(world).start(8, seed=0).request
    lists_BGK = request.candidates_BC[:, None, :6]
    values = [one.evaluator.score(request, lists_BGK).value_BG for one in (world, plain)]
    assert bool((values[1] > values[0]).any()), "repeated tags cost nothing any more"
    assert bool((values[1] >= values[0]).all())


def test_the_recommender_shares_nothing_with_the_world(folder: Path) -> None:
    """Spoiling the world after a request was made leaves everything the recommender says as it was."""
    world = World.load(folder / "A")
    request = Simulator(world).start(8, seed=0).request
    for tensor in world.response.tensors().values():
        tensor.zero_()
    spoilt = Simulator(world).start(8, seed=0).request
    assert all(torch.equal(a, b) for a, b in zip(request, spoilt, strict=True))
    lists = request.candidates_BC[:, :6].unsqueeze(1)
    clean = World.load(folder / "A").evaluator
    assert torch.equal(world.evaluator.score(request, lists).value_BG, clean.score(request, lists).value_BG)


def test_the_truth_judges_as_the_same_recommender_sees_it(folder: Path, truth: World) -> None:
    learned = World.load(folder / "judge-1")
    judged = with_recommender(truth, learned)
    assert judged.response is truth.response
    first, second = (Simulator(world).start(16, seed=3).request for world in (learned, judged))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


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
    result = evaluate(contenders, {"judge-1": world}, num_sessions=30, seed=0, settings=sizes, progress=False)
    setting = GoalRankTable().settings[0]
    for check in checks(result, setting, "judge-1"):
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
    assert {row["world"] for row in report["rows"]} == {"A", "judge-1", "judge-2", "truth"}
    assert {row["seeds"] for row in report["rows"] if row["policy"] == "GoalRank"} == {2}
    assert {"logging clone", "evaluator search", "greedy oracle"} <= {row["policy"] for row in report["rows"]}
    assert len(report["checks"]) == 8
    page = results_page.page(tmp_path / "results")
    assert "Times these worlds were opened: A 1, judge-1 1, judge-2 1, truth 1." in page
    monkeypatch.setattr(compare, "play", None)
    assert compare.run(config) == report
    monkeypatch.undo()
    (tmp_path / "results" / "goalrank-synthetic-truth.json").unlink()
    again = compare.run(config)
    openings = json.loads((tmp_path / "results" / "goalrank-synthetic-truth.json").read_text())["openings"]
    assert openings == 2
    assert again["checks"] == report["checks"]
