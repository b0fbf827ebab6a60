"""Generators fitted to logged slates: losses by hand, decoding against a plain loop, a log whose best is known."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from agents.list_policy import ListPolicy, ListPolicyConfig
from agents.method import Columns, log_columns, method_path
from agents.method_checker import check_method
from agents.networks import Encoding, RequestShape
from agents.rerankers.log_methods import LOG_METHODS, LogMethodName, log_method
from agents.rerankers.logged_slates import EXPECTED, POSITIONS, SECONDS, fit_to_slates, teaching_slates
from agents.rerankers.nar4rec import ContrastiveDecoding
from agents.rerankers.seq2slate import _NOISE
from agents.rl.behaviour_cloning import WEIGHT
from recsim_env.data.requests import LoggedBatch, LoggedRequests, logged_requests
from recsim_env.known_worlds import short_video_world
from recsim_env.known_worlds.logs import synthetic_log
from recsim_env.types import Feedback, Request
from tests.helpers import list_game
from tests.helpers.list_game import C, K, N, make_request

SMALL = {"width": 32, "item_embedding": 8}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class FixedScores:
    """A decoder of one softmax with these scores."""

    def __init__(self, logit_BC: Tensor):
        self.logit_BC = logit_BC

    def begin(self, encoding: Encoding) -> Tensor:
        return self.logit_BC.unsqueeze(1)


class FixedLogits:
    """A decoder whose scores do not change."""

    def __init__(self, logit_BC: Tensor):
        self.logit_BC = logit_BC

    def begin(self, encoding: Encoding) -> Tensor:
        return self.logit_BC

    def logits(self, encoding: Encoding, summary: Tensor) -> Tensor:
        return summary.unsqueeze(1)

    def extend(self, encoding: Encoding, summary: Tensor, chosen_BG: Tensor) -> Tensor:
        return summary


def network_with(decoder: Any) -> ListPolicy:
    return cast(ListPolicy, SimpleNamespace(encoder=lambda request: None, decoder=decoder))


def columns(seconds: list[list[float]], positions: list[list[int]], expected: float = 0.0) -> Columns:
    """Slates; the request's own columns are empty, for the network ignores them."""
    seconds_BK = torch.tensor(seconds)
    noise_BKK = torch.zeros(*seconds_BK.shape, seconds_BK.shape[1])
    slates = {POSITIONS: torch.tensor(positions), SECONDS: seconds_BK, EXPECTED: torch.full_like(seconds_BK, expected)}
    weight_B = torch.ones(len(seconds))
    return {**dict.fromkeys(Request._fields, torch.empty(0)), **slates, WEIGHT: weight_B, _NOISE: noise_BKK}


def loss_of(name: LogMethodName, decoder: Any, batch: Columns) -> Tensor:
    method = log_method(name)
    return method.loss(method.outputs(network_with(decoder), batch), batch)[0]


def test_prm_pulls_towards_the_shares_of_the_seconds() -> None:
    logit = torch.tensor([[0.3, -1.0, 2.0, 5.0]], requires_grad=True)
    loss = loss_of("prm", FixedScores(logit), columns([[30.0, 10.0]], [[2, 0]]))
    loss.backward()  # type: ignore[no-untyped-call]
    probability = torch.tensor([0.3, 2.0]).softmax(dim=0)
    expected = torch.tensor([[probability[0] - 0.25, 0.0, probability[1] - 0.75, 0.0]])
    torch.testing.assert_close(logit.grad, expected)


