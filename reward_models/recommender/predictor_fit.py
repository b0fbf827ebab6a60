"""Fits the recommender's predictor: all members of the ensemble side by side, on the operator's own rows.

Members differ by their initial weights and by Poisson(1) weights of the users; users of weight 0 are a member's own
validation set for early stopping. See ``predictor`` for what is fitted.

Shape legend: M members, F signals, W hidden width, d factor width, I inputs of the user tower, D features, N items,
U users, R training rows, L requests, E event vector width, Z floats of a session's sums, X columns of exposure.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from recsim_env.types import WATCH_TIME
from reward_models import session_sums
from reward_models.exposure import UNIFORM_WEIGHT
from reward_models.recommender.encoding import NUM_TABS, EncodedRequests, context_codes
from reward_models.recommender.ensemble import FitSettings, at_least_one, bootstrap_weights, fit_members
from reward_models.recommender.losses import level_shifts, signal_losses
from reward_models.recommender.predictor import (
    EnsemblePredictor,
    exposure_columns,
    num_exposure_columns,
    tiredness,
)

_EXPOSURE_PACE = 10.0  # its weights lie far from 0, and epochs are few; chosen by held-out rows of the log's ranker


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
        self.exposure = zeros(num_exposure_columns(sizes["rates"]), num_signals)
        self.exposure.pace = _EXPOSURE_PACE  # type: ignore[attr-defined]
        self.session = zeros(len(session_sums.DECAYS), sizes["events"], num_signals)
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
        logit_MRF = torch.einsum("mrd,mrdf->mrf", factor_MRd, vector_MRdF)
        of_request = (rows.shown_LG[request_R], rows.chosen_L[request_R])
        columns = exposure_columns(rows.lift_R[index_R], rows.ranker_lift, *of_request)
        logit_MRF = logit_MRF + torch.stack(columns, dim=1) @ self.exposure
        if rows.session_LZ.shape[1]:
            event_RE = rows.event_NE[item_R]
            tired_MREF = tiredness(rows.session_LZ[request_R], self.session)
            logit_MRF = logit_MRF + (event_RE.unsqueeze(-1) * tired_MREF).sum(2)
        return logit_MRF


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
    event_NE: Tensor
    session_LZ: Tensor
    lift_R: Tensor
    ranker_lift: float
    uniform_L: Tensor
    """bool."""

    @property
    def shown_LG(self) -> Tensor:
        """How many videos the session had shown, fading; G is 0 for a log without sessions."""
        return session_sums.counts(self.session_LZ) if self.session_LZ.shape[1] else self.session_LZ

    @property
    def chosen_L(self) -> Tensor:
        """float32: 1 where the log's ranker chose, and other rows tell what that means; 0 everywhere without such."""
        return (~self.uniform_L & self.uniform_L.any()).float()


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
    targets, known, items, order, log_rows = [], [], [], [], []
    for index_B in requests.batch_indices(config.batch_size):
        batch = requests.batch(index_B)
        targets.append(batch.feedback.signals_BKF.flatten(0, 1))
        known.append(batch.known_BKF.flatten(0, 1))
        items.append(batch.items_BK.flatten())
        order.append(index_B.repeat_interleave(batch.items_BK.shape[1]))
        log_rows.append(batch.row_BK.flatten())
    tab_L, hour_L = context_codes(requests.context_LX)
    request_R, lift_R = torch.cat(order), encoded.lift_R[torch.cat(log_rows)]
    return _Rows(
        inputs_LI=encoded.inputs_LI,
        user_L=requests.user_L,
        tab_L=tab_L,
        hour_L=hour_L,
        request_R=request_R,
        item_R=torch.cat(items),
        target_RF=torch.cat(targets),
        known_RF=torch.cat(known).to(torch.float32),
        user_features_UD=requests.user_features_UD,
        item_features_ND=requests.item_features_ND,
        event_NE=encoded.history.item_vectors_NE,
        session_LZ=encoded.session_LW,
        lift_R=lift_R,
        ranker_lift=float(lift_R[~requests.uniform_L[request_R]].mean().nan_to_num()),
        uniform_L=requests.uniform_L,
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
        "events": rows.event_NE.shape[1],
        "rates": rows.shown_LG.shape[1],
    }
    towers = _Towers(config, sizes, base_F, generator)
    user_R = rows.user_L[rows.request_R]
    weight_UM = bootstrap_weights(len(rows.user_features_UD), rows.user_L, config.num_members, generator)
    uniform_R = rows.uniform_L[rows.request_R]
    weight_R = torch.where(uniform_R, UNIFORM_WEIGHT, 1.0)
    weight_R = weight_R / weight_R.mean()

    def batches(shuffle: torch.Generator | None) -> Iterable[Tensor]:
        count = len(user_R)
        order_R = torch.arange(count) if shuffle is None else torch.randperm(count, generator=shuffle)
        return torch.split(order_R, config.batch_size)

    def losses(index_R: Tensor) -> tuple[Tensor, Tensor]:
        logit_MRF = towers(rows, index_R)
        target_RF, known_RF = rows.target_RF[index_R], rows.known_RF[index_R]
        loss_MR = signal_losses(logit_MRF, target_RF, known_RF, mean_F[0], config.watch_weight)
        return loss_MR * weight_R[index_R], user_R[index_R]

    fit_members(towers, batches, losses, weight_UM, generator, config, label="predictor", run_dir=run_dir)
    # Level by out-of-bag rows: a member's own rows would hide how far it is off, see ``level_shifts``.
    with torch.no_grad():
        logit_MRF = torch.cat([towers(rows, index_R) for index_R in batches(None)], dim=1)
        out_MRF = rows.known_RF * (weight_UM[user_R].T == 0).unsqueeze(-1)
        towers.vector_bias[:, 0] += level_shifts(logit_MRF, rows.target_RF, out_MRF * weight_R.unsqueeze(-1))
    return towers


@torch.no_grad()
def _export(towers: _Towers, rows: _Rows, encoded: EncodedRequests) -> EnsemblePredictor:
    """Members laid side by side in wide tables: one matrix product then serves them all."""
    factors_MNd = towers.item_factors(rows.item_features_ND, towers.item_own)

    def wide(weight_MIW: Tensor) -> Tensor:
        return weight_MIW.transpose(0, 1).flatten(1)

    tensors = {
        "event_NE": encoded.history.item_vectors_NE,
        "expected_NF": encoded.history.expected_NF,
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
        "exposure_XMF": towers.exposure.transpose(0, 1),
        "session_MGEF": towers.session,
        "exposure_Ud": encoded.exposure_Ud,
        "exposure_Nd": encoded.towers.item_table(),
        **encoded.towers.tables(),
    }
    settings = {
        "signals": list(encoded.requests.signals),
        "slate_places": encoded.slate_places,
        "ranker_lift": rows.ranker_lift,
        **encoded.settings,
    }
    return EnsemblePredictor(settings, {name: t.detach().contiguous() for name, t in tensors.items()})
