"""PPO for slates (arXiv 1707.06347): clipped policy gradient with returns over the session.

A list policy draws slates of different videos with exact probabilities; a value head on the same encoder says what the
rest of the session is worth, in units of ``reward_unit``.

Implemented: the clipped objective on the ratio of whole slates, generalised advantage estimation (1506.02438) that
bootstraps where a session is cut and not where the user left, advantages standardised over each minibatch, a value loss
and an entropy bonus. Changed: the entropy is that of the first place, since that of a list has no closed form. Left
out: value clipping, early stopping on the divergence.

Shape legend: B rows or sessions, T steps, C candidates, K places, W width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.decoders import DecoderName
from agents.list_policy import LOG_PROB, POSITIONS, ListPolicy, ListPolicyConfig
from agents.method import Columns, Rollout, Step, request_of, require_at_least, require_positive
from agents.networks import RequestShape
from recsim_env.slates import items_at
from recsim_env.types import Request

VALUE, ADVANTAGE, RETURN = "value_B", "advantage_B", "return_B"
"""Columns of a batch: the value head's opinion when played, and what came of it."""


@dataclass(frozen=True, kw_only=True)
class PPOConfig(ListPolicyConfig):
    """Settings of PPO, beside those of its network."""

    decoder: DecoderName = "one_softmax"
    """How lists are written."""
    num_epochs: int = 4
    """Passes over each batch."""
    gamma: float = 0.95
    """Discount of each later request."""
    gae_lambda: float = 0.95
    """0 trusts the value head after one request, 1 the whole rest of the rollout."""
    clip: float = 0.2
    """Probability ratio beyond which the policy is pushed no further."""
    value_weight: float = 0.5
    """Weight of the value loss."""
    entropy_weight: float = 0.003
    """Weight of the entropy bonus."""
    reward_unit: float = 100.0
    """Rewards are divided by it, so that values are near 1 (seconds of watch time for each request)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "clip", "reward_unit")
        require_at_least(self, 0, "gamma", "gae_lambda", "value_weight", "entropy_weight")
        if max(self.gamma, self.gae_lambda) > 1:
            raise ValueError(f"gamma and gae_lambda lie in 0..1, got {self.gamma} and {self.gae_lambda}")


class ActorCritic(ListPolicy):
    """A list policy with a value head."""

    def __init__(self, config: PPOConfig, shape: RequestShape, *, greedy: bool = False) -> None:
        super().__init__(config, shape, greedy=greedy)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + 1)
            self.value_head = nn.Sequential(
                nn.Linear(config.width, config.width), nn.ReLU(), nn.Linear(config.width, 1)
            )

    @torch.no_grad()
    def explore(self, request: Request, generator: torch.Generator) -> Step:
        """Draws one slate per request; leaves its positions, log-probabilities and the value of the request."""
        self.shape.check(request)
        encoding = self.encoder(request)
        positions_BGK, log_prob_BGK = self.decoder.sample(encoding, 1, self.shape.slate_size, generator)
        positions_BK = positions_BGK[:, 0]
        columns = {POSITIONS: positions_BK, LOG_PROB: log_prob_BGK[:, 0], VALUE: self.value_of(encoding.request_BW)}
        return Step(items_at(request.candidates_BC, positions_BK), columns)

    def value_of(self, request_BW: Tensor) -> Tensor:
        """Value (B,) of encoded requests, in reward units."""
        value_B1: Tensor = self.value_head(request_BW)
        return value_B1.squeeze(-1)


class PPO:
    """The method."""

    Config = PPOConfig
    data = "fresh"

    def __init__(self, config: PPOConfig) -> None:
        self.config = config

    def network(self, shape: RequestShape) -> ActorCritic:
        """The list policy with its value head."""
        return ActorCritic(self.config, shape)

    def label(self, network: ActorCritic, rollout: Rollout) -> Columns:
        """Advantages and returns of each step, (T, B)."""
        last_B = network.value_of(network.encoder(rollout.last).request_BW)
        advantage_TB = advantages(
            rollout.reward_TB / self.config.reward_unit,
            torch.cat([rollout.columns[VALUE], last_B.unsqueeze(0)]),
            rollout.terminated_TB,
            rollout.truncated_TB,
            self.config.gamma,
            self.config.gae_lambda,
        )
        returns_TB = advantage_TB + rollout.columns[VALUE]
        return {**rollout.columns, ADVANTAGE: advantage_TB, RETURN: returns_TB}

    def outputs(self, network: ActorCritic, batch: Columns) -> Columns:
        """Log-probabilities (B,) of the slates that were shown, values (B,), entropy (B,) of the first place."""
        encoding = network.encoder(request_of(batch))
        log_prob_B1K = network.decoder.log_prob(encoding, batch[POSITIONS].unsqueeze(1))
        log_p_BC = network.decoder.logits(encoding, network.decoder.begin(encoding))[:, 0].log_softmax(dim=1)
        return {
            LOG_PROB: log_prob_B1K.sum(dim=(1, 2)),
            VALUE: network.value_of(encoding.request_BW),
            "entropy_B": -(log_p_BC.exp() * log_p_BC).sum(dim=1),
        }

    def loss(self, outputs: Columns, batch: Columns) -> tuple[Tensor, Columns]:
        """Clipped policy gradient, value loss, entropy bonus."""
        config, advantage_B = self.config, batch[ADVANTAGE]
        advantage_B = (advantage_B - advantage_B.mean()) / (advantage_B.std(correction=0) + 1e-6)
        ratio_B = (outputs[LOG_PROB] - batch[LOG_PROB].sum(dim=1)).exp()
        clipped_B = ratio_B.clamp(1 - config.clip, 1 + config.clip)
        policy_loss = -(ratio_B * advantage_B).minimum(clipped_B * advantage_B).mean()
        value_loss = (outputs[VALUE] - batch[RETURN]).square().mean()
        entropy = outputs["entropy_B"].mean()
        loss = policy_loss + config.value_weight * value_loss - config.entropy_weight * entropy
        explained = 1 - (batch[RETURN] - outputs[VALUE]).var() / batch[RETURN].var().clamp(min=1e-6)
        return loss, {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy.detach(),
            "explained_variance": explained.detach(),
            "clipped_share": ((ratio_B - 1).abs() > config.clip).float().mean(),
        }


def advantages(
    reward_TB: Tensor,
    value_SB: Tensor,
    terminated_TB: Tensor,
    truncated_TB: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimates (T, B) (1506.02438, eq. 16).

    Args:
        reward_TB: float32 rewards.
        value_SB: float32 (T + 1, B) values of every request and of the one after the last step. The request after an
            end is the ended session's last one, so a session that was cut is worth what it promised.
        terminated_TB: bool; nothing comes after.
        truncated_TB: bool; something would have come, but the rollout goes on with another session.
        gamma: discount.
        gae_lambda: how far rewards are trusted over values.
    """
    goes_on_TB = (~(terminated_TB | truncated_TB)).to(reward_TB.dtype)
    delta_TB = reward_TB + gamma * value_SB[1:] * ~terminated_TB - value_SB[:-1]
    running_B = torch.zeros_like(reward_TB[0])
    found = []
    for step in reversed(range(len(reward_TB))):
        running_B = delta_TB[step] + gamma * gae_lambda * goes_on_TB[step] * running_B
        found.append(running_B)
    return torch.stack(found[::-1])
