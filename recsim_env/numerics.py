"""Arithmetic whose result for one row never depends on the rows beside it.

Row i of a batch of 1,024 sessions must equal the same session simulated alone, byte for byte on a CPU.
Two things break that in plain torch: a matrix product of few rows is summed in another order, the more so the
longer the product (3 rows are enough for 64 terms, 16 for 400), and ``sigmoid``, ``silu`` and their kin use
another formula for the last few elements of a tensor. ``exp``, ``log``, ``log1p``, ``softmax`` and ``cumsum``
are safe.
"""

from collections.abc import Callable

import torch
from torch import Tensor

ENOUGH_ROWS = 16
"""Rows that make any product of up to 400 terms safe."""
_ENOUGH_OUTPUTS = 4  # products with two or three outputs are summed in yet another way


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for x (..., in) and weight (out, in), the same bytes at any batch size."""
    rows, terms = x.numel() // x.shape[-1], x.shape[-1]
    if len(weight) == 1:  # a single output takes the matrix-vector kernel at every batch size
        total = (x * weight[0]).sum(-1, keepdim=True)
        return total if bias is None else total + bias
    if len(weight) < _ENOUGH_OUTPUTS:
        missing = _ENOUGH_OUTPUTS - len(weight)
        bias = None if bias is None else torch.cat([bias, bias.new_zeros(missing)])
        return linear(x, torch.cat([weight, weight.new_zeros(missing, terms)]), bias)[..., : len(weight)]
    # Products with up to 10 outputs take yet another kernel while there are fewer rows than outputs.
    enough = max(4 if len(weight) > 10 else 10, terms // 16)
    if rows >= enough or rows == 0:
        return torch.nn.functional.linear(x, weight, bias)
    flat = x.reshape(rows, terms)
    padded = torch.cat([flat, flat.new_zeros(enough - rows, terms)])
    return torch.nn.functional.linear(padded, weight, bias)[:rows].reshape(*x.shape[:-1], weight.shape[0])


def enough_rows(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Calls a function of rows with at least ``ENOUGH_ROWS`` of them, for several products at one padding.

    The result's second to last dimension is rows.
    """
    num_rows = len(inputs[0])
    if num_rows >= ENOUGH_ROWS or num_rows == 0:
        return function(*inputs)
    row_B = torch.arange(ENOUGH_ROWS, device=inputs[0].device).clamp_(max=num_rows - 1)
    return function(*(tensor[row_B] for tensor in inputs))[..., :num_rows, :]


def sigmoid(x: Tensor) -> Tensor:
    """The logistic function, the same bytes at any batch size."""
    if x.requires_grad:
        return 1.0 / (1.0 + torch.exp(-x))
    return torch.exp(-x).add_(1.0).reciprocal_()
