"""Addressed draws: every random number is a function of its address, never of a stream.

An address is (seed, session, request, place, purpose): ``address`` gives a session's first key, ``next_key``
walks from request to request, and place and purpose are positions within ``uniform``. Two policies with one
seed share their users' luck, and changing one session's slate or the number of sessions leaves every other
draw as it was. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014) in wrapping int64.
"""

from enum import IntEnum

import torch
from torch import Tensor


class Purpose(IntEnum):
    """Marks keys that serve something other than a session's own requests."""

    BRANCH = 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_STEP = _signed(0xD1B54A32D192ED03)
_MIX_2 = _signed(0x94D049BB133111EB)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _MIX_1
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _MIX_2
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def address(seed_B: Tensor, *parts: Tensor | int) -> Tensor:
    """Folds int64 seeds (B,) and further parts ((B,) tensors or ints) into one int64 key (B,)."""
    key = _mix(seed_B + _GAMMA)
    for part in parts:
        key = _mix(key ^ (part * _GAMMA if isinstance(part, Tensor) else _wrap(part * _GAMMA)))
    return key


def next_key(key_B: Tensor) -> Tensor:
    """The key of the request after this one."""
    return _mix(key_B + _STEP)


def uniform(key_B: Tensor, *shape: int) -> Tensor:
    """Float32 draws strictly inside (0, 1), shape (B, *shape), one for each place of ``shape``."""
    count = 1
    for size in shape:
        count *= size
    offsets = torch.arange(1, count + 1, device=key_B.device) * _GAMMA
    bits = _mix(key_B.unsqueeze(-1) + offsets)
    # 23 bits and a half step: exactly representable in float32, never 0 or 1.
    draws = (((bits >> 41) & ((1 << 23) - 1)).to(torch.float32) + 0.5) * 2.0**-23
    return draws.reshape(*key_B.shape, *shape)


def _wrap(value: int) -> int:
    return _signed(value & ((1 << 64) - 1))
