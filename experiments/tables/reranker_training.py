"""What the rerankers table trains.

List rankers, generators that complete a set, generators fitted to logged slates, and evaluators of less log. Every run
is kept in a folder and read where it is there, if its settings are those asked for.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from agents.baselines import PointwiseGreedy
from agents.goalrank import GoalRank, GoalRankConfig
from agents.list_policy import ListPolicy
from agents.method import Method, MethodConfig
from agents.policies import load_policy, policy_card, save_policy
from agents.rerankers.clig import CligConfig, search_generators
from agents.rerankers.log_methods import LOG_METHODS, LogMethodName, log_method
from agents.rerankers.logged_slates import fit_to_slates
from agents.rerankers.nar4rec import ContrastiveDecoding
from experiments.recipes import REQUEST_ENV, TrainRun
from experiments.train import run as train
from recsim_env.data import LoggedDataset
from recsim_env.data.requests import LoggedRequests, logged_requests
from recsim_env.types import ListEvaluator, Policy
from recsim_env.world import World
from reward_models.recommender.list_evaluator import fit_list_evaluator

SLATE = 6

GENERATORS = {
    "reward and GC": CligConfig(reward_weight=1.0, gain_weight=0.3),
    "reward only": CligConfig(reward_weight=1.0, gain_weight=0.0),
    "GC only": CligConfig(reward_weight=0.0, gain_weight=1.0),
}
"""Searches for complementary generators."""

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
class Contestants:
    """Everything that was trained or fitted."""

    trained: Mapping[str, Sequence[Policy]]
    """GoalRank and its variants, one policy for each training seed."""
    searches: Mapping[str, Sequence[Sequence[Policy]]] = field(default_factory=dict)
    """CLIG's generators, the first one first, for each training seed."""
    from_slates: Mapping[str, Policy] = field(default_factory=dict)
    """Generators fitted to logged slates."""
    evaluators: Mapping[str, ListEvaluator] = field(default_factory=dict)
    """List evaluators of less and more log."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every trained ranker gets."""

    iterations: int = 60
    """Training rounds of 512 requests."""
    seeds: int = 5
    """Training seeds of all of which something is claimed."""
    size_seeds: int = 3
    """Training seeds of each size of the network."""


Variants = Literal["plain", "claimed", "all"]
"""GoalRank as it is; with the variants of which something is claimed; with every form and size, too."""


