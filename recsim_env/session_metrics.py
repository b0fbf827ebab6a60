"""The metrics of sessions: each a name, what is counted, and per what.

To add one, count it where it happens (``of_request``, ``of_sessions``, both summed over a session) and give it a row in
``table``, or count it over the whole catalogue (``of_catalogue``); then name it here. Reports list it by themselves,
``REPORT_TABLES`` gives it a place in a table, and committed files keep ``MAIN_METRICS``. Only this module, evaluation
and oracles may ask a world for its truth.

A place counts by the chance that it is seen, a request by the chance that its user is still there; both are 0 or 1
where leaving is drawn (``EvaluationSettings.leaving``), and every sum is then a plain count.

Metrics (seconds, videos, shares; ``/`` begins a bucket or component):
    session_watch_time, session_length (requests), videos_seen, watch_time_per_video, truncated_share,
    <signal>_rate (per video seen), <signal>_per_session, session_reward, list_reward, reward/<name>,
    repeat_share (videos already seen in this session), outside_share (not among the candidates),
    cold_start_share (few logged impressions), tag_diversity (share of a slate's pairs whose main tags
    differ), feature_diversity (mean cosine distance of a slate's pairs), evaluator_value, true_list_value,
    evaluator_gap and evaluator_over_truth (expected seconds of a shown list, by the evaluator, in truth, and
    the first minus and over the second: what it promises too much),
    watch_time_per_video/<duration> and exposure_share/<duration>, catalogue_coverage (videos that some session
    sees) and exposure_gini (of exposures over the whole catalogue).

Shape legend: B sessions, K places, F signals, R reward components, N items, P pairs of places, D features,
M videos of a whole session, n sessions.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsim_env.plugins import nearest
from recsim_env.rewards import Reward, scalar
from recsim_env.simulator import SessionState, Simulator
from recsim_env.slates import are_candidates
from recsim_env.types import NO_ITEM, WATCH_TIME, Expected

MAIN_METRICS = (
    "session_watch_time", "session_length", "list_reward", "click_rate", "long_view_rate", "like_rate",
    "catalogue_coverage", "exposure_gini", "cold_start_share", "tag_diversity", "evaluator_value",
    "true_list_value", "evaluator_gap", "evaluator_over_truth",
)  # fmt: skip
"""What committed files keep; ``report.json`` has everything."""

REPORT_TABLES = {
    "Share of videos seen, by duration": ("exposure_share/",),
    "Seconds watched of a video seen, by duration": ("watch_time_per_video/",),
    "What was shown": ("catalogue_coverage", "exposure_gini", "tag_diversity", "cold_start_share"),
}
"""Tables of policies by metrics in the world that decides: headings, and how the metrics' names begin."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What one request comes to for users who are there when it is answered."""

    seen_BK: Tensor
    """float64 chance that each place is seen; 0 or 1 where leaving is drawn."""
    signals_BKF: Tensor
    """Signals of each place if it is seen: drawn, or expected."""
    rewards_BR: Tensor
    """Components of the reward."""
    expected: Expected | None
    """What the world expects of the slate alone, (B, 1, ...), where it was asked."""


