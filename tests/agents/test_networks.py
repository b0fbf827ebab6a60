"""Encoder and list decoders: exact distributions, permutation, masking."""

import itertools
import math

import pytest
import torch

from agents.decoders import DECODERS, MatchingDecoder, OneSoftmaxDecoder, _draw, make_decoder
from agents.networks import MIXINGS, CandidateEncoder, Encoding, RequestShape, initial_order, initial_rank
from recsim_env.types import NO_ITEM, Request
from tests.helpers.list_game import C, K, N, make_request

SHAPE = RequestShape.of(make_request(1, torch.Generator()), N, K)
LISTS = torch.tensor(list(itertools.permutations(range(C), K)))


def build(mixing: str = "attention", decoder: str = "autoregressive", initial_ranks: int = 0):
    torch.manual_seed(3)
    encoder = CandidateEncoder(SHAPE, width=16, layers=2, mixing=mixing, item_embedding=4, initial_ranks=initial_ranks)
    return encoder, make_decoder(decoder, 16, K)


def sharpen(decoder: torch.nn.Module) -> None:
    """Scales a fresh decoder's scores up, so that its distribution is far from uniform."""
    if isinstance(decoder, OneSoftmaxDecoder):
        last = decoder.score[-1].weight
    else:
        last = decoder.key.weight if isinstance(decoder, MatchingDecoder) else decoder.query.weight
    with torch.no_grad():
        last.mul_(6)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("decoder_name", DECODERS)
