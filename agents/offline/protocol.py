"""The offline protocol of the reranking papers, as this project's own requests with labels.

Each user's interactions are cut, from the last one backwards, into lists of six. A list is one request: what
the user did before it is the history, and the ranker has to find the list's positives among 50 candidates of a
retriever. Lists stand on the common clock in the order of their first interaction. The first interactions
(``background``) only feed histories and the retriever. The rest is cut into ten stages of as many lists; at the
start of each stage the retriever is fitted anew and the item features counted anew, on what came before it, so
neither ever sees a label of a list it serves. Lists that reach over the end of their part (training, say) are left
out, as are those without a positive, or without a positive in the history to retrieve by.

``papers`` is what GoalRank (arXiv 2509.22046) and DNR (2509.18736) describe. All six items of a list are put among
the candidates; the retriever's best 44 others, without the history, are the negatives. Eight stages train and
the last two test. There is no later period to stop on, so a tenth of the training users is kept apart for that.
Two known flaws are kept, for they are the protocol's: negatives are the retriever's favourites and positives are
not, hence a low retriever score gives a positive away; and a "negative" may be what the user would like best.
Changed: the papers fit the retriever once on all training rows, whose labels it has then seen.

``honest`` shows a ranker only what it would meet in use. The candidates are the retriever's best 50, without the
history; positives that were not retrieved count as missed in every metric. Seven stages train, the eighth is for
every choice, and the last two test. The core filter is refused, for it counts interactions of the test period.

Rows of the very second in which a list begins are neither its history nor, beyond its six, its positives: such a video
may be offered as a negative. On MovieLens' small set 0.8 % of the lists have a positive among them.

Shape legend: R rows of the log, P positive rows, L requests, B requests of a batch, C candidates, K places, H history,
N items, U users, F signals, D features, V rows of histories, X context, S stages.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from agents.method import require_at_least, require_one_of
from agents.offline.data import LogTables, RequestPart, RerankData, unit_scaled, window
from recsim_env.data.features import item_features, local_hour, user_features
from recsim_env.data.schema import LoggedDataset
from recsim_env.slates import are_candidates
from recsim_env.types import CONTEXT, NO_ITEM, WATCH_TIME

Array = npt.NDArray[np.int64]

PROTOCOLS = ("papers", "honest")
NUM_STAGES = 10
TRAIN_STAGES = {"papers": 8, "honest": 7}
TEST_STAGES = 2
_LISTS_AT_ONCE = 512
_RETRIEVER_HISTORY = 100
"""Positives of the history, the latest ones, that the retriever looks at."""


class HistoryScorer(Protocol):
    """A fitted retriever that needs nothing but what the user liked."""

    def score(self, history_BH: Tensor) -> Tensor:
        """Scores (B, N) of the whole catalogue; ``history_BH`` int64 with ``NO_ITEM`` where empty."""
        ...


FitRetriever = Callable[[Tensor, Tensor, int], HistoryScorer]
"""Fits a retriever to user codes (R,) and item codes (R,) of positives, given N."""


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """What the data set is made of."""

    protocol: Literal["papers", "honest"] = "honest"
    """Where positives and periods come from; see the module."""
    positive: str | None = None
    """The 0/1 signal that makes an interaction a positive; ``None`` takes every interaction for one."""
    num_candidates: int = 50
    """C."""
    list_size: int = 6
    """K: interactions of a list, places of the ranker's answer."""
    history_length: int = 20
    """H: interactions before the list that the ranker sees."""
    core: int = 0
    """Users and items with fewer interactions are left out, again and again until none is; 0 keeps all."""
    background: float = 0.4
    """Share of the interactions, the earliest, that only feed histories and the first retriever."""
    validation_users: float = 0.1
    """``papers``: share of the training users kept apart for early stopping."""
    seed: int = 0
    """Seed of the candidates' order and of the users kept apart."""

    def __post_init__(self) -> None:
        require_one_of(self, "protocol", PROTOCOLS)
        require_at_least(self, 1, "list_size", "history_length")
        require_at_least(self, 0, "core")
        if self.num_candidates < self.list_size:
            raise ValueError(f"need num_candidates >= list_size, got {self.num_candidates} and {self.list_size}")
        if not (0 < self.background < 1 and 0 < self.validation_users < 1):
            raise ValueError(
                "background and validation_users are shares between 0 and 1, got "
                f"{self.background} and {self.validation_users}"
            )
        if self.protocol == "honest" and self.core:
            raise ValueError(
                f"the honest protocol has no core filter, which counts the test period; got core={self.core}"
            )


@dataclass(frozen=True)
class _Lists:
    """Lists by their rows: ``begin .. begin + K - 1``; the history is ``user_begin .. history_end - 1``."""

    begin_L: Array
    user_begin_L: Array
    history_end_L: Array

    def among(self, kept_L: npt.NDArray[np.bool_]) -> "_Lists":
        return _Lists(self.begin_L[kept_L], self.user_begin_L[kept_L], self.history_end_L[kept_L])


