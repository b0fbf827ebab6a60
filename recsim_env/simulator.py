"""The simulator: requests and sessions of many users at once, as a function of a value.

``start``, ``step``, ``restart`` and ``branch`` take and return a SessionState and keep nothing. A request is
played as it happens: places in order, each a draw of watch time and the signals that follow from it, then
the user goes on or leaves. Every draw has an address (seed, session, request, place, purpose), so a
session's bytes do not depend on how many others run beside it.

Shape legend: B sessions, C candidates, K places, F signals, G lists, M items to leave out, S model state.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import embedding

from recsim_env.randomness import Purpose, address, next_key, uniform
from recsim_env.types import NO_ITEM, Expected, Feedback, Outcomes, Request
from recsim_env.world import World

SECONDS_BETWEEN_REQUESTS = 1.0
"""Loading the next slate takes the user this long."""


@dataclass(frozen=True, slots=True)
class SessionState:
    """B running sessions as one value: copy it, branch it, keep it."""

    seed_B: Tensor
    """int64."""
    session_B: Tensor
    """int64: how many sessions this row has begun before."""
    key_B: Tensor
    """int64 address of the current request's draws."""
    request_index_B: Tensor
    """int64: requests answered so far in this session."""
    clock_s_B: Tensor
    """float64 seconds since Monday 00:00."""
    watched_s_B: Tensor
    """float32 seconds watched in this session."""
    response_BS: Tensor
    """The world's users; a recommender never sees it."""
    predictor_BS: Tensor
    candidates_BS: Tensor
    shown_BM: Tensor
    """int64 items the candidate source leaves out: recent history and this session."""
    request: Request
    """What the recommender may know now."""

    @property
    def num_sessions(self) -> int:
        """B."""
        return len(self.seed_B)

    def map(self, function: Callable[[Tensor], Tensor]) -> "SessionState":
        """The state with a function applied to every tensor."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        request = Request(*(function(tensor) for tensor in values.pop("request")))
        return SessionState(**{name: function(t) for name, t in values.items()}, request=request)

    def select(self, rows: Tensor) -> "SessionState":
        """Some of the sessions: int64 row numbers or a boolean mask."""
        return self.map(lambda tensor: tensor[rows])

    def put(self, rows: Tensor, other: "SessionState") -> "SessionState":
        """The state with ``rows`` (int64) replaced by the sessions of ``other``."""
        tensors = iter(other.tensors())
        return self.map(lambda tensor: tensor.index_copy(0, rows, next(tensors)))

    def tensors(self) -> list[Tensor]:
        """Every tensor, in a fixed order."""
        found: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.map(keep)
        return found

    @property
    def bytes_per_session(self) -> int:
        """Memory of one session."""
        return sum(t.element_size() * t.numel() for t in self.tensors()) // max(self.num_sessions, 1)


class Simulator:
    """Plays sessions in a world.

    Args:
        world: the world; moved to ``device``.
        num_candidates: C.
        slate_size: K.
        history_length: H, how much of the past a request shows.
        max_requests: requests after which faces truncate a session; the room kept for shown items.
        device: where all tensors live.

    Raises:
        ValueError: sizes that cannot work together.
    """

    def __init__(
        self,
        world: World,
        *,
        num_candidates: int = 50,
        slate_size: int = 6,
        history_length: int = 100,
        max_requests: int = 50,
        device: torch.device | str = "cpu",
    ):
        for name, value in (
            ("num_candidates", num_candidates),
            ("slate_size", slate_size),
            ("history_length", history_length),
            ("max_requests", max_requests),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if slate_size > num_candidates:
            raise ValueError(f"need slate_size <= num_candidates, got {slate_size} and {num_candidates}")
        if num_candidates > len(world.catalogue):
            raise ValueError(
                f"need num_candidates <= items of the catalogue, got {num_candidates} and {len(world.catalogue)}"
            )
        self.device = torch.device(device)
        self.world = world if self.device.type == "cpu" else world.to(self.device)
        self.num_candidates = num_candidates
        self.slate_size = slate_size
        self.history_length = history_length
        self.max_requests = max_requests
        # Draws of one place: the response's, then the list effect's and the leave model's.
        self._draws_per_place = world.response.num_draws + 2

    @torch.no_grad()
    def start(self, num_sessions: int, seed: int | Tensor) -> SessionState:
        """Begins sessions.

        Args:
            num_sessions: B.
            seed: an int gives row i the seed ``seed + i``; an int64 tensor (B,) gives each row its own.
        """
        if isinstance(seed, int):
            seed_B = seed + torch.arange(num_sessions, device=self.device)
        else:
            seed_B = seed.to(self.device, torch.int64)
            if seed_B.shape != (num_sessions,):
                raise ValueError(f"need one seed for each of {num_sessions} sessions, got {seed_B.shape}")
        return self._with_candidates(*self._begin(seed_B, torch.zeros_like(seed_B)))

    @torch.no_grad()
    def restart(self, state: SessionState, done_B: Tensor) -> SessionState:
        """Begins the next session of every row in the boolean mask; other rows are kept."""
        rows = done_B.nonzero().squeeze(1)
        if not len(rows):
            return state
        begun = self._with_candidates(*self._begin(state.seed_B[rows], state.session_B[rows] + 1))
        return state.put(rows, begun)

    @torch.no_grad()
    def branch(
        self, state: SessionState, num_lists: int, noise: Literal["shared", "independent"] = "shared"
    ) -> SessionState:
        """G copies of every session, row b * G + g.

        With shared noise the copies meet the same luck, so that differences come from the slates alone;
        with independent noise copy g > 0 has draws of its own.
        """
        branched = state.map(lambda tensor: tensor.repeat_interleave(num_lists, dim=0))
        if noise == "shared":
            return branched
        if noise != "independent":
            raise ValueError(f"noise must be 'shared' or 'independent', got {noise!r}")
        copy_B = torch.arange(num_lists, device=self.device).repeat(state.num_sessions)
        other_B = address(branched.key_B, Purpose.BRANCH, copy_B)
        return dataclasses.replace(branched, key_B=torch.where(copy_B > 0, other_B, branched.key_B))

    @torch.no_grad()
    def step(
        self, state: SessionState, items_BK: Tensor, begin_B: Tensor | None = None
    ) -> tuple[SessionState, Feedback]:
        """Shows one slate to every user.

        Args:
            state: the sessions.
            items_BK: int64 item codes, any items of the catalogue.
            begin_B: bool; these rows begin their next session instead, and their feedback means nothing. The same
                as ``restart`` after the step, but candidates are looked for once.

        Returns:
            The sessions at their next request, and the feedback.
        """
        self._check_items(items_BK, state.num_sessions)
        world, request = self.world, state.request
        places, per_place = items_BK.shape[1], self._draws_per_place
        draws = uniform(state.key_B, places * per_place + 1)
        draws_BKJ = draws[:, :-1].reshape(-1, places, per_place)

        signals_BKF = world.response.respond(state.response_BS, request.context_BX, items_BK, draws_BKJ[..., :-2])
        if world.list_effect is not None:
            interrupted_BK = draws_BKJ[..., -2] < world.list_effect.interrupt(items_BK)
            skipped_BKF = world.list_effect.skip(signals_BKF)
            signals_BKF = torch.where(interrupted_BK.unsqueeze(-1), skipped_BKF, signals_BKF)
        goes_on_BK = draws_BKJ[..., -1] < world.leave.stay(request.context_BX, signals_BKF)
        seen_BK = torch.ones_like(goes_on_BK)
        seen_BK[:, 1:] = goes_on_BK[:, :-1].cummin(dim=1).values
        signals_BKF = signals_BKF * seen_BK.unsqueeze(-1)
        feedback = Feedback(signals_BKF, seen_BK, ~goes_on_BK.all(dim=1))
        following, retrieval_B = self._advance(state, items_BK, feedback), draws[:, -1]
        rows = begin_B.nonzero().squeeze(1) if begin_B is not None else None
        if rows is not None and len(rows):
            begun, begun_retrieval_B = self._begin(state.seed_B[rows], state.session_B[rows] + 1)
            following = following.put(rows, begun)
            retrieval_B = retrieval_B.index_copy(0, rows, begun_retrieval_B)
        return self._with_candidates(following, retrieval_B), feedback

    @torch.no_grad()
    def expected(self, state: SessionState, items_BGK: Tensor) -> Expected:
        """True expectations of G lists for each current request; only evaluation and oracles may ask."""
        B, G, K = items_BGK.shape
        self._check_items(items_BGK, B)
        items = items_BGK.reshape(B * G, K)
        context = state.request.context_BX.repeat_interleave(G, dim=0)
        outcomes = self.world.response.outcomes(state.response_BS.repeat_interleave(G, dim=0), context, items)
        outcomes = self._with_list_effect(items, outcomes)
        weight_BKO1 = outcomes.probability_BKO.unsqueeze(-1)
        signals_BKF = (outcomes.signals_BKOF * weight_BKO1).sum(dim=2)
        stay_BK = (self.world.leave.stay(context, outcomes.signals_BKOF) * outcomes.probability_BKO).sum(-1)
        reached_BK = torch.ones_like(stay_BK)
        reached_BK[:, 1:] = stay_BK[:, :-1].cumprod(dim=1)
        watch_B = (signals_BKF[..., 0] * reached_BK).sum(dim=1)
        return Expected(signals_BKF.reshape(B, G, K, -1), reached_BK.reshape(B, G, K), watch_B.reshape(B, G))

    def _with_list_effect(self, items_BK: Tensor, outcomes: Outcomes) -> Outcomes:
        effect = self.world.list_effect
        if effect is None:
            return outcomes
        interrupt_BK1 = effect.interrupt(items_BK).unsqueeze(-1)
        skipped_BKOF = effect.skip(outcomes.signals_BKOF)
        probability_BKO = outcomes.probability_BKO
        return Outcomes(
            torch.cat([outcomes.signals_BKOF, skipped_BKOF], dim=2),
            torch.cat([probability_BKO * (1 - interrupt_BK1), probability_BKO * interrupt_BK1], dim=2),
        )

    def _begin(self, seed_B: Tensor, session_B: Tensor) -> tuple[SessionState, Tensor]:
        """Fresh sessions, yet without candidates, and the draws for these."""
        world = self.world
        key_B = address(seed_B, session_B)
        draws_B4 = uniform(key_B, 4)
        population = len(world.population_P)
        index_B = (draws_B4[:, 0].to(torch.float64) * population).to(torch.int64)
        user_B = world.population_P[index_B]
        tab_B, clock_s_B = world.contexts.start(draws_B4[:, 1:3])
        history_BH, feedback_BHF, known_BHF = world.users.histories.window(user_B, self.history_length)
        room = history_BH.new_full((len(user_B), self.max_requests * self.slate_size), NO_ITEM)
        zeros_B = torch.zeros_like(clock_s_B, dtype=torch.float32)
        context_BX = torch.stack(
            [tab_B.to(torch.float32), *_clock(clock_s_B), zeros_B, zeros_B, zeros_B, zeros_B], dim=1
        )
        state = SessionState(
            seed_B=seed_B,
            session_B=session_B,
            key_B=next_key(key_B),
            request_index_B=torch.zeros_like(seed_B),
            clock_s_B=clock_s_B,
            watched_s_B=zeros_B,
            response_BS=world.response.start(user_B),
            predictor_BS=world.predictor.start(user_B),
            candidates_BS=world.candidates.start(user_B),
            shown_BM=torch.cat([history_BH, room], dim=1),
            request=Request(
                user_B, world.users.features_UD[user_B], context_BX, history_BH, feedback_BHF, known_BHF,
                *(5 * (zeros_B,)),
            ),
        )  # fmt: skip
        return state, draws_B4[:, 3]

    def _advance(self, state: SessionState, items_BK: Tensor, feedback: Feedback) -> SessionState:
        """The sessions after a slate, yet without candidates."""
        world, request = self.world, state.request
        signals_BKF, seen_BK = feedback.signals_BKF, feedback.seen_BK
        shown = (request.context_BX, items_BK, signals_BKF, seen_BK)
        watched_B = signals_BKF[..., 0].sum(dim=1)
        index_B = state.request_index_B + 1
        clock_s_B = state.clock_s_B + watched_B + SECONDS_BETWEEN_REQUESTS

        # The seen places are a prefix: the new history is a window of old history and slate together.
        length, places = self.history_length, items_BK.shape[1]
        window_BH = seen_BK.sum(dim=1, keepdim=True) + torch.arange(length, device=self.device)
        first_B1 = torch.arange(len(items_BK), device=self.device).unsqueeze(1) * (length + places)
        window_X = (window_BH + first_B1).flatten()

        def in_window(old_BHF: Tensor, new_BKF: Tensor) -> Tensor:
            rows_YF = torch.cat([old_BHF, new_BKF], 1).flatten(0, 1)
            return rows_YF.index_select(0, window_X).view_as(old_BHF)  # whole rows: a gather takes four times as long

        known_BKF = seen_BK.unsqueeze(-1).expand_as(signals_BKF)
        shown_BM = state.shown_BM
        column_BK = self.history_length + state.request_index_B.unsqueeze(1) * places
        column_BK = (column_BK + torch.arange(places, device=self.device)).clamp(max=shown_BM.shape[1] - 1)

        old = request.context_BX
        context_BX = torch.stack(
            [
                old[:, 0],
                *_clock(clock_s_B),
                index_B.to(torch.float32),
                old[:, 4],
                watched_B + SECONDS_BETWEEN_REQUESTS,
                old[:, 6],
            ],
            dim=1,
        )
        return SessionState(
            seed_B=state.seed_B,
            session_B=state.session_B,
            key_B=next_key(state.key_B),
            request_index_B=index_B,
            clock_s_B=clock_s_B,
            watched_s_B=state.watched_s_B + watched_B,
            response_BS=world.response.observe(state.response_BS, *shown),
            predictor_BS=world.predictor.observe(state.predictor_BS, *shown),
            candidates_BS=world.candidates.observe(state.candidates_BS, *shown),
            shown_BM=shown_BM.scatter(1, column_BK, items_BK),
            request=Request(
                request.user_B,
                request.user_features_BD,
                context_BX,
                torch.cat([request.history_BH, items_BK], 1).gather(1, window_BH),
                in_window(request.history_feedback_BHF, signals_BKF),
                in_window(request.history_known_BHF, known_BKF),
                *(5 * (watched_B,)),  # candidates and what is known of them come last
            ),
        )

    def _with_candidates(self, state: SessionState, uniform_B: Tensor) -> SessionState:
        """Completes the request: candidates, what is known of them, what the recommender predicts."""
        world = self.world
        candidates_BC, score_BC = world.candidates.retrieve(
            state.candidates_BS, state.shown_BM, uniform_B, self.num_candidates
        )
        predicted_BCF, std_BCF = world.predictor.predict(state.predictor_BS, state.request.context_BX, candidates_BC)
        request = state.request._replace(
            candidates_BC=candidates_BC,
            candidate_features_BCD=embedding(candidates_BC, world.catalogue.features_ND),
            retriever_score_BC=score_BC,
            predicted_BCF=predicted_BCF,
            predicted_std_BCF=std_BCF,
        )
        return dataclasses.replace(state, request=request)

    def _check_items(self, items: Tensor, num_sessions: int) -> None:
        if items.dtype != torch.int64 or items.dim() < 2 or len(items) != num_sessions:
            raise ValueError(
                f"slates must be an int64 tensor of {num_sessions} rows and at least one place, got "
                f"{items.dtype} {tuple(items.shape)}"
            )
        low, high = torch.aminmax(items)
        if low < 0 or high >= len(self.world.catalogue):
            raise ValueError(f"slates hold item codes 0..{len(self.world.catalogue) - 1}, got {int(low)}..{int(high)}")


def _clock(clock_s_B: Tensor) -> tuple[Tensor, Tensor]:
    """Hour of the day (whole hours) and weekday (Monday 0) as float32."""
    hour_B = (clock_s_B / 3600).floor()
    return (hour_B % 24).to(torch.float32), ((hour_B / 24).floor() % 7).to(torch.float32)
