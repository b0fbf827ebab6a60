"""Writes ``experiments/RESULTS.md`` from the small JSON files of finished runs.

    python -m experiments.results_page

Nothing is measured here: every figure stands in a file of ``experiments/results`` beside the command that made it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments.command import run_command
from recsim_env.files import read_json, write_text


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Where the files are and where the page goes."""

    results: Path = Path("experiments/results")
    """Folder of the JSON files."""
    page: Path = Path("experiments/RESULTS.md")
    """The page."""


def page(folder: Path) -> str:
    """The whole page from the files of a folder."""
    lines = ["# Results", "", "Made by `python -m experiments.results_page` from the files in `experiments/results`."]
    for name, section in (
        ("response_bars", _response_bars),
        ("demo", _demo),
        ("demo_kuairand", _demo),
        ("benchmark_env", _benchmark_env),
        ("benchmark_rllib", _benchmark_rllib),
        ("benchmark_rerankers", _benchmark_rerankers),
    ):
        path = folder / f"{name}.json"
        if path.exists():
            content = read_json(path)
            lines += ["", *section(content), "", _origin(content, path)]
    for path in sorted(folder.glob("rerank_protocol-*.json")):
        content = read_json(path)
        lines += ["", *_protocol(content), "", _origin(content, path)]
    for table, chapter in (("goalrank", _compare), ("rerankers", _rerankers)):
        settings: dict[str, list[dict[str, Any]]] = {}
        for path in sorted(folder.glob(f"{table}-*.json")):
            content = read_json(path)
            settings.setdefault(content["setting"], []).append({**content, "path": path})
        for setting, worlds in settings.items():
            lines += ["", *chapter(setting, worlds), ""]
            lines += [_origin({k: v for k, v in w.items() if k != "path"}, w["path"]) + "  " for w in worlds]
    return "\n".join(lines) + "\n"


def _origin(content: dict[str, Any], path: Path) -> str:
    machine = content.get("machine", {})
    told = [f"`{content['command']}`"] if "command" in content else []
    told += [str(content[key]) for key in ("date", "commit") if content.get(key)]
    if machine:
        told.append(f"{machine['processor']}, {machine['cores']} cores, {machine['device']}, torch {machine['torch']}")
    return f"*{' · '.join([*told, f'[{path.name}](results/{path.name})'])}*"


def _response_bars(content: dict[str, Any]) -> Iterator[str]:
    yield "## Learned users on KuaiRand-Pure"
    yield ""
    if "note" in content:
        yield content["note"]
        yield ""
    yield "| bar | wanted | value | 95 % interval | verdict |"
    yield "|---|---|---|---|---|"
    for check in content["checks"]:
        interval = "" if check["low"] is None else f"{check['low']:.4f} to {check['high']:.4f}"
        yield f"| {check['name']} | {check['bar']} | {check['value']:.4f} | {interval} | {check['verdict']} |"


def _demo(content: dict[str, Any]) -> Iterator[str]:
    yield f"## {content['title']}"
    yield ""
    yield "Session watch time in seconds, mean and 95 % interval over sessions; one training seed."
    yield ""
    rows = [row for row in content["rows"] if row["metric"] == "session_watch_time"]
    worlds = list(dict.fromkeys(row["world"] for row in rows))
    yield f"| policy | {' | '.join(worlds)} |"
    yield f"|---|{'---|' * len(worlds)}"
    for policy in dict.fromkeys(row["policy"] for row in rows):
        found = {row["world"]: row for row in rows if row["policy"] == policy}
        cells = [_cell(found.get(world)) for world in worlds]
        yield f"| {policy} | {' | '.join(cells)} |"
    yield ""
    yield "| paired difference | seconds | 95 % interval | verdict |"
    yield "|---|---|---|---|"
    for check in content["checks"]:
        interval = f"{check['low']:+.0f} to {check['high']:+.0f}"
        yield f"| {check['name']} | {check['value']:+.0f} | {interval} | {check['verdict']} |"
    yield ""
    yield f"Wall time {content['wall_seconds'] / 60:.1f} minutes. {content.get('note', '')}".rstrip()


