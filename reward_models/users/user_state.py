"""What feedback changes in a user: sums of surprises.

A user's state moves by surprise: by what was observed of an event beyond what the model itself expected of that video
for that user. So a model that is right expects no change, whatever it is shown: poor slates do not turn a user into
another one, and a video shown again later is worth what it was. (An observation-driven state in the sense of Creal,
Koopman and Lucas, 2013, with the residual as its driver.)

Two kinds of sums are kept. *Traits* are what the user is like: event n moves them by 1 / (prior rows + n), as a mean
that is learned; they neither fade nor wander. *Moods* fade at a rate for each event. Sums are updated place by place
and never re-encoded.

Legend: B sessions, K places, F signals, E event width, Y amounts (F + 1), Z sums, T events of a user, S floats of
state; ``...`` any leading shape.
"""

import functools

import torch
from torch import Tensor, nn

from recsim_env.numerics import linear

_PRIOR_ROWS = 50.0  # rows that a coarser mean counts for among usual amounts


def amounts(signals: Tensor, duration: Tensor) -> Tensor:
    """How much of everything an event's feedback holds: (..., F + 1).

    Args:
        signals: float32 (..., F), watch time first, 0 where unknown.
        duration: float32 (...) seconds.

    Returns:
        Log watch time, the other signals, and the completion up to 2.
    """
    watch_time = signals[..., :1]
    completion = (watch_time / duration.unsqueeze(-1)).clamp(max=2.0)
    return torch.cat([torch.log1p(watch_time) * 0.25, signals[..., 1:], completion], -1)


