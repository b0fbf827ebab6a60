"""Tasks: what an episode of the environment is, that is, when it is over.

A task is a small frozen object. The simulator plays sessions whatever the task, and truncation by ``max_requests`` is
the environment's own; a task says only what ends an episode from within.

Shape legend: B environments.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from recsim_env.plugins import nearest
from recsim_env.simulator import SessionState
from recsim_env.types import Feedback


@runtime_checkable
class Task(Protocol):
    """When an episode is over; any object with these two members."""

    @property
    def name(self) -> str:
        """What settings call it."""
        ...

    def is_over(self, state: SessionState, feedback: Feedback) -> Tensor:
        """Bool (B,): episodes that end with this slate.

        Args:
            state: the sessions after the slate; ``request_index_B`` and ``watched_s_B`` count it already.
            feedback: what the slate brought.
        """
        ...


@dataclass(frozen=True)
class SessionTask:
    """A session: it is over when the user leaves."""

    name: str = "session"

    def is_over(self, state: SessionState, feedback: Feedback) -> Tensor:
        """Who left."""
        return feedback.left_B


@dataclass(frozen=True)
class RequestTask:
    """One request: it is over when it is answered."""

    name: str = "request"

    def is_over(self, state: SessionState, feedback: Feedback) -> Tensor:
        """Everyone."""
        return torch.ones_like(feedback.left_B)


TASKS: dict[str, Task] = {task.name: task for task in (SessionTask(), RequestTask())}
"""Tasks that settings may call by name."""


def resolve_task(task: str | Task) -> Task:
    """A task, or the one of a name.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> resolve_task("session")
        SessionTask(name='session')
    """
    if not isinstance(task, str):
        return task
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}{nearest(task, TASKS)}; allowed: {list(TASKS)}, or a tasks.Task")
    return TASKS[task]
