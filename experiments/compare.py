"""Tables over several training seeds, built from finished runs; only what is missing is run.

    python -m experiments.compare goalrank                     the synthetic log: judges and truth
    python -m experiments.compare goalrank --data <folder>     a real log, with the declared list effect and without,
                                                               and with users who leave half or twice as easily
    python -m experiments.compare rerankers                    generators, their choice, GoalRank's variants: see
                                                               ``experiments.tables.rerankers``

GoalRank is trained in world A with each training seed, then plays every world on the same sessions as the
references. Each finished world leaves one small JSON in ``experiments/results``. A claim has to clear both the
interval over training seeds and the one over sessions. ``--json`` writes ``rows`` (see ``experiments.evaluate``)
and ``checks`` (name, bar, value, low, high, verdict).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from agents.goalrank import GoalRankConfig
from experiments.command import run_command
from experiments.policies import logging_clone, oracle, references, trained
from experiments.recipes import TrainRun
from experiments.report import BASELINES, MAIN_METRICS
from experiments.tables import reranker_plots, rerankers
from experiments.tables.reranker_training import (
    Budget,
    Contestants,
    Variants,
    evaluators_by_log,
    learned_generators,
    operator_requests,
    slate_generators,
    train_all,
    training_runs,
)
from experiments.train import requests_of
from experiments.train import run as train
from recsim_env.data import LoggedDataset, load_kuairand
from recsim_env.evaluation import evaluate
from recsim_env.files import read_json, write_json
from recsim_env.known_worlds import greedy_oracle, short_video_world
from recsim_env.known_worlds.logs import LoggingPolicy, synthetic_log
from recsim_env.provenance import stamp
from recsim_env.results import EvaluationResult, as_json, judge, to_plain
from recsim_env.types import Policy
from recsim_env.world import World
from reward_models.build import SHORT_FIT, BuildConfig, build_worlds, with_recommender, without_list_effect

SEARCH_SESSIONS = 200
"""Sessions of the policies that search at every request, which takes a hundred times longer."""

VARIED_SESSIONS = 1000
"""Sessions of each policy where a declared parameter is varied to see whether a conclusion hangs on it."""


DECLARED = 0.3
"""Declared chance that a repeated tag is skipped, for logs without slates."""


@dataclass(frozen=True, kw_only=True)
class GoalRankTable:
    """GoalRank beside the references that share its predictor and evaluator."""

    data: Path | None = None
    """A KuaiRand folder; by default a synthetic log is drawn from a known world."""
    seeds: int = 5
    """Training seeds."""
    world_seed: int = 100
    """Seed of the log and of the judges: another one than the demo's, so that they are met fresh."""
    num_users: int = 3000
    """Users of the synthetic world."""
    num_items: int = 2000
    """Videos of the synthetic world."""
    log_sessions: int = 8000
    """Sessions of the synthetic log."""
    uniform_share: float = 0.1
    """Share of its requests answered with uniform videos: what an operator spends on exploration."""
    strengths: tuple[float, ...] = (1.0,)
    """Strengths of the true list effect in the synthetic world, each with a log and worlds of its own."""
    iterations: int = 120
    """Training rounds."""
    num_sessions: int = 4000
    """Sessions of each policy in each world."""
    folder: Path = Path("runs/compare")
    """Where worlds and training runs are kept."""
    results: Path = Path("experiments/results")
    """Where finished worlds leave their JSON."""
    json: Path | None = None
    """Also write the table here."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.num_sessions < 2:
            raise ValueError(f"need seeds >= 1 and num_sessions >= 2, got {self.seeds} and {self.num_sessions}")

    @property
    def settings(self) -> list["Setting"]:
        """The logs and list effects of this table."""
        if self.data is None:
            return [Setting(self, "synthetic" if s == 1 else f"synthetic-x{s:g}", 0.0, s, 0.0) for s in self.strengths]
        log = self.data.resolve().name
        declared = Setting(self, f"{log}-declared", DECLARED, 0.0, None)
        varied = [
            dataclasses.replace(declared, name=f"{declared.name}-leave-x{hazard:g}", hazard=hazard)
            for hazard in (0.5, 2.0)
        ]
        return [declared, Setting(self, f"{log}-none", 0.0, 0.0, None), *varied]


@dataclass(frozen=True)
class Setting:
    """One log with its worlds and training runs."""

    table: GoalRankTable
    name: str
    declared_effect: float
    """Declared chance that a repeated tag is skipped, for logs without slates."""
    strength: float
    """Strength of the true list effect in the synthetic world."""
    bar: float | None
    """Seconds that GoalRank's lead has to exceed."""
    hazard: float = 1.0
    """What the declared hazards of leaving are multiplied by; the policies are those trained with 1."""

    @property
    def folder(self) -> Path:
        """Where its worlds and training runs are kept."""
        return self.table.folder / self.name

    @cached_property
    def log(self) -> tuple[LoggedDataset, World | None]:
        """The log, and the truth that it was drawn from."""
        table = self.table
        if table.data is not None:
            return load_kuairand(table.data), None
        truth = short_video_world(
            num_users=table.num_users, num_items=table.num_items, seed=table.world_seed, list_effect=self.strength
        )
        return self._drawn(truth, keep_candidates=False), truth

    @cached_property
    def slates(self) -> LoggedDataset:
        """The synthetic log with its candidate lists, which the worlds are not fitted to."""
        truth = self.log[1]
        assert truth is not None
        return self._drawn(truth, keep_candidates=True)

    def _drawn(self, truth: World, *, keep_candidates: bool) -> LoggedDataset:
        return synthetic_log(
            truth,
            num_sessions=self.table.log_sessions,
            policy=LoggingPolicy(uniform_share=self.table.uniform_share),
            keep_candidates=keep_candidates,
            seed=self.table.world_seed,
        )

    @cached_property
    def worlds(self) -> dict[str, World]:
        """World A, the judges and the truth; what is not built yet is built.

        Without the declared effect a real log's worlds are those with it, less the effect.
        """
        if self.hazard != 1:
            built = self.table.settings[0].worlds
            return {name: _with_hazard(world, self.hazard) for name, world in built.items()}
        dataset, truth = self.log
        if truth is None and not self.declared_effect:
            built = self.table.settings[0].worlds
            for name, world in built.items():
                if not (self.folder / "worlds" / name / "world.json").exists():
                    without_list_effect(world).save(self.folder / "worlds" / name)
            return {name: World.load(self.folder / "worlds" / name) for name in built}
        build = BuildConfig(fit=SHORT_FIT, seed=self.table.world_seed, list_effect=self.declared_effect)
        folders = build_worlds(dataset, self.folder / "worlds", build)
        worlds = {name: World.load(folder) for name, folder in folders.items()}
        return worlds if truth is None else {**worlds, "truth": with_recommender(truth, worlds["judge-1"])}

    @cached_property
    def clone(self) -> Policy | None:
        """An imitation of the log's own ranker."""
        if self.hazard != 1:  # not among those who play
            return None
        return logging_clone(self.log[0], self.worlds["A"], slate_size=6)

    @property
    def world_names(self) -> tuple[str, ...]:
        """Names of ``worlds``, known without building them."""
        judges = tuple(f"judge-{j + 1}" for j in range(BuildConfig().judges))
        return ("A", *judges, *(() if self.table.data else ("truth",)))

    @cached_property
    def training(self) -> list[TrainRun]:
        """One run for each seed."""
        if self.hazard != 1:
            return self.table.settings[0].training
        return [
            TrainRun(
                method="agents.goalrank:GoalRank",
                config=GoalRankConfig(seed=seed),
                world=str(self.folder / "worlds" / "A"),
                iterations=self.table.iterations,
                run_dir=self.folder / f"goalrank-{seed}",
            )
            for seed in range(self.table.seeds)
        ]


