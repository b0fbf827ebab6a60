"""Gymnasium faces over the simulator: many sessions at once, and one.

``RecVectorEnv`` steps B sessions per call. Its numpy face is a ``gymnasium.vector.VectorEnv``; its tensor twin
(``reset_tensors``, ``step_tensors``) leaves everything on the device for learners written in torch. ``RecEnv``
is the B = 1 slice of it: there is one simulator and no second copy of the dynamics.

Observation  see ``observations.py`` (``features``, ``ids``, ``both``)
Action       see ``actions.py`` (``slate``, ``items``, ``scores``, ``weights``, ``hyper``)
Reward       weighted sum of the reward's components, by default seconds watched; ``info`` carries the vector
Terminated   the task is over, see ``tasks.py``: the user left (``Request-v0``: the slate was answered)
Truncated    ``max_requests`` were answered and the user is still there

Shape legend: B environments, K places, F signals, R reward components.
"""

import dataclasses
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from recsim_env.actions import action_form
from recsim_env.known_worlds.names import resolve_world
from recsim_env.numerics import one_thread
from recsim_env.observations import as_numpy, first_row, observation_form
from recsim_env.plugins import nearest
from recsim_env.rendering import describe, picture
from recsim_env.rewards import Reward, scalar, watch_time_reward
from recsim_env.simulator import SessionState, Simulator
from recsim_env.slates import first_showing
from recsim_env.tasks import Task, resolve_task
from recsim_env.types import Feedback, Request
from recsim_env.world import World

Array = np.ndarray
RENDER_MODES = ("ansi", "rgb_array")


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Settings of an environment; each can be overridden by name in ``gym.make``."""

    task: str | Task = "session"
    """``session`` runs until the user leaves, ``request`` ends after one slate; or any ``tasks.Task``."""
    action: str = "slate"
    """Action form, see ``actions.py``."""
    observation: str = "features"
    """Observation form, see ``observations.py``."""
    num_candidates: int = 50
    """C."""
    slate_size: int = 6
    """K."""
    history_length: int = 100
    """H: past videos a request shows."""
    max_requests: int = 50
    """Requests after which a session is truncated."""
    device: str = "cpu"
    """Where the simulator lives; numpy faces copy to the CPU."""

    def __post_init__(self) -> None:
        resolve_task(self.task)

    @classmethod
    def of(cls, world: World, overrides: dict[str, Any]) -> "EnvConfig":
        """The world's own defaults with overrides.

        Raises:
            ValueError: an unknown name, with the nearest known one.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        for name in overrides:
            if name not in names:
                raise ValueError(f"unknown setting {name!r}{nearest(name, names)}; allowed: {names}")
        return cls(**{**world.defaults, **overrides})


class Transition(NamedTuple):
    """One step of all environments, as tensors on the device."""

    request: Request
    """The next request to answer."""
    items_BK: Tensor
    """The slates that were shown."""
    feedback: Feedback
    rewards_BR: Tensor
    reward_B: Tensor
    terminated_B: Tensor
    truncated_B: Tensor
    valid_B: Tensor
    """False where the call only reset the environment: leave these rows out of losses."""
    final_request: Request | None
    """SAME_STEP only: the last request of rows that ended, before they were reset."""


