"""RLlib's Learner for any method: its loss, its optimisers, its target copies."""

from typing import Any

import torch
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from torch import Tensor

from agents.method import follow, optimisers, targets


class MethodLearner(TorchLearner):  # type: ignore[misc]  # ray is untyped
    """Fits the module's network by ``method.loss``."""

    _gradient_steps = 0

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Registers the method's optimisers, each with its own parameters and learning rate.

        An RLlib schedule given as ``lr`` is followed by those that have the method's own learning rate.
        """
        module = self._module[module_id].unwrapped()
        self._every: dict[str, int] = {}
        for name, optimiser in optimisers(module.method, module.network).items():
            self._every[f"{module_id}_{name}"] = optimiser.every
            follows = isinstance(config.lr, list) and optimiser.lr == module.method.config.lr
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=torch.optim.Adam(optimiser.parameters, lr=optimiser.lr),
                params=optimiser.parameters,
                lr_or_lr_schedule=config.lr if follows else optimiser.lr,
            )

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state, and whose turn it is among optimisers that do not step every time."""
        return {**super().get_state(*args, **kwargs), "gradient_steps": self._gradient_steps}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over a state."""
        super().set_state(state)
        self._gradient_steps = state.get("gradient_steps", self._gradient_steps)

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Tensor], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        """The method's loss; logs it and what the method says beside it."""
        loss: Tensor
        loss, told = self._module[module_id].unwrapped().method.loss(fwd_out, batch)
        self.metrics.log_dict({"loss": loss.detach(), **told}, key=module_id, window=1)
        return loss

    def apply_gradients(self, gradients_dict: dict[Any, Tensor]) -> None:
        """Steps the optimisers whose turn it is, then moves the target copies.

        An optimiser that waits gets no gradients: Adam's momentum would move its parameters even on zeros.
        """
        self._gradient_steps += 1
        waiting = {name for name, every in self._every.items() if self._gradient_steps % every}
        held = {id(p) for name in waiting for p in self._named_optimizers[name].param_groups[0]["params"]}
        for parameter_ref, parameter in self._params.items():
            if id(parameter) in held:
                gradients_dict.pop(parameter_ref, None)
                parameter.grad = None
        super().apply_gradients(gradients_dict)
        for module_id in self._module.keys():  # noqa: SIM118 - a MultiRLModule is no dict
            module = self._module[module_id].unwrapped()
            if pairs := targets(module.method):
                follow(module.network, pairs, module.method.config.tau)
