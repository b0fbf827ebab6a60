"""Two public simulators at their own default settings, each in a virtual environment of its own.

Both run a random policy, one user at a time, as they are meant to be used. A request is one slate shown to one
user; rates are per CPU-second of the peer's own process, best of five windows, as for ours.
"""

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from tqdm import tqdm

FOLDER = Path("runs/peers")

_MEASURE = """
import json, time
def best(step, seconds=1.0, windows=5):
    step()
    rates = []
    for _ in range(windows):
        count, begin = 0, time.process_time()
        while time.process_time() - begin < seconds:
            step(); count += 1
        rates.append(count / (time.process_time() - begin))
    return max(rates)
"""

_SARDINE = """
import gymnasium as gym, sardine
env = gym.make("sardine/SlateTopK-Bored-v0")
env.reset(seed=0)
def step():
    _, _, terminated, truncated, _ = env.step(env.action_space.sample())
    if terminated or truncated:
        env.reset()
slate = int(env.action_space.shape[0])
"""

_RECSIM = """
from recsim.environments import interest_evolution
env = interest_evolution.create_environment(
    {"num_candidates": 10, "slate_size": 2, "resample_documents": True, "seed": 0})
env.reset()
def step():
    _, _, done, _ = env.step(env.action_space.sample())
    if done:
        env.reset()
slate = 2
"""


PEERS = {
    "SARDINE SlateTopK-Bored": (_SARDINE, "sardine-rec==1.0.8"),
    "RecSim interest evolution": (_RECSIM, "recsim-no-tf", "six"),
}
"""Name of each public simulator to its program and its packages, the main one first."""


def measure_peers() -> dict[str, dict[str, Any]]:
    """Requests per CPU-second of each peer; a peer that cannot be run says why."""
    return {name: _measure(*peer) for name, peer in tqdm(PEERS.items(), desc="peers", disable=None)}


def _measure(program: str, *packages: str) -> dict[str, Any]:
    folder = FOLDER / packages[0].split("=")[0]
    python = folder / "bin" / "python"
    try:
        if not (folder / ".installed").exists():
            venv.create(folder, with_pip=True, clear=True)
            command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages]
            subprocess.run(command, check=True, capture_output=True, text=True)
            (folder / ".installed").touch()
        program = _MEASURE + program + "print(json.dumps({'requests_per_cpu_second': best(step), 'slate': slate}))"
        done = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        return {"error": told.strip().splitlines()[-1] if told.strip() else "failed", "python": sys.version.split()[0]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**found, "requests_per_cpu_second": round(found["requests_per_cpu_second"])}
