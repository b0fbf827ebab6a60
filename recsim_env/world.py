"""A world: catalogue, users and the models that make them act, saved as one folder.

A folder holds ``world.json`` (what it is, where it came from, what was declared), ``tables.safetensors``
(catalogue, users, histories), ``models.safetensors`` (every model's tensors) and ``fidelity.json``. A model
is stored as its class path, its settings and its tensors; nothing is ever unpickled.

Shape legend: N items, U users, D features, P users to draw from.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsim_env.data.histories import Histories
from recsim_env.files import whole_folder
from recsim_env.plugins import load_object
from recsim_env.types import (
    WATCH_TIME,
    CandidateSource,
    ContextSource,
    LeaveModel,
    ListEffect,
    ListEvaluator,
    Predictor,
    ResponseModel,
    Saveable,
)

FORMAT = 2
"""Version of the folder layout; raised when an older reader would misread it."""

FILES = ("world.json", "tables.safetensors", "models.safetensors", "fidelity.json")
"""What a world folder holds; ``World.save`` replaces no other."""

_MODELS = ("response", "leave", "list_effect", "contexts", "predictor", "candidates", "evaluator")


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The videos of a world."""

    ids: np.ndarray
    """Item ids as in the source, (N,)."""
    duration_N: Tensor
    """float32 s, never NaN."""
    features_ND: Tensor
    """float32, what a recommender knows of each item."""
    feature_names: tuple[str, ...]
    tag_N: Tensor
    """int64 main tag, -1 where none."""

    def __len__(self) -> int:
        return len(self.duration_N)


@dataclass(frozen=True, kw_only=True)
class Users:
    """The users of a log: everyone, whichever worlds they act in."""

    ids: np.ndarray
    """User ids as in the source, (U,)."""
    features_UD: Tensor
    """float32, what a recommender knows of each user."""
    feature_names: tuple[str, ...]
    histories: Histories
    """What each user did before the simulated days."""

    def __len__(self) -> int:
        return len(self.features_UD)


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything a simulator needs; build one by hand or with ``experiments.build_world``."""

    name: str
    signals: tuple[str, ...]
    catalogue: Catalogue
    users: Users
    population_P: Tensor
    """int64 codes of the users that sessions are drawn from."""
    response: ResponseModel
    leave: LeaveModel
    contexts: ContextSource
    predictor: Predictor
    candidates: CandidateSource
    list_effect: ListEffect | None = None
    evaluator: ListEvaluator | None = None
    """The recommender's own list evaluator, if one was fitted."""
    declared: dict[str, Any] = field(default_factory=dict)
    """Parameters that no log taught."""
    provenance: dict[str, Any] = field(default_factory=dict)
    fidelity: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    """Environment settings this world is meant for (``envs.EnvConfig``); keywords override them."""

    def __post_init__(self) -> None:
        if not self.signals or self.signals[0] != WATCH_TIME:
            raise ValueError(f"the first signal of a world must be {WATCH_TIME!r}, got {self.signals}")
        if tuple(self.response.signals) != tuple(self.signals):
            raise ValueError(
                f"world {self.name!r} declares the signals {self.signals}, its response model "
                f"{tuple(self.response.signals)}; they must be the same"
            )
        if not len(self.population_P):
            raise ValueError(f"world {self.name!r} has no users to draw sessions from")
        if int(self.population_P.max()) >= len(self.users) or int(self.population_P.min()) < 0:
            raise ValueError(
                f"world {self.name!r}: population codes must lie in 0..{len(self.users) - 1}, got "
                f"{int(self.population_P.min())}..{int(self.population_P.max())}"
            )

    def replace(self, **changes: Any) -> "World":
        """A copy with some fields changed, for instance another response model."""
        return dataclasses.replace(self, **changes)

    def to(self, device: torch.device | str) -> "World":
        """The same world on another device.

        Raises:
            ValueError: there is no such device.
        """
        _check_device(device)
        catalogue = dataclasses.replace(
            self.catalogue,
            duration_N=self.catalogue.duration_N.to(device),
            features_ND=self.catalogue.features_ND.to(device),
            tag_N=self.catalogue.tag_N.to(device),
        )
        users = dataclasses.replace(
            self.users,
            features_UD=self.users.features_UD.to(device),
            histories=self.users.histories.to(device),
        )
        models = {name: _moved(getattr(self, name), device) for name in _MODELS}
        return self.replace(catalogue=catalogue, users=users, population_P=self.population_P.to(device), **models)

    def save(self, folder: str | Path) -> Path:
        """Writes the world folder; it appears whole or not at all, replacing an older world.

        Raises:
            ValueError: a model cannot be saved, or the folder holds anything else than a world.
        """
        with whole_folder(folder, FILES) as aside:
            self._write(aside)
        return Path(folder)

    def _write(self, folder: Path) -> None:
        models, tensors = {}, {}
        for name in _MODELS:
            model = getattr(self, name)
            if model is None:
                continue
            models[name] = {"class": class_path(model), "config": _saveable(name, model).config()}
            for key, value in model.tensors().items():
                tensors[f"{name}.{key}"] = value.detach().cpu().contiguous().clone()
        tables = {
            "duration_N": self.catalogue.duration_N,
            "item_features_ND": self.catalogue.features_ND,
            "tag_N": self.catalogue.tag_N,
            "user_features_UD": self.users.features_UD,
            "history_start_U1": self.users.histories.start_U1,
            "history_item_P": self.users.histories.item_P,
            "history_feedback_PF": self.users.histories.feedback_PF,
            "history_known_PF": self.users.histories.known_PF,
            "population_P": self.population_P,
        }
        save_file(
            {name: t.detach().cpu().contiguous().clone() for name, t in tables.items()},
            folder / "tables.safetensors",
        )
        save_file(tensors, folder / "models.safetensors")
        (folder / "fidelity.json").write_text(json.dumps(self.fidelity, indent=1) + "\n")
        card = {
            "format": FORMAT,
            "name": self.name,
            "signals": list(self.signals),
            "item_feature_names": list(self.catalogue.feature_names),
            "user_feature_names": list(self.users.feature_names),
            "item_ids": self.catalogue.ids.tolist(),
            "user_ids": self.users.ids.tolist(),
            "models": models,
            "declared": self.declared,
            "defaults": self.defaults,
            "provenance": self.provenance,
            "bytes": {name: (folder / name).stat().st_size for name in ("tables.safetensors", "models.safetensors")},
        }
        (folder / "world.json").write_text(json.dumps(card) + "\n")

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> "World":
        """Reads a world folder.

        Raises:
            ValueError: the folder is missing, incomplete, damaged or of another format version, or there is no such
                device.
        """
        _check_device(device)
        folder = Path(folder)
        card = _read_card(folder)
        tables = _read_tensors(folder / "tables.safetensors", device)
        tensors = _read_tensors(folder / "models.safetensors", device)
        models: dict[str, Any] = {}
        for name, stored in card["models"].items():
            own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
            try:
                models[name] = load_object(stored["class"]).restore(stored["config"], own)
            except (KeyError, TypeError, RuntimeError) as error:
                raise ValueError(
                    f"{folder}: the stored {name} does not fit the present class {stored['class']} "
                    f"({str(error).splitlines()[0]}); build the world again"
                ) from error
        fidelity = folder / "fidelity.json"
        return cls(
            name=card["name"],
            signals=tuple(card["signals"]),
            catalogue=Catalogue(
                ids=np.asarray(card["item_ids"]),
                duration_N=tables["duration_N"],
                features_ND=tables["item_features_ND"],
                feature_names=tuple(card["item_feature_names"]),
                tag_N=tables["tag_N"],
            ),
            users=Users(
                ids=np.asarray(card["user_ids"]),
                features_UD=tables["user_features_UD"],
                feature_names=tuple(card["user_feature_names"]),
                histories=Histories(
                    start_U1=tables["history_start_U1"],
                    item_P=tables["history_item_P"],
                    feedback_PF=tables["history_feedback_PF"],
                    known_PF=tables["history_known_PF"],
                ),
            ),
            population_P=tables["population_P"],
            declared=card["declared"],
            defaults=card["defaults"],
            provenance=card["provenance"],
            fidelity=json.loads(fidelity.read_text()) if fidelity.exists() else {},
            **models,
        )


