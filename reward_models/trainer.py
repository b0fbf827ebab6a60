"""The trainer of models that take minutes to hours: early stopping, progress, checkpoints that a killed run resumes.

Learned users, the logging clone, rerankers of logged slates and the offline protocol go through it. The recommender's
own ensembles stop member by member on bootstrapped users and have a loop of their own
(``reward_models.recommender.ensemble``).

After each epoch the model, the best model so far and the optimiser are written as one safetensors file,
then a JSON file that names it replaces the previous one in a single step. A run that is killed goes on
from the last finished epoch and ends with the same weights, since every epoch draws from its own generator.
"""

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from recsim_env.files import claim, read_json, write_json, write_whole

Batch = TypeVar("Batch")
QUICK = 30.0
"""How much further a step takes the parameters that are named ``quick``."""

_STATE_FILE = "train.json"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how fast to train."""

    max_epochs: int = 10
    """Epochs at most; all of them when there is nothing to validate on."""
    patience: int = 2
    """Epochs without a better validation loss before training stops."""
    learning_rate: float = 2e-3
    """AdamW's step size in the first epoch."""
    learning_rate_decay: float = 0.35
    """Factor on the step size from one epoch to the next."""
    weight_decay: float = 0.3
    """AdamW's pull of weights towards zero."""
    gradient_clip: float = 5.0
    """Largest norm of a gradient."""
    averaging: float = 0.995
    """The weights kept are a running average over steps; share of it that a step leaves as it was, at most.
    In the first thousand steps it is less, so that about the last tenth of all steps counts."""

    def __post_init__(self) -> None:
        if self.max_epochs < 1 or self.patience < 1:
            raise ValueError(f"need max_epochs and patience of at least 1, got {self.max_epochs}, {self.patience}")
        if not 0.0 <= self.averaging < 1.0:
            raise ValueError(f"averaging must be in [0, 1), got {self.averaging}; 0 keeps the last step alone")
        if not (self.learning_rate > 0 and 0 < self.learning_rate_decay <= 1 and self.gradient_clip > 0):
            raise ValueError(
                "need learning_rate and gradient_clip above 0 and learning_rate_decay in (0, 1], got "
                f"{self.learning_rate}, {self.gradient_clip} and {self.learning_rate_decay}"
            )


@dataclass(frozen=True)
class TrainResult:
    """How a training went; the model holds the best epoch's weights."""

    best_epoch: int
    """Epochs after which the kept weights stood, 1 being the first."""
    validation_losses: tuple[float, ...]
    """One for each epoch; empty without validation."""


@dataclass
class _Progress:
    epoch: int = 0
    best_epoch: int = 0
    losses: tuple[float, ...] = ()
    finished: bool = False


def train(
    model: nn.Module,
    *,
    batches: Callable[[torch.Generator], Iterable[Batch]],
    loss: Callable[[Batch, torch.Generator], Tensor],
    validate: Callable[[], float] | None,
    config: TrainConfig,
    seed: int,
    run_dir: Path | None = None,
    label: str = "fit",
    undecayed: tuple[str, ...] = (),
    quick: tuple[str, ...] = (),
    identity: dict[str, Any] | None = None,
) -> TrainResult:
    """Fits ``model`` in place.

    Args:
        model: its parameters are trained; training mode is on while ``loss`` runs, off in ``validate``.
        batches: one epoch of batches; every draw comes from the generator.
        loss: a scalar to be minimised; dropout and the like draw from the generator.
        validate: a loss on held-out data, lower is better; ``None`` trains for all of ``max_epochs``.
        config: how long and how fast.
        seed: with the epoch's number, seeds the generators.
        run_dir: holds checkpoints and TensorBoard files; ``None`` keeps nothing and cannot resume.
        label: shown beside the progress bar.
        undecayed: ends of the names of parameters that weight decay spares.
        quick: the same of those that step ``QUICK`` times as far: levels that a count cannot start near their place,
            which some hundred steps of the usual size would not reach.
        identity: JSON values that tell this run from others: the model's settings and a digest of the data. A run
            resumes only where they are the same.

    Returns:
        The best epoch and the validation losses.

    Raises:
        ValueError: ``run_dir`` holds a run with other settings, or the validation loss is not finite.
    """
    optimiser = _optimiser(model, undecayed, quick, config)
    average, best = _copy(model.state_dict()), _copy(model.state_dict())
    settings = {"config": asdict(config), "seed": seed, "validated": validate is not None, "identity": identity or {}}
    progress = _Progress()
    if run_dir is not None:
        claim(run_dir, settings)
        progress = _load(run_dir, model, average, best, optimiser)
    writer = SummaryWriter(str(run_dir)) if run_dir is not None and not progress.finished else None
    while not progress.finished:
        train_loss = _epoch(model, average, optimiser, batches, loss, config, seed, progress.epoch, label)
        progress.epoch += 1
        if validate is not None:
            progress.losses += (_validated(model, average, validate),)
            if not math.isfinite(progress.losses[-1]):
                raise ValueError(
                    f"{label}: the validation loss is {progress.losses[-1]} after epoch {progress.epoch}; look for NaN "
                    "in the data, or lower the learning rate"
                )
        if validate is None or progress.losses[-1] < min(progress.losses[:-1], default=float("inf")):
            progress.best_epoch = progress.epoch
            best = _copy(average)
        waited = progress.epoch - progress.best_epoch
        progress.finished = progress.epoch >= config.max_epochs or waited >= config.patience
        if writer is not None:
            writer.add_scalar("train/loss", train_loss, progress.epoch)
            if progress.losses:
                writer.add_scalar("validation/loss", progress.losses[-1], progress.epoch)
        if run_dir is not None:
            _save(run_dir, model, average, best, optimiser, progress)
    if writer is not None:
        writer.close()
    model.load_state_dict(best)
    model.eval()
    return TrainResult(progress.best_epoch, progress.losses)