class RecVectorEnv(VectorEnv[Any, Any, Any]):
    """B sessions stepped in one call.

    Args:
        num_envs: B.
        world: a name ("short_video", "tiny"), a world folder, or a World.
        reward: a ``rewards.Reward``; by default seconds watched.
        autoreset_mode: NEXT_STEP (default; the call after an end only resets, its action is ignored),
            SAME_STEP (``final_obs`` in infos) or DISABLED (reset ended rows by ``options={"reset_mask": ...}``).
        render_mode: "ansi" (text), "rgb_array" (a picture of the last slate) or None.
        overrides: any field of ``EnvConfig``.

    Raises:
        ValueError: an unknown setting, or sizes that cannot work together.

    Example:
        >>> env = RecVectorEnv(4, world="tiny")
        >>> observation, info = env.reset(seed=0)
        >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        >>> reward.shape
        (4,)
    """

    def __init__(
        self,
        num_envs: int = 1,
        world: str | Path | World = "short_video",
        *,
        reward: Reward | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **overrides: Any,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        found = resolve_world(world)
        self.config = EnvConfig.of(found, overrides)
        self.simulator = Simulator(
            found,
            num_candidates=self.config.num_candidates,
            slate_size=self.config.slate_size,
            history_length=self.config.history_length,
            max_requests=self.config.max_requests,
            device=self.config.device,
        )
        self._task = resolve_task(self.config.task)
        self.reward = reward or watch_time_reward(found.signals)
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"autoreset_mode": self.autoreset_mode, "render_modes": [*RENDER_MODES], "render_fps": 1}
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(f"render_mode must be None or one of {RENDER_MODES}, got {render_mode!r}")
        self.render_mode = render_mode
        self._action = action_form(self.config.action, self.simulator)
        self._observation = observation_form(self.config.observation, self.simulator)
        self.single_action_space = self._action.space
        self.single_observation_space = self._observation.space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._state: SessionState | None = None
        self._last: tuple[Request, Tensor, Feedback] | None = None
        self._terminated_B = torch.zeros(num_envs, dtype=torch.bool, device=self.simulator.device)
        self._truncated_B = torch.zeros_like(self._terminated_B)

    @property
    def world(self) -> World:
        """The world that is played."""
        return self.simulator.world

    @property
    def state(self) -> SessionState:
        """All sessions as one value."""
        if self._state is None:
            raise ResetNeeded("call reset() before step()")
        return self._state

    @property
    def request(self) -> Request:
        """What the recommender is asked now."""
        return self.state.request

    # The tensor twin.

    def reset_tensors(self, seed: SupportsIndex | Tensor | None = None) -> Request:
        """Begins new sessions in every row; without a seed, the next sessions of the seeds in use."""
        if seed is not None or self._state is None:
            first = int(self.np_random.integers(1 << 31)) if seed is None else seed
            self._state = self.simulator.start(self.num_envs, first)
        else:
            every_B = torch.ones_like(self._terminated_B)
            self._state = self.simulator.restart(self._state, every_B)
        self._terminated_B = torch.zeros_like(self._terminated_B)
        self._truncated_B = torch.zeros_like(self._truncated_B)
        self._last = None
        return self._state.request

    def step_tensors(self, items_BK: Tensor) -> Transition:
        """Shows one slate of item codes (int64, (B, K)) in every row."""
        state, simulator = self.state, self.simulator
        ended_B = self._terminated_B | self._truncated_B
        any_ended = bool(ended_B.any())
        if any_ended:  # whatever was passed for a row that has ended is ignored, be it no item at all
            valid_BK = items_BK.clamp(0, len(self.world.catalogue) - 1)
            items_BK = torch.where(ended_B.unsqueeze(1), valid_BK, items_BK)
        begins_B = ended_B if self.autoreset_mode is AutoresetMode.NEXT_STEP else None
        played, feedback = simulator.step(state, items_BK, begins_B)
        if any_ended:
            running_B11 = (~ended_B).unsqueeze(1).unsqueeze(2)
            feedback = Feedback(
                feedback.signals_BKF * running_B11,
                feedback.seen_BK & running_B11.squeeze(2),
                feedback.left_B & ~ended_B,
            )
        rewards_BR = self.reward(state.request, items_BK, feedback) * (~ended_B).unsqueeze(1)
        terminated_B = self._task.is_over(played, feedback) & ~ended_B
        truncated_B = (played.request_index_B >= self.config.max_requests) & ~terminated_B & ~ended_B
        final_request = None

        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._terminated_B, self._truncated_B = terminated_B, truncated_B
        elif self.autoreset_mode is AutoresetMode.SAME_STEP:
            final_request = played.request
            played = simulator.restart(played, terminated_B | truncated_B)
        else:
            if any_ended:
                rows = ended_B.nonzero().squeeze(1)
                played = played.put(rows, state.select(rows))
            terminated_B = terminated_B | self._terminated_B
            truncated_B = truncated_B | self._truncated_B
            self._terminated_B, self._truncated_B = terminated_B, truncated_B
        self._state = played
        if self.render_mode is not None:
            self._last = (state.request, items_BK, feedback)
        return Transition(
            request=played.request,
            items_BK=items_BK,
            feedback=feedback,
            rewards_BR=rewards_BR,
            reward_B=scalar(self.reward, rewards_BR),
            terminated_B=terminated_B,
            truncated_B=truncated_B,
            valid_B=~ended_B,
            final_request=final_request,
        )

    # The numpy face.

    @one_thread()
    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins new sessions.

        Args:
            seed: an integer gives row i the seed ``seed + i``, a list gives each row its own (None where the row is not
                reset); without one every row goes on to the next session of the seed it has.
            options: ``{"reset_mask": bool array}`` resets these rows only.

        Raises:
            ValueError: an option, a mask or a list of seeds of another form.
        """
        options = options or {}
        unknown = options.keys() - {"reset_mask"}
        if unknown:
            raise ValueError(f"unknown reset options {sorted(unknown)}; allowed: reset_mask")
        mask_B = self._reset_mask(options.get("reset_mask"))
        if seed is None:
            seed_B = None
        elif isinstance(seed, Sequence):
            resets = [True] * self.num_envs if mask_B is None else mask_B.tolist()
            if len(seed) != self.num_envs or any(s is None and r for s, r in zip(seed, resets, strict=True)):
                raise ValueError(f"need one integer seed for each of {self.num_envs} environments, got {seed}")
            seed_B = torch.tensor([0 if s is None else operator.index(s) for s in seed])
        else:
            super().reset(seed=operator.index(seed))
            seed_B = operator.index(seed) + torch.arange(self.num_envs)
        if mask_B is None:
            self.reset_tensors(seed_B)
        else:
            self._reset_rows(mask_B, seed_B)
        return self.observe(self.request), {}

    def observe(self, request: Request) -> Any:
        """The observation of requests as a learner sees it, numpy arrays (B, ...) in the observation form."""
        return as_numpy(self._observation.encode(request))

    def slates_of(self, request: Request, actions: Any) -> Tensor:
        """Item codes (B, K) of the slates that a learner's actions (B, ...) mean.

        Raises:
            ValueError: actions of another shape.
        """
        action = torch.as_tensor(np.asarray(actions), device=self.simulator.device)
        expected = (len(request.user_B), *(self.single_action_space.shape or ()))
        if tuple(action.shape) != expected:
            raise ValueError(f"actions must have the shape {expected}, got {tuple(action.shape)}")
        if not action.dtype.is_floating_point:
            action = action.to(torch.int64)
        return self._action.decode(request, action)

    def _reset_mask(self, mask: Any) -> Tensor | None:
        if mask is None:
            return None
        mask_B = torch.as_tensor(np.asarray(mask), device=self.simulator.device)
        if mask_B.dtype != torch.bool or mask_B.shape != (self.num_envs,):
            raise ValueError(
                f"reset_mask must be a boolean array of length {self.num_envs}, got {mask_B.dtype} "
                f"{tuple(mask_B.shape)}"
            )
        return mask_B

    def _reset_rows(self, mask_B: Tensor, seed_B: Tensor | None) -> None:
        """Begins new sessions in some rows, of the seeds given or the next ones of their own."""
        if seed_B is None:
            self._state = self.simulator.restart(self.state, mask_B)
        else:
            rows = mask_B.nonzero().squeeze(1)
            begun = self.simulator.start(len(rows), seed_B.to(rows.device)[rows])
            self._state = self.state.put(rows, begun) if len(rows) else self.state
        self._terminated_B = self._terminated_B & ~mask_B
        self._truncated_B = self._truncated_B & ~mask_B

    @one_thread()
    def step(self, actions: Any) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        """Shows a slate in every row; see the module docstring for what the numbers mean."""
        transition = self.step_tensors(self.slates_of(self.request, actions))
        observation = self.observe(transition.request)
        return (
            observation,
            _array(transition.reward_B).astype(np.float64),
            _array(transition.terminated_B),
            _array(transition.truncated_B),
            self._infos(transition, observation),
        )

    def render(self) -> tuple[Any, ...] | None:
        """One readable text per environment in the mode "ansi", one picture in the mode "rgb_array"."""
        if self.render_mode is None:
            return None
        if self.render_mode == "rgb_array":
            size = self.config.slate_size
            return tuple(picture(self.world, self._last, row, size) for row in range(self.num_envs))
        return tuple(describe(self.world, self.request, self._last, row) for row in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Nothing to release."""

    def _infos(self, transition: Transition, observation: Any) -> dict[str, Any]:
        feedback = transition.feedback
        repeats_B = (~first_showing(transition.items_BK)).sum(dim=1)
        infos: dict[str, Any] = {
            "rewards": _array(transition.rewards_BR),
            "signals": _array(feedback.signals_BKF),
            "seen": _array(feedback.seen_BK),
            "left": _array(feedback.left_B),
            "repeats": _array(repeats_B),
        }
        infos |= {f"_{name}": _array(transition.valid_B) for name in list(infos)}
        if transition.final_request is not None:
            ended_B = transition.terminated_B | transition.truncated_B
            if bool(ended_B.any()):
                # Only rows that ended need candidates for their last request; elsewhere the observation goes on.
                last = as_numpy(self._observation.encode(transition.final_request.select(ended_B)))
                infos["final_obs"] = _with_rows(observation, _array(ended_B), last)
                infos["_final_obs"] = _array(ended_B)
        return infos


