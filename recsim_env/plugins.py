"""Names that people type: dotted paths of classes and functions, and hints for misspelt ones."""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

OWN_PACKAGES = ("recsim_env", "reward_models", "agents")
"""Packages whose classes a folder may name without being asked about."""


def load_object(path: str, allowed: Iterable[str] | None = None) -> Any:
    """Imports what ``"module:Name"`` names, as Gymnasium's entry points do.

    Args:
        path: a module and a name in it, such as ``"my_project.rankers:Ranker"``; dots after the colon
            reach into a class.
        allowed: packages or modules that it may come from. Give it wherever the path was read from a file, because
            importing a module runs it; ``None`` allows any, for paths that the user types.

    Raises:
        ValueError: the path has another form, its module is not allowed (nothing is imported then) or cannot be
            imported, or it has no such name.

    Example:
        >>> load_object("recsim_env.types:WATCH_TIME")
        'watch_time'
    """
    if allowed is not None:
        check_allowed(path, allowed)
    module_name, name = _parts(path)
    try:
        found = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"cannot import {module_name!r} of {path!r} ({error}); is its folder on the Python path?"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            public = sorted(key for key in dir(found) if not key.startswith("_"))
            near = difflib.get_close_matches(part, public, n=1) or public[:8]
            raise ValueError(f"{path!r} does not exist: {found!r} has no {part!r}; try {', '.join(near)}")
        found = getattr(found, part)
    return found


def check_allowed(path: str, allowed: Iterable[str]) -> None:
    """Refuses a path whose module is in none of some packages; imports nothing.

    Raises:
        ValueError: the path has another form than ``"module:Name"``, or its module is not allowed.
    """
    module_name, _ = _parts(path)
    allowed = tuple(allowed)
    if not any(module_name == package or module_name.startswith(f"{package}.") for package in allowed):
        raise ValueError(f"{path!r} is in none of {', '.join(allowed)}")


def _parts(path: str) -> tuple[str, str]:
    module_name, colon, name = path.partition(":") if isinstance(path, str) else ("", "", "")
    if not (module_name and colon and name):
        raise ValueError(f"need a path of the form 'module:Name', got {path!r}")
    return module_name, name


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A hint for a misspelt name, ready to append to a message, or an empty string.

    Example:
        >>> nearest("slate_sise", ["slate_size", "device"])
        " (did you mean 'slate_size'?)"
    """
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
