"""Files and folders that appear whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """An empty folder to write into; it takes the place of ``folder`` when the block ends without an error."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield aside
        aside.chmod(0o777 & ~_umask())
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Lets ``write`` fill a file beside ``path``, then puts it in place in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        write(Path(name))
        Path(name).chmod(0o666 & ~_umask())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def _umask() -> int:
    """The process's file mode mask: temporary files are private, the ones they become should not be."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> Path:
    """Writes text, whole or not at all."""
    return write_whole(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, content: Any) -> Path:
    """Writes JSON, whole or not at all."""
    return write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: str | Path) -> Any:
    """Reads JSON.

    Raises:
        ValueError: the file is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run again") from error
