"""An RLlib EnvRunner that keeps everything in batched tensors: no Python per environment or episode.

It steps the tensor twin of a ``RecVectorEnv``, draws a group of lists for every request (auxiliary ones among them
while the settings say so), plays the first of them, has the whole group valued by the recommender's list evaluator,
and answers one flat train batch.

Shape legend: B environments, K places, G lists in a group, T calls of step, M = rows of the batch <= T * B.
"""

from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.metrics import EPISODE_LEN_MEAN, EPISODE_RETURN_MEAN, SAMPLE_TIMER
from torch import Tensor

from agents.rerankers.heuristics import HeuristicGenerators
from agents.rllib.module import GROUP_LOG_PROB, GROUP_POSITIONS, GROUP_VALUE
from recsim_env.plugins import load_object
from recsim_env.slates import items_at
from recsim_env.types import ListEvaluator, Request


class GoalRankEnvRunner(SingleAgentEnvRunner):  # type: ignore[misc]  # ray is untyped
    """Collects requests, groups of lists and their values."""

    def make_env(self) -> None:
        """Builds the environment and finds the list evaluator.

        Raises:
            ValueError: the environment has no tensor twin, another autoreset mode than NEXT_STEP, or there
                is no list evaluator.
        """
        super().make_env()
        env = self.env.unwrapped
        if not hasattr(env, "step_tensors"):
            raise ValueError(f"GoalRank needs a RecVectorEnv (with step_tensors), got {type(env).__name__}")
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.NEXT_STEP:
            raise ValueError(
                f"RLlib needs autoreset_mode NEXT_STEP, got {mode}: any other mode would lose the last step "
                "of every session without a word; leave autoreset_mode at its default"
            )
        self._tensor_env = env
        self._evaluator = _find_evaluator(self.config.evaluator, env)
        wanted = self.config.goalrank.num_auxiliary
        self._auxiliary = HeuristicGenerators.standard(env.world, env.config.slate_size) if wanted else None
        if self._auxiliary is not None and wanted > len(self._auxiliary.names):
            raise ValueError(
                f"auxiliary_share asks for {wanted} auxiliary lists a group, there are {len(self._auxiliary.names)}; "
                "lower auxiliary_share or group_size"
            )

    def sample(self, *, num_timesteps: int | None = None, **_: Any) -> dict[str, np.ndarray]:
        """Plays the current policy.

        Args:
            num_timesteps: environment steps, rounded up to a multiple of the number of environments; by
                default ``rollout_fragment_length`` for each environment.

        Returns:
            Columns of M requests: the fields of ``Request``, and the groups' positions (M, G, K),
            log-probabilities (M, G) and values (M, G). Steps that only reset a session are left out.
        """
        if num_timesteps is None:
            num_timesteps = self.num_envs * self.config.get_rollout_fragment_length(self.worker_index)
        with self.metrics.log_time(SAMPLE_TIMER):
            if self._needs_initial_reset:
                self._begin()
            steps = [self._step() for _ in range(-(-num_timesteps // self.num_envs))]
            valid_M = torch.cat([valid_B for _, valid_B in steps]).cpu().numpy()
            batch = {
                name: torch.cat([columns[name] for columns, _ in steps]).cpu().numpy()[valid_M] for name in steps[0][0]
            }
            num_steps = int(valid_M.sum())
            self.num_env_steps_sampled_lifetime += num_steps
            self._increase_sampled_metrics(num_steps, self._log_finished_sessions())
            self._log_feedback()
        return batch

    def get_metrics(self) -> Any:
        """What was logged since the last call."""
        return self.metrics.reduce()

    def _begin(self) -> None:
        # Seeds depend on the steps taken before, so that a resumed run meets new sessions, and are hashed, so
        # that the rows of two runners never share one.
        entropy = (self.config.seed or 0, self.worker_index or 0, self.num_env_steps_sampled_lifetime)
        env_seed, policy_seed = np.random.SeedSequence(entropy).generate_state(2)
        self._generator = torch.Generator(device=self._device).manual_seed(int(policy_seed))
        self._request: Request = self._tensor_env.reset_tensors(int(env_seed))
        zeros_B = torch.zeros(self.num_envs, device=self._request.user_B.device)
        self._totals: dict[str, Tensor] = dict.fromkeys(("return", "watch_time", "length"), zeros_B)
        self._finished: list[dict[str, Tensor]] = []
        self._feedback: list[Tensor] = []
        self._needs_initial_reset = False

    def _step(self) -> tuple[dict[str, Tensor], Tensor]:
        """One step of all environments: the columns it adds to the batch, and which rows are valid (B,)."""
        request = self._request
        on_device = Request(*(tensor.to(self._device) for tensor in request))
        positions_BGK, log_prob_BG = self._draw_group(on_device)
        positions_BGK = positions_BGK.to(request.user_B.device)
        items_BGK = items_at(request.candidates_BC, positions_BGK)
        value_BG: Tensor = self._with_noise(self._evaluator.score(request, items_BGK).value_BG)
        if not bool(value_BG.isfinite().all()):
            raise ValueError(
                f"{type(self._evaluator).__name__} values some lists at NaN or infinity; groups are compared by finite "
                "values: give lists that must not be shown a low one"
            )
        # A group's first list is always the policy's own, a fair draw to play.
        transition = self._tensor_env.step_tensors(items_BGK[:, 0])
        self._request = transition.request
        self._count(transition)
        groups = {GROUP_POSITIONS: positions_BGK, GROUP_LOG_PROB: log_prob_BG, GROUP_VALUE: value_BG}
        return request._asdict() | groups, transition.valid_B

    @torch.no_grad()
    def _draw_group(self, request: Request) -> tuple[Tensor, Tensor]:
        """A group's positions (B, G, K) and log-probabilities (B, G): own lists, then auxiliary ones."""
        settings, policy = self.config.goalrank, self.module.policy
        num_auxiliary = settings.num_auxiliary
        num_requests = self.num_env_steps_sampled_lifetime * max(self.config.num_env_runners, 1)
        if settings.auxiliary_requests is not None and num_requests >= settings.auxiliary_requests:
            num_auxiliary = 0
        positions_BGK, log_prob_BG = policy.sample_group(request, settings.group_size - num_auxiliary, self._generator)
        if not num_auxiliary:
            return positions_BGK, log_prob_BG
        assert self._auxiliary is not None
        order = torch.randperm(len(self._auxiliary.names), generator=self._generator, device=self._device).tolist()
        auxiliary = self._auxiliary.some(order[:num_auxiliary])
        positions_BGK = torch.cat([positions_BGK, auxiliary.propose(request, self._generator)], dim=1)
        return positions_BGK, policy.group_log_prob(request, positions_BGK)

    def _with_noise(self, value_BG: Tensor) -> Tensor:
        share: float = self.config.goalrank.value_noise
        if share == 0:
            return value_BG
        size = value_BG.shape
        noise_BG = torch.randn(size, generator=self._generator, device=self._device).to(value_BG.device)
        return (1 - share) * value_BG + share * value_BG.std(correction=0) * noise_BG

    def _count(self, transition: Any) -> None:
        valid_B, feedback = transition.valid_B, transition.feedback
        gains = {
            "return": transition.reward_B,
            "watch_time": feedback.signals_BKF[..., 0].sum(dim=1),
            "length": torch.ones_like(transition.reward_B),
        }
        totals = {name: self._totals[name] + gain_B * valid_B for name, gain_B in gains.items()}
        ended_B = transition.terminated_B | transition.truncated_B
        self._finished.append({name: total_B[ended_B] for name, total_B in totals.items()})
        self._totals = {name: total_B.masked_fill(ended_B, 0.0) for name, total_B in totals.items()}
        seen_BK1 = (feedback.seen_BK & valid_B.unsqueeze(1)).unsqueeze(-1)
        summed_F = (feedback.signals_BKF * seen_BK1).sum(dim=(0, 1))
        self._feedback.append(torch.cat([seen_BK1.sum().view(1), summed_F]))

    def _log_finished_sessions(self) -> int:
        finished = {name: torch.cat([part[name] for part in self._finished]) for name in self._totals}
        self._finished = []
        num_sessions = len(finished["length"])
        if num_sessions:
            mean = {name: float(values.mean()) for name, values in finished.items()}
            self.metrics.log_dict({"session": mean}, window=1)
            self.metrics.log_value(EPISODE_RETURN_MEAN, mean["return"], window=1)
            self.metrics.log_value(EPISODE_LEN_MEAN, mean["length"], window=1)
        return num_sessions

    def _log_feedback(self) -> None:
        seen, *sums = torch.stack(self._feedback).sum(dim=0).tolist()
        self._feedback = []
        rates = {name: total / max(seen, 1.0) for name, total in zip(self._tensor_env.world.signals, sums, strict=True)}
        self.metrics.log_dict({"feedback": rates}, window=1)


def _find_evaluator(given: Any, env: Any) -> ListEvaluator:
    """The evaluator that was given (an object or "module:Name"), or else the world's own."""
    found = load_object(given) if isinstance(given, str) else given
    found = found() if isinstance(found, type) else found
    if found is None:
        found = env.world.evaluator
    if found is None or not hasattr(found, "score"):
        raise ValueError(
            f"GoalRank needs a list evaluator to value its lists: world {env.world.name!r} has "
            f"{'none' if found is None else type(found).__name__}; fit one with the world, or pass an object "
            "with score(request, items_BGK), or its path 'module:Name', as evaluator="
        )
    return found  # type: ignore[no-any-return]
