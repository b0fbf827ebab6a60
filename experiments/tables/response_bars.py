"""Learned users on the real log: fitted once, then measured on the test days beside baselines.

    RECSIM_DATA=<folder> python -m experiments.compare response-bars

Days: early stopping on 05-03/04, calibration and final fit to 05-04, test 05-05..05-08. Trees and the
tab + duration baseline are refitted on the same rows in the same run. The run's file keeps every check (name, bar,
value, low, high, verdict), and in ``extra`` everything else that was measured and the number of ``test_day_runs``.
"""

import dataclasses
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar

import tyro

from experiments.tables.runner import Outline, RunOptions
from experiments.tables.runs import Measured, Run
from recsim_env.data.readers import load_kuairand
from recsim_env.data.schema import LoggedDataset
from reward_models.users.fit import fit_response
from reward_models.users.fitting import ResponseFitConfig
from reward_models.users.response_measures import Report, Resampling, joint, ranking, rates, replay, watch_time
from reward_models.users.sequences import read_sequences

TRAIN_UNTIL, VALIDATION, TEST_FROM = 20220502, (20220503, 20220504), 20220505
TEST_DAY_RUNS = 10
"""Full runs that have looked at the test days, this one included; raise it with each run whose result is kept or
leads to a change."""
NOTE = "Choices between the runs were made on the validation days; one further run was stopped before its end."

OUTLINE = Outline(name="response_bars", title="Learned users against the test days of a real log", metrics={})


@dataclass(frozen=True, kw_only=True)
class ResponseBars:
    """Learned users on the test days of KuaiRand-Pure, beside boosted trees."""

    outline: ClassVar[Outline] = OUTLINE
    data: Path | None = None
    """A KuaiRand folder; the default is ``$RECSIM_DATA/kuairand_pure``."""
    run_dir: Path | None = None
    """Keep checkpoints and TensorBoard files here; a second run then resumes."""
    seed: int = 0
    """Seed of the fit, the draws and the resampling."""
    resamples: int = 400
    """Resamples of users behind each interval."""
    run: tyro.conf.OmitArgPrefixes[RunOptions] = field(default_factory=RunOptions)
    """How it is run."""

    @property
    def folder(self) -> Path:
        """The log's folder.

        Raises:
            ValueError: there is none.
        """
        folder = self.data or Path(os.environ.get("RECSIM_DATA", "")) / "kuairand_pure"
        if not folder.is_dir():
            raise ValueError(
                f"no folder {folder}; set RECSIM_DATA to the folder that holds kuairand_pure/, or pass --data"
            )
        return folder

    def runs(self) -> Iterator[Run]:
        """One run."""
        log = _log(self.folder)
        fit = dataclasses.asdict(ResponseFitConfig())
        card = {"log_digest": log.digest, "resamples": self.resamples, "fit": fit}
        yield Run(
            setting=log.name, world="test days", method="learned users", seed=self.seed, card=card, measure=self.measure
        )

    def measure(self) -> Measured:
        """Fits, measures and prints."""
        dataset = _log(self.folder)
        sequences = read_sequences(dataset)
        began = time.process_time()
        model = fit_response(
            dataset, train_until=TRAIN_UNTIL, validation_dates=VALIDATION, seed=self.seed, run_dir=self.run_dir
        )
        report = Report()
        report.note("fit", cpu_seconds=time.process_time() - began)
        rows = replay(model, dataset, sequences, TEST_FROM, self.seed)
        resampling = Resampling(seed=self.seed, resamples=self.resamples)
        ranking(report, rows, dataset, sequences, resampling)
        watch_time(report, rows, dataset)
        rates(report, rows, dataset, resampling)
        joint(report, rows, dataset, resampling)
        extra = {"figures": report.figures, "test_day_runs": TEST_DAY_RUNS, "note": NOTE}
        return Measured(checks=report.checks, extra=extra)


@cache
def _log(folder: Path) -> LoggedDataset:
    return load_kuairand(folder)
