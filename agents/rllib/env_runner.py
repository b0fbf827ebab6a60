"""An RLlib EnvRunner that keeps everything in batched tensors: no Python per environment or episode.

It steps the tensor twin of a ``RecVectorEnv``, lets the method collect at every step and label the whole rollout, and
answers one flat batch.

Shape legend: B environments, K places, T calls of step, M = valid rows of the batch <= T * B.
"""

import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.metrics import EPISODE_LEN_MEAN, EPISODE_RETURN_MEAN, SAMPLE_TIMER
from torch import Tensor

from agents.method import Operator, Rollout, Step, as_used, begin, collect, label
from recsim_env.plugins import load_object
from recsim_env.slates import items_at
from recsim_env.types import ListEvaluator, Request


@dataclass(frozen=True)
class Session:
    """A finished session as RLlib's callbacks see an episode: its sums, not its steps."""

    id_: str
    length: int
    """Requests."""
    session_return: float
    watch_time: float
    """Seconds."""
    is_terminated: bool
    """The user left."""
    is_truncated: bool

    is_done = True

    def __len__(self) -> int:
        """Requests."""
        return self.length

    def get_return(self) -> float:
        """Sum of rewards."""
        return self.session_return

    def env_steps(self) -> int:
        """Requests, by RLlib's name."""
        return self.length

    agent_steps = env_steps


