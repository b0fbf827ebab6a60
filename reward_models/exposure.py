"""How likely the log's ranker was to show a video to a user: what it knew of the two, as far as its choices tell.

A ranker knows things that the log lacks, and its choices give them away: a user who was shown cooking over and over
likes cooking, whatever became of the few videos in the log. So users are also described by what they were *shown*
before a request, and videos by whom they were shown to. Feedback plays no part, hence this model cannot have seen the
labels that users are fitted to; what it says of a row comes from a model of other users, or the row itself would
speak for it. In a simulation another ranker chooses, whose choices tell nothing: users keep the vector that the end of
the log gave them.

Fitted by sampled softmax, as the recommender's candidate source is; users and recommender each have such a model of
their own rows.

Legend: B users, T rows of a user, P rows of the log, R rows, N items, U users, D features, d vector width, Y negatives,
V users of the table.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recsim_env.types import NO_ITEM
from reward_models.trainer import TrainConfig, train
from reward_models.users.sequences import SequenceBatch, Sequences, sequence_batches

UNIFORM_WEIGHT = 4.0
"""Rows that a row of uniform exposure counts for: they are few, and they alone say what videos are worth to people who
were not chosen for them. Chosen by held-out rows of uniform exposure."""

BOUND = 4.0
"""Lifts are kept within -BOUND..BOUND: videos that were hardly ever shown are not worlds apart."""

# Chosen by how well the shown videos of later days are told from others.
_PRIOR_ROWS = (5.0, 50.0)  # shown videos that the usual user counts for, one for each mean of what a user was shown
_WIDTH = 16
_NEGATIVES = 1024
_BATCH_USERS = 24  # at most: a log of few users gets smaller batches, not fewer steps
_MIN_BATCHES = 200
_TRAIN = TrainConfig(learning_rate=3e-3, learning_rate_decay=0.7, weight_decay=1.0)
_FOLDS = 4


class ExposureTowers(NamedTuple):
    """Vectors of items, and of users by the mean vector of what they were shown; fitted, or as they stand in a fit."""

    item_Nd: Tensor
    level_N: Tensor
    """How often the ranker shows the item, whoever the user is: a logit."""
    content_Dd: Tensor
    bias_d: Tensor
    shown_Xd: Tensor
    """X: one mean of what was shown after the other."""

    def users(self, features_BD: Tensor, sum_BTd: Tensor, count_BT: Tensor) -> Tensor:
        """Vectors (B, T, d) of users who were shown this many videos with this sum of vectors."""
        means = [sum_BTd / (count_BT.unsqueeze(-1) + rows) for rows in _PRIOR_ROWS]
        content_Bd = features_BD @ self.content_Dd + self.bias_d
        return content_Bd.unsqueeze(1) + torch.cat(means, -1) @ self.shown_Xd

    def before_rows(self, features_UD: Tensor, sequences: Sequences, batch: SequenceBatch, keep: int) -> Tensor:
        """Vectors (B, T + 1, d) of users before the request of each of their rows, and after the last."""
        row_BT = batch.row_BT
        past_BH, _, _ = sequences.past.window(batch.user_B, keep)
        item_BV = torch.cat([past_BH.clamp(min=0), sequences.item_P[row_BT]], 1)
        shown_BV = torch.cat([past_BH != NO_ITEM, batch.valid_BT & ~sequences.uniform_P[row_BT]], 1)
        sum_BVd = (self.item_Nd[item_BV] * shown_BV.unsqueeze(-1)).cumsum(1)
        sum_BVd = torch.cat([torch.zeros_like(sum_BVd[:, :1]), sum_BVd], 1)
        count_BV = torch.cat([torch.zeros_like(shown_BV[:, :1]), shown_BV], 1).cumsum(1)
        begin_BT = (sequences.begin_P[row_BT] - row_BT[:, :1]).clamp(min=0)
        last_B1 = torch.full_like(begin_BT[:, :1], row_BT.shape[1])
        before_BT = torch.cat([begin_BT, last_B1], 1) + past_BH.shape[1]
        return self.users(
            features_UD[batch.user_B],
            sum_BVd.gather(1, before_BT.unsqueeze(-1).expand(-1, -1, self.item_Nd.shape[1])),
            count_BV.gather(1, before_BT),
        )

    def of_window(self, features_BD: Tensor, shown_BH: Tensor) -> Tensor:
        """Vectors (B, d + 2) of users by the videos that a window of their past shows, ``NO_ITEM`` where empty."""
        there_BH = shown_BH != NO_ITEM
        sum_B1d = (self.item_Nd[shown_BH.clamp(min=0)] * there_BH.unsqueeze(-1)).sum(1, keepdim=True)
        vector_Bd = self.users(features_BD, sum_B1d, there_BH.sum(1, keepdim=True))[:, 0]
        return _relative(vector_Bd, self.item_table())

    def item_table(self) -> Tensor:
        """Item vectors (N, d + 2): then the level, and a 1 for the user's own constant."""
        level_N1 = self.level_N.unsqueeze(1)
        return torch.cat([self.item_Nd, level_N1, torch.ones_like(level_N1)], 1)

    def tables(self) -> dict[str, Tensor]:
        """What, beside the table of items, is needed to read users whom the log does not hold."""
        return {
            "exposure_content_Dd": self.content_Dd,
            "exposure_bias_d": self.bias_d,
            "exposure_shown_Xd": self.shown_Xd,
        }

    @classmethod
    def nothing(cls, num_items: int, user_features: int) -> "ExposureTowers":
        """Towers of a ranker that shows everybody everything alike."""
        sizes = ((num_items, 1), (num_items,), (user_features, 1), (1,), (len(_PRIOR_ROWS), 1))
        return cls(*(torch.zeros(size) for size in sizes))

    @classmethod
    def restore(cls, item_table_Nd: Tensor, tables: dict[str, Tensor]) -> "ExposureTowers":
        """The towers of ``item_table`` and ``tables``."""
        names = ("exposure_content_Dd", "exposure_bias_d", "exposure_shown_Xd")
        return cls(item_table_Nd[:, :-2], item_table_Nd[:, -2], *(tables[name] for name in names))


