"""How long a call takes, on machines where other jobs run too, and sessions that are played to be timed."""

import time
from collections.abc import Callable

import torch

from recsim_env.simulator import Simulator


def microseconds(
    call: Callable[[], int], seconds: float, *, windows: int = 5, clock: Callable[[], float] = time.process_time
) -> float:
    """Microseconds per request of the best of some windows: other jobs only ever add time.

    Args:
        call: returns how many requests it answered.
        seconds: time to spend, after one call that warms up.
        windows: windows that it is spent in, of one call at least.
        clock: CPU time of the process; the time of day for what waits for a GPU.
    """
    call()
    found = []
    for _ in range(windows):
        answered, begin = 0, clock()
        while clock() - begin < seconds / windows or answered == 0:
            answered += call()
        found.append((clock() - begin) / answered)
    return min(found) * 1e6


class Player:
    """Plays one request of every session; where one ended, the next call begins another.

    Args:
        simulator: where it plays.
        batch: sessions side by side.
        reads: everything of a request is read, and the retriever's first K are shown. Otherwise the first items of
            the catalogue are, so that nothing is retrieved or predicted.
        played: requests played at once; histories and states are then ordinary.
    """

    def __init__(self, simulator: Simulator, batch: int, *, reads: bool = True, played: int = 3):
        self.simulator, self.reads = simulator, reads
        self.state = simulator.start(batch, seed=0)
        self.over_B = torch.zeros(batch, dtype=torch.bool, device=simulator.device)
        self.fixed_BK = torch.arange(simulator.slate_size, device=simulator.device).repeat(batch, 1)
        for _ in range(played):
            self()

    def __call__(self) -> int:
        """Returns how many requests were answered."""
        begins_B, items_BK = self.over_B, self.fixed_BK
        if self.reads:
            list(self.state.request)
            items_BK = self.state.request.candidates_BC[:, : self.simulator.slate_size]
        self.state, feedback = self.simulator.step(self.state, items_BK, begins_B)
        is_last_B = self.state.request_index_B >= self.simulator.max_requests
        self.over_B = (feedback.left_B | is_last_B) & ~begins_B
        return len(begins_B) - int(begins_B.sum())  # waits for a GPU
