"""CPU against GPU: whether they agree, how fast each plays, what an update of GoalRank takes, and how much memory.

    python -m experiments.benchmarks.gpu [--world FOLDER] [--device cuda] [--json PATH] [--quick]

One prepared run of at most eight minutes for a machine that is lent for a quarter of an hour: it needs the package's
own dependencies and no Ray. Without ``--world`` a small world is fitted first, on the CPU. With ``--device cpu`` the
CPU is compared with itself, which shows that the script works.

Keys of the report: ``agreement`` (by world, see ``agreement``), ``requests_per_second`` (by world, device and batch:
``full`` reads candidates and predictions, ``catalogue`` shows items without reading them; wall-clock time),
``goalrank_update_ms`` (by device and minibatch), ``peak_memory_mb`` (by device: of the process, or of the GPU).

Shape legend: B sessions, K places, F signals, G lists.
"""

import argparse
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from agents.goalrank import GoalRank, GoalRankConfig
from agents.method import Operator, collect
from agents.networks import RequestShape
from experiments.benchmarks.timing import Player, microseconds
from recsim_env.files import write_json
from recsim_env.known_worlds import short_video_world, tiny_world
from recsim_env.known_worlds.logs import synthetic_log
from recsim_env.provenance import stamp
from recsim_env.simulator import Simulator
from recsim_env.world import World

MOST_PARTED = 0.01
"""Largest share of requests at which a session may part from its twin on the other device. Sums are rounded otherwise
there, and a probability that falls on the other side of a draw makes another click; from then on the two differ."""

WATCH_TOLERANCE = 1e-3
"""Relative and absolute difference of watch times (s) below which two draws are called the same."""

CPU_SESSIONS = 8192
"""The largest batch played on the CPU: a larger one takes tens of seconds a request there and is no faster."""

SIZES = ("num_candidates", "slate_size", "max_requests", "history_length")


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, help="a learned world's folder; a small world is fitted by default")
    parser.add_argument("--device", default="cuda", help="what is compared with the CPU")
    parser.add_argument("--json", type=Path, default=Path("experiments/results/benchmark_gpu.json"))
    parser.add_argument("--quick", action="store_true", help="small batches and short windows, to try the script")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device on this machine; use --device cpu to try the script")
    report = measure(options.world, options.device, options.quick)
    write_json(options.json, report)
    for key in ("agreement", "requests_per_second", "goalrank_update_ms", "peak_memory_mb"):
        print(f"{key}: {report[key]}")
    parted = [name for name, found in report["agreement"].items() if not found["agrees"]]
    if parted:
        raise SystemExit(f"CPU and {options.device} do not agree in {', '.join(parted)}: see {options.json}")


def measure(world_folder: Path | None, device: str, quick: bool) -> dict[str, Any]:
    """The whole report; seconds are spent by the clock, so that eight minutes are enough on any machine."""
    worlds = {
        "tiny": tiny_world(),
        "short_video": short_video_world(),
        "learned": World.load(world_folder) if world_folder else fitted_world(),
    }
    batches = (64, 256) if quick else (1024, 8192, 65536)
    minibatches = (16,) if quick else (64, 1024)
    seconds = 0.2 if quick else 4.0
    devices = list(dict.fromkeys(("cpu", device)))
    report: dict[str, Any] = {**stamp(), "sessions_compared": 64 if quick else 4096}
    report["agreement"] = {
        name: agreement(world, device, report["sessions_compared"])
        for name, world in tqdm(worlds.items(), desc="agreement", disable=None)
    }
    report["requests_per_second"] = {
        name: {where: speeds(worlds[name], where, batches, seconds) for where in devices}
        for name in ("short_video", "learned")
    }
    report["goalrank_update_ms"] = {
        where: {rows: update_ms(worlds["learned"], where, rows, seconds) for rows in minibatches} for where in devices
    }
    report["peak_memory_mb"] = {where: peak_memory_mb(where) for where in devices}
    return report


def fitted_world() -> World:
    """A small world learned from a synthetic log, in a minute: what is measured with it does not need a good fit."""
    from reward_models.build import build_worlds  # brings the libraries of the fits
    from reward_models.plan import SHORT_FIT, BuildConfig

    log = synthetic_log(short_video_world(num_users=400, num_items=2000, seed=4), num_sessions=400, days=6, seed=4)
    with TemporaryDirectory() as folder:
        config = BuildConfig(test_days=2, stopping_days=0, judges=1, judge_dev=False, jobs=1, fit=SHORT_FIT)
        return World.load(build_worlds(log, Path(folder), config)["A"])


def simulator_of(world: World, device: str) -> Simulator:
    """The world's own sizes on a device."""
    sizes = {name: world.defaults[name] for name in SIZES if name in world.defaults}
    return Simulator(world, device=device, **sizes)


