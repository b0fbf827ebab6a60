"""A learned candidate source: two towers, whose whole catalogue is scored at every request.

A user's vector comes from the decayed history and the user features, an item's from its content and a
vector of its own, so an item that nobody has met is placed by its content alone. Fitted on positives by
sampled softmax: negatives are drawn by popularity and their chance is divided out, hence a score estimates
the log-probability, up to a constant, that this item is the user's next positive.

Exploration adds Gumbel noise of a chosen temperature: at 1 the candidates are a sample without replacement
from that distribution, at 0 its most probable items. The noise of a request is a stretch of one fixed
table, at an offset that the request's own uniform draw chooses, which costs a copy and no logarithms.

Shape legend: B requests, C candidates, K places, M items to leave out, N items, Z padded items, U users,
D features, E event vector width, S state, I inputs and W width of the user tower, d vector width, R rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsim_env.data.requests import LoggedRequests
from recsim_env.new_users import NewUsers
from recsim_env.numerics import BLOCK_ROWS, linear
from recsim_env.types import NO_ITEM, WATCH_TIME, Request
from reward_models.recommender.decayed_history import DecayedHistory
from reward_models.recommender.encoding import EncodedRequests, start_states, user_inputs
from reward_models.recommender.ensemble import FitSettings, at_least_one, fit_members

_BLOCK = 8  # columns of a block, see ``_top``
_LEFT_OUT = -1e30
_ROWS_AT_ONCE = BLOCK_ROWS  # so many rows of scores stay in the processor's cache
_ROWS_AT_ONCE_ON_GPU = 8192  # a GPU wants long steps; this many rows of scores are some hundred megabytes
LOWEST_SCORE = -50.0
"""Returned scores are cut here; only items that had to be left out reach it."""


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(FitSettings):
    """How the candidate source is built and fitted."""

    vector_width: int = 16
    """Length of user and item vectors, d; the last coordinate holds the item's level."""
    hidden_width: int = 64
    """Width of the hidden layers, W."""
    positive_signals: tuple[str, ...] = ("long_view", "click", "like")
    """The first of these that the log has marks the positives to retrieve. In a log with none of them a positive is
    a video that was watched for longer than the median."""
    exploration: float = 0.3
    """Temperature of the noise added to scores; 0 switches it off."""
    num_negatives: int = 2048
    """Items drawn to compare each batch of positives with."""
    item_decay: float = 1e-2
    """Weight decay of the items' own vectors."""
    validation_share: float = 0.1
    """Share of users kept aside for early stopping."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "hidden_width", "num_negatives")
        if self.vector_width < 2:
            raise ValueError(f"vector_width must be at least 2 (one coordinate is a level), got {self.vector_width}")
        if self.exploration < 0:
            raise ValueError(f"exploration must be at least 0, got {self.exploration}")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share must lie in (0, 1), got {self.validation_share}")


class TwoTowerCandidates:
    """A fitted candidate source; see ``recsim_env.types.CandidateSource``.

    A state is the user's code and the decayed sums of the history.
    """

    def __init__(self, settings: dict[str, Any], tensors: dict[str, Tensor]):
        self._settings = settings
        self._tensors = tensors
        self.history = DecayedHistory(
            item_vectors_NE=tensors["event_NE"],
            num_signals=settings["num_signals"],
            expected_NF=tensors["expected_NF"],
            taste_signals=tuple(settings["taste_signals"]),
            decays=tuple(settings["decays"]),
        )
        items_Nd = tensors["items_Nd"]
        self._num_items, width = items_Nd.shape
        # At least one spare column, where the scatter of ``retrieve`` sends empty places.
        num_blocks = self._num_items // _BLOCK + 1
        self._padded_Zd = items_Nd.new_zeros(num_blocks * _BLOCK, width)
        self._padded_Zd[: self._num_items] = items_Nd
        noise = settings["exploration"] * tensors["noise_Y"]
        self._noise_NZ = noise.unfold(0, len(self._padded_Zd), 1)
        self._user_hidden_UW = self._user_hidden(tensors["user_features_UD"])

    def start(self, user_B: Tensor) -> Tensor:
        """State (B, S) at the end of the fitted log."""
        return self._tensors["start_US"][user_B]

    def with_users(self, users: NewUsers) -> "TwoTowerCandidates":
        """The same model for other users, who start from their histories."""
        own = {"user_features_UD": users.features_UD, "start_US": start_states(self.history, users.histories)}
        return TwoTowerCandidates(self._settings, {**self._tensors, **own})

    def observe(
        self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, signals_BKF: Tensor, seen_BK: Tensor
    ) -> Tensor:
        """State (B, S) after a slate."""
        sums_BS = self.history.observe(state_BS[:, 1:], items_BK, signals_BKF, seen_BK)
        return torch.cat([state_BS[:, :1], sums_BS], dim=1)

    def encode(self, request: Request) -> Tensor:
        """State (B, S) of any request, from its history window."""
        sums_BS = self.history.encode(request.history_BH, request.history_feedback_BHF, request.history_known_BHF)
        return torch.cat([request.user_B.to(sums_BS.dtype).unsqueeze(1), sums_BS], dim=1)

    def retrieve(
        self, state_BS: Tensor, shown_BM: Tensor, uniform_B: Tensor, num_candidates: int
    ) -> tuple[Tensor, Tensor]:
        """Candidates (B, C), best first, and their noisy scores (B, C).

        Raises:
            ValueError: more candidates are asked for than the catalogue has items.
        """
        if not 0 < num_candidates <= self._num_items:
            raise ValueError(f"num_candidates must lie in 1..{self._num_items} (the catalogue), got {num_candidates}")
        vector_Bd = self._user_vectors(state_BS)
        at_once = _ROWS_AT_ONCE if vector_Bd.device.type == "cpu" else _ROWS_AT_ONCE_ON_GPU
        parts = [
            self._best(vector_Bd[rows], shown_BM[rows], uniform_B[rows], num_candidates)
            for rows in (slice(i, i + at_once) for i in range(0, max(len(vector_Bd), 1), at_once))
        ]
        items, scores = zip(*parts, strict=True)
        return (items[0], scores[0]) if len(parts) == 1 else (torch.cat(items), torch.cat(scores))

    def _best(
        self, vector_Bd: Tensor, shown_BM: Tensor, uniform_B: Tensor, num_candidates: int
    ) -> tuple[Tensor, Tensor]:
        score_BZ = linear(vector_Bd, self._padded_Zd)
        if self._settings["exploration"] > 0:
            # ``unfold`` made every stretch of the noise table a row of a view: a request's noise is one lookup.
            score_BZ = score_BZ.add_(self._noise_NZ.index_select(0, self._offset(uniform_B)))
        # Items to leave out fall far below all others but stay above the padding, so that they come back, rather than
        # nothing, once everything has been shown.
        column_BM = shown_BM.masked_fill(shown_BM == NO_ITEM, self._num_items)
        score_BZ = score_BZ.scatter_(1, column_BM, _LEFT_OUT)
        score_BZ[:, self._num_items :] = -torch.inf
        score_BC, items_BC = _top(score_BZ, num_candidates)
        return items_BC, score_BC.clamp_(min=LOWEST_SCORE)

    def score(self, state_BS: Tensor, uniform_B: Tensor, items_BY: Tensor) -> Tensor:
        """Scores (B, Y) of any items, noise included, as ``retrieve`` gives them while nothing is left out."""
        vector_B1d = self._user_vectors(state_BS).unsqueeze(1)
        score_BY = (self._tensors["items_Nd"][items_BY] * vector_B1d).sum(dim=-1)
        if self._settings["exploration"] > 0:
            score_BY = score_BY + self._noise_NZ[self._offset(uniform_B).unsqueeze(1), items_BY]
        return score_BY.clamp_(min=LOWEST_SCORE)

    def _offset(self, uniform_B: Tensor) -> Tensor:
        """Where in the table of noise each request reads."""
        return (uniform_B * self._num_items).to(torch.int64).clamp_(max=self._num_items - 1)

    def score_request(self, request: Request, items_BC: Tensor) -> Tensor:
        """Noise-free scores (B, C) of any items, the history window encoded anew."""
        vector_B1d = self._user_vectors(self.encode(request)).unsqueeze(1)
        return (self._tensors["items_Nd"][items_BC] * vector_B1d).sum(dim=-1)

    def with_exploration(self, temperature: float) -> "TwoTowerCandidates":
        """The same source with another temperature; 0 switches the noise off."""
        if temperature < 0:
            raise ValueError(f"exploration must be at least 0, got {temperature}")
        return TwoTowerCandidates({**self._settings, "exploration": temperature}, self._tensors)

    def _user_hidden(self, features_BD: Tensor) -> Tensor:
        return linear(features_BD, self._tensors["user_weight_WD"], self._tensors["hidden_bias_W"])

    def _user_vectors(self, state_BS: Tensor) -> Tensor:
        """User vectors (B, d); the last coordinate is 1."""
        tensors = self._tensors
        inputs_BI = user_inputs(self.history, state_BS[:, 1:], tensors["prior_rate_F"], self._settings["rate_prior"])
        hidden_BW = linear(inputs_BI, tensors["history_weight_WI"])
        hidden_BW = (hidden_BW + self._user_hidden_UW[state_BS[:, 0].to(torch.int64)]).relu_()
        return linear(hidden_BW, tensors["vector_weight_dW"], tensors["vector_bias_d"])

    def config(self) -> dict[str, Any]:
        """Settings as JSON values."""
        return dict(self._settings)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, by name."""
        return dict(self._tensors)

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "TwoTowerCandidates":
        """Rebuilds a saved source."""
        return cls(config, tensors)


