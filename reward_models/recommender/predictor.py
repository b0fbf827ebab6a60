"""The recommender's own feedback predictor (pXTR): an ensemble of factorised models of all signals.

A member turns the user (decayed history, features, context) into one vector for each signal, and every item
into one vector shared by all signals; a prediction is their inner product through the signal's link. The
item part is a table, so scoring C candidates costs one small matrix product for each request. The first
item coordinate is 1, which makes the first user coordinate the user's own level, and the constant part of
the other user coordinates plays the item's.

Watch time has a log link and a Poisson quasi-likelihood: its score equations make predicted and watched
seconds agree in sum over every group the model can tell apart, whatever the distribution's tail, so the
mean needs no correction. Members differ by their initial weights and by Poisson(1) weights of the users;
users of weight 0 are a member's own validation set for early stopping.

Shape legend: B requests, C candidates, K places, F signals, M members, W hidden width, d factor width,
S state, I inputs of the user tower, H history, D features, N items, U users, R training rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsim_env.new_users import NewUsers
from recsim_env.numerics import linear, sigmoid
from recsim_env.types import WATCH_TIME, Request
from reward_models.recommender.decayed_history import DecayedHistory
from reward_models.recommender.encoding import NUM_TABS, EncodedRequests, context_codes, start_states, user_inputs
from reward_models.recommender.ensemble import FitSettings, at_least_one, bootstrap_weights, fit_members
from reward_models.recommender.losses import level_shifts, signal_losses

LONGEST_WATCH_S = 600.0
"""Predicted watch times are cut here, s."""


@dataclass(frozen=True, kw_only=True)
class PredictorConfig(FitSettings):
    """How the predictor is built and fitted."""

    learning_rate: float = 2e-3
    """Adam's step size."""
    max_epochs: int = 20
    """Upper bound on passes over the log."""
    num_members: int = 3
    """Members of the ensemble, M."""
    factor_width: int = 16
    """Length of item and user vectors, d."""
    hidden_width: int = 64
    """Width of the hidden layers, W."""
    watch_weight: float = 0.3
    """Weight of the watch-time loss beside that of one 0/1 signal."""
    item_decay: float = 1e-5
    """Weight decay of the per-item vectors; an item without data keeps its content's vector."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "num_members", "hidden_width")
        if self.factor_width < 2:
            raise ValueError(f"factor_width must be at least 2 (one coordinate is constant), got {self.factor_width}")


class EnsemblePredictor:
    """A fitted predictor; see ``recsim_env.types.Predictor``.

    A state is the user's code and the decayed sums of the history. Everything that depends on one user
    or one item alone is a table.
    """

    def __init__(self, settings: dict[str, Any], tensors: dict[str, Tensor]):
        self._settings = settings
        self._tensors = tensors
        self.signals: tuple[str, ...] = tuple(settings["signals"])
        """Names of the F signals, ``watch_time`` first."""
        self.history = DecayedHistory(
            item_vectors_NE=tensors["event_NE"],
            num_signals=len(self.signals),
            taste_signals=tuple(settings["taste_signals"]),
            decays=tuple(settings["decays"]),
        )
        self._num_items, self._num_members, self._factor_width = tensors["item_factors_NMd"].shape
        self._factors_Zd = tensors["item_factors_NMd"].transpose(0, 1).reshape(-1, self._factor_width)
        member_M = torch.arange(self._num_members, device=self._factors_Zd.device)
        self._first_row_M11 = (member_M * self._num_items)[:, None, None]
        self._user_hidden_UW = self._user_hidden(tensors["user_features_UD"])
        self._context_hidden_ZW = (tensors["tab_TW"].unsqueeze(1) + tensors["hour_TW"]).flatten(0, 1)

    def start(self, user_B: Tensor) -> Tensor:
        """State (B, S) at the end of the fitted log."""
        return self._tensors["start_US"][user_B]

    def with_users(self, users: NewUsers) -> "EnsemblePredictor":
        """The same model for other users, who start from their histories."""
        own = {"user_features_UD": users.features_UD, "start_US": start_states(self.history, users.histories)}
        return EnsemblePredictor(self._settings, {**self._tensors, **own})

    def observe(
        self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, signals_BKF: Tensor, seen_BK: Tensor
    ) -> Tensor:
        """State (B, S) after a slate."""
        sums_BS = self.history.observe(state_BS[:, 1:], items_BK, signals_BKF, seen_BK)
        return torch.cat([state_BS[:, :1], sums_BS], dim=1)

    def predict(self, state_BS: Tensor, context_BX: Tensor, items_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Expected signals (B, C, F), watch time in seconds, and the members' standard deviation."""
        user_hidden_BW = self._user_hidden_UW[state_BS[:, 0].to(torch.int64)]
        return self._predict(state_BS[:, 1:], user_hidden_BW, context_BX, items_BC)

    def predict_request(self, request: Request, items_BC: Tensor) -> tuple[Tensor, Tensor]:
        """The same for any request, logged or simulated: the history window is encoded anew.

        Args:
            request: only user features, context and history are read, so users may be unknown.
            items_BC: int64 item codes.
        """
        sums_BS = self.history.encode(request.history_BH, request.history_feedback_BHF, request.history_known_BHF)
        user_hidden_BW = self._user_hidden(request.user_features_BD)
        return self._predict(sums_BS, user_hidden_BW, request.context_BX, items_BC)

    def _user_hidden(self, features_BD: Tensor) -> Tensor:
        weight_WD, bias_W = self._tensors["user_weight_WD"], self._tensors["hidden_bias_W"]
        return linear(features_BD, weight_WD, bias_W)

    def _predict(
        self, sums_BS: Tensor, user_hidden_BW: Tensor, context_BX: Tensor, items_BC: Tensor
    ) -> tuple[Tensor, Tensor]:
        members, batch, num_signals = self._num_members, len(items_BC), len(self.signals)
        vector_MBX = self._user_vectors(sums_BS, user_hidden_BW, context_BX)
        vector_YdF = vector_MBX.reshape(members * batch, self._factor_width, num_signals)
        # All members' factors lie in one table, member after member, so one lookup brings them all.
        row_MBC = items_BC + self._first_row_M11
        factor_YCd = torch.nn.functional.embedding(row_MBC, self._factors_Zd).flatten(0, 1)
        logit_MBCF = torch.bmm(factor_YCd, vector_YdF).view(members, batch, -1, num_signals)
        watch_MBC = torch.exp(logit_MBCF[..., 0]).clamp_(max=LONGEST_WATCH_S)
        expected_MBCF = sigmoid(logit_MBCF)
        expected_MBCF[..., 0] = watch_MBC
        mean_BCF = expected_MBCF.sum(dim=0) / members
        square_BCF = (expected_MBCF - mean_BCF).square_().sum(dim=0)
        return mean_BCF, (square_BCF / max(members - 1, 1)).sqrt_()

    def _user_vectors(self, sums_BS: Tensor, user_hidden_BW: Tensor, context_BX: Tensor) -> Tensor:
        """Each member's vectors of a user for all signals, (M, B, d * F)."""
        tensors = self._tensors
        inputs_BI = user_inputs(self.history, sums_BS, tensors["prior_rate_F"], self._settings["rate_prior"])
        tab_B, hour_B = context_codes(context_BX)
        hidden_BW = linear(inputs_BI, tensors["history_weight_WI"])
        hidden_BW = (hidden_BW + user_hidden_BW + self._context_hidden_ZW[tab_B * 24 + hour_B]).relu_()
        hidden_BMW = hidden_BW.view(len(sums_BS), self._num_members, -1)
        weights = zip(tensors["vector_weight_MWX"], tensors["vector_bias_M1X"], strict=True)
        members = [linear(hidden_BMW[:, i], w_WX.T, b_1X[0]) for i, (w_WX, b_1X) in enumerate(weights)]
        return torch.stack(members)

    def config(self) -> dict[str, Any]:
        """Settings as JSON values."""
        return dict(self._settings)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, by name."""
        return dict(self._tensors)

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "EnsemblePredictor":
        """Rebuilds a saved predictor."""
        return cls(config, tensors)


class _Towers(torch.nn.Module):
    """The trainable form: M members side by side."""

    def __init__(
        self,
        config: PredictorConfig,
        sizes: dict[str, int],
        base_F: Tensor,
        generator: torch.Generator,
    ):
        super().__init__()
        members, width, factor = config.num_members, config.hidden_width, config.factor_width
        num_signals = len(base_F)

        def weight(*shape: int, scale: float) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(members, *shape, generator=generator) * scale)

        def zeros(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.zeros(members, *shape))

        self.history = weight(sizes["inputs"], width, scale=(2 / sizes["inputs"]) ** 0.5)
        # A log may tell nothing of its users: a matrix of no rows then adds nothing, and needs no scale.
        self.user = weight(sizes["user_features"], width, scale=max(sizes["user_features"], 1) ** -0.5)
        self.tab = weight(NUM_TABS, width, scale=0.3)
        self.hour = zeros(24, width)
        self.hidden_bias = zeros(width)
        self.vector = weight(width, factor, num_signals, scale=0.5 * width**-0.5)
        self.vector_bias = zeros(factor, num_signals)
        self.item_hidden = weight(sizes["item_features"], width, scale=max(sizes["item_features"], 1) ** -0.5)
        self.item_bias = zeros(width)
        self.item_out = weight(width, factor - 1, scale=width**-0.5)
        self.item_own = zeros(sizes["items"], factor - 1)
        self.item_own.weight_decay = config.item_decay  # type: ignore[attr-defined]
        with torch.no_grad():
            self.vector_bias[:, 0] = base_F

    def item_factors(self, features_RD: Tensor, own_MRd: Tensor) -> Tensor:
        """Item vectors (M, R, d)."""
        hidden_MRW = (features_RD @ self.item_hidden + self.item_bias[:, None]).relu()
        content_MRd = hidden_MRW @ self.item_out + own_MRd
        return torch.cat([torch.ones_like(content_MRd[..., :1]), content_MRd], dim=-1)

    def forward(self, rows: "_Rows", index_R: Tensor) -> Tensor:
        """Logits (M, R, F) of training rows."""
        request_R, item_R = rows.request_R[index_R], rows.item_R[index_R]
        user_features_RD = rows.user_features_UD[rows.user_L[request_R]]
        hidden_MRW = rows.inputs_LI[request_R] @ self.history + user_features_RD @ self.user
        hidden_MRW = hidden_MRW + self.tab[:, rows.tab_L[request_R]] + self.hour[:, rows.hour_L[request_R]]
        hidden_MRW = (hidden_MRW + self.hidden_bias[:, None]).relu()
        factor_MRd = self.item_factors(rows.item_features_ND[item_R], self.item_own[:, item_R])
        vector_MRX = hidden_MRW @ self.vector.flatten(2) + self.vector_bias.flatten(1)[:, None]
        vector_MRdF = vector_MRX.view(*vector_MRX.shape[:2], *self.vector.shape[2:])
        return torch.einsum("mrd,mrdf->mrf", factor_MRd, vector_MRdF)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Everything a training step reads, encoded once."""

    inputs_LI: Tensor
    user_L: Tensor
    tab_L: Tensor
    hour_L: Tensor
    request_R: Tensor
    item_R: Tensor
    target_RF: Tensor
    known_RF: Tensor
    user_features_UD: Tensor
    item_features_ND: Tensor


