"""How every verb begins and ends: one thread, arguments from a dataclass, the user's errors in one line."""

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch


def run_command(main: Callable[[Any], object], parse: Callable[[], Any]) -> None:
    """Parses the arguments and runs ``main``; a ValueError becomes one line and exit status 2."""
    torch.set_num_threads(1)  # two torch threads on a busy two-core machine are slower than one
    try:
        main(parse())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def end_with_parent() -> None:
    """Makes this worker process end within a second of its parent, even one that was killed.

    Without it a worker would finish its task and write into a folder that the next run already uses.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
