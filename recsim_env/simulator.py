"""The simulator: requests and sessions of many users at once, as a function of a value.

``start``, ``step``, ``restart`` and ``branch`` take and return a SessionState and keep nothing. A request is
played as it happens: places in order, each a draw of watch time and the signals that follow from it, then
the user goes on or leaves. Every draw has an address (seed, session, request, place, purpose), so a
session's bytes do not depend on how many others run beside it.

Shape legend: B sessions, C candidates, K places, F signals, G lists, M items to leave out, S model state.
"""

import dataclasses
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, SupportsIndex

import torch
from torch import Tensor

from recsim_env.leaving import expected_stay, reached
from recsim_env.numerics import one_thread
from recsim_env.randomness import Purpose, address, next_key, uniform
from recsim_env.recommender_memory import RecommenderMemory
from recsim_env.slates import first_in_session
from recsim_env.types import CONTEXT, Expected, Feedback, Outcomes, Request
from recsim_env.world import World

SECONDS_BETWEEN_REQUESTS = 1.0
"""Loading the next slate takes the user this long."""

_MOST_LISTS = 1 << 32
"""More copies than any branching makes."""


@dataclass(frozen=True, slots=True)
class SessionState:
    """B running sessions as one value: copy it, branch it, keep it."""

    seed_B: Tensor
    """int64."""
    session_B: Tensor
    """int64: how many sessions this row has begun before."""
    key_B: Tensor
    """int64 address of the current request's draws."""
    branchings_B: Tensor
    """int64: how often this row's session was branched with noise of its own."""
    request_index_B: Tensor
    """int64: requests answered so far in this session."""
    clock_s_B: Tensor
    """float64 seconds since Monday 00:00."""
    watched_s_B: Tensor
    """float32 seconds watched in this session."""
    response_BS: Tensor
    """The world's users; a recommender never sees it."""
    request: Request
    """What the recommender may know now; its candidates are computed when they are first read."""

    @property
    def num_sessions(self) -> int:
        """B."""
        return len(self.seed_B)

    @property
    def memory(self) -> RecommenderMemory:
        """What the recommender's models remember."""
        memory = self.request.side
        assert isinstance(memory, RecommenderMemory)  # a simulator's requests have one
        return memory

    def map(self, function: Callable[[Tensor], Tensor]) -> "SessionState":
        """The state with a function of rows applied to every tensor; candidates stay as far as they were read."""
        own = {name: function(getattr(self, name)) for name in _OWN_FIELDS}
        return SessionState(**own, request=self.request.map(function))

    def select(self, rows: Tensor) -> "SessionState":
        """Some of the sessions: int64 row numbers or a boolean mask."""
        return self.map(lambda tensor: tensor[rows])

    def put(self, rows: Tensor, other: "SessionState") -> "SessionState":
        """The state with ``rows`` (int64) replaced by the sessions of ``other``.

        Candidates are forgotten and computed again when they are read: ``other`` seldom has them yet.
        """
        theirs = iter(other.tensors())

        def merged(tensor: Tensor) -> Tensor:
            return tensor.index_copy(0, rows, next(theirs))

        own = {name: merged(getattr(self, name)) for name in _OWN_FIELDS}
        known = [merged(tensor) for tensor in self.request.known()]
        return SessionState(**own, request=Request(*known, side=self.memory.map(merged)))

    def tensors(self) -> list[Tensor]:
        """Every tensor that the sessions consist of, in a fixed order; candidates follow from them."""
        own = [getattr(self, name) for name in _OWN_FIELDS]
        return [*own, *self.request.known(), *self.memory.tensors()]

    @property
    def bytes_per_session(self) -> int:
        """Memory of one session, candidates apart."""
        return sum(t.element_size() * t.numel() for t in self.tensors()) // max(self.num_sessions, 1)


