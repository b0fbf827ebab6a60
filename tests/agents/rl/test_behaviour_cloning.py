"""Behaviour cloning: the alternatives a slate is set among, what teaches, and a logging policy that it finds again."""

import dataclasses

import pytest
import torch

from agents.list_policy import POSITIONS
from agents.method import log_columns
from agents.networks import RequestShape
from agents.rl.behaviour_cloning import WEIGHT, BehaviourCloning, BehaviourCloningConfig, among_others
from recsim_env.data.requests import LoggedRequests
from recsim_env.slates import list_log_prob, sample_lists

SMALL = BehaviourCloningConfig(decoder="one_softmax", width=16, heads=2, item_embedding=0, layers=0, num_candidates=8)


def requests(num_requests: int = 400, places: int = 2, num_items: int = 30, weight: float = 2.0) -> LoggedRequests:
    """Slates drawn from all items by a softmax of their one feature; a twentieth shows one video twice."""
    generator = torch.Generator().manual_seed(0)
    feature_N = torch.randn(num_items, generator=generator)
    logits = (weight * feature_N).expand(num_requests, -1)
    items = sample_lists(logits, 1, places, generator)[:, 0]
    items[::20, 1] = items[::20, 0]
    events = num_requests * places
    return LoggedRequests(
        signals=("watch_time",),
        history_length=3,
        item_features_ND=feature_N.unsqueeze(1),
        user_features_UD=torch.zeros(1, 1),
        event_item_E=items.flatten(),
        event_feedback_EF=torch.ones(events, 1),
        event_known_EF=torch.ones((events, 1), dtype=torch.bool),
        user_L=torch.zeros(num_requests, dtype=torch.int64),
        date_L=torch.full((num_requests,), 20220401),
        context_LX=torch.zeros(num_requests, 7),
        left_L=torch.zeros(num_requests, dtype=torch.bool),
        history_begin_L=torch.zeros(num_requests, dtype=torch.int64),
        history_end_L=torch.zeros(num_requests, dtype=torch.int64),
        slate_event_P=torch.arange(events),
        slate_row_P=torch.arange(events),
        slate_start_L1=torch.arange(num_requests + 1) * places,
        propensity_P=torch.full((events,), torch.nan),
        uniform_L=torch.zeros(num_requests, dtype=torch.bool),
        candidate_item_Q=None,
        candidate_start_L1=torch.arange(num_requests + 1) * places,
    )


def test_a_slate_stands_once_among_different_others() -> None:
    logged = requests(weight=0.0)
    found = among_others(logged, 8, seed=1)
    batch = found.batch(torch.arange(len(found)))
    candidates = batch.request.candidates_BC
    assert candidates.shape == (400, 8)
    fine = torch.ones(400, dtype=torch.bool)
    fine[::20] = False  # a video shown twice stands twice
    assert all(len(set(row)) == 8 for row in candidates[fine].tolist())
    assert torch.equal(candidates[:, :2], batch.items_BK)
    shown = torch.bincount(candidates[:, 2:].flatten(), minlength=30).float()
    assert shown.min() > 0.5 * shown.mean()  # evenly drawn, less what the slates took
    with pytest.raises(
        ValueError, match="need slate size < num_candidates <= items of the catalogue, got 2, 31 and 30"
    ):
        among_others(logged, 31, seed=1)


def test_repeats_and_foreign_videos_teach_nothing() -> None:
    method = BehaviourCloning(SMALL)
    logged = among_others(requests(), 8, seed=1)
    columns = log_columns(method, logged.batch(torch.arange(40)))
    assert columns[WEIGHT].tolist() == [0.0 if row % 20 == 0 else 1.0 for row in range(40)]
    fine = columns[WEIGHT] == 1
    assert bool((columns[POSITIONS][fine] == torch.arange(2)).all())


def test_the_logging_policy_is_found_again() -> None:
    method = BehaviourCloning(dataclasses.replace(SMALL, lr=1e-2))
    logged = method.prepare_log(requests(3000))
    batch = log_columns(method, logged.batch(torch.arange(len(logged))))
    network = method.network(RequestShape.of(logged.batch(torch.arange(1)).request, 30, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(150):
        loss, _ = method.loss(method.outputs(network, batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Conditional on the alternatives, a softmax stays the same softmax among fewer.
    truth = list_log_prob(2.0 * batch["candidate_features_BCD"][..., 0], batch[POSITIONS].unsqueeze(1))[:, 0].mean(1)
    expected = -float((truth * batch[WEIGHT]).sum() / batch[WEIGHT].sum())
    assert float(loss) == pytest.approx(expected, rel=0.03)
    uniform = float(torch.tensor([1 / 8, 1 / 7]).log().mean())
    assert float(loss) < -uniform - 0.3
