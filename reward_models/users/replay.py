"""What learned users expect of one row of a log after another, and the states that the rows leave them in.

A fit reads its own log so, and users who enter a fitted world come with a past that is read by the same code.

Legend: B users at a step, P rows of the log, R rows, H history length or hidden width, F signals, N items, U users,
V users with rows, Y amounts, Q earlier places, S floats of state, W those of what a session has shown.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from recsim_env.types import NO_ITEM
from reward_models.users.response_core import ResponseCore
from reward_models.users.sequences import Sequences
from reward_models.users.user_state import amounts

_PAST_WEIGHT = 0.1  # events that one of before the log counts for
_USERS_AT_ONCE = 4096


def surprise(signals: Tensor, duration: Tensor, known: Tensor, expected: Tensor) -> Tensor:
    """Amounts (..., Y) beyond the expected ones; 0 where nothing was recorded.

    Args:
        signals: float32 (..., F).
        duration: float32 (...) seconds.
        known: bool (..., F).
        expected: float32 (..., Y).
    """
    return (amounts(signals, duration) - expected) * torch.cat([known, known[..., :1]], -1)


def past_state(
    core: ResponseCore, window: tuple[Tensor, Tensor, Tensor], event_BHE: Tensor, duration_BH: Tensor
) -> Tensor:
    """State (B, S) after what users did before the log.

    Args:
        core: the layers.
        window: items, feedback and known, see ``Histories.window``.
        event_BHE: event vectors of these items; any where there is none.
        duration_BH: seconds, likewise.
    """
    items_BH, feedback_BHF, known_BHF = window
    # What was done before the log has no context to ask the model about: what is usual is expected of it.
    usual_BHY = core.memory.usual_TGY[core.num_tabs, core.cells.group(duration_BH)]
    surprise_BHY = surprise(feedback_BHF, duration_BH, known_BHF, usual_BHY)
    events = core.memory.events(event_BHE, surprise_BHY, items_BH != NO_ITEM)
    state_BS = core.memory.update(feedback_BHF.new_zeros(len(items_BH), core.memory.state_width), *events)
    # Without watch times an event says little: a user's first rows of the log still have nearly all to tell.
    return torch.cat([_PAST_WEIGHT * state_BS[:, :1], state_BS[:, 1:]], 1)


def earlier_strength(core: ResponseCore, kind_NY: Tensor, sequences: Sequences, row_R: Tensor) -> Tensor:
    """Strengths (R,) of what the earlier places of their requests do to rows."""
    assert sequences.earlier_PQ is not None
    earlier_RQ = sequences.earlier_PQ[row_R]  # the nearest one first
    fading_Q = core.pair_effects.fading(torch.arange(earlier_RQ.shape[1]))
    fading_RQ1 = (fading_Q * (earlier_RQ != NO_ITEM)).unsqueeze(-1)
    earlier_RY = (kind_NY[earlier_RQ.clamp(min=0)] * fading_RQ1).sum(1)
    return (earlier_RY @ core.pair_effects.pair * kind_NY[sequences.item_P[row_R]]).sum(-1)


class Replay:
    """A model before a log: asked about its rows in the order of time.

    Args:
        core: the layers.
        tables: by name ``item_NH``, ``item_event_NE``, ``item_kind_NY``, ``user_UH``, ``tab_TH``, ``hour_24H`` and
            ``duration_N``; users are those of the log.
        sequences: the log, in the item codes of the tables. Where it has no requests, rows have no earlier places;
            where it has no sessions, each row is its session's first.
        lift_P: of its rows, see ``reward_models.exposure``.
        tells_ranker: rows of the log's ranker are told from those of uniform exposure.
    """

    def __init__(
        self, core: ResponseCore, tables: dict[str, Tensor], sequences: Sequences, lift_P: Tensor, tells_ranker: bool
    ) -> None:
        self._core, self._tables, self._sequences, self._lift_P = core, tables, sequences, lift_P
        self._chosen_P = (~sequences.uniform_P).float() if tells_ranker else None
        duration_N = tables["duration_N"]
        self._group_N, self._amounts_NM2 = core.cells.group(duration_N), core.cells.amounts(duration_N)
        self._log_prior_NM = core.log_prior(duration_N)
        self._has_lists = bool(core.num_kinds) and sequences.earlier_PQ is not None

    @torch.no_grad()
    def run(self, label_P: Tensor, history_length: int) -> tuple[Tensor, Tensor]:
        """What the model expects of rows, one after another as it will be simulated.

        A row's surprise needs the state before it, and that state the surprises before: there is no shorter way. So
        the training, which needs all rows at once, takes what the model as it stood a while ago expected.

        Returns:
            Expected amounts (P, Y) of the rows of users with labelled rows, up to the last of these; and the state
            (U, S) of every user after these rows.
        """
        core, sequences = self._core, self._sequences
        state_US = self._past(history_length)
        expected_PY = state_US.new_zeros(len(sequences.item_P), len(sequences.signals) + 1)
        satiation = core.satiation if sequences.session_P is not None else None
        recent_width = 0 if core.satiation is None else core.satiation.state_width
        recent_UW = state_US.new_zeros(len(state_US), recent_width)
        for row_B, rows_by_place in _requests_in_turn(sequences, label_P):
            # All places of a request are answered from the state at its beginning, so they are answered at once.
            item_B, user_B, begin_B = sequences.item_P[row_B], sequences.user_P[row_B], sequences.begin_P[row_B]
            recent_BW = recent_UW[user_B] * self._goes_on(begin_B)
            expected_BY = self._expected(row_B, state_US[user_B], recent_BW)
            expected_PY[row_B] = expected_BY
            shown = (sequences.signals_PF[row_B], self._tables["duration_N"][item_B], sequences.known_PF[row_B])
            happened_B1 = sequences.known_PF[row_B].any(1, keepdim=True)
            event_B1E = self._tables["item_event_NE"][item_B].unsqueeze(1)
            events = core.memory.events(event_B1E, surprise(*shown, expected_BY).unsqueeze(1), happened_B1)
            kind_B1Y = self._tables["item_kind_NY"][item_B].unsqueeze(1)
            by_place = (torch.split(part, rows_by_place) for part in (user_B, row_B, kind_B1Y, *events))
            for user_V, row_V, kind_V1Y, *events_V in zip(*by_place, strict=True):
                state_US[user_V] = core.memory.update(state_US[user_V], *events_V)
                if satiation is not None:
                    recent_VW = recent_UW[user_V] * self._goes_on(row_V)
                    recent_UW[user_V] = satiation.update(recent_VW, kind_V1Y, events_V[-1])
        return expected_PY, state_US

    def _goes_on(self, row_B: Tensor) -> Tensor:
        """0 where a row is its session's first, 1 elsewhere, (B, 1)."""
        session_P = self._sequences.session_P
        return torch.ones(len(row_B), 1) if session_P is None else (session_P[row_B] != row_B).float().unsqueeze(1)

    def _past(self, history_length: int) -> Tensor:
        """States (U, S) before the log."""
        past, states = self._sequences.past, []
        for user_B in torch.split(torch.arange(len(past.start_U1) - 1), _USERS_AT_ONCE):
            window = past.window(user_B, history_length)
            item_BH = window[0].clamp(min=0)
            event_BHE, duration_BH = self._tables["item_event_NE"][item_BH], self._tables["duration_N"][item_BH]
            states.append(past_state(self._core, window, event_BHE, duration_BH))
        return torch.cat(states)

    def _expected(self, row_B: Tensor, state_BS: Tensor, recent_BW: Tensor) -> Tensor:
        """What is expected of rows by users in these states: (B, Y)."""
        core, tables, sequences, lift_B = self._core, self._tables, self._sequences, self._lift_P[row_B]
        item_B, tab_B = sequences.item_P[row_B], core.tabs(sequences.tab_P[row_B])
        user_BV, taste_BE = core.user(state_BS, tables["user_UH"][sequences.user_P[row_B]])
        hidden_BH = core.hidden(
            user_BV,
            taste_BE,
            tables["item_NH"][item_B],
            tables["item_event_NE"][item_B],
            tables["tab_TH"][tab_B] + tables["hour_24H"][sequences.hour_P[row_B]],
            lift_B,
            recent_BW,
            tables["item_kind_NY"][item_B],
        )
        strength_B = earlier_strength(core, tables["item_kind_NY"], sequences, row_B) if self._has_lists else None
        chosen_B = None if self._chosen_P is None else self._chosen_P[row_B]
        return core.expected_amounts(
            core.answer(hidden_BH, user_BV, tab_B, lift_B, recent_BW, strength_B, chosen_B),
            self._log_prior_NM[item_B],
            self._amounts_NM2[item_B],
            tab_B,
            self._group_N[item_B],
        )


