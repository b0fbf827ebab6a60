"""The GPU benchmark tried on the CPU, and its comparison on a device that disagrees."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.benchmarks import gpu
from recsim_env.known_worlds import short_video_world
from recsim_env.simulator import Simulator
from recsim_env.world import World
from tests.helpers.learned import shared_learned_worlds


def test_the_whole_script_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shared_learned_worlds()["A"].save(tmp_path / "A")
    words = ["gpu", "--device", "cpu", "--quick", "--world", str(folder), "--json", str(tmp_path / "gpu.json")]
    monkeypatch.setattr(sys, "argv", words)
    gpu.main()
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert set(report["agreement"]) == {"tiny", "short_video", "learned"}
    for found in report["agreement"].values():
        assert found["agrees"]
        assert found["parted_share"] == found["watch_difference"] == 0.0
    for name in ("short_video", "learned"):
        rates = report["requests_per_second"][name]["cpu"]
        assert rates["catalogue"]["256"] > rates["full"]["256"] > 0
    assert report["goalrank_update_ms"]["cpu"]["16"] > 0
    assert report["peak_memory_mb"]["cpu"] > 50


class Shifted:
    """The users of a world on a device that computes wrongly: one second more for every hundredth session."""

    def __init__(self, world: World):
        self._response = world.response

    def __getattr__(self, name: str) -> object:
        return getattr(self._response, name)

    def respond(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, uniform_BKJ: Tensor) -> Tensor:
        signals_BKF = self._response.respond(state_BS, context_BX, items_BK, uniform_BKJ)
        signals_BKF[::100, 0, 0] += 1.0
        return signals_BKF


def test_disagreement_is_counted_once_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    world = short_video_world(num_users=50, num_items=100)

    def simulator_of(world: World, device: str) -> Simulator:
        return Simulator(world.replace(response=Shifted(world)) if device == "other" else world, num_candidates=20)

    monkeypatch.setattr(gpu, "simulator_of", simulator_of)
    found = gpu.agreement(world, "other", 200, requests=3)
    assert found["parted_share"] == pytest.approx(2 / (200 + 198 + 198))
    assert found["watch_difference"] == 0.0


@pytest.mark.gpu
def test_cpu_and_gpu_agree() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for world in (short_video_world(), shared_learned_worlds()["A"]):
        assert gpu.agreement(world, "cuda", 1024)["agrees"]
