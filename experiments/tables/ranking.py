"""Fixed policies ranked by each world and by the truth: would choosing by a world choose right?

    python -m experiments.compare ranking

Policies without training play the same sessions in the known world that the log was drawn from, in world A and in the
judges; the truth plays other sessions too, as the ceiling of what can be asked. Half of the policies are close to one
another, for anyone tells good from bad. GoalRank is left out, for it has to be trained: its leads stand in
``compare goalrank``. Oracles are left out, for each is another policy in every world. What is asked of the results
stands in ``ranking_figures``; nothing is asked where ``--worlds`` leaves out the truth.

Shape legend: B requests, C candidates.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from typing import Any, ClassVar

import torch
import tyro
from torch import Tensor

from agents.baselines import BestOfLists, PointwiseGreedy, RandomSlate
from agents.baselines.best_of_lists import lists_around_sort
from agents.rerankers.heuristics import KERNELS, RETRIEVER, Heuristic, HeuristicGenerators
from agents.rerankers.multi_generator import GeneratorEvaluator, items_of
from experiments.policies import MULTI_GENERATOR
from experiments.tables.ranking_figures import FIRST_SLATE, LIKES, SECONDS, ranking_checks
from experiments.tables.runner import Outline, RunOptions
from experiments.tables.runs import Measured, Run
from experiments.tables.settings import (
    SLATE,
    TRAINING_WORLD,
    TRUTH,
    LogSource,
    Setting,
    digests,
    settings_of,
    worlds_of,
)
from recsim_env.evaluation import EvaluationSettings, evaluate
from recsim_env.results import Cell
from recsim_env.slates import best_first, items_at
from recsim_env.types import WATCH_TIME, Decision, Policy, Request
from recsim_env.world import World

OTHER_SESSIONS = "truth, other sessions"
"""The name in the table of the truth's second measurement."""
FIRST_SESSION, FIRST_OTHER_SESSION = 3_000_000, 4_000_000
"""Seeds of the first session, and of the first of the truth's other ones; the other tables use others."""
PLAYED = EvaluationSettings(true_values=False)
"""How sessions are played."""

MIXTURES = (0.0, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 1.0)
"""Weights of the retriever's score; predicted watch time has the rest, both as z-scores of a request's candidates."""
TEMPERATURES = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
"""Spread of lists drawn around the sort, in standard deviations of its scores."""
PENALTIES = (0.3, 1.0, 3.0)
"""MMR's penalties of likeness."""
LISTS = (2, 5, 20, 100)
"""Lists of which the recommender's evaluator takes the best."""

OUTLINE = Outline(
    name="ranking",
    title="Fixed policies ranked by each world and by the truth",
    metrics={
        SECONDS: "seconds watched in a session",
        FIRST_SLATE: "seconds watched of a session's first slate",
        LIKES: "likes of a video seen",
    },
    further=partial(ranking_checks, truth=TRUTH, ceiling=OTHER_SESSIONS),
)


@dataclass(frozen=True, kw_only=True)
class RankingTable:
    """Fixed policies ranked by each world and by the truth."""

    outline: ClassVar[Outline] = OUTLINE
    source: tyro.conf.OmitArgPrefixes[LogSource] = field(default_factory=LogSource)
    """The synthetic log and its worlds; those of ``goalrank``."""
    num_sessions: int = 2000
    """Sessions of each policy in each world."""
    run: tyro.conf.OmitArgPrefixes[RunOptions] = field(default_factory=RunOptions)
    """How it is run."""

    def __post_init__(self) -> None:
        if self.num_sessions < 2:
            raise ValueError(f"num_sessions must be at least 2, for an interval, got {self.num_sessions}")
        if self.source.data is not None:
            raise ValueError(
                f"policies are ranked against a known truth, and nobody knows that of {self.source.data}: leave out "
                "--data"
            )

    def runs(self) -> Iterator[Run]:
        """Every family of policies in every world; builds the worlds that are missing."""
        (setting,) = settings_of(self.source)
        users = {"population_digest": digests(setting, TRUTH)["world_digest"]}
        for world in (*worlds_of(setting), OTHER_SESSIONS):
            first_session = FIRST_OTHER_SESSION if world == OTHER_SESSIONS else FIRST_SESSION
            sizes = {"num_sessions": self.num_sessions, "first_session": first_session, "played": asdict(PLAYED)}
            for family, policies in families(setting).items():
                yield Run(
                    setting=setting.name,
                    world=world,
                    method=family,
                    card={**digests(setting, _played(world)), **users, **sizes, "policies": list(policies)},
                    measure=partial(self.measure, setting, world, family, first_session),
                )

    def measure(self, setting: Setting, world: str, family: str, first_session: int) -> Measured:
        """A family plays whole sessions, and the same sessions to the end of their first slate."""
        policies, worlds = families(setting)[family], {world: at_play(setting, world)}
        whole, first = (
            evaluate(
                policies,
                worlds,
                num_sessions=self.num_sessions,
                seed=first_session,
                settings=replace(PLAYED, max_requests=most),
            )
            for most in (None, 1)
        )
        cells = {}
        for name in policies:
            ratios = whole.cells[name, world].ratios
            kept = {metric: ratios[metric] for metric in (SECONDS, LIKES)}
            kept[FIRST_SLATE] = first.cells[name, world].ratios[SECONDS]
            cells[name] = Cell(ratios=kept, totals={})
        return Measured(cells=cells)


