"""Digests tell contents apart, and nothing else."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from recsim_env.data import LoggedDataset
from recsim_env.digests import digest_frame, digest_json, digest_tensors
from recsim_env.known_worlds import short_video_world
from recsim_env.known_worlds.logs import synthetic_log


@pytest.fixture(scope="module")
def log() -> LoggedDataset:
    return synthetic_log(short_video_world(num_users=30, num_items=60, seed=1), num_sessions=30, days=3, seed=1)


def test_one_flipped_label_is_another_log_and_another_name_is_not(log: LoggedDataset) -> None:
    rows = log.rows.copy()
    rows.loc[rows.index[7], "click"] = 1 - rows["click"].iloc[7]
    assert dataclasses.replace(log, rows=rows).digest != log.digest
    rows.loc[rows.index[7], "click"] = log.rows["click"].iloc[7]
    again = dataclasses.replace(log, name="copy", rows=rows[rows.columns[::-1]], counts={})
    assert again.digest == log.digest


@pytest.mark.parametrize("table", ["users", "items", "history"])
def test_every_table_counts(log: LoggedDataset, table: str) -> None:
    frame = getattr(log, table)
    changed = frame.copy() if frame is not None else pd.DataFrame({"user": [0], "item": [0], "position": [0]})
    changed["column_of_nines"] = np.full(len(changed), 9)
    assert dataclasses.replace(log, **{table: changed}).digest != log.digest


def test_tags_count_by_item() -> None:
    one = pd.DataFrame({"tags": [[1, 2], [3]]})
    other = pd.DataFrame({"tags": [[1], [2, 3]]})
    assert digest_frame(one) != digest_frame(other)
    assert digest_frame(one) == digest_frame(pd.DataFrame({"tags": [np.array([1, 2]), np.array([3])]}))


def test_tensors_are_told_apart_by_name_type_shape_and_bytes() -> None:
    x = torch.arange(6.0)
    same = digest_tensors({"x": x, "y": x + 1})
    assert same == digest_tensors({"y": x + 1, "x": x.clone()})
    others = [
        {"x": x + 1, "y": x},
        {"x": x.double(), "y": x + 1},
        {"x": x.view(2, 3), "y": x + 1},
        {"x": x, "z": x + 1},
    ]
    assert same not in {digest_tensors(other) for other in others}
    assert digest_json({"a": 1, "b": [2]}) == digest_json({"b": [2], "a": 1}) != digest_json({"a": 1, "b": [3]})
