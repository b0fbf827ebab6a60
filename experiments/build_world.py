"""Builds worlds from a log: world A, judge worlds, and the recommender that acts in all of them.

    python -m experiments.build_world LOG --out FOLDER

``LOG`` is a KuaiRand folder or any log with watch times that ``recsim_env.data.load_log`` reads; what is built, and how
users and days are split, stands in ``reward_models.build``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments.command import run_command
from experiments.report.card import verdict_lines
from recsim_env.data import PRESETS, load_log, parse_map
from recsim_env.files import write_json
from recsim_env.world import load_worlds
from reward_models.build import build_worlds
from reward_models.plan import BuildConfig


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Builds worlds from a log."""

    log: tyro.conf.Positional[Path]
    """A KuaiRand or KuaiRec folder, or one CSV or Parquet table with ``--preset`` or ``--map``; ratings do not do."""
    preset: Literal["kuairand", "kuairec", "ratings", "open_bandit"] | None = None
    """Column map of a published table."""
    map: str | None = None
    """Columns of a table or changes to the preset, as in ``experiments.inspect``: ``user=uid,item=vid,...``."""
    out: Path = Path("runs/worlds")
    """Where the worlds go."""
    json: Path | None = None
    """Also write the fidelity of every world here."""
    build: BuildConfig = field(default_factory=BuildConfig)
    """How worlds are built."""


def main(arguments: Arguments) -> None:
    """Builds and prints a few lines for each world."""
    base = PRESETS[arguments.preset] if arguments.preset else None
    columns = parse_map(arguments.map, base) if arguments.map else base
    folders = build_worlds(load_log(arguments.log, columns), arguments.out, arguments.build)
    cards = {name: world.fidelity for name, world in load_worlds(folders).items()}
    for name, card in cards.items():
        print("\n".join(fidelity_lines(name, card)))
    if arguments.json:
        write_json(arguments.json, cards)


def fidelity_lines(name: str, card: Mapping[str, Any]) -> list[str]:
    """A few lines on how real a world is: main figures, how many claims hold, and which fail."""
    signals = card["logged"]["signals"]
    told = [
        f"{signal} {figures['ratio']:.2f}x logged rate, AUC {figures['auc']:.3f}, GAUC {figures['gauc']:.3f}"
        for signal, figures in signals.items()
        if figures["gauc"] is not None and figures["positives"] >= 200
    ]
    watch = card["logged"]["watch_time"]
    probes = [requests[max(requests, key=int)]["watch_time"] / requests["1"]["watch_time"] for requests in
              card["probes"].values()]  # fmt: skip
    told.append(f"fixed videos are worth {min(probes):.2f}x to {max(probes):.2f}x after 50 requests of any policy")
    told.insert(0, f"watch time {watch['emitted_mean']:.1f} s (logged {watch['logged_mean']:.1f} s)")
    return [f"{name}: " + "; ".join(told), *(f"{name}: {line}" for line in verdict_lines(card.get("verdicts", [])))]


if __name__ == "__main__":
    run_command(main, lambda: tyro.cli(Arguments, description=__doc__))
