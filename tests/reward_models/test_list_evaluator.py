"""The list evaluator against planted truth: a log whose users tire of a repeated tag within a slate."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from agents.baselines import EvaluatorSearch
from recsim_env.assumptions import TagRepeatEffect
from recsim_env.data.requests import LoggedRequests, logged_requests
from recsim_env.data.schema import LoggedDataset
from recsim_env.known_worlds.logs import plackett_luce
from recsim_env.types import Request
from reward_models.recommender.list_evaluator import SlateEvaluator, fit_list_evaluator
from reward_models.recommender.list_evaluator_network import ListEvaluatorConfig, ListModel, Sizes

NUM_USERS, NUM_ITEMS, NUM_TAGS, PLACES = 200, 60, 6, 4
FATIGUE = 0.2
"""A video whose tag was shown earlier in the slate is watched this share of its usual time."""

TAG_N = torch.arange(NUM_ITEMS) % NUM_TAGS
SECONDS_N = torch.linspace(5.0, 30.0, NUM_ITEMS)[torch.randperm(NUM_ITEMS, generator=torch.Generator().manual_seed(7))]
_LOG_SECONDS_N1 = SECONDS_N[:, None].log()
FEATURES_ND = torch.cat(
    [torch.nn.functional.one_hot(TAG_N, NUM_TAGS).float(), _LOG_SECONDS_N1 - _LOG_SECONDS_N1.mean()], dim=1
)


class TrueItemPredictor:
    """Knows each item's own expected seconds and nothing of lists."""

    def predict_request(self, request, items_BC, chosen_B):
        predicted_BCF = torch.stack([SECONDS_N[items_BC], torch.full(items_BC.shape, 0.5)], dim=-1)
        return predicted_BCF, torch.zeros_like(predicted_BCF)


def true_seconds(items_BK: torch.Tensor) -> torch.Tensor:
    tag_BK = TAG_N[items_BK]
    repeated_BK = torch.stack(
        [(tag_BK[:, :k] == tag_BK[:, k : k + 1]).any(dim=1) for k in range(items_BK.shape[1])], dim=1
    )
    return SECONDS_N[items_BK] * torch.where(repeated_BK, FATIGUE, 1.0)


def planted_log(num_requests: int, places: int, seed: int, fading: float = 1.0) -> LoggedDataset:
    generator = torch.Generator().manual_seed(seed)
    items_LK = torch.rand(num_requests, NUM_ITEMS, generator=generator).argsort(dim=1)[:, :places]
    noise_LK = -torch.rand(num_requests, places, generator=generator).log()
    watch_LK = true_seconds(items_LK) * noise_LK * fading ** torch.arange(places)
    user_L = torch.sort(torch.randint(NUM_USERS, (num_requests,), generator=generator)).values
    rows = pd.DataFrame(
        {
            "user": np.repeat(user_L.numpy().astype(np.int32), places),
            "item": items_LK.flatten().numpy().astype(np.int32),
            "time_ms": np.repeat(1_651_334_400_000 + np.arange(num_requests, dtype=np.int64) * 60_000, places),
            "date": np.full(num_requests * places, 20220501, dtype=np.int32),
            "watch_time": watch_LK.flatten().numpy(),
            "duration": np.full(num_requests * places, 60.0, dtype=np.float32),
            "click": (watch_LK.flatten() > 7).numpy().astype(np.int8),
            "request": np.repeat(np.arange(num_requests, dtype=np.int64), places),
            "place": np.tile(np.arange(places, dtype=np.int8), num_requests),
        }
    )
    users = pd.DataFrame({"user_id": np.arange(NUM_USERS)})
    items = pd.DataFrame({"item_id": np.arange(NUM_ITEMS), "duration": 60.0})
    return LoggedDataset("planted", rows, users, items, ("watch_time", "click"))


def planted_requests(num_requests: int, places: int = PLACES, seed: int = 0, fading: float = 1.0) -> LoggedRequests:
    return requests_of(planted_log(num_requests, places, seed, fading))


def requests_of(log: LoggedDataset) -> LoggedRequests:
    return logged_requests(
        log,
        item_features_ND=FEATURES_ND,
        user_features_UD=torch.zeros(NUM_USERS, 1),
        history_length=10,
        predictor=TrueItemPredictor(),
    )


