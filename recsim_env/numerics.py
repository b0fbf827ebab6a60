"""Arithmetic whose result for one row depends neither on the rows beside it nor on the number of threads.

Row i of a batch of 1,024 sessions must equal the same session simulated alone, byte for byte on a CPU. Three things
break that in plain torch:

- A matrix product is cut into tiles, and by how many rows there are, where in the batch a row stands and how many
  threads share the work, its terms are added up in another order. So ``linear`` multiplies blocks of ``BLOCK_ROWS``
  rows, the last one padded: every product that the processor ever sees has the same shape.
- Threads split even these, and split sums over a whole tensor. So whatever decides what a session does runs under
  ``one_thread``. That costs little: requests are many small products, which threads hardly speed up, and several
  processes with a simulator each use several cores better.
- ``sigmoid``, ``silu`` and their kin use another formula for the last few elements of a tensor. ``exp``, ``log``,
  ``log1p``, ``softmax`` and ``cumsum`` do not.

On a GPU, and where gradients are wanted, rows agree within rounding only.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

BLOCK_ROWS = 48
"""Rows of one product. Processors compute 4, 6, 8, 12, 16 or 24 rows at once; 48 is a multiple of each, so that no
row ever falls into the remainder, for which there is other code."""

_ENOUGH_OUTPUTS = 4  # products with two or three outputs are summed in yet another way


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch's operations on one thread and gives the threads back; a fifth of a microsecond."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for x (..., in) and weight (out, in), the same bytes for a row in any batch."""
    if x.device.type != "cpu" or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        return torch.nn.functional.linear(x, weight, bias)
    rows, terms = x.shape[:-1].numel(), x.shape[-1]  # terms may be 0: a log that tells nothing of its users
    if len(weight) == 1:  # a single output takes the matrix-vector kernel at every batch size
        total = (x * weight[0]).sum(-1, keepdim=True)
        return total if bias is None else total + bias
    if len(weight) < _ENOUGH_OUTPUTS:
        missing = _ENOUGH_OUTPUTS - len(weight)
        bias = None if bias is None else torch.cat([bias, bias.new_zeros(missing)])
        return linear(x, torch.cat([weight, weight.new_zeros(missing, terms)]), bias)[..., : len(weight)]
    num_blocks = -(-rows // BLOCK_ROWS)
    blocks = torch.nn.functional.pad(x.reshape(rows, terms), (0, 0, 0, num_blocks * BLOCK_ROWS - rows))
    product = torch.bmm(blocks.view(num_blocks, BLOCK_ROWS, terms), weight.T.expand(num_blocks, -1, -1))
    product = product.view(num_blocks * BLOCK_ROWS, len(weight))[:rows].view(*x.shape[:-1], len(weight))
    return product if bias is None else product.add_(bias)


def sigmoid(x: Tensor) -> Tensor:
    """The logistic function, the same bytes at any batch size."""
    if x.requires_grad:
        return 1.0 / (1.0 + torch.exp(-x))
    return torch.exp(-x).add_(1.0).reciprocal_()