@dataclass(frozen=True)
class Exposure:
    """What exposure says of the rows of a log, and the tables that say it in a simulation."""

    lift_P: Tensor
    """float32 in -BOUND..BOUND: log of how many times likelier than a uniform choice the ranker was to show this video
    to this user, by towers of other users. 0 at rows after the last day."""
    user_Ud: Tensor
    """float32 vectors of users at the end of the log."""
    item_Nd: Tensor
    """float32 vectors of items; a lift is a product of the two, see ``lift``."""
    final_lift_P: Tensor
    """float32: the same as ``lift_P`` by the towers that made these two tables, of all users; 0 at later rows."""
    towers: ExposureTowers
    """Of all users learned from."""


def lift(user: Tensor, item: Tensor) -> Tensor:
    """Lift (...) of users and items with vectors (..., d)."""
    # A cumulative sum: its bytes do not depend on the batch.
    return (user * item).cumsum(-1)[..., -1].clamp(-BOUND, BOUND)


class _Trained(nn.Module):
    """``ExposureTowers`` in training: an item's vector is that of its features and one of its own."""

    item_features_ND: Tensor

    def __init__(self, item_features_ND: Tensor, user_features: int, level_N: Tensor, seed: int) -> None:
        super().__init__()
        self.register_buffer("item_features_ND", item_features_ND, persistent=False)
        generator = torch.Generator().manual_seed(seed)

        def weight(rows: int) -> nn.Parameter:
            bound = max(rows, 1) ** -0.5
            return nn.Parameter(torch.empty(rows, _WIDTH).uniform_(-bound, bound, generator=generator))

        self.item_content = weight(item_features_ND.shape[1])
        self.item_own = nn.Parameter(0.1 * torch.randn(len(item_features_ND), _WIDTH, generator=generator))
        self.item_level = nn.Parameter(level_N.clone())
        self.user_content = weight(user_features)
        self.user_bias = nn.Parameter(torch.zeros(_WIDTH))
        self.shown = weight(len(_PRIOR_ROWS) * _WIDTH)
        self.again = nn.Parameter(torch.zeros(()))
        """What it adds to the logit of a video that the user has been shown it."""

    def towers(self) -> ExposureTowers:
        """As they stand."""
        item_Nd = self.item_features_ND @ self.item_content + self.item_own
        return ExposureTowers(item_Nd, self.item_level, self.user_content, self.user_bias, self.shown)


