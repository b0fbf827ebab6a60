"""The table of slates that nobody chose, small."""

from pathlib import Path

import pytest

from experiments.tables.off_the_log import ASKED, OUTLINE, OffTheLog
from experiments.tables.runner import RunOptions, complete
from experiments.tables.settings import LogSource
from reward_models.plan import BuildConfig
from reward_models.trainer import TrainConfig
from reward_models.users.fitting import ResponseFitConfig
from reward_models.users.response_core import ResponseConfig

FIT = ResponseFitConfig(
    response=ResponseConfig(width=12, event_width=6),
    train=TrainConfig(max_epochs=1, learning_rate=1e-2),
    min_batches=20,
    exposure_epochs=1,
    calibration_folds=0,
)


def test_users_of_all_logs_are_asked_about_the_same_rows_and_the_drop_lowers_what_they_emit(tmp_path: Path) -> None:
    source = LogSource(num_users=90, num_items=60, log_sessions=150, build=BuildConfig(fit=FIT))
    table = OffTheLog(source=source, run=RunOptions(results=tmp_path, jobs=1))
    finished = complete(OUTLINE, table.runs(), table.run)
    found = {check["name"]: check for check in finished.checks}
    assert len(found) == 5 * len(ASKED)
    none, half, full = (
        found[f"click emitted over logged, 0 % uniform, {n} % of the drop declared"] for n in (0, 50, 100)
    )
    assert none["value"] > half["value"] > full["value"]
    taught = found["click emitted over logged, 10 % uniform"]
    assert taught["low"] < taught["value"] < taught["high"]
    # A drop that nothing taught is shown without a verdict; what is claimed has a bar.
    assert none["verdict"] == half["verdict"] == "no bar"
    assert {taught["verdict"], full["verdict"]} <= {"holds", "fails", "undecided"}


def test_a_real_log_has_the_uniform_rows_that_it_has(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave out --data"):
        list(OffTheLog(source=LogSource(data=tmp_path)).runs())
