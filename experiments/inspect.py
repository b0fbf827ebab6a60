"""What a log can and cannot support, before anything is learned from it.

    python -m experiments.inspect LOG [--map user=uid,...] [--preset ratings] [--json PATH]

LOG is what ``load_log`` reads: a KuaiRand, KuaiRec or MovieLens folder, a file of Amazon ratings, or one CSV or Parquet
table with a preset or a column map. A log whose columns, units or values are wrong is refused with the reason. Keys of
the JSON: see ``reward_models.inspection``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.command import run_command
from recsim_env.data import PRESETS, load_log, parse_map
from recsim_env.files import write_json
from reward_models.inspection import describe, inspect_log


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Prints what a log can and cannot support."""

    log: tyro.conf.Positional[Path]
    """A KuaiRand, KuaiRec or MovieLens folder, or one .csv, .csv.gz or .parquet table."""
    preset: Literal["kuairand", "kuairec", "ratings", "open_bandit"] | None = None
    """Column map of a published table."""
    columns: Annotated[str, tyro.conf.arg(name="map", metavar="FIELD=COLUMN,...")] = ""
    """Column map, or changes to the preset: user=uid,item=vid,time=ts,time_unit=s,like=rating>=4."""
    session_gap_s: float = 300.0
    """A longer pause ends a session, where the log has no session key."""
    json: Path | None = None
    """Also write the findings here."""

    def __post_init__(self) -> None:
        if not self.session_gap_s > 0.0:
            raise ValueError(f"session_gap_s must be positive, got {self.session_gap_s}")

    def run(self) -> dict[str, Any]:
        """Reads the log and returns the findings."""
        base = PRESETS[self.preset] if self.preset else None
        columns = parse_map(self.columns, base) if self.columns else base
        return inspect_log(load_log(self.log, columns), self.session_gap_s)


def main(command: Inspect) -> None:
    """Prints the findings."""
    findings = command.run()
    print(describe(findings))
    if command.json is not None:
        write_json(command.json, findings)


if __name__ == "__main__":
    run_command(main, lambda: tyro.cli(Inspect, description=__doc__))