@dataclass(frozen=True, kw_only=True)
class RerankersTable:
    """Generators, the evaluator's choice among their lists, and GoalRank's variants, on the same requests."""

    data: Path | None = None
    """A KuaiRand folder; by default synthetic logs are drawn from known worlds."""
    strengths: tuple[float, ...] = (1.0, 0.5, 2.0)
    """Strengths of the true list effect in the synthetic world, each with a log and worlds of its own."""
    budget: Budget = field(default_factory=Budget)
    """What every trained ranker gets."""
    num_requests: int = 5000
    """Requests on which lists are valued."""
    orders: int = 40
    """Random orders of the generators."""
    folder: Path = Path("runs/compare")
    """Where worlds and training runs are kept; worlds are those of ``goalrank``."""
    results: Path = Path("experiments/results")
    """Where finished worlds leave their JSON."""
    json: Path | None = None
    """Also write the table here."""

    def __post_init__(self) -> None:
        if self.num_requests < 2 or self.orders < 1 or not self.strengths:
            raise ValueError(
                "need num_requests >= 2, orders >= 1 and a strength, got "
                f"{self.num_requests}, {self.orders} and {self.strengths}"
            )

    @property
    def settings(self) -> list["Setting"]:
        """The logs and list effects of this table."""
        worlds = GoalRankTable(data=self.data, strengths=self.strengths, folder=self.folder, results=self.results)
        return [setting for setting in worlds.settings if setting.hazard == 1]


