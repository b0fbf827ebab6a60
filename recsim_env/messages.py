"""Words for error messages."""

import difflib
from collections.abc import Iterable


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A hint for a misspelt name, ready to append to a message, or an empty string.

    Example:
        >>> nearest("slate_sise", ["slate_size", "device"])
        " (did you mean 'slate_size'?)"
    """
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
