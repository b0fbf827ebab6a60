"""The plain GoalRank policy: decisions, saving, refusals, independence from Ray."""

import pytest
import torch

from agents.decoders import DECODERS
from agents.goalrank import GoalRankConfig
from agents.list_policy import SIZES, ListPolicy, sized
from agents.networks import RequestShape
from tests.helpers.list_game import K, N, make_request

SMALL = GoalRankConfig(width=16, item_embedding=4, heads=2)
SHAPE = RequestShape.of(make_request(1, torch.Generator()), N, K)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("objective", "ppo", "objective must be one of"),
        ("decoder", "beam", "decoder must be one of"),
        ("mixing", "none", "mixing must be one of"),
        ("group_size", 1, "at least 2 lists"),
        ("group_size", 3.5, "group_size must be a whole number, got 3.5"),
        ("seed", -1, "seed must not be negative"),
        ("temperature", 0.0, "temperature must be positive, got 0.0"),
        ("lr", -1.0, "lr must be positive"),
        ("minibatch_size", 0, "minibatch_size must be at least 1"),
        ("min_spread", -0.1, "min_spread must not be negative"),
        ("value_noise", 1.5, "share from 0 to 1, got 1.5"),
        ("lr", float("nan"), "lr must be positive, got nan"),
        ("min_spread", float("nan"), "min_spread must not be negative, got nan"),
        ("auxiliary_requests", -5, "None or at least 0, got -5"),
        ("auxiliary_share", 1.0, "share from 0 to below 1, got 1.0"),
        ("auxiliary_share", 0.99, "leaves no list of the policy's own"),
        ("heads", 7, "heads must divide width, got 7 and 64"),
    ],
)
def test_bad_settings_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GoalRankConfig(**{field: value})


@pytest.mark.parametrize("size", SIZES)
def test_a_size_is_a_number_of_parameters(size: str) -> None:
    shape = RequestShape(num_items=7583, num_signals=8, num_user_features=77, num_candidate_features=72, slate_size=6)
    with torch.device("meta"):
        policy = ListPolicy(sized(GoalRankConfig(), size), shape)
    count = sum(p.numel() for name, p in policy.named_parameters() if "item_embedding" not in name)
    named = float(size.replace("k", "e3").replace("m", "e6"))
    assert 0.8 < count / named < 1.2
    assert sized(GoalRankConfig(), size).lr == pytest.approx(2e-3 * 64 / policy.config.width)


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(ValueError, match="size must be one of"):
        sized(GoalRankConfig(), "1g")


def test_decisions_are_slates_of_candidates_with_their_probability() -> None:
    policy, request = ListPolicy(SMALL, SHAPE), make_request(50, seeded())
    items, log_prob = policy(request, seeded(1))
    assert items.shape == (50, K)
    assert (items.unsqueeze(-1) == request.candidates_BC.unsqueeze(1)).any(dim=-1).all()
    assert all(len(set(slate)) == K for slate in items.tolist())
    assert log_prob is not None
    torch.testing.assert_close(policy.log_prob(request, items).detach(), log_prob)
    again = policy(request, seeded(1))
    assert torch.equal(again.items_BK, items)
    assert not torch.equal(policy(request, seeded(2)).items_BK, items)


def test_greedy_decisions_have_no_probability_and_no_luck() -> None:
    policy, request = ListPolicy(SMALL, SHAPE, greedy=True), make_request(20, seeded())
    decision = policy(request, seeded(1))
    assert decision.log_prob_BK is None
    assert torch.equal(policy(request, seeded(2)).items_BK, decision.items_BK)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(11)
    expected_next = torch.rand(3)
    torch.manual_seed(11)
    first = ListPolicy(SMALL, SHAPE)
    assert torch.equal(torch.rand(3), expected_next)  # the global stream was left alone
    second = ListPolicy(SMALL, SHAPE)
    other = ListPolicy(GoalRankConfig(width=16, item_embedding=4, heads=2, seed=1), SHAPE)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.encoder.candidate_input.weight, other.encoder.candidate_input.weight)


def test_encoder_runs_once_whatever_the_group() -> None:
    policy = ListPolicy(SMALL, SHAPE)
    calls = []
    policy.encoder.register_forward_hook(lambda *_: calls.append(1))
    policy.sample_group(make_request(3, seeded()), 32, seeded())
    assert len(calls) == 1


def test_group_log_prob_reaches_every_parameter() -> None:
    for decoder in DECODERS:
        policy = ListPolicy(GoalRankConfig(decoder=decoder, width=16, heads=2), SHAPE)
        request = make_request(4, seeded())
        positions, log_prob = policy.sample_group(request, 5, seeded())
        again = policy.group_log_prob(request, positions)
        torch.testing.assert_close(again.detach(), log_prob)
        again.sum().backward()
        assert [name for name, p in policy.named_parameters() if p.grad is None] == []


def test_slates_of_one_place() -> None:
    shape = RequestShape.of(make_request(1, torch.Generator()), N, 1)
    policy, request = ListPolicy(SMALL, shape), make_request(4, seeded())
    policy.log_prob(request, policy(request, seeded()).items_BK).sum().backward()
    assert [name for name, p in policy.named_parameters() if p.grad is None] == []


def test_probability_of_other_items_is_refused() -> None:
    policy, request = ListPolicy(SMALL, SHAPE), make_request(2, seeded())
    with pytest.raises(ValueError, match="is not among the"):
        policy.log_prob(request, torch.full((2, K), N + 1))
    with pytest.raises(ValueError, match="some slates hold an item twice"):
        policy.log_prob(request, request.candidates_BC[:, :1].expand(2, K))


def test_policy_of_another_world_is_refused() -> None:
    policy = ListPolicy(SMALL, SHAPE)
    elsewhere = make_request(2, seeded())
    elsewhere.candidates_BC[1, 2] = N
    with pytest.raises(ValueError, match=f"catalogue of {N} items, the request offers item {N}"):
        policy(elsewhere, seeded())
    foreign = make_request(2, seeded())._replace(user_features_BD=torch.zeros(2, 9))
    with pytest.raises(ValueError, match="use its own world"):
        policy(foreign, seeded())


def test_grpo_takes_no_lists_that_its_policy_did_not_draw() -> None:
    with pytest.raises(ValueError, match="grpo compares with the policy that drew the lists"):
        GoalRankConfig(objective="grpo", auxiliary_share=0.5)
