"""Addressed draws: every random number is a function of its address, never of a stream.

An address is (seed, session, request, place, purpose): ``address`` gives a session's first key, ``next_key``
walks from request to request, and place and purpose are positions within ``uniform``. Two policies with one
seed share their users' luck, and changing one session's slate or the number of sessions leaves every other
draw as it was. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014) in wrapping int64.
"""

import math
from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """Marks keys that serve something other than a session's own requests."""

    BRANCH = 1
    ROULETTE = 2


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


# Odd constants of SplitMix64. Python's integers do not wrap and torch has no unsigned ones, hence ``_signed``.
_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_STEP = _signed(0xD1B54A32D192ED03)
_MIX_2 = _signed(0x94D049BB133111EB)


def _mix(x: Any) -> Any:
    """The finaliser, for an int64 tensor or an int64 array alike; the masks make the shifts logical."""
    # Every input bit reaches every output bit: neighbouring seeds, requests and places share nothing.
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _MIX_1
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _MIX_2
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _array(key_B: Tensor) -> Any:
    """On a CPU numpy's view of the keys: a tenth of torch's cost for each call on a few numbers."""
    return key_B.numpy() if key_B.device.type == "cpu" else key_B


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(values) if isinstance(values, np.ndarray) else values


def address(seed_B: Tensor, *parts: Tensor | int) -> Tensor:
    """Folds int64 seeds (B,) and further parts ((B,) tensors or ints) into one int64 key (B,)."""
    key = _mix(_array(seed_B) + _GAMMA)
    for part in parts:
        key = _mix(key ^ (_array(part) * _GAMMA if isinstance(part, Tensor) else _wrap(part * _GAMMA)))
    return _tensor(key)


def next_key(key_B: Tensor) -> Tensor:
    """The key of the request after this one."""
    return _tensor(_mix(_array(key_B) + _STEP))


def uniform(key_B: Tensor, *shape: int) -> Tensor:
    """Float32 draws strictly inside (0, 1), shape (B, *shape), one for each place of ``shape``."""
    key = _array(key_B)
    offsets = _offsets(math.prod(shape), key_B.device)
    # Places step by the generator's own odd constant, so each place of each key has an address of its own.
    bits = (_mix(key[:, None] + offsets) >> 41) & ((1 << 23) - 1)
    # 23 bits and a half step: exactly representable in float32, never 0 or 1.
    draws = _tensor(bits).to(torch.float32).add_(0.5).mul_(2.0**-23)
    return draws.reshape(*key_B.shape, *shape)


@cache
def _offsets(count: int, device: torch.device) -> Any:
    return _array(torch.arange(1, count + 1, device=device) * _GAMMA)


def _wrap(value: int) -> int:
    return _signed(value & ((1 << 64) - 1))
