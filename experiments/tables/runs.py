"""One finished run, one small committed file: what it is, how it is kept, and when a kept one may be used again.

A run is a setting, a method, a training seed and a world, and how it is measured. Its file holds ``card`` (everything
that shapes the result: settings, sizes, digests of the log and the world), ``cells`` (by name of a row: sums over
blocks of sessions, from which values, intervals and paired differences follow), ``checks`` and ``extra`` where a run
brings its own, and ``command``, ``date``, ``commit``, ``machine``. A kept file is used again only if its card is the
one asked for.
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recsim_env.files import read_json, write_json, write_text
from recsim_env.provenance import stamp
from recsim_env.results import Cell, EvaluationResult, to_plain

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "experiments" / "results"
"""Where committed results lie."""
BLOCKS = 100
"""Blocks of sessions that a file keeps: intervals grow by one per cent against single sessions."""
FINAL = "judge-final"
"""Worlds whose names begin so decide; how often each was opened is counted."""
OPENINGS = "openings.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run found."""

    cells: Mapping[str, Cell] = field(default_factory=dict)
    """Name of a row to what was measured, of one training seed; most runs have one row, of the method's name."""
    checks: Sequence[Mapping[str, Any]] = ()
    """Checks that only the run itself can make: name, bar, value, low, high, verdict."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Anything else worth keeping, in JSON values."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One line of work of a table."""

    setting: str
    method: str
    world: str
    seed: int = 0
    card: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What shapes the result beside these four, in JSON values; digests of the log and the world among it."""
    measure: Callable[[], Measured] = field(compare=False, repr=False)
    """Does the work; a Ray task, so it can be pickled and keeps nothing but what it returns and trains."""
    prepare: Callable[[], object] = field(default=lambda: None, compare=False, repr=False)
    """What runs that differ in the world alone share, training for instance; done once before them."""

    def __str__(self) -> str:
        return f"{self.setting}, {self.world}, {self.method}, seed {self.seed}"

    @property
    def training(self) -> tuple[str, str, int]:
        """What runs have in common that differ in the world alone."""
        return self.setting, self.method, self.seed

    @property
    def full_card(self) -> dict[str, Any]:
        """The card of its file."""
        names = {"setting": self.setting, "method": self.method, "world": self.world, "seed": self.seed}
        plain: dict[str, Any] = json.loads(json.dumps({**names, **self.card}))
        return plain

    def path(self, folder: Path) -> Path:
        """Its file in a table's folder."""
        return folder / slug(self.setting) / slug(self.world) / f"{slug(self.method)}-{self.seed}.json"


def keep(path: Path, run: Run, measured: Measured) -> None:
    """Writes a run's file, whole or not at all."""
    content = {
        "card": run.full_card,
        "cells": {name: cell.merged(BLOCKS).to_json() for name, cell in measured.cells.items()},
        "checks": list(measured.checks),
        "extra": dict(measured.extra),
        **published_stamp(),
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in to_plain(content).items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def result_of(contents: Iterable[Mapping[str, Any]]) -> EvaluationResult:
    """The rows of one setting's files, the training seeds of each put together."""
    seeds: dict[tuple[str, str], list[Cell]] = {}
    for content in sorted(contents, key=lambda content: int(content["card"]["seed"])):
        for name, plain in content["cells"].items():
            seeds.setdefault((name, content["card"]["world"]), []).append(Cell.from_json(plain))
    return EvaluationResult(cells={key: Cell.of_seeds(cells) for key, cells in seeds.items()})


def slug(name: str) -> str:
    """A name as a file's name."""
    return re.sub(r"[^\w.@-]+", "_", name)


def count_opening(results: Path, table: str, run: Run) -> None:
    """Notes that a run looks at a world that decides; all tables count in one file."""
    if not run.world.startswith(FINAL):
        return
    path = results / OPENINGS
    counts = read_json(path) if path.exists() else {}
    key = f"{run.setting}, {run.world}, content {run.card.get('world_digest', 'unknown')}"
    counts.setdefault(key, {})[table] = counts.get(key, {}).get(table, 0) + 1
    write_json(path, counts)


def openings(results: Path) -> dict[str, int]:
    """Runs that looked at each world that decides, over all tables."""
    path = results / OPENINGS
    return {world: sum(by_table.values()) for world, by_table in read_json(path).items()} if path.exists() else {}


def check_publishable(path: Path) -> None:
    """Refuses to write among the committed results what no commit can make again.

    Raises:
        ValueError: ``path`` lies in the results folder and the checkout has changes beside results.
    """
    if not path.resolve().is_relative_to(PUBLISHED):
        return
    if changed := uncommitted():
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ValueError(
            f"results in {PUBLISHED.relative_to(ROOT)} must be made by a commit, and {', '.join(changed[:5])}{more} "
            "differ from it: commit first, or write a trial elsewhere (--results DIR, --json PATH)"
        )


def uncommitted() -> list[str]:
    """Files of the checkout that the last commit does not hold, results and their page aside."""
    command = ["git", "status", "--porcelain", "--", ".", ":!experiments/results", ":!experiments/RESULTS.md"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if found.returncode:
        return ["everything (this is no git checkout)"]
    return [line[3:] for line in found.stdout.splitlines()]


def published_stamp() -> dict[str, Any]:
    """``stamp``, in which new results alone do not make a commit a changed one."""
    found = stamp()
    return found | ({} if uncommitted() else {"commit": str(found["commit"]).removesuffix("+")})


def publish_json(path: Path, content: Any) -> None:
    """Writes one JSON file, among the committed results only from a clean checkout."""
    check_publishable(path)
    write_json(path, to_plain(content))
