"""TD3 on scores (arXiv 1802.09477): a deterministic score for every candidate, learned from a replay.

The actor scores the candidates in each other's presence; the K best are shown. Two critics value a request together
with all scores; the smaller value teaches.

Implemented: twin critics, target copies of all three networks, smoothing of the target's action, the actor and the
copies updated less often than the critics (the copies move at every step here, by a smaller share). Changed: an action
matters through the slate it makes, so critics see, beside each score, how far it lies above the best score that was
not shown, through a soft step; without it the value is flat almost everywhere.

Shape legend: B rows or sessions, C candidates, K places, W width.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.method import (
    NEXT,
    REWARD,
    TERMINATED,
    Columns,
    Optimiser,
    ReplayConfig,
    Step,
    detached,
    request_of,
    require_at_least,
    require_positive,
)
from agents.networks import CandidateEncoder, RequestShape
from recsim_env.slates import best_first
from recsim_env.types import Decision, Request

SCORES = "scores_BC"
"""Column of a batch: the scores that made the slate, noise included."""


@dataclass(frozen=True, kw_only=True)
class TD3Config(ReplayConfig):
    """Settings of TD3."""

    actor_lr: float = 3e-4
    """Learning rate of the actor; ``lr`` is the critics'."""
    width: int = 64
    """Width of the networks."""
    layers: int = 1
    """Mixing layers over the candidates."""
    heads: int = 4
    """Attention heads; must divide the width."""
    item_embedding: int = 16
    """Width of the item-id embedding; 0 for none."""
    gamma: float = 0.95
    """Discount of each later request."""
    tau: float = 0.005
    """Share by which target copies move at each gradient step."""
    actor_every: int = 2
    """Gradient steps of the critics for each one of the actor."""
    exploration_noise: float = 0.2
    """Standard deviation of the noise on scores while playing; scores lie in -1..1."""
    target_noise: float = 0.1
    """Standard deviation of the noise on the target's action."""
    target_noise_clip: float = 0.25
    """Largest noise on the target's action."""
    reward_unit: float = 100.0
    """Rewards are divided by it, so that values are near 1 (seconds of watch time for each request)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "actor_lr", "reward_unit", "tau")
        require_at_least(self, 0, "gamma", "exploration_noise", "target_noise", "target_noise_clip", "item_embedding")
        require_at_least(self, 1, "width", "heads", "actor_every")
        if max(self.gamma, self.tau) > 1:
            raise ValueError(f"gamma and tau lie in 0..1, got {self.gamma} and {self.tau}")
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, got {self.heads} and {self.width}")


class Actor(nn.Module):
    """Scores (B, C) in -1..1 of a request's candidates."""

    def __init__(self, config: TD3Config, shape: RequestShape) -> None:
        super().__init__()
        self.encoder = _encoder(config, shape)
        self.score = nn.Sequential(nn.Linear(config.width, config.width), nn.ReLU(), nn.Linear(config.width, 1))

    def forward(self, request: Request) -> Tensor:
        """Scores the candidates."""
        score_BC1: Tensor = self.score(self.encoder(request).candidates_BCW)
        return torch.tanh(score_BC1.squeeze(-1))


class Critic(nn.Module):
    """Value (B,) of a request and the scores that make its slate."""

    def __init__(self, config: TD3Config, shape: RequestShape) -> None:
        super().__init__()
        self.places = shape.slate_size
        self.encoder = _encoder(config, shape)
        self.shown = nn.Sequential(nn.Linear(config.width + 1, config.width), nn.ReLU())
        self.value = nn.Sequential(nn.Linear(2 * config.width, config.width), nn.ReLU(), nn.Linear(config.width, 1))

    def forward(self, request: Request, scores_BC: Tensor) -> Tensor:
        """Values B requests with their scores."""
        encoding = self.encoder(request)
        shown_BCW = self.shown(torch.cat([encoding.candidates_BCW, scores_BC.unsqueeze(-1)], dim=-1))
        weight_BC1 = _soft_shown(scores_BC, self.places).unsqueeze(-1)
        slate_BW = (shown_BCW * weight_BC1).sum(dim=1) / self.places
        value_B1: Tensor = self.value(torch.cat([encoding.request_BW, slate_BW], dim=-1))
        return value_B1.squeeze(-1)


