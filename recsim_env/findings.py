"""What the checkers are made of: a report of findings, a made-up batch, and checks that models share.

Shape legend: B sessions, K places, F signals, S model state, X context.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from recsim_env.types import CONTEXT

T = TypeVar("T")


class Report:
    """Collects findings on one object."""

    def __init__(self, kind: str, subject: object):
        self.title = f"{kind} {getattr(subject, '__name__', type(subject).__name__)}"
        self.findings: list[str] = []

    def add(self, wrong: object, finding: str) -> bool:
        """Notes the finding if something is wrong; says whether all is well."""
        if wrong and finding not in self.findings:
            self.findings.append(finding)
        return not wrong

    def attempt(self, what: str, function: Callable[[], T]) -> T | None:
        """The function's result, or a finding and ``None`` if it raises."""
        try:
            return function()
        except Exception as error:  # any failure of foreign code is a finding
            self.add(True, f"{what} raised {type(error).__name__}: {error}")
            return None

    def tensor(self, what: str, value: object, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        """Checks type, shape, dtype and finiteness."""
        if not isinstance(value, Tensor):
            return self.add(True, f"{what} must be a tensor, got {type(value).__name__}")
        well = self.add(tuple(value.shape) != shape, f"{what} has shape {tuple(value.shape)}, need {shape}")
        well &= self.add(value.dtype != dtype, f"{what} is {value.dtype}, need {dtype}")
        return self.add(not bool(torch.isfinite(value).all()), f"{what} holds NaN or infinities") and well

    def close(self) -> None:
        """Raises if anything was found."""
        if self.findings:
            listed = "\n".join(f"  {i}. {finding}" for i, finding in enumerate(self.findings, 1))
            raise ValueError(f"{self.title}: {len(self.findings)} thing(s) to mend\n{listed}")


class ShownBatch:
    """A small made-up batch: users, contexts, slates without repeats, and feedback."""

    def __init__(self, num_users: int, num_items: int, num_signals: int, tab: int = 1, places: int = 3):
        if num_users < 1 or num_items < places + 1:
            raise ValueError(f"need num_users >= 1 and num_items >= {places + 1}, got {num_users}, {num_items}")
        generator = torch.Generator().manual_seed(0)
        size = 5
        self.user_B = torch.randint(num_users, (size,), generator=generator)
        self.context_BX = torch.zeros(size, len(CONTEXT))
        self.context_BX[:, 0] = tab
        self.context_BX[:, 1] = torch.randint(24, (size,), generator=generator)
        self.context_BX[:, 2] = torch.randint(7, (size,), generator=generator)
        order_BN = torch.rand(size, num_items, generator=generator).argsort(dim=1)
        self.items_BK = order_BN[:, :places].clone()
        self.other_items_B = order_BN[:, places].clone()
        self.signals_BKF = (torch.rand(size, places, num_signals, generator=generator) < 0.5).float()
        self.signals_BKF[..., 0] *= 10.0
        self.seen_BK = torch.tensor([[True, True, True], [True, True, False]] + 3 * [[True, False, False]])
        self.signals_BKF *= self.seen_BK.unsqueeze(2)
        self.generator = generator


def check_state(report: Report, method: str, state_BS: object, size: int) -> bool:
    """Whether a model's state has the form (B, S)."""
    if not isinstance(state_BS, Tensor) or state_BS.dim() != 2:
        return report.add(True, f"{method} must return a tensor (B, S)")
    return report.tensor(f"{method}'s state", state_BS, (size, state_BS.shape[1]), torch.float32)


def check_rows(report: Report, method: str, run: Callable[[slice], Tensor], items_BK: Tensor) -> None:
    """The same bytes when called again, and for a row without its neighbours."""
    whole = run(slice(None))
    report.add(
        not same(whole, run(slice(None))),
        f"{method} gives other values when it is called again; it must be free of hidden randomness",
    )
    for rows in (slice(0, 1), slice(1, 3), slice(len(items_BK) - 1, None)):
        report.add(
            not same(whole[rows], run(rows)),
            f"{method} gives a row other values when other rows stand beside it; see recsim_env.numerics",
        )


def check_observe(report: Report, observe: Callable[..., Tensor], state_BS: Tensor, batch: ShownBatch) -> None:
    """State updates: form, purity, independent rows, blind to places that were not seen."""

    def run(rows: slice, items_BK: Tensor, signals_BKF: Tensor) -> Tensor:
        shown = (items_BK[rows], signals_BKF[rows], batch.seen_BK[rows])
        return observe(state_BS[rows], batch.context_BX[rows], *shown)

    before = state_BS.clone()
    every = slice(None)
    after = report.attempt("observe", lambda: run(every, batch.items_BK, batch.signals_BKF))
    if after is None or not report.tensor("observe's state", after, tuple(state_BS.shape), torch.float32):
        return
    report.add(not same(before, state_BS), "observe writes into the state it was given; return a new one")
    unseen_BK1 = ~batch.seen_BK.unsqueeze(2)
    other_items_BK = torch.where(batch.seen_BK, batch.items_BK, batch.other_items_B.unsqueeze(1))
    other = run(every, other_items_BK, batch.signals_BKF + 5.0 * unseen_BK1)
    report.add(not same(after, other), "observe lets places that were not seen change the state")
    check_rows(report, "observe", lambda rows: run(rows, batch.items_BK, batch.signals_BKF), batch.items_BK)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in shape and in every value."""
    return a.shape == b.shape and bool(torch.equal(a, b))
