"""Writes a log as a KuaiRand folder, so that it can be read, shared or fed to other people's code."""

from pathlib import Path

import numpy as np
import pandas as pd

from recsim_env.data.schema import USUAL_SIGNALS, LoggedDataset
from recsim_env.files import whole_folder
from recsim_env.types import WATCH_TIME

_FLAGS = {
    "is_click": "click",
    "is_like": "like",
    "is_follow": "follow",
    "is_comment": "comment",
    "is_forward": "forward",
    "is_hate": "hate",
    "long_view": "long_view",
}
_EXTRA = ("session", "request", "place", "propensity", "candidates")
_UNKNOWN = -124  # how KuaiRand writes an unknown flag of a user
_NO_RANGE = "0"
_USER_COLUMNS = {
    "user_id": 0,
    "user_active_degree": "UNKNOWN",
    "is_lowactive_period": 0,
    "is_live_streamer": _UNKNOWN,
    "is_video_author": 0,
    "follow_user_num": 0,
    "follow_user_num_range": _NO_RANGE,
    "fans_user_num": 0,
    "fans_user_num_range": _NO_RANGE,
    "friend_user_num": 0,
    "friend_user_num_range": _NO_RANGE,
    "register_days": 0,
    "register_days_range": _NO_RANGE,
    **{f"onehot_feat{i}": 0 for i in range(18)},
}
"""The official user columns, with what stands where a log has no such column."""
_VIDEO_COLUMNS = {
    "video_id": 0,
    "author_id": 0,
    "video_type": "NORMAL",
    "upload_dt": "2022-04-10",
    "upload_type": "ShortImport",
    "visible_status": 0.0,
    "video_duration": np.nan,
    "server_width": 720.0,
    "server_height": 1280.0,
    "music_id": 0,
    "music_type": 9.0,
    "tag": "",
}
"""The official video columns, likewise."""


def write_kuairand(dataset: LoggedDataset, folder: str | Path) -> Path:
    """Writes a log as the files of a KuaiRand-Pure folder, in its columns and units.

    Columns that the log lacks are filled with KuaiRand's own neutral values. ``session``, ``request``,
    ``place``, ``propensity`` and ``candidates``, which KuaiRand lacks, follow after the official columns.

    Args:
        dataset: a log with all signals of KuaiRand and known watch times.
        folder: where the files go; made whole or not at all.

    Returns:
        The folder.

    Raises:
        ValueError: a signal is missing, a watch time is unknown, or the folder holds something already.
    """
    folder = Path(folder)
    missing = [name for name in USUAL_SIGNALS if name not in dataset.signals]
    if missing:
        raise ValueError(f"KuaiRand files need the signals {USUAL_SIGNALS}, the log {dataset.name!r} lacks {missing}")
    if dataset.rows[WATCH_TIME].isna().any():
        raise ValueError(f"the log {dataset.name!r} has rows of unknown watch time: drop them first")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something already: give a new folder")
    log = _kuairand_log(dataset)
    days = [f"{str(day)[4:6].lstrip('0')}_{str(day)[6:]}" for day in (log["date"].min(), log["date"].max())]
    span = "_to_".join(days)
    is_random = log["is_rand"] == 1
    files = {
        f"log_standard_{span}_pure": log[~is_random],
        f"log_random_{span}_pure": log[is_random],
        "user_features_pure": _filled(dataset.users, _USER_COLUMNS),
        "video_features_basic_pure": _filled(_kuairand_videos(dataset), _VIDEO_COLUMNS),
    }
    if dataset.history is not None:
        files["user_history_pure"] = _kuairand_history(dataset, dataset.history)
    with whole_folder(folder) as aside:
        for name, table in files.items():
            if len(table):
                table.to_csv(aside / f"{name}.csv", index=False)
    return folder


def _kuairand_log(dataset: LoggedDataset) -> pd.DataFrame:
    """The 19 official columns and those of ``_EXTRA`` that the log has."""
    rows = dataset.rows
    item_ids = dataset.items["item_id"].to_numpy()
    duration_ms = (rows["duration"].to_numpy(np.float64) * 1000).round()
    local_hour = (rows["time_ms"] // 3_600_000 + 8) % 24
    log = pd.DataFrame(
        {
            "user_id": dataset.users["user_id"].to_numpy()[rows["user"]],
            "video_id": item_ids[rows["item"]],
            "date": rows["date"],
            "hourmin": local_hour * 100,
            "time_ms": rows["time_ms"],
            **{column: rows[signal] for column, signal in _FLAGS.items()},
            "play_time_ms": (rows[WATCH_TIME].to_numpy(np.float64) * 1000).round().astype(np.int64),
            "duration_ms": np.nan_to_num(duration_ms, nan=0.0).astype(np.int64),  # 0 is KuaiRand's unknown
            "profile_stay_time": 0,
            "comment_stay_time": 0,
            "is_profile_enter": 0,
            "is_rand": rows["is_random"].astype(np.int8) if "is_random" in rows else 0,
            "tab": rows.get("tab", 1),
        }
    )
    for name in _EXTRA:
        if name in rows:
            log[name] = rows[name]
    if "candidates" in rows:
        log["candidates"] = [",".join(map(str, item_ids[codes])) for codes in rows["candidates"]]
    return log


def _kuairand_videos(dataset: LoggedDataset) -> pd.DataFrame:
    videos = dataset.items.rename(columns={"item_id": "video_id", "author": "author_id"})
    videos["video_duration"] = (videos.pop("duration").astype(np.float64) * 1000).round()
    if "tags" in videos:
        videos["tag"] = [",".join(map(str, tags)) for tags in videos.pop("tags")]
    return videos


def _kuairand_history(dataset: LoggedDataset, history: pd.DataFrame) -> pd.DataFrame:
    """Earlier impressions in the form of the history files beside KuaiRand-Pure: flags alone."""
    flags = {column: history[signal] for column, signal in _FLAGS.items() if signal in history}
    return pd.DataFrame(
        {
            "user_id": dataset.users["user_id"].to_numpy()[history["user"]],
            "pos": history["position"],
            "video_id": dataset.items["item_id"].to_numpy()[history["item"]],
            **flags,
        }
    )


def _filled(table: pd.DataFrame, columns: dict[str, object]) -> pd.DataFrame:
    """The official columns, each from the table or at its neutral value."""
    own = {name: table.get(name, neutral) for name, neutral in columns.items()}
    return pd.DataFrame(own, index=table.index)
