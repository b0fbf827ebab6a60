"""Rerankers beside each other on the same requests, with the same predictor and the same list evaluator.

    python -m experiments.compare rerankers                    synthetic logs with the list effect x1, x0.5 and x2
    python -m experiments.compare rerankers --data <folder>    a real log, with the declared list effect and without

Every trained ranker is trained in ``Request-v0`` with the same number of requests. What is measured stands in
``agents.rerankers.list_bench``; a few methods are judged in whole sessions too. Comparisons are ratios of true list
values.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from typing import Any, ClassVar

import tyro

from experiments.tables.reranker_methods import (
    FIRST_REQUEST,
    IN_SESSIONS,
    PLAYED,
    SESSIONS,
    SHARES_OF_LOG,
    Budget,
    Line,
    bench_of,
    lines_of,
    share_name,
)
from experiments.tables.runner import Comparison, Outline, RunOptions
from experiments.tables.runs import Measured, Run
from experiments.tables.settings import TRAINING_WORLD, LogSource, Setting, digests, settings_of, worlds_of

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


@dataclass(frozen=True, kw_only=True)
class RerankersTable:
    """Generators, the evaluator's choice among their lists, and GoalRank's variants, on the same requests."""

    outline: ClassVar[Outline] = OUTLINE
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

    def runs(self) -> Iterator[Run]:
        """Every method in every world but the one of training; builds the worlds that are missing."""
        sizes = {"num_requests": self.num_requests, "first_request": FIRST_REQUEST, "orders": self.orders}
        for setting in settings_of(self.source, self.strengths):
            lines = list(lines_of(setting, self.budget, self.orders)) if setting.session_cut is None else []
            for world, line in product(worlds_of(setting), lines):
                if world != TRAINING_WORLD:
                    played = {"num_sessions": SESSIONS, "played": asdict(PLAYED)}
                    card = {**digests(setting, world), **sizes, **played, "method_config": line.card}
                    yield Run(
                        setting=setting.name,
                        world=world,
                        method=line.method,
                        seed=line.seed,
                        card=card,
                        measure=partial(self.measure, setting, world, line),
                        prepare=line.prepare,
                    )

    def measure(self, setting: Setting, world: str, line: Line) -> Measured:
        """One method in one world."""
        return line.show(bench_of(setting, world, self.num_requests))
