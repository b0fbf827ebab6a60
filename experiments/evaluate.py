"""Plays policies in worlds on the same sessions and reports the differences.

    python -m experiments.evaluate --worlds runs/demo/worlds --policies mine=runs/goalrank/policy

``--worlds`` is a world folder or a folder of them. ``--policies`` takes ``name=what``: a policy folder, "MG-E" (the
evaluator's choice among the standard generators), a baseline's name, or ``module:object`` of your own; the baselines
are always there. Writes ``report.json`` (keys ``rows``: policy, world, metric, mean, low, high, seeds, feedback class;
``differences``, paired, with ``baseline``; ``gaps``), ``report.csv``, ``report.html`` and TensorBoard scalars into
``--out``; ``--json`` writes the same JSON elsewhere too.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from experiments.command import run_command
from experiments.policies import TO_BEAT, named_policies, worlds_in
from experiments.report.frames import differences, frame_of, markdown, pivot, repeaters, texts_of
from experiments.report.html import write_report
from recsim_env.evaluation import EvaluationSettings, evaluate
from recsim_env.files import claim, read_json, write_json
from recsim_env.results import EvaluationResult, to_plain
from recsim_env.world import World


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What to evaluate."""

    worlds: Path
    """A world folder, a folder of them, or the name of a known world."""
    policies: tuple[str, ...] = ()
    """``name=what`` for each policy beside the baselines."""
    num_sessions: int = 2000
    """Sessions of each policy in each world."""
    seed: int = 1_000_000
    """First session seed; training uses small ones."""
    out: Path = Path("runs/evaluation")
    """Where the report goes; a folder that holds another evaluation is refused."""
    json: Path | None = None
    """Also write the JSON report here."""
    address: str | None = None
    """Address of a running Ray cluster to join ("auto" finds it); worlds are then played side by side."""
    trust: tuple[str, ...] = ()
    """Modules of yours whose classes a policy or world folder may name; importing one runs its code."""
    settings: tyro.conf.OmitArgPrefixes[EvaluationSettings] = field(default_factory=EvaluationSettings)
    """How sessions are played and counted."""


def played(arguments: Arguments, contenders: Mapping[str, Any], worlds: Mapping[str, World]) -> list[EvaluationResult]:
    """Everyone in every world, one world after the other, or side by side on a cluster."""

    def play(name: str) -> EvaluationResult:
        settings, sessions = arguments.settings, arguments.num_sessions
        return evaluate(contenders, {name: worlds[name]}, num_sessions=sessions, seed=arguments.seed, settings=settings)

    if arguments.address:
        import ray

        from agents.rllib.cluster import running_ray

        with running_ray(1, arguments.address):
            return list(ray.get([ray.remote(play).remote(name) for name in worlds]))
    results: list[EvaluationResult] = []
    for name in worlds:
        print(f"{len(contenders)} policies play {name}, world {len(results) + 1} of {len(worlds)}", flush=True)
        results.append(play(name))
    return results


def run(arguments: Arguments) -> EvaluationResult:
    """Evaluates and writes the report; the folder is claimed before anything is played."""
    worlds = worlds_in(arguments.worlds, arguments.trust)
    first = next(iter(worlds.values()))
    slate_size = arguments.settings.slate_size or first.defaults.get("slate_size", 6)
    contenders = named_policies(arguments.policies, first, slate_size, arguments.trust)
    asked = {
        name: value for name, value in dataclasses.asdict(arguments).items() if name not in ("out", "json", "address")
    }
    card = {**to_plain(asked), "worlds": {name: world.digest for name, world in worlds.items()}}
    claim(arguments.out, card, name="evaluation.json")
    results = dict(zip(worlds, played(arguments, contenders, worlds), strict=True))
    cells = {(policy, world): results[world].cells[policy, world] for policy in contenders for world in worlds}
    cards = {world: card for result in results.values() for world, card in result.worlds.items()}
    result = EvaluationResult(cells=cells, worlds=cards, settings=next(iter(results.values())).settings)
    write_report(result, arguments.out, title="Policies in their worlds")
    return result


def leads(result: EvaluationResult, policies: tuple[str, ...]) -> str:
    """What these policies lead the baselines by, paired by session, as plain text."""
    rows = [row for policy in policies for row in differences(result, [policy], TO_BEAT)]
    texts = texts_of(frame_of(rows), sign="+")
    return "\n".join(
        f"{row.policy} - {row.baseline}, {row.world}: {text}" for row, text in zip(rows, texts, strict=True)
    )


def main(arguments: Arguments) -> None:
    """Evaluates, prints the table and says where the report is."""
    result = run(arguments)
    print("session watch time (s), mean and 95 % interval (over sessions: it speaks of these trained policies)\n")
    print(markdown(pivot(frame_of(result.rows()), "session_watch_time")))
    if named := repeaters(result):
        print(f"\n{named}")
    if lines := leads(result, tuple(name.partition("=")[0] for name in arguments.policies)):
        print(f"\npaired differences on the same sessions (s)\n{lines}\n")
    print(f"report: {arguments.out / 'report.html'}")
    if arguments.json:
        write_json(arguments.json, read_json(arguments.out / "report.json"))


if __name__ == "__main__":
    run_command(main, lambda: tyro.cli(Arguments, description=__doc__))
