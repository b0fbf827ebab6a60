"""Rollouts as files for RLlib's own offline algorithms (BC, MARWIL, CQL, IQL): one row a step, in RLlib's column names.

Shape legend: B sessions, T steps.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recsim_env.envs import RecVectorEnv
from recsim_env.files import write_whole
from recsim_env.slates import positions_of
from recsim_env.types import Policy


def export_rollout(env: RecVectorEnv, policy: Policy, num_steps: int, path: str | Path, *, seed: int = 0) -> int:
    """Plays a policy and writes every step into one Parquet file.

    Args:
        env: with ``action="slate"`` and ``observation="features"``, whose arrays RLlib can read.
        policy: shows candidates of the request.
        num_steps: T, calls of the batched environment.
        path: the file.
        seed: of sessions and draws.

    Returns:
        Rows written; steps that only reset a session are left out.

    Raises:
        ValueError: another action or observation form.
    """
    if (env.config.action, env.config.observation) != ("slate", "features"):
        raise ValueError(
            "an export needs action='slate' and observation='features', got "
            f"{env.config.action!r} and {env.config.observation!r}"
        )
    generator = torch.Generator(device=env.simulator.device).manual_seed(seed)
    observation, _ = env.reset(seed=seed)
    number_B, step_B = np.arange(env.num_envs), np.zeros(env.num_envs, dtype=np.int64)
    columns: dict[str, list[np.ndarray]] = {}
    for _ in range(num_steps):
        positions_BK = positions_of(policy(env.request, generator).items_BK, env.request.candidates_BC).cpu().numpy()
        following, reward_B, terminated_B, truncated_B, infos = env.step(positions_BK)
        valid_B = infos["_rewards"]
        rows = {
            "eps_id": number_B, "t": step_B, "obs": observation, "actions": positions_BK, "rewards": reward_B,
            "new_obs": following, "terminateds": terminated_B, "truncateds": truncated_B,
        }  # fmt: skip
        for name, column in rows.items():
            columns.setdefault(name, []).append(column[valid_B])
        ended_B = terminated_B | truncated_B
        number_B = np.where(ended_B, number_B.max() + 1 + np.arange(env.num_envs), number_B)
        step_B = np.where(ended_B | ~valid_B, 0, step_B + 1)
        observation = following
    table = pa.table({name: _arrow(np.concatenate(parts), name) for name, parts in columns.items()})
    write_whole(path, lambda aside: pq.write_table(table, aside))
    return len(table)


def _arrow(column: np.ndarray, name: str) -> Any:
    if name == "eps_id":
        return pa.array(column.astype(str))
    return pa.array(column) if column.ndim == 1 else pa.array(list(column))
