"""Where and from what a figure was made."""

import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """What a figure was measured on, in words that identify no one."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "gymnasium", "ray", "stable-baselines3", "numpy")},
    }


def stamp() -> dict[str, Any]:
    """What stands beside every figure: the command as it was given, the day, the commit and the machine."""
    module = getattr(sys.modules["__main__"].__spec__, "name", None) or "python"
    words = [f"<{Path(word).name}>" if Path(word).is_absolute() else shlex.quote(word) for word in sys.argv[1:]]
    return {
        "command": " ".join(["python -m", module, *words]),
        "date": time.strftime("%Y-%m-%d"),
        "commit": COMMIT,
        "machine": machine(),
    }


def _commit() -> str:
    """The short hash of the checkout, with a plus where files have changed; empty outside a checkout."""
    root = Path(__file__).parents[1]
    if not (root / "pyproject.toml").exists():  # an installed package; a repository around it would be another's
        return ""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


COMMIT = _commit()
"""Read when the code is: a run of hours may end in a checkout that has moved on."""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