def test_a_slate_nobody_watched_teaches_prm_nothing() -> None:
    logit = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    loss = loss_of("prm", FixedScores(logit), columns([[0.0, 0.0], [5.0, 5.0]], [[0, 1], [0, 1]]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert logit.grad is not None
    assert float(logit.grad[0].abs().max()) == 0
    alone = torch.tensor([[0.0, 1.0, 0.0]])
    counted = loss_of("prm", FixedScores(alone), columns([[5.0, 5.0]], [[0, 1]]))
    assert loss.item() == pytest.approx(counted.item())


def test_the_pointer_learns_the_first_place_and_is_sure_of_the_last() -> None:
    logit = torch.tensor([[1.0, 0.0, -3.0]])
    loss = loss_of("seq2slate", FixedLogits(logit), columns([[8.0, 2.0]], [[0, 1]]))
    log_p = torch.tensor([1.0, 0.0]).log_softmax(dim=0)
    assert float(loss) == pytest.approx(float(-(0.8 * log_p[0] + 0.2 * log_p[1])))  # the last place has no choice


def test_the_pointer_sees_what_it_drew_before() -> None:
    """Three videos, the network surely draws the second first: places are discounted as in DCG."""
    logit = torch.tensor([[0.0, 60.0, 1.0]])
    loss = loss_of("seq2slate", FixedLogits(logit), columns([[1.0, 0.0, 3.0]], [[0, 1, 2]]))
    first = torch.tensor([0.0, 60.0, 1.0]).log_softmax(dim=0)
    second = torch.tensor([0.0, 1.0]).log_softmax(dim=0)
    by_hand = -(0.25 * first[0] + 0.75 * first[2])
    by_hand = by_hand - (0.25 * second[0] + 0.75 * second[1]) / torch.log2(torch.tensor(3.0))
    assert float(loss) == pytest.approx(float(by_hand))


def test_the_pointer_draws_its_own_order_and_every_slate_has_its_own_noise(small_log: LoggedRequests) -> None:
    """Scores of equal height are drawn evenly; a slate's noise does not hang on the rest of the batch."""
    method = cast(Any, log_method("seq2slate"))
    largest = max(small_log.batch_indices(1024), key=len)
    batch = small_log.batch(largest)
    noise = method.from_log(batch)[_NOISE]
    assert torch.equal(noise[:3], method.from_log(small_log.batch(largest[:3]))[_NOISE])
    assert not torch.equal(noise, cast(Any, log_method("seq2slate", seed=1)).from_log(batch)[_NOISE])
    num, places = batch.items_BK.shape
    flat = {**columns([[1.0] * places] * num, [list(range(places))] * num), _NOISE: noise}
    left = method.outputs(network_with(FixedLogits(torch.zeros(num, places))), flat)["left_BKK"]
    first_drawn = (1 - left[:, 1]).mean(dim=0)
    assert first_drawn.sum() == pytest.approx(1.0)
    assert (first_drawn - 1 / places).abs().max() < 4 * (1 / places / num) ** 0.5


def test_nar4rec_likes_good_slates_and_unlikes_bad_ones() -> None:
    matching = torch.randn((2, 2, 4), generator=seeded())
    decoder = SimpleNamespace(begin=lambda encoding: (matching, 0))
    loss = loss_of("nar4rec", decoder, columns([[9.0, 1.0], [1.0, 1.0]], [[3, 0], [3, 0]], expected=3.0))
    p = matching.softmax(dim=2)
    good = -torch.log(torch.stack([p[0, 0, 3], p[0, 1, 0]]))
    bad = -torch.log(1 - torch.stack([p[1, 0, 3], p[1, 1, 0]]))
    assert float(loss) == pytest.approx(float(torch.cat([good, bad]).mean()), rel=1e-5)


class GameLog:
    """Uniform slates of the list game without its penalty: the sort by an item's value is the best list."""

    def __init__(self, num_requests: int):
        generator = seeded(3)
        request = make_request(num_requests, generator)
        positions = torch.rand((num_requests, C), generator=generator).argsort(dim=1)[:, :K]
        self.items = request.candidates_BC.gather(1, positions)
        value = list_game.VALUE[self.items] * list_game.PLACE_WEIGHT
        self.seconds = 10 * value * (0.5 + torch.rand(value.shape, generator=generator))
        predicted = torch.zeros_like(request.predicted_BCF)
        predicted[..., 0] = self.seconds.mean()  # no opinion on single videos
        self.request = request._replace(predicted_BCF=predicted)
        self.user_L = torch.arange(num_requests)
        self.uniform_L = torch.zeros(num_requests, dtype=torch.bool)
        self.item_features_ND = torch.zeros((N, 1))
        self.slate_size_L = torch.full((num_requests,), K)
        self.slate_event_P = torch.arange(num_requests * K)
        self.candidate_item_Q = self.predictor = ()
        self.digest = "the list game"

    def batch(self, index: Tensor) -> LoggedBatch:
        seconds, nothing = self.seconds[index], torch.zeros(len(index), dtype=torch.bool)
        signals = torch.stack([seconds, torch.zeros_like(seconds)], dim=2)
        feedback = Feedback(signals, torch.ones_like(seconds, dtype=torch.bool), nothing)
        request = Request(*(tensor[index] for tensor in self.request))
        known = torch.ones_like(signals, dtype=torch.bool)
        return LoggedBatch(
            request, self.items[index], feedback, known, torch.ones_like(seconds), nothing, self.items[index]
        )

    def annotated(self, predictor: None) -> "GameLog":
        return self

    def batch_indices(self, size: int, generator: None, among: Tensor) -> list[Tensor]:
        return list(torch.split(among, size))

    def batches(self, size: int, generator: torch.Generator | None, among: Tensor) -> Iterator[LoggedBatch]:
        order = among if generator is None else among[torch.randperm(len(among), generator=generator)]
        return (self.batch(index) for index in torch.split(order, size))


@pytest.mark.parametrize("name", LOG_METHODS)
def test_every_method_finds_the_best_lists_of_a_log(name: LogMethodName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_game, "PENALTY", 0.0)
    log = cast(LoggedRequests, GameLog(8000))
    policy = fit_to_slates(log, log_method(name, lr=5e-3, **SMALL), K, patience=3)

    def blind(request: Request, generator: torch.Generator) -> Any:
        constant = torch.full_like(request.predicted_BCF[..., 0], float(log.seconds.mean()))  # type: ignore[attr-defined]
        opinion = torch.stack([constant, torch.zeros_like(constant)], dim=2)
        return policy(request._replace(predicted_BCF=opinion), generator)

    assert list_game.share_of_optimum(blind) > 0.95


@pytest.mark.parametrize("name", LOG_METHODS)
def test_every_method_keeps_the_contract(name: LogMethodName) -> None:
    config = log_method(name, width=8, heads=2).config
    check_method(method_path(log_method(name)), **dataclasses.asdict(config))


def test_slates_from_outside_their_candidates_teach_nothing(small_log: LoggedRequests) -> None:
    batch = small_log.annotated(NoOpinion()).batch(max(small_log.batch_indices(64), key=len))
    batch.items_BK[0, 0] = next(i for i in range(100) if i not in batch.request.candidates_BC[0].tolist())
    batch.known_BKF[1, 0, 0] = False
    without = LoggedBatch(*(_rows(part, 2) for part in batch))
    for name in LOG_METHODS:
        method = log_method(name, **SMALL)
        network = method.network(RequestShape.of(batch.request, 100, 3))
        losses = [
            method.loss(method.outputs(network, c), c)[0] for c in (log_columns(method, b) for b in (batch, without))
        ]
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)


def _rows(part: Any, begin: int) -> Any:
    """A batch's part without its first rows."""
    return part[begin:] if isinstance(part, Tensor) else type(part)(*(tensor[begin:] for tensor in part))


def make_policy(decoder: str = "matching") -> tuple[ListPolicy, Request]:
    request = make_request(50, seeded())
    config = ListPolicyConfig(decoder=decoder, width=16, heads=2, seed=4)  # type: ignore[arg-type]
    return ListPolicy(config, RequestShape.of(request, N, K), greedy=True), request


def test_contrastive_decoding_is_what_a_plain_loop_finds() -> None:
    policy, request = make_policy()
    found = ContrastiveDecoding(policy, penalty=0.4, among=3)(request, seeded()).items_BK
    with torch.no_grad():
        encoding = policy.encoder(request)
        matching, _ = policy.decoder.begin(encoding)
    changed = 0
    for row in range(len(found)):
        chosen: list[int] = []
        for place in range(K):
            p = matching[row, place].softmax(dim=0)
            likely = sorted((c for c in range(C) if c not in chosen), key=lambda c: -float(p[c]))[:3]
            h = encoding.candidates_BCW[row]
            worth = {
                c: 0.6 * float(p[c])
                - 0.4 * max((float(torch.cosine_similarity(h[c], h[j], dim=0)) for j in chosen), default=0.0)
                for c in likely
            }
            chosen.append(max(worth, key=lambda c: worth[c]))
        assert found[row].tolist() == request.candidates_BC[row, chosen].tolist()
        changed += chosen != policy.decoder.greedy(Encoding(*(t[row : row + 1] for t in encoding)), K)[0].tolist()
    assert changed > 5  # the penalty matters


def test_contrastive_decoding_without_penalty_is_the_greedy_list() -> None:
    policy, request = make_policy()
    torch.testing.assert_close(
        ContrastiveDecoding(policy, penalty=0.0)(request, seeded()).items_BK, policy(request, seeded()).items_BK
    )
    with pytest.raises(ValueError, match="'matching' decoder and two places or more, got 'one_softmax' and 3"):
        ContrastiveDecoding(make_policy("one_softmax")[0], 0.1)
    for penalty, among in ((1.5, 8), (-0.1, 8), (0.1, 0)):
        with pytest.raises(ValueError, match="penalty from 0 to 1 and among of at least 1"):
            ContrastiveDecoding(policy, penalty, among)


@pytest.fixture(scope="module")
def small_log() -> LoggedRequests:
    world = short_video_world(num_users=80, num_items=100, seed=2)
    log = synthetic_log(world, num_sessions=60, days=3, num_candidates=10, slate_size=3, keep_candidates=True)
    return logged_requests(log, item_features_ND=world.catalogue.features_ND, user_features_UD=world.users.features_UD)


class NoOpinion:
    def predict_request(self, request: Request, items_BC: Tensor, chosen_B: Tensor) -> tuple[Tensor, Tensor]:
        nothing = torch.zeros(*items_BC.shape, request.history_feedback_BHF.shape[2])
        return nothing, nothing


class Opinion(NoOpinion):
    def predict_request(self, request: Request, items_BC: Tensor, chosen_B: Tensor) -> tuple[Tensor, Tensor]:
        nothing, spread = super().predict_request(request, items_BC, chosen_B)
        return nothing + 1.0, spread


def test_a_log_with_short_slates_is_used_whole(small_log: LoggedRequests) -> None:
    """Users who leave cut slates short; networks are still built for whole lists."""
    assert len(small_log.slate_size_L.unique()) > 1
    policy = fit_to_slates(small_log.annotated(NoOpinion()), log_method("seq2slate", **SMALL), 3, max_epochs=1)
    request = small_log.batch(torch.arange(1)).request
    assert policy(request, seeded()).items_BK.shape == (1, 3)


def test_what_cannot_be_fitted_is_refused_in_words(small_log: LoggedRequests) -> None:
    prm = log_method("prm", **SMALL)
    with pytest.raises(ValueError, match=r"method must be one of .*'lstm'"):
        log_method("lstm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="have no predictor"):
        fit_to_slates(small_log, prm, 3)
    without = dataclasses.replace(small_log, candidate_item_Q=None)
    with pytest.raises(ValueError, match="holds no candidate lists"):
        fit_to_slates(without.annotated(NoOpinion()), prm, 3)
    ready = small_log.annotated(NoOpinion())
    with pytest.raises(ValueError, match="got 0 and 0"):
        fit_to_slates(ready, prm, 3, among=torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match="hold the log's slates of 3, got 2"):
        fit_to_slates(ready, prm, 2)
    with pytest.raises(ValueError, match=r"decoder must be one of \('matching',\), got 'autoregressive'"):
        log_method("nar4rec", decoder="autoregressive")
    with pytest.raises(ValueError, match=r"prm is defined by its \['mixing'\]"):
        log_method("prm", mixing="recurrent")
    with pytest.raises(ValueError, match="learns from 'fresh', not from a log"):
        fit_to_slates(ready, cast(Any, SimpleNamespace(data="fresh")), 3)
    unknown = dataclasses.replace(ready, event_known_EF=torch.zeros_like(small_log.event_known_EF))
    with pytest.raises(ValueError, match=r"recorded watch time.*got 0 and 0"):
        fit_to_slates(unknown, prm, 3)


def test_slates_from_outside_their_candidates_are_left_out(small_log: LoggedRequests) -> None:
    """Half of the candidate lists are replaced by videos that were not shown."""
    candidates = small_log.candidate_item_Q
    assert candidates is not None
    start = small_log.candidate_start_L1
    strange = candidates.clone()
    for request in range(0, len(small_log), 2):
        shown = set(small_log.batch(torch.tensor([request])).items_BK[0].tolist())
        others = [item for item in range(100) if item not in shown]
        strange[start[request] : start[request + 1]] = torch.tensor(others)[: start[request + 1] - start[request]]
    changed = dataclasses.replace(small_log, candidate_item_Q=strange)
    kept = teaching_slates(changed, log_method("prm"), torch.arange(len(small_log)))
    # Neither do slates teach that show what their session has shown: of a repeat nothing is known.
    whole = [bool(small_log.batch(torch.tensor([request])).known_BKF.all()) for request in range(len(small_log))]
    assert not all(whole)
    assert kept.tolist() == [request for request in range(1, len(small_log), 2) if whole[request]]


def test_a_fit_goes_on_only_where_it_is_the_same(small_log: LoggedRequests, tmp_path: Path) -> None:
    ready, prm = small_log.annotated(NoOpinion()), log_method("prm", **SMALL)
    first = fit_to_slates(ready, prm, 3, max_epochs=1, run_dir=tmp_path)
    again = fit_to_slates(ready, prm, 3, max_epochs=1, run_dir=tmp_path)
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor)
    flipped = dataclasses.replace(ready, event_feedback_EF=ready.event_feedback_EF.flip(0))
    for other, name in ((flipped, "log"), (ready.annotated(Opinion()), "models")):
        with pytest.raises(ValueError, match=rf"holds other work \(.*identity\.{name} was"):
            fit_to_slates(other, prm, 3, max_epochs=1, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"holds other work .*identity\.method was"):
        fit_to_slates(ready, log_method("seq2slate", **SMALL), 3, max_epochs=1, run_dir=tmp_path)
