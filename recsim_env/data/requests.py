"""Log rows as batches of (Request, slate, Feedback): what recommender-side models are trained on.

Where the log has a request key, the rows of one request are one slate. Where it has none, every row is a
request of its own with one place. A request's history ends before its own moment: rows served at the same
millisecond never see each other's feedback.

Shape legend: L requests, E events (pre-log history and log rows), P places of all requests, Q candidates of
all requests, N items, U users, B batch, C candidates, K places, H history, F signals, D features, X context.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from recsim_env.data.features import utc_offset_hours
from recsim_env.data.schema import LoggedDataset
from recsim_env.digests import digest_json, digest_tensors
from recsim_env.types import NO_ITEM, Feedback, Request

Array = npt.NDArray[Any]


class RequestPredictor(Protocol):
    """A predictor that needs nothing but the request."""

    def predict_request(self, request: Request, items_BC: Tensor, chosen_B: Tensor) -> tuple[Tensor, Tensor]:
        """Expected signals (B, C, F) and their ensemble spread (B, C, F).

        Args:
            request: logged or not.
            items_BC: int64 item codes.
            chosen_B: bool: requests that the log's own ranker answered, whose choices say more than is in the request.
        """
        ...


class RequestScorer(Protocol):
    """A retriever that can score any items of a request."""

    def score_request(self, request: Request, items_BC: Tensor) -> Tensor:
        """Scores (B, C)."""
        ...


class LoggedBatch(NamedTuple):
    """Logged requests with equally long slates and candidate lists, so nothing is padded."""

    request: Request
    """``predicted_BCF``, ``predicted_std_BCF`` and ``retriever_score_BC`` are 0 where no model gave them."""
    items_BK: Tensor
    """int64."""
    feedback: Feedback
    """``seen_BK`` is true throughout: a log holds the places that users reached. ``left_B`` marks the last
    request of a session, and is false throughout where the log has no sessions."""
    known_BKF: Tensor
    """bool: which signals were recorded; the others are 0 in ``feedback``."""
    propensity_BK: Tensor
    """float32: chance with which the logging policy put the item there; NaN where the log does not say."""
    uniform_B: Tensor
    """bool: slates of uniform exposure; false where the log does not say."""
    row_BK: Tensor
    """int64: the row of the log that each place was."""


@dataclass(frozen=True, kw_only=True)
class LoggedRequests:
    """All requests of a log, ready to be gathered; made by ``logged_requests``."""

    signals: tuple[str, ...]
    history_length: int
    item_features_ND: Tensor
    user_features_UD: Tensor
    event_item_E: Tensor
    """int64; each user's events stand together, oldest first."""
    event_feedback_EF: Tensor
    event_known_EF: Tensor
    user_L: Tensor
    date_L: Tensor
    """int64 YYYYMMDD."""
    context_LX: Tensor
    left_L: Tensor
    history_begin_L: Tensor
    """int64: first event of the request's user."""
    history_end_L: Tensor
    """int64: first event that the request must not see."""
    slate_event_P: Tensor
    """int64: events of all slates, request by request, in the order of their places."""
    slate_row_P: Tensor
    """int64: the row of the log that each of these events was."""
    slate_start_L1: Tensor
    propensity_P: Tensor
    """float32, NaN where the log does not say."""
    uniform_L: Tensor
    candidate_item_Q: Tensor | None
    """int64 items of all logged candidate lists; ``None`` makes the slate its own candidate set."""
    candidate_start_L1: Tensor
    predictor: RequestPredictor | None = None
    retriever: RequestScorer | None = None

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.user_L)

    @property
    def digest(self) -> str:
        """Digest of every request, slate, label and feature; the models that annotate batches do not count."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return digest_json([list(self.signals), self.history_length, digest_tensors(tensors)])

    @property
    def slate_size_L(self) -> Tensor:
        """Places of each request, int64."""
        return self.slate_start_L1.diff()

    def annotated(self, predictor: RequestPredictor | None, retriever: RequestScorer | None = None) -> "LoggedRequests":
        """The same requests, whose batches carry these models' predictions and scores."""
        return dataclasses.replace(self, predictor=predictor, retriever=retriever)

    def only(
        self,
        users: Sequence[int] | Array | Tensor | None = None,
        first_date: int | None = None,
        last_date: int | None = None,
    ) -> "LoggedRequests":
        """The requests of some users on some days; histories still hold everything before them.

        Args:
            users: codes of the users whose requests are kept; all by default.
            first_date: YYYYMMDD, first day whose requests are kept.
            last_date: YYYYMMDD, last day whose requests are kept.

        Raises:
            ValueError: no request is left.
        """
        keep_L = torch.ones(len(self), dtype=torch.bool)
        if users is not None:
            keep_L &= torch.isin(self.user_L, torch.as_tensor(np.asarray(users), dtype=torch.int64))
        if first_date is not None:
            keep_L &= self.date_L >= first_date
        if last_date is not None:
            keep_L &= self.date_L <= last_date
        if not keep_L.any():
            of_users = "all users" if users is None else f"the {len(users)} users asked for"
            raise ValueError(
                f"no request lies in days {first_date}..{last_date} for {of_users}; the days of these requests are "
                f"{int(self.date_L.min())}..{int(self.date_L.max())}"
            )
        keep_P = keep_L.repeat_interleave(self.slate_size_L)
        candidate_size_L = self.candidate_start_L1.diff()
        candidates = self.candidate_item_Q
        by_request = ("user_L", "date_L", "context_LX", "left_L", "history_begin_L", "history_end_L", "uniform_L")
        return dataclasses.replace(
            self,
            **{name: getattr(self, name)[keep_L] for name in by_request},
            slate_event_P=self.slate_event_P[keep_P],
            slate_row_P=self.slate_row_P[keep_P],
            propensity_P=self.propensity_P[keep_P],
            slate_start_L1=_starts(self.slate_size_L[keep_L]),
            candidate_item_Q=None if candidates is None else candidates[keep_L.repeat_interleave(candidate_size_L)],
            candidate_start_L1=_starts(candidate_size_L[keep_L]),
        )

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        among: Tensor | None = None,
    ) -> Iterator[LoggedBatch]:
        """Yields every request once, built when it is asked for.

        Requests are grouped by slate size and candidate count, so the last batch of a group may be small.

        Args:
            batch_size: requests a batch holds at most.
            generator: shuffles requests and batches; ``None`` keeps the log's order within each group.
            among: int64 indices of the requests to use; ``None`` uses all.
        """
        for index_B in self.batch_indices(batch_size, generator, among):
            yield self.batch(index_B)

    def batch_indices(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        among: Tensor | None = None,
    ) -> list[Tensor]:
        """The request indices (int64) of each batch of ``batches``."""
        index_L = torch.arange(len(self)) if among is None else among
        if generator is not None:
            index_L = index_L[torch.randperm(len(index_L), generator=generator)]
        sizes_L2 = torch.stack([self.slate_size_L[index_L], self.candidate_start_L1.diff()[index_L]], dim=1)
        shapes, group_L = torch.unique(sizes_L2, dim=0, return_inverse=True)
        order_L = torch.argsort(group_L, stable=True)
        groups = torch.split(index_L[order_L], torch.bincount(group_L, minlength=len(shapes)).tolist())
        chunks = [chunk for group in groups for chunk in torch.split(group, batch_size)]
        if generator is not None:
            chunks = [chunks[i] for i in torch.randperm(len(chunks), generator=generator).tolist()]
        return chunks

    def batch(self, index_B: Tensor) -> LoggedBatch:
        """Gathers requests that share one slate size and one candidate count."""
        place_BK = _ranges(self.slate_start_L1, index_B)
        event_BK = self.slate_event_P[place_BK]
        items_BK = self.event_item_E[event_BK]
        feedback = Feedback(
            self.event_feedback_EF[event_BK],
            torch.ones_like(items_BK, dtype=torch.bool),
            self.left_L[index_B],
        )
        request = self._request(index_B, items_BK)
        return LoggedBatch(
            request,
            items_BK,
            feedback,
            self.event_known_EF[event_BK],
            self.propensity_P[place_BK],
            self.uniform_L[index_B],
            self.slate_row_P[place_BK],
        )

    def _request(self, index_B: Tensor, items_BK: Tensor) -> Request:
        user_B = self.user_L[index_B]
        history = self._history(index_B)
        candidates_BC = (
            items_BK
            if self.candidate_item_Q is None
            else self.candidate_item_Q[_ranges(self.candidate_start_L1, index_B)]
        )
        nothing_BCF = torch.zeros(*candidates_BC.shape, len(self.signals))
        request = Request(
            user_B,
            self.user_features_UD[user_B],
            self.context_LX[index_B],
            *history,
            candidates_BC,
            self.item_features_ND[candidates_BC],
            nothing_BCF[..., 0],
            nothing_BCF,
            nothing_BCF,
        )
        if self.predictor is not None:
            predicted_BCF, std_BCF = self.predictor.predict_request(request, candidates_BC, ~self.uniform_L[index_B])
            request = request._replace(predicted_BCF=predicted_BCF, predicted_std_BCF=std_BCF)
        if self.retriever is not None:
            score_BC = self.retriever.score_request(request, candidates_BC)
            request = request._replace(retriever_score_BC=score_BC)
        return request

    def _history(self, index_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        end_B1 = self.history_end_L[index_B].unsqueeze(1)
        event_BH = end_B1 - self.history_length + torch.arange(self.history_length)
        absent_BH = event_BH < self.history_begin_L[index_B].unsqueeze(1)
        event_BH = event_BH.clamp(min=0)
        absent_BH1 = absent_BH.unsqueeze(-1)
        return (
            self.event_item_E[event_BH].masked_fill(absent_BH, NO_ITEM),
            self.event_feedback_EF[event_BH].masked_fill(absent_BH1, 0.0),
            self.event_known_EF[event_BH].masked_fill(absent_BH1, False),
        )


def logged_requests(
    dataset: LoggedDataset,
    *,
    item_features_ND: Tensor,
    user_features_UD: Tensor,
    history_length: int = 100,
    first_date: int | None = None,
    last_date: int | None = None,
    users: Sequence[int] | Array | Tensor | None = None,
    predictor: RequestPredictor | None = None,
    retriever: RequestScorer | None = None,
) -> LoggedRequests:
    """Turns a log into requests with their slates and feedback.

    Args:
        dataset: a checked log; its request keys, sessions, tabs and candidate lists are used where present.
        item_features_ND: float32 (N, D), one row an item code.
        user_features_UD: float32 (U, D), one row a user code.
        history_length: H, impressions a request's history holds at most.
        first_date: YYYYMMDD, first day whose requests are kept; earlier rows stay in histories.
        last_date: YYYYMMDD, last day whose requests are kept.
        users: codes of the users whose requests are kept; all by default.
        predictor: fills ``predicted_BCF`` and ``predicted_std_BCF`` of every batch.
        retriever: fills ``retriever_score_BC`` of every batch.

    Raises:
        ValueError: a feature table does not fit the log's codes, or no request is left.
    """
    _check_features(dataset, item_features_ND, user_features_UD)
    events, event_R = _events(dataset)
    requests, request_R = _requests(dataset.rows)
    slate_row_P = np.argsort(request_R, kind="stable")
    slate_start_L1 = _starts(torch.tensor(requests["size"].to_numpy(np.int64)))
    first_row_L = requests["first_row"].to_numpy()
    candidate_item_Q, candidate_start_L1 = _candidates(dataset.rows, first_row_L, slate_start_L1)
    user_start_U1 = _starts(torch.from_numpy(np.bincount(events["user"], minlength=len(dataset.users))))
    user_L = torch.tensor(requests["user"].to_numpy(np.int64))
    everything = LoggedRequests(
        signals=dataset.signals,
        history_length=history_length,
        item_features_ND=item_features_ND,
        user_features_UD=user_features_UD,
        event_item_E=torch.from_numpy(events["item"]),
        event_feedback_EF=torch.from_numpy(np.nan_to_num(events["feedback"], nan=0.0)),
        event_known_EF=torch.from_numpy(~np.isnan(events["feedback"])),
        user_L=user_L,
        date_L=torch.tensor(requests["date"].to_numpy(np.int64)),
        context_LX=torch.from_numpy(_context(requests)),
        left_L=torch.from_numpy(_left(requests)),
        history_begin_L=user_start_U1[user_L],
        history_end_L=torch.from_numpy(event_R[requests["served_row"].to_numpy()]),
        slate_event_P=torch.from_numpy(event_R[slate_row_P]),
        slate_row_P=torch.from_numpy(slate_row_P),
        slate_start_L1=slate_start_L1,
        propensity_P=_column(dataset.rows, "propensity", np.nan, slate_row_P),
        uniform_L=_column(dataset.rows, "is_random", 0.0, first_row_L) > 0,
        candidate_item_Q=candidate_item_Q,
        candidate_start_L1=candidate_start_L1,
        predictor=predictor,
        retriever=retriever,
    )
    return everything.only(users, first_date, last_date)


def _check_features(dataset: LoggedDataset, item_features_ND: Tensor, user_features_UD: Tensor) -> None:
    for name, table, size in (
        ("item_features_ND", item_features_ND, len(dataset.items)),
        ("user_features_UD", user_features_UD, len(dataset.users)),
    ):
        if len(table) != size:
            raise ValueError(f"{name} has {len(table)} rows, the log {size} codes; give one row for each code")


def _events(dataset: LoggedDataset) -> tuple[dict[str, Array], Array]:
    """Pre-log history and log rows as one table by user, and where each log row stands in it."""
    signals = list(dataset.signals)
    parts, feedback = [dataset.rows[["user", "item"]]], [dataset.feedback]
    if dataset.history is not None:
        past = dataset.history.sort_values(["user", "position"], kind="stable")
        parts.insert(0, past[["user", "item"]])
        recorded = past.reindex(columns=signals).to_numpy(dtype=np.float32, na_value=np.nan)
        feedback.insert(0, recorded)
    user_E = np.concatenate([part["user"].to_numpy(np.int64) for part in parts])
    order_E = np.argsort(user_E, kind="stable")
    place_E = np.empty_like(order_E)
    place_E[order_E] = np.arange(len(order_E))
    events = {
        "user": user_E[order_E],
        "item": np.concatenate([part["item"].to_numpy(np.int64) for part in parts])[order_E],
        "feedback": np.concatenate(feedback)[order_E],
    }
    return events, place_E[len(order_E) - len(dataset.rows) :]


def _requests(rows: pd.DataFrame) -> tuple[pd.DataFrame, Array]:
    """One line a request in order of appearance, and the request of every log row."""
    count = len(rows)
    if "request" in rows:
        request_R = rows.groupby(["user", "request"], sort=False).ngroup().to_numpy()
    else:
        request_R = np.arange(count)
    num_requests = int(request_R.max(initial=-1)) + 1
    first_row = np.full(num_requests, count, dtype=np.int64)
    np.minimum.at(first_row, request_R, np.arange(count))
    moment = rows[["user", "time_ms"]].to_numpy(np.int64)
    served_anew = np.ones(count, dtype=bool)
    served_anew[1:] = (moment[1:] != moment[:-1]).any(axis=1)
    served_row = np.maximum.accumulate(np.where(served_anew, np.arange(count), 0))
    columns = ["user", "date", "time_ms", *[c for c in ("tab", "session") if c in rows]]
    requests = rows[columns].iloc[first_row].reset_index(drop=True)
    requests["first_row"] = first_row
    requests["served_row"] = served_row[first_row]
    requests["size"] = np.bincount(request_R, minlength=num_requests)
    local_hours = requests["time_ms"].to_numpy(np.int64) / 3.6e6 + utc_offset_hours(rows)
    requests["hour"] = np.floor(local_hours) % 24
    requests["weekday"] = (np.floor(local_hours / 24) + 3) % 7  # 1970-01-01 was a Thursday
    return requests, request_R


def _context(requests: pd.DataFrame) -> Array:
    """Context of each request, float32 (L, X), fields in the order of ``recsim_env.types.CONTEXT``."""
    zeros = np.zeros(len(requests))
    tab = requests["tab"].to_numpy() if "tab" in requests else zeros
    fields = [tab, requests["hour"].to_numpy(), requests["weekday"].to_numpy()]
    if "session" not in requests:
        return np.stack([*fields, zeros, zeros, zeros, zeros], axis=1).astype(np.float32)
    seconds = requests["time_ms"] / 1000
    previous = requests.groupby("user", sort=False)[["session"]].shift()
    opens = (requests["session"] != previous["session"]).to_numpy()
    gap = seconds.groupby(requests["user"], sort=False).diff().fillna(0).to_numpy()
    visit = pd.Series(opens).groupby(requests["user"].to_numpy()).cumsum().to_numpy() - 1
    keys = [requests["user"].to_numpy(), visit]
    index = requests.groupby(keys).cumcount().to_numpy()
    since_session = pd.Series(np.where(opens, gap, 0.0)).groupby(keys).transform("sum").to_numpy()
    fields += [index, visit, np.where(opens, 0.0, gap), since_session]
    return np.stack(fields, axis=1).astype(np.float32)


def _left(requests: pd.DataFrame) -> Array:
    """Which requests were a session's last, bool (L,)."""
    if "session" not in requests:
        return np.zeros(len(requests), dtype=bool)
    key = requests[["user", "session"]].to_numpy(np.int64)
    last = np.ones(len(requests), dtype=bool)
    last[:-1] = (key[1:] != key[:-1]).any(axis=1)
    return last


def _candidates(rows: pd.DataFrame, first_row_L: Array, slate_start_L1: Tensor) -> tuple[Tensor | None, Tensor]:
    """Logged candidate lists laid end to end, or none and the slates' own bounds."""
    if "candidates" not in rows:
        return None, slate_start_L1
    lists = rows["candidates"].to_numpy()[first_row_L]
    sizes = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    return torch.from_numpy(np.concatenate(lists).astype(np.int64)), _starts(torch.from_numpy(sizes))


def _column(rows: pd.DataFrame, name: str, missing: float, row_X: Array) -> Tensor:
    """Float32 (X,) values of some rows in a column, ``missing`` where the log lacks it or a value of it."""
    if name not in rows:
        return torch.full((len(row_X),), missing)
    return torch.from_numpy(rows[name].to_numpy(dtype=np.float32, na_value=missing)[row_X])


def _starts(size_L: Tensor) -> Tensor:
    """Where each of some ragged rows begins and the last one ends, int64 (L + 1)."""
    return torch.cat([size_L.new_zeros(1), size_L.cumsum(0)]).to(torch.int64)


def _ranges(start_L1: Tensor, index_B: Tensor) -> Tensor:
    """Positions (B, W) of ragged rows that share one width."""
    size_B = start_L1[index_B + 1] - start_L1[index_B]
    if len(size_B) and int(size_B.min()) != int(size_B.max()):
        raise ValueError(
            f"a batch needs requests of one size, got {int(size_B.min())}..{int(size_B.max())}; "
            "take index groups from batch_indices()"
        )
    width = int(size_B[0]) if len(size_B) else 0
    return start_L1[index_B].unsqueeze(1) + torch.arange(width)
