"""Builds killed without warning end with the same bytes as one left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from reward_models.build import build_worlds
from reward_models.plan import BuildConfig
from recsim_env.known_worlds.logs import synthetic_log
from recsim_env.known_worlds import short_video_world
from reward_models.users.fitting import ResponseFitConfig
from reward_models.trainer import TrainConfig

if __name__ == "__main__":
    log = synthetic_log(short_video_world(num_users=400, num_items=150, seed=4), num_sessions=400, days=6, seed=4)
    fit = ResponseFitConfig(calibration_folds=2, train=TrainConfig(max_epochs=2), list_train=TrainConfig(max_epochs=2))
    parts = {"judges": 1, "judge_dev": False, "depth_sessions": 0}
    build_worlds(log, Path(sys.argv[1]), BuildConfig(test_days=2, stopping_days=1, fit=fit, **parts))
"""


def files(folder: Path) -> dict[str, bytes]:
    """What a world's folder holds, but for the day, the machine and the commit."""
    kept = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "world.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


@pytest.mark.slow
def test_a_build_killed_at_three_random_moments_ends_with_the_same_worlds(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def command(folder: str) -> list[str]:
        return [sys.executable, str(program), str(tmp_path / folder)]

    begun = time.monotonic()
    subprocess.run(command("whole"), env=environment, check=True)
    seconds = time.monotonic() - begun
    moments = random.Random(5)
    for _ in range(3):
        running = subprocess.Popen(command("killed"), env=environment, start_new_session=True)
        time.sleep(seconds * moments.uniform(0.3, 0.9))
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    subprocess.run(command("killed"), env=environment, check=True)
    for world in ("A", "judge-final-1"):
        whole = files(tmp_path / "whole" / world)
        assert {"models.safetensors", "tables.safetensors"} <= set(whole)
        assert files(tmp_path / "killed" / world) == whole