def class_path(model: object) -> str:
    """How a saved model names its class: "module:Class"."""
    return f"{type(model).__module__}:{type(model).__qualname__}"


def _saveable(name: str, model: object) -> Saveable:
    for method in ("config", "tensors", "restore"):
        if not hasattr(model, method):
            raise ValueError(
                f"the world's {name} ({class_path(model)}) cannot be saved: it has no {method}(); "
                "see recsim_env.types.Saveable"
            )
    return cast("Saveable", model)


def _check_device(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r}: torch finds no CUDA device on this machine; use device='cpu'")


def _moved(model: Any, device: torch.device | str) -> Any:
    """A saveable model on another device: rebuilt from its own tensors, moved."""
    if model is None:
        return None
    saved = _saveable("model", model)
    return type(model).restore(saved.config(), {k: v.detach().to(device) for k, v in saved.tensors().items()})


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / "world.json"
    if not path.exists():
        raise ValueError(f"{folder} is not a world folder: it has no world.json")
    try:
        card: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); build the world again") from error
    if card.get("format") != FORMAT:
        raise ValueError(
            f"{folder} was written in world format {card.get('format')!r}, this version reads {FORMAT}; "
            "build the world again"
        )
    for name, size in card["bytes"].items():
        actual = (folder / name).stat().st_size if (folder / name).exists() else 0
        if actual != size:
            raise ValueError(
                f"{folder / name} is truncated or missing ({actual} bytes, {size} expected); build the world again"
            )
    return card


def _read_tensors(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path, device=str(device))
        return tensors
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); build the world again") from error