def _top(score_BZ: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` best columns of each row, best first, by way of the blocks that can hold them.

    A selection over all columns takes twice as long: the best ``count`` items lie in the ``count`` blocks
    with the highest maxima. Block b holds columns b, b + num_blocks, ..., so maxima are plain vector steps.
    """
    batch, num_columns = score_BZ.shape
    num_blocks = num_columns // _BLOCK
    if num_blocks <= count:
        column_BC = _highest(score_BZ, count)
    else:
        block_BC = _highest(score_BZ.view(batch, _BLOCK, num_blocks).amax(dim=1), count)
        step_Y1 = torch.arange(0, num_columns, num_blocks, device=score_BZ.device).unsqueeze(1)
        column_BX = (block_BC.unsqueeze(1) + step_Y1).flatten(1)
        column_BC = column_BX.gather(1, _highest(score_BZ.gather(1, column_BX), count))
    best_BC = score_BZ.gather(1, column_BC).sort(descending=True)
    return best_BC.values, column_BC.gather(1, best_BC.indices)


def _highest(x_BX: Tensor, count: int) -> Tensor:
    """Columns (B, count) of the highest values of each row, in any order."""
    if x_BX.device.type == "cpu":  # numpy's vectorised selection takes a quarter of the time of torch's
        return torch.from_numpy(x_BX.numpy().argpartition(-count, axis=1)[:, -count:])
    return x_BX.topk(count, sorted=False).indices


@torch.inference_mode()
def held_out_hits(
    source: TwoTowerCandidates, requests: LoggedRequests, num_candidates: int, signal: str
) -> tuple[Tensor, Tensor]:
    """Whether each held-out positive is among the candidates retrieved for its request.

    Items of the request's history are left out, as in the simulator.

    Args:
        source: usually ``with_exploration(0)``.
        requests: requests of days that taught nothing.
        num_candidates: C.
        signal: which feedback makes an item a positive.

    Returns:
        Hits (bool) and user codes (int64), one for each positive.
    """
    index = requests.signals.index(signal)
    hits, users = [], []
    for batch in requests.batches(512):
        positive_BK = batch.feedback.signals_BKF[..., index] > 0
        request = batch.request
        draws_B = torch.full((len(request.user_B),), 0.5)
        found_BC, _ = source.retrieve(source.encode(request), request.history_BH, draws_B, num_candidates)
        hit_BK = (batch.items_BK.unsqueeze(2) == found_BC.unsqueeze(1)).any(dim=2)
        hits.append(hit_BK[positive_BK])
        users.append(request.user_B.unsqueeze(1).expand_as(hit_BK)[positive_BK])
    return torch.cat(hits), torch.cat(users)


class _Towers(torch.nn.Module):
    """The trainable form. The leading dimension of 1 is the ensemble of ``fit_members``."""

    def __init__(self, config: RetrievalConfig, inputs: int, user_features: int, item_features_ND: Tensor, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        width, d = config.hidden_width, config.vector_width
        num_items, item_features = item_features_ND.shape

        def weight(rows: int, columns: int, scale: float) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(1, rows, columns, generator=generator) * scale)

        def zeros(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.zeros(1, *shape))

        self.history = weight(inputs, width, (2 / inputs) ** 0.5)
        # A log may tell nothing of its users: a matrix of no rows then adds nothing, and needs no scale.
        self.user = weight(user_features, width, max(user_features, 1) ** -0.5)
        self.hidden_bias = zeros(1, width)
        self.vector = weight(width, d - 1, width**-0.5)
        self.vector_bias = zeros(1, d - 1)
        self.item_hidden = weight(item_features, width, max(item_features, 1) ** -0.5)
        self.item_bias = zeros(1, width)
        self.item_out = weight(width, d, 0.3 * width**-0.5)
        self.item_own = zeros(num_items, d)
        self.item_own.weight_decay = config.item_decay  # type: ignore[attr-defined]
        self._item_features_ND = item_features_ND

    def users(self, inputs_RI: Tensor, features_RD: Tensor) -> Tensor:
        """User vectors (1, R, d - 1)."""
        hidden_1RW = (inputs_RI @ self.history + features_RD @ self.user + self.hidden_bias).relu()
        return hidden_1RW @ self.vector + self.vector_bias

    def items(self) -> Tensor:
        """Item vectors (1, N, d), the level last."""
        hidden_1NW = (self._item_features_ND @ self.item_hidden + self.item_bias).relu()
        return hidden_1NW @ self.item_out + self.item_own


@dataclass(frozen=True, kw_only=True)
class _Positives:
    """What a training step reads, one row a positive."""

    inputs_RI: Tensor
    user_R: Tensor
    item_R: Tensor


def fit_retrieval(
    encoded: EncodedRequests,
    *,
    config: RetrievalConfig | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
) -> TwoTowerCandidates:
    """Fits the source on a log's positives.

    Args:
        encoded: requests of the operator's own users.
        config: settings.
        seed: fixes initial weights, the order of rows, negatives and exploration noise.
        run_dir: where TensorBoard finds the losses; none are written by default.

    Raises:
        ValueError: the log has neither one of the positive signals nor watch times, or fewer than ten positives.
    """
    config = config or RetrievalConfig()
    positives = _positives(encoded, config)
    if len(positives.item_R) < 10:
        raise ValueError(
            f"{len(positives.item_R)} rows are positives ({_positive_rule(encoded.requests, config)[2]}), too few to "
            "fit a candidate source; name another signal in positive_signals"
        )
    return _export(_train(positives, encoded.requests, config, seed, run_dir), encoded, config, seed)


def _positive_rule(requests: LoggedRequests, config: RetrievalConfig) -> tuple[int, float, str]:
    """Which signal marks a positive, what it must exceed, and both in words."""
    for name in config.positive_signals:
        if name in requests.signals:
            return requests.signals.index(name), 0.0, f"{name}=1"
    if requests.signals[0] != WATCH_TIME:
        raise ValueError(
            f"the log has signals {requests.signals}, none of positive_signals {config.positive_signals}; name one "
            "that marks a success"
        )
    shown_P = requests.slate_event_P
    watched = requests.event_feedback_EF[shown_P, 0][requests.event_known_EF[shown_P, 0]]
    median = float(watched.median()) if len(watched) else 0.0
    return 0, median, f"watched for more than the median of {median:.3g} s"


@torch.no_grad()
def _positives(encoded: EncodedRequests, config: RetrievalConfig) -> _Positives:
    requests = encoded.requests
    signal, bar, _ = _positive_rule(requests, config)
    inputs, users, items = [], [], []
    for index_B in requests.batch_indices(config.batch_size):
        batch = requests.batch(index_B)
        positive_BK = batch.feedback.signals_BKF[..., signal] > bar
        row_R = index_B[positive_BK.nonzero()[:, 0]]
        inputs.append(encoded.inputs_LI[row_R])
        users.append(requests.user_L[row_R])
        items.append(batch.items_BK[positive_BK])
    return _Positives(inputs_RI=torch.cat(inputs), user_R=torch.cat(users), item_R=torch.cat(items))


def _train(
    positives: _Positives, requests: LoggedRequests, config: RetrievalConfig, seed: int, run_dir: str | Path | None
) -> _Towers:
    """Sampled softmax: a positive competes with items drawn by popularity.

    A softmax over the catalogue would cost N items a row. Negatives drawn with chance q, their logits lowered by
    log(q x number drawn), have the sum over the catalogue as their expectation, so that scores still mean
    log-probability. The power 0.75 draws rare items more often than they come, so that their terms vary less.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    user_features_UD = requests.user_features_UD
    towers = _Towers(config, positives.inputs_RI.shape[1], user_features_UD.shape[1], requests.item_features_ND, seed)
    counts_N = torch.bincount(positives.item_R, minlength=len(requests.item_features_ND)).to(torch.float32)
    chance_N = (counts_N + 1.0).pow(0.75)
    chance_N = chance_N / chance_N.sum()
    with torch.no_grad():
        # Levels start at the log's own popularity; the towers have only the differences between users to learn.
        towers.item_own[0, :, -1] = ((counts_N + 1.0) / (counts_N + 1.0).mean()).log()
    present = torch.unique(positives.user_R)
    order = torch.randperm(len(present), generator=generator)
    kept_aside = present[order[: max(1, int(config.validation_share * len(present)))]]
    weight_U1 = torch.ones(len(user_features_UD), 1)
    weight_U1[kept_aside] = 0.0
    log_weight_N = -(chance_N * config.num_negatives).log()

    def batches(shuffle: torch.Generator | None) -> Iterable[tuple[Tensor, Tensor]]:
        # Validation draws the same negatives every time, or epochs could not be compared.
        draws = generator if shuffle is not None else torch.Generator().manual_seed(seed)
        order_R = torch.randperm(len(positives.item_R), generator=draws)
        for row_R in torch.split(order_R, config.batch_size):
            yield row_R, torch.multinomial(chance_N, config.num_negatives, replacement=True, generator=draws)

    def losses(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        row_R, negative_Y = batch
        user_R, item_R = positives.user_R[row_R], positives.item_R[row_R]
        vector_1Rd = towers.users(positives.inputs_RI[row_R], user_features_UD[user_R])
        items_1Nd = towers.items()
        positive_1Rd, negative_1Yd = items_1Nd[:, item_R], items_1Nd[:, negative_Y]
        positive_1R = (vector_1Rd * positive_1Rd[..., :-1]).sum(dim=-1) + positive_1Rd[..., -1]
        level_1Y = negative_1Yd[..., -1] + log_weight_N[negative_Y]
        negative_1RY = vector_1Rd @ negative_1Yd[..., :-1].transpose(1, 2) + level_1Y.unsqueeze(1)
        # A positive that was drawn as its own negative would be pushed both ways.
        negative_1RY = negative_1RY.masked_fill(item_R.unsqueeze(1) == negative_Y, -torch.inf)
        total_1R = torch.logaddexp(positive_1R, negative_1RY.logsumexp(dim=-1))
        return total_1R - positive_1R, user_R

    fit_members(towers, batches, losses, weight_U1, generator, config, label="retrieval", run_dir=run_dir)
    return towers


@torch.no_grad()
def _export(towers: _Towers, encoded: EncodedRequests, config: RetrievalConfig, seed: int) -> TwoTowerCandidates:
    requests = encoded.requests
    # A request's noise is a stretch of this table as long as the padded catalogue, at any of N offsets.
    num_draws = 2 * len(requests.item_features_ND) + _BLOCK
    draws_Y = torch.rand(num_draws, generator=torch.Generator().manual_seed(seed + 2))
    tensors = {
        "event_NE": encoded.history.item_vectors_NE,
        "expected_NF": encoded.history.expected_NF,
        "items_Nd": towers.items()[0],
        "noise_Y": -(-draws_Y.clamp(1e-6, 1 - 1e-6).log()).log(),
        "start_US": encoded.start_US,
        "user_features_UD": requests.user_features_UD,
        "user_weight_WD": towers.user[0].T,
        "hidden_bias_W": towers.hidden_bias[0, 0],
        "history_weight_WI": towers.history[0].T,
        # The user's last coordinate is 1, whatever the past, so that the item's last one is its level.
        "vector_weight_dW": torch.nn.functional.pad(towers.vector[0].T, (0, 0, 0, 1)),
        "vector_bias_d": torch.cat([towers.vector_bias[0, 0], torch.ones(1)]),
        "prior_rate_F": encoded.prior_rate_F,
    }
    settings = {"num_signals": len(requests.signals), **encoded.settings, "exploration": config.exploration}
    return TwoTowerCandidates(settings, {name: t.detach().contiguous() for name, t in tensors.items()})