def _compare(setting: str, worlds: list[dict[str, Any]]) -> Iterator[str]:
    rows = [row for world in worlds for row in world["rows"]]
    seeds = max(row["seeds"] for row in rows)
    sessions = max(row["sessions"] for row in rows)
    yield f"## GoalRank over {seeds} training seeds: {setting}"
    yield ""
    yield (
        f"Session watch time in seconds, {sessions:,} sessions in each world. Intervals are over training seeds where "
        "there are several, otherwise over sessions; policies that search played fewer sessions."
    )
    yield ""
    if worlds[0]["list_effect"]["declared"]:
        yield f"Declared list effect: {worlds[0]['list_effect']['declared']:g}."
        yield ""
    yield "Times these worlds were opened: " + ", ".join(f"{w['world']} {w['openings']}" for w in worlds) + "."
    yield ""
    names = [world["world"] for world in worlds]
    for metric, title in (("session_watch_time", "policy"), ("true_list_value", "policy: expected seconds of a slate")):
        yield f"| {title} | {' | '.join(names)} |"
        yield f"|---|{'---|' * len(names)}"
        chosen = [row for row in rows if row["metric"] == metric]
        for policy in dict.fromkeys(row["policy"] for row in chosen):
            found = {row["world"]: row for row in chosen if row["policy"] == policy}
            yield f"| {policy} | {' | '.join(_cell(found.get(name)) for name in names)} |"
        yield ""
    yield "| paired difference | seconds | over seeds | over sessions | verdict |"
    yield "|---|---|---|---|---|"
    for check in (check for world in worlds for check in world["checks"]):
        both = [f"{low:+.0f} to {high:+.0f}" for low, high in (check["over_seeds"], check["over_sessions"])]
        yield f"| {check['name']} | {check['value']:+.0f} | {both[0]} | {both[1]} | {check['verdict']} |"


def _rerankers(setting: str, worlds: list[dict[str, Any]]) -> Iterator[str]:
    yield f"## Rerankers on the same requests: {setting}"
    yield ""
    budget = worlds[0]["budget"]
    yield (
        f"Expected seconds of the shown slate on {worlds[0]['num_requests']:,} requests; every trained ranker had "
        f"{budget['iterations'] * 512:,} requests in world A. MG-E-k: {worlds[0]['orders']} random orders of "
        f"{len(worlds[0]['generators'])} generators. Intervals as above. Beside it stand the opinion of the evaluator "
        "that a method asks and the share of requests whose list the world's own evaluator puts above 99 % of 200 "
        "lists drawn around the pointwise sort."
    )
    yield ""
    if worlds[0]["list_effect"]["declared"]:
        yield f"Declared list effect: {worlds[0]['list_effect']['declared']:g}."
        yield ""
    names = [world["world"] for world in worlds]
    rows = [row for world in worlds for row in world["rows"] if row["baseline"] is None]
    yield f"| method | {' | '.join(names)} | evaluator | top 1 % |"
    yield f"|---|{'---|' * (len(names) + 2)}"
    for policy in dict.fromkeys(row["policy"] for row in rows if row["metric"] == "true_list_value"):
        own = {(row["metric"], row["world"]): row for row in rows if row["policy"] == policy}
        cells = [_cell(own.get(("true_list_value", name))) for name in names]
        value, top = (own[metric, names[-1]]["mean"] for metric in ("evaluator_value", "evaluator_top_share"))
        yield f"| {policy} | {' | '.join(cells)} | {value:.0f} | {top:.2f} |"
    yield ""
    yield from _families(worlds[0])
    yield from _comprehensiveness(worlds[0])
    yield "| ratio of true list values | value | over seeds | over requests | bar | verdict |"
    yield "|---|---|---|---|---|---|"
    for check in (check for world in worlds for check in world["checks"]):
        spans = (check["over_seeds"], check["over_requests"])
        both = ["" if low is None else f"{low:.4f} to {high:.4f}" for low, high in spans]
        bar = "" if check["bar"] is None else f"{check['side']} {check['bar']:g}"
        yield f"| {check['name']} | {check['value']:.4f} | {both[0]} | {both[1]} | {bar} | {check['verdict']} |"
    yield ""
    yield f"| seconds watched in a session | {' | '.join(names)} |"
    yield f"|---|{'---|' * len(names)}"
    played = [row for row in rows if row["metric"] == "session_watch_time"]
    for policy in dict.fromkeys(row["policy"] for row in played):
        by_world = {row["world"]: row for row in played if row["policy"] == policy}
        yield f"| {policy} | {' | '.join(_cell(by_world.get(name)) for name in names)} |"


def _families(world: dict[str, Any]) -> Iterator[str]:
    """The generators by family, each with the one that the evaluator likes best."""
    families: dict[str, list[dict[str, Any]]] = {}
    for generator in world["generators"]:
        words = generator["name"].split()
        known = words[0] in ("sort", "mmr", "dpp")
        family = " ".join(words[: 1 if words[0] == "sort" else 2]) if known else generator["name"]
        families.setdefault(family, []).append(generator)
    yield f"| generators | number | best by the evaluator | its value | value in {world['world']} | nearest other |"
    yield "|---|---|---|---|---|---|"
    for family, some in families.items():
        best = max(some, key=lambda generator: generator["evaluator_value"])
        values = f"{best['evaluator_value']:.0f} | {best['true_list_value']:.0f} | {best['nearest_distance']:.3f}"
        yield f"| {family} | {len(some)} | {best['name']} | {values} |"
    yield ""


