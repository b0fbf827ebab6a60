"""Digests of content: two logs, worlds or models have the same one only if they hold the same values.

A folder's card names what it was made from by these, since a name or a size says nothing about labels.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

_LENGTH = 16  # hexadecimal digits: 64 bits, plenty to tell a few thousand things apart


def digest_json(value: Any) -> str:
    """Digest of JSON values; the order of keys does not count."""
    return _digest([json.dumps(value, sort_keys=True).encode()])


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Digest of named tensors: names, types, shapes and every byte, on whatever device they are."""
    return _digest(part for name in sorted(tensors) for part in _tensor(name, tensors[name]))


def digest_frame(frame: pd.DataFrame) -> str:
    """Digest of a table: names, types and values of its columns, in any order of the columns."""
    return _digest(part for name in sorted(map(str, frame.columns)) for part in _column(name, frame[name]))


def _digest(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8))  # so that no two lists of parts run into the same bytes
        found.update(part)
    return found.hexdigest()[:_LENGTH]


def _tensor(name: str, tensor: Tensor) -> Iterator[bytes]:
    values = tensor.detach().cpu().contiguous().numpy()
    yield f"{name} {values.dtype} {values.shape}".encode()
    yield values.tobytes()


def _column(name: str, column: pd.Series) -> Iterator[bytes]:
    yield f"{name} {column.dtype}".encode()
    values = column.to_numpy()
    if values.dtype != object:
        yield np.ascontiguousarray(values).tobytes()
    elif len(values) and all(isinstance(value, list | np.ndarray) for value in values):  # tags, candidate lists
        yield np.fromiter(map(len, values), np.int64, count=len(values)).tobytes()
        yield np.concatenate([np.asarray(value) for value in values]).tobytes()
    else:
        yield "\x1f".join(f"{type(value).__name__}:{value}" for value in values).encode()
