"""The vocabulary: what a recommender sees, what a user answers, what can be plugged in.

Shape legend, used by every module: B sessions, C candidates, K slate places, F feedback signals,
H history length, D features, X context fields, G lists in a group, N items, U users,
S floats of a model's per-session state, J uniform draws per place, O outcomes of a quadrature,
R reward components.

Items and users are int64 codes: rows of ``World.catalogue`` and ``World.users``.
``watch_time`` is always signal 0 and is measured in seconds; every other signal is 0 or 1.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from recsim_env.request import Request as Request  # part of the vocabulary

WATCH_TIME = "watch_time"

CONTEXT = (
    "tab",
    "hour",
    "weekday",
    "request_index",
    "session_index",
    "seconds_since_request",
    "seconds_since_session",
)
"""Fields of ``context_BX``. Monday is weekday 0; a session's first request has request_index 0."""

NO_ITEM = -1
"""Fills history places before a user's first video."""


class Feedback(NamedTuple):
    """What the user did with one slate."""

    signals_BKF: Tensor
    """float32: watch time in seconds, the others 0 or 1; zero where not seen."""
    seen_BK: Tensor
    """bool: the user reached this place before leaving; always a prefix of the slate."""
    left_B: Tensor
    """bool: the user left during or after this slate."""


class Decision(NamedTuple):
    """What a policy answers."""

    items_BK: Tensor
    """int64 item codes."""
    log_prob_BK: Tensor | None = None
    """float32 log-probability of each place given the places before it; None if deterministic."""


class Outcomes(NamedTuple):
    """A finite quadrature of each place's feedback, given that the place is reached."""

    signals_BKOF: Tensor
    """float32: representative (expected) signals of each outcome."""
    probability_BKO: Tensor
    """float32, sums to 1 over O."""


class Expected(NamedTuple):
    """True expectations of G lists per session."""

    signals_BGKF: Tensor
    """float32: expected signals of a place, given that it is reached."""
    reached_BGK: Tensor
    """float32: probability that the place is reached."""
    watch_time_BG: Tensor
    """float32: expected seconds watched over the whole list."""


class ListValue(NamedTuple):
    """A list evaluator's opinion of G lists per request."""

    value_BG: Tensor
    """float32: value of the whole list, in the units of its target (seconds by default)."""
    per_place_BGK: Tensor
    """float32: contribution of each place, by the chance that it is reached."""
    std_BG: Tensor
    """float32: ensemble spread of the value, 0 for a single model."""


class Saveable(Protocol):
    """What a model must offer to be stored in a world folder: JSON settings beside plain tensors."""

    def config(self) -> dict[str, Any]:
        """Settings as JSON values; with ``tensors()`` enough to rebuild the object."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """All tensors to store, by name."""
        ...

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "Saveable":
        """Rebuilds the object from what ``config`` and ``tensors`` returned."""
        ...


@runtime_checkable
class ResponseModel(Protocol):
    """How users respond to videos. All methods are batched, pure and free of hidden randomness."""

    signals: tuple[str, ...]
    """Names of the F signals, ``watch_time`` first."""
    num_draws: int
    """J: uniform draws that ``respond`` consumes for each place."""

    def start(self, user_B: Tensor) -> Tensor:
        """State of users at the start of their first session: float32 (B, S)."""
        ...

    def respond(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, uniform_BKJ: Tensor) -> Tensor:
        """Draws signals (B, K, F) as if every place were reached; uniforms lie in (0, 1)."""
        ...

    def outcomes(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor) -> Outcomes:
        """The distribution that ``respond`` draws from, as a finite quadrature."""
        ...

    def observe(
        self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, signals_BKF: Tensor, seen_BK: Tensor
    ) -> Tensor:
        """State after a slate; places that were not seen change nothing."""
        ...


@runtime_checkable
class LeaveModel(Protocol):
    """When users leave: a chance of going on after each place that was reached."""

    def stay(self, context_BX: Tensor, signals_BKF: Tensor) -> Tensor:
        """Probability (B, K) of going on after a place with these signals.

        Also called with one more axis: signals (B, K, O, F) give (B, K, O).
        """
        ...


@runtime_checkable
class ListEffect(Protocol):
    """How earlier places of a slate change a later one, for logs that cannot teach it."""

    def interrupt(self, items_BK: Tensor) -> Tensor:
        """Probability (B, K) that the place is skipped at once because of the places before it."""
        ...

    def skip(self, signals: Tensor) -> Tensor:
        """Signals (..., F) of a skipped place, from those it would have had."""
        ...


@runtime_checkable
class ContextSource(Protocol):
    """When and where sessions begin."""

    def start(self, uniform_B2: Tensor) -> tuple[Tensor, Tensor]:
        """Tab (B,) int64 and clock (B,) float64, seconds since Monday 00:00 local time."""
        ...


@runtime_checkable
class Predictor(Protocol):
    """The recommender's own feedback model (pXTR); shares nothing with the world's users."""

    def start(self, user_B: Tensor) -> Tensor:
        """State (B, S) from the user's recorded history."""
        ...

    def observe(
        self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, signals_BKF: Tensor, seen_BK: Tensor
    ) -> Tensor:
        """State (B, S) after a slate."""
        ...

    def predict(self, state_BS: Tensor, context_BX: Tensor, items_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Expected signals (B, C, F) and their ensemble spread (B, C, F)."""
        ...


@runtime_checkable
class CandidateSource(Protocol):
    """A retriever: chooses the candidate set of a request."""

    def start(self, user_B: Tensor) -> Tensor:
        """State (B, S) from the user's recorded history."""
        ...

    def observe(
        self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, signals_BKF: Tensor, seen_BK: Tensor
    ) -> Tensor:
        """State (B, S) after a slate."""
        ...

    def retrieve(
        self, state_BS: Tensor, shown_BM: Tensor, uniform_B: Tensor, num_candidates: int
    ) -> tuple[Tensor, Tensor]:
        """Candidates (B, C) int64, best first, and their scores (B, C).

        ``shown_BM`` holds item codes to leave out (``NO_ITEM`` where empty). Items it names come back
        only when nothing else is left.
        """
        ...

    def score(self, state_BS: Tensor, uniform_B: Tensor, items_BY: Tensor) -> Tensor:
        """The scores (B, Y) that ``retrieve`` gives, or would give, these items if nothing had been shown."""
        ...


class ListEvaluator(Protocol):
    """Recommender-side value of whole lists, fitted on the operator's log only."""

    def score(self, request: Request, items_BGK: Tensor) -> ListValue:
        """Values of G lists per request."""
        ...


class Policy(Protocol):
    """A ranker: any callable of this form."""

    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        """Chooses a slate for each request. Draws come from ``generator`` only."""
        ...
