"""One row's bytes depend neither on the rows beside it nor on the number of threads, whatever the sizes."""

from collections.abc import Iterator

import pytest
import torch

from recsim_env.numerics import linear, one_thread, sigmoid

BATCHES = (1, 2, 3, 5, 7, 8, 17, 64, 250)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_one_thread_gives_the_threads_back(threads: int) -> None:
    @one_thread()
    def fails() -> None:
        assert torch.get_num_threads() == 1
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fails()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("terms", [1, 7, 16, 64, 96, 130, 192, 256, 400])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 24, 65])
@pytest.mark.usefixtures("threads")
def test_linear_is_the_same_at_any_batch_size(terms: int, width: int) -> None:
    generator = torch.Generator().manual_seed(terms)
    x, weight = torch.randn(251, terms, generator=generator), torch.randn(width, terms, generator=generator)
    bias = torch.randn(width, generator=generator)
    with one_thread():
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


def test_gradients_are_those_of_the_plain_product() -> None:
    x, weight = torch.randn(7, 5), torch.randn(6, 5, requires_grad=True)
    linear(x, weight).sum().backward()
    assert weight.grad is not None
    assert torch.allclose(weight.grad, x.sum(0).expand(6, -1))


def test_a_layer_without_inputs_is_its_bias() -> None:
    """As for users of whom a log tells nothing."""
    bias = torch.arange(40.0)
    assert torch.equal(linear(torch.zeros(3, 5, 0), torch.zeros(40, 0), bias), bias.expand(3, 5, -1))
    assert torch.equal(linear(torch.zeros(2, 0), torch.zeros(3, 0), bias[:3]), bias[:3].expand(2, -1))
