"""What the rerankers table trains.

List rankers, generators that complete a set, generators fitted to logged slates, and evaluators of less log. Every run
lies in a folder that only the same work can share, and is read where it is there.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from agents.baselines import PointwiseGreedy
from agents.goalrank import GoalRank, GoalRankConfig
from agents.method import Method
from agents.policies import load_policy, save_policy
from agents.rerankers.clig import CligConfig, search_generators
from agents.rerankers.list_bench import evaluator_of
from agents.rerankers.log_methods import LOG_METHODS, LogMethodName, log_method
from agents.rerankers.logged_slates import fit_to_slates
from agents.rerankers.nar4rec import ContrastiveDecoding
from experiments.recipes import REQUEST_ENV, TrainRun
from experiments.tables.settings import (
    SLATE,
    TRAINING_WORLD,
    Setting,
    digests,
    goalrank_run,
    in_setting,
    known_truth,
    log_of,
    trained_folder,
    world_folders,
    worlds_of,
)
from recsim_env.data.requests import LoggedRequests
from recsim_env.types import ListEvaluator, Policy
from reward_models.recommender.list_evaluator import fit_list_evaluator
from reward_models.recommender.operator_requests import operator_requests

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
        return name, [
            in_setting(
                goalrank_run(GoalRankConfig(seed=seed, **config), budget.iterations, size=size, env=REQUEST_ENV),
                setting,
                name,
                seed,
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


def search_card(budget: Budget, name: str, seed: int) -> dict[str, Any]:
    """What shapes a search."""
    return {"search": dataclasses.asdict(SEARCHES[name]), "iterations": budget.iterations, "first_seed": LEARNED * seed}


@cache
def searched(setting: Setting, budget: Budget, name: str, seed: int) -> list[Policy]:
    """The generators of a search, the pointwise sort first; what is missing is trained."""
    from agents.rllib.algorithm import MethodAlgorithmConfig  # imports ray
    from agents.rllib.train import train_method

    world = world_folders(setting)[TRAINING_WORLD]

    def train_one(method: Method, evaluator: ListEvaluator, run_dir: Path) -> Path:
        config = MethodAlgorithmConfig(type(method)).environment(REQUEST_ENV, env_config={"world": str(world)})
        config.training(method_config=method.config, evaluator=evaluator)
        return train_method(config, iterations=budget.iterations, run_dir=run_dir)

    first = PointwiseGreedy(SLATE)
    learned = search_generators(
        first,
        evaluator_of(worlds_of(setting)[TRAINING_WORLD]),
        train_one,
        num_generators=LEARNED,
        folder=_folder(setting, f"clig-{name}-{seed}", search_card(budget, name, seed)),
        method=GoalRank(GoalRankConfig(seed=LEARNED * seed)),
        config=SEARCHES[name],
    )
    return [first, *learned]


@cache
def slate_generators(setting: Setting) -> Mapping[str, Policy]:
    """Generators fitted to logged slates, which a real log here has none of; what is missing is fitted."""
    found: dict[str, Policy] = {}
    requests: LoggedRequests | None = None
    for name in LOG_METHODS if known_truth(setting) else ():
        method = log_method(name)
        folder = _folder(setting, f"slates-{name}", dataclasses.asdict(method.config))
        if not (folder / "policy" / "policy.json").exists():
            requests = requests or operator_requests(
                log_of(setting, keep_candidates=True), worlds_of(setting)[TRAINING_WORLD]
            )
            network = fit_to_slates(requests, method, SLATE, run_dir=folder / "fit")
            save_policy(folder / "policy", method, network, network.shape)
        policy = load_policy(folder / "policy")
        found[FROM_SLATES[name]] = policy
        if name == "nar4rec":
            found["NAR4Rec, logged slates, contrastive"] = ContrastiveDecoding(policy, CONTRAST)
    return found


@cache
def evaluator_of_share(setting: Setting, share: float) -> ListEvaluator:
    """A list evaluator fitted to the slates of some users; predictor and retriever are those of all."""
    world = worlds_of(setting)[TRAINING_WORLD]
    users = np.random.default_rng(0).permutation(np.asarray(world.population_P))
    some = users[: max(2, round(share * len(users)))]
    return fit_list_evaluator(operator_requests(log_of(setting), world, some))


def share_name(share: float) -> str:
    """What the table calls the evaluator of a share of users."""
    return f"evaluator of {share:.0%} of users"


def _folder(setting: Setting, name: str, card: Mapping[str, Any]) -> Path:
    """A folder that no work of other settings, log or world can share."""
    return trained_folder(setting, name, {"card": card, **digests(setting, TRAINING_WORLD)})