def build_rerank_data(dataset: LoggedDataset, fit_retriever: FitRetriever, config: ProtocolConfig) -> RerankData:
    """Builds the requests of a protocol from a log of single interactions.

    Of several interactions of a user with one item the first one counts, so a list's items are never in its
    history. Impressions before the log's first day are not used.

    Args:
        dataset: any checked log: ratings, or impressions with feedback.
        fit_retriever: fits the retriever; called once for each stage.
        config: settings.

    Raises:
        ValueError: the signal of positives is not in the log, or the log is too small for the protocol.
    """
    if config.positive is not None and config.positive not in set(dataset.signals) - {WATCH_TIME}:
        allowed = [name for name in dataset.signals if name != WATCH_TIME]
        raise ValueError(f"positive must be None or one of {allowed} (0/1 signals of the log), got {config.positive!r}")
    rows = _core(dataset.rows.drop_duplicates(["user", "item"]), config.core).reset_index(drop=True)
    dataset = replace(dataset, rows=rows)
    positive_R = np.ones(len(rows), bool) if config.positive is None else rows[config.positive].to_numpy() > 0
    lists, counts = _lists(rows, positive_R, config)
    counts = {"rows": len(rows), **counts}
    stage_L, bounds_S = _stages(rows["time_ms"].to_numpy()[lists.begin_L])
    within_L = _within_part(rows["time_ms"].to_numpy()[lists.begin_L + config.list_size - 1], stage_L, bounds_S, config)
    counts |= {"lists over the end of a part": int((~within_L).sum()), "lists": int(within_L.sum())}
    lists, stage_L = lists.among(within_L), stage_L[within_L]
    tables = _tables(dataset, bounds_S, config)
    popularity_SN = _popularity(rows, positive_R, bounds_S, len(dataset.items))
    candidates = _candidates(rows, fit_retriever, lists, stage_L, popularity_SN, bounds_S, positive_R, config)
    whole = RequestPart(
        tables=tables,
        stage_L=torch.from_numpy(stage_L),
        user_L=torch.from_numpy(rows["user"].to_numpy(np.int64)[lists.begin_L]),
        context_LX=_context(rows)[lists.begin_L],
        history_begin_L=torch.from_numpy(lists.user_begin_L),
        history_end_L=torch.from_numpy(lists.history_end_L),
        candidates_LC=candidates.item_LC,
        score_LC=candidates.score_LC,
        label_LC=candidates.label_LC,
        num_positives_L=candidates.num_positives_L,
    )
    parts = _parts(whole, config)
    counts |= {f"{name} lists": len(part) for name, part in parts.items()}
    counts |= {"positives": int(whole.num_positives_L.sum()), "positives among candidates": int(whole.label_LC.sum())}
    return RerankData(
        **parts,
        popularity_SN=popularity_SN,
        num_items=len(dataset.items),
        list_size=config.list_size,
        counts=counts,
    )


def _core(rows: pd.DataFrame, core: int) -> pd.DataFrame:
    while len(rows):
        kept_R = np.ones(len(rows), bool)
        for name in ("user", "item"):
            kept_R &= rows.groupby(name)["time_ms"].transform("size").to_numpy() >= core
        if kept_R.all():
            return rows
        rows = rows[kept_R]
    raise ValueError(f"no interaction is left by core={core}: ask for fewer interactions of each user and item")


def _lists(
    rows: pd.DataFrame, positive_R: npt.NDArray[np.bool_], config: ProtocolConfig
) -> tuple[_Lists, dict[str, int]]:
    """Lists after the background that have something to find and something to retrieve by."""
    user_R, time_R = rows["user"].to_numpy(), rows["time_ms"].to_numpy()
    _, first_U, count_U = np.unique(user_R, return_index=True, return_counts=True)
    lists_U = (count_U - 1) // config.list_size
    user_begin_L = np.repeat(first_U, lists_U)
    from_last_L = np.arange(lists_U.sum()) - np.repeat(np.cumsum(lists_U) - lists_U, lists_U)
    begin_L = np.repeat(first_U + count_U, lists_U) - config.list_size * (from_last_L + 1)
    # Interactions of one moment do not see each other, so the history ends before the list's first moment.
    moves_R = np.r_[True, (user_R[1:] != user_R[:-1]) | (time_R[1:] != time_R[:-1])]
    moment_begin_R = np.maximum.accumulate(np.where(moves_R, np.arange(len(rows)), 0))
    lists = _Lists(begin_L, user_begin_L, moment_begin_R[begin_L])
    late_L = time_R[begin_L] >= np.sort(time_R)[int(config.background * len(rows))]
    before_R1 = np.r_[0, np.cumsum(positive_R)]
    answer_L = before_R1[begin_L + config.list_size] > before_R1[begin_L]
    taste_L = before_R1[lists.history_end_L] > before_R1[user_begin_L]
    counts = {
        "lists in the background": int((~late_L).sum()),
        "lists without a positive": int((late_L & ~answer_L).sum()),
        "lists without a positive in the history": int((late_L & answer_L & ~taste_L).sum()),
    }
    return lists.among(late_L & answer_L & taste_L), counts


