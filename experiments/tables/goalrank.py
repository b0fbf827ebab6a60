"""GoalRank beside the baselines that share its predictor and evaluator, in whole sessions.

    python -m experiments.compare goalrank                     the synthetic log: judges and truth
    python -m experiments.compare goalrank --data <folder>     a real log, with the declared list effect and without,
                                                               and with sessions cut at other pauses

GoalRank is trained in world A with each training seed, then plays every world on the same sessions as the baselines.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import ClassVar

import tyro

from agents.goalrank import GoalRankConfig
from experiments.policies import TO_BEAT, baselines, contender, logging_clone
from experiments.recipes import TrainRun
from experiments.tables.runner import Comparison, Outline, RunOptions
from experiments.tables.runs import Measured, Run
from experiments.tables.settings import (
    SLATE,
    TRAINING_WORLD,
    TRUTH,
    LogSource,
    Setting,
    digests,
    in_setting,
    log_of,
    method_card,
    settings_of,
    train_policy,
    worlds_of,
)
from recsim_env.evaluation import Contender, EvaluationSettings, evaluate
from recsim_env.known_worlds import greedy_oracle
from recsim_env.results import Cell
from recsim_env.session_metrics import MAIN_METRICS
from recsim_env.types import Policy

METHOD, CLONE, SEARCH, ORACLE = "GoalRank", "logging clone", "evaluator search", "greedy oracle"
FIRST_SESSION = 1_000_000
"""Seed of the first session; training uses small ones."""
PLAYED = EvaluationSettings()
"""How sessions are played; part of every card, so that no run outlives a change of it."""

OUTLINE = Outline(
    name="goalrank",
    title="GoalRank beside the baselines that share its predictor and evaluator",
    metrics={"session_watch_time": "seconds watched in a session", "true_list_value": "expected seconds of a slate"},
    comparisons=[Comparison(name=METHOD, other=other, metric="session_watch_time") for other in TO_BEAT],
    # In world A the policy was trained, and of a real log no lead was promised.
    claims=lambda setting, world: world != TRAINING_WORLD and setting.startswith("synthetic"),
)


@dataclass(frozen=True, kw_only=True)
class GoalRankTable:
    """GoalRank beside the baselines that share its predictor and evaluator."""

    outline: ClassVar[Outline] = OUTLINE
    source: tyro.conf.OmitArgPrefixes[LogSource] = field(default_factory=LogSource)
    """The logs and worlds."""
    strengths: tuple[float, ...] = (1.0,)
    """Strengths of the true list effect in the synthetic world, each with a log and worlds of its own."""
    seeds: int = 5
    """Training seeds."""
    iterations: int = 120
    """Training rounds."""
    num_sessions: int = 4000
    """Sessions of each policy in each world."""
    search_sessions: int = 200
    """Sessions of the policies that search at every request, which takes a hundred times longer; 0 leaves out the
    search by the evaluator."""
    varied_sessions: int = 1000
    """Sessions where the declared length of sessions is varied to see whether a conclusion hangs on it."""
    variations: bool = True
    """Repeat a real log's comparisons under other declared parameters."""
    all_metrics: bool = False
    """Keep every metric in the files, not the main ones alone."""
    run: tyro.conf.OmitArgPrefixes[RunOptions] = field(default_factory=RunOptions)
    """How it is run."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.num_sessions < 2:
            raise ValueError(f"need seeds >= 1 and num_sessions >= 2, got {self.seeds} and {self.num_sessions}")

    @property
    def settings(self) -> list[Setting]:
        """The logs and list effects."""
        found = settings_of(self.source, self.strengths)
        return found if self.variations else found[:1]

    def training(self, setting: Setting, seed: int) -> TrainRun:
        """GoalRank of one seed."""
        config = GoalRankConfig(seed=seed)
        run = TrainRun(method="agents.goalrank:GoalRank", config=config, iterations=self.iterations)
        return in_setting(run, setting, f"{METHOD}-{seed}")

    def runs(self) -> Iterator[Run]:
        """Every policy in every world; builds the worlds that are missing."""
        for setting in self.settings:
            for world in worlds_of(setting):
                for method in self._untrained(setting, world):
                    yield self._run(setting, world, method, 0, None)
                for seed in range(self.seeds):
                    yield self._run(setting, world, METHOD, seed, self.training(setting, seed))

    def _untrained(self, setting: Setting, world: str) -> list[str]:
        """Who plays a world beside GoalRank."""
        if setting.session_cut is not None:
            return list(TO_BEAT)
        found = [*baselines(worlds_of(setting)[TRAINING_WORLD], SLATE), CLONE, *([ORACLE] if world == TRUTH else [])]
        return [name for name in found if name != SEARCH or self.search_sessions]

    def _run(self, setting: Setting, world: str, method: str, seed: int, training: TrainRun | None) -> Run:
        sessions = self.num_sessions if setting.session_cut is None else min(self.varied_sessions, self.num_sessions)
        if method in (SEARCH, ORACLE):
            sessions = min(self.search_sessions or 100, self.num_sessions)
        sizes = {"num_sessions": sessions, "first_session": FIRST_SESSION, "played": dataclasses.asdict(PLAYED)}
        return Run(
            setting=setting.name,
            world=world,
            method=method,
            seed=seed,
            card={**digests(setting, world), **sizes, "method_config": method_card(training) if training else {}},
            measure=partial(self.measure, setting, world, method, training, sessions),
            prepare=partial(player, setting, method, training) if training else lambda: None,
        )

    def measure(self, setting: Setting, world: str, method: str, training: TrainRun | None, sessions: int) -> Measured:
        """One policy plays one world."""
        policies = {method: player(setting, method, training)}
        worlds = {world: worlds_of(setting)[world]}
        result = evaluate(policies, worlds, num_sessions=sessions, seed=FIRST_SESSION, settings=PLAYED)
        cell = result.cells[method, world]
        return Measured(cells={method: cell if self.all_metrics else with_main_metrics(cell)})


def with_main_metrics(cell: Cell) -> Cell:
    """A cell without what no committed file keeps."""
    return dataclasses.replace(
        cell,
        ratios={name: sums for name, sums in cell.ratios.items() if name in MAIN_METRICS},
        totals={name: value for name, value in cell.totals.items() if name in MAIN_METRICS},
    )


@cache
def player(setting: Setting, method: str, training: TrainRun | None) -> Policy | Contender:
    """A trained policy, the oracle, an imitation of the log's own ranker, or a baseline."""
    if training:
        return contender(train_policy(training))
    if method == ORACLE:
        return Contender(oracle=greedy_oracle, feedback="branched")
    world = worlds_of(setting.trained_in)[TRAINING_WORLD]
    return logging_clone(log_of(setting), world, SLATE) if method == CLONE else baselines(world, SLATE)[method]