class SessionMetrics:
    """What is counted of every session, and the metrics that are made of it.

    Args:
        simulator: plays the world that is evaluated.
        reward: what ``list_reward`` counts.
        logged_impressions_N: int64 impressions of each item in the log; none at all leaves ``cold_start_share`` out.
        true_values: ask the world for the expected value of every shown list.
        duration_edges: seconds between the duration buckets.
        cold_start_below: items with fewer logged impressions are cold.

    Raises:
        ValueError: impressions of another number of items.
    """

    def __init__(
        self,
        simulator: Simulator,
        *,
        reward: Reward,
        logged_impressions_N: Tensor,
        true_values: bool,
        duration_edges: tuple[float, ...],
        cold_start_below: int,
    ):
        world = simulator.world
        self.simulator = simulator
        self.signals = world.signals
        self.reward = reward
        self.true_values = true_values
        edges = torch.tensor(duration_edges, device=simulator.device)
        self.bucket_N = torch.bucketize(world.catalogue.duration_N, edges, right=True)
        self.buckets = bucket_names(duration_edges)
        self.features_ND = torch.nn.functional.normalize(world.catalogue.features_ND, dim=1)
        self.cold_N: Tensor | None = None
        if logged_impressions_N.shape != (len(world.catalogue),):
            raise ValueError(
                f"need logged impressions for each of the {len(world.catalogue)} items, got shape "
                f"{tuple(logged_impressions_N.shape)}"
            )
        if int(logged_impressions_N.sum()):
            self.cold_N = logged_impressions_N.to(simulator.device) < cold_start_below

    def of_request(self, state: SessionState, items_BK: Tensor, shown: Shown) -> dict[str, Tensor]:
        """Quantities (B,) of one request, by name."""
        seen_BK = shown.seen_BK
        signals_BKF = shown.signals_BKF * seen_BK.unsqueeze(-1)
        inside_BK = are_candidates(items_BK, state.request.candidates_BC)
        counted = {
            "requests": torch.ones_like(seen_BK[:, 0]),
            "seen": seen_BK.sum(1),
            "outside": (seen_BK * ~inside_BK).sum(1),
            # Behind a prefix: a log may well call a signal "seen" or "reward".
            **{f"signal/{name}": signals_BKF[..., i].sum(1) for i, name in enumerate(self.signals)},
            "reward": scalar(self.reward, shown.rewards_BR),
            **{f"reward/{name}": shown.rewards_BR[:, i] for i, name in enumerate(self.reward.names)},
            **self._diversity(items_BK),
            **self._list_values(state, items_BK, shown.expected),
        }
        if self.cold_N is not None:
            counted["cold"] = (seen_BK * self.cold_N[items_BK]).sum(1)
        bucket_BK = self.bucket_N[items_BK]
        for index, name in enumerate(self.buckets):
            chosen_BK = bucket_BK == index
            counted[f"seen/{name}"] = (seen_BK * chosen_BK).sum(1)
            counted[f"watch_time/{name}"] = (signals_BKF[..., 0] * chosen_BK).sum(1)
        return counted

    def of_sessions(self, seen_BM: Tensor, repeated_BM: Tensor, stayed_B: Tensor) -> dict[str, Tensor]:
        """Quantities (B,) of whole sessions, by name.

        Args:
            seen_BM: float64 chance that the user is there and sees each place of the session.
            repeated_BM: bool, places whose video the session has shown before.
            stayed_B: float64 chance that the session is cut off with the user still there.
        """
        repeats_B = (seen_BM * repeated_BM).sum(1)
        return {"sessions": torch.ones_like(stayed_B), "truncated": stayed_B, "repeats": repeats_B}

    def of_catalogue(self, exposures_N: Tensor, missed_N: Tensor) -> dict[str, float]:
        """Metrics of all sessions together.

        Args:
            exposures_N: float64, how often each item was seen. Where leaving is not drawn these are expected counts,
                less noisy than drawn ones, whose noise passes for a little concentration.
            missed_N: float64 chance that no session saw the item.
        """
        return {"catalogue_coverage": float((1.0 - missed_N).mean()), "exposure_gini": gini(exposures_N.cpu().numpy())}

    def ratios(self, sums: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Metric to its numerator and denominator among the sums of quantities.

        Raises:
            ValueError: a metric is made of a quantity that nothing counts.
        """
        table = self.table()
        for metric, pair in table.items():
            for name in pair:
                if name not in sums:
                    raise ValueError(
                        f"metric {metric!r} is made of {name!r}, which nothing counts{nearest(name, sums)}; "
                        f"counted are {', '.join(sums)}"
                    )
        return {metric: (sums[over], sums[under]) for metric, (over, under) in table.items()}

    def table(self) -> dict[str, tuple[str, str]]:
        """Metric to the names of its numerator and denominator, for every metric that this world can have."""
        evaluated = self.simulator.world.evaluator is not None
        possible = {
            "cold_start_share": self.cold_N is not None,
            "evaluator_value": evaluated,
            "true_list_value": self.true_values,
            "evaluator_gap": evaluated and self.true_values,
            "evaluator_over_truth": evaluated and self.true_values,
        }
        others, watch_time = [name for name in self.signals if name != WATCH_TIME], f"signal/{WATCH_TIME}"
        components = self.reward.names if len(self.reward.names) > 1 else ()
        pairs = {
            "session_watch_time": (watch_time, "sessions"),
            "session_length": ("requests", "sessions"),
            "videos_seen": ("seen", "sessions"),
            "watch_time_per_video": (watch_time, "seen"),
            "truncated_share": ("truncated", "sessions"),
            **{f"{name}_rate": (f"signal/{name}", "seen") for name in others},
            **{f"{name}_per_session": (f"signal/{name}", "sessions") for name in others},
            "session_reward": ("reward", "sessions"),
            "list_reward": ("reward", "requests"),
            **{f"reward/{name}": (f"reward/{name}", "sessions") for name in components},
            "repeat_share": ("repeats", "seen"),
            "outside_share": ("outside", "seen"),
            "cold_start_share": ("cold", "seen"),
            "tag_diversity": ("pairs_of_two_tags", "tagged_pairs"),
            "feature_diversity": ("distance", "pairs"),
            "evaluator_value": ("evaluator_value", "requests"),
            "true_list_value": ("true_list_value", "requests"),
            "evaluator_gap": ("evaluator_gap", "requests"),
            "evaluator_over_truth": ("evaluator_value", "true_list_value"),
            **{f"watch_time_per_video/{name}": (f"watch_time/{name}", f"seen/{name}") for name in self.buckets},
            **{f"exposure_share/{b}": (f"seen/{b}", "seen") for b in self.buckets},
        }
        return {metric: pair for metric, pair in pairs.items() if possible.get(metric, True)}

    def _diversity(self, items_BK: Tensor) -> dict[str, Tensor]:
        places = items_BK.shape[1]
        first, second = torch.triu_indices(places, places, offset=1, device=items_BK.device)
        tag_BK = self.simulator.world.catalogue.tag_N[items_BK]
        known_BK = tag_BK >= 0
        tagged_BP = known_BK[:, first] & known_BK[:, second]
        features_BKD = self.features_ND[items_BK]
        cosine_BP = (features_BKD @ features_BKD.transpose(1, 2))[:, first, second]
        return {
            "pairs": tagged_BP.new_ones(tagged_BP.shape).sum(1),
            "tagged_pairs": tagged_BP.sum(1),
            "pairs_of_two_tags": (tagged_BP & (tag_BK[:, first] != tag_BK[:, second])).sum(1),
            "distance": (1.0 - cosine_BP).sum(1),
        }

    def _list_values(self, state: SessionState, items_BK: Tensor, expected: Expected | None) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        evaluator = self.simulator.world.evaluator
        if evaluator is not None:
            values["evaluator_value"] = evaluator.score(state.request, items_BK.unsqueeze(1)).value_BG[:, 0]
        if self.true_values and expected is not None:
            values["true_list_value"] = expected.watch_time_BG[:, 0]
        if len(values) == 2:
            values["evaluator_gap"] = values["evaluator_value"] - values["true_list_value"]
        return values


def bucket_names(edges: Sequence[float]) -> tuple[str, ...]:
    """Names of the duration buckets between edges in seconds.

    Example:
        >>> bucket_names((7.0, 18.0))
        ('0-7s', '7-18s', '18s+')
    """
    ends = ["0", *(f"{edge:g}" for edge in edges)]
    return (*(f"{low}-{high}s" for low, high in itertools.pairwise(ends)), f"{ends[-1]}s+")


def gini(counts_N: np.ndarray) -> float:
    """Concentration of non-negative counts: 0 when equal, (N - 1) / N when one item has everything.

    Example:
        >>> gini(np.array([1, 1, 1, 1])), gini(np.array([0, 0, 0, 5]))
        (0.0, 0.75)
    """
    sorted_N = np.sort(np.asarray(counts_N, dtype=np.float64))
    total, count = sorted_N.sum(), len(sorted_N)
    if total <= 0:
        return float("nan")
    # The mean absolute difference of all pairs, from ranks: a sort in the place of N * N differences.
    ranks_N = 2 * np.arange(1, count + 1) - count - 1
    return float((ranks_N * sorted_N).sum() / (count * total))


def repeated(watched_nM: Tensor) -> Tensor:
    """Bool (n, M): places whose video stands at an earlier place of the session; never where there is ``NO_ITEM``."""
    # Once sorted, equal neighbours are repeats; comparing all pairs would take the square of 300 places a session.
    sorted_nM, place_nM = watched_nM.sort(dim=1, stable=True)
    again_nM = torch.zeros_like(sorted_nM, dtype=torch.bool)
    again_nM[:, 1:] = (sorted_nM[:, 1:] == sorted_nM[:, :-1]) & (sorted_nM[:, 1:] != NO_ITEM)
    return torch.zeros_like(again_nM).scatter(1, place_nM, again_nM)
