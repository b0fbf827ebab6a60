"""What feedback changes in a user: decayed sums of past events.

A user's past is a few exponentially decayed sums of event vectors, updated place by place and never re-encoded.

Legend: B sessions, K places, F signals, E event width, Z decay rates, T events of a user, S floats of state;
``...`` any leading shape.
"""

import functools

import torch
from torch import Tensor, nn

from recsim_env.numerics import linear

_PRIOR_ROWS = 50.0  # rows that a coarser mean counts for among usual amounts
_PRIOR_EVENTS = 3.0  # a user's own rates start from the usual ones, as if seen this often


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


def feedback_features(signals: Tensor, duration: Tensor, usual: Tensor, known: Tensor | None = None) -> Tensor:
    """What an event's feedback says to the memory: (..., 2 F + 3).

    The ``amounts``, then how much of each is usual for such an event (0 where it was not recorded), then a
    constant 1.

    Args:
        signals: float32 (..., F), watch time first, 0 where unknown.
        duration: float32 (...) seconds.
        usual: float32 (..., F + 1), see ``UserState.usual_TGY``.
        known: bool (..., F); ``None`` means all.
    """
    if known is not None:
        usual = usual * torch.cat([known, known[..., :1]], -1)
    return torch.cat([amounts(signals, duration), usual, usual.new_ones(1).expand(*usual.shape[:-1], 1)], -1)