def fit_predictor(
    encoded: EncodedRequests,
    *,
    config: PredictorConfig | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
) -> EnsemblePredictor:
    """Fits the ensemble on logged requests.

    Args:
        encoded: requests of the operator's own users; the others start from their own history but teach nothing.
            Counts in the item features must come from before the log's first day, or the model learns to trust a
            feature that has seen its own labels.
        config: settings.
        seed: fixes initial weights, bootstrap and the order of rows.
        run_dir: where TensorBoard finds the losses; none are written by default.

    Raises:
        ValueError: the log records no watch time, or fewer than two users have requests.
    """
    config, signals = config or PredictorConfig(), encoded.requests.signals
    if signals[:1] != (WATCH_TIME,):
        raise ValueError(f"the log records {signals}; a predictor needs {WATCH_TIME!r} as the first signal")
    rows = _rows(encoded, config)
    return _export(_train(rows, config, seed, run_dir), rows, encoded)


def _rows(encoded: EncodedRequests, config: PredictorConfig) -> _Rows:
    """One training row a place of the requests' slates."""
    requests = encoded.requests
    targets, known, items, order = [], [], [], []
    for index_B in requests.batch_indices(config.batch_size):
        batch = requests.batch(index_B)
        targets.append(batch.feedback.signals_BKF.flatten(0, 1))
        known.append(batch.known_BKF.flatten(0, 1))
        items.append(batch.items_BK.flatten())
        order.append(index_B.repeat_interleave(batch.items_BK.shape[1]))
    tab_L, hour_L = context_codes(requests.context_LX)
    return _Rows(
        inputs_LI=encoded.inputs_LI,
        user_L=requests.user_L,
        tab_L=tab_L,
        hour_L=hour_L,
        request_R=torch.cat(order),
        item_R=torch.cat(items),
        target_RF=torch.cat(targets),
        known_RF=torch.cat(known).to(torch.float32),
        user_features_UD=requests.user_features_UD,
        item_features_ND=requests.item_features_ND,
    )


