"""Rerankers beside each other on the same requests, with the same predictor and the same list evaluator.

    python -m experiments.compare rerankers                    synthetic logs with the list effect x1, x0.5 and x2
    python -m experiments.compare rerankers --data <folder>    a real log, with the declared list effect and without

Every trained ranker is trained in ``Request-v0`` with the same number of requests. What is measured stands in
``experiments.tables.list_bench``; a few methods are judged in whole sessions too. Comparisons are ratios of true list
values.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import tyro

from agents.baselines import BestOfLists, PointwiseGreedy
from agents.policies import load_policy, policy_card
from agents.rerankers.multi_generator import GeneratorEvaluator, SampledLists
from experiments.recipes import TrainRun
from experiments.tables import list_bench
from experiments.tables.goalrank import GoalRankTable
from experiments.tables.list_bench import (
    Bench,
    additive_cells,
    generator_cells,
    generator_list,
    generator_orders,
    generator_pool,
    pressure_cells,
    reference_cells,
    search_cells,
)
from experiments.tables.reranker_training import (
    SEARCHES,
    SHARES_OF_LOG,
    Budget,
    evaluator_of_share,
    search_card,
    searched,
    share_name,
    slate_generators,
    training_runs,
)
from experiments.tables.runner import Comparison, Outline, RunOptions, Table
from experiments.tables.runs import BLOCKS, Measured, Run
from experiments.tables.settings import (
    SLATE,
    TRAINING_WORLD,
    LogSource,
    Setting,
    digests,
    method_card,
    settings_of,
    train_policy,
    worlds_of,
)
from recsim_env.evaluation import evaluate
from recsim_env.results import Cell
from recsim_env.types import Policy

SESSIONS, FIRST_SESSION, FIRST_REQUEST = 2000, 6_000_000, 5_000_000
"""Sessions of each policy that is judged in whole sessions too, and seeds of the first session and request."""

CHECKS: tuple[tuple[str, str, float, Any], ...] = (
    ("MG-E-100", "MG-E-20", 1.01, "below"),
    ("MG-E-20", "MG-E-3", 1.02, "above"),
    ("GoalRank", "MG-E-100", 1.03, "above"),
    ("GoalRank, warm start", "MG-E-100", 1.03, "above"),
    ("GoalRank, half auxiliary for good", "MG-E-100", 1.03, "below"),
    ("GoalRank, 10k", "GoalRank, 1k", 1.0, "above"),
    ("GoalRank", "GoalRank, 10k", 1.0, "above"),
    ("GoalRank, 1m", "GoalRank", 1.0, "above"),
    ("GoalRank, 10m", "GoalRank, 1m", 1.0, "above"),
    ("GoalRank", "GoalRank, noise 0.2", 1.0, "above"),
    ("GoalRank, noise 0.2", "GoalRank, noise 0.5", 1.0, "above"),
    ("evaluator search", "best of 100", 1.0, "below"),
    *(
        (f"{share_name(share)}, search", f"{share_name(share)}, best of 100", 1.0, "below")
        for share in SHARES_OF_LOG[:-1]
    ),
    ("additive evaluator, search", "additive evaluator, sort", 1.01, "below"),
    ("additive evaluator, MG-E-100", "additive evaluator, sort", 1.01, "below"),
    ("evaluator search", "additive evaluator, sort", 1.01, "above"),
    *(
        check
        for k in (2, 3)
        for check in (
            (f"CLIG, reward and GC, {k}", f"CLIG, reward only, {k}", 1.0, "above"),
            (f"CLIG, reward only, {k}", f"pointwise and random, {k}", 1.0, "above"),
            (f"pointwise and random, {k}", f"CLIG, GC only, {k}", 1.0, "above"),
        )
    ),
)
"""Row, the one it is divided by, bar, and the side on which the ratio should lie."""


IN_SESSIONS = ("GoalRank", "GoalRank, trained in sessions")
OUTLINE = Outline(
    name="rerankers",
    title="Rerankers on the same requests",
    metrics={
        "true_list_value": "expected seconds of a shown list",
        "session_watch_time": "seconds watched in a session",
    },
    comparisons=[
        *(
            Comparison(name=name, other=other, metric="true_list_value", how="over", bar=bar, side=side)
            for name, other, bar, side in CHECKS
        ),
        *(
            Comparison(name=name, other=other, metric="session_watch_time", bar=None)
            for name in IN_SESSIONS
            for other in ("pointwise greedy", "best of 100", "MG-E-100")
        ),
    ],
    claims=lambda setting, world: setting.startswith("synthetic"),
)


class Entry(NamedTuple):
    """One method of a setting."""

    show: Callable[[Bench, str, int], Measured]
    """Measures it with a training seed in a world of this name."""
    seeds: int = 1
    card: Callable[[int], Mapping[str, Any]] = lambda seed: {}
    """What shapes it beside its name."""
    prepare: Callable[[int], object] = lambda seed: None
    """Trains it with a seed."""


@dataclass(frozen=True, kw_only=True)
class RerankersTable:
    """Generators, the evaluator's choice among their lists, and GoalRank's variants, on the same requests."""

    source: tyro.conf.OmitArgPrefixes[LogSource] = field(default_factory=LogSource)
    """The logs and worlds; those of ``goalrank``."""
    strengths: tuple[float, ...] = (1.0, 0.5, 2.0)
    """Strengths of the true list effect in the synthetic world, each with a log and worlds of its own."""
    budget: tyro.conf.OmitArgPrefixes[Budget] = field(default_factory=Budget)
    """What every trained ranker gets."""
    num_requests: int = 5000
    """Requests on which lists are valued."""
    orders: int = 40
    """Random orders of the generators."""
    run: tyro.conf.OmitArgPrefixes[RunOptions] = field(default_factory=RunOptions)
    """How it is run."""

    def __post_init__(self) -> None:
        if self.num_requests < 2 or self.orders < 1 or not self.strengths:
            raise ValueError(
                "need num_requests >= 2, orders >= 1 and a strength, got "
                f"{self.num_requests}, {self.orders} and {self.strengths}"
            )

    @property
    def settings(self) -> dict[str, Setting]:
        """The logs and list effects by name."""
        return {one.name: one for one in settings_of(self.source, self.strengths) if one.hazard == 1}

    def table(self) -> Table:
        """What the runner needs; builds the worlds that are missing."""
        return Table(
            outline=OUTLINE,
            runs=[run for setting in self.settings.values() for run in self._runs(setting)],
            prepare=lambda run: self._entries(self.settings[run.setting])[run.method].prepare(run.seed),
            measure=self.measure,
        )

    def _runs(self, setting: Setting) -> list[Run]:
        sizes = {"num_requests": self.num_requests, "first_request": FIRST_REQUEST, "orders": self.orders}
        return [
            Run(setting=setting.name, world=world, method=name, seed=seed,
                card={**digests(setting, world), **sizes, "method_config": entry.card(seed)})
            for world in worlds_of(setting) if world != TRAINING_WORLD
            for name, entry in self._entries(setting).items()
            for seed in range(entry.seeds)
        ]  # fmt: skip

    def measure(self, run: Run) -> Measured:
        """One method in one world."""
        setting = self.settings[run.setting]
        bench = bench_of(setting, run.world, self.num_requests)
        return self._entries(setting)[run.method].show(bench, run.world, run.seed)

    def _entries(self, setting: Setting) -> dict[str, Entry]:
        """Every method of a setting: all at x1, what is claimed under a declared effect, else GoalRank alone."""
        everything = setting.strength == 1.0
        entries = {
            "references": Entry(self._references),
            "generators": Entry(
                lambda bench, world, _: self._generators(setting, bench, world),
                prepare=lambda _: pool_of(setting, True),
            ),
        }
        variants = "all" if everything else "claimed" if setting.declared_effect else "plain"
        for name, runs in training_runs(setting, self.budget, variants).items():
            entries[name] = self._trained(name, runs)
        if setting.strength in (0.0, 1.0):  # where the other table trains it in sessions
            sessions = GoalRankTable(source=self.source)
            runs = [sessions.training(setting, seed) for seed in range(sessions.seeds)]
            entries["GoalRank, trained in sessions"] = self._trained("GoalRank, trained in sessions", runs)
        if everything:
            entries |= {share_name(share): self._share(setting, share) for share in SHARES_OF_LOG}
            entries |= {f"CLIG, {name}": self._search(setting, name) for name in SEARCHES}
        return entries

    def _references(self, bench: Bench, world: str, _: int) -> Measured:
        best = BestOfLists(bench.evaluator, SLATE, num_lists=100)
        played = in_sessions(bench, {"pointwise greedy": PointwiseGreedy(SLATE), "best of 100": best})
        return Measured(cells=with_sessions(reference_cells(bench), played))

    def _generators(self, setting: Setting, bench: Bench, world: str) -> Measured:
        pool, hand_written = pool_of(setting, True), pool_of(setting, False)
        cells = generator_cells(bench, pool, self.orders)
        if len(hand_written.names) < len(pool.names):
            cells |= generator_cells(bench, hand_written, self.orders, note=", hand-written")
        most = max(list_bench.SET_SIZES)
        largest = pool.some(generator_orders(len(pool.names), 1)[0][:most])
        cells |= additive_cells(bench, largest)
        cells |= {name: bench.show([policy]) for name, policy in slate_generators(setting).items()}
        played = in_sessions(bench, {f"MG-E-{most}": GeneratorEvaluator(largest, bench.evaluator)})
        return Measured(cells=with_sessions(cells, played), extra={"generators": generator_list(bench, pool)})

    def _trained(self, name: str, runs: list[TrainRun]) -> Entry:
        def show(bench: Bench, world: str, seed: int) -> Measured:
            folder = train_policy(runs[seed])
            policy = load_policy(folder)
            cells = {name: bench.show([policy])}
            if name == "GoalRank" and seed == 0:
                draws = GeneratorEvaluator(SampledLists(policy, 20), bench.evaluator)
                cells[f"{name}, best of 20 draws"] = bench.show([draws])
            if name in IN_SESSIONS:
                cells = with_sessions(cells, in_sessions(bench, {name: policy}))
            return Measured(cells=consumed(cells, int(policy_card(folder)["training"]["requests"])))

        return Entry(
            show, len(runs), lambda seed: method_card(runs[seed]), prepare=lambda seed: train_policy(runs[seed])
        )

    def _share(self, setting: Setting, share: float) -> Entry:
        return Entry(
            lambda bench, world, _: Measured(
                cells=pressure_cells(bench, share_name(share), evaluator_of_share(setting, share))
            )
        )

    def _search(self, setting: Setting, name: str) -> Entry:
        def show(bench: Bench, world: str, seed: int) -> Measured:
            found = searched(setting, self.budget, name, seed)
            cells = search_cells(bench, f"CLIG, {name}", [found])
            return Measured(cells=consumed(cells, self.budget.iterations * 512 * (len(found) - 1)))

        return Entry(
            show,
            self.budget.seeds,
            lambda seed: search_card(self.budget, name, seed),
            lambda seed: searched(setting, self.budget, name, seed),
        )


@cache
def bench_of(setting: Setting, world: str, num_requests: int) -> Bench:
    """The requests of a world on which lists are valued."""
    return Bench(worlds_of(setting)[world], num_requests, seed=FIRST_REQUEST)


@cache
def pool_of(setting: Setting, learned: bool) -> Any:
    """MG-E's generators: hand-written ones, and what is fitted to logged slates where it is asked for."""
    return generator_pool(worlds_of(setting)[TRAINING_WORLD], slate_generators(setting) if learned else {})


def in_sessions(bench: Bench, policies: Mapping[str, Policy]) -> dict[str, Cell]:
    """The same policies in whole sessions: seconds watched."""
    result = evaluate(policies, {"here": bench.simulator.world}, num_sessions=SESSIONS, seed=FIRST_SESSION)
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