def _played(world: str) -> str:
    """The world behind a name in the table."""
    return TRUTH if world == OTHER_SESSIONS else world


def at_play(setting: Setting, world: str) -> World:
    """A world of the table as it is played: with the users of the truth, and without a list evaluator.

    A session has one user in all worlds, so that levels are compared user by user. They are those of the last judge;
    world A, fitted to other users, knows them by their histories. No policy here asks the world's own evaluator, and a
    report of it would take a third of the time.
    """
    worlds = worlds_of(setting)
    return worlds[_played(world)].replace(population_P=worlds[TRUTH].population_P, evaluator=None)


@cache
def families(setting: Setting) -> Mapping[str, Mapping[str, Policy]]:
    """The policies of a setting, by family; a policy's name says all that tells it from others."""
    return policy_families(worlds_of(setting)[TRAINING_WORLD])


def policy_families(world: World) -> dict[str, dict[str, Policy]]:
    """Policies without training, by family, that use what the recommender knows and nothing of a world's truth.

    Args:
        world: has the recommender, with a list evaluator, that all worlds share.
    """
    evaluator, duration_N = world.evaluator, world.catalogue.duration_N
    assert evaluator is not None  # every build fits one
    pointwise = PointwiseGreedy(SLATE)

    def sort(**weights: float) -> Policy:
        return _heuristic(Heuristic(weights=weights), world)

    def mmr(kernel: Any, penalty: float) -> Policy:
        return _heuristic(Heuristic(family="mmr", kernel=kernel, strength=penalty), world)

    def drawn(temperature: float) -> Policy:
        def choose(request: Request, generator: torch.Generator) -> Tensor:
            lists_BGK = lists_around_sort(pointwise.score(request), 2, SLATE, temperature, generator)
            return items_at(request.candidates_BC, lists_BGK[:, 1])

        return _policy(choose)

    def by_duration(sign: int) -> Policy:
        return _policy(lambda request, _: best_first(request, sign * duration_N[request.candidates_BC], SLATE))

    signals = [name for name in ("click", "long_view", "like") if name in world.signals]
    return {
        "mixtures": {f"sort, {w:g} of the retriever": sort(**{WATCH_TIME: 1 - w, RETRIEVER: w}) for w in MIXTURES},
        "noise": {f"sort, noise {t:g}": drawn(t) for t in TEMPERATURES},
        "signals": {f"sort by {name}": sort(**{name: 1.0}) for name in signals},
        "durations": {"longest first": by_duration(1), "shortest first": by_duration(-1)},
        "MMR": {f"MMR by {kernel} {p:g}": mmr(kernel, p) for kernel in KERNELS for p in PENALTIES},
        "lists": {
            **{f"best of {k}": BestOfLists(evaluator, SLATE, num_lists=k) for k in LISTS},
            MULTI_GENERATOR: GeneratorEvaluator(HeuristicGenerators.standard(world, SLATE), evaluator),
        },
        "references": {
            "worst": _policy(lambda request, _: best_first(request, -pointwise.score(request), SLATE)),
            "random": RandomSlate(SLATE),
        },
    }


def _policy(choose: Callable[[Request, torch.Generator], Tensor]) -> Policy:
    return lambda request, generator: Decision(choose(request, generator))


def _heuristic(heuristic: Heuristic, world: World) -> Policy:
    """One heuristic list, shown as it is."""
    generators = HeuristicGenerators([heuristic], world.signals, SLATE, world.catalogue.tag_N)
    return _policy(lambda request, generator: items_of(request, generators.propose(request, generator))[:, 0])
