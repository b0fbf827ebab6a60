"""The methods of the rerankers table: what each one trains, and how it is measured on a world's requests.

List rankers, generators that complete a set, generators fitted to logged slates, and evaluators of less log. What is
trained lies in a folder that only the same work can share, and is read where it is there.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.baselines import BestOfLists, PointwiseGreedy
from agents.goalrank import GoalRank, GoalRankConfig
from agents.list_policy import ListPolicy
from agents.method import Method
from agents.policies import load_policy, policy_card, save_policy
from agents.rerankers import list_bench
from agents.rerankers.clig import CligConfig, search_generators
from agents.rerankers.list_bench import Bench
from agents.rerankers.log_methods import LOG_METHODS, LogMethodName, log_method
from agents.rerankers.logged_slates import fit_to_slates
from agents.rerankers.multi_generator import GeneratorEvaluator, GeneratorPool, SampledLists
from agents.rerankers.nar4rec import ContrastiveDecoding
from experiments.recipes import REQUEST_ENV, TrainRun
from experiments.tables.goalrank import GoalRankTable
from experiments.tables.runs import BLOCKS, Measured
from experiments.tables.settings import (
    SLATE,
    TRAINING_WORLD,
    Setting,
    in_setting,
    known_truth,
    log_of,
    method_card,
    train_policy,
    trained_folder,
    world_folders,
    worlds_of,
)
from recsim_env.data.requests import LoggedRequests
from recsim_env.evaluation import EvaluationSettings, evaluate
from recsim_env.results import Cell
from recsim_env.types import ListEvaluator, Policy
from reward_models.recommender.list_evaluator import fit_list_evaluator
from reward_models.recommender.operator_requests import operator_requests

SESSIONS, FIRST_SESSION, FIRST_REQUEST = 2000, 6_000_000, 5_000_000
"""Sessions of each policy that is judged in whole sessions too, and seeds of the first session and request."""
PLAYED = EvaluationSettings()
"""How these sessions are played."""

IN_SESSIONS = ("GoalRank", "GoalRank, trained in sessions")
"""Trained rankers that are judged in whole sessions, too."""

SEARCHES = {
    "reward and GC": CligConfig(reward_weight=1.0, gain_weight=0.3),
    "reward only": CligConfig(reward_weight=1.0, gain_weight=0.0),
    "GC only": CligConfig(reward_weight=0.0, gain_weight=1.0),
}
"""Searches for complementary generators."""
LEARNED = 2
"""Generators that a search adds."""

FROM_SLATES: dict[LogMethodName, str] = {
    "prm": "PRM, logged slates",
    "setrank": "SetRank, logged slates",
    "dlcm": "DLCM, logged slates",
    "seq2slate": "Seq2Slate, logged slates",
    "nar4rec": "NAR4Rec, logged slates",
}
"""Names in the table of what is fitted to logged slates."""

CONTRAST = 0.1
"""Penalty of likeness in NAR4Rec's contrastive decoding."""

SHARES_OF_LOG = (0.02, 0.1, 1.0)
"""Shares of the users that list evaluators are fitted to."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every trained ranker gets."""

    iterations: int = 60
    """Training rounds of 512 requests."""
    seeds: int = 5
    """Training seeds of all of which something is claimed."""
    size_seeds: int = 3
    """Training seeds of each size of the network."""


class Line(NamedTuple):
    """One method of a setting with one training seed."""

    method: str
    show: Callable[[Bench], Measured]
    """Measures it on the requests of a world."""
    seed: int = 0
    card: Mapping[str, Any] = {}
    """What shapes it beside its name."""
    prepare: Callable[[], object] = lambda: None
    """Trains it."""


def lines_of(setting: Setting, budget: Budget, orders: int) -> Iterator[Line]:
    """Every method of a setting: all at x1, what is claimed under a declared effect, else GoalRank alone."""
    everything = setting.strength == 1.0
    yield Line("baselines", show_baselines)
    yield Line("generators", partial(show_generators, setting, orders), prepare=partial(pool_of, setting))
    trained = training_runs(setting, budget, "all" if everything else "claimed" if setting.declared_effect else "plain")
    if setting.strength in (0.0, 1.0):  # where the other table trains it in sessions
        sessions = GoalRankTable(source=setting.source)
        runs = [sessions.training(setting, seed) for seed in range(sessions.seeds)]
        trained["GoalRank, trained in sessions"] = runs
    for name, runs in trained.items():
        for seed, run in enumerate(runs):
            yield Line(name, partial(show_trained, name, seed, run), seed, method_card(run), partial(train_policy, run))
    for share in SHARES_OF_LOG if everything else ():
        yield Line(share_name(share), partial(show_share, setting, share))
    for name in SEARCHES if everything else ():
        for seed in range(budget.seeds):
            its = (setting, budget, name, seed)
            yield Line(
                f"CLIG, {name}", partial(show_search, *its), seed, search_card(*its[1:]), partial(searched, *its)
            )