def knowing_requests(num_requests: int, propensities: bool) -> LoggedRequests:
    """Every user watches one tag for 30 s and others for 5 s; the ranker knows it, and order changes nothing."""
    generator = torch.Generator().manual_seed(5)
    user_L = torch.sort(torch.randint(NUM_USERS, (num_requests,), generator=generator)).values
    likes_LN = (user_L * 7919 % NUM_TAGS).unsqueeze(1) == TAG_N
    logit_LN = 2.0 * likes_LN
    decision = plackett_luce(torch.arange(NUM_ITEMS).expand(num_requests, -1), logit_LN, PLACES, generator)
    items_LK = decision.items_BK
    noise_LK = -torch.rand(num_requests, PLACES, generator=generator).log()
    log = planted_log(num_requests, PLACES, seed=5)
    rows = log.rows.assign(
        user=np.repeat(user_L.numpy().astype(np.int32), PLACES),
        item=items_LK.flatten().numpy().astype(np.int32),
        watch_time=(torch.where(likes_LN.gather(1, items_LK), 30.0, 5.0) * noise_LK).flatten().numpy(),
        propensity=decision.log_prob_BK.exp().flatten().numpy(),
    )
    if not propensities:
        del rows["propensity"]
    return logged_requests(
        dataclasses.replace(log, rows=rows),
        item_features_ND=FEATURES_ND,
        user_features_UD=torch.zeros(NUM_USERS, 1),
        history_length=1,
        predictor=TrueItemPredictor(),
    )


def request_of(candidates_BC: torch.Tensor) -> Request:
    batch, count = candidates_BC.shape
    predicted_BCF, std_BCF = TrueItemPredictor().predict_request(None, candidates_BC, None)
    return Request(
        torch.zeros(batch, dtype=torch.int64),
        torch.zeros(batch, 1),
        torch.zeros(batch, 7),
        torch.full((batch, 10), -1),
        torch.zeros(batch, 10, 2),
        torch.zeros(batch, 10, 2, dtype=torch.bool),
        candidates_BC,
        FEATURES_ND[candidates_BC],
        torch.zeros(batch, count),
        predicted_BCF,
        std_BCF,
    )


@pytest.fixture(scope="module")
def listwise() -> SlateEvaluator:
    return fit_list_evaluator(planted_requests(4000), config=ListEvaluatorConfig(max_epochs=20), seed=1)


@pytest.fixture(scope="module")
def additive() -> SlateEvaluator:
    config = ListEvaluatorConfig(listwise=False, max_epochs=20)
    return fit_list_evaluator(planted_requests(4000), config=config, seed=1)


def held_out() -> tuple[Request, torch.Tensor, torch.Tensor]:
    """Fresh lists and the seconds watched on them."""
    batch = next(planted_requests(2000, seed=99).batches(2000))
    return batch.request, batch.items_BK, batch.feedback.signals_BKF[..., 0]


def test_what_the_loggers_order_explains_is_no_list_effect():
    """Its ranker put what users like best first, by things it saw and the log lacks: places fade by half."""
    evaluator = fit_list_evaluator(planted_requests(4000, fading=0.5), seed=1)
    four_tags = (torch.arange(NUM_ITEMS).unsqueeze(1) + torch.arange(4)) % NUM_ITEMS
    request, lists_BGK = request_of(four_tags), torch.stack([four_tags, four_tags.flip(1)], dim=1)
    per_place_BGK = evaluator.score(request, lists_BGK).per_place_BGK
    moved_B = per_place_BGK[:, 1, 3] / per_place_BGK[:, 0, 0]  # from first place to last
    assert 0.8 < float(moved_B.log().mean().exp()) < 1.25, "the log's fading would say 0.125"


