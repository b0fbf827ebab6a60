"""PPO: advantages by hand, where sessions end and where they are cut, and a game it solves."""

import pytest
import torch

from agents.method import Rollout
from agents.rl.ppo import ADVANTAGE, PPO, RETURN, VALUE, PPOConfig, advantages
from recsim_env.types import Request
from tests.helpers.list_game import ENV, make_request, share_of_optimum
from tests.helpers.rllib_loop import learn

GAMMA, LAMBDA = 0.9, 0.8
SMALL = PPOConfig(width=32, heads=2, item_embedding=4, lr=3e-3, minibatch_size=128, gamma=0.0, reward_unit=1.0)


def test_advantages_are_the_discounted_sums_of_surprises() -> None:
    generator = torch.Generator().manual_seed(0)
    reward, value = torch.rand((5, 3), generator=generator), torch.rand((6, 3), generator=generator)
    nothing = torch.zeros((5, 3), dtype=torch.bool)
    found = advantages(reward, value, nothing, nothing, GAMMA, LAMBDA)
    for step in range(5):
        by_hand = sum(
            (GAMMA * LAMBDA) ** (later - step) * (reward[later] + GAMMA * value[later + 1] - value[later])
            for later in range(step, 5)
        )
        torch.testing.assert_close(found[step], by_hand)


def test_leaving_ends_what_is_to_come_and_a_cut_does_not() -> None:
    reward, value = torch.ones(3, 2), torch.full((4, 2), 10.0)
    ends = torch.tensor([[False, False], [True, True], [False, False]])
    no = torch.zeros_like(ends)
    left = advantages(reward, value, ends, no, GAMMA, LAMBDA)
    cut = advantages(reward, value, no, ends, GAMMA, LAMBDA)
    assert left[1].tolist() == pytest.approx([1 - 10] * 2)  # nothing follows
    assert cut[1].tolist() == pytest.approx([1 + GAMMA * 10 - 10] * 2)  # what the last request promised
    assert left[0].tolist() == pytest.approx([1 + GAMMA * 10 - 10 + GAMMA * LAMBDA * (1 - 10)] * 2)


def test_labels_bootstrap_from_the_request_after_the_last_step() -> None:
    method = PPO(PPOConfig(width=8, heads=2, item_embedding=0, gamma=GAMMA, gae_lambda=0.0, reward_unit=2.0))
    generator = torch.Generator().manual_seed(0)
    requests = [make_request(4, generator) for _ in range(3)]
    from agents.networks import RequestShape
    from tests.helpers.list_game import K, N

    network = method.network(RequestShape.of(requests[0], N, K))
    with torch.no_grad():
        values = [network.value_of(network.encoder(request).request_BW) for request in requests]
        no = torch.zeros((2, 4), dtype=torch.bool)
        columns = {name: torch.stack([getattr(r, name) for r in requests[:2]]) for name in Request._fields}
        rollout = Rollout(
            columns={**columns, VALUE: torch.stack(values[:2])},
            reward_TB=torch.ones(2, 4),
            rewards_TBR=torch.ones(2, 4, 1),
            terminated_TB=no,
            truncated_TB=no,
            valid_TB=~no,
            last=requests[2],
        )
        found = method.label(network, rollout)
    torch.testing.assert_close(found[ADVANTAGE][1], 0.5 + GAMMA * values[2] - values[1])
    torch.testing.assert_close(found[RETURN][1], 0.5 + GAMMA * values[2])


def test_solves_the_list_game() -> None:
    # A sort by item value reaches 0.73 of the optimum, random lists 0.36.
    assert share_of_optimum(learn(PPO(SMALL), ENV, 35)) > 0.92


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"gamma and gae_lambda lie in 0..1, got 1.5 and 0.95"):
        PPOConfig(gamma=1.5)
