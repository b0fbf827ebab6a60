"""Names that people type: dotted paths of classes and functions, and hints for misspelt ones."""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


def load_object(path: str) -> Any:
    """Imports what ``"module:Name"`` names, as Gymnasium's entry points do.

    Args:
        path: a module and a name in it, such as ``"my_project.rankers:Ranker"``; dots after the colon
            reach into a class.

    Raises:
        ValueError: the path has another form, the module cannot be imported, or it has no such name.

    Example:
        >>> load_object("recsim_env.types:WATCH_TIME")
        'watch_time'
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ValueError(f"need a path of the form 'module:Name', got {path!r}")
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


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A hint for a misspelt name, ready to append to a message, or an empty string.

    Example:
        >>> nearest("slate_sise", ["slate_size", "device"])
        " (did you mean 'slate_size'?)"
    """
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
