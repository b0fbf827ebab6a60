"""A request: what a recommender may know when it is asked for one slate.

The user, the context and the history are there at once. Candidates, and what the recommender predicts of them, are
computed when somebody first reads them: retrieval costs several times as much as playing the slate, and a generator
over the whole catalogue needs neither. Whether and when they are read changes no byte of anything.

Shape legend: B sessions, C candidates, F signals, H history length, D features, X context fields, Y any items.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from recsim_env.numerics import one_thread


class CandidateSide(Protocol):
    """The recommender's models, and what they remember of each session; see ``RecommenderMemory``."""

    def retrieve(self) -> tuple[Tensor, Tensor]:
        """Candidates (B, C) int64, best first, and their scores (B, C)."""
        ...

    def score(self, items_BY: Tensor) -> Tensor:
        """The score (B, Y) each item has, or would have, as a candidate."""
        ...

    def features(self, items_BY: Tensor) -> Tensor:
        """Item features (B, Y, D)."""
        ...

    def predict(self, context_BX: Tensor, items_BY: Tensor) -> tuple[Tensor, Tensor]:
        """Expected signals (B, Y, F) and their ensemble spread (B, Y, F)."""
        ...

    def showed(self, items_BY: Tensor) -> Tensor:
        """Bool (B, Y): whether each item was shown earlier in the session."""
        ...

    def map(self, function: Callable[[Tensor], Tensor]) -> "CandidateSide":
        """The same models, with a function applied to every tensor of the sessions."""
        ...


class _Field:
    """One tensor of a request, computed when it is first read; nobody may set it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, request: "Request", owner: type) -> Tensor:
        if self.name not in request._tensors:
            request._compute(self.name)
        return request._tensors[self.name]

    def __set__(self, request: "Request", value: Tensor) -> None:
        raise AttributeError(f"a request cannot be changed; use request._replace({self.name}=...)")


class Request:
    """What a recommender may know when it is asked for one slate.

    It behaves as a named tuple of the tensors below: ``*request``, ``_asdict`` and ``_replace`` compute what has not
    been read. ``map`` and ``select`` do not.

    Args:
        tensors: the fields in their order.
        side: what the last five fields are computed from; without it they must be given.
        named: fields by name.

    Raises:
        ValueError: a field is missing or unknown.
    """

    __slots__ = ("_tensors", "side")

    user_B = _Field()
    """int64 user codes. Policies never embed them; models look up features by them."""
    user_features_BD = _Field()
    """float32."""
    context_BX = _Field()
    """float32, fields named by ``types.CONTEXT``."""
    history_BH = _Field()
    """int64 item codes, oldest first, ``NO_ITEM`` where empty."""
    history_feedback_BHF = _Field()
    """float32 signals of each past item, 0 where unknown or empty."""
    history_known_BHF = _Field()
    """bool: which signals of each past item were recorded."""
    candidates_BC = _Field()
    """int64 item codes, best retriever score first."""
    candidate_features_BCD = _Field()
    """float32."""
    retriever_score_BC = _Field()
    """float32."""
    predicted_BCF = _Field()
    """float32: the recommender's own expected signals (pXTR; seconds for watch time)."""
    predicted_std_BCF = _Field()
    """float32: spread of the predictor's ensemble, same units."""

    _fields = (
        "user_B",
        "user_features_BD",
        "context_BX",
        "history_BH",
        "history_feedback_BHF",
        "history_known_BHF",
        "candidates_BC",
        "candidate_features_BCD",
        "retriever_score_BC",
        "predicted_BCF",
        "predicted_std_BCF",
    )
    _KNOWN = _fields[:6]

    def __init__(self, *tensors: Tensor, side: CandidateSide | None = None, **named: Tensor):
        self._tensors = dict(zip(self._fields, tensors, strict=False)) | named
        self.side = side
        needed = self._fields if side is None else self._KNOWN
        missing = [name for name in needed if name not in self._tensors]
        unknown = [name for name in named if name not in self._fields]
        if missing or unknown or len(tensors) > len(self._fields):
            raise ValueError(f"a request has the fields {self._fields}; missing {missing}, unknown {unknown}")

    def __iter__(self) -> Iterator[Tensor]:
        return (getattr(self, name) for name in self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def _asdict(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {name: getattr(self, name) for name in self._fields}

    def _replace(self, **changes: Tensor) -> "Request":
        """A copy with some tensors changed; it holds all of them and no longer knows the recommender."""
        unknown = changes.keys() - set(self._fields)
        if unknown:
            raise ValueError(f"a request has the fields {self._fields}, not {sorted(unknown)}")
        return Request(*(changes.get(name, tensor) for name, tensor in self._asdict().items()))

    def known(self) -> list[Tensor]:
        """The tensors that are there without asking for candidates."""
        return [self._tensors[name] for name in self._KNOWN]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Request":
        """The request with a function of rows applied to every tensor."""
        tensors = {name: function(tensor) for name, tensor in self._tensors.items()}
        return Request(side=None if self.side is None else self.side.map(function), **tensors)

    def select(self, rows: Any) -> "Request":
        """Some of the rows: int64 row numbers, a boolean mask or a slice."""
        return self.map(lambda tensor: tensor[rows])

    def offering(self, items_BY: Tensor) -> "Request":
        """The same request with other candidates: any items of the catalogue.

        Raises:
            ValueError: this request does not know the recommender, as logged ones and those after ``_replace``.
        """
        if self.side is None:
            raise ValueError(
                "this request was put together from tensors: nothing is known of items that are not among its "
                "candidates; take the request of a simulator or an environment"
            )
        with torch.inference_mode(False), torch.no_grad(), one_thread():
            score_BY = self.side.score(items_BY)
        tensors = {name: self._tensors[name] for name in self._KNOWN}
        return Request(side=self.side, candidates_BC=items_BY, retriever_score_BC=score_BY, **tensors)

    def _compute(self, name: str) -> None:
        """Fills in a field, and its companion where both come from one call.

        Tensors made in inference mode could never take part in a loss, so that is left for the while.
        """
        assert self.side is not None  # otherwise every field was given
        with torch.inference_mode(False), torch.no_grad(), one_thread():
            if name in ("candidates_BC", "retriever_score_BC"):
                self._tensors["candidates_BC"], self._tensors["retriever_score_BC"] = self.side.retrieve()
            elif name == "candidate_features_BCD":
                self._tensors[name] = self.side.features(self.candidates_BC)
            else:
                predicted_BCF, std_BCF = self.side.predict(self.context_BX, self.candidates_BC)
                self._tensors |= {"predicted_BCF": predicted_BCF, "predicted_std_BCF": std_BCF}
