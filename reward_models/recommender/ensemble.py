"""Fitting M members side by side: bootstrap of users, out-of-bag early stopping, one pass for all.

Every trainable tensor of such a model has M as its first dimension, so one backward pass trains all members
and one member's best epoch can be kept without regard to the others. This is the loop of the recommender's models;
learned users have another, ``reward_models.trainer``, which stops on days and users that the caller names and can go on
after a kill. These fits take seconds to minutes and are simply begun again.

Shape legend: M members, U users, R rows of a batch.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

Batch = TypeVar("Batch")


def bootstrap_weights(num_users: int, taking_part: Tensor, members: int, generator: torch.Generator) -> Tensor:
    """Poisson(1) weights (U, M) of users, which resample whole users; 0 leaves a user out of a member.

    Args:
        num_users: U, size of the table.
        taking_part: int64 codes of the users that have rows. Each member is sure to have one of them in
            and one of them out.
        members: M.
        generator: source of the draws.

    Raises:
        ValueError: fewer than two users take part.
    """
    present = torch.unique(taking_part)
    if len(present) < 2:
        raise ValueError(f"need rows of at least 2 users to fit and to validate, got {len(present)}")
    weight_UM = torch.poisson(torch.ones(num_users, members), generator=generator)
    # About a third of the users have weight 0 in a member and are its validation set. Among a handful of users there
    # may be none, or nobody left to learn from, so one of each kind is appointed, another one in each member.
    for member in range(members):
        weight_UM[present[member % len(present)], member] = 0.0
        kept = present[(member + 1) % len(present)]
        weight_UM[kept, member] = weight_UM[kept, member].clamp(min=1.0)
    return weight_UM


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How long and how fast to fit; the settings that all models of a recommender share."""

    learning_rate: float = 3e-3
    """Adam's step size."""
    batch_size: int = 1024
    """Rows of a training step."""
    max_epochs: int = 30
    """Upper bound on passes over the rows."""
    patience: int = 2
    """Epochs without a better out-of-bag loss in any member before training stops."""

    def __post_init__(self) -> None:
        at_least_one(self, "batch_size", "max_epochs", "patience")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


def at_least_one(config: object, *names: str) -> None:
    """Refuses settings below 1.

    Raises:
        ValueError: one of the named fields is.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")


def fit_members(
    model: torch.nn.Module,
    batches: Callable[[torch.Generator | None], Iterable[Batch]],
    losses: Callable[[Batch], tuple[Tensor, Tensor]],
    weight_UM: Tensor,
    generator: torch.Generator,
    settings: FitSettings,
    *,
    label: str,
    run_dir: str | Path | None = None,
) -> Tensor:
    """Trains until no member improves on its out-of-bag users; leaves each at its own best epoch.

    Args:
        model: every parameter has M as its first dimension. A parameter may carry attributes ``weight_decay`` and
            ``pace``, how much further than usual a step takes it.
        batches: called once an epoch; shuffles by the generator it is given, ``None`` in validation.
        losses: a batch's losses (M, R) and the users (R,) they belong to.
        weight_UM: bootstrap weights.
        generator: fixes the order of rows.
        settings: how long and how fast; ``batch_size`` is for ``batches`` to keep.
        label: names the progress bar and the TensorBoard tag.
        run_dir: TensorBoard folder; ``None`` writes nothing.

    Returns:
        Each member's best out-of-bag loss, (M,).
    """
    groups = [
        {
            "params": [p],
            "lr": settings.learning_rate * getattr(p, "pace", 1.0),
            "weight_decay": getattr(p, "weight_decay", 0.0),
        }
        for p in model.parameters()
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    best_M = torch.full((weight_UM.shape[1],), torch.inf)
    best = [p.detach().clone() for p in model.parameters()]
    waited = 0
    with ExitStack() as stack:
        writer = stack.enter_context(SummaryWriter(str(run_dir))) if run_dir else None
        bar = stack.enter_context(tqdm(range(settings.max_epochs), desc=label, disable=None))
        for epoch in bar:
            for batch in batches(generator):
                loss_MR, user_R = losses(batch)
                # Summed over members, not averaged: each then has the gradient it would have alone.
                loss = (loss_MR * weight_UM[user_R].T).mean(dim=1).sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            out_M = _out_of_bag(batches, losses, weight_UM)
            better_M = out_M < best_M
            best_M = torch.where(better_M, out_M, best_M)
            # Members overfit at different epochs, so each keeps its own best one.
            for kept, parameter in zip(best, model.parameters(), strict=True):
                kept[better_M] = parameter.detach()[better_M]
            bar.set_postfix(out_of_bag=f"{float(out_M.mean()):.4f}")
            if writer is not None:
                writer.add_scalar(f"train/{label}_out_of_bag", float(out_M.mean()), epoch)
            waited = 0 if bool(better_M.any()) else waited + 1
            if waited >= settings.patience:
                break
    with torch.no_grad():
        for kept, parameter in zip(best, model.parameters(), strict=True):
            parameter.copy_(kept)
    return best_M


@torch.no_grad()
def _out_of_bag(
    batches: Callable[[torch.Generator | None], Iterable[Batch]],
    losses: Callable[[Batch], tuple[Tensor, Tensor]],
    weight_UM: Tensor,
) -> Tensor:
    """Mean loss (M,) of each member over the users it was not trained on."""
    total_M = torch.zeros(weight_UM.shape[1])
    count_M = torch.zeros(weight_UM.shape[1])
    for batch in batches(None):
        loss_MR, user_R = losses(batch)
        out_MR = (weight_UM[user_R].T == 0).to(loss_MR.dtype)
        total_M += (loss_MR * out_MR).sum(dim=1)
        count_M += out_MR.sum(dim=1)
    return total_M / count_M
