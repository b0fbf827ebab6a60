"""Ray for the time of a run: the one that runs already, a cluster to join, or a local one; and whether it has GPUs."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch

_ANSWER_WITHIN = 2.0
"""Seconds that a cluster has to answer in; Ray itself would try for minutes."""


@contextmanager
def running_ray(num_cpus: int, address: str | None = None) -> Iterator[None]:
    """Ray for the time of a run, unless it runs already; without RLlib's warnings about its own old parts.

    Args:
        num_cpus: CPUs that a local Ray should believe in, so that nothing waits for them for ever.
        address: of a running cluster to join ("host:port" or "ray://host:port"), or "auto".

    Raises:
        ValueError: nobody answers at the address, or another Ray runs in this process.
    """
    joined = ray.is_initialized()
    if joined:
        _check_runs_at(address)
    else:
        _start(num_cpus, address)
    rllib_logger = logging.getLogger("ray.rllib")
    level = rllib_logger.level
    rllib_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        rllib_logger.setLevel(level)
        if not joined:
            ray.shutdown()


def check_gpus(config: Any) -> None:
    """Raises a ValueError if more GPUs are asked for than there are; Ray would wait for them for ever."""
    learners = max(config.num_learners, 1) * config.num_gpus_per_learner
    runners = config.num_env_runners * config.num_gpus_per_env_runner
    wanted = learners + runners
    found = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else torch.cuda.device_count()
    if wanted > found:
        raise ValueError(
            f"asked for {wanted:g} GPUs ({learners:g} for learners, {runners:g} for env runners), found "
            f"{found:g}; lower num_gpus_per_learner, num_learners or num_gpus_per_env_runner"
        )


def _start(num_cpus: int, address: str | None) -> None:
    # Workers import this project from where this process does, and use one thread each: on shared cores more
    # threads slow torch down many times.
    root = str(Path(__file__).resolve().parents[2])
    import_path = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    env_vars = {"PYTHONPATH": os.pathsep.join(import_path), "OMP_NUM_THREADS": "1"}
    local = {} if address else {"num_cpus": max(num_cpus, os.cpu_count() or 1), "include_dashboard": False}
    try:
        if address:
            _call(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": env_vars},
            **local,
        )
    except (OSError, OverflowError) as error:  # Ray's own ConnectionError is an OSError
        if not address:
            raise
        raise ValueError(f"no Ray cluster at address {address!r}: {error}") from error


def _call(address: str) -> None:
    """Raises an OSError if nobody listens at the address; "auto" is left to Ray, which looks on this machine only."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not (host and port.isdigit()):
        raise ValueError(f"address must be 'host:port', 'ray://host:port' or 'auto', got {address!r}")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_WITHIN).close()


def _check_runs_at(address: str | None) -> None:
    here = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", here):
        raise ValueError(
            f"Ray runs in this process already, at {here}, and not at {address!r}; leave the address out to use it, or "
            "call ray.shutdown() first"
        )