def run_rerankers(table: RerankersTable) -> dict[str, Any]:
    """Trains and measures what is missing and returns rows and checks of every setting."""
    report: dict[str, Any] = {"rows": [], "checks": []}
    for setting in table.settings:
        names = [name for name in setting.world_names if name != "A"]
        paths = {name: table.results / f"rerankers-{setting.name}-{name}.json" for name in names}
        if not all(path.exists() for path in paths.values()):
            _measure_rerankers(table, setting, {name: path for name, path in paths.items() if not path.exists()})
        for path in paths.values():
            content = read_json(path)
            _same_table(path, content, table)
            report["rows"] += [{**row, "setting": setting.name} for row in content["rows"] if row["baseline"] is None]
            report["checks"] += content["checks"]
    shown = {
        world: [row for row in report["rows"] if (row["setting"], row["world"]) == (setting.name, world)]
        for setting in table.settings[:1]
        for world in setting.world_names
        if world != "A"
    }
    log = table.settings[0].name
    reranker_plots.curves(shown).savefig(table.results / f"rerankers-{log}.png", dpi=110)
    return report


def _same_table(path: Path, content: dict[str, Any], table: RerankersTable) -> None:
    was = {name: content[name] for name in ("num_requests", "orders", "budget")}
    now = {"num_requests": table.num_requests, "orders": table.orders, "budget": dataclasses.asdict(table.budget)}
    if was != now:
        raise ValueError(f"{path} holds a table of {was}, asked for {now}; choose another --results or delete it")


def _measure_rerankers(table: RerankersTable, setting: Setting, missing: dict[str, Path]) -> None:
    from_slates = {}
    if table.data is None:  # a real log here holds no slates
        requests = operator_requests(setting.slates, setting.worlds["A"])
        from_slates = slate_generators(requests, setting.folder / "rerankers")
    pool = rerankers.generator_pool(setting.worlds["A"], from_slates)
    contestants = _contestants(table, setting, from_slates)
    goalrank = {"GoalRank": contestants.trained["GoalRank"]}
    if setting.strength in (0.0, 1.0):  # where the other table trains it in sessions
        goalrank |= train_all({"GoalRank, trained in sessions": setting.training})
    for name, path in tqdm(missing.items(), desc=f"worlds of {setting.name}", disable=None):
        world = setting.worlds[name]
        bench = rerankers.Bench(world, table.num_requests, seed=5_000_000)
        cells = rerankers.measure(bench, pool, contestants, table.orders)
        result = EvaluationResult(cells={(method, name): cell for method, cell in cells.items()})
        content = {
            "setting": setting.name,
            "world": name,
            "list_effect": {"declared": setting.declared_effect, "true": setting.strength},
            "num_requests": table.num_requests,
            "orders": table.orders,
            "generators": rerankers.generator_list(bench, pool),
            "comprehensiveness": rerankers.comprehensiveness(bench, pool, contestants.searches, table.orders),
            "budget": dataclasses.asdict(table.budget),
            "openings": _opened(setting.folder / "openings.json", f"rerankers in {name}"),
            "rows": [
                as_json(row) for row in [*result.rows(), *rerankers.in_sessions(world, name, pool, goalrank, 6_000_000)]
            ],
            "checks": rerankers.checks(cells, f"{setting.name}, {name}", with_bars=table.data is None),
            **stamp(),
        }
        write_json(path, to_plain(content))


def _contestants(table: RerankersTable, setting: Setting, from_slates: dict[str, Policy]) -> Contestants:
    """Trains what is missing: all at x1, what is claimed under a declared effect, else GoalRank alone."""
    everything = setting.strength == 1.0
    variants: Variants = "all" if everything else "claimed" if setting.declared_effect else "plain"
    world_a, folder = setting.folder / "worlds" / "A", setting.folder / "rerankers"
    return Contestants(
        trained=train_all(training_runs(world_a, folder, table.budget, variants)),
        searches=learned_generators(world_a, folder, table.budget, 2) if everything else {},
        from_slates=from_slates,
        evaluators=evaluators_by_log(setting.log[0], setting.worlds["A"]) if everything else {},
    )