class UserState(nn.Module):
    """Sums of surprises: the part of a user that feedback changes.

    The state (..., S) holds the number of the user's events, then for each sum an item vector weighted by the surprise
    (E: what the user is unexpectedly fond of) and the surprise itself (F + 1: how generous the user is).

    Args:
        trait_rows: rows that the prior counts for, one for each sum of traits.
        decays: share of the past that a mood keeps at each event, one for each sum of moods.
        gated: each event decides how much it makes moods fade; ``decays`` is where training begins.
        event_width: E.
        num_signals: F.
        num_tabs: tabs of the log.
        num_groups: duration groups.
    """

    usual_TGY: Tensor
    """Mean amounts by tab and duration group, a last tab standing for pre-log events, whose tab is unknown."""
    scale_Y: Tensor
    rate_Z: Tensor

    def __init__(
        self,
        trait_rows: tuple[float, ...],
        decays: tuple[float, ...],
        gated: bool,
        event_width: int,
        num_signals: int,
        num_tabs: int,
        num_groups: int,
    ) -> None:
        super().__init__()
        self.gated, self.trait_rows = gated, trait_rows
        self.num_traits, self.num_moods = len(trait_rows), len(decays)
        self.num_sums, self.num_signals, self.width = self.num_traits + self.num_moods, num_signals, event_width
        # One matrix for gate and fading: a product with two columns would not be the same in every batch.
        self.gate = nn.Linear(num_signals + 1, event_width + self.num_moods * gated, bias=False)
        rate_Z = -torch.tensor(decays).log()
        self.fading_Z = nn.Parameter(torch.expm1(rate_Z).log(), requires_grad=gated)  # softplus of it is the rate
        self.register_buffer("usual_TGY", torch.ones(num_tabs + 1, num_groups, num_signals + 1))
        self.register_buffer("scale_Y", torch.ones(num_signals + 1))
        self.register_buffer("rate_Z", rate_Z)

    def initialise_fading(self) -> None:
        """Lets every event fade the moods at the configured rates to begin with."""
        if self.gated:
            with torch.no_grad():
                self.gate.weight[self.width :] = 0.0

    @property
    def state_width(self) -> int:
        """Floats that hold the number of events and the sums."""
        return 1 + self.num_features

    @property
    def num_features(self) -> int:
        """Length of ``features``."""
        return self.num_sums * (self.width + self.num_signals + 1)

    def measure(self, amounts_PY: Tensor, known_PY: Tensor, tab_P: Tensor, group_P: Tensor) -> None:
        """Takes the usual amounts from a log: what is expected of an event before any model is there to ask.

        Means of a (tab, group) are shrunk to those of the tab, and these to those of the log.
        """
        shape, flat_P = self.usual_TGY.shape, tab_P * self.usual_TGY.shape[1] + group_P
        shown_TGY, total_TGY = (
            values_PY.new_zeros(shape[0] * shape[1], shape[2]).index_add_(0, flat_P, values_PY).reshape(shape)
            for values_PY in (known_PY.double(), (amounts_PY * known_PY).double())
        )
        usual = total_TGY.sum((0, 1)) / shown_TGY.sum((0, 1)).clamp(min=1.0)
        for shown, total in ((shown_TGY.sum(1, True), total_TGY.sum(1, True)), (shown_TGY, total_TGY)):
            usual = (total + _PRIOR_ROWS * usual) / (shown + _PRIOR_ROWS)
        self.usual_TGY.copy_(usual.clamp(min=1e-4))
        deviation_Y = amounts_PY[known_PY.all(1)].std(0)
        # Rare signals then weigh as much as frequent ones, but a signal of a few rows does not drown the others.
        self.scale_Y.copy_(torch.where(deviation_Y > 1e-4, 1.0 / deviation_Y.clamp(min=0.02), 1.0))

    def events(self, item_event: Tensor, surprise: Tensor, happened: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Event vectors (..., E + F + 1), how much they fade the sums, log (..., Z), and which count (...).

        Args:
            item_event: float32 (..., E) vectors of the items.
            surprise: float32 (..., F + 1), amounts beyond the expected ones; 0 where nothing was recorded.
            happened: bool (...); other events neither add nor fade.
        """
        mask = happened.unsqueeze(-1).to(item_event.dtype)
        scaled = surprise * self.scale_Y
        gate = linear(scaled, self.gate.weight)
        rate = self.rate_Z
        if self.gated:
            rate = torch.log1p(torch.exp(gate[..., self.width :] + self.fading_Z))  # above 0: the past never grows
        still = rate.new_zeros(self.num_traits)
        log_fade = -torch.cat([still.expand(*rate.shape[:-1], -1), rate], -1) * mask
        return torch.cat([item_event * gate[..., : self.width], scaled], -1) * mask, log_fade, happened

    def gains(self, count: Tensor) -> Tensor:
        """How much the event with this number (...), 1 for the user's first, moves each of the sums (..., Z)."""
        rows = torch.tensor(self.trait_rows, device=count.device, dtype=count.dtype)
        traits = 1.0 / (rows + count.unsqueeze(-1))
        moods = -torch.expm1(-self.rate_Z)
        return torch.cat([traits, moods.expand(*traits.shape[:-1], -1)], -1)

    def update(self, state_BS: Tensor, events_BKE: Tensor, log_fade_BKZ: Tensor, happened_BK: Tensor) -> Tensor:
        """State after K events in order."""
        # Event j is faded by all events after it: the total fading less the fading up to j. In logarithms, where a long
        # past is a large negative number; as a product it would underflow to 0 and a quotient of two such to NaN.
        count_BK = state_BS[:, :1] + happened_BK.to(state_BS.dtype).cumsum(1)
        fade_BKZ = log_fade_BKZ.cumsum(1)
        total_B1Z = fade_BKZ[:, -1:]
        weight_BKZ = torch.exp(total_B1Z - fade_BKZ) * self.gains(count_BK)
        added_BZE = (weight_BKZ.unsqueeze(-1) * events_BKE.unsqueeze(2)).sum(1)
        kept_BZE = torch.exp(total_B1Z).transpose(1, 2) * state_BS[:, 1:].reshape(len(state_BS), self.num_sums, -1)
        return torch.cat([count_BK[:, -1:], (kept_BZE + added_BZE).flatten(1)], 1)

    def scan(
        self, state_BS: Tensor, events_BTE: Tensor, log_fade_BTZ: Tensor, happened_BT: Tensor, begin_BT: Tensor
    ) -> Tensor:
        """State (B, T, S) before each of T events, all at once.

        Row t comes with the state after the events before number ``begin_BT[:, t]``: its own number, or that
        of the first event of its request.
        """
        # The same as ``update`` for every row at once: weights of all pairs (row, event) instead of a loop over events,
        # T x T numbers for each sum. Masked before the exponential, where later events would overflow.
        count_BV = torch.cat([state_BS[:, :1], state_BS[:, :1] + happened_BT.to(state_BS.dtype).cumsum(1)], 1)
        zero_B1Z = log_fade_BTZ.new_zeros(len(state_BS), 1, self.num_sums)
        fade_BVZ = torch.cat([zero_B1Z, log_fade_BTZ.cumsum(1)], 1)
        faded_BTZ = fade_BVZ.gather(1, begin_BT.unsqueeze(-1).expand(-1, -1, self.num_sums))
        log_weight_BTVZ = faded_BTZ.unsqueeze(2) - fade_BVZ[:, 1:].unsqueeze(1)
        is_past_BTV1 = (torch.arange(events_BTE.shape[1]) < begin_BT.unsqueeze(-1)).unsqueeze(-1)
        weight_BTVZ = torch.exp(log_weight_BTVZ.masked_fill(~is_past_BTV1, -torch.inf))
        weight_BTVZ = weight_BTVZ * self.gains(count_BV[:, 1:]).unsqueeze(1)
        added_BTZE = torch.einsum("btvz,bve->btze", weight_BTVZ, events_BTE)
        sums_B1ZE = state_BS[:, 1:].reshape(len(state_BS), 1, self.num_sums, -1)
        sums_BTX = (torch.exp(faded_BTZ).unsqueeze(-1) * sums_B1ZE + added_BTZE).flatten(2)
        return torch.cat([count_BV.gather(1, begin_BT).unsqueeze(-1), sums_BTX], 2)

    def features(self, state: Tensor) -> Tensor:
        """State (..., S) as inputs of a layer.

        The number of events is no input: it only ever grows, and would make every user drift with time.
        """
        return state[..., 1:]

    def taste(self, features: Tensor, weight_ZE: Tensor) -> Tensor:
        """What the user is unexpectedly fond of (..., E), the sums mixed by ``weight_ZE``."""
        stride = self.width + self.num_signals + 1
        parts = [
            features[..., index * stride : index * stride + self.width] * weight_E
            for index, weight_E in enumerate(weight_ZE.unbind(0))
        ]
        return functools.reduce(torch.add, parts)
