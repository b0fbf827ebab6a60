"""The method contract: what a training method is, so that one training path serves them all.

A method is one file. Its four parts, in the order in which a round of training meets them:

- **config**: a frozen dataclass, ``Method.Config``, with the fields of ``MethodConfig`` among its own;
- **network**: an ``nn.Module`` that is also a policy: ``network(request, generator) -> Decision`` as it is used,
  ``network.explore(request, generator) -> Step`` as it plays while it learns, with the columns it leaves;
- **collect, label**: what the recommender adds to a step (values of a group of lists, say) and to a rollout (returns
  over time). Both may be left out;
- **outputs, loss**: apart, so that distributed training sees every parameter: whatever the loss needs of the network is
  an output. The loss is one scalar; parts that are fitted by different optimisers must not reach each other's
  parameters (``detached`` helps), then their sum is what each of them needs.

What only some methods need is left at its default by the others: ``data`` other than ``fresh``, several ``optimisers``,
``targets`` (copies that follow a part of the network slowly), ``begin`` (refuse what cannot work, once).

``agents.rllib`` turns any method into RLlib's parts and knows none by name. ``agents.policies`` saves what was learned.

Shape legend: B sessions or rows of a batch, T steps of a rollout, C candidates, K places, R reward components.
"""

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from agents.networks import RequestShape
from recsim_env.data.requests import LoggedBatch
from recsim_env.plugins import load_object, nearest
from recsim_env.types import ListEvaluator, Request
from recsim_env.world import Catalogue

Columns = dict[str, Tensor]
"""Tensors by name, one row a request: the fields of ``Request`` under their own names, and what a method adds."""

NEXT = "next_"
"""Prefix of the columns that hold the request after a step."""

REWARD, TERMINATED = "reward", "terminated"
"""Columns: the reward of a step, float32 (B,), and, of transitions, whether the user left, float32 0 or 1."""

DATA_SOURCES = ("fresh", "replay", "log")


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Settings that every method has."""

    lr: float = 1e-3
    """Learning rate of Adam."""
    grad_clip: float | None = 5.0
    """Largest norm of the gradient, of each optimiser's parameters together; None for no limit."""
    minibatch_size: int = 64
    """Rows for each gradient step of one learner."""
    num_epochs: int = 1
    """Passes over each batch of fresh or logged data."""
    seed: int = 0
    """Seed of the initial weights, the users met and everything drawn."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (int, "int") and (not isinstance(value, int) or isinstance(value, bool)):
                raise ValueError(f"{field.name} must be a whole number, got {value!r}")
        require_positive(self, "lr", *([] if self.grad_clip is None else ["grad_clip"]))
        require_at_least(self, 1, "minibatch_size", "num_epochs")
        require_at_least(self, 0, "seed")


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(MethodConfig):
    """Settings of methods that learn from a replay of earlier steps."""

    replay_size: int = 20_000
    """Transitions kept; the oldest make room."""
    replay_warmup: int = 1_000
    """Transitions before the first update."""
    updates_per_round: int = 32
    """Minibatches drawn from the replay after each round of sampling."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "replay_size", "updates_per_round")
        require_at_least(self, 0, "replay_warmup")
        if not self.minibatch_size <= self.replay_size:
            raise ValueError(
                f"need minibatch_size <= replay_size, got {self.minibatch_size} and {self.replay_size}; "
                "a minibatch is drawn from what the replay holds"
            )


class Step(NamedTuple):
    """What a network plays while it learns."""

    items_BK: Tensor
    """int64 item codes of the slates to show."""
    columns: Columns
    """What the loss will want to know of this moment; first axis B."""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What a method may ask beside the requests: the recommender's own, never the world's users."""

    signals: tuple[str, ...]
    catalogue: Catalogue
    slate_size: int
    evaluator: ListEvaluator | None
    """The recommender's list evaluator, or the one given in its place."""


