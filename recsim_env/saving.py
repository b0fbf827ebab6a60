"""Models in folders: each is its class path, its settings and its tensors; nothing is ever unpickled.

A folder may come from anywhere, and importing a module runs it. So a class is imported only from this project's own
packages and from modules that the caller names (``trusted``), and all class paths of a folder are checked before the
first of them is imported.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsim_env.digests import digest_json, digest_tensors
from recsim_env.plugins import OWN_PACKAGES, check_allowed, load_object
from recsim_env.types import Saveable


def class_path(model: object) -> str:
    """How a saved model names its class: "module:Class"."""
    return f"{type(model).__module__}:{type(model).__qualname__}"


def saveable(name: str, model: object) -> Saveable:
    """The model itself.

    Raises:
        ValueError: it lacks a method of ``recsim_env.types.Saveable``.
    """
    for method in ("config", "tensors", "restore"):
        if not hasattr(model, method):
            raise ValueError(
                f"the world's {name} ({class_path(model)}) cannot be saved: it has no {method}(); "
                "see recsim_env.types.Saveable"
            )
    return cast("Saveable", model)


def models_digest(models: Mapping[str, object | None]) -> str:
    """Digest of classes, settings and tensors of named models.

    Raises:
        ValueError: one of them is not saveable.
    """
    content = {}
    for name, model in models.items():
        if model is not None:
            kept = saveable(name, model)
            content[name] = [class_path(model), kept.config(), digest_tensors(kept.tensors())]
    return digest_json(content)


def write_models(models: Mapping[str, object | None], path: Path) -> dict[str, Any]:
    """Writes the tensors of named models into one file; returns classes and settings, for the folder's card.

    Raises:
        ValueError: a model is not saveable.
    """
    cards: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, model in models.items():
        if model is not None:
            kept = saveable(name, model)
            cards[name] = {"class": class_path(model), "config": kept.config()}
            tensors |= {f"{name}.{key}": value for key, value in kept.tensors().items()}
    write_tensors(tensors, path)
    return cards


def read_models(
    cards: Mapping[str, Any], path: Path, device: torch.device | str, trusted: Sequence[str] = ()
) -> dict[str, Any]:
    """Rebuilds what ``write_models`` wrote.

    Args:
        cards: classes and settings by name.
        path: the file of tensors.
        device: where the tensors go.
        trusted: modules or packages that classes may come from, beside this project's own.

    Raises:
        ValueError: a class is of a module that is not trusted (nothing has been imported then), the file is damaged,
            or a class has changed since.
    """
    check_classes(cards, path.parent, trusted)
    tensors = read_tensors(path, device)
    models: dict[str, Any] = {}
    for name, stored in cards.items():
        own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
        try:
            models[name] = load_object(stored["class"]).restore(stored["config"], own)
        except (AttributeError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{path.parent}: the stored {name} does not fit the present class {stored['class']} "
                f"({str(error).splitlines()[0]}); build the world again"
            ) from error
    return models


def check_classes(card: object, folder: Path, trusted: Sequence[str] = ()) -> None:
    """Refuses a card that names a class of a module that is not trusted, however deep it stands in the card.

    Raises:
        ValueError: there is such a class; nothing has been imported.
    """
    allowed = (*OWN_PACKAGES, *trusted)
    for path in _named_classes(card):
        try:
            check_allowed(path, allowed)
        except ValueError as error:
            module = path.partition(":")[0]
            raise ValueError(
                f"{folder} wants to run code of a module that is not this project's: {error}. If you know the module "
                f"and trust it, pass trusted=({module!r},)"
            ) from error


def _named_classes(card: object) -> list[str]:
    if isinstance(card, dict):
        own = [card["class"]] if ":" in str(card.get("class")) else []
        return own + [path for value in card.values() for path in _named_classes(value)]
    return [path for value in card for path in _named_classes(value)] if isinstance(card, list) else []


def moved(name: str, model: Any, device: torch.device | str) -> Any:
    """A saveable model on another device: rebuilt from its own tensors, moved."""
    if model is None:
        return None
    kept = saveable(name, model)
    return type(model).restore(kept.config(), {key: t.detach().to(device) for key, t in kept.tensors().items()})


def check_device(device: torch.device | str) -> None:
    """Refuses a device that is not there.

    Raises:
        ValueError: there is no such device.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r}: torch finds no CUDA device on this machine; use device='cpu'")


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes named tensors; each gets memory of its own first, as the format demands."""
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, path)


def read_tensors(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    """Reads named tensors.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path, device=str(device))
        return tensors
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); build the world again") from error


def sizes_of(folder: Path, names: Sequence[str]) -> dict[str, int]:
    """Bytes of files, for a card to tell truncated files by."""
    return {name: (folder / name).stat().st_size for name in names}


def read_card(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Reads a folder's card and checks its version and the sizes of the files it names.

    Args:
        path: the card.
        kind: what the folder should be, in words: "world", "recommender".
        version: the format that can be read.

    Raises:
        ValueError: the folder is missing, incomplete, damaged or of another format version.
    """
    folder = path.parent
    if not path.exists():
        raise ValueError(f"{folder} is not a {kind} folder: it has no {path.name}")
    try:
        card: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); build the world again") from error
    if card.get("format") != version:
        raise ValueError(
            f"{folder} was written in {kind} format {card.get('format')!r}, this version reads {version}; "
            "build the world again"
        )
    for name, size in card["bytes"].items():
        actual = (folder / name).stat().st_size if (folder / name).exists() else 0
        if actual != size:
            raise ValueError(
                f"{folder / name} is truncated or missing ({actual} bytes, {size} expected); build the world again"
            )
    return card
