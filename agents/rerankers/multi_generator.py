"""Generator-evaluator reranking: lists are proposed, a list evaluator picks one to show (arXiv 2504.15625).

- **G-E-k**: one generator proposes k lists, drawn from it (``SampledLists``).
- **MG-E-k**: k different generators propose one list each (``GeneratorPool`` of ``HeuristicGenerators`` and
  ``PolicyLists``).

Both are the same policy, ``GeneratorEvaluator``, over different ``Generators``. The encoder of a sampled generator
runs once per request, heuristics share one pass, and all lists are valued in one call.

MG-E's learned members are generators fitted to logged slates (``agents.rerankers.logged_slates``). They never ask the
evaluator, and alone they are worth less than the sort by predicted watch time: in the known world's first judge 265
(NAR4Rec) to 348 (PRM) expected seconds a slate where the sort has 378. So MG-E is reported with them and without
(``GeneratorPool.without``).

Left out: the paper's production logic around the choice (business rules, caching).

Shape legend: B requests, C candidates, G lists, K places.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from recsim_env.slates import first_showing, items_at, list_at, positions_of
from recsim_env.types import Decision, ListEvaluator, Policy, Request


class Generators(Protocol):
    """G list generators, one list each; see ``check_generators``."""

    names: tuple[str, ...]

    def propose(self, request: Request, generator: torch.Generator) -> Tensor:
        """Lists (B, G, K) as int64 positions in the candidate set, no candidate twice in a list."""
        ...


class SomeGenerators(Generators, Protocol):
    """Generators of which a few can be taken."""

    def some(self, indices: Sequence[int]) -> "SomeGenerators":
        """The generators at these places of the set, in this order."""
        ...


class SamplingPolicy(Protocol):
    """A policy that can draw many lists for one request at the price of one encoding."""

    def sample_group(self, request: Request, num_lists: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Positions (B, G, K) and log-probabilities (B, G)."""
        ...


class PolicyLists:
    """Policies of any kind as generators: each answers its one slate.

    Args:
        policies: by name; their slates must be made of the request's candidates.
    """

    def __init__(self, policies: Mapping[str, Policy]):
        if not policies:
            raise ValueError("need at least one policy")
        self.names = tuple(policies)
        self._policies = tuple(policies.values())

    def some(self, indices: Sequence[int]) -> "PolicyLists":
        """The generators at these places of the set, in this order."""
        return PolicyLists({self.names[index]: self._policies[index] for index in indices})

    def propose(self, request: Request, generator: torch.Generator) -> Tensor:
        """Lists (B, G, K) of positions."""
        lists = [positions_of(p(request, generator).items_BK, request.candidates_BC) for p in self._policies]
        return torch.stack(lists, dim=1)


class SampledLists:
    """k lists drawn from one policy.

    Args:
        policy: what they are drawn from.
        num_lists: k.
    """

    def __init__(self, policy: SamplingPolicy, num_lists: int):
        if num_lists < 1:
            raise ValueError(f"num_lists must be at least 1, got {num_lists}")
        self.names = tuple(f"draw {index + 1}" for index in range(num_lists))
        self._policy, self._num_lists = policy, num_lists

    def some(self, indices: Sequence[int]) -> "SampledLists":
        """As many draws as are asked for; draws are alike."""
        return SampledLists(self._policy, len(indices))

    def propose(self, request: Request, generator: torch.Generator) -> Tensor:
        """Lists (B, k, K) of positions."""
        return self._policy.sample_group(request, self._num_lists, generator)[0]


