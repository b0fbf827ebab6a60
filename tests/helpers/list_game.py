"""A list game with a known optimum, as a batched environment, for training tests that must be fast.

The value of a list is the sum of its items' values by place, less a penalty for each tag shown before. So a
sort by item value is wrong, and the best of all ordered lists is found by enumeration.
"""

import itertools
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from recsim_env.types import CONTEXT, NO_ITEM, Feedback, ListValue, Request

N, C, K, F, TAGS, HISTORY = 40, 6, 3, 2, 3, 4
PLACE_WEIGHT = torch.tensor([1.0, 0.8, 0.6])
PENALTY = 1.0

_generator = torch.Generator().manual_seed(5)
VALUE = torch.rand(N, generator=_generator) + 0.2
TAG = torch.randint(TAGS, (N,), generator=_generator)


class TrueValue:
    """The list evaluator: the game's own value."""

    def score(self, request: Request, items_BGK: torch.Tensor) -> ListValue:
        tag = TAG[items_BGK]
        repeats = torch.zeros(items_BGK.shape)
        for later, earlier in itertools.combinations(range(K - 1, -1, -1), 2):
            repeats[..., later] += tag[..., later] == tag[..., earlier]
        per_place = VALUE[items_BGK] * PLACE_WEIGHT - PENALTY * repeats
        value = per_place.sum(dim=-1)
        return ListValue(value, per_place, torch.zeros_like(value))


def make_request(num_requests: int, generator: torch.Generator) -> Request:
    """Requests with random candidate sets and random histories."""
    B = num_requests
    candidates = torch.rand((B, N), generator=generator).argsort(dim=1)[:, :C]
    history = torch.randint(-1, N, (B, HISTORY), generator=generator).clamp(min=NO_ITEM)
    return Request(
        user_B=torch.zeros(B, dtype=torch.int64),
        user_features_BD=torch.rand((B, 2), generator=generator),
        context_BX=torch.rand((B, len(CONTEXT)), generator=generator),
        history_BH=history,
        history_feedback_BHF=torch.rand((B, HISTORY, F), generator=generator),
        history_known_BHF=torch.ones((B, HISTORY, F), dtype=torch.bool),
        candidates_BC=candidates,
        candidate_features_BCD=torch.nn.functional.one_hot(TAG[candidates], TAGS).float(),
        retriever_score_BC=torch.rand((B, C), generator=generator),
        predicted_BCF=torch.stack([VALUE[candidates], torch.full((B, C), 0.01)], dim=-1),
        predicted_std_BCF=torch.zeros((B, C, F)),
    )


def optimum(request: Request) -> torch.Tensor:
    """Value (B,) of the best of all ordered lists."""
    lists = torch.tensor(list(itertools.permutations(range(C), K)))
    return TrueValue().score(request, request.candidates_BC[:, lists]).value_BG.amax(dim=1)


def share_of_optimum(policy: Any, num_requests: int = 400) -> float:
    """Mean value of a policy's slates over the mean optimum, on requests of its own."""
    generator = torch.Generator().manual_seed(1)
    request = make_request(num_requests, generator)
    items_BK = policy(request, generator).items_BK
    value_B = TrueValue().score(request, items_BK.unsqueeze(1)).value_BG[:, 0]
    return float(value_B.mean() / optimum(request).mean())


class GameCatalogue:
    """What a ranker's training reads of a catalogue."""

    features_ND = torch.nn.functional.one_hot(TAG, TAGS).float()
    tag_N = TAG

    def __len__(self) -> int:
        return N


class ListGameEnv(VectorEnv):
    """Sessions of at most 5 requests; after each slate the user leaves with probability 0.2."""

    def __init__(self, num_envs: int = 1, autoreset_mode: str = "NextStep", evaluator: bool = True):
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode(autoreset_mode)}
        self.single_observation_space = gym.spaces.Box(0, 1, (1,))
        self.single_action_space = gym.spaces.MultiDiscrete([C] * K)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self.world = SimpleNamespace(
            name="list game", signals=("watch_time", "like"), evaluator=TrueValue() if evaluator else None,
            catalogue=GameCatalogue(),
        )  # fmt: skip
        self.config = SimpleNamespace(slate_size=K)
        self.seeds: list[int] = []

    def reset_tensors(self, seed: int | None = None) -> Request:
        self.seeds.append(seed)
        self._generator = torch.Generator().manual_seed(seed or 0)
        self._ended = torch.zeros(self.num_envs, dtype=torch.bool)
        self._length = torch.zeros(self.num_envs)
        self.request = make_request(self.num_envs, self._generator)
        return self.request

    def step_tensors(self, items_BK: torch.Tensor) -> SimpleNamespace:
        valid = ~self._ended
        per_place = TrueValue().score(self.request, items_BK.unsqueeze(1)).per_place_BGK[:, 0]
        signals = torch.stack([per_place, torch.zeros_like(per_place)], dim=-1) * valid[:, None, None]
        seen = torch.ones(items_BK.shape, dtype=torch.bool) & valid[:, None]
        left = (torch.rand(self.num_envs, generator=self._generator) < 0.2) & valid
        self._length = (self._length + 1) * valid
        truncated = (self._length >= 5) & ~left
        self._ended = left | truncated
        self.request = make_request(self.num_envs, self._generator)
        return SimpleNamespace(
            request=self.request, items_BK=items_BK, feedback=Feedback(signals, seen, left),
            rewards_BR=signals[..., 0].sum(dim=1, keepdim=True), reward_B=signals[..., 0].sum(dim=1),
            terminated_B=left, truncated_B=truncated, valid_B=valid,
        )  # fmt: skip

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict]:
        self.reset_tensors(seed)
        return np.zeros((self.num_envs, 1), np.float32), {}


gym.register("list_game/Game-v0", vector_entry_point=ListGameEnv)
ENV = "tests.helpers.list_game:list_game/Game-v0"
