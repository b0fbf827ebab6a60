"""Builds the short-video world: its latent tables, its catalogue, its users and what they did before.

The recommender's side (features, histories, candidate source, predictor) is made from what a recommender
could have: tags, durations, coarse profiles, and a small log drawn under uniform exposure.

Shape legend: N items, U users, L taste, T tags, K places, F signals, P past impressions.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsim_env.assumptions import DeclaredContext, DeclaredLeave
from recsim_env.candidates import LogRatePredictor, UniformCandidates
from recsim_env.data.histories import Histories
from recsim_env.known_worlds.parameters import (
    LONG_VIEW_AT,
    LONG_VIEW_RATIO,
    NUM_TAGS,
    TASTE_SIZE,
    Dials,
    ShortVideoParameters,
)
from recsim_env.known_worlds.response import ShortVideoResponse
from recsim_env.randomness import address, uniform
from recsim_env.recommender import Recommender
from recsim_env.types import CONTEXT
from recsim_env.world import Catalogue, Users, World

Array = npt.NDArray[np.float64]

PROFILE_NOISE = 1.0
"""Noise in the user features that stand for declared interests, in units of taste itself."""

_PROVENANCE = {
    "kind": "synthetic: hand-written users, known truth",
    "parameters_sha256": ShortVideoParameters().digest(),
}
_ITEM_FEATURES = ("log_duration", "log_reach", *(f"tag_{i}" for i in range(TASTE_SIZE)))
_USER_FEATURES = ("log_activity", *(f"profile_{i}" for i in range(TASTE_SIZE)))
_FIRST_ITEM_ID = 100_000
_FIRST_USER_ID = 1_000


def short_video_world(
    *,
    num_users: int = 2000,
    num_items: int = 2000,
    seed: int = 0,
    list_effect: float = 1.0,
    drift: float = 1.0,
    hidden_trait: float = 1.0,
    auxiliary: float = 1.0,
    history_slates: int = 4,
) -> World:
    """A synthetic world of short videos whose every probability is known, calibrated to KuaiRand-Pure.

    Args:
        num_users: users.
        num_items: videos.
        seed: seed of the latent tables and of the users' histories.
        list_effect: strength of what earlier places of a slate do to later ones; 0 off, 1 default.
        drift: strength of what feedback does to taste, mood and satiation.
        hidden_trait: strength of the trait that the logging policy sees and the log lacks.
        auxiliary: how much likes and their kin tell about interest beyond the watch time.
        history_slates: slates of six uniform videos that each user has seen before the first session.

    Raises:
        ValueError: fewer than 1 user or 10 items, a dial outside 0..10, a negative history.

    Example:
        >>> world = short_video_world(num_users=20, num_items=60)
        >>> len(world.users), len(world.catalogue), world.signals[0]
        (20, 60, 'watch_time')
    """
    _check_sizes(num_users, num_items, history_slates)
    dials = Dials(list_effect=list_effect, drift=drift, hidden_trait=hidden_trait, auxiliary=auxiliary)
    p = ShortVideoParameters()
    tag_TL, pair_TT = _tags(p, np.random.default_rng([seed, 0]))
    items, catalogue, reach_N = _items(p, num_items, tag_TL, np.random.default_rng([seed, 1]))
    user_UD, features_UD = _users(p, num_users, np.random.default_rng([seed, 2]))
    response = ShortVideoResponse(items, catalogue.tag_N, _float(pair_TT), user_UD, dials, p)
    histories, predictor = _onboard(response, num_items, history_slates, seed)
    leave, contexts = DeclaredLeave(), DeclaredContext()
    return World(
        name="short_video",
        signals=response.signals,
        catalogue=catalogue,
        users=Users(
            ids=_FIRST_USER_ID + np.arange(num_users),
            features_UD=features_UD,
            feature_names=_USER_FEATURES,
            histories=histories,
        ),
        population_P=torch.arange(num_users),
        response=response,
        leave=leave,
        contexts=contexts,
        recommender=Recommender(predictor=predictor, candidates=UniformCandidates(reach_N, seed)),
        declared={"leave": leave.config(), "contexts": contexts.config()},
        provenance={**_PROVENANCE, "seed": seed, "dials": dataclasses.asdict(dials)},
    )


def _check_sizes(num_users: int, num_items: int, history_slates: int) -> None:
    if num_users < 1 or num_items < 10 or history_slates < 0:
        raise ValueError(
            "need at least 1 user, 10 items and no fewer than 0 history slates, got "
            f"num_users={num_users}, num_items={num_items}, history_slates={history_slates}"
        )


def _tags(p: ShortVideoParameters, rng: np.random.Generator) -> tuple[Array, Array]:
    """Unit vectors of the tags, and what a tag does to the interest in a later one."""
    tag_TL = _unit(rng.standard_normal((NUM_TAGS, TASTE_SIZE)))
    kinship_TT = np.maximum(tag_TL @ tag_TL.T, 0.0)
    leads_well_TT = rng.random((NUM_TAGS, NUM_TAGS)) < p.follow_up_share
    np.fill_diagonal(leads_well_TT, False)
    return tag_TL, p.follow_up * leads_well_TT - p.repeat_fatigue * kinship_TT


def _items(
    p: ShortVideoParameters, num_items: int, tag_TL: Array, rng: np.random.Generator
) -> tuple[Tensor, Catalogue, Tensor]:
    """The latent table of the videos, what a recommender knows of them, and their log reach."""
    share_T = (np.arange(NUM_TAGS) + p.tag_offset) ** -p.tag_exponent
    tag_N = rng.choice(NUM_TAGS, size=num_items, p=share_T / share_T.sum())
    own_NL = _unit(rng.standard_normal((num_items, TASTE_SIZE)))
    vector_NL = _unit(np.sqrt(p.tag_share) * tag_TL[tag_N] + np.sqrt(1 - p.tag_share) * own_NL)
    quality_N, reach_noise_N, trait_N, like_N, length_N = rng.standard_normal((5, num_items))
    reach_N = p.reach * (p.reach_quality * quality_N + np.sqrt(1 - p.reach_quality**2) * reach_noise_N)
    duration_N = np.exp(p.duration_log_mean + p.duration_log_std * length_N).clip(p.shortest, p.longest)

    def by_duration(table: tuple[float, ...]) -> Array:
        values: Array = np.interp(np.log(duration_N), np.log(p.durations), table)
        return values

    columns = [
        p.base_interest + p.quality * quality_N + by_duration(p.duration_interest),
        p.trait * trait_N,
        p.like_video * like_N + p.like_duration * (np.log(duration_N) - p.duration_log_mean),
        by_duration(p.duration_location),
        by_duration(p.duration_scale),
        duration_N,
        np.minimum(LONG_VIEW_AT, LONG_VIEW_RATIO * duration_N),
        by_duration(p.replay_share),
        by_duration(p.replay_scale),
    ]
    features_ND = np.column_stack([length_N, reach_N, tag_TL[tag_N] * np.sqrt(TASTE_SIZE)])
    catalogue = Catalogue(
        ids=_FIRST_ITEM_ID + np.arange(num_items),
        duration_N=_float(duration_N),
        features_ND=_float(features_ND.clip(-5, 5)),
        feature_names=_ITEM_FEATURES,
        tag_N=torch.from_numpy(tag_N),
    )
    return _float(np.column_stack([vector_NL, *columns])), catalogue, _float(reach_N)


def _users(p: ShortVideoParameters, num_users: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The latent table of the users, and what a recommender knows of them."""
    taste_UL = p.taste * rng.standard_normal((num_users, TASTE_SIZE))
    activity_U, bias_U, trait_U, like_U = rng.standard_normal((4, num_users))
    profile_UL = taste_UL / p.taste + PROFILE_NOISE * rng.standard_normal(taste_UL.shape)
    bias_U = p.user_bias * bias_U + p.activity_bias * activity_U
    latent_UD = np.column_stack([taste_UL, bias_U, trait_U, p.like_user * like_U])
    features_UD = np.column_stack([activity_U, profile_UL / np.sqrt(1 + PROFILE_NOISE**2)])
    return _float(latent_UD), _float(features_UD.clip(-5, 5))


