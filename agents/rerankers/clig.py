"""CLIG: learns list generators that complete a set, one after the other (arXiv 2504.15625).

Each new generator is a list policy trained on what the evaluator thinks of its lists plus a weight times GC, how far
they lie from the lists that the generators before it propose for the same request. It joins the set, and the next
one is trained beside it. In use, every generator proposes its greedy list and the evaluator picks (MG-E-k).

The text that was found stops before the paper's loss. Here:

- the signal of a list is ``reward_weight * value + gain_weight * spread * z(GC)``, with ``z`` the z-score of GC in the
  group of lists drawn for a request and ``spread`` the standard deviation of their values, so that the weight does
  not depend on units or on how many generators there are;
- the policy is trained on it by any method that learns from a list evaluator (``agents.method``), GoalRank unless
  another is given: by cross-entropy to the group-relative reference, or by the clipped policy gradient
  (``GoalRankConfig.objective``);
- the first generator has nothing to complete and is whatever the user begins with.

Left out: the paper's automatic choice of how many generators to add, since its rule is not known.

Shape legend: B requests, C candidates, G lists in a group, L lists of the generators before, K places.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agents.goalrank import GoalRank, GoalRankConfig
from agents.method import Method, make_method, method_path, require_one_of
from agents.objectives import group_z_score
from agents.policies import load_policy
from agents.rerankers.complementarity import DISTANCES, Distance, comprehensiveness_gain, list_distances
from agents.rerankers.multi_generator import Generators, PolicyLists
from recsim_env.digests import digest_tensors
from recsim_env.files import claim
from recsim_env.slates import positions_of
from recsim_env.types import ListEvaluator, ListValue, Policy, Request


@dataclass(frozen=True, kw_only=True)
class CligConfig:
    """What makes a generator worth adding."""

    reward_weight: float = 1.0
    """Weight of the evaluator's value; 0 leaves complementarity alone."""
    gain_weight: float = 0.3
    """Weight of GC beside it, in standard deviations of the group; 0 learns reward only."""
    distance: Distance = "pair_order"
    """What GC sums up: "embedding" or "pair_order"."""

    def __post_init__(self) -> None:
        require_one_of(self, "distance", DISTANCES)
        if not (min(self.reward_weight, self.gain_weight) >= 0 and self.reward_weight + self.gain_weight > 0):
            raise ValueError(
                f"weights must not be negative, nor both zero, got reward_weight={self.reward_weight} and "
                f"gain_weight={self.gain_weight}"
            )


class ComplementaryEvaluator:
    """Values lists by an evaluator and by what they add to existing generators; a ``ListEvaluator`` for training.

    Args:
        evaluator: values whole lists.
        existing: the generators so far.
        config: the weights.
    """

    def __init__(self, evaluator: ListEvaluator, existing: Generators, config: CligConfig):
        self.evaluator, self.existing, self.config = evaluator, existing, config

    def __str__(self) -> str:
        """Names what is trained, in the card of a run."""
        return f"{self.config}, beside {', '.join(self.existing.names)}"

    @torch.no_grad()
    def score(self, request: Request, items_BGK: Tensor) -> ListValue:
        """The group's values with complementarity in them; all other fields are the evaluator's."""
        value: ListValue = self.evaluator.score(request, items_BGK)
        lists_BGK = positions_of(items_BGK, request.candidates_BC)
        generator = torch.Generator(device=request.candidates_BC.device).manual_seed(0)
        existing_BLK = self.existing.propose(request, generator)
        distance_BGL = list_distances(request, lists_BGK, existing_BLK, self.config.distance)
        gain_BG = group_z_score(comprehensiveness_gain(distance_BGL))
        spread_B1 = value.value_BG.std(dim=1, keepdim=True, correction=0)
        value_BG = self.config.reward_weight * value.value_BG + self.config.gain_weight * spread_B1 * gain_BG
        return value._replace(value_BG=value_BG)


Train = Callable[[Method, ListEvaluator, Path], Path]
"""Trains a method on an evaluator in a run folder and returns the folder of the exported policy."""


def search_generators(
    first: Policy,
    evaluator: ListEvaluator,
    train: Train,
    *,
    num_generators: int,
    folder: Path,
    method: Method | None = None,
    config: CligConfig | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Policy]:
    """Learns generators one after the other and yields each as soon as it is there.

    Args:
        first: the generator to begin with.
        evaluator: values whole lists.
        train: trains a method on an evaluator; usually a few lines around ``agents.rllib.train.train_method`` that
            name the world, as ``experiments.tables.reranker_methods`` has them.
        num_generators: how many to add.
        folder: where each keeps its run, under ``generator-<number>/run``; finished ones are read, not trained again.
        method: what trains each of them, with its settings; GoalRank by default. Each gets a seed of its own.
        config: what makes a generator worth adding.
        device: where the world's requests are.

    Raises:
        ValueError: no generator to add, or a run folder that holds a generator of other settings, or one learned beside
            other generators or for another evaluator.
    """
    if num_generators < 1:
        raise ValueError(f"num_generators must be at least 1, got {num_generators}")
    method, config = method or GoalRank(GoalRankConfig()), config or CligConfig()
    existing: dict[str, Policy] = {"first": first}
    for number in range(1, num_generators + 1):
        one = _with_seed(method, method.config.seed + number)
        run_dir = folder / f"generator-{number}" / "run"
        claim(run_dir.parent, _goal(one, evaluator, existing, config), name="goal.json")
        if not (run_dir / "policy").exists():
            train(one, ComplementaryEvaluator(evaluator, PolicyLists(existing), config), run_dir)
        learned = load_policy(run_dir / "policy", device=device)
        existing[f"learned {number}"] = learned
        yield learned


def _with_seed(method: Method, seed: int) -> Method:
    """The same method with another seed."""
    return make_method(method_path(method), {**dataclasses.asdict(method.config), "seed": seed})


def _goal(
    method: Method, evaluator: ListEvaluator, existing: Mapping[str, Policy], config: CligConfig
) -> dict[str, Any]:
    """Everything that shapes a generator, as JSON values; evaluator and other generators by their fingerprints."""
    return {
        "method": method_path(method),
        "settings": dataclasses.asdict(method.config),
        "clig": dataclasses.asdict(config),
        "evaluator": _fingerprint(evaluator),
        "beside": {name: _fingerprint(policy) for name, policy in existing.items()},
    }


def _fingerprint(thing: Any) -> str:
    """Class and, where it has tensors, a digest of these."""
    tensors = thing.state_dict() if isinstance(thing, nn.Module) else getattr(thing, "tensors", dict)()
    return f"{type(thing).__name__} {digest_tensors(tensors)[:12]}" if tensors else type(thing).__name__