def fit_exposure(
    sequences: Sequences,
    item_features_ND: Tensor,
    user_features_UD: Tensor,
    label_P: Tensor,
    *,
    last_date: int,
    keep: int,
    epochs: int,
    seed: int,
) -> Exposure:
    """Learns what the log's ranker showed to whom.

    Args:
        sequences: the log.
        item_features_ND: float32 (N, D).
        user_features_UD: float32 (U, D); D may be 0.
        label_P: bool, rows to learn from; those of uniform exposure teach nothing.
        last_date: YYYYMMDD, up to which all users' rows count for their vectors.
        keep: past impressions from before the log that count, too.
        epochs: passes over the rows.
        seed: of weights, folds and negatives.
    """
    num_users, shown_P = len(user_features_UD), label_P & ~sequences.uniform_P
    if not shown_P.any():
        towers = ExposureTowers.nothing(len(item_features_ND), user_features_UD.shape[1])
        nothing_P, table_Nd = torch.zeros(len(label_P)), towers.item_table()
        return Exposure(nothing_P, torch.zeros(num_users, table_Nd.shape[1]), table_Nd, nothing_P, towers)
    generator = torch.Generator().manual_seed(seed)
    fold_P = (torch.randperm(num_users, generator=generator) % _FOLDS)[sequences.user_P]
    features = (item_features_ND, user_features_UD)
    lift_P = torch.zeros(len(label_P))
    for fold in range(_FOLDS):
        others_P, own_P = shown_P & (fold_P != fold), label_P & (fold_P == fold)
        if not others_P.any() or not own_P.any():  # among a handful of users
            continue
        towers = _train(sequences, *features, others_P, keep, epochs, seed, f"exposure {fold + 1}/{_FOLDS + 1}")
        lift_P += lifts(towers, user_features_UD, sequences, own_P, keep)
    towers = _train(sequences, *features, shown_P, keep, epochs, seed, f"exposure {_FOLDS + 1}/{_FOLDS + 1}")
    past = (user_features_UD, sequences, sequences.date_P <= last_date, keep)
    final_lift_P = lifts(towers, *past)
    lift_P = torch.where(label_P, lift_P, final_lift_P)  # the others' rows taught these towers nothing
    return Exposure(lift_P, user_vectors(towers, *past), towers.item_table(), final_lift_P, towers)


