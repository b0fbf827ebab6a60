"""Group losses against closed forms."""

import math

import pytest
import torch

from agents.objectives import (
    group_relative_cross_entropy,
    group_relative_reference,
    group_z_score,
    grpo_loss,
    informative_groups,
)

VALUES = torch.tensor([[3.0, 1.0, 2.0, 6.0], [0.5, 0.1, -0.7, 0.1]])


def test_z_scores_have_zero_mean_and_unit_spread() -> None:
    z = group_z_score(VALUES)
    torch.testing.assert_close(z.mean(dim=1), torch.zeros(2))
    torch.testing.assert_close(z.square().mean(dim=1), torch.ones(2))
    torch.testing.assert_close(group_z_score(torch.full((1, 3), 41.7)), torch.zeros(1, 3))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_reference_of_two_lists_is_a_logistic(temperature: float) -> None:
    # Two values always have z-scores +1 and -1, whatever they are.
    reference = group_relative_reference(torch.tensor([[7.0, 9.0]]), temperature)
    better = 1 / (1 + math.exp(-2 / temperature))
    torch.testing.assert_close(reference, torch.tensor([[1 - better, better]]))


def test_reference_ignores_shift_and_scale() -> None:
    reference = group_relative_reference(VALUES)
    torch.testing.assert_close(group_relative_reference(VALUES - 12.5), reference)
    torch.testing.assert_close(group_relative_reference(VALUES * 40), reference)


def test_cross_entropy_gradient_is_softmax_minus_reference() -> None:
    # A policy over an enumerated list space whose group is that whole space.
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = group_relative_cross_entropy(logits.log_softmax(dim=1), VALUES, temperature=0.7)
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = (logits.softmax(dim=1) - group_relative_reference(VALUES, 0.7)) / 2
    torch.testing.assert_close(gradient, expected)


def test_cross_entropy_is_the_printed_loss() -> None:
    # Reference (0.1192, 0.8808); the released code's form, with exp(log pi), would give -0.2881.
    probability = torch.tensor([[0.6, 0.2]])
    loss = group_relative_cross_entropy(probability.log(), torch.tensor([[0.0, 5.0]]))
    better = 1 / (1 + math.exp(-2))
    assert loss.item() == pytest.approx(-(1 - better) * math.log(0.6) - better * math.log(0.2), rel=1e-5)


@pytest.mark.parametrize("broken", [math.nan, -math.inf])
def test_a_group_without_a_value_spoils_no_other(broken: float) -> None:
    values = torch.cat([VALUES, torch.tensor([[1.0, broken, 2.0, 0.0]])])
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for loss_of in (group_relative_cross_entropy, lambda lp, v: grpo_loss(lp, logits.log_softmax(dim=1), v)):
        own = logits.clone().requires_grad_()
        loss = loss_of(own.log_softmax(dim=1), values)
        (gradient,) = torch.autograd.grad(loss, own)
        few = logits[:2].clone().requires_grad_()
        alone = group_relative_cross_entropy(few.log_softmax(dim=1), VALUES)
        if loss_of is group_relative_cross_entropy:
            torch.testing.assert_close(loss, alone)
            torch.testing.assert_close(gradient[:2], torch.autograd.grad(alone, few)[0])
        assert bool(gradient.isfinite().all())
        assert float(gradient[2].abs().max()) == 0.0 < float(gradient[:2].abs().max())


def test_groups_without_spread_teach_nothing() -> None:
    flat = torch.tensor([[5.0, 5.0001, 5.0, 5.0]])
    values = torch.cat([VALUES[:1], flat])
    assert informative_groups(values, 0.1).tolist() == [True, False]
    log_prob = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for loss_of in (
        lambda lp, v: group_relative_cross_entropy(lp, v, 1.0, 0.1),
        lambda lp, v: grpo_loss(lp, lp.detach() + 0.05, v, 0.2, 0.1),
    ):
        loss = loss_of(log_prob, values)
        torch.testing.assert_close(loss, loss_of(log_prob[:1], values[:1]))
        (gradient,) = torch.autograd.grad(loss, log_prob)
        assert gradient[0].abs().max() > 0
        assert gradient[1].tolist() == [0.0] * 4
        assert loss_of(log_prob[1:], flat).item() == 0.0


def test_grpo_gradient_at_ratio_one_is_minus_advantage() -> None:
    log_prob = torch.full((2, 4), -3.0, requires_grad=True)
    loss = grpo_loss(log_prob, log_prob.detach(), VALUES)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    torch.testing.assert_close(gradient, -group_z_score(VALUES) / 8)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "better_list_moves", "worse_list_moves"),
    [(1.5, False, True), (0.5, True, False), (1.1, True, True)],
)
def test_grpo_stops_at_the_clip(ratio: float, better_list_moves: bool, worse_list_moves: bool) -> None:
    log_prob = torch.full((1, 2), math.log(ratio), requires_grad=True)
    loss = grpo_loss(log_prob, torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), clip=0.2)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert [bool(g != 0) for g in gradient[0]] == [better_list_moves, worse_list_moves]