@dataclass(frozen=True)
class Rollout:
    """T steps of B sessions.

    Rows that only reset a session are not ``valid``: their columns mean nothing, but their request is still the last
    one of the session that ended.
    """

    columns: Columns
    """(T, B, ...): the fields of each ``Request`` and what ``collect`` left."""
    reward_TB: Tensor
    rewards_TBR: Tensor
    terminated_TB: Tensor
    """bool: the user left."""
    truncated_TB: Tensor
    """bool: the session was cut while the user was still there."""
    valid_TB: Tensor
    last: Request
    """The request after the last step."""

    @property
    def request(self) -> Request:
        """All requests, (T, B, ...)."""
        return request_of(self.columns)

    def transitions(self) -> Columns:
        """Columns for a replay: reward, whether the user left, and the next request under ``next_`` names."""
        following = {
            NEXT + name: torch.cat([self.columns[name][1:], tensor.unsqueeze(0)])
            for name, tensor in self.last._asdict().items()
        }
        ends = {REWARD: self.reward_TB, TERMINATED: self.terminated_TB.to(torch.float32)}
        return {**self.columns, **ends, **following}

    def valid_rows(self, columns: Columns) -> Columns:
        """The rows of valid steps, in the order of time: (T, B, ...) becomes (M, ...)."""
        return {name: tensor[self.valid_TB] for name, tensor in columns.items()}


class Optimiser(NamedTuple):
    """One optimiser of a method's network."""

    parameters: list[nn.Parameter]
    lr: float
    every: int = 1
    """Gradient steps for each step of this optimiser: 2 leaves out every other one."""


@runtime_checkable
class Network(Protocol):
    """The learned part: an ``nn.Module`` with these two forms."""

    def __call__(self, request: Request, generator: torch.Generator) -> Any:
        """A ``Decision``, as the policy is used."""
        ...

    def explore(self, request: Request, generator: torch.Generator) -> Step:
        """A step, as the policy plays while it learns."""
        ...


class Method(Protocol):
    """What a training method offers. See the module's docstring; ``check_method`` says what is wrong with yours."""

    @property
    def Config(self) -> type:
        """Class of the settings, a frozen dataclass."""
        ...

    @property
    def config(self) -> Any:
        """The settings."""
        ...

    @property
    def data(self) -> str:
        """One of ``DATA_SOURCES``.

        ``fresh``: each batch is sampled, used and dropped. ``replay``: transitions are kept and drawn from. ``log``:
        logged requests only; nothing is played.
        """
        ...

    def network(self, shape: RequestShape) -> nn.Module:
        """A new network for requests of these sizes; its weights depend on ``config.seed`` alone."""
        ...

    def outputs(self, network: Any, batch: Columns) -> Columns:
        """What the loss needs of the network, with gradients."""
        ...

    def loss(self, outputs: Columns, batch: Columns) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The scalar to make small, and scalars to log."""
        ...


# What methods may leave out. Each of these says what happens then.


def begin(method: Method, operator: Operator) -> None:
    """Lets a method refuse what cannot work, before anything is played: ``method.begin(operator)``."""
    if hasattr(method, "begin"):
        method.begin(operator)


def collect(
    method: Method, network: Any, request: Request, operator: Operator, generator: torch.Generator, num_requests: int
) -> Step:
    """One step: ``method.collect`` where there is one, else what the network explores.

    Args:
        method: the method.
        network: its network.
        request: what is asked, on the network's device.
        operator: the recommender's own models and catalogue.
        generator: the only source of draws.
        num_requests: requests that the training has played so far.
    """
    if hasattr(method, "collect"):
        return method.collect(network, request, operator, generator, num_requests)  # type: ignore[no-any-return]
    return network.explore(request, generator)  # type: ignore[no-any-return]


def label(method: Method, network: Any, rollout: Rollout) -> Columns:
    """The columns to learn from, (T, B, ...): ``method.label(network, rollout)`` where there is one.

    Else those that were collected and the reward; for a replay with end and next request, too.
    """
    if hasattr(method, "label"):
        return method.label(network, rollout)  # type: ignore[no-any-return]
    return rollout.transitions() if method.data == "replay" else {**rollout.columns, REWARD: rollout.reward_TB}


def optimisers(method: Method, network: nn.Module) -> dict[str, Optimiser]:
    """By name; one over all trainable parameters where the method says nothing."""
    if hasattr(method, "optimisers"):
        return method.optimisers(network)  # type: ignore[no-any-return]
    return {"all": Optimiser([p for p in network.parameters() if p.requires_grad], method.config.lr)}


def targets(method: Method) -> dict[str, str]:
    """Target copies: name of the copy in the network to the name of what it follows by ``config.tau``."""
    return getattr(method, "targets", {})


def follow(network: nn.Module, pairs: Mapping[str, str], tau: float) -> None:
    """Moves every target copy a share ``tau`` towards what it follows."""
    with torch.no_grad():
        for copy, original in pairs.items():
            followed = network.get_submodule(original).parameters()
            for target, online in zip(network.get_submodule(copy).parameters(), followed, strict=True):
                target.lerp_(online, tau)


@contextlib.contextmanager
def detached(*modules: nn.Module) -> Iterator[None]:
    """Within it these modules pass gradients on to their inputs but take none themselves."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def as_used(network: Any) -> Iterator[Any]:
    """Within it the network is the policy it will be in use: greedy where it can be, nothing dropped out."""
    was_greedy, was_training = getattr(network, "greedy", None), network.training
    if was_greedy is not None:
        network.greedy = True
    network.eval()
    try:
        yield network
    finally:
        if was_greedy is not None:
            network.greedy = was_greedy
        network.train(was_training)


