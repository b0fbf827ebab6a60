"""Writes ``experiments/RESULTS.md`` from the small JSON files of finished runs.

    python -m experiments.results_page

Nothing is measured here: every figure stands in a file of ``experiments/results`` beside the command that made it.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.command import run_command
from experiments.report.page import draw_curves, page
from recsim_env.files import write_text


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Where the files are and where the page goes."""

    results: Path = Path("experiments/results")
    """Folder of the JSON files."""
    page: Path = Path("experiments/RESULTS.md")
    """The page."""


def main(arguments: Arguments) -> None:
    """Writes the page and the curves."""
    for path in draw_curves(arguments.results):
        print(path)
    print(write_text(arguments.page, page(arguments.results)))


if __name__ == "__main__":
    run_command(main, lambda: tyro.cli(Arguments, description=__doc__))