def test_slates_that_nobody_ordered_tell_what_places_lose():
    """The same log, its slates filled by chance: nothing but the places themselves can make them fade."""
    log = planted_log(4000, PLACES, seed=0, fading=0.7)
    evaluator = fit_list_evaluator(requests_of(dataclasses.replace(log, rows=log.rows.assign(is_random=True))), seed=1)
    four_tags = (torch.arange(NUM_ITEMS).unsqueeze(1) + torch.arange(4)) % NUM_ITEMS
    per_place_BK = evaluator.score(request_of(four_tags), four_tags[:, None]).per_place_BGK[:, 0]
    kept_K = (per_place_BK / SECONDS_N[four_tags]).log().mean(0).exp()
    # Effects that fade add up to less and less, so an unending fall is met in the mean of the places.
    assert (kept_K[1:] / kept_K[0]).log().mean() == pytest.approx(2.0 * math.log(0.7), abs=0.15)
    assert kept_K[0] == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("propensities", [False, True])
def test_what_the_ranker_knew_of_the_user_is_no_list_effect(propensities):
    """It shows a user's favourite tag first and then more of it: what came before tells whom the list is for."""
    evaluator = fit_list_evaluator(
        knowing_requests(6000, propensities), config=ListEvaluatorConfig(max_epochs=15), seed=1
    )
    alike = torch.tensor([[0, NUM_TAGS, 2 * NUM_TAGS, 3 * NUM_TAGS]])
    first, last = (float(evaluator.score(request_of(alike), alike[:, None]).per_place_BGK[0, 0, k]) for k in (0, 3))
    if propensities:
        assert last / first == pytest.approx(1.0, abs=0.25)
    else:
        assert last / first > 1.5, "nothing in the log tells it from an effect of the list"


def test_what_leads_well_to_what_is_learned_in_its_order():
    """A video of tag 1 after one of tag 0 is watched three times as long; the other way round nothing changes."""
    log = planted_log(6000, PLACES, seed=3)
    tag_LK = TAG_N[torch.tensor(log.rows["item"].to_numpy(dtype=np.int64))].view(-1, PLACES)
    led_LK = ((tag_LK == 0).cumsum(dim=1) > 0) & (tag_LK == 1)
    watch_time = log.rows["watch_time"] * torch.where(led_LK, 3.0, 1.0).flatten().numpy()
    requests = requests_of(dataclasses.replace(log, rows=log.rows.assign(watch_time=watch_time)))
    evaluator = fit_list_evaluator(requests, seed=1)
    pairs = torch.tensor([[[0, 1], [1, 0], [2, 1], [1, 2]]])  # items 0, 1 and 2 have tags 0, 1 and 2
    later_G = evaluator.score(request_of(torch.arange(12).unsqueeze(0)), pairs).per_place_BGK[0, :, 1]
    assert later_G[0] / later_G[2] == pytest.approx(3.0, rel=0.3)
    assert later_G[1] / later_G[3] * SECONDS_N[2] / SECONDS_N[0] == pytest.approx(1.0, rel=0.2)


def test_no_effect_is_believed_beyond_what_the_log_showed():
    config, sizes = ListEvaluatorConfig(num_members=2), Sizes(candidate=3, request=1, signals=1, kinds=3)
    model = ListModel(config, sizes, seed=0)
    effects = model.effects
    effects.kind_Z.copy_(torch.arange(3))
    with torch.no_grad():
        effects.pair_effects.pair[:, 0, 1] = 4.0  # the second kind is wanted much more after the first,
        effects.pair_effects.pair[:, 0, 2] = -4.0  # the third much less,
        effects.pair_effects.pair[:, 1, 2] = 0.1  # and a little more after the second
    seen = torch.linspace(-1.0, 2.0, 100_001).view(1, -1, 1).repeat(2, 1, 1)
    effects.bound(seen)
    lists = torch.tensor([[[0, 1], [0, 2], [1, 2]]])
    change = effects(torch.eye(3).unsqueeze(0), lists, 1)[..., 0].view(2, 3, 2)
    expected = torch.tensor([[0.0, 1.997], [0.0, -0.997], [0.0, 0.1]]).expand(2, -1, -1)
    torch.testing.assert_close(change, expected)


def test_fitted_effects_are_bounded_and_older_evaluators_restored_as_they_were(listwise):
    tensors = listwise.tensors()
    bounds = ("effects.low_M1F", "effects.high_M1F")
    assert all(tensors[name].isfinite().all() for name in bounds)
    older = SlateEvaluator.restore(listwise.config(), {n: t for n, t in tensors.items() if n not in bounds})
    assert older.tensors()["effects.high_M1F"].isposinf().all()