class GeneratorPool:
    """Several sets of generators as one.

    Args:
        parts: the sets, in order.

    Raises:
        ValueError: none, or two generators of one name.
    """

    def __init__(self, parts: Sequence[SomeGenerators]):
        self.names = tuple(name for part in parts for name in part.names)
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if not parts or twice:
            raise ValueError(f"need generators with names of their own, got {len(parts)} sets and twice {twice}")
        self._parts = tuple(parts)

    def some(self, indices: Sequence[int]) -> "GeneratorPool":
        """The generators at these places, each part's own in the order given.

        Raises:
            ValueError: none is left, or a place that the set does not have.
        """
        outside = [index for index in indices if not 0 <= index < len(self.names)]
        if outside:
            raise ValueError(f"this set has generators 0 to {len(self.names) - 1}, asked for {outside}")
        chosen, begin = [], 0
        for part in self._parts:
            own = [index - begin for index in indices if begin <= index < begin + len(part.names)]
            begin += len(part.names)
            if own:
                chosen.append(part.some(own))
        return GeneratorPool(chosen)

    def without(self, names: Collection[str]) -> "GeneratorPool":
        """The generators that have none of these names, in this order.

        Raises:
            ValueError: a name that no generator of the set has, or none is left.
        """
        unknown = sorted(set(names) - set(self.names))
        if unknown:
            raise ValueError(f"this set has no generators {unknown}")
        return self.some([index for index, name in enumerate(self.names) if name not in names])

    def propose(self, request: Request, generator: torch.Generator) -> Tensor:
        """Lists (B, G, K) of positions."""
        return torch.cat([part.propose(request, generator) for part in self._parts], dim=1)


class GeneratorEvaluator:
    """Shows the proposal that the evaluator likes best; the first wins ties.

    Args:
        generators: who proposes.
        evaluator: values whole lists, fitted for the world that the requests come from.
    """

    def __init__(self, generators: Generators, evaluator: ListEvaluator):
        self.generators, self.evaluator = generators, evaluator

    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        """One slate for each request; without a probability in closed form.

        Raises:
            ValueError: the evaluator answers NaN.
        """
        lists_BGK = items_of(request, self.generators.propose(request, generator))
        value_BG = self.evaluator.score(request, lists_BGK).value_BG
        if bool(value_BG.isnan().any()):
            raise ValueError(f"{type(self.evaluator).__name__} values some lists at NaN, so none of them can be chosen")
        return Decision(list_at(lists_BGK, value_BG.argmax(dim=1)))


def items_of(request: Request, positions_BGK: Tensor) -> Tensor:
    """Item codes (B, G, K) at positions in the candidate set."""
    return items_at(request.candidates_BC, positions_BGK)


def check_generators(generators: Generators, request: Request, slate_size: int) -> None:
    """Says in words what is wrong with a set of generators.

    Args:
        generators: the set.
        request: an example.
        slate_size: K that is asked for.

    Raises:
        ValueError: no generators, the candidates of a request repeat, or a proposal has the wrong shape or type,
            positions outside the candidate set, or a candidate twice.
    """
    repeated_B = ~first_showing(request.candidates_BC).all(dim=1)
    if bool(repeated_B.any()):
        raise ValueError(
            f"request {int(repeated_B.nonzero()[0])} offers a candidate twice; candidate sets hold different items"
        )
    if not generators.names or slate_size < 1:
        raise ValueError(
            f"need at least one generator and one place, got {len(generators.names)} generators and slate_size="
            f"{slate_size}"
        )
    batch, candidates = request.candidates_BC.shape
    lists_BGK = generators.propose(request, torch.Generator().manual_seed(0))
    wanted = (batch, len(generators.names), slate_size)
    if lists_BGK.dtype != torch.int64 or lists_BGK.shape != wanted:
        raise ValueError(
            f"proposals must be int64 of shape {wanted} (requests, generators, places), got {lists_BGK.dtype} "
            f"{tuple(lists_BGK.shape)}"
        )
    for wrong, what in (
        ((lists_BGK < 0) | (lists_BGK >= candidates), f"positions outside 0..{candidates - 1}"),
        (~first_showing(lists_BGK.flatten(0, 1)).view(wanted), "a candidate twice in one list"),
    ):
        if bool(wrong.any()):
            row, column = wrong.flatten(2).any(dim=2).nonzero()[0].tolist()
            raise ValueError(f"generator {generators.names[column]!r} proposed {what} for request {row}")
