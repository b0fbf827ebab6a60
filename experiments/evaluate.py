"""Plays policies in worlds on the same sessions and reports the differences.

    python -m experiments.evaluate --worlds runs/demo/worlds --policies goalrank=runs/demo/goalrank/policy

``--worlds`` is a world folder or a folder of them. ``--policies`` takes ``name=what``: a policy folder, "MG-E" (the
evaluator's choice among the standard generators), a reference's name, or ``module:object`` of your own; the references
are always there. Writes ``report.json`` (keys ``rows``: policy, world, metric, mean, low, high, seeds, feedback class;
``differences``, paired, with ``baseline``; ``gaps``), ``report.csv``, ``report.html`` and TensorBoard scalars into
``--out``; ``--json`` writes the same JSON elsewhere too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from experiments.command import run_command
from experiments.policies import policy_of, references
from experiments.report import BASELINES, write_report
from recsim_env.evaluation import EvaluationSettings, evaluate
from recsim_env.files import read_json, write_json
from recsim_env.known_worlds import KNOWN_WORLDS
from recsim_env.known_worlds.names import resolve_world
from recsim_env.results import EvaluationResult
from recsim_env.world import World


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What to evaluate."""

    worlds: Path
    """A world folder, a folder of them, or the name of a known world."""
    policies: tuple[str, ...] = ()
    """``name=what`` for each policy beside the references."""
    num_sessions: int = 2000
    """Sessions of each policy in each world."""
    seed: int = 1_000_000
    """First session seed; training uses small ones."""
    out: Path = Path("runs/evaluation")
    """Where the report goes."""
    json: Path | None = None
    """Also write the JSON report here."""
    settings: tyro.conf.OmitArgPrefixes[EvaluationSettings] = field(default_factory=EvaluationSettings)
    """How sessions are played and counted."""


def worlds_in(folder: Path) -> dict[str, World]:
    """Every world of a folder by name, A first; or the one world that the folder, or a known world's name, is.

    Raises:
        ValueError: there is none.
    """
    if (folder / "world.json").exists() or (str(folder) in KNOWN_WORLDS and not folder.exists()):
        world = resolve_world(str(folder))
        return {world.name: world}
    found = sorted(path.parent for path in folder.glob("*/world.json"))
    if not found:
        raise ValueError(f"{folder} holds no world: build some with python -m experiments.build_world")
    return {path.name: World.load(path) for path in found}


def run(arguments: Arguments) -> EvaluationResult:
    """Evaluates and writes the report."""
    worlds = worlds_in(arguments.worlds)
    first = next(iter(worlds.values()))
    slate_size = arguments.settings.slate_size or first.defaults.get("slate_size", 6)
    contenders = references(first, slate_size)
    for given in arguments.policies:
        name, separator, what = given.partition("=")
        if not separator:
            raise ValueError(f"policies are given as name=what, got {given!r}")
        if name in contenders:
            raise ValueError(f"there is a policy {name!r} already; give yours another name than {sorted(contenders)}")
        contenders[name] = policy_of(what, first, slate_size)
    result = evaluate(
        contenders,
        worlds,
        num_sessions=arguments.num_sessions,
        seed=arguments.seed,
        settings=arguments.settings,
    )
    write_report(result, arguments.out, title="Policies in their worlds")
    return result


def table(result: EvaluationResult, metric: str = "session_watch_time") -> str:
    """Policies by worlds, with 95 % intervals, as plain text."""
    width = max(len(name) for name in result.policies)
    head = " " * width + "".join(f"{name:>26}" for name in result.world_names)
    lines = [head]
    for policy in result.policies:
        cells = []
        for world in result.world_names:
            if not result.measured(policy, world, metric):
                cells.append(" " * 26)
                continue
            row = result.row(policy, world, metric)
            cells.append(f"{row.mean:10.1f} [{row.low:6.1f}, {row.high:6.1f}]".rjust(26))
        lines.append(policy.ljust(width) + "".join(cells))
    return "\n".join(lines)


def leads(result: EvaluationResult, policies: Sequence[str]) -> str:
    """What these policies lead the baselines by, paired by session, as plain text."""
    lines = []
    for policy in policies:
        for baseline in BASELINES:
            for world in result.world_names:
                if policy != baseline and result.paired(policy, baseline, world):
                    row = result.difference(policy, baseline, world)
                    low, high = row.widest
                    lines.append(f"{policy} - {baseline}, {world}: {row.mean:+.1f} [{low:+.1f}, {high:+.1f}]")
    return "\n".join(lines)


def main(arguments: Arguments) -> None:
    """Evaluates, prints the table and says where the report is."""
    result = run(arguments)
    print("session watch time (s), mean and 95 % interval over sessions")
    print(table(result))
    given = [name.partition("=")[0] for name in arguments.policies]
    if lines := leads(result, given):
        print(f"\npaired differences on the same sessions (s)\n{lines}\n")
    print(f"report: {arguments.out / 'report.html'}")
    if arguments.json:
        write_json(arguments.json, read_json(arguments.out / "report.json"))


if __name__ == "__main__":
    run_command(main, lambda: tyro.cli(Arguments, description=__doc__))