def training_runs(setting: Setting, budget: Budget, variants: str) -> dict[str, list[TrainRun]]:
    """Trained rankers by name, one run for each training seed; the most important ones first.

    The largest network, the last of all, takes the better part of an hour on one core, the others one to six minutes.

    Args:
        setting: in whose world A they are trained.
        budget: what each gets.
        variants: "plain" is GoalRank as it is, "claimed" adds the variants of which something is claimed, "all" every
            form and size.
    """

    def runs(name: str, seeds: int, size: Any = None, **config: Any) -> tuple[str, list[TrainRun]]:
        same: dict[str, Any] = {"iterations": budget.iterations, "size": size, "env": REQUEST_ENV}
        configs = [GoalRankConfig(seed=seed, **config) for seed in range(seeds)]
        return name, [
            in_setting(TrainRun(method="agents.goalrank:GoalRank", config=one, **same), setting, f"{name}-{one.seed}")
            for one in configs
        ]

    seeds, few = budget.seeds, budget.size_seeds
    found = [runs("GoalRank", seeds)]
    if variants != "plain":
        found += [
            runs("GoalRank, warm start", seeds, auxiliary_share=0.5),
            runs("GoalRank, half auxiliary for good", seeds, auxiliary_share=0.5, auxiliary_requests=None),
            runs("GoalRank, noise 0.2", seeds, value_noise=0.2),
            runs("GoalRank, noise 0.5", seeds, value_noise=0.5),
            runs("GoalRank, 1k", few, size="1k"),
            runs("GoalRank, 10k", few, size="10k"),
        ]
    if variants == "all":
        found += [
            runs("GoalRank, GRPO form", 1, objective="grpo"),
            runs("GoalRank, one softmax", 1, decoder="one_softmax"),
            runs("GoalRank, PRM network", 1, decoder="one_softmax", initial_ranks=50),
            runs("GoalRank, SetRank network", 1, decoder="one_softmax", mixing="induced"),
            runs("GoalRank, NAR4Rec network", 1, decoder="matching"),
            runs("GoalRank, 1m", few, size="1m"),
            runs("GoalRank, 10m", 1, size="10m"),
        ]
    return dict(found)


def search_card(budget: Budget, name: str, seed: int) -> dict[str, Any]:
    """What shapes a search."""
    return {"search": dataclasses.asdict(SEARCHES[name]), "iterations": budget.iterations, "first_seed": LEARNED * seed}


@cache
def searched(setting: Setting, budget: Budget, name: str, seed: int) -> list[Policy]:
    """The generators of a search, the pointwise sort first; what is missing is trained."""
    from agents.rllib.algorithm import MethodAlgorithmConfig  # imports ray
    from agents.rllib.train import train_method

    world = {"world": str(world_folders(setting)[TRAINING_WORLD])}

    def train_one(method: Method, evaluator: ListEvaluator, run_dir: Path) -> Path:
        config = MethodAlgorithmConfig(type(method)).environment(REQUEST_ENV, env_config=world)
        config.training(method_config=method.config, evaluator=evaluator)
        return train_method(config, iterations=budget.iterations, run_dir=run_dir)

    first = PointwiseGreedy(SLATE)
    learned = search_generators(
        first,
        list_bench.evaluator_of(worlds_of(setting)[TRAINING_WORLD]),
        train_one,
        num_generators=LEARNED,
        folder=trained_folder(setting, f"clig-{name}-{seed}", search_card(budget, name, seed)),
        method=GoalRank(GoalRankConfig(seed=LEARNED * seed)),
        config=SEARCHES[name],
    )
    return [first, *learned]


@cache
def slate_generators(setting: Setting) -> Mapping[str, Policy]:
    """Generators fitted to logged slates, which a real log here has none of; what is missing is fitted."""
    found: dict[str, ListPolicy] = {}
    requests: LoggedRequests | None = None
    for name in LOG_METHODS if known_truth(setting) else ():
        method = log_method(name)
        folder = trained_folder(setting, f"slates-{name}", dataclasses.asdict(method.config))
        if not (folder / "policy" / "policy.json").exists():
            world = worlds_of(setting)[TRAINING_WORLD]
            requests = requests or operator_requests(log_of(setting, keep_candidates=True), world)
            network = fit_to_slates(requests, method, SLATE, run_dir=folder / "fit")
            save_policy(folder / "policy", method, network, network.shape)
        found[FROM_SLATES[name]] = load_policy(folder / "policy")
    return with_contrast(found)


def with_contrast(fitted: Mapping[str, ListPolicy]) -> dict[str, Policy]:
    """What is fitted to logged slates, and NAR4Rec's network with its contrastive decoding."""
    name = FROM_SLATES["nar4rec"]
    return {**fitted, **({f"{name}, contrastive": ContrastiveDecoding(fitted[name], CONTRAST)} if fitted else {})}