def poisson_deviance(expected: torch.Tensor, seen: torch.Tensor) -> float:
    return float((expected - seen * expected.log()).mean())


def test_listwise_beats_additive_on_fresh_lists_and_nears_the_truth(listwise, additive):
    request, items_BK, seconds_BK = held_out()
    truth_BK = true_seconds(items_BK)
    list_BK = listwise.score(request, items_BK.unsqueeze(1)).per_place_BGK.squeeze(1)
    item_BK = additive.score(request, items_BK.unsqueeze(1)).per_place_BGK.squeeze(1)
    best, list_wise, item_wise = (poisson_deviance(e, seconds_BK) for e in (truth_BK, list_BK, item_BK))
    assert best < list_wise < item_wise
    assert (list_wise - best) < 0.2 * (item_wise - best)
    correlation = [float(np.corrcoef(v.sum(1), truth_BK.sum(1))[0, 1]) for v in (list_BK, item_BK)]
    assert correlation[0] > 0.95
    assert correlation[0] > correlation[1] + 0.05


def test_values_agree_with_seconds_watched_in_the_mean(listwise, additive):
    request, items_BK, _ = held_out()
    truth = float(true_seconds(items_BK).sum(dim=1).mean())
    for evaluator in (listwise, additive):
        value = float(evaluator.score(request, items_BK.unsqueeze(1)).value_BG.mean())
        assert value == pytest.approx(truth, rel=0.06)


def test_only_the_listwise_one_prefers_a_diverse_list_to_a_repetitive_one(listwise, additive):
    by_tag = [torch.eq(TAG_N, tag).nonzero().squeeze(1) for tag in range(NUM_TAGS)]
    by_tag = [items[SECONDS_N[items].argsort(descending=True)] for items in by_tag]
    repetitive = max((items[:PLACES] for items in by_tag), key=lambda items: float(SECONDS_N[items].sum()))
    diverse = torch.stack([items[3] for items in by_tag[:PLACES]])
    # The contest is decided by the list effect alone: the repetitive list has the better single items.
    assert SECONDS_N[diverse].sum() < 0.9 * SECONDS_N[repetitive].sum()
    lists_BGK = torch.stack([diverse, repetitive]).unsqueeze(0)
    assert true_seconds(lists_BGK[0]).sum(dim=1).argmax() == 0
    request = request_of(torch.arange(NUM_ITEMS).unsqueeze(0))
    assert listwise.score(request, lists_BGK).value_BG.argmax() == 0
    assert additive.score(request, lists_BGK).value_BG.argmax() == 1


def test_additive_value_ignores_order_and_earlier_places_and_its_best_list_is_a_sort(additive):
    candidates_BC = torch.arange(8).unsqueeze(0)
    request = request_of(candidates_BC)
    orders_BGK = torch.tensor([[[0, 1, 2, 3], [3, 2, 1, 0], [0, 4, 5, 6]]])
    places = additive.score(request, orders_BGK).per_place_BGK[0]
    assert torch.equal(places[0], places[1].flip(0))
    assert places[0, 0] == places[2, 0]
    every_BGK = torch.combinations(torch.arange(8), 3).unsqueeze(0)
    single = additive.score(request, candidates_BC.unsqueeze(2)).value_BG[0]
    best = every_BGK[0, additive.score(request, every_BGK).value_BG[0].argmax()]
    assert set(best.tolist()) == set(single.topk(3).indices.tolist())


def test_the_additive_control_is_the_same_judge_of_single_videos(listwise):
    candidates_BC = torch.arange(12).unsqueeze(0)
    request, control = request_of(candidates_BC), listwise.additive()
    single = listwise.score(request, candidates_BC.unsqueeze(2)).value_BG
    torch.testing.assert_close(control.score(request, candidates_BC.unsqueeze(2)).value_BG, single)
    shown = torch.tensor([[[3, 9, 0], [9, 0, 3]]])
    torch.testing.assert_close(control.score(request, shown).value_BG, single[:, [3, 9, 0]].sum().expand(1, 2))
    # With it a search over whole lists finds what a sort finds.
    searched = EvaluatorSearch(control, 3)(request, torch.Generator()).items_BK
    assert set(searched[0].tolist()) == set(single[0].topk(3).indices.tolist())
    assert not control.listwise