class TD3Network(nn.Module):
    """Actor and twin critics with their target copies; as a policy, the actor's K best."""

    def __init__(self, config: TD3Config, shape: RequestShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        with torch.random.fork_rng(devices=[]):  # initial weights depend on the seed alone
            torch.manual_seed(config.seed)
            self.actor = Actor(config, shape)
            self.critics = nn.ModuleList(Critic(config, shape) for _ in range(2))
        self.target_actor, self.target_critics = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.target_actor.requires_grad_(False)
        self.target_critics.requires_grad_(False)

    @torch.no_grad()
    def forward(self, request: Request, generator: torch.Generator) -> Decision:
        """The candidates with the highest scores, best first; deterministic."""
        self.shape.check(request)
        return Decision(best_first(request, self.actor(request), self.shape.slate_size))

    @torch.no_grad()
    def explore(self, request: Request, generator: torch.Generator) -> Step:
        """The same with noise on the scores, which are left as a column."""
        scores_BC = self.actor(request)
        noise_BC = torch.randn(scores_BC.shape, generator=generator, device=generator.device).to(scores_BC.device)
        scores_BC = (scores_BC + self.config.exploration_noise * noise_BC).clamp(-1, 1)
        return Step(best_first(request, scores_BC, self.shape.slate_size), {SCORES: scores_BC})


class TD3:
    """The method."""

    Config = TD3Config
    data = "replay"
    targets = {"target_actor": "actor", "target_critics": "critics"}  # noqa: RUF012 - read, never changed

    def __init__(self, config: TD3Config) -> None:
        self.config = config

    def network(self, shape: RequestShape) -> TD3Network:
        """Actor, critics and copies."""
        return TD3Network(self.config, shape)

    def optimisers(self, network: TD3Network) -> dict[str, Optimiser]:
        """One for the critics, a slower one for the actor."""
        return {
            "critic": Optimiser(list(network.critics.parameters()), self.config.lr),
            "actor": Optimiser(list(network.actor.parameters()), self.config.actor_lr, every=self.config.actor_every),
        }

    def outputs(self, network: TD3Network, batch: Columns) -> Columns:
        """Both critics' values (B, 2), what they should be (B,), and the value (B,) of the actor's own scores."""
        request = request_of(batch)
        with torch.no_grad():
            target_B = self._target(network, batch)
        with detached(network.critics):
            actor_value_B = network.critics[0](request, network.actor(request))
        value_B2 = torch.stack([critic(request, batch[SCORES]) for critic in network.critics], dim=1)
        return {"value_B2": value_B2, "target_B": target_B, "actor_value_B": actor_value_B}

    def loss(self, outputs: Columns, batch: Columns) -> tuple[Tensor, Columns]:
        """The critics' squared errors, and the actor's value to be made large."""
        error_B2 = outputs["value_B2"] - outputs["target_B"].unsqueeze(1)
        critic_loss, actor_value = error_B2.square().mean(dim=0).sum(), outputs["actor_value_B"].mean()
        return critic_loss - actor_value, {
            "critic_loss": critic_loss.detach(),
            "actor_value": actor_value.detach(),
            "target": outputs["target_B"].mean(),
        }

    def _target(self, network: TD3Network, batch: Columns) -> Tensor:
        config, following = self.config, request_of(batch, NEXT)
        scores_BC = network.target_actor(following)
        noise_BC = config.target_noise * torch.randn_like(scores_BC)
        noise_BC = noise_BC.clamp(-config.target_noise_clip, config.target_noise_clip)
        scores_BC = (scores_BC + noise_BC).clamp(-1, 1)
        values = torch.stack([critic(following, scores_BC) for critic in network.target_critics])
        goes_on_B = 1 - batch[TERMINATED]
        return batch[REWARD] / config.reward_unit + config.gamma * goes_on_B * values.amin(dim=0)


def _encoder(config: TD3Config, shape: RequestShape) -> CandidateEncoder:
    return CandidateEncoder(
        shape, width=config.width, layers=config.layers, heads=config.heads, item_embedding=config.item_embedding
    )


def _soft_shown(scores_BC: Tensor, places: int) -> Tensor:
    """About 1 for scores among the K best, about 0 for the others, soft within a tenth around the boundary."""
    if places >= scores_BC.shape[1]:
        return torch.ones_like(scores_BC)
    best_BK = scores_BC.topk(places + 1, dim=1).values
    boundary_B1 = best_BK[:, -2:].mean(dim=1, keepdim=True)
    return torch.sigmoid((scores_BC - boundary_B1) / 0.1)