def _train(rows: _Rows, config: PredictorConfig, seed: int, run_dir: str | Path | None) -> _Towers:
    generator = torch.Generator().manual_seed(seed)
    mean_F = (rows.target_RF * rows.known_RF).sum(dim=0) / rows.known_RF.sum(dim=0).clamp(min=1)
    mean_F = mean_F.clamp(min=1e-4)
    # Training starts at the log's own levels; from 0 the first epochs would go into finding them.
    base_F = torch.cat([mean_F[:1].log(), torch.logit(mean_F[1:].clamp(max=1 - 1e-4))])
    sizes = {
        "inputs": rows.inputs_LI.shape[1],
        "user_features": rows.user_features_UD.shape[1],
        "item_features": rows.item_features_ND.shape[1],
        "items": len(rows.item_features_ND),
    }
    towers = _Towers(config, sizes, base_F, generator)
    user_R = rows.user_L[rows.request_R]
    weight_UM = bootstrap_weights(len(rows.user_features_UD), rows.user_L, config.num_members, generator)

    def batches(shuffle: torch.Generator | None) -> Iterable[Tensor]:
        count = len(user_R)
        order_R = torch.arange(count) if shuffle is None else torch.randperm(count, generator=shuffle)
        return torch.split(order_R, config.batch_size)

    def losses(index_R: Tensor) -> tuple[Tensor, Tensor]:
        logit_MRF = towers(rows, index_R)
        target_RF, known_RF = rows.target_RF[index_R], rows.known_RF[index_R]
        return signal_losses(logit_MRF, target_RF, known_RF, mean_F[0], config.watch_weight), user_R[index_R]

    fit_members(towers, batches, losses, weight_UM, generator, config, label="predictor", run_dir=run_dir)
    # Level by out-of-bag rows: a member's own rows would hide how far it is off, see ``level_shifts``.
    with torch.no_grad():
        logit_MRF = torch.cat([towers(rows, index_R) for index_R in batches(None)], dim=1)
        out_MR1 = (weight_UM[user_R].T == 0).unsqueeze(-1)
        towers.vector_bias[:, 0] += level_shifts(logit_MRF, rows.target_RF, rows.known_RF * out_MR1)
    return towers