def test_requests_of_another_world_are_refused(listwise):
    request = request_of(torch.arange(6).unsqueeze(0))
    other = request._replace(candidate_features_BCD=torch.zeros(1, 6, 3))
    with pytest.raises(ValueError, match="it is of another world; use the evaluator of this one"):
        listwise.score(other, torch.tensor([[[0, 1]]]))
    with pytest.raises(ValueError, match="need at least one list of at least one place"):
        listwise.score(request, torch.zeros(1, 0, 2, dtype=torch.int64))


def test_later_places_do_not_change_earlier_ones(listwise):
    request = request_of(torch.arange(12).unsqueeze(0))
    lists_BGK = torch.tensor([[[0, 1, 2, 3], [0, 1, 8, 9], [7, 1, 2, 3]]])
    places = listwise.score(request, lists_BGK).per_place_BGK[0]
    torch.testing.assert_close(places[0, :2], places[1, :2], rtol=1e-6, atol=0)
    assert places[2, 1] < 0.5 * places[0, 1]  # items 7 and 1 share a tag


def test_scores_do_not_depend_on_other_requests_or_lists(listwise):
    generator = torch.Generator().manual_seed(3)
    candidates_BC = torch.rand(9, NUM_ITEMS, generator=generator).argsort(dim=1)[:, :20]
    lists_BGK = candidates_BC[:, torch.rand(5, 20, generator=generator).argsort(dim=1)[:, :PLACES]]
    whole = listwise.score(request_of(candidates_BC), lists_BGK)
    assert whole.value_BG.shape == whole.std_BG.shape == (9, 5)
    torch.testing.assert_close(whole.per_place_BGK.sum(dim=2), whole.value_BG)
    alone = listwise.score(request_of(candidates_BC[4:5]), lists_BGK[4:5, 2:3])
    torch.testing.assert_close(alone.value_BG[0, 0], whole.value_BG[4, 2], rtol=1e-5, atol=0)
    assert float(whole.std_BG.min()) > 0


def test_a_declared_list_effect_scales_each_place(additive):
    effect = TagRepeatEffect(TAG_N, strength=0.4)
    request = request_of(torch.arange(12).unsqueeze(0))
    lists_BGK = torch.tensor([[[0, 6, 1, 7]]])  # tags 0, 0, 1, 1
    plain = additive.score(request, lists_BGK)
    knowing = additive.with_list_effect(effect).score(request, lists_BGK)
    expected = plain.per_place_BGK * torch.tensor([1.0, 0.6, 1.0, 0.6])
    torch.testing.assert_close(knowing.per_place_BGK, expected)
    torch.testing.assert_close(knowing.value_BG, expected.sum(dim=2))


def test_without_slates_the_additive_one_is_fitted_with_a_warning():
    with pytest.warns(UserWarning, match="0 slates of two places or more"):
        evaluator = fit_list_evaluator(planted_requests(300, places=1), config=ListEvaluatorConfig(max_epochs=1))
    assert not evaluator.listwise


def test_saved_and_restored_scores_are_the_same(listwise):
    evaluator = listwise.with_list_effect(TagRepeatEffect(TAG_N))
    copy = SlateEvaluator.restore(evaluator.config(), {k: v.clone() for k, v in evaluator.tensors().items()})
    request, lists_BGK = request_of(torch.arange(12).unsqueeze(0)), torch.tensor([[[0, 6, 1, 7], [3, 2, 1, 0]]])
    assert torch.equal(copy.score(request, lists_BGK).value_BG, evaluator.score(request, lists_BGK).value_BG)


def test_an_item_from_outside_the_candidates_is_named(additive):
    with pytest.raises(ValueError, match=r"item 30 is not among the 12 candidates of request 0"):
        additive.score(request_of(torch.arange(12).unsqueeze(0)), torch.tensor([[[0, 30]]]))


@pytest.mark.parametrize(("field", "value"), [("num_members", 0), ("width", 0), ("learning_rate", 0.0)])
def test_settings_are_checked(field, value):
    with pytest.raises(ValueError, match=field):
        ListEvaluatorConfig(**{field: value})
