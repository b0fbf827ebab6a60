"""The metrics of sessions: each a name, what is counted, and per what.

To add one, count it where it happens (``of_request``, ``of_sessions``, both summed over a session) and give it a row in
``table``, or count it over the whole catalogue (``of_catalogue``); then name it here. Reports list it by themselves,
``REPORT_TABLES`` gives it a place in a table, and committed files keep ``MAIN_METRICS``. Only this module, evaluation
and oracles may ask a world for its truth.

Metrics (seconds, videos, shares; ``/`` begins a bucket or component):
    session_watch_time, session_length (requests), videos_seen, watch_time_per_video, truncated_share,
    <signal>_rate (per video seen), <signal>_per_session, session_reward, list_reward, reward/<name>,
    repeat_share (videos already seen in this session), outside_share (not among the candidates),
    cold_start_share (few logged impressions), tag_diversity (share of a slate's pairs whose main tags
    differ), feature_diversity (mean cosine distance of a slate's pairs), evaluator_value, true_list_value
    and evaluator_gap (expected seconds of a shown list, by the evaluator, in truth, and the excess of the
    first: its errors, and what leaving within the list costs if it counts every place as reached),
    watch_time_per_video/<duration> and exposure_share/<duration>, catalogue_coverage and exposure_gini (of
    exposures over the whole catalogue).

Shape legend: B sessions, K places, F signals, R reward components, N items, P pairs of places, D features,
M videos of a whole session, n sessions.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from recsim_env.plugins import nearest
from recsim_env.rewards import Reward, scalar
from recsim_env.simulator import SessionState, Simulator
from recsim_env.slates import are_candidates
from recsim_env.types import NO_ITEM, WATCH_TIME, Feedback

MAIN_METRICS = (
    "session_watch_time", "session_length", "list_reward", "click_rate", "long_view_rate", "like_rate",
    "catalogue_coverage", "exposure_gini", "cold_start_share", "tag_diversity", "evaluator_value",
    "true_list_value", "evaluator_gap",
)  # fmt: skip
"""What committed files keep; ``report.json`` has everything."""

REPORT_TABLES = {
    "Share of videos seen, by duration": ("exposure_share/",),
    "Seconds watched of a video seen, by duration": ("watch_time_per_video/",),
    "What was shown": ("catalogue_coverage", "exposure_gini", "tag_diversity", "cold_start_share"),
}
"""Tables of policies by metrics in the world that decides: headings, and how the metrics' names begin."""


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

    def of_request(self, state: SessionState, items_BK: Tensor, feedback: Feedback) -> dict[str, Tensor]:
        """Quantities (B,) of one request, by name."""
        seen_BK = feedback.seen_BK
        inside_BK = are_candidates(items_BK, state.request.candidates_BC)
        counted = {
            "requests": torch.ones_like(feedback.left_B),
            "seen": seen_BK.sum(1),
            "outside": (seen_BK & ~inside_BK).sum(1),
            **dict(zip(self.signals, feedback.signals_BKF.sum(1).unbind(1), strict=True)),
            **self._rewards(state, items_BK, feedback),
            **self._diversity(items_BK),
            **self._list_values(state, items_BK),
        }
        if self.cold_N is not None:
            counted["cold"] = (seen_BK & self.cold_N[items_BK]).sum(1)
        bucket_BK = self.bucket_N[items_BK]
        for index, name in enumerate(self.buckets):
            chosen_BK = seen_BK & (bucket_BK == index)
            counted[f"seen/{name}"] = chosen_BK.sum(1)
            counted[f"watch_time/{name}"] = (feedback.signals_BKF[..., 0] * chosen_BK).sum(1)
        return counted

    def of_sessions(self, watched_BM: Tensor, stayed_B: Tensor) -> dict[str, Tensor]:
        """Quantities (B,) of whole sessions, by name.

        Args:
            watched_BM: int64 items that were seen, ``NO_ITEM`` elsewhere.
            stayed_B: bool, sessions cut off with the user still there.
        """
        return {"sessions": torch.ones_like(stayed_B), "truncated": stayed_B, "repeats": num_repeats(watched_BM)}

    def of_catalogue(self, exposures_N: Tensor) -> dict[str, float]:
        """Metrics of how often each item was seen, int64 (N,), in all sessions together."""
        counts_N = exposures_N.cpu().numpy()
        return {"catalogue_coverage": float((counts_N > 0).mean()), "exposure_gini": gini(counts_N)}

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
        }
        others = [name for name in self.signals if name != WATCH_TIME]
        components = self.reward.names if len(self.reward.names) > 1 else ()
        pairs = {
            "session_watch_time": (WATCH_TIME, "sessions"),
            "session_length": ("requests", "sessions"),
            "videos_seen": ("seen", "sessions"),
            "watch_time_per_video": (WATCH_TIME, "seen"),
            "truncated_share": ("truncated", "sessions"),
            **{f"{name}_rate": (name, "seen") for name in others},
            **{f"{name}_per_session": (name, "sessions") for name in others},
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
            **{f"watch_time_per_video/{name}": (f"watch_time/{name}", f"seen/{name}") for name in self.buckets},
            **{f"exposure_share/{b}": (f"seen/{b}", "seen") for b in self.buckets},
        }
        return {metric: pair for metric, pair in pairs.items() if possible.get(metric, True)}

    def _rewards(self, state: SessionState, items_BK: Tensor, feedback: Feedback) -> dict[str, Tensor]:
        rewards_BR = self.reward(state.request, items_BK, feedback)
        parts = {f"reward/{name}": rewards_BR[:, i] for i, name in enumerate(self.reward.names)}
        return {"reward": scalar(self.reward, rewards_BR), **parts}

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

    def _list_values(self, state: SessionState, items_BK: Tensor) -> dict[str, Tensor]:
        items_B1K = items_BK.unsqueeze(1)
        values: dict[str, Tensor] = {}
        evaluator = self.simulator.world.evaluator
        if evaluator is not None:
            values["evaluator_value"] = evaluator.score(state.request, items_B1K).value_BG[:, 0]
        if self.true_values:
            values["true_list_value"] = self.simulator.expected(state, items_B1K).watch_time_BG[:, 0]
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


def num_repeats(watched_nM: Tensor) -> Tensor:
    """Videos that each session had already seen, int64 (n,)."""
    # Once sorted, equal neighbours are repeats; comparing all pairs would take the square of 300 places a session.
    sorted_nM = watched_nM.sort(dim=1).values
    return ((sorted_nM[:, 1:] == sorted_nM[:, :-1]) & (sorted_nM[:, 1:] != NO_ITEM)).sum(1)
