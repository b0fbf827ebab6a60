"""How long a call takes, on machines where other jobs run too."""

import time
from collections.abc import Callable


def microseconds(call: Callable[[], int], seconds: float) -> float:
    """CPU-microseconds per request of the best of five windows: other jobs only ever add time.

    Args:
        call: returns how many requests it answered.
        seconds: CPU time to spend.
    """
    call()
    windows = []
    for _ in range(5):
        answered, begin = 0, time.process_time()
        while time.process_time() - begin < seconds / 5 or answered == 0:
            answered += call()
        windows.append((time.process_time() - begin) / answered)
    return min(windows) * 1e6
