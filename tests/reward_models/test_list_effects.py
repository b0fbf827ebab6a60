"""Effects of kinds on each other against sums written out by hand, in both models."""

import torch

from reward_models.list_effects import PairEffects, kinds_of
from reward_models.recommender.list_evaluator_network import ListEvaluatorConfig, ListModel, Sizes


def test_kinds_are_the_features_that_are_yes_or_no():
    features_ND = torch.tensor([[0.0, 1.0, 0.5, 1.0], [1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 2.0]])
    assert kinds_of(features_ND).tolist() == [0]  # the second never changes, the others take more values


def drawn_effects(members: tuple[int, ...], num_kinds: int = 4) -> PairEffects:
    effects = PairEffects(num_kinds, members)
    generator = torch.Generator().manual_seed(3)
    effects.pair.data.copy_(torch.randn(effects.pair.shape, generator=generator))
    effects.memory_logit.data.copy_(torch.randn(effects.memory_logit.shape, generator=generator))
    return effects.requires_grad_(False)


def by_hand(pair_ZZ: torch.Tensor, memory: float, kind_KZ: torch.Tensor) -> list[float]:
    total = [0.0] * len(kind_KZ)
    for later in range(len(kind_KZ)):
        for earlier in range(later):
            effect = float(kind_KZ[earlier] @ pair_ZZ @ kind_KZ[later])
            total[later] += memory ** (later - earlier - 1) * effect
    return total


def test_strength_is_the_sum_written_out():
    effects = drawn_effects(())
    kind_KZ = (torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    strength_K = effects.strength(kind_KZ @ effects.pair @ kind_KZ.T)
    expected = by_hand(effects.pair, effects.fading(torch.tensor(1)).item(), kind_KZ)
    torch.testing.assert_close(strength_K, torch.tensor(expected))
    assert strength_K[0] == 0


def test_the_evaluator_adds_the_same_sum_for_each_member_and_list():
    model = ListModel(ListEvaluatorConfig(num_members=2), Sizes(candidate=5, request=1, signals=2, kinds=4), seed=0)
    assert model.effects is not None
    effects = drawn_effects((2,))
    model.effects.pair_effects.load_state_dict(effects.state_dict())
    model.effects.kind_Z.copy_(torch.tensor([0, 1, 3, 4]))
    model.effects.slope.data[:, 0] = torch.tensor([[1.0, 0.5], [2.0, -1.0]])
    candidate_BCI = (torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    position_BGK = torch.tensor([[[0, 1, 2], [6, 5, 0]], [[3, 2, 1], [4, 0, 6]], [[5, 1, 2], [2, 5, 1]]])
    change_MBGKF = model.effects(candidate_BCI, position_BGK, 2).view(2, 3, 2, 3, 2)
    for member in range(2):
        memory = effects.fading(torch.tensor(1))[member].item()
        for request in range(3):
            for number in range(2):
                kind_KZ = candidate_BCI[request, position_BGK[request, number]][:, [0, 1, 3, 4]]
                strength_K = torch.tensor(by_hand(effects.pair[member], memory, kind_KZ))
                expected_KF = strength_K.unsqueeze(1) * model.effects.slope[member]
                torch.testing.assert_close(change_MBGKF[member, request, number], expected_KF)


def test_settling_puts_the_median_over_shown_pairs_at_zero():
    effects = PairEffects(3, (2,))
    effects.pair.data.copy_(torch.arange(18.0).view(2, 3, 3))
    effects.settle(torch.tensor([0.1, 0.1, 0.8]))  # 64 % of the pairs are of the last kind with itself
    assert effects.pair[:, 2, 2].tolist() == [0.0, 0.0]
    assert effects.pair[1, 0, 0] == -8.0
    PairEffects(0).settle(torch.zeros(0))  # a catalogue without kinds has nothing to settle
