"""Files and folders that appear whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_folder(folder: str | Path, files: Sequence[str] = ()) -> Iterator[Path]:
    """An empty folder to write into; it takes the place of ``folder`` when the block ends without an error.

    Nothing that somebody else put there is ever removed: ``folder`` is replaced only if all that lies in it is what
    the writer writes.

    Args:
        folder: where the new folder goes.
        files: what the writer writes, as paths inside the folder; the first one is the card by which it knows its own
            folders. Without any, only a new or an empty folder will do.

    Raises:
        ValueError: ``folder`` may not be replaced, see ``check_replaceable``; nothing has been touched then.
    """
    check_replaceable(folder, files)
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield aside
        aside.chmod(0o777 & ~_umask())
        if folder.exists():
            _take_away(folder, files)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_replaceable(folder: str | Path, files: Sequence[str] = ()) -> None:
    """Refuses a folder whose replacement would cost somebody something; see ``whole_folder``.

    Raises:
        ValueError: it is the current folder or one around it, a link or a file, or it holds something that the writer
            does not write.
    """
    given, folder = folder, Path(os.path.abspath(folder))
    if folder == Path.cwd() or folder in Path.cwd().parents:
        raise ValueError(
            f"{str(given)!r} is the current folder or one around it, and would be replaced as a whole; give a folder "
            "of its own, such as 'saved'"
        )
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        kind = "link" if folder.is_symlink() else "file"
        raise ValueError(f"{folder} is a {kind}, not a folder that can be replaced; give another name")
    if not folder.exists():
        return
    foreign = _foreign(folder, files)
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise ValueError(
            f"{folder} holds what was not written here ({', '.join(foreign[:3])}{more}), and replacing the folder "
            "would remove it; give another folder, or move these away"
        )


def _foreign(folder: Path, files: Sequence[str]) -> list[str]:
    """Paths in a folder that are not the writer's; in a folder without the card that is all of them."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*"))}
    if not files or files[0] not in found:
        return list(found)
    folders = {str(parent) for name in files for parent in Path(name).parents}
    return [
        name
        for name, path in found.items()
        if path.is_symlink() or name not in (folders if path.is_dir() else set(files))
    ]


def _take_away(folder: Path, files: Sequence[str]) -> None:
    """Removes the writer's older folder; one in which something new has appeared meanwhile is put back."""
    grave = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    os.replace(folder, grave)
    try:
        check_replaceable(grave, files)
    except ValueError:
        os.replace(grave, folder)
        raise
    shutil.rmtree(grave)


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


def claim(folder: str | Path, card: dict[str, Any], *, name: str = "card.json") -> bool:
    """Says what a folder is for, or checks that it is for just that: the one rule of "resume if the settings agree".

    The card must name everything that shapes the result, the content of logs and worlds included (their digests),
    in JSON values. Whoever goes on in the folder afterwards may use what lies there.

    Args:
        folder: made if it is not there.
        card: what is done there.
        name: file that holds the card.

    Returns:
        True if the folder is new to this work, False if it held the same card before.

    Raises:
        ValueError: the folder holds other work, with every setting that differs; or it holds files but no card, so
            nobody knows what they are.
    """
    folder, card = Path(folder), json.loads(json.dumps(card))
    path = folder / name
    if path.exists():
        if changes := differences(read_json(path), card):
            raise ValueError(
                f"{folder} holds other work ({changes}); choose another folder, use the same settings, or delete it"
            )
        return False
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds files but no {name} that says what they are; choose an empty or new folder")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another name for the folder")
    write_json(path, card)
    return True


def differences(was: dict[str, Any], now: dict[str, Any], most: int = 8) -> str:
    """The settings in which two cards differ, in words; empty where they agree."""
    old, new = _flat(was), _flat(json.loads(json.dumps(now)))
    different = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    changes = ", ".join(f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in different[:most])
    return changes + (f" and {len(different) - most} more" if len(different) > most else "")


def _flat(card: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in card.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
