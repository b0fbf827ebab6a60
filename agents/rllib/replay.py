"""A ring of transitions as tensors: what methods with ``data = "replay"`` learn from.

Columns are kept as they come, less what can be looked up again: user and candidate features are rows of the world's
tables, so their codes are kept and the rows gathered when a batch is drawn. With 50 candidates, 100 past videos and 8
signals a transition takes about 16 kB.

Shape legend: M rows added, S rows kept, B rows drawn.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.method import NEXT, Columns
from recsim_env.digests import digest_tensors

_CODES = {"user_features_BD": "user_B", "candidate_features_BCD": "candidates_BC"}
_CODES |= {NEXT + name: NEXT + codes for name, codes in _CODES.items()}
"""Columns that are rows of a table, and the codes that name the rows."""


class Replay:
    """Keeps the newest ``size`` transitions.

    Args:
        size: S.
        tables: features by the name of their column, ``user_features_BD`` (U, D) and ``candidate_features_BCD`` (N, D);
            a column whose rows turn out to be others is kept whole.
    """

    def __init__(self, size: int, tables: Mapping[str, Tensor] | None = None) -> None:
        self.size = size
        self._tables = {prefix + name: table for prefix in ("", NEXT) for name, table in (tables or {}).items()}
        self._looked_up: tuple[str, ...] | None = None
        self._ring: Columns = {}
        self._written = 0

    def __len__(self) -> int:
        """Rows that can be drawn."""
        return min(self._written, self.size)

    @property
    def bytes_per_row(self) -> int:
        """Memory of one transition."""
        return sum(t[0].numel() * t.element_size() for t in self._ring.values())

    def add(self, columns: Mapping[str, np.ndarray | Tensor]) -> None:
        """Adds M rows, in the order of time; the oldest make room."""
        rows = {name: torch.as_tensor(column) for name, column in columns.items()}
        if self._looked_up is None:
            self._looked_up = tuple(name for name in rows if self._is_lookup(name, rows))
        for name in self._looked_up:
            if not self._is_lookup(name, rows):  # rows of the table until now: kept whole from here on
                self._ring[name] = self._look_up(name, self._ring)
                self._looked_up = tuple(other for other in self._looked_up if other != name)
        self._write({name: column[-self.size :] for name, column in rows.items() if name not in self._looked_up})

    def draw(self, num_rows: int, generator: torch.Generator) -> Columns:
        """B rows drawn evenly, with features gathered again.

        Raises:
            ValueError: nothing has been added yet.
        """
        if not len(self):
            raise ValueError("the replay is empty; add transitions before drawing from it")
        row_B = torch.randint(len(self), (num_rows,), generator=generator)
        batch = {name: kept[row_B] for name, kept in self._ring.items()}
        for name in self._looked_up or ():
            batch[name] = self._look_up(name, batch)
        return batch

    def state(self) -> dict[str, Any]:
        """Everything, to be kept in a checkpoint: rows as arrays, and which tables' rows it does without."""
        return {
            "rows": {name: column[: len(self)].numpy() for name, column in self._ring.items()},
            "written": self._written,
            "looked_up": {name: digest_tensors({"": self._tables[name]}) for name in self._looked_up or ()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what ``state`` gave, the newest rows if there are more than fit.

        Raises:
            ValueError: rows of tables that this replay does not have, or of another world's tables, or a state of an
                earlier version.
        """
        if "looked_up" not in state:
            raise ValueError(
                "the saved replay is of an earlier version and does not say whose tables it needs; begin anew"
            )
        rows = {name: torch.as_tensor(column) for name, column in state["rows"].items()}
        for name, digest in state["looked_up"].items():
            if name not in self._tables:
                raise ValueError(f"the saved replay needs the world's tables for {name}, and this replay has none")
            if digest_tensors({"": self._tables[name]}) != digest:
                raise ValueError(
                    f"the saved replay was filled in another world: {name} are rows of other tables than this world's; "
                    "restore it in the world that it comes from"
                )
        self._ring, self._written, self._looked_up = {}, 0, None
        if not rows:
            return
        self._looked_up = tuple(state["looked_up"])
        saved, written = len(next(iter(rows.values()))), state["written"]
        # Written in the order of time: a ring of the same size has each row in its old slot, a smaller one the newest,
        # and a larger one counts anew, for it lacks the rows that made room.
        if saved >= min(written, self.size):
            self._written = written - min(saved, self.size)
        self._write({name: column.roll(-(written % saved), 0)[-self.size :] for name, column in rows.items()})

    def _write(self, rows: Columns) -> None:
        """Rows that fit, in the order of time."""
        num_rows = len(next(iter(rows.values())))
        if not self._ring:
            self._ring = {name: column.new_zeros((self.size, *column.shape[1:])) for name, column in rows.items()}
        slot_M = (self._written + torch.arange(num_rows)) % self.size
        for name, column in rows.items():
            self._ring[name][slot_M] = column
        self._written += num_rows

    def _is_lookup(self, name: str, rows: Columns) -> bool:
        return name in self._tables and torch.equal(rows[name], self._look_up(name, rows))

    def _look_up(self, name: str, rows: Columns) -> Tensor:
        return self._tables[name][rows[_CODES[name]]]
