"""The retriever on planted tastes, and its solution against the normal equations."""

import pytest
import torch

from agents.offline.retriever import FactorisationConfig, MatrixFactorisation, fit_matrix_factorisation
from recsim_env.types import NO_ITEM
from tests.helpers.planted_ratings import GROUPS, planted_ratings

N = 400


def likes(num_users: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = planted_ratings(num_users, N, per_user=20, seed=seed).rows
    rows = rows[rows["like"] == 1]
    return tuple(torch.from_numpy(rows[name].to_numpy("int64")) for name in ("user", "item"))


def test_recovers_planted_tastes_and_beats_popularity_at_50() -> None:
    user, item = likes(200, seed=0)
    is_last = torch.ones(len(user), dtype=torch.bool)
    is_last[:-1] = user[1:] != user[:-1]
    held_out = item[is_last]
    user, item = user[~is_last], item[~is_last]
    model = fit_matrix_factorisation(user, item, N, FactorisationConfig(vector_width=8))
    first = torch.full((200,), len(user)).scatter_reduce(0, user, torch.arange(len(user)), "amin")
    history = item[first.unsqueeze(1) + torch.arange(4)]  # fold in four likes of each user
    score = model.score(history)
    same_group = torch.arange(N) % GROUPS == (torch.arange(200) % GROUPS).unsqueeze(1)
    known = torch.bincount(item, minlength=N) > 0
    inside = torch.where(same_group & known, score, torch.nan).nanmean(dim=1)
    outside = torch.where(~same_group & known, score, torch.nan).nanmean(dim=1)
    assert (inside > 10 * outside.abs()).float().mean() > 0.95
    popularity = torch.bincount(item, minlength=N).float().expand_as(score)
    ours, theirs = (
        (values.scatter(1, history, -torch.inf).topk(50).indices == held_out.unsqueeze(1)).any(dim=1).float().mean()
        for values in (score, popularity)
    )
    assert ours > theirs + 0.15


def test_a_user_vector_minimises_the_stated_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    config = FactorisationConfig(vector_width=3, unobserved_weight=0.3, regularisation=0.7)
    items = torch.randn((6, 3), generator=generator)
    score = MatrixFactorisation(items, config).score(torch.tensor([[4, NO_ITEM, 1]]))[0]
    liked = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    weight = torch.where(liked > 0, 1.0, 0.3)
    user = torch.linalg.lstsq(items, score.unsqueeze(1)).solution[:, 0].requires_grad_()
    loss = (weight * (items @ user - liked).square()).sum() + 0.7 * user.square().sum()
    loss.backward()
    torch.testing.assert_close(user.grad, torch.zeros(3), atol=1e-4, rtol=0)


def test_an_empty_history_says_nothing_and_unknown_items_score_zero() -> None:
    model = fit_matrix_factorisation(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), 5)
    assert model.score(torch.full((1, 3), NO_ITEM)).abs().max() == 0
    assert model.score(torch.tensor([[1]]))[0, [0, 3, 4]].abs().max() == 0


def test_repeats_count_once_and_seeds_decide() -> None:
    user, item = likes(40, seed=2)
    config = FactorisationConfig(vector_width=4)
    once = fit_matrix_factorisation(user, item, N, config).items_Nd
    twice = fit_matrix_factorisation(torch.cat([user, user]), torch.cat([item, item]), N, config).items_Nd
    assert torch.equal(once, twice)
    other = fit_matrix_factorisation(user, item, N, FactorisationConfig(vector_width=4, seed=1)).items_Nd
    assert not torch.equal(once, other)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="at least one liked item"):
        fit_matrix_factorisation(torch.tensor([]), torch.tensor([]), 3)
    with pytest.raises(ValueError, match=r"0\.\.2, got 1\.\.3"):
        fit_matrix_factorisation(torch.tensor([0, 0]), torch.tensor([1, 3]), 3)
    with pytest.raises(ValueError, match="sweeps must be at least 1"):
        FactorisationConfig(sweeps=0)
    with pytest.raises(ValueError, match="must be positive"):
        FactorisationConfig(regularisation=0.0)
