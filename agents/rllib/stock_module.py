"""An RLModule for stock RLlib PPO on the observation forms ``ids`` and ``both``, which RLlib has no encoder for.

    config.rl_module(rl_module_spec=RLModuleSpec(module_class=SequenceModule))

Items are embedded, never users. The history is an average of item embeddings, one for mere presence and one weighted by
each signal of feedback; candidates keep their places, so that an action's position means something.

Shape legend: B rows, C candidates, H history, F signals, E item embedding, W width.
"""

from typing import Any

import gymnasium as gym
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import (
    TorchCategorical,
    TorchDiagGaussian,
    TorchMultiCategorical,
)
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn


class SequenceModule(TorchRLModule, ValueFunctionAPI):  # type: ignore[misc]  # ray is untyped
    """Policy and value function over item codes; ``model_config`` may set ``width`` and ``item_embedding``."""

    def setup(self) -> None:
        """Builds the network for the environment's spaces; called by RLlib's constructor.

        Raises:
            ValueError: an observation without item codes, or an action space that no form of ours has.
        """
        spaces = getattr(self.observation_space, "spaces", {})
        if not {"history", "candidates", "feedback"} <= set(spaces):
            raise ValueError(
                "SequenceModule reads the observation forms 'ids' and 'both' (env_config={'observation': 'ids'}), got "
                f"{self.observation_space}; for 'features' RLlib's default module will do"
            )
        width, embedding = self.model_config.get("width", 64), self.model_config.get("item_embedding", 16)
        num_items = int(spaces["candidates"].high.max()) + 1
        self.num_signals = spaces["feedback"].shape[0] // spaces["history"].shape[0]
        num_features = spaces["features"].shape[0] if "features" in spaces else 0
        num_inputs = num_features + embedding * (self.num_signals + 1 + spaces["candidates"].shape[0])
        num_outputs, self.action_dist_cls = _distribution(self.action_space)
        self.item_embedding = nn.Embedding(num_items, embedding)
        self.body = nn.Sequential(nn.Linear(num_inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.policy, self.value = nn.Linear(width, num_outputs), nn.Linear(width, 1)

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Values (B,); ``embeddings`` are those of ``_forward_train``."""
        if embeddings is None:  # RLlib asks for the whole train batch at once, and needs no gradient of it
            with torch.no_grad():
                embeddings = self._encode(batch[Columns.OBS])
        value_B1: Tensor = self.value(embeddings)
        return value_B1.squeeze(-1)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        return {Columns.ACTION_DIST_INPUTS: self.policy(self._encode(batch[Columns.OBS]))}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        embeddings_BW = self._encode(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: self.policy(embeddings_BW), Columns.EMBEDDINGS: embeddings_BW}

    def _encode(self, observation: dict[str, Tensor]) -> Tensor:
        history_BH = observation["history"].long()
        present_BH = (history_BH >= 0).float()
        feedback_BHF = observation["feedback"].float().view(*history_BH.shape, self.num_signals)
        weight_BHF = torch.cat([present_BH.unsqueeze(-1), feedback_BHF * present_BH.unsqueeze(-1)], dim=-1)
        weight_BHF = weight_BHF / present_BH.sum(dim=1).clamp(min=1.0)[:, None, None]
        past_BFE = weight_BHF.transpose(1, 2) @ self.item_embedding(history_BH.clamp(min=0))
        parts = [past_BFE.flatten(1), self.item_embedding(observation["candidates"].long()).flatten(1)]
        if "features" in observation:
            parts.append(observation["features"])
        body_BW: Tensor = self.body(torch.cat(parts, dim=1))
        return body_BW


def _distribution(space: gym.Space[Any]) -> tuple[int, Any]:
    """Numbers that a distribution over actions takes, and its class."""
    if isinstance(space, gym.spaces.MultiDiscrete):
        sizes = space.nvec.tolist()
        return sum(sizes), TorchMultiCategorical.get_partial_dist_cls(input_lens=sizes)
    if isinstance(space, gym.spaces.Discrete):
        return int(space.n), TorchCategorical
    if isinstance(space, gym.spaces.Box):
        return 2 * space.shape[0], TorchDiagGaussian
    raise ValueError(f"no distribution for actions of {space}")