def _onboard(
    response: ShortVideoResponse, num_items: int, num_slates: int, seed: int, slate_size: int = 6
) -> tuple[Histories, LogRatePredictor]:
    """A small log under uniform exposure: every user's history, and the rates that it teaches."""
    num_users = len(response.user_UD)
    user_B = torch.arange(num_users)
    key_B = address(torch.full((num_users,), seed), user_B)
    context_BX = torch.zeros(num_users, len(CONTEXT))
    state_BS = response.start(user_B)
    seen_BK = torch.ones(num_users, slate_size, dtype=torch.bool)
    items, signals = [], []
    for slate in range(max(num_slates, 1)):
        draws_BKJ = uniform(address(key_B, slate), slate_size, 1 + response.num_draws)
        items_BK = (draws_BKJ[..., 0] * num_items).long().clamp(max=num_items - 1)
        signals_BKF = response.respond(state_BS, context_BX, items_BK, draws_BKJ[..., 1:])
        state_BS = response.observe(state_BS, context_BX, items_BK, signals_BKF, seen_BK)
        items.append(items_BK)
        signals.append(signals_BKF)
    item_P = torch.cat(items, dim=1).reshape(-1)
    signals_PF = torch.cat(signals, dim=1).reshape(len(item_P), -1)
    predictor = LogRatePredictor.count(item_P, signals_PF, num_items)
    kept = num_slates * slate_size  # none are kept when users are to start without a history
    rows = slice(None) if kept else slice(0)
    histories = Histories(
        start_U1=torch.arange(num_users + 1) * kept,
        item_P=item_P[rows],
        feedback_PF=signals_PF[rows],
        known_PF=torch.ones_like(signals_PF[rows], dtype=torch.bool),
    )
    return histories, predictor


def _unit(x: Array) -> Array:
    norm: Array = np.sqrt((x**2).sum(axis=-1, keepdims=True))
    return x / norm


def _float(x: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