def _optimiser(
    model: nn.Module, undecayed: tuple[str, ...], quick: tuple[str, ...], config: TrainConfig
) -> torch.optim.Optimizer:
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.endswith(undecayed), name.endswith(quick)), []).append(parameter)
    # Weight decay works through the step size: what steps further would be pulled further.
    settings: list[dict[str, Any]] = [
        {"params": parameters, "pace": pace, "weight_decay": 0.0 if is_spared else config.weight_decay / pace}
        for (is_spared, is_quick), parameters in groups.items()
        for pace in [QUICK if is_quick else 1.0]
    ]
    return torch.optim.AdamW(settings, lr=config.learning_rate)


def _epoch(
    model: nn.Module,
    average: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    batches: Callable[[torch.Generator], Iterable[Batch]],
    loss: Callable[[Batch, torch.Generator], Tensor],
    config: TrainConfig,
    seed: int,
    epoch: int,
    label: str,
) -> float:
    # A generator for each epoch: a resumed run then draws what the whole one would have drawn.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63))
    for group in optimiser.param_groups:
        group["lr"] = group["pace"] * config.learning_rate * config.learning_rate_decay**epoch
    model.train()
    total, steps = 0.0, 0
    done = _steps_done(optimiser)
    bar = tqdm(batches(generator), desc=f"{label} epoch {epoch + 1}", disable=not sys.stderr.isatty(), leave=False)
    for batch in bar:
        value = loss(batch, generator)
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimiser.step()
        # The average over steps is what is kept and validated: it has less of the last batches' noise. Young averages
        # forget faster, or they would keep the initial weights.
        keep = min(config.averaging, (1 + done) / (10 + done))
        _move_towards(average, model.state_dict(), 1.0 - keep)
        done += 1
        total, steps = total + float(value.detach()), steps + 1
        bar.set_postfix(loss=f"{total / steps:.4f}")
    if steps == 0:
        raise ValueError(f"{label}: no batch to train on; choose users and days that have rows in the log")
    return total / steps


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _steps_done(optimiser: torch.optim.Optimizer) -> int:
    return max((int(state["step"]) for state in optimiser.state.values()), default=0)


def _move_towards(average: dict[str, Tensor], current: dict[str, Tensor], share: float) -> None:
    for name, tensor in average.items():
        if tensor.is_floating_point():  # counters and the like are no averages of anything
            tensor.lerp_(current[name], share)
        else:
            tensor.copy_(current[name])


def _validated(model: nn.Module, average: dict[str, Tensor], validate: Callable[[], float]) -> float:
    """Validation loss of the averaged weights; the model goes on with its own."""
    own = _copy(model.state_dict())
    model.load_state_dict(average)
    model.eval()
    with torch.no_grad():
        loss = float(validate())
    model.load_state_dict(own)
    return loss


def _save(
    run_dir: Path,
    model: nn.Module,
    average: dict[str, Tensor],
    best: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    progress: _Progress,
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in state.items()}
    weights = run_dir / f"epoch-{progress.epoch}.safetensors"
    write_whole(weights, lambda path: save_file({n: t.contiguous() for n, t in tensors.items()}, path))
    # The weights lie there before the file that names them, so a run killed in between has the older pair.
    write_json(run_dir / _STATE_FILE, {"progress": asdict(progress), "weights": weights.name})
    for old in run_dir.glob("epoch-*.safetensors*"):
        if old != weights:
            old.unlink()


def _load(
    run_dir: Path,
    model: nn.Module,
    average: dict[str, Tensor],
    best: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
) -> _Progress:
    """Brings everything back to the last finished epoch; leaves it alone when there is none."""
    path = run_dir / _STATE_FILE
    if not path.exists():
        return _Progress()
    saved = read_json(path)
    tensors = load_file(run_dir / saved["weights"])
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    average.update({name[8:]: tensor for name, tensor in tensors.items() if name.startswith("average.")})
    best.update({name[5:]: tensor for name, tensor in tensors.items() if name.startswith("best.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, entry = name.split(".", 2)
            state.setdefault(int(index), {})[entry] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    saved["progress"]["losses"] = tuple(saved["progress"]["losses"])
    return _Progress(**saved["progress"])
