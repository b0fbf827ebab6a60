"""One row's bytes never depend on the rows beside it, whatever the sizes."""

import pytest
import torch

from recsim_env.numerics import enough_rows, linear, sigmoid

BATCHES = (1, 2, 3, 5, 7, 8, 17, 64, 250)


@pytest.mark.parametrize("terms", [1, 7, 16, 64, 96, 130, 192, 256, 400])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 24, 65])
def test_linear_is_the_same_at_any_batch_size(terms: int, width: int) -> None:
    generator = torch.Generator().manual_seed(terms)
    x, weight = torch.randn(251, terms, generator=generator), torch.randn(width, terms, generator=generator)
    bias = torch.randn(width, generator=generator)
    whole = linear(x, weight, bias)
    assert torch.allclose(whole, x @ weight.T + bias, atol=1e-4)
    for batch in BATCHES:
        for begin in (0, 251 - batch):
            assert torch.equal(linear(x[begin : begin + batch], weight, bias), whole[begin : begin + batch])
    assert linear(x[:0], weight).shape == (0, width)
    assert linear(x[:6].reshape(1, 2, 3, terms), weight).shape == (1, 2, 3, width)


@pytest.mark.parametrize("columns", [1, 5, 48])
def test_sigmoid_is_the_same_at_any_batch_size(columns: int) -> None:
    x = 20 * torch.randn(251, columns, generator=torch.Generator().manual_seed(0))
    whole = sigmoid(x)
    assert torch.allclose(whole, torch.sigmoid(x), atol=1e-6)
    for batch in BATCHES:
        assert torch.equal(sigmoid(x[:batch]), whole[:batch])
    parameter = torch.zeros(3, requires_grad=True)
    sigmoid(parameter).sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [0.25] * 3


def test_enough_rows_repeats_rows_and_drops_them_again() -> None:
    seen = []

    def double(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(len(a))
        return 2 * a + b

    a, b = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(enough_rows(double, a, b), 2 * a + b)
    assert seen[0] >= 16
    enough_rows(double, a[:0], b[:0])
    assert seen[1] == 0