@torch.no_grad()
def agreement(world: World, device: str, num_sessions: int, requests: int = 10) -> dict[str, Any]:
    """The same sessions with the same slates on the CPU and on a device.

    A session that parts from its twin is not compared any further.

    Returns:
        ``parted_share`` (of the requests compared), ``watch_difference`` (largest, in s, before sessions part),
        ``prediction_difference`` (largest, relative, at the first request), ``mean_watch_ratio`` (over everything
        played), and whether this ``agrees``: see ``MOST_PARTED``.
    """
    ours, theirs = simulator_of(world, "cpu"), simulator_of(world, device)
    state, other = ours.start(num_sessions, 0), theirs.start(num_sessions, 0)
    same_B = torch.ones(num_sessions, dtype=torch.bool)
    compared, parted, watch_difference = 0, 0, 0.0
    offered = other.request.offering(state.request.candidates_BC.to(theirs.device))
    predicted_BCF, found_BCF = state.request.predicted_BCF, offered.predicted_BCF.cpu()
    difference = float(((found_BCF - predicted_BCF).abs() / (1.0 + predicted_BCF.abs())).max())
    totals = [0.0, 0.0]
    for _ in range(min(requests, ours.max_requests)):
        items_BK = state.request.candidates_BC[:, : ours.slate_size]
        state, feedback = ours.step(state, items_BK)
        other, twin = theirs.step(other, items_BK.to(theirs.device))
        signals_BKF, twin_BKF = feedback.signals_BKF, twin.signals_BKF.cpu()
        gap_BK = (signals_BKF[..., 0] - twin_BKF[..., 0]).abs()
        far_BK = gap_BK > WATCH_TOLERANCE * (1.0 + signals_BKF[..., 0])
        other_BK = (signals_BKF[..., 1:] != twin_BKF[..., 1:]).any(dim=2) | (feedback.seen_BK != twin.seen_BK.cpu())
        parts_B = same_B & ((far_BK | other_BK).any(dim=1) | (feedback.left_B != twin.left_B.cpu()))
        compared, parted = compared + int(same_B.sum()), parted + int(parts_B.sum())
        same_B = same_B & ~parts_B
        watch_difference = max(watch_difference, float(gap_BK[same_B].max()) if bool(same_B.any()) else 0.0)
        totals = [total + float(s[..., 0].sum()) for total, s in zip(totals, (signals_BKF, twin_BKF), strict=True)]
    share, ratio = parted / max(compared, 1), totals[1] / max(totals[0], 1e-9)
    return {
        "parted_share": share,
        "watch_difference": watch_difference,
        "prediction_difference": difference,
        "mean_watch_ratio": ratio,
        "agrees": share <= MOST_PARTED and abs(ratio - 1.0) < 0.01 and difference < WATCH_TOLERANCE,
    }


def speeds(world: World, device: str, batches: tuple[int, ...], seconds: float) -> dict[str, dict[int, int]]:
    """Requests per second of the simulator by batch size, with candidates and predictions read and without."""
    simulator = simulator_of(world, device)
    found: dict[str, dict[int, int]] = {"full": {}, "catalogue": {}}
    for batch in tqdm(batches, desc=f"{world.name} on {device}", disable=None):
        for kind, rates in found.items():
            player = Player(simulator, batch, reads=kind == "full", played=0)
            if device == "cpu" and batch > CPU_SESSIONS:
                continue
            rates[batch] = round(1e6 / microseconds(player, seconds, windows=1, clock=time.perf_counter))
    return found


def update_ms(world: World, device: str, rows: int, seconds: float) -> float:
    """Milliseconds of one gradient step of GoalRank on a minibatch of requests with their groups."""
    simulator = simulator_of(world, device)
    request = simulator.start(rows, 0).request
    played, size = simulator.world, simulator.slate_size
    method = GoalRank(GoalRankConfig(auxiliary_share=0.0))
    network = method.network(RequestShape.of(request, len(played.catalogue), size)).to(device)
    operator = Operator(signals=played.signals, catalogue=played.catalogue, slate_size=size, evaluator=played.evaluator)
    method.begin(operator)
    generator = torch.Generator(device).manual_seed(0)
    step = collect(method, network, request, operator, generator, num_requests=0)
    batch = {**request._asdict(), **step.columns}
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)

    def update() -> int:
        loss, _ = method.loss(method.outputs(network, batch), batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if simulator.device.type == "cuda":
            torch.cuda.synchronize(simulator.device)
        return 1

    return round(microseconds(update, seconds, windows=1, clock=time.perf_counter) / 1e3, 3)


def peak_memory_mb(device: str) -> int:
    """The most memory in use so far: of the process for the CPU, of the tensors for a GPU."""
    if torch.device(device).type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


if __name__ == "__main__":
    main()