class UserState(nn.Module):
    """Decayed sums of events: the part of a user that feedback changes.

    Each sum holds, for the events of the past, item vectors gated by the feedback (E) and the feedback
    itself (2 F + 3): how much of each signal there was, and how much of it such events usually bring.
    """

    usual_TGY: Tensor
    """Mean amounts by tab and duration group, a last tab standing for pre-log events, whose tab is unknown."""
    mean_Y: Tensor
    """Mean amounts over all events."""
    scale_P: Tensor
    rate_Z: Tensor

    def __init__(
        self,
        decays: tuple[float, ...],
        gated: bool,
        event_width: int,
        num_signals: int,
        num_tabs: int,
        num_groups: int,
    ) -> None:
        super().__init__()
        self.gated = gated
        self.num_sums, self.num_signals, self.width = len(decays), num_signals, event_width
        num_feedback = 2 * num_signals + 3
        # One matrix for gate and fading: a product with two columns would not be the same in every batch.
        self.gate = nn.Linear(num_feedback, event_width + self.num_sums * self.gated, bias=False)
        rate_Z = -torch.tensor(decays).log()
        self.register_buffer("usual_TGY", torch.ones(num_tabs + 1, num_groups, num_signals + 1))
        self.register_buffer("mean_Y", torch.ones(num_signals + 1))
        self.register_buffer("scale_P", torch.ones(num_feedback))
        self.register_buffer("rate_Z", rate_Z)

    def initialise_fading(self) -> None:
        """Lets every event fade the past at the configured rates to begin with."""
        if self.gated:
            with torch.no_grad():
                self.gate.weight[self.width :] = 0.0
                self.gate.weight[self.width :, -1] = torch.expm1(self.rate_Z).log()  # softplus of it is the rate

    @property
    def state_width(self) -> int:
        """Floats that hold the sums."""
        return self.num_sums * (self.width + 2 * self.num_signals + 3)

    def measure(self, amounts_PY: Tensor, known_PY: Tensor, tab_P: Tensor, group_P: Tensor) -> None:
        """Takes the usual amounts from a log: rare signals then weigh as much as frequent ones.

        Means of a (tab, group) are shrunk to those of the tab, and these to those of the log.
        """
        shape, flat_P = self.usual_TGY.shape, tab_P * self.usual_TGY.shape[1] + group_P
        shown_TGY, total_TGY = (
            values_PY.new_zeros(shape[0] * shape[1], shape[2]).index_add_(0, flat_P, values_PY).reshape(shape)
            for values_PY in (known_PY.double(), (amounts_PY * known_PY).double())
        )
        mean_Y = usual = total_TGY.sum((0, 1)) / shown_TGY.sum((0, 1)).clamp(min=1.0)
        for shown, total in ((shown_TGY.sum(1, True), total_TGY.sum(1, True)), (shown_TGY, total_TGY)):
            usual = (total + _PRIOR_ROWS * usual) / (shown + _PRIOR_ROWS)
        self.usual_TGY.copy_(usual.clamp(min=1e-4))
        self.mean_Y.copy_(mean_Y.clamp(min=1e-3))
        deviation_Y = amounts_PY[known_PY.all(1)].std(0)
        scale_Y = torch.where(deviation_Y > 1e-4, 1.0 / deviation_Y.clamp(min=0.02), 1.0)
        self.scale_P.copy_(torch.cat([scale_Y, 1.0 / self.mean_Y, torch.ones(1)]))

    def events(self, item_event: Tensor, feedback: Tensor, happened: Tensor) -> tuple[Tensor, Tensor]:
        """Event vectors (..., E + 2 F + 3) and how much they fade the past, log (..., Z).

        Args:
            item_event: float32 (..., E) vectors of the items.
            feedback: float32 (..., 2 F + 3), see ``feedback_features``.
            happened: bool (...); other events neither add nor fade.
        """
        mask = happened.unsqueeze(-1).to(item_event.dtype)
        scaled = feedback * self.scale_P
        gate = linear(scaled, self.gate.weight)
        vector, rate = item_event * gate[..., : self.width], self.rate_Z
        if self.gated:
            rate = torch.log1p(torch.exp(gate[..., self.width :]))  # above 0: no event makes the past grow
        return torch.cat([vector, feedback], -1) * mask, -rate * mask

    def update(self, sums_BS: Tensor, events_BKE: Tensor, log_fade_BKZ: Tensor) -> Tensor:
        """Sums after K events in order."""
        # Event j is faded by all events after it: the total fading less the fading up to j. In logarithms, where a long
        # past is a large negative number; as a product it would underflow to 0 and a quotient of two such to NaN.
        fade_BKZ = log_fade_BKZ.cumsum(1)
        total_B1Z = fade_BKZ[:, -1:]
        weight_BKZ = torch.exp(total_B1Z - fade_BKZ)
        added_BZE = (weight_BKZ.unsqueeze(-1) * events_BKE.unsqueeze(2)).sum(1)
        kept_BZE = torch.exp(total_B1Z).transpose(1, 2) * sums_BS.reshape(len(sums_BS), self.num_sums, -1)
        return (kept_BZE + added_BZE).reshape(sums_BS.shape)

    def scan(self, sums_BS: Tensor, events_BTE: Tensor, log_fade_BTZ: Tensor, begin_BT: Tensor) -> Tensor:
        """Sums (B, T, S) before each of T events, all at once.

        Row t comes with the sums after the events before number ``begin_BT[:, t]``: its own number, or that
        of the first event of its request.
        """
        # The same as ``update`` for every row at once: weights of all pairs (row, event) instead of a loop over events,
        # T x T numbers for each sum. Masked before the exponential, where later events would overflow.
        zero_B1Z = log_fade_BTZ.new_zeros(len(sums_BS), 1, self.num_sums)
        fade_BVZ = torch.cat([zero_B1Z, log_fade_BTZ.cumsum(1)], 1)
        faded_BTZ = fade_BVZ.gather(1, begin_BT.unsqueeze(-1).expand(-1, -1, self.num_sums))
        log_weight_BTVZ = faded_BTZ.unsqueeze(2) - fade_BVZ[:, 1:].unsqueeze(1)
        is_past_BTV1 = (torch.arange(events_BTE.shape[1]) < begin_BT.unsqueeze(-1)).unsqueeze(-1)
        weight_BTVZ = torch.exp(log_weight_BTVZ.masked_fill(~is_past_BTV1, -torch.inf))
        added_BTZE = torch.einsum("btvz,bve->btze", weight_BTVZ, events_BTE)
        sums_B1ZE = sums_BS.reshape(len(sums_BS), 1, self.num_sums, -1)
        return (torch.exp(faded_BTZ).unsqueeze(-1) * sums_B1ZE + added_BTZE).flatten(2)

    def features(self, sums: Tensor) -> Tensor:
        """State (..., S) as inputs of a layer: the average event, own amounts over usual ones, share recorded.

        What is usual depends on tab and duration, so that a user gets no credit for the tabs and videos that
        came up. The share tells events with a watch time from pre-log events without.

        The number of events is no input: it only ever grows, and would make every user drift with time.
        """
        sums_ZE = sums.reshape(*sums.shape[:-1], self.num_sums, -1)
        num_amounts = self.num_signals + 1
        vector, amount, usual, count = torch.split(sums_ZE, [self.width, num_amounts, num_amounts, 1], -1)
        prior_Y = _PRIOR_EVENTS * self.mean_Y
        rate = torch.log((amount + prior_Y) / (usual + prior_Y))
        recorded = usual[..., -1:] / (self.mean_Y[-1] * (count + 1.0))
        return torch.cat([vector / (count + 1.0), rate, recorded], -1).flatten(-2)

    def taste(self, features: Tensor, weight_ZE: Tensor) -> Tensor:
        """Average past event (..., E), the sums mixed by ``weight_ZE``."""
        stride = self.width + self.num_signals + 2
        parts = [
            features[..., index * stride : index * stride + self.width] * weight_E
            for index, weight_E in enumerate(weight_ZE.unbind(0))
        ]
        return functools.reduce(torch.add, parts)

    @property
    def num_features(self) -> int:
        """Length of ``features``."""
        return self.num_sums * (self.width + self.num_signals + 2)