def _comprehensiveness(world: dict[str, Any]) -> Iterator[str]:
    """How much sets of generators cover, by both distances."""
    sets = world.get("comprehensiveness", [])  # older files have none
    if sets:
        yield f"| list comprehensiveness in {world['world']} | {' | '.join(row['set'] for row in sets)} |"
        yield f"|---|{'---|' * len(sets)}"
        for kind, told in (("pair_order", "pair order"), ("embedding", "embedding")):
            yield f"| {told} | {' | '.join(f'{row[kind]:.2f}' for row in sets)} |"
        yield ""


def _protocol(content: dict[str, Any]) -> Iterator[str]:
    settings = list(dict.fromkeys(row["setting"] for row in content["rows"]))
    yield f"## Offline reranking protocol on {content['data']}: {', '.join(settings)}"
    yield ""
    yield (
        f"Per cent, mean and half the 95 % interval over {content['seeds']} training seeds; width {content['width']}, "
        f"at most {content['max_epochs']} epochs. AUC for methods that score all candidates."
    )
    yield ""
    metrics = list(dict.fromkeys(row["metric"] for row in content["rows"]))
    yield f"| setting | method | {' | '.join(metrics)} |"
    yield f"|---|---|{'---|' * len(metrics)}"
    for setting in settings:
        rows = [row for row in content["rows"] if row["setting"] == setting]
        for method in dict.fromkeys(row["method"] for row in rows):
            found = {row["metric"]: row for row in rows if row["method"] == method}
            cells = [_per_cent(found.get(metric)) for metric in metrics]
            yield f"| {setting} | {method} | {' | '.join(cells)} |"


def _per_cent(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    half = "" if row["low"] is None else f" ± {50 * (row['high'] - row['low']):.1f}"
    return f"{100 * row['mean']:.1f}{half}"


def _benchmark_rerankers(content: dict[str, Any]) -> Iterator[str]:
    yield "## What a list costs"
    yield ""
    yield "CPU-microseconds of one thread for each request, the evaluator's part included."
    yield ""
    yield "| shown slate by | one request | 256 side by side |"
    yield "|---|---|---|"
    for name, cost in content["methods_us"].items():
        yield f"| {name} | {cost['1']:,.0f} | {cost['256']:,.0f} |"
    yield ""
    for name, costs in content["k_lists_over_k"].items():
        told = ", ".join(f"k = {k}: {value:g}" for k, value in costs.items())
        yield f"- k lists of the {name.replace('_', ' ')} decoder over k times one list: {told}"


def _cell(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['mean']:.0f} ({row['low']:.0f} to {row['high']:.0f})"


def _benchmark_env(content: dict[str, Any]) -> Iterator[str]:
    yield f"## Speed of the simulator ({content['world']}, {content['items']:,} videos)"
    yield ""
    yield "Requests per CPU-second of one thread; 50 candidates, slates of 6, history 100."
    yield ""
    batches = list(content["requests_per_cpu_second"])
    yield f"| sessions side by side | {' | '.join(batches)} |"
    yield f"|---|{'---|' * len(batches)}"
    for key, label in (
        ("requests_per_cpu_second", "full step"),
        ("core_requests_per_cpu_second", "core step: slates given"),
        ("face_requests_per_cpu_second", "Gymnasium face"),
        ("step_over_forward", "core step / response forward"),
        ("reset_over_step", "reset / full step"),
    ):
        yield f"| {label} | {' | '.join(str(content[key][batch]) for batch in batches)} |"
    yield ""
    yield f"{content['bytes_per_session']:,} bytes per session. Microseconds per request at batch 256:"
    yield ""
    for name, costs in content["cost"].items():
        yield f"- {name}: " + ", ".join(f"{size}: {cost}" for size, cost in costs.items())
    for name, figure in content.get("peers", {}).items():
        told = (
            figure.get("error")
            or f"{figure['requests_per_cpu_second']:,} requests per CPU-second, slate {figure['slate']}"
        )
        yield f"- {name}, one user at a time: {told}"


def _benchmark_rllib(content: dict[str, Any]) -> Iterator[str]:
    yield "## RLlib's Python per environment step"
    yield ""
    yield (
        f"At {content['num_envs']} environments: {content['overhead_us']} us above environment and policy, stock RLlib "
        f"{content['stock_overhead_us']} us (ratio {content['overhead_over_stock']})."
    )


def main(arguments: Arguments) -> None:
    """Writes the page."""
    print(write_text(arguments.page, page(arguments.results)))


if __name__ == "__main__":
    run_command(main, lambda: tyro.cli(Arguments, description=__doc__))