def test_permuting_candidates_permutes_lists(mixing: str, decoder_name: str, generator: torch.Generator) -> None:
    encoder, decoder = build(mixing, decoder_name, initial_ranks=4)
    sharpen(decoder)
    request = make_request(8, generator)
    tied = (request.retriever_score_BC * 3).round()  # equal scores must not be told apart by where they stand
    request = request._replace(retriever_score_BC=tied)
    order = torch.randperm(C, generator=generator)
    by_candidate = {
        name: getattr(request, name)[:, order]
        for name in ("candidates_BC", "candidate_features_BCD", "retriever_score_BC", "predicted_BCF",
                     "predicted_std_BCF")
    }  # fmt: skip
    shuffled = request._replace(**by_candidate)
    lists = LISTS.expand(8, -1, -1)
    place_of = order.argsort()  # where each old position has gone
    torch.testing.assert_close(
        decoder.log_prob(encoder(shuffled), place_of[lists]), decoder.log_prob(encoder(request), lists),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    greedy = request.candidates_BC.gather(1, decoder.greedy(encoder(request), K))
    assert torch.equal(shuffled.candidates_BC.gather(1, decoder.greedy(encoder(shuffled), K)), greedy)


@pytest.mark.parametrize("decoder_name", DECODERS)
def test_probabilities_of_all_lists_sum_to_one(decoder_name: str, generator: torch.Generator) -> None:
    encoder, decoder = build(decoder=decoder_name)
    sharpen(decoder)
    log_prob = decoder.log_prob(encoder(make_request(5, generator)), LISTS.expand(5, -1, -1)).sum(dim=-1)
    torch.testing.assert_close(log_prob.exp().sum(dim=1), torch.ones(5))
    assert log_prob.std() > 0.3


@pytest.mark.parametrize("decoder_name", DECODERS)
def test_samples_follow_the_stated_probabilities(decoder_name: str, generator: torch.Generator) -> None:
    encoder, decoder = build(decoder=decoder_name)
    sharpen(decoder)
    encoding = encoder(make_request(2, generator))
    num_lists = 60_000
    positions, log_prob = decoder.sample(encoding, num_lists, K, generator)
    torch.testing.assert_close(decoder.log_prob(encoding, positions), log_prob)
    code = (positions * torch.tensor([C * C, C, 1])).sum(dim=-1)
    list_code = (LISTS * torch.tensor([C * C, C, 1])).sum(dim=-1)
    expected = decoder.log_prob(encoding, LISTS.expand(2, -1, -1)).sum(dim=-1).exp() * num_lists
    for row in range(2):
        count = torch.bincount(code[row], minlength=C**K)
        assert int(count[list_code].sum()) == num_lists  # no other list, so no repeated candidate
        chi_square = ((count[list_code] - expected[row]).square() / expected[row]).sum()
        freedom = len(LISTS) - 1
        assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_one_softmax_is_plackett_luce() -> None:
    decoder = OneSoftmaxDecoder(1)
    decoder.score = torch.nn.Identity()
    scores = torch.tensor([0.3, -1.0, 2.0, 0.0])
    encoding = Encoding(scores.view(1, 4, 1), torch.zeros(1, 1))
    weight = scores.exp()
    probability = weight[2] / weight.sum() * weight[0] / weight[[0, 1, 3]].sum() * weight[1] / weight[[1, 3]].sum()
    log_prob = decoder.log_prob(encoding, torch.tensor([[[2, 0, 1]]])).sum()
    torch.testing.assert_close(log_prob.exp(), probability)
    assert decoder.greedy(encoding, 3).tolist() == [[2, 0, 3]]


def test_matching_looks_at_places_not_at_what_stands_in_them(generator: torch.Generator) -> None:
    encoder, decoder = build(decoder="matching")
    sharpen(decoder)
    encoding = encoder(make_request(1, generator))
    pair = torch.tensor([[[0, 2, 3], [1, 2, 3]]])
    log_prob = decoder.log_prob(encoding, pair)[0]
    scores = decoder.begin(encoding)[0][0]
    for row, first in enumerate((0, 1)):  # the second place's scores are the same, but for who is taken
        left = [c for c in range(C) if c != first]
        torch.testing.assert_close(log_prob[row, 1], scores[1, 2] - scores[1, left].logsumexp(0))


@pytest.mark.parametrize("decoder_name", DECODERS)
def test_greedy_takes_the_likeliest_next_candidate(decoder_name: str, generator: torch.Generator) -> None:
    encoder, decoder = build(decoder=decoder_name)
    sharpen(decoder)
    encoding = encoder(make_request(6, generator))
    greedy = decoder.greedy(encoding, K)
    all_lists = decoder.log_prob(encoding, LISTS.expand(6, -1, -1))
    for row in range(6):
        same_prefix = torch.ones(len(LISTS), dtype=torch.bool)
        for place in range(K):
            best = all_lists[row, same_prefix, place].max()
            chosen = same_prefix & (LISTS[:, place] == greedy[row, place])
            torch.testing.assert_close(all_lists[row, chosen, place].max(), best)
            same_prefix = chosen


def test_draws_never_fall_on_impossible_candidates() -> None:
    # The largest uniform there is, and the smallest, with taken candidates at both ends.
    log_p = torch.tensor([-torch.inf, math.log(1e-7), math.log(1 - 1e-7), -torch.inf]).view(1, 1, 4)
    assert _draw(log_p, torch.full((1, 1), 1 - 2**-24)).item() == 2
    assert _draw(log_p, torch.zeros(1, 1)).item() == 1


def test_requests_do_not_mix_and_users_are_not_identified(generator: torch.Generator) -> None:
    encoder, _ = build()
    request = make_request(6, generator)
    whole = encoder(request).candidates_BCW
    one = encoder(Request(*(tensor[2:3] for tensor in request))).candidates_BCW
    torch.testing.assert_close(whole[2:3], one, rtol=1e-4, atol=1e-5)
    renamed = encoder(request._replace(user_B=torch.arange(6) + 100)).candidates_BCW
    assert torch.equal(whole, renamed)


def test_history_counts_only_what_was_recorded(generator: torch.Generator) -> None:
    encoder, _ = build()
    request = make_request(3, generator)
    before = encoder(request).request_BW
    other_items = request._replace(history_BH=(request.history_BH + 7) % N)
    assert (encoder(other_items).request_BW - before).abs().max() > 1e-3
    unknown = torch.zeros_like(request.history_known_BHF)
    noise = torch.rand(request.history_feedback_BHF.shape, generator=generator)
    hidden = encoder(request._replace(history_known_BHF=unknown)).request_BW
    assert torch.equal(
        encoder(request._replace(history_known_BHF=unknown, history_feedback_BHF=noise)).request_BW, hidden
    )
    empty = encoder(request._replace(history_BH=torch.full_like(request.history_BH, NO_ITEM)))
    assert empty.request_BW.isfinite().all()


@pytest.mark.parametrize("mixing", MIXINGS)
def test_candidates_see_each_other(mixing: str, generator: torch.Generator) -> None:
    encoder, _ = build(mixing)
    request = make_request(1, generator)
    features = request.candidate_features_BCD.clone()
    features[0, 0] += 1.0
    change = encoder(request._replace(candidate_features_BCD=features)).candidates_BCW - encoder(request).candidates_BCW
    assert (change[0, 1:].abs().amax(dim=1) > 1e-4).all()


def test_initial_order_and_rank_are_read_from_the_scores(generator: torch.Generator) -> None:
    request = make_request(1, generator)._replace(
        candidates_BC=torch.tensor([[30, 10, 20, 0, 5, 7]]),
        retriever_score_BC=torch.tensor([[0.5, 0.9, 0.5, -1.0, 0.9, 0.1]]),
    )
    assert request.candidates_BC.gather(1, initial_order(request)).tolist() == [[5, 10, 20, 30, 7, 0]]
    assert initial_rank(request).tolist() == [[2, 0, 2, 5, 0, 4]]


def test_initial_ranks_beyond_the_table_share_its_last_row(generator: torch.Generator) -> None:
    request = make_request(4, generator)
    encoder, _ = build(initial_ranks=2)
    encoder.blocks = torch.nn.ModuleList()  # so that candidates stay apart
    before = encoder(request).candidates_BCW
    with torch.no_grad():
        encoder.rank_embedding.weight[1, :8] += 1.0
    moved = (encoder(request).candidates_BCW - before).abs().amax(dim=2) > 1e-3
    best = request.retriever_score_BC.argmax(dim=1, keepdim=True)
    assert torch.equal(moved, torch.ones_like(moved).scatter(1, best, False))


def test_the_gru_walks_up_the_retrievers_order(generator: torch.Generator) -> None:
    encoder, _ = build("recurrent")
    encoder.blocks = encoder.blocks[:1]
    layer = encoder.blocks[0]
    with torch.no_grad():
        layer.gate.weight.zero_()  # a fixed gate: only the states tell candidates apart
        layer.gate.bias.fill_(1.0)
    request = make_request(1, generator)
    third = int(initial_order(request)[0, 2])
    features = request.candidate_features_BCD.clone()
    features[0, third] += 1.0
    change = encoder(request._replace(candidate_features_BCD=features)).candidates_BCW - encoder(request).candidates_BCW
    moved = change[0, initial_order(request)[0]].abs().amax(dim=1) > 1e-6
    assert moved.tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_extreme_inputs_stay_finite(scale: float, generator: torch.Generator) -> None:
    encoder, decoder = build()
    request = make_request(4, generator)
    floats = {n: t * scale for n, t in request._asdict().items() if t.is_floating_point()}
    _, log_prob = decoder.sample(encoder(request._replace(**floats)), 8, K, generator)
    assert log_prob.isfinite().all()


def test_wrong_sizes_are_named(generator: torch.Generator) -> None:
    request = make_request(2, generator)
    with pytest.raises(ValueError, match="num_user_features=5"):
        SHAPE.check(request._replace(user_features_BD=torch.zeros(2, 5)))
    few = request._replace(candidates_BC=request.candidates_BC[:, : K - 1])
    with pytest.raises(ValueError, match="num_candidates >= slate_size, got 2 and 3"):
        SHAPE.check(few)
    with pytest.raises(ValueError, match="mixing must be one of"):
        CandidateEncoder(SHAPE, mixing="max")
    with pytest.raises(ValueError, match="initial_ranks must be at least 0"):
        CandidateEncoder(SHAPE, initial_ranks=-1)
    with pytest.raises(ValueError, match="heads must divide width, got 3 and 64"):
        CandidateEncoder(SHAPE, heads=3)
    with pytest.raises(ValueError, match="decoder must be one of"):
        make_decoder("beam", 8, 3)
    with pytest.raises(ValueError, match="at least 1"):
        RequestShape(num_items=0, num_signals=1, num_user_features=0, num_candidate_features=0, slate_size=1)