def _stages(time_L: Array) -> tuple[Array, Array]:
    """The stage (L,) of each list and the moment (S,) at which each stage begins."""
    if len(time_L) < NUM_STAGES:
        raise ValueError(
            f"the log has {len(time_L)} lists, the protocol needs {NUM_STAGES} at least; give a larger log"
        )
    bounds_S = np.sort(time_L)[np.arange(NUM_STAGES) * len(time_L) // NUM_STAGES]
    if (np.diff(bounds_S) <= 0).any():
        raise ValueError("too many lists begin at one moment to cut the log into stages; its times are too coarse")
    return np.searchsorted(bounds_S, time_L, side="right") - 1, bounds_S


def _within_part(last_time_L: Array, stage_L: Array, bounds_S: Array, config: ProtocolConfig) -> npt.NDArray[np.bool_]:
    """Lists whose last interaction lies before the next part begins."""
    begins = np.array(sorted({TRAIN_STAGES[config.protocol], NUM_STAGES - TEST_STAGES}))
    ends = np.append(bounds_S[begins], np.iinfo(np.int64).max)
    return last_time_L < ends[np.searchsorted(begins, stage_L, side="right")]


def _tables(dataset: LoggedDataset, bounds_S: Array, config: ProtocolConfig) -> LogTables:
    rows = dataset.rows
    feedback_RF = rows[list(dataset.signals)].to_numpy(np.float32, na_value=np.nan)
    date_R, time_R = rows["date"].to_numpy(), rows["time_ms"].to_numpy()
    features = [item_features(dataset, int(date_R[time_R >= bound].min())) for bound in bounds_S]
    if len({table.names for table in features}) > 1:
        raise ValueError("the log's first stages lack item statistics that later ones have: raise background")
    return LogTables(
        history_length=config.history_length,
        item_R=torch.from_numpy(rows["item"].to_numpy(np.int64)),
        feedback_RF=torch.from_numpy(np.nan_to_num(feedback_RF, nan=0.0)),
        known_RF=torch.from_numpy(~np.isnan(feedback_RF)),
        user_features_UD=torch.from_numpy(user_features(dataset).values),
        item_features_SND=torch.from_numpy(np.stack([table.values for table in features])),
    )


def _context(rows: pd.DataFrame) -> Tensor:
    """Hour and weekday of each row, (R, X); the log knows no sessions, so the other fields are 0."""
    context_RX = np.zeros((len(rows), len(CONTEXT)), np.float32)
    context_RX[:, CONTEXT.index("hour")] = local_hour(rows)
    days = pd.to_datetime(rows["date"].astype(str), format="%Y%m%d")
    context_RX[:, CONTEXT.index("weekday")] = days.dt.day_of_week
    return torch.from_numpy(context_RX)


class _Candidates(NamedTuple):
    item_LC: Tensor
    score_LC: Tensor
    label_LC: Tensor
    num_positives_L: Tensor


def _candidates(
    rows: pd.DataFrame,
    fit_retriever: FitRetriever,
    lists: _Lists,
    stage_L: Array,
    popularity_SN: Tensor,
    bounds_S: Array,
    positive_R: npt.NDArray[np.bool_],
    config: ProtocolConfig,
) -> _Candidates:
    """Candidates of all lists in random order, with scaled scores and labels."""
    item_R, user_R = (torch.from_numpy(rows[name].to_numpy(np.int64)) for name in ("item", "user"))
    time_R, likes_R = rows["time_ms"].to_numpy(), torch.from_numpy(positive_R)
    liked_item_P = item_R[likes_R]
    before_R1 = torch.from_numpy(np.r_[0, np.cumsum(positive_R)])
    chunks, order = [], []
    for stage in tqdm(range(NUM_STAGES), desc="retriever of each stage", disable=None):
        past_R = torch.from_numpy(time_R < bounds_S[stage]) & likes_R
        retriever = fit_retriever(user_R[past_R], item_R[past_R], popularity_SN.shape[1])
        for index_B in torch.split(torch.from_numpy(np.flatnonzero(stage_L == stage)), _LISTS_AT_ONCE):
            begin_B, user_begin_B, history_end_B = (
                torch.from_numpy(ends)[index_B] for ends in (lists.begin_L, lists.user_begin_L, lists.history_end_L)
            )
            row_BH, present_BH = window(before_R1[user_begin_B], before_R1[history_end_B], _RETRIEVER_HISTORY)
            score_BN = retriever.score(liked_item_P[row_BH].masked_fill(~present_BH, NO_ITEM))
            seen_BN = _seen(item_R, user_begin_B, history_end_B, score_BN.shape[1])
            row_BK = begin_B.unsqueeze(1) + torch.arange(config.list_size)
            allowed_BN = ~seen_BN & (popularity_SN[stage] > 0)
            chunks.append(_choose(score_BN, allowed_BN, item_R[row_BK], likes_R[row_BK].float(), config))
            order.append(index_B)
    place_L = torch.cat(order).argsort()
    found = _Candidates(*(torch.cat(parts)[place_L] for parts in zip(*chunks, strict=True)))
    return _shuffled(found, torch.Generator().manual_seed(config.seed))


def _choose(
    score_BN: Tensor, allowed_BN: Tensor, target_BK: Tensor, like_BK: Tensor, config: ProtocolConfig
) -> _Candidates:
    """``papers``: the list's own items and the best others. ``honest``: the best, whatever the list holds."""
    forced = config.list_size if config.protocol == "papers" else 0
    if forced:
        allowed_BN = allowed_BN.scatter(1, target_BK, False)
    best = score_BN.masked_fill(~allowed_BN, -torch.inf).topk(min(config.num_candidates - forced, score_BN.shape[1]))
    if best.values.shape[1] < config.num_candidates - forced or bool(best.values.isinf().any()):
        raise ValueError(
            f"some requests have fewer than {config.num_candidates} items to choose from, known before their stage and "
            "not in their history: give a larger log, fewer num_candidates or more background"
        )
    item_BC = torch.cat([target_BK[:, :forced], best.indices], dim=1)
    liked_BK = target_BK.where(like_BK > 0, NO_ITEM)
    label_BC = are_candidates(item_BC, liked_BK).to(torch.float32)
    return _Candidates(item_BC, unit_scaled(score_BN.gather(1, item_BC)), label_BC, like_BK.sum(dim=1))


def _shuffled(found: _Candidates, generator: torch.Generator) -> _Candidates:
    order_LC = torch.rand(found.item_LC.shape, generator=generator).argsort(dim=1)
    return _Candidates(
        found.item_LC.gather(1, order_LC),
        found.score_LC.gather(1, order_LC),
        found.label_LC.gather(1, order_LC),
        found.num_positives_L,
    )


def _seen(item_R: Tensor, begin_B: Tensor, end_B: Tensor, num_items: int) -> Tensor:
    """Which items (B, N) stand in rows ``begin .. end - 1``."""
    # Histories differ in length: their rows are laid end to end, each row with the number of its list.
    length_B = end_B - begin_B
    list_V = torch.arange(len(begin_B)).repeat_interleave(length_B)
    row_V = torch.arange(int(length_B.sum())) + (begin_B - length_B.cumsum(0) + length_B)[list_V]
    seen_BN = torch.zeros((len(begin_B), num_items), dtype=torch.bool)
    seen_BN[list_V, item_R[row_V]] = True
    return seen_BN


def _popularity(rows: pd.DataFrame, positive_R: npt.NDArray[np.bool_], bounds_S: Array, num_items: int) -> Tensor:
    """Positives (S, N) of each item before each stage."""
    stage_R = np.searchsorted(bounds_S, rows["time_ms"].to_numpy(), side="right")
    past_R = positive_R & (stage_R < NUM_STAGES)
    count_SN = np.zeros((NUM_STAGES, num_items), np.float32)
    np.add.at(count_SN, (stage_R[past_R], rows["item"].to_numpy()[past_R]), 1.0)
    return torch.from_numpy(count_SN.cumsum(axis=0))


def _parts(whole: RequestPart, config: ProtocolConfig) -> dict[str, RequestPart]:
    stages = TRAIN_STAGES[config.protocol]
    test = whole.among(whole.stage_L >= NUM_STAGES - TEST_STAGES)
    train = whole.among(whole.stage_L < stages)
    if config.protocol == "honest":
        validation = whole.among((whole.stage_L >= stages) & (whole.stage_L < NUM_STAGES - TEST_STAGES))
    else:
        generator = torch.Generator().manual_seed(config.seed)
        apart_U = torch.rand(len(whole.tables.user_features_UD), generator=generator) < config.validation_users
        apart_L = apart_U[train.user_L]
        train, validation = train.among(~apart_L), train.among(apart_L)
    parts = {"train": train, "validation": validation, "test": test}
    for name, part in parts.items():
        if not len(part):
            raise ValueError(f"the log is too small: no list is left in the {name} part; give a larger log")
    return parts
