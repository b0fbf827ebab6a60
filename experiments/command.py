"""How every verb begins and ends: arguments from a dataclass, the user's errors in one line."""

import sys
from collections.abc import Callable
from typing import Any


def run_command(main: Callable[[Any], object], parse: Callable[[], Any]) -> None:
    """Parses the arguments and runs ``main``; a ValueError becomes one line and exit status 2."""
    try:
        main(parse())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