def training_runs(world: Path, folder: Path, budget: Budget, variants: Variants) -> dict[str, list[TrainRun]]:
    """Trained rankers by name, one run for each training seed; the most important ones first.

    The largest network, the last of all, takes the better part of an hour on one core, the others one to six minutes.
    """

    def runs(name: str, seeds: int, size: Any = None, **settings: Any) -> tuple[str, list[TrainRun]]:
        return name, [
            TrainRun(
                method="agents.goalrank:GoalRank",
                config=GoalRankConfig(seed=seed, **settings),
                size=size,
                env=REQUEST_ENV,
                world=str(world),
                iterations=budget.iterations,
                run_dir=folder / f"{name.replace(' ', '-').replace(',', '')}-{seed}",
            )
            for seed in range(seeds)
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


def learned_generators(world: Path, folder: Path, budget: Budget, number: int) -> dict[str, list[list[Policy]]]:
    """The generators of each search, the pointwise sort first, for each training seed."""
    from agents.rllib.train import train_method  # imports ray

    def train_one(method: Method, evaluator: ListEvaluator, run_dir: Path) -> Path:
        return train_method(
            method,
            {"world": str(world)},
            env=REQUEST_ENV,
            evaluator=evaluator,
            iterations=budget.iterations,
            run_dir=run_dir,
        )

    evaluator = evaluator_of(World.load(world))
    first = PointwiseGreedy(SLATE)
    found: dict[str, list[list[Policy]]] = {name: [] for name in GENERATORS}
    searches = [(name, seed) for seed in range(budget.seeds) for name in GENERATORS]
    for name, seed in tqdm(searches, desc="CLIG", unit="search", disable=None):
        of_search = folder / f"clig-{name.replace(' ', '-')}-{seed}"
        for run_dir in sorted(of_search.glob("generator-*/run")):
            _check_rounds(run_dir, budget.iterations)
        learned = search_generators(
            first,
            evaluator,
            train_one,
            num_generators=number,
            folder=of_search,
            method=GoalRank(GoalRankConfig(seed=number * seed)),
            config=GENERATORS[name],
        )
        found[name].append([first, *learned])
    return found


def train_all(runs: Mapping[str, Sequence[TrainRun]]) -> dict[str, list[ListPolicy]]:
    """Trains what is missing and loads every policy.

    Raises:
        ValueError: a run folder holds a policy of other settings or rounds.
    """
    total = sum(len(some) for some in runs.values())
    policies: dict[str, list[ListPolicy]] = {}
    with tqdm(total=total, desc="rankers", unit="run", disable=None) as bar:
        for name, some in runs.items():
            policies[name] = []
            for one in some:
                folder = one.run_dir / "policy"
                _check_rounds(one.run_dir, one.iterations)
                policies[name].append(_as_asked(folder if folder.exists() else train(one), one.make_method().config))
                bar.update()
    return policies


def _check_rounds(run_dir: Path, iterations: int) -> None:
    """Refuses a finished run of another number of rounds."""
    from agents.rllib.train import latest_checkpoint  # imports ray

    kept = latest_checkpoint(run_dir)
    if (run_dir / "policy").exists() and kept is not None and int(kept.name) != iterations:
        raise ValueError(
            f"{run_dir / 'policy'} holds a policy of {int(kept.name)} rounds, this table needs {iterations}; move "
            f"{run_dir} away"
        )


def _as_asked(folder: Path, settings: MethodConfig) -> ListPolicy:
    policy: ListPolicy = load_policy(folder)
    if policy.config != settings:
        raise ValueError(f"{folder} holds a policy of {policy.config}, this table needs {settings}; move it away")
    return policy


def operator_requests(log: LoggedDataset, world: World, share: float = 1.0) -> LoggedRequests:
    """The requests that world A's recommender was fitted to, or those of a share of its users."""
    users = np.random.default_rng(0).permutation(np.asarray(world.population_P))
    return logged_requests(
        log,
        item_features_ND=world.catalogue.features_ND,
        user_features_UD=world.users.features_UD,
        users=users[: max(2, round(share * len(users)))],
        last_date=world.provenance["days"]["fit_until"],
        predictor=world.predictor,  # type: ignore[arg-type]
        retriever=world.candidates,  # type: ignore[arg-type]
    )


def slate_generators(requests: LoggedRequests, folder: Path) -> dict[str, Policy]:
    """Generators fitted to logged slates; what is missing is fitted."""
    found: dict[str, Policy] = {}
    for name in LOG_METHODS:
        kept, method = folder / f"slates-{name}", log_method(name)
        if not (kept / "policy").exists():
            network = fit_to_slates(requests, method, SLATE, run_dir=kept / "fit")
            save_policy(kept / "policy", method, network, network.shape)
        if policy_card(kept / "policy")["config"] != dataclasses.asdict(method.config):
            raise ValueError(f"{kept} holds a policy of other settings than {method.config}; move it away")
        policy = load_policy(kept / "policy")
        found[FROM_SLATES[name]] = policy
        if name == "nar4rec":
            found["NAR4Rec, logged slates, contrastive"] = ContrastiveDecoding(policy, CONTRAST)
    return found


def evaluators_by_log(log: LoggedDataset, world: World) -> dict[str, ListEvaluator]:
    """List evaluators fitted to the slates of some users; predictor and retriever are those of all in each case."""
    shares = tqdm(SHARES_OF_LOG, desc="evaluators of less log", disable=None)
    return {share_name(share): fit_list_evaluator(operator_requests(log, world, share)) for share in shares}


def share_name(share: float) -> str:
    """What the table calls the evaluator of a share of users."""
    return f"evaluator of {share:.0%} of users"


def evaluator_of(world: World) -> ListEvaluator:
    """The world's list evaluator.

    Raises:
        ValueError: it has none.
    """
    if world.evaluator is None:
        raise ValueError(f"world {world.name!r} has no list evaluator; build it from a log that holds slates")
    return world.evaluator