def request_of(columns: Mapping[str, Any], prefix: str = "") -> Request:
    """The Request held in columns, the next one with ``prefix=NEXT``."""
    return Request(**{name: columns[prefix + name] for name in Request._fields})


def log_columns(method: Method, batch: LoggedBatch) -> Columns:
    """Columns of logged requests: those of the request and ``method.from_log(batch)``."""
    return {**batch.request._asdict(), **method.from_log(batch)}  # type: ignore[attr-defined]


# Methods by name.


def method_class(method: str | type) -> type:
    """The class of a method, from itself or its path "module:Class".

    Raises:
        ValueError: the path leads nowhere, or to something that is no method.
    """
    found = load_object(method) if isinstance(method, str) else method
    missing = [part for part in ("Config", "data", "network", "outputs", "loss") if not hasattr(found, part)]
    if not isinstance(found, type) or missing:
        raise ValueError(
            f"{method!r} is no training method: need a class with Config, data, network, outputs and loss, "
            f"{'got ' + repr(found) if not isinstance(found, type) else 'it has no ' + ', '.join(missing)}; "
            "see agents/method.py"
        )
    return found


def make_method(method: str | type, settings: Mapping[str, Any]) -> Method:
    """A method with these settings; the others stay at their defaults.

    Raises:
        ValueError: a setting that the method does not have, with the nearest that it has, or a value it refuses.
    """
    kind: Any = method_class(method)
    names = [field.name for field in dataclasses.fields(kind.Config)]
    for name in settings:
        if name not in names:
            raise ValueError(f"{kind.__name__} has no setting {name!r}{nearest(name, names)}; it has {names}")
    made: Method = kind(kind.Config(**settings))
    return made


def method_path(method: Method | type) -> str:
    """How a method is named in files: "module:Class".

    Raises:
        ValueError: a class that cannot be found again by its path, such as one defined inside a function.
    """
    kind = method if inspect.isclass(method) else type(method)
    if "<locals>" in kind.__qualname__ or kind.__module__ == "__main__":
        raise ValueError(
            f"{kind.__qualname__} of {kind.__module__!r} cannot be found again by other processes; define it at the "
            "top level of a module that can be imported"
        )
    return f"{kind.__module__}:{kind.__qualname__}"


# Checks that configs share.


def require_positive(config: Any, *names: str) -> None:
    """Raises a ValueError unless each field is a positive finite number."""
    for name in names:
        _require_number(config, name)
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")


def require_at_least(config: Any, least: float, *names: str) -> None:
    """Raises a ValueError unless each field is a finite number of at least ``least``."""
    for name in names:
        _require_number(config, name)
        if not least <= getattr(config, name) < math.inf:
            said = "must not be negative" if least == 0 else f"must be at least {least}"
            raise ValueError(f"{name} {said}, got {getattr(config, name)}")


def _require_number(config: Any, name: str) -> None:
    value = getattr(config, name)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{name} must be a number, got {value!r}")


def require_one_of(config: Any, name: str, allowed: tuple[str, ...]) -> None:
    """Raises a ValueError unless the field is one of the allowed words."""
    if getattr(config, name) not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {getattr(config, name)!r}")