@torch.no_grad()
def _export(towers: _Towers, rows: _Rows, encoded: EncodedRequests) -> EnsemblePredictor:
    """Members laid side by side in wide tables: one matrix product then serves them all."""
    factors_MNd = towers.item_factors(rows.item_features_ND, towers.item_own)

    def wide(weight_MIW: Tensor) -> Tensor:
        return weight_MIW.transpose(0, 1).flatten(1)

    tensors = {
        "event_NE": encoded.history.item_vectors_NE,
        "item_factors_NMd": factors_MNd.transpose(0, 1),
        "start_US": encoded.start_US,
        "user_features_UD": rows.user_features_UD,
        "user_weight_WD": wide(towers.user).T,
        "history_weight_WI": wide(towers.history).T,
        "hidden_bias_W": towers.hidden_bias.flatten(),
        "tab_TW": wide(towers.tab),
        "hour_TW": wide(towers.hour),
        "vector_weight_MWX": towers.vector.flatten(2),
        "vector_bias_M1X": towers.vector_bias.flatten(1).unsqueeze(1),
        "prior_rate_F": encoded.prior_rate_F,
    }
    settings = {"signals": list(encoded.requests.signals), **encoded.settings}
    return EnsemblePredictor(settings, {name: t.detach().contiguous() for name, t in tensors.items()})