def _train(
    sequences: Sequences,
    item_features_ND: Tensor,
    user_features_UD: Tensor,
    shown_P: Tensor,
    keep: int,
    epochs: int,
    seed: int,
    label: str,
) -> ExposureTowers:
    """A few seconds, at most a minute: a fit that was killed begins this part again."""
    counts_N = torch.bincount(sequences.item_P[shown_P], minlength=len(item_features_ND)).float() + 1.0
    # Drawn a little more evenly than they were shown, so that rare items' terms vary less; the chance is divided out.
    chance_N = counts_N.pow(0.75)
    log_weight_N = -(chance_N / chance_N.sum() * _NEGATIVES).log()
    trained = _Trained(item_features_ND, user_features_UD.shape[1], (counts_N / counts_N.mean()).log(), seed)
    size = min(_BATCH_USERS, max(1, len(torch.unique(sequences.user_P[shown_P])) // _MIN_BATCHES))

    def batches(generator: torch.Generator) -> Iterator[tuple[SequenceBatch, Tensor]]:
        for batch in sequence_batches(sequences, shown_P, size, generator):
            yield batch, torch.multinomial(chance_N, _NEGATIVES, replacement=True, generator=generator)

    def loss(example: tuple[SequenceBatch, Tensor], _: torch.Generator | None) -> Tensor:
        batch, negative_Y = example
        towers = trained.towers()
        vector_Rd = towers.before_rows(user_features_UD, sequences, batch, keep)[:, :-1][batch.label_BT]
        item_R = sequences.item_P[batch.row_BT[batch.label_BT]]
        positive_R = (vector_Rd * towers.item_Nd[item_R]).sum(-1) + towers.level_N[item_R]
        level_Y = towers.level_N[negative_Y] + log_weight_N[negative_Y]
        negative_RY = vector_Rd @ towers.item_Nd[negative_Y].T + level_Y
        # Whether a ranker shows the same again is a matter of its own. Without it, users would seem to be shown less
        # and less of what they are shown most, since most of that they have seen.
        again_R, again_RY = _shown_before(sequences, batch, keep, negative_Y)
        positive_R = positive_R + trained.again * again_R
        negative_RY = negative_RY + trained.again * again_RY
        # A video that was drawn as its own negative would be pushed both ways.
        negative_RY = negative_RY.masked_fill(item_R.unsqueeze(1) == negative_Y, -torch.inf)
        return (torch.logaddexp(positive_R, negative_RY.logsumexp(-1)) - positive_R).mean()

    train(
        trained,
        batches=batches,
        loss=loss,
        validate=None,
        config=replace(_TRAIN, max_epochs=epochs),
        seed=seed,
        label=label,
        undecayed=("again",),
        quick=("again",),
    )
    return ExposureTowers(*(part.detach() for part in trained.towers()))


def _shown_before(sequences: Sequences, batch: SequenceBatch, keep: int, item_Y: Tensor) -> tuple[Tensor, Tensor]:
    """1 where a user had been shown the video of a labelled row before its request (R,), or these videos (R, Y)."""
    past_BH, _, _ = sequences.past.window(batch.user_B, keep)
    shown_BV = torch.cat([past_BH, torch.where(batch.valid_BT, sequences.item_P[batch.row_BT], NO_ITEM)], 1)
    begin_BT = (sequences.begin_P[batch.row_BT] - batch.row_BT[:, :1]).clamp(min=0) + past_BH.shape[1]
    user_R, step_R = batch.label_BT.nonzero(as_tuple=True)
    item_R, begin_R1 = sequences.item_P[batch.row_BT[user_R, step_R]], begin_BT[user_R, step_R].unsqueeze(1)
    order_V = torch.arange(shown_BV.shape[1])
    again_R = ((shown_BV[user_R] == item_R.unsqueeze(1)) & (order_V < begin_R1)).any(1)
    # When each of the videos was first shown to each user, in a table of the distinct ones and a column for all others.
    distinct_X, place_Y = torch.unique(item_Y, return_inverse=True)
    place_BV = torch.searchsorted(distinct_X, shown_BV).clamp(max=len(distinct_X) - 1)
    place_BV = torch.where(distinct_X[place_BV] == shown_BV, place_BV, len(distinct_X))
    first_BX = torch.full((len(shown_BV), len(distinct_X) + 1), len(order_V))
    first_BX.scatter_reduce_(1, place_BV, order_V.expand_as(shown_BV), "amin")
    again_RY = first_BX[:, place_Y][user_R] < begin_R1
    return again_R.float(), again_RY.float()


@torch.no_grad()
def lifts(towers: ExposureTowers, features_UD: Tensor, sequences: Sequences, label_P: Tensor, keep: int) -> Tensor:
    """Lifts (P,) of rows, 0 elsewhere."""
    lift_P, table_Nd = torch.zeros(len(label_P)), towers.item_table()
    for batch in sequence_batches(sequences, label_P, 4 * _BATCH_USERS):
        vector_Rd = towers.before_rows(features_UD, sequences, batch, keep)[:, :-1][batch.label_BT]
        row_R = batch.row_BT[batch.label_BT]
        lift_P[row_R] = lift(_relative(vector_Rd, table_Nd), table_Nd[sequences.item_P[row_R]])
    return lift_P


@torch.no_grad()
def user_vectors(
    towers: ExposureTowers, features_UD: Tensor, sequences: Sequences, before_P: Tensor, keep: int
) -> Tensor:
    """Vectors (U, d + 2) of all users after these rows."""
    table_Nd = towers.item_table()
    user_Ud = torch.zeros(len(features_UD), table_Nd.shape[1])
    for user_V in torch.split(torch.arange(len(user_Ud)), 4096):
        user_Ud[user_V] = towers.of_window(features_UD[user_V], sequences.past.window(user_V, keep)[0])
    for batch in sequence_batches(sequences, before_P, 4 * _BATCH_USERS):
        vector_Bd = towers.before_rows(features_UD, sequences, batch, keep)[:, -1]
        user_Ud[batch.user_B] = _relative(vector_Bd, table_Nd)
    return user_Ud


def _relative(vector_Rd: Tensor, table_Nd: Tensor) -> Tensor:
    """User vectors (R, d + 2) whose product with an item's is a lift: the log of chance times number of items."""
    vector_Rd = torch.cat([vector_Rd, torch.ones_like(vector_Rd[:, :1])], 1)
    parts = [(part_Rd @ table_Nd[:, :-1].T).logsumexp(1) for part_Rd in torch.split(vector_Rd, 1024)]
    constant_R = math.log(len(table_Nd)) - torch.cat(parts)
    return torch.cat([vector_Rd, constant_R.unsqueeze(1)], 1)