@cache
def pool_of(setting: Setting) -> GeneratorPool:
    """MG-E's generators: hand-written ones, and what is fitted to logged slates."""
    return list_bench.generator_pool(worlds_of(setting)[TRAINING_WORLD], slate_generators(setting), SLATE)


def share_name(share: float) -> str:
    """What the table calls the evaluator of a share of users."""
    return f"evaluator of {share:.0%} of users"


@cache
def evaluator_of_share(setting: Setting, share: float) -> ListEvaluator:
    """A list evaluator fitted to the slates of some users; predictor and retriever are those of all."""
    world = worlds_of(setting)[TRAINING_WORLD]
    users = np.random.default_rng(0).permutation(np.asarray(world.population_P))
    some = users[: max(2, round(share * len(users)))]
    requests = operator_requests(log_of(setting), world, some)
    return fit_list_evaluator(requests, list_effect=world.list_effect, leave=world.leave)


@cache
def bench_of(setting: Setting, world: str, num_requests: int) -> Bench:
    """The requests of a world on which lists are valued."""
    return Bench(worlds_of(setting)[world], num_requests, SLATE, seed=FIRST_REQUEST)


def show_baselines(bench: Bench) -> Measured:
    """What needs neither training nor generators."""
    best = BestOfLists(bench.evaluator, SLATE, num_lists=100)
    played = in_sessions(bench, {"pointwise greedy": PointwiseGreedy(SLATE), "best of 100": best})
    return Measured(cells=with_sessions(list_bench.reference_cells(bench), played))


def show_generators(setting: Setting, orders: int, bench: Bench) -> Measured:
    """The evaluator's choice among generators, with the fitted ones and without, and the generators themselves."""
    pool, fitted = pool_of(setting), slate_generators(setting)
    cells = list_bench.generator_cells(bench, pool, orders)
    if learned := [name for name in fitted if name in pool.names]:
        cells |= list_bench.generator_cells(bench, pool.without(learned), orders, note=", hand-written")
    most = max(list_bench.SET_SIZES)
    largest = pool.some(list_bench.generator_orders(len(pool.names), 1)[0][:most])
    cells |= list_bench.additive_cells(bench, largest)
    cells |= {name: bench.show([policy]) for name, policy in fitted.items()}
    played = in_sessions(bench, {f"MG-E-{most}": GeneratorEvaluator(largest, bench.evaluator)})
    return Measured(cells=with_sessions(cells, played), extra={"generators": list_bench.generator_list(bench, pool)})


def show_trained(name: str, seed: int, run: TrainRun, bench: Bench) -> Measured:
    """What a trained ranker shows; GoalRank also as the generator of the evaluator's choice."""
    folder = train_policy(run)
    policy = load_policy(folder)
    cells = {name: bench.show([policy])}
    if name == "GoalRank" and seed == 0:
        draws = GeneratorEvaluator(SampledLists(policy, 20), bench.evaluator)
        cells[f"{name}, best of 20 draws"] = bench.show([draws])
    if name in IN_SESSIONS:
        cells = with_sessions(cells, in_sessions(bench, {name: policy}))
    return Measured(cells=consumed(cells, int(policy_card(folder)["training"]["requests"])))


def show_share(setting: Setting, share: float, bench: Bench) -> Measured:
    """An evaluator of less log that chooses from more and more lists."""
    return Measured(cells=list_bench.pressure_cells(bench, share_name(share), evaluator_of_share(setting, share)))


def show_search(setting: Setting, budget: Budget, name: str, seed: int, bench: Bench) -> Measured:
    """The evaluator's choice among the first generators of a search."""
    found = searched(setting, budget, name, seed)
    cells = list_bench.search_cells(bench, f"CLIG, {name}", [found])
    return Measured(cells=consumed(cells, budget.iterations * 512 * (len(found) - 1)))


def in_sessions(bench: Bench, policies: Mapping[str, Policy]) -> dict[str, Cell]:
    """The same policies in whole sessions: seconds watched."""
    worlds = {"here": bench.simulator.world}
    result = evaluate(policies, worlds, num_sessions=SESSIONS, seed=FIRST_SESSION, settings=PLAYED)
    return {name: cell.merged(BLOCKS) for (name, _), cell in result.cells.items()}


def with_sessions(cells: Mapping[str, Cell], played: Mapping[str, Cell]) -> dict[str, Cell]:
    """Cells of single requests with the seconds watched in sessions beside them, in as many blocks."""
    found = {name: cell.merged(BLOCKS) for name, cell in cells.items()}
    for name, sessions in played.items():
        seconds = {"session_watch_time": sessions.ratios["session_watch_time"]}
        found[name] = dataclasses.replace(found[name], ratios={**found[name].ratios, **seconds})
    return found


def consumed(cells: Mapping[str, Cell], requests: int) -> dict[str, Cell]:
    """Cells that say what training asked of world A."""
    return {
        name: dataclasses.replace(cell, feedback="one slate", world_requests=requests) for name, cell in cells.items()
    }