class RecEnv(gym.Env[Any, Any]):
    """One session: row 0 of a ``RecVectorEnv`` of one, with the same arguments.

    Example:
        >>> env = RecEnv(world="tiny")
        >>> observation, info = env.reset(seed=0)
        >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        >>> sorted(info)
        ['left', 'repeats', 'rewards', 'seen', 'signals']
    """

    metadata = {"render_modes": [*RENDER_MODES], "render_fps": 1}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(
        self,
        world: str | Path | World = "short_video",
        *,
        reward: Reward | None = None,
        render_mode: str | None = None,
        **overrides: Any,
    ):
        self._vector = RecVectorEnv(
            1,
            world,
            reward=reward,
            autoreset_mode=AutoresetMode.DISABLED,
            render_mode=render_mode,
            **overrides,
        )
        self.action_space = self._vector.single_action_space
        self.observation_space = self._vector.single_observation_space
        self.render_mode = render_mode

    @property
    def world(self) -> World:
        """The world that is played."""
        return self._vector.world

    @property
    def request(self) -> Request:
        """What the recommender is asked now (B = 1)."""
        return self._vector.request

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins a session; without a seed, the next session of the seed in use."""
        seed = None if seed is None else operator.index(seed)
        super().reset(seed=seed)
        observation, _ = self._vector.reset(seed=seed, options=options)
        return first_row(observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Shows one slate."""
        observation, reward, terminated, truncated, infos = self._vector.step(np.asarray(action)[None])
        info = {name: value[0] for name, value in infos.items() if not name.startswith("_")}
        info["rewards"] = dict(zip(self._vector.reward.names, info["rewards"].tolist(), strict=True))
        return first_row(observation), float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> Any:
        """The last slate and the current request as text in the mode "ansi", as a picture in "rgb_array"."""
        rendered = self._vector.render()
        return rendered[0] if rendered else None


def _array(tensor: Tensor) -> Array:
    return tensor.cpu().numpy()


def _with_rows(observation: Any, mask: Array, rows: Any) -> Any:
    """A copy of an observation in which the rows of the mask are replaced."""
    if isinstance(observation, dict):
        return {name: _with_rows(array, mask, rows[name]) for name, array in observation.items()}
    observation = observation.copy()
    observation[mask] = rows
    return observation