_OWN_FIELDS = tuple(f.name for f in dataclasses.fields(SessionState) if f.name != "request")


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
    @one_thread()
    def start(self, num_sessions: int, seed: SupportsIndex | Tensor) -> SessionState:
        """Begins sessions.

        Args:
            num_sessions: B.
            seed: an integer gives row i the seed ``seed + i``; an int64 tensor (B,) gives each row its own.
        """
        if isinstance(seed, Tensor):
            seed_B = seed.to(self.device, torch.int64)
            if seed_B.shape != (num_sessions,):
                raise ValueError(f"need one seed for each of {num_sessions} sessions, got {tuple(seed_B.shape)}")
        else:
            seed_B = operator.index(seed) + torch.arange(num_sessions, device=self.device)
        return self._begin(seed_B, torch.zeros_like(seed_B))

    @torch.no_grad()
    @one_thread()
    def restart(self, state: SessionState, done_B: Tensor) -> SessionState:
        """Begins the next session of every row in the boolean mask; other rows are kept."""
        rows = done_B.nonzero().squeeze(1)
        if not len(rows):
            return state
        return state.put(rows, self._begin(state.seed_B[rows], state.session_B[rows] + 1))

    @torch.no_grad()
    def branch(
        self, state: SessionState, num_lists: int, noise: Literal["shared", "independent"] = "shared"
    ) -> SessionState:
        """G copies of every session, row b * G + g.

        With shared noise the copies meet the same luck, so that differences come from the slates alone;
        with independent noise copy g > 0 has draws of its own, also when copies are branched again.
        """
        branched = state.map(lambda tensor: tensor.repeat_interleave(num_lists, dim=0))
        if noise == "shared":
            return branched
        if noise != "independent":
            raise ValueError(f"noise must be 'shared' or 'independent', got {noise!r}")
        copy_B = torch.arange(num_lists, device=self.device).repeat(state.num_sessions)
        # Copy 0 keeps its key, and so would copy 1 of copy 0 get that of copy 1: the branchings before tell them apart.
        other_B = address(branched.key_B, Purpose.BRANCH, copy_B + _MOST_LISTS * branched.branchings_B)
        return dataclasses.replace(
            branched,
            key_B=torch.where(copy_B > 0, other_B, branched.key_B),
            branchings_B=branched.branchings_B + 1,
        )

    @torch.no_grad()
    @one_thread()
    def step(
        self, state: SessionState, items_BK: Tensor, begin_B: Tensor | None = None
    ) -> tuple[SessionState, Feedback]:
        """Shows one slate to every user.

        A video earns once in a session: shown again, it is skipped at once, whatever the policy hopes for. So rewards,
        metrics, ``expected`` and every search count it alike, and it tells nothing of the user.

        Args:
            state: the sessions.
            items_BK: int64 item codes, any items of the catalogue.
            begin_B: bool; these rows begin their next session instead, and their feedback means nothing. The same
                as ``restart`` after the step.

        Returns:
            The sessions at their next request, and the feedback.
        """
        following, feedback, _ = self._show(state, items_BK, leaving=True)
        if begin_B is not None:
            following = self.restart(following, begin_B)
        return following, feedback

    @torch.no_grad()
    @one_thread()
    def stay_through(self, state: SessionState, items_BK: Tensor) -> tuple[SessionState, Feedback, Tensor]:
        """Shows one slate to users who stay through it, however unlikely; only evaluation and oracles may ask.

        Returns:
            The sessions at their next request, the feedback of every place, with the draws of ``step``, and the chance
            (B, K) that a user who gives this feedback goes on after each place.
        """
        return self._show(state, items_BK, leaving=False)

    def _show(self, state: SessionState, items_BK: Tensor, *, leaving: bool) -> tuple[SessionState, Feedback, Tensor]:
        """Plays one slate, with users who leave or without."""
        self._check_items(items_BK, state.num_sessions)
        world, request = self.world, state.request
        places, per_place = items_BK.shape[1], self._draws_per_place
        draws = uniform(state.key_B, places * per_place + 1)
        draws_BKJ = draws[:, :-1].reshape(-1, places, per_place)

        signals_BKF = world.response.respond(state.response_BS, request.context_BX, items_BK, draws_BKJ[..., :-2])
        first_BK = answered_BK = first_in_session(request, items_BK.unsqueeze(1)).squeeze(1)
        if world.list_effect is not None:
            interrupted_BK = draws_BKJ[..., -2] < world.list_effect.interrupt(items_BK)
            skipped_BKF = world.list_effect.skip(signals_BKF)
            signals_BKF = torch.where(interrupted_BK.unsqueeze(-1), skipped_BKF, signals_BKF)
            answered_BK = first_BK & ~interrupted_BK
        signals_BKF = signals_BKF * first_BK.unsqueeze(-1)
        stay_BK = world.leave.stay(request.context_BX, signals_BKF)
        goes_on_BK = draws_BKJ[..., -1] < stay_BK if leaving else torch.ones_like(stay_BK, dtype=torch.bool)
        seen_BK = torch.ones_like(goes_on_BK)
        seen_BK[:, 1:] = goes_on_BK[:, :-1].cummin(dim=1).values
        signals_BKF = signals_BKF * seen_BK.unsqueeze(-1)
        feedback = Feedback(signals_BKF, seen_BK, ~goes_on_BK.all(dim=1))
        return self._advance(state, items_BK, feedback, first_BK, answered_BK, draws[:, -1]), feedback, stay_BK

    @torch.no_grad()
    @one_thread()
    def expected(self, state: SessionState, items_BGK: Tensor) -> Expected:
        """True expectations of G lists for each current request; only evaluation and oracles may ask."""
        B, G, K = items_BGK.shape
        self._check_items(items_BGK, B)
        items = items_BGK.reshape(B * G, K)
        context = state.request.context_BX.repeat_interleave(G, dim=0)
        outcomes = self.world.response.outcomes(state.response_BS.repeat_interleave(G, dim=0), context, items)
        outcomes = self._with_list_effect(items, outcomes)
        first_BKOF = first_in_session(state.request, items_BGK).view(B * G, K, 1, 1)
        outcomes = outcomes._replace(signals_BKOF=outcomes.signals_BKOF * first_BKOF)
        weight_BKO1 = outcomes.probability_BKO.unsqueeze(-1)
        signals_BKF = (outcomes.signals_BKOF * weight_BKO1).sum(dim=2)
        stay_BKO = expected_stay(self.world.leave, context, outcomes.signals_BKOF)
        reached_BK = reached((stay_BKO * outcomes.probability_BKO).sum(-1))
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

    def _begin(self, seed_B: Tensor, session_B: Tensor) -> SessionState:
        """Fresh sessions."""
        world = self.world
        key_B = address(seed_B, session_B)
        draws_B4 = uniform(key_B, 4)
        population = len(world.population_P)
        index_B = (draws_B4[:, 0].to(torch.float64) * population).to(torch.int64)
        user_B = world.population_P[index_B]
        tab_B, clock_s_B = world.contexts.start(draws_B4[:, 1:3])
        history_BH, feedback_BHF, known_BHF = world.users.histories.window(user_B, self.history_length)
        hour_B, weekday_B = _clock(clock_s_B)
        zeros_B = torch.zeros_like(hour_B)
        context_BX = _context(
            tab=tab_B.to(torch.float32),
            hour=hour_B,
            weekday=weekday_B,
            request_index=zeros_B,
            session_index=zeros_B,
            seconds_since_request=zeros_B,
            seconds_since_session=zeros_B,
        )
        memory = RecommenderMemory.begin(
            world.predictor,
            world.candidates,
            world.catalogue.features_ND,
            num_candidates=self.num_candidates,
            room=self.max_requests * self.slate_size,
            user_B=user_B,
            history_BH=history_BH,
            draw_B=draws_B4[:, 3],
        )
        return SessionState(
            seed_B=seed_B,
            session_B=session_B,
            key_B=next_key(key_B),
            branchings_B=torch.zeros_like(seed_B),
            request_index_B=torch.zeros_like(seed_B),
            clock_s_B=clock_s_B,
            watched_s_B=zeros_B,
            response_BS=world.response.start(user_B),
            request=Request(
                user_B,
                world.users.features_UD[user_B],
                context_BX,
                history_BH,
                feedback_BHF,
                known_BHF,
                side=memory,
            ),
        )

    def _advance(
        self,
        state: SessionState,
        items_BK: Tensor,
        feedback: Feedback,
        first_BK: Tensor,
        answered_BK: Tensor,
        draw_B: Tensor,
    ) -> SessionState:
        """The sessions after a slate; ``draw_B`` chooses the next candidates.

        A repeat changes neither the user nor what the recommender's models think. A skip that the list's declared
        effect drew was no answer to the video: the user stays the same, which the recommender cannot know.
        """
        world, request = self.world, state.request
        signals_BKF, seen_BK = feedback.signals_BKF, feedback.seen_BK
        shown = (request.context_BX, items_BK, signals_BKF)
        watched_B, index_B = signals_BKF[..., 0].sum(dim=1), state.request_index_B + 1
        clock_s_B = state.clock_s_B + watched_B + SECONDS_BETWEEN_REQUESTS
        hour_B, weekday_B = _clock(clock_s_B)
        context = dict(zip(CONTEXT, request.context_BX.unbind(dim=1), strict=True)) | {
            "hour": hour_B,
            "weekday": weekday_B,
            "request_index": index_B.to(torch.float32),
            "seconds_since_request": watched_B + SECONDS_BETWEEN_REQUESTS,
        }
        return SessionState(
            seed_B=state.seed_B,
            session_B=state.session_B,
            key_B=next_key(state.key_B),
            branchings_B=state.branchings_B,
            request_index_B=index_B,
            clock_s_B=clock_s_B,
            watched_s_B=state.watched_s_B + watched_B,
            response_BS=world.response.observe(state.response_BS, *shown, seen_BK & answered_BK),
            request=Request(
                request.user_B,
                request.user_features_BD,
                _context(**context),
                *self._history(request, items_BK, feedback),
                side=state.memory.observe(*shown, seen_BK & first_BK, draw_B),
            ),
        )

    def _history(self, request: Request, items_BK: Tensor, feedback: Feedback) -> tuple[Tensor, Tensor, Tensor]:
        """Items, feedback and what is known of it, after a slate.

        The seen places are a prefix: the new history is a window of old history and slate together.
        """
        length, places = self.history_length, items_BK.shape[1]
        window_BH = feedback.seen_BK.sum(dim=1, keepdim=True) + torch.arange(length, device=self.device)
        first_B1 = torch.arange(len(items_BK), device=self.device).unsqueeze(1) * (length + places)
        window_X = (window_BH + first_B1).flatten()

        def in_window(old_BHF: Tensor, new_BKF: Tensor) -> Tensor:
            rows_YF = torch.cat([old_BHF, new_BKF], 1).flatten(0, 1)
            return rows_YF.index_select(0, window_X).view_as(old_BHF)  # whole rows: a gather takes four times as long

        known_BKF = feedback.seen_BK.unsqueeze(-1).expand_as(feedback.signals_BKF)
        return (
            torch.cat([request.history_BH, items_BK], 1).gather(1, window_BH),
            in_window(request.history_feedback_BHF, feedback.signals_BKF),
            in_window(request.history_known_BHF, known_BKF),
        )

    def _check_items(self, items: Tensor, num_sessions: int) -> None:
        if items.dtype != torch.int64 or items.dim() < 2 or len(items) != num_sessions:
            raise ValueError(
                f"slates must be an int64 tensor of {num_sessions} rows and at least one place, got "
                f"{items.dtype} {tuple(items.shape)}"
            )
        low, high = torch.aminmax(items)
        if low < 0 or high >= len(self.world.catalogue):
            raise ValueError(f"slates hold item codes 0..{len(self.world.catalogue) - 1}, got {int(low)}..{int(high)}")


def _context(**fields: Tensor) -> Tensor:
    """Context (B, X) from its fields by name."""
    return torch.stack([fields[name] for name in CONTEXT], dim=1)


def _clock(clock_s_B: Tensor) -> tuple[Tensor, Tensor]:
    """Hour of the day (whole hours) and weekday (Monday 0) as float32."""
    hour_B = (clock_s_B / 3600).floor()
    return (hour_B % 24).to(torch.float32), ((hour_B / 24).floor() % 7).to(torch.float32)
