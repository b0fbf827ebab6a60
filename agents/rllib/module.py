"""Any method's network as an RLModule: RLlib's form around the plain policy."""

from typing import Any

import torch
from ray.rllib.core.columns import Columns as RLlibColumns
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from agents.method import make_method, request_of
from agents.networks import RequestShape
from recsim_env.slates import positions_of


class MethodModule(TorchRLModule):  # type: ignore[misc]  # ray is untyped
    """Holds ``network``, built by the method that ``model_config`` names under ``method``, ``config`` and ``shape``."""

    def setup(self) -> None:
        """Builds the network; called by RLlib's constructor."""
        self.method = make_method(self.model_config["method"], self.model_config["config"])
        self.network = self.method.network(RequestShape(**self.model_config["shape"]))

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Slates as they are used, as positions in the candidate set."""
        request = request_of(batch)
        generator = torch.Generator(device=request.user_B.device).manual_seed(0)
        items_BK = self.network(request, generator).items_BK
        return {RLlibColumns.ACTIONS: positions_of(items_BK, request.candidates_BC)}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """All that the loss needs of the network.

        Distributed training finds only those parameters that an output of this method depends on.
        """
        return self.method.outputs(self.network, batch)
