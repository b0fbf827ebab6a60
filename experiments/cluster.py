"""Ray for the time of a verb: the running cluster at an address, or a local one."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def running_ray(address: str | None = None, num_cpus: int | None = None) -> Iterator[None]:
    """Joins the cluster at ``address`` ("auto" finds it) or starts one here; a Ray that runs already is used as it is.

    Workers import the project from this checkout, which all machines of a cluster must see at the same path, and take
    as many threads as ``OMP_NUM_THREADS`` says, one by default: more only get in each other's way on shared cores.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    variables = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    local = {} if address else {"num_cpus": num_cpus or os.cpu_count() or 1, "include_dashboard": False}
    ray.init(
        address=address,
        logging_level=logging.ERROR,
        log_to_driver=False,
        runtime_env={"env_vars": variables},
        **local,
    )
    try:
        yield
    finally:
        ray.shutdown()