class MethodEnvRunner(SingleAgentEnvRunner):  # type: ignore[misc]  # ray is untyped
    """Collects what a method learns from."""

    def make_env(self) -> None:
        """Builds the environment and gathers what a method may ask.

        Raises:
            ValueError: the environment has no tensor twin or another autoreset mode than NEXT_STEP, or the method
                cannot work in its world.
        """
        super().make_env()
        env = self.env.unwrapped
        if not hasattr(env, "step_tensors"):
            raise ValueError(
                f"the batched path needs an environment with step_tensors, such as RecVectorEnv, got "
                f"{type(env).__name__}; for any other environment use RLlib's own algorithms"
            )
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.NEXT_STEP:
            raise ValueError(
                f"RLlib needs autoreset_mode NEXT_STEP, got {mode}: any other mode would lose the last step "
                "of every session without a word; leave autoreset_mode at its default"
            )
        device = torch.device(getattr(env.config, "device", "cpu"))
        if self.config.num_gpus_per_env_runner and device.type == "cpu":
            raise ValueError(
                "num_gpus_per_env_runner asks for a GPU while the environment lives on the CPU; policy and users "
                "share a device: give device='cuda' in env_config, too, or no GPU"
            )
        self._device = device  # what the policy reads is where the simulator wrote it
        self._tensor_env = env
        self._method = self.config.make_method()
        self._operator = Operator(
            signals=tuple(env.world.signals),
            catalogue=env.world.catalogue,
            slate_size=env.config.slate_size,
            evaluator=_find_evaluator(self.config.evaluator, env),
        )
        begin(self._method, self._operator)

    def make_module(self) -> None:
        """Builds the module.

        Raises:
            ValueError: a module of the user's that holds no network.
        """
        super().make_module()
        if self.module is not None and not hasattr(self.module, "network"):
            raise ValueError(
                f"{type(self.module).__name__} has no network; a custom module of this path is a MethodModule, or "
                "offers its attributes method and network (agents.method)"
            )

    def sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool | None = None,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> Any:
        """Plays the current policy.

        Args:
            num_timesteps: environment steps, rounded up to a multiple of the number of environments; by
                default ``rollout_fragment_length`` for each environment.
            num_episodes: plays new sessions until so many have ended, and answers these instead of a batch.
            explore: whether the method collects while it explores, or slates are shown as the policy is used; by
                default RLlib's ``explore``.
            random_actions: shows random candidates, for RLlib's own checks.
            force_reset: begins new sessions first.

        Returns:
            Columns of M requests as numpy arrays: what the method labels. Steps that only reset a session are left
            out. With ``num_episodes``, a list of ``Session``.
        """
        if num_timesteps is not None and num_episodes is not None:
            raise ValueError("give num_timesteps or num_episodes, not both")
        explore = self.config.explore if explore is None else explore
        with self.metrics.log_time(SAMPLE_TIMER):
            if self._needs_initial_reset or force_reset or num_episodes is not None:
                self._begin()
            if num_episodes is not None:
                samples: Any = self._play_sessions(num_episodes, explore)
            else:
                steps = num_timesteps or self.num_envs * self.config.get_rollout_fragment_length(self.worker_index)
                samples = self._play_steps(-(-steps // self.num_envs), explore, random_actions)
            callbacks = {"env_runner": self, "metrics_logger": self.metrics, "samples": samples}
            self._call_back("on_sample_end", self.config.callbacks_on_sample_end, callbacks)
        return samples

    def apply(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a function with this runner; its error is heard, unless another runner is to take this one's place."""
        if self.config.restart_failed_env_runners:
            return super().apply(func, *args, **kwargs)
        return func(self, *args, **kwargs)

    def get_metrics(self) -> Any:
        """What was logged since the last call."""
        return self.metrics.reduce()

    def _play_steps(self, num_steps: int, explore: bool, random_actions: bool) -> dict[str, np.ndarray]:
        steps = [self._step(explore, random_actions) for _ in range(num_steps)]
        self._log()
        if random_actions or not explore:
            return {}
        names = steps[0][0].keys()
        transitions = [transition for _, transition in steps]
        rollout = Rollout(
            columns={name: torch.stack([columns[name] for columns, _ in steps]) for name in names},
            reward_TB=torch.stack([t.reward_B for t in transitions]),
            rewards_TBR=torch.stack([t.rewards_BR for t in transitions]),
            terminated_TB=torch.stack([t.terminated_B for t in transitions]),
            truncated_TB=torch.stack([t.truncated_B for t in transitions]),
            valid_TB=torch.stack([t.valid_B for t in transitions]),
            last=self._request,
        )
        with torch.no_grad():
            rows = rollout.valid_rows(label(self._method, self.module.network, rollout))
        return {name: column.cpu().numpy() for name, column in rows.items()}

    def _play_sessions(self, num_sessions: int, explore: bool) -> list[Session]:
        sessions: list[Session] = []
        while len(sessions) < num_sessions:
            self._step(explore, False)
            sessions += self._log()
        self._needs_initial_reset = True
        return sessions[:num_sessions]

    def _begin(self) -> None:
        # Seeds depend on the steps taken before, so that a resumed run meets new sessions, and are hashed, so
        # that the rows of two runners never share one.
        entropy = (self.config.seed or 0, self.worker_index or 0, self.num_env_steps_sampled_lifetime)
        env_seed, policy_seed = np.random.SeedSequence(entropy).generate_state(2)
        self._generator = torch.Generator(device=self._device).manual_seed(int(policy_seed))
        self._request: Request = self._tensor_env.reset_tensors(int(env_seed))
        zeros_B = torch.zeros(self.num_envs, device=self._device)
        self._totals: dict[str, Tensor] = dict.fromkeys(("return", "watch_time", "length"), zeros_B)
        self._finished: list[dict[str, Tensor]] = []
        self._feedback: list[Tensor] = []
        self._num_valid: list[Tensor] = []
        self._needs_initial_reset = False

    def _step(self, explore: bool, random_actions: bool) -> tuple[dict[str, Tensor], Any]:
        """One step of all environments: the columns that the method left, and the transition."""
        request = self._request
        step = self._choose(request, explore, random_actions)
        transition = self._tensor_env.step_tensors(step.items_BK)
        self._request = transition.request
        self._count(transition)
        return request._asdict() | step.columns, transition

    @torch.no_grad()
    def _choose(self, request: Request, explore: bool, random_actions: bool) -> Step:
        if random_actions:
            noise_BC = torch.rand(request.candidates_BC.shape, generator=self._generator, device=self._device)
            positions_BK = noise_BC.topk(self._operator.slate_size, dim=1).indices
            return Step(items_at(request.candidates_BC, positions_BK), {})
        network = self.module.network
        if not explore:
            with as_used(network):
                return Step(network(request, self._generator).items_BK, {})
        played = self.num_env_steps_sampled_lifetime  # of all runners: RLlib tells each the sum after every round
        return collect(self._method, network, request, self._operator, self._generator, played)

    def _count(self, transition: Any) -> None:
        valid_B, feedback = transition.valid_B, transition.feedback
        gains = {
            "return": transition.reward_B,
            "watch_time": feedback.signals_BKF[..., 0].sum(dim=1),
            "length": torch.ones_like(transition.reward_B),
        }
        totals = {name: self._totals[name] + gain_B * valid_B for name, gain_B in gains.items()}
        ended_B = transition.terminated_B | transition.truncated_B
        finished = {name: total_B[ended_B] for name, total_B in totals.items()}
        self._finished.append(finished | {"terminated": transition.terminated_B[ended_B]})
        self._totals = {name: total_B.masked_fill(ended_B, 0.0) for name, total_B in totals.items()}
        seen_BK1 = (feedback.seen_BK & valid_B.unsqueeze(1)).unsqueeze(-1)
        summed_F = (feedback.signals_BKF * seen_BK1).sum(dim=(0, 1))
        self._feedback.append(torch.cat([seen_BK1.sum().view(1), summed_F]))
        self._num_valid.append(valid_B.sum())

    def _log(self) -> list[Session]:
        """Logs what was played since the last call, and answers the sessions that ended in it."""
        num_steps = int(torch.stack(self._num_valid).sum())
        self._num_valid = []
        self.num_env_steps_sampled_lifetime += num_steps
        ended = {name: torch.cat([part[name] for part in self._finished]) for name in self._finished[0]}
        self._finished = []
        num_sessions = len(ended["length"])
        self._increase_sampled_metrics(num_steps, num_sessions)
        if num_sessions:
            mean = {name: float(ended[name].mean()) for name in self._totals}
            self.metrics.log_dict({"session": mean}, window=1)
            self.metrics.log_value(EPISODE_RETURN_MEAN, mean["return"], window=1)
            self.metrics.log_value(EPISODE_LEN_MEAN, mean["length"], window=1)
        seen, *sums = torch.stack(self._feedback).sum(dim=0).tolist()
        self._feedback = []
        rates = {name: total / max(seen, 1.0) for name, total in zip(self._operator.signals, sums, strict=True)}
        self.metrics.log_dict({"feedback": rates}, window=1)
        sessions = [
            Session(uuid.uuid4().hex, int(length), value, seconds, bool(left), not left)
            for value, seconds, length, left in zip(*(column.tolist() for column in ended.values()), strict=True)
        ]
        for index, session in enumerate(sessions):
            told = {
                "episode": session, "env_runner": self, "metrics_logger": self.metrics, "env": self._tensor_env,
                "env_index": index, "rl_module": self.module,
            }  # fmt: skip
            self._call_back("on_episode_end", self.config.callbacks_on_episode_end, told)
        return sessions

    def _call_back(self, name: str, functions: Any, told: dict[str, Any]) -> None:
        make_callback(name, callbacks_objects=self._callbacks, callbacks_functions=functions, kwargs=told)


def _find_evaluator(given: Any, env: Any) -> ListEvaluator | None:
    """The evaluator that was given (an object or "module:Name"), or else the world's own."""
    found = load_object(given) if isinstance(given, str) else given
    found = found() if isinstance(found, type) else found
    return env.world.evaluator if found is None else found  # type: ignore[no-any-return]
