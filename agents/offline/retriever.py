"""Matrix factorisation of positive feedback by alternating least squares (Hu, Koren & Volinsky 2008).

A user's vector is solved from the user's history when it is asked for (fold-in), so users whom the fit has
never met are served like all others, and a score depends on nothing but the fitted items and the history given.
Every item is fitted towards 1 for the users who liked it and, with a small weight, towards 0 for the rest.

Shape legend: B requests, H history, N items, M items of the fit, U users, R rows, d vector width, e its square, X and Y
the rows and columns of a table of likes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from agents.method import require_at_least, require_positive
from recsim_env.types import NO_ITEM


@dataclass(frozen=True, kw_only=True)
class FactorisationConfig:
    """How the vectors are fitted."""

    vector_width: int = 32
    """d: length of a vector. Memory grows with its square times the number of items or users."""
    sweeps: int = 6
    """How often users and then items are solved."""
    unobserved_weight: float = 0.3
    """Weight of a pair that was not liked, next to 1 for one that was."""
    regularisation: float = 1.0
    """Weight of a vector's squared length."""
    seed: int = 0
    """Seed of the initial item vectors."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "vector_width", "sweeps")
        require_positive(self, "unobserved_weight", "regularisation")


class MatrixFactorisation:
    """Fitted item vectors; scores the whole catalogue for any history.

    Args:
        items_Nd: float32 item vectors.
        config: the settings they were fitted with.
    """

    def __init__(self, items_Nd: Tensor, config: FactorisationConfig):
        self.items_Nd = items_Nd
        self.config = config

    def score(self, history_BH: Tensor) -> Tensor:
        """Scores (B, N) float32, near 1 for what fits the history and near 0 elsewhere.

        Args:
            history_BH: int64 codes of items liked, ``NO_ITEM`` where empty. An empty history scores 0 throughout.
        """
        present_BH = history_BH != NO_ITEM
        row_R = present_BH.nonzero()[:, 0]
        liked_BN = _liked(row_R, history_BH[present_BH], len(history_BH), len(self.items_Nd))
        return _solve(liked_BN, self.items_Nd, self.config) @ self.items_Nd.T


def fit_matrix_factorisation(
    user_R: Tensor, item_R: Tensor, num_items: int, config: FactorisationConfig | None = None
) -> MatrixFactorisation:
    """Fits item vectors to pairs of users and items they liked.

    Args:
        user_R: int64 user codes.
        item_R: int64 item codes.
        num_items: N: items of the catalogue; those without a row get the zero vector.
        config: settings.

    Raises:
        ValueError: there are no rows, or an item code lies outside the catalogue.
    """
    config = config or FactorisationConfig()
    if not len(item_R):
        raise ValueError("matrix factorisation needs at least one liked item, got no rows")
    if int(item_R.min()) < 0 or int(item_R.max()) >= num_items:
        raise ValueError(f"item codes must lie in 0..{num_items - 1}, got {int(item_R.min())}..{int(item_R.max())}")
    known_U, user_R = torch.unique(user_R, return_inverse=True)
    known_M, item_R = torch.unique(item_R, return_inverse=True)
    liked_UM = _liked(user_R, item_R, len(known_U), len(known_M))
    liked_MU = liked_UM.T.tocsr()
    generator = torch.Generator().manual_seed(config.seed)
    vectors_Md = torch.randn((len(known_M), config.vector_width), generator=generator) / config.vector_width**0.5
    for _ in range(config.sweeps):
        vectors_Md = _solve(liked_MU, _solve(liked_UM, vectors_Md, config), config)
    items_Nd = torch.zeros(num_items, config.vector_width)
    items_Nd[known_M] = vectors_Md
    return MatrixFactorisation(items_Nd, config)


def _liked(row_R: Tensor, column_R: Tensor, num_rows: int, num_columns: int) -> csr_array:
    """Ones (rows, columns) where a pair was liked, however often."""
    places = (row_R.numpy(), column_R.numpy())
    liked = csr_array((np.ones(len(row_R), np.float32), places), shape=(num_rows, num_columns))
    liked.data[:] = 1.0
    return liked


def _solve(liked: csr_array, others_Yd: Tensor, config: FactorisationConfig) -> Tensor:
    """Vectors (X, d) of the rows of ``liked`` given those of its columns: ridge regressions, all at once."""
    # Hu, Koren and Volinsky's trick: the sum over all pairs is one (d, d) matrix, and only liked pairs, which are few,
    # add their difference in weight. A sparse product with the columns' outer products adds these up for every row.
    d = others_Yd.shape[1]
    everyone_dd = config.unobserved_weight * others_Yd.T @ others_Yd + config.regularisation * torch.eye(d)
    outer_Ye = (others_Yd.unsqueeze(2) * others_Yd.unsqueeze(1)).flatten(1)
    liked_Xdd = torch.from_numpy(liked @ outer_Ye.numpy()).view(-1, d, d)
    factor_Xdd = torch.linalg.cholesky(everyone_dd + (1 - config.unobserved_weight) * liked_Xdd)
    return torch.cholesky_solve(torch.from_numpy(liked @ others_Yd.numpy()).unsqueeze(2), factor_Xdd).squeeze(2)
