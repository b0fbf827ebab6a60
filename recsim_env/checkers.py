"""Public checkers for plug-ins: run an object on small batches and say in words what is wrong with it.

Every checker returns ``None`` when it finds nothing and raises one ValueError that lists all findings
otherwise. They try what goes wrong in practice: shapes and dtypes, NaN, items that were not offered,
hidden randomness, rows that depend on their neighbours, probabilities that disagree with the draws.

Shape legend: B sessions, C candidates, K places, F signals, M items to leave out, S model state, J draws,
O outcomes, X context, R reward components, L draws for each place, T = B * L.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from recsim_env.envs import RecVectorEnv
from recsim_env.findings import Report, ShownBatch, check_observe, check_rows, check_state, same
from recsim_env.policy_checkers import check_policy as check_policy  # all checkers are found here
from recsim_env.policy_checkers import try_policy as try_policy
from recsim_env.rewards import Reward
from recsim_env.types import (
    NO_ITEM,
    WATCH_TIME,
    CandidateSource,
    Feedback,
    LeaveModel,
    Request,
    ResponseModel,
)
from recsim_env.world import World


def check_response_model(
    model: ResponseModel, *, num_users: int, num_items: int, tab: int = 1, num_samples: int = 4000
) -> None:
    """Checks a response model: shapes, purity, independent rows, and that ``outcomes`` is what it draws.

    Args:
        model: see ``recsim_env.types.ResponseModel``.
        num_users: user codes run from 0 to this, exclusive; at least 1.
        num_items: item codes likewise; at least 4.
        tab: tab of the contexts it is tried in.
        num_samples: Monte Carlo draws for each place; expectations are compared within five standard
            errors and 3 %.

    Raises:
        ValueError: a list of everything found.
    """
    report = Report("response model", model)
    if _check_signals(report, model) and report.add(
        not isinstance(model.num_draws, int) or model.num_draws < 1,
        f"num_draws must be an int of at least 1, got {model.num_draws!r}",
    ):
        batch = ShownBatch(num_users, num_items, len(model.signals), tab)
        state_BS = report.attempt("start", lambda: model.start(batch.user_B))
        if state_BS is not None and check_state(report, "start", state_BS, len(batch.user_B)):
            _check_responses(report, model, state_BS, batch)
            if not report.findings:
                check_observe(report, model.observe, state_BS, batch)
                _check_expectations(report, model, state_BS, batch, num_samples)
    report.close()


def _check_signals(report: Report, model: ResponseModel) -> bool:
    signals = getattr(model, "signals", None)
    if not report.add(
        not isinstance(signals, tuple) or not signals, f"signals must be a tuple of names, got {signals!r}"
    ):
        return False
    assert signals is not None
    report.add(signals[0] != WATCH_TIME, f"the first signal must be {WATCH_TIME!r}, got {signals!r}")
    report.add(len(set(signals)) != len(signals), f"signal names repeat: {signals!r}")
    for name in ("start", "respond", "outcomes", "observe", "num_draws"):
        report.add(not hasattr(model, name), f"it has no {name}")
    return not report.findings


def _check_responses(report: Report, model: ResponseModel, state_BS: Tensor, batch: ShownBatch) -> None:
    """Draws and outcomes: form, purity, independent rows, no look at later places."""
    size, places, signals = batch.signals_BKF.shape
    uniform_BKJ = torch.rand(size, places, model.num_draws, generator=batch.generator).clamp(1e-6, 1 - 1e-6)

    def respond(rows: slice, items_BK: Tensor) -> Tensor:
        return model.respond(state_BS[rows], batch.context_BX[rows], items_BK[rows], uniform_BKJ[rows])

    def outcomes(rows: slice, items_BK: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(model.outcomes(state_BS[rows], batch.context_BX[rows], items_BK[rows]))  # type: ignore[return-value]

    every = slice(None)
    drawn_BKF = report.attempt("respond", lambda: respond(every, batch.items_BK))
    expected = report.attempt("outcomes", lambda: outcomes(every, batch.items_BK))
    if drawn_BKF is not None and report.tensor("respond's signals", drawn_BKF, (size, places, signals), torch.float32):
        report.add((drawn_BKF[..., 0] < 0).any(), "respond draws negative watch times")
        others = drawn_BKF[..., 1:]
        report.add(((others != 0) & (others != 1)).any(), "respond draws signals that are neither 0 nor 1")
        check_rows(report, "respond", lambda rows: respond(rows, batch.items_BK), batch.items_BK)
        _check_causal(report, "respond", lambda items_BK: respond(every, items_BK), batch)
    if expected is not None:
        signals_BKOF, probability_BKO = expected
        if isinstance(probability_BKO, Tensor) and probability_BKO.dim() == 3:
            count = probability_BKO.shape[2]
            report.tensor("outcomes' probability", probability_BKO, (size, places, count), torch.float32)
            report.tensor("outcomes' signals", signals_BKOF, (size, places, count, signals), torch.float32)
            total_BK = probability_BKO.sum(2)
            report.add((probability_BKO < 0).any(), "outcomes have negative probabilities")
            report.add(
                (total_BK - 1).abs().max() > 1e-4,
                f"outcomes' probabilities must sum to 1, got sums {float(total_BK.min()):.4f}.."
                f"{float(total_BK.max()):.4f}",
            )
            check_rows(report, "outcomes", lambda rows: outcomes(rows, batch.items_BK)[0], batch.items_BK)
            _check_causal(report, "outcomes", lambda items_BK: outcomes(every, items_BK)[0], batch)
        else:
            report.add(True, "outcomes' probability must be a tensor (B, K, O)")


def _check_causal(report: Report, method: str, run: Callable[[Tensor], Tensor], batch: ShownBatch) -> None:
    changed_BK = batch.items_BK.clone()
    changed_BK[:, -1] = batch.other_items_B
    report.add(
        not same(run(batch.items_BK)[:, :-1], run(changed_BK)[:, :-1]),
        f"{method} lets a later place change an earlier one",
    )


def _check_expectations(
    report: Report, model: ResponseModel, state_BS: Tensor, batch: ShownBatch, num_samples: int
) -> None:
    """The mean of many draws against the mean of the outcomes."""
    outcomes = model.outcomes(state_BS, batch.context_BX, batch.items_BK)
    weight_BKO1 = outcomes.probability_BKO.unsqueeze(3)
    expected_BKF = (outcomes.signals_BKOF * weight_BKO1).sum(2).double()
    size, places, _ = batch.signals_BKF.shape
    uniform_TKJ = torch.rand(size * num_samples, places, model.num_draws, generator=batch.generator).clamp(
        1e-6, 1 - 1e-6
    )
    state_TS, context_TX, items_TK = (
        t.repeat_interleave(num_samples, dim=0) for t in (state_BS, batch.context_BX, batch.items_BK)
    )
    drawn_TKF = model.respond(state_TS, context_TX, items_TK, uniform_TKJ).double()
    draws_BLKF = drawn_TKF.reshape(size, num_samples, *drawn_TKF.shape[1:])
    variance_BKF = draws_BLKF.var(1)
    # A rare signal may not show up at all: then its expected rate bounds the noise.
    variance_BKF[..., 1:] = variance_BKF[..., 1:].maximum(expected_BKF[..., 1:] * (1 - expected_BKF[..., 1:]))
    allowed_BKF = 5 * (variance_BKF / num_samples).sqrt() + 0.03 * expected_BKF.abs() + 1e-3
    mean_BKF = draws_BLKF.mean(1)
    for index, name in enumerate(model.signals):
        excess_BK = ((mean_BKF - expected_BKF).abs() - allowed_BKF)[..., index]
        worst = int(excess_BK.argmax())
        drawn = float(mean_BKF[..., index].flatten()[worst])
        said = float(expected_BKF[..., index].flatten()[worst])
        report.add(
            bool(excess_BK.max() > 0),
            f"outcomes expect {name} {said:.4g} where {num_samples} draws of respond average {drawn:.4g}",
        )


def check_leave_model(model: LeaveModel, *, num_signals: int) -> None:
    """Checks a leave model: probabilities in [0, 1], with and without the axis of outcomes.

    Raises:
        ValueError: a list of everything found.
    """
    report = Report("leave model", model)
    batch = ShownBatch(1, 4, num_signals)
    size, places, _ = batch.signals_BKF.shape
    stay_BK = report.attempt("stay", lambda: model.stay(batch.context_BX, batch.signals_BKF))
    if stay_BK is not None and report.tensor("stay", stay_BK, (size, places), torch.float32):
        report.add(((stay_BK < 0) | (stay_BK > 1)).any(), "stay gives values outside 0..1")
        stacked = torch.stack([batch.signals_BKF, batch.signals_BKF.flip(0)], dim=2)
        stay_BKO = report.attempt("stay with outcomes", lambda: model.stay(batch.context_BX, stacked))
        if stay_BKO is not None and report.tensor("stay with outcomes", stay_BKO, (size, places, 2), torch.float32):
            report.add(not same(stay_BKO[..., 0], stay_BK), "stay with outcomes disagrees with stay without")
        check_rows(
            report,
            "stay",
            lambda rows: model.stay(batch.context_BX[rows], batch.signals_BKF[rows]),
            batch.items_BK,
        )
    report.close()


def check_expected(world: World, *, num_sessions: int = 6, num_samples: int = 4000) -> None:
    """Checks that what ``Simulator.expected`` says of a world is what the world plays.

    Response, list effect and leave model are composed place by place. That is exact unless leaving depends on more
    than an outcome of the response model keeps: two signals together, or watch times within one outcome.

    Args:
        world: the world; its own sizes are used.
        num_sessions: requests that are tried.
        num_samples: Monte Carlo draws of each; expectations are compared within five standard errors and 1 %.

    Raises:
        ValueError: a list of everything found.
    """
    report = Report("world", world)
    simulator = RecVectorEnv(1, world).simulator
    state = simulator.start(num_sessions, seed=0)
    items_BK = state.request.candidates_BC[:, : simulator.slate_size]
    expected = simulator.expected(state, items_BK.unsqueeze(1))
    copies = simulator.branch(state, num_samples, noise="independent")
    _, feedback = simulator.step(copies, items_BK.repeat_interleave(num_samples, dim=0))
    for what, said, drawn in (
        ("places that are reached", expected.reached_BGK.sum(dim=2), feedback.seen_BK.sum(dim=1)),
        ("seconds watched", expected.watch_time_BG, feedback.signals_BKF[..., 0].sum(dim=1)),
    ):
        draws_BL, said_B = drawn.double().view(num_sessions, num_samples), said[:, 0].double()
        mean_B = draws_BL.mean(dim=1)
        allowed_B = 5 * draws_BL.std(dim=1) / num_samples**0.5 + 0.01 * said_B
        worst = int(((mean_B - said_B).abs() - allowed_B).argmax())
        report.add(
            ((mean_B - said_B).abs() > allowed_B).any(),
            f"expected says {float(said_B[worst]):.4g} {what} where {num_samples} draws average "
            f"{float(mean_B[worst]):.4g}; let leaving depend on one 0/1 signal of an outcome at most, and "
            "smoothly on watch time",
        )
    report.close()


def check_reward(reward: Reward, world: World | str | None = None) -> None:
    """Checks a reward on real feedback of a world.

    Args:
        reward: see ``recsim_env.rewards.Reward``.
        world: the world whose signals it was built for; the default short-video world if ``None``.

    Raises:
        ValueError: a list of everything found.
    """
    report = Report("reward", reward)
    names, weights = getattr(reward, "names", None), getattr(reward, "weights", None)
    named = isinstance(names, tuple) and bool(names) and all(isinstance(name, str) for name in names)
    report.add(not named, f"names must be a tuple of at least one name, got {names!r}")
    if named and report.add(
        not isinstance(weights, tuple) or len(weights) != len(names or ()),
        f"need one weight for each of the names {names!r}, got {weights!r}",
    ):
        report.add(len(set(names or ())) != len(names or ()), f"names repeat: {names!r}")
        simulator = RecVectorEnv(1, world or "short_video").simulator
        state = simulator.start(8, seed=0)
        items_BK = state.request.candidates_BC[:, : simulator.slate_size].clone()
        _, feedback = simulator.step(state, items_BK)
        _check_rewards(report, reward, state.request, items_BK, feedback)
    report.close()


def _check_rewards(report: Report, reward: Reward, request: Request, items_BK: Tensor, feedback: Feedback) -> None:
    def run(rows: slice) -> Tensor:
        part = Request(*(tensor[rows] for tensor in request))
        return reward(part, items_BK[rows], Feedback(*(tensor[rows] for tensor in feedback)))

    before = [tensor.clone() for tensor in (items_BK, *feedback)]
    rewards_BR = report.attempt("the call", lambda: run(slice(None)))
    if rewards_BR is None or not report.tensor(
        "the components", rewards_BR, (len(items_BK), len(reward.names)), torch.float32
    ):
        return
    changed = any(not same(a, b) for a, b in zip(before, (items_BK, *feedback), strict=True))
    report.add(changed, "the call changes the slate or feedback it was given; clone before writing")
    check_rows(report, "the call", run, items_BK)
    if items_BK.shape[1] > 1:
        # A repeat's feedback is 0, as of a video skipped at once; being reached must not pay either.
        twice_BK, reached_BK = items_BK[:, :1].expand(-1, 2), torch.ones_like(feedback.seen_BK[:, :2])
        signals_BKF = torch.ones_like(feedback.signals_BKF[:, :2])
        signals_BKF[:, 1] = 0.0
        not_reached_BK = reached_BK.clone()
        not_reached_BK[:, 1] = False
        paid = [
            reward(request, twice_BK, Feedback(signals_BKF, seen_BK, feedback.left_B))
            for seen_BK in (reached_BK, not_reached_BK)
        ]
        report.add(
            not same(*paid),
            "a video repeated in a slate pays for being reached; multiply by slates.first_showing(items_BK)",
        )


def check_candidate_source(
    source: CandidateSource, *, num_users: int, num_items: int, num_signals: int, num_candidates: int = 10
) -> None:
    """Checks a candidate source: distinct items, best first, nothing shown before unless nothing is left.

    Args:
        source: see ``recsim_env.types.CandidateSource``.
        num_users: user codes run from 0 to this, exclusive.
        num_items: item codes likewise; more than ``num_candidates``.
        num_signals: F.
        num_candidates: C that it is asked for.

    Raises:
        ValueError: a list of everything found.
    """
    if num_candidates >= num_items:
        raise ValueError(f"need num_candidates < num_items, got {num_candidates} and {num_items}")
    report = Report("candidate source", source)
    batch = ShownBatch(num_users, num_items, num_signals)
    state_BS = report.attempt("start", lambda: source.start(batch.user_B))
    if state_BS is not None and check_state(report, "start", state_BS, len(batch.user_B)):
        check_observe(report, source.observe, state_BS, batch)
        _check_retrieve(report, source, state_BS, batch, num_items, num_candidates)
    report.close()


def _check_retrieve(
    report: Report,
    source: CandidateSource,
    state_BS: Tensor,
    batch: ShownBatch,
    num_items: int,
    num_candidates: int,
) -> None:
    size = len(state_BS)
    uniform_B = torch.rand(size, generator=batch.generator).clamp(1e-6, 1 - 1e-6)
    order_BN = torch.rand(size, num_items, generator=batch.generator).argsort(dim=1)
    empty_B1 = torch.full((size, 1), NO_ITEM)
    # Item 0 stays among the last: a code that fills empty places with 0 would lose it.
    left_first = order_BN.eq(0).to(torch.int64).argsort(dim=1, stable=True)
    order_BN = order_BN.gather(1, left_first)
    situations = {
        "nothing": empty_B1,
        "some items": torch.cat([empty_B1, order_BN[:, : num_items - num_candidates][:, :3]], 1),
        "all but C items": torch.cat([empty_B1, order_BN[:, :-num_candidates]], 1),
        "every item": torch.cat([empty_B1, order_BN], 1),
    }
    for situation, shown_BM in situations.items():

        def run(rows: slice, shown_BM: Tensor = shown_BM) -> tuple[Tensor, Tensor]:
            return source.retrieve(state_BS[rows], shown_BM[rows].clone(), uniform_B[rows], num_candidates)

        answer = report.attempt(f"retrieve with {situation} shown", partial(run, slice(None)))
        if answer is None:
            continue
        items_BC, score_BC = answer
        shape = (size, num_candidates)
        if not report.tensor("retrieve's items", items_BC, shape, torch.int64):
            return
        report.tensor("retrieve's scores", score_BC, shape, torch.float32)
        falls = (score_BC[:, 1:] <= score_BC[:, :-1]).all()
        report.add(not falls, "retrieve's candidates do not stand best score first")
        inside = (items_BC >= 0) & (items_BC < num_items)
        report.add(not inside.all(), "retrieve gives codes of no item")
        sorted_BC = items_BC.sort(dim=1).values
        report.add((sorted_BC[:, 1:] == sorted_BC[:, :-1]).any(), "retrieve gives the same item twice")
        again_BC = (items_BC.unsqueeze(2) == shown_BM.unsqueeze(1)).any(2)
        report.add(
            situation != "every item" and bool(again_BC.any()),
            f"retrieve gives items of shown_BM while others are left (with {situation} shown)",
        )
        check_rows(report, "retrieve", partial(_first_of, run), state_BS)
        if situation == "nothing":
            _check_scores(report, source, (state_BS, uniform_B), items_BC, score_BC)


def _check_scores(
    report: Report, source: CandidateSource, asked: tuple[Tensor, Tensor], items_BC: Tensor, score_BC: Tensor
) -> None:
    """``score`` must repeat what ``retrieve`` said, up to rounding."""
    again_BC = report.attempt("score", lambda: source.score(*asked, items_BC))
    if again_BC is not None and report.tensor("score", again_BC, tuple(items_BC.shape), torch.float32):
        far = (again_BC - score_BC).abs() > 1e-4 * (1 + score_BC.abs())
        report.add(far.any(), "score gives candidates another score than retrieve did")


def _first_of(run: Callable[[slice], tuple[Tensor, Tensor]], rows: slice) -> Tensor:
    return run(rows)[0]
