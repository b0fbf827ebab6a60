"""Arithmetic whose result for one row never depends on the rows beside it.

Row i of a batch of 1,024 sessions must equal the same session simulated alone, byte for byte on a CPU.
Two things break that in plain torch: a matrix product with fewer than three rows takes another kernel,
and ``sigmoid``, ``silu`` and their kin use another formula for the last few elements of a tensor.
``exp``, ``log``, ``log1p``, ``softmax`` and ``cumsum`` are safe.
"""

import torch
from torch import Tensor

_MIN_ROWS = 4


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for x (..., in) and weight (out, in), the same bytes at any batch size."""
    rows = x.numel() // x.shape[-1]
    if rows >= _MIN_ROWS or rows == 0:
        return torch.nn.functional.linear(x, weight, bias)
    flat = x.reshape(rows, x.shape[-1])
    padded = torch.cat([flat, flat.new_zeros(_MIN_ROWS - rows, flat.shape[-1])])
    return torch.nn.functional.linear(padded, weight, bias)[:rows].reshape(*x.shape[:-1], weight.shape[0])


def sigmoid(x: Tensor) -> Tensor:
    """The logistic function, the same bytes at any batch size."""
    return torch.exp(-x).add_(1.0).reciprocal_() if not x.requires_grad else 1.0 / (1.0 + torch.exp(-x))
