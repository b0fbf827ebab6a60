"""GoalRank beside the baselines that share its predictor and evaluator, in whole sessions.

    python -m experiments.compare goalrank                     the synthetic log: judges and truth
    python -m experiments.compare goalrank --data <folder>     a real log, with the declared list effect and without,
                                                               and with users who leave half or twice as easily

GoalRank is trained in world A with each training seed, then plays every world on the same sessions as the baselines.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import tyro

from agents.goalrank import GoalRankConfig
from experiments.policies import TO_BEAT, baselines, contender, oracle
from experiments.recipes import TrainRun
from experiments.tables.runner import Comparison, Outline, RunOptions, Table
from experiments.tables.runs import Measured, Run
from experiments.tables.settings import (
    SLATE,
    TRAINING_WORLD,
    TRUTH,
    LogSource,
    Setting,
    clone_of,
    digests,
    goalrank_run,
    in_setting,
    method_card,
    settings_of,
    train_policy,
    worlds_of,
)
from recsim_env.evaluation import evaluate
from recsim_env.known_worlds import greedy_oracle
from recsim_env.session_metrics import MAIN_METRICS

METHOD, CLONE, SEARCH, ORACLE = "GoalRank", "logging clone", "evaluator search", "greedy oracle"
FIRST_SESSION = 1_000_000
"""Seed of the first session; training uses small ones."""


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
    """Sessions where the declared hazard of leaving is varied to see whether a conclusion hangs on it."""
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
    def settings(self) -> dict[str, Setting]:
        """The logs and list effects by name."""
        found = settings_of(self.source, self.strengths)
        return {setting.name: setting for setting in (found if self.variations else found[:1])}

    def table(self, outline: Outline = OUTLINE) -> Table:
        """What the runner needs; builds the worlds that are missing."""
        return Table(
            outline=outline,
            runs=[run for setting in self.settings.values() for run in self._runs(setting)],
            prepare=self.prepare,
            measure=self.measure,
        )

    def training(self, setting: Setting, seed: int) -> TrainRun:
        """GoalRank of one seed."""
        return in_setting(goalrank_run(GoalRankConfig(seed=seed), self.iterations), setting, METHOD, seed)

    def _methods(self, setting: Setting, world: str) -> list[tuple[str, int]]:
        """Names and seeds of who plays a world."""
        trained = [(METHOD, seed) for seed in range(self.seeds)]
        if setting.hazard != 1:
            return [*((name, 0) for name in TO_BEAT), *trained]
        others = [*baselines(worlds_of(setting)[TRAINING_WORLD], SLATE), CLONE, *([ORACLE] if world == TRUTH else [])]
        return [*((name, 0) for name in others if name != SEARCH or self.search_sessions), *trained]

    def _sessions(self, setting: Setting, method: str) -> int:
        if method in (SEARCH, ORACLE):
            return min(self.search_sessions or 100, self.num_sessions)
        return self.num_sessions if setting.hazard == 1 else min(self.varied_sessions, self.num_sessions)

    def _runs(self, setting: Setting) -> list[Run]:
        found = []
        for world in worlds_of(setting):
            for method, seed in self._methods(setting, world):
                card: dict[str, Any] = {
                    **digests(setting, world),
                    "num_sessions": self._sessions(setting, method),
                    "first_session": FIRST_SESSION,
                    "method_config": method_card(self.training(setting, seed)) if method == METHOD else {},
                }
                found.append(Run(setting=setting.name, world=world, method=method, seed=seed, card=card))
        return found

    def prepare(self, run: Run) -> None:
        """Trains the policy that a run plays."""
        if run.method == METHOD:
            train_policy(self.training(self.settings[run.setting], run.seed))

    def measure(self, run: Run) -> Measured:
        """One policy plays one world."""
        setting = self.settings[run.setting]
        result = evaluate(
            {run.method: self._player(setting, run)},
            {run.world: worlds_of(setting)[run.world]},
            num_sessions=run.card["num_sessions"],
            seed=FIRST_SESSION,
        )
        cell = result.cells[run.method, run.world]
        if not self.all_metrics:
            kept: dict[str, Any] = {
                part: {name: value for name, value in getattr(cell, part).items() if name in MAIN_METRICS}
                for part in ("ratios", "totals")
            }
            cell = dataclasses.replace(cell, **kept)
        return Measured(cells={run.method: cell})

    def _player(self, setting: Setting, run: Run) -> Any:
        if run.method == METHOD:
            return contender(train_policy(self.training(setting, run.seed)))
        if run.method == ORACLE:
            return oracle(greedy_oracle)
        if run.method == CLONE:
            return clone_of(setting)
        return baselines(worlds_of(setting.trained_in)[TRAINING_WORLD], SLATE)[run.method]
