"""Plays policies in worlds on the same sessions and reports the differences.

    python -m experiments.evaluate --worlds runs/demo/worlds --policies mine=runs/goalrank/policy

``--worlds`` is a world folder or a folder of them. ``--policies`` takes ``name=what``: a policy folder, "MG-E" (the
evaluator's choice among the standard generators), a reference's name, or ``module:object`` of your own; the references
are always there. Writes ``report.json`` (keys ``rows``: policy, world, metric, mean, low, high, seeds, feedback class;
``differences``, paired, with ``baseline``; ``gaps``), ``report.csv``, ``report.html`` and TensorBoard scalars into
``--out``; ``--json`` writes the same JSON elsewhere too.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from experiments.command import run_command
from experiments.policies import BASELINES, named_policy, references
from experiments.report.frames import frame_of, markdown, pivot, rows_of, texts_of
from experiments.report.html import write_report
from recsim_env.evaluation import EvaluationSettings, evaluate
from recsim_env.files import claim, read_json, write_json
from recsim_env.known_worlds import KNOWN_WORLDS
from recsim_env.known_worlds.names import resolve_world
from recsim_env.plugins import nearest
from recsim_env.results import EvaluationResult, to_plain
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
    """Where the report goes; a folder that holds another evaluation is refused."""
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
        hint = nearest(str(folder), KNOWN_WORLDS) if not folder.exists() else ""
        raise ValueError(
            f"{folder} holds no world{hint}: build some with python -m experiments.build_world, or give the name of a "
            f"known one, {sorted(KNOWN_WORLDS)}"
        )
    return {path.name: World.load(path) for path in found}


def players(arguments: Arguments, world: World) -> dict[str, Any]:
    """The references and the policies that were given.

    Raises:
        ValueError: a policy is not given as name=what, or its name is taken.
    """
    slate_size = arguments.settings.slate_size or world.defaults.get("slate_size", 6)
    found: dict[str, Any] = dict(references(world, slate_size))
    for given in arguments.policies:
        name, separator, what = given.partition("=")
        if not separator:
            raise ValueError(f"policies are given as name=what, got {given!r}")
        if name in found:
            raise ValueError(f"there is a policy {name!r} already; give yours another name than {sorted(found)}")
        found[name] = named_policy(what, world, slate_size)
    return found


def run(arguments: Arguments) -> EvaluationResult:
    """Evaluates and writes the report; the folder is claimed before anything is played."""
    worlds = worlds_in(arguments.worlds)
    contenders = players(arguments, next(iter(worlds.values())))
    asked = {name: value for name, value in dataclasses.asdict(arguments).items() if name not in ("out", "json")}
    card = {**to_plain(asked), "worlds": {name: world.digest for name, world in worlds.items()}}
    claim(arguments.out, card, name="evaluation.json")
    results = {}
    for number, (name, world) in enumerate(worlds.items(), start=1):
        print(f"{len(contenders)} policies play {name}, world {number} of {len(worlds)}", flush=True)
        results[name] = evaluate(
            contenders,
            {name: world},
            num_sessions=arguments.num_sessions,
            seed=arguments.seed,
            settings=arguments.settings,
        )
    cells = {(policy, world): results[world].cells[policy, world] for policy in contenders for world in worlds}
    cards = {world: card for result in results.values() for world, card in result.worlds.items()}
    result = EvaluationResult(cells=cells, worlds=cards, settings=next(iter(results.values())).settings)
    write_report(result, arguments.out, title="Policies in their worlds")
    return result


def leads(result: EvaluationResult, policies: tuple[str, ...]) -> str:
    """What these policies lead the baselines by, paired by session, as plain text."""
    pairs = [(policy, baseline, world) for policy in policies for baseline in BASELINES for world in result.world_names
             if policy != baseline and result.paired(policy, baseline, world)]  # fmt: skip
    rows = [result.difference(*pair) for pair in pairs]
    texts = texts_of(frame_of(rows), sign="+")
    return "\n".join(
        f"{row.policy} - {row.baseline}, {row.world}: {text}" for row, text in zip(rows, texts, strict=True)
    )


def main(arguments: Arguments) -> None:
    """Evaluates, prints the table and says where the report is."""
    result = run(arguments)
    print("session watch time (s), mean and 95 % interval over sessions\n")
    print(markdown(pivot(rows_of(result), "session_watch_time")))
    if lines := leads(result, tuple(name.partition("=")[0] for name in arguments.policies)):
        print(f"\npaired differences on the same sessions (s)\n{lines}\n")
    print(f"report: {arguments.out / 'report.html'}")
    if arguments.json:
        write_json(arguments.json, read_json(arguments.out / "report.json"))


if __name__ == "__main__":
    run_command(main, lambda: tyro.cli(Arguments, description=__doc__))