def run(table: GoalRankTable) -> dict[str, Any]:
    """Runs what is missing and returns rows and checks of every setting."""
    report: dict[str, Any] = {"rows": [], "checks": []}
    for setting in table.settings:
        paths = {name: table.results / f"goalrank-{setting.name}-{name}.json" for name in setting.world_names}
        missing = [name for name, path in paths.items() if not path.exists()]
        for name in tqdm(missing, desc=f"worlds of {setting.name}", disable=None):
            write_json(paths[name], to_plain(play(setting, name)))
        for path in paths.values():
            content = read_json(path)
            report["rows"] += [{**row, "setting": setting.name} for row in content["rows"]]
            report["checks"] += content["checks"]
    return report


def play(setting: Setting, name: str) -> dict[str, Any]:
    """Everyone plays one world, after what training is still missing; returns what its JSON keeps."""
    table, world = setting.table, setting.worlds[name]
    num_sessions = table.num_sessions
    contenders: dict[str, Any] = dict(references(setting.worlds["A"], slate_size=6, clone=setting.clone))
    searchers: dict[str, Any] = {"evaluator search": contenders.pop("evaluator search")}
    if name == "truth":
        searchers["greedy oracle"] = oracle(greedy_oracle)
    if setting.hazard != 1:
        num_sessions, searchers = min(num_sessions, VARIED_SESSIONS), {}
        contenders = {baseline: contenders[baseline] for baseline in BASELINES}
    policies = [train(run) for run in tqdm(setting.training, desc=f"seeds of {setting.name}", disable=None)]
    contenders["GoalRank"] = trained(policies, requests_of(setting.training[0]))
    result = evaluate(contenders, {name: world}, num_sessions=num_sessions, seed=1_000_000)
    rows = result.rows()
    if searchers:
        few = min(SEARCH_SESSIONS, num_sessions)
        rows = [*rows, *evaluate(searchers, {name: world}, num_sessions=few, seed=1_000_000).rows()]
    return {
        "setting": setting.name,
        "world": name,
        "world_seed": table.world_seed,
        "list_effect": {"declared": setting.declared_effect, "true": setting.strength},
        "hazard": setting.hazard,
        "num_sessions": num_sessions,
        "iterations": table.iterations,
        "openings": _opened(setting.folder / "openings.json", name),
        "rows": [as_json(row) for row in rows if row.metric in MAIN_METRICS],
        "checks": checks(result, setting, name),
        **stamp(),
    }


def _with_hazard(world: World, factor: float) -> World:
    leave = world.leave.scaled(factor)  # type: ignore[attr-defined]
    return world.replace(leave=leave, declared={**world.declared, "leave": leave.config()})


def checks(result: EvaluationResult, setting: Setting, name: str) -> list[dict[str, Any]]:
    """GoalRank's lead over each baseline, with both of its intervals."""
    found = []
    for baseline in BASELINES:
        row = result.difference("GoalRank", baseline, name)
        low, high = row.widest
        verdict = judge(
            f"{setting.name}: GoalRank - {baseline}, {name}, session watch time (s)",
            value=row.mean,
            low=low,
            high=high,
            bar=setting.bar if name != "A" else None,  # the policy was trained there: no claim
        )
        intervals = {"over_seeds": [row.low, row.high], "over_sessions": [row.session_low, row.session_high]}
        found.append(to_plain({**dataclasses.asdict(verdict), **intervals, "seeds": row.seeds}))
    return found


def _opened(path: Path, world: str) -> int:
    """Counts how often policies have been played in a world of this folder."""
    count = read_json(path) if path.exists() else {}
    count[world] = count.get(world, 0) + 1
    write_json(path, count)
    return int(count[world])


def main(table: GoalRankTable | RerankersTable) -> None:
    """Runs what is missing and prints the table."""
    report = run_rerankers(table) if isinstance(table, RerankersTable) else run(table)
    shown = "true_list_value" if isinstance(table, RerankersTable) else "session_watch_time"
    for row in report["rows"]:
        if row["metric"] == shown:
            interval = f"[{row['low']:.1f}, {row['high']:.1f}]"
            print(f"{row['setting']:28}{row['world']:10}{row['policy']:34}{row['mean']:8.1f} {interval}")
    digits = ".4f" if isinstance(table, RerankersTable) else "+.1f"  # ratios, or seconds
    for check in report["checks"]:
        value, low, high = (format(check[key], digits) for key in ("value", "low", "high"))
        print(f"{check['name']}: {value} [{low}, {high}] {check['verdict']}")
    if table.json:
        write_json(table.json, to_plain(report))


TABLES: dict[str, Callable[..., Any]] = {"goalrank": GoalRankTable, "rerankers": RerankersTable}
"""Tables by name."""


if __name__ == "__main__":
    run_command(main, lambda: tyro.extras.subcommand_cli_from_dict(TABLES, description=__doc__))
