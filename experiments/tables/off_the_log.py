"""What slates that nobody chose get in learned users, by how many of them the log holds.

    python -m experiments.compare off-the-log

One known world, one logging policy, three logs: one in ten of their requests has uniform videos, one in a hundred, or
none. Users A are learned from each, and all are asked about the same rows: the uniform ones of the held-out days of
the first log. Where a log has none, the drop from the ranker's slates to those is declared or not
(``reward_models.declared``). The published drop is KuaiRand-Pure's, and nothing here was fitted to this world.
"""

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from typing import Any, ClassVar

import numpy as np
import torch
import tyro

from experiments.tables.runner import Outline, RunOptions
from experiments.tables.runs import Measured, Run
from experiments.tables.settings import TRAINING_WORLD, LogSource, log_of, settings_of
from recsim_env.data import LoggedDataset
from recsim_env.data.features import item_features, user_features
from recsim_env.data.requests import LoggedRequests, logged_requests
from recsim_env.results import judge
from recsim_env.types import WATCH_TIME
from reward_models.build import ITEM_WIDTH
from reward_models.declared import declare_drop, uniform_rates
from reward_models.fidelity.logged import logged_fidelity
from reward_models.plan import BuildConfig, days_of, users_of
from reward_models.users.fit import fit_response
from reward_models.users.response import SequenceResponse
from reward_models.users.sequences import read_sequences

SHARES = (0.1, 0.01, 0.0)
"""Shares of requests with uniform videos."""
AMOUNTS = (0.0, 0.5, 1.0)
"""Shares of the published drop that are declared where a log has no such request."""
ASKED = ("click", "long_view", WATCH_TIME)
LEARNED_BAR, DECLARED_BAR = 0.1, 0.25
"""How far from 1 emitted over logged may be where uniform rows are plenty, and where the whole drop is declared."""
_NORMAL_95 = 1.96

OUTLINE = Outline(name="off_the_log", title="Slates that nobody chose, by the uniform rows of the log", metrics={})


@dataclass(frozen=True, kw_only=True)
class OffTheLog:
    """What uniform slates get, by how many the log holds."""

    outline: ClassVar[Outline] = OUTLINE
    source: tyro.conf.OmitArgPrefixes[LogSource] = field(
        default_factory=lambda: LogSource(num_users=2500, log_sessions=4000)
    )
    """The synthetic log, its share of uniform requests apart."""
    seed: int = 0
    """Seed of the fits."""
    run: tyro.conf.OmitArgPrefixes[RunOptions] = field(default_factory=RunOptions)
    """How it is run."""

    def runs(self) -> Iterator[Run]:
        """One for each share.

        Raises:
            ValueError: the source is a real log, which has the uniform rows that it has.
        """
        if self.source.data is not None:
            raise ValueError(
                f"the rows of {self.source.data} are what they are: leave out --data, a synthetic log is drawn thrice"
            )
        for share in SHARES:
            source = {
                "users": self.source.num_users,
                "items": self.source.num_items,
                "sessions": self.source.log_sessions,
                "seed": self.source.world_seed,
            }
            card = {"source": source, "fit": asdict(self._config.fit), "log_digest": self._log(share).digest}
            yield Run(
                setting="synthetic",
                world=TRAINING_WORLD,
                method=f"{100 * share:g} % uniform",
                seed=self.seed,
                card=card,
                measure=partial(self.measure, share),
            )

    def measure(self, share: float) -> Measured:
        """Fits users to the log of this share and asks them about the first log's uniform rows."""
        config, log = self._config, self._log(share)
        own, days = users_of(log, config)[TRAINING_WORLD], days_of(log, config)
        fit = replace(config.fit, response=replace(config.fit.response, item_width=ITEM_WIDTH))
        model = fit_response(log, users=own, train_until=days.fit_until, config=fit, seed=self.seed)
        asked = self._held_out(own)
        checks: list[dict[str, Any]] = []
        for amount in (None,) if share else AMOUNTS:
            bar = LEARNED_BAR if share == SHARES[0] else DECLARED_BAR if amount == 1.0 else None
            name = f"{100 * share:g} % uniform" + (
                "" if amount is None else f", {100 * amount:g} % of the drop declared"
            )
            checks += _checks(name, bar, _dropped(model, log, own, days.fit_until, amount, self.seed), asked)
        return Measured(checks=checks)

    @property
    def _config(self) -> BuildConfig:
        return replace(self.source.build, stopping_days=0)

    def _log(self, share: float) -> LoggedDataset:
        return _log_of(replace(self.source, uniform_share=share))

    def _held_out(self, own: np.ndarray) -> LoggedRequests:
        """All requests of the first log's held-out days: what the ranker showed before a uniform slate counts, too."""
        log = self._log(SHARES[0])
        days = days_of(log, self._config)
        requests = logged_requests(
            log,
            item_features_ND=torch.from_numpy(item_features(log, users=own).values),
            user_features_UD=torch.from_numpy(user_features(log).values),
        )
        return requests.only(own, days.test[0], days.test[-1])


@cache
def _log_of(source: LogSource) -> LoggedDataset:
    return log_of(settings_of(source)[0])


def _dropped(
    model: SequenceResponse, log: LoggedDataset, own: np.ndarray, until: int, amount: float | None, seed: int
) -> SequenceResponse:
    """The model with this share of the published drop declared."""
    if not amount:
        return model
    model, sequences = copy.deepcopy(model), read_sequences(log)
    learned_P = torch.isin(sequences.user_P, torch.from_numpy(own)) & (sequences.date_P <= until)
    declare_drop(model, sequences, learned_P, uniform_rates(log, own, until, amount), seed)
    return model


def _checks(name: str, bar: float | None, model: SequenceResponse, asked: LoggedRequests) -> Iterator[dict[str, Any]]:
    """Emitted over logged of each signal, with 95 % intervals over users."""
    found = logged_fidelity(model, asked)["uniform"]
    for signal in ASKED:
        figures = found[WATCH_TIME] if signal == WATCH_TIME else found["signals"][signal]
        ratio, half = figures["ratio"], _NORMAL_95 * figures["ratio_error"]
        low, high = ratio - half, ratio + half
        # Within the bar on both sides: the distance from 1, at most and at least, is what is held to it.
        distance = sorted((abs(low - 1.0), abs(high - 1.0)))
        nearest = 0.0 if low <= 1.0 <= high else distance[0]
        verdict = judge(name, value=abs(ratio - 1.0), low=nearest, high=distance[1], bar=bar, side="below").verdict
        yield {
            "name": f"{signal} emitted over logged, {name}",
            "bar": "" if bar is None else f"within {100 * bar:g} %",
            "value": ratio,
            "low": low,
            "high": high,
            "verdict": verdict,
        }