def _requests_in_turn(sequences: Sequences, label_P: Tensor) -> Iterator[tuple[Tensor, list[int]]]:
    """Rows of users with labelled rows, up to the last of these: the first request of each user, then the second, ...

    Yields:
        Rows (B,) in the order of their places, and how many there are of each place: nobody has two of one place.
    """
    labelled_R = label_P.nonzero().squeeze(1)
    end_U = torch.zeros(len(sequences.start_U1) - 1, dtype=torch.int64)
    end_U.scatter_reduce_(0, sequences.user_P[labelled_R], labelled_R + 1, "amax")
    row_P = torch.arange(len(sequences.user_P))
    place_P, is_first_P = row_P - sequences.begin_P, row_P == sequences.begin_P
    # Requests are numbered through the log, then for each user from 0.
    number_P = is_first_P.cumsum(0)
    number_P = number_P - number_P[sequences.start_U1[:-1].clamp(max=len(row_P) - 1)][sequences.user_P]
    row_R = (row_P < end_U[sequences.user_P]).nonzero().squeeze(1)
    by_place_R = row_R[place_P[row_R].argsort(stable=True)]
    row_R = by_place_R[number_P[by_place_R].argsort(stable=True)]
    for row_B in torch.split(row_R, torch.bincount(number_P[row_R]).tolist()):
        yield row_B, torch.bincount(place_P[row_B]).tolist()
