"""Worlds whose right answer is known: for tests, for the demo, and to judge learned worlds by.

``tiny`` is small enough that its optimum is found by enumeration. ``short_video`` is calibrated to the
statistics of a real log; its greedy oracle finds the best slate of one request by search on the true
expected value, a reference and not an upper bound on a session.
"""

from recsim_env.known_worlds.names import KNOWN_WORLDS, resolve_world
from recsim_env.known_worlds.oracles import greedy_oracle, pointwise_oracle
from recsim_env.known_worlds.short_video import short_video_world
from recsim_env.known_worlds.tiny import TINY_SIZES, TinyOptimum, tiny_optimum, tiny_world

__all__ = [
    "KNOWN_WORLDS",
    "TINY_SIZES",
    "TinyOptimum",
    "greedy_oracle",
    "pointwise_oracle",
    "resolve_world",
    "short_video_world",
    "tiny_optimum",
    "tiny_world",
]
