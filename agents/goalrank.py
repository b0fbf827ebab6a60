"""GoalRank: a generator-only list ranker trained towards a group-relative reference (arXiv 2509.22046).

One network writes the slate; no evaluator is asked when it is used. In training, a group of lists is drawn
for each request, a list evaluator values them, and the network is fitted by cross-entropy to the softmax of
the values' z-scores in the group.

Implemented as the paper has it:

- the list policy, in both forms: autoregressive with chosen candidates masked, and one softmax over the
  candidates with its exact Plackett-Luce probability (``decoder``; NAR4Rec's matching beside them);
- the printed loss, ``- sum of reference * log-probability``, and greedy decoding in use;
- groups whose values spread by no more than ``min_spread`` are left out. The paper gives no formula for its
  threshold; here it is a standard deviation in the evaluator's units (seconds);
- groups of the policy's own lists with those of auxiliary policies (``auxiliary_share``): sorts, MMR and DPP. The
  paper keeps them for good; here they may end after ``auxiliary_requests``, a warm start, which is the default
  wherever they are used: kept for good they anchor the policy to themselves. Its light neural rankers are left out
  of them;
- one dial for the size of the network, a thousand to 100 million parameters (``SIZES``);
- noise on the evaluator's values, the paper's robustness test (``value_noise``). The paper mixes in noise of
  unit variance and does not give the values' own; here, where they are seconds, the noise varies as much as the
  values of all lists of a step do, which is as if these were standardised first.

Changed or left out, and why:

- the authors' released code weights by the probability, not by its logarithm; that loss is not used, for at
  equal budget it stayed below a pointwise sort in our trials;
- no supervised term beside the group term: the released code has one, the paper does not define it;
- requests come from a running simulator, where what was shown before decides what is asked next, not from a
  fixed set of logged requests;
- the evaluator looks at whole lists; the released one adds up the scores of single items;
- ``objective="grpo"`` trains the same network by the clipped policy gradient on the same groups: the
  comparison that the paper lacks.

Shape legend: B requests, C candidates, K places, G lists in a group.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agents.decoders import DECODERS, DecoderName, make_decoder
from agents.networks import MIXINGS, CandidateEncoder, Encoding, Mixing, RequestShape
from recsim_env.files import whole_folder, write_json
from recsim_env.slates import first_showing, items_at, positions_of
from recsim_env.types import Decision, Request

OBJECTIVES = ("group_relative", "grpo")
_WHOLE_NUMBERS = (
    "group_size", "width", "layers", "heads", "item_embedding", "initial_ranks", "minibatch_size", "num_epochs", "seed",
)  # fmt: skip

FORMAT = 2
"""Version of the saved form; raised when an older reader would misread it."""


@dataclass(frozen=True, kw_only=True)
class GoalRankConfig:
    """Settings of the policy and of its training."""

    objective: Literal["group_relative", "grpo"] = "group_relative"
    """"group_relative" is GoalRank's cross-entropy; "grpo" the clipped policy gradient on the same groups."""
    group_size: int = 16
    """G: lists drawn for each request."""
    temperature: float = 1.0
    """Softmax temperature of the reference; below 1 it leans more on the group's best lists."""
    auxiliary_share: float = 0.0
    """Share of a group's lists that come from auxiliary heuristics instead of the policy, below 1."""
    auxiliary_requests: int | None = 5_000
    """Requests after which groups hold the policy's own lists alone; ``None`` keeps the auxiliary ones for good. Of
    30,720 requests in all, 5,000 cost 1 % of the evaluator's value in the world of training, 15,000 cost 5 %."""
    min_spread: float = 0.1
    """Groups whose values have no larger standard deviation are left out (units of the evaluator: seconds).
    With 0, z-scores blow up differences that mean nothing, and "grpo" settles early on poor lists."""
    clip: float = 0.2
    """Probability ratio beyond which "grpo" stops pushing."""
    value_noise: float = 0.0
    """Share of Gaussian noise in the values, 0 (none) to 1 (nothing else), for robustness studies. It varies as the
    values do over all requests of a step, so it is several times what tells the lists of one request apart."""
    decoder: DecoderName = "autoregressive"
    """How lists are written."""
    mixing: Mixing = "attention"
    """How candidates see each other: see ``agents.networks.CandidateEncoder``."""
    width: int = 64
    """Width of the network."""
    layers: int = 1
    """Mixing layers over the candidates."""
    heads: int = 4
    """Attention heads; must divide the width."""
    item_embedding: int = 16
    """Width of the item-id embedding; 0 for none."""
    initial_ranks: int = 0
    """Ranks in the retriever's order with a learned embedding each, as PRM has; 0 for none."""
    lr: float = 2e-3
    """Learning rate of Adam."""
    grad_clip: float = 5.0
    """Largest norm of the gradient."""
    minibatch_size: int = 64
    """Requests for each gradient step of one learner."""
    num_epochs: int = 2
    """Passes over each batch of requests."""
    seed: int = 0
    """Seed of the initial weights, the users met and the lists drawn."""

    def __post_init__(self) -> None:
        _one_of("objective", self.objective, OBJECTIVES)
        _one_of("decoder", self.decoder, DECODERS)
        _one_of("mixing", self.mixing, MIXINGS)
        for name in _WHOLE_NUMBERS:
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.objective == "grpo" and self.auxiliary_share:
            raise ValueError(
                f"grpo compares with the policy that drew the lists, which auxiliary ones have none of; got "
                f"auxiliary_share={self.auxiliary_share}: set it to 0 or use objective='group_relative'"
            )
        if self.group_size < 2:
            raise ValueError(f"a group needs at least 2 lists to compare, got group_size={self.group_size}")
        for name in ("temperature", "clip", "lr", "grad_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("width", "heads", "minibatch_size", "num_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("layers", "item_embedding", "initial_ranks", "min_spread"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.auxiliary_requests is not None and self.auxiliary_requests < 0:
            raise ValueError(f"auxiliary_requests must be None or at least 0, got {self.auxiliary_requests}")
        if not 0 <= self.auxiliary_share < 1:
            raise ValueError(f"auxiliary_share is a share from 0 to below 1, got {self.auxiliary_share}")
        if self.num_auxiliary >= self.group_size:
            raise ValueError(
                f"auxiliary_share={self.auxiliary_share} of group_size={self.group_size} leaves no list of the "
                "policy's own"
            )
        if not 0 <= self.value_noise <= 1:
            raise ValueError(f"value_noise is a share from 0 to 1, got {self.value_noise}")
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, got {self.heads} and {self.width}")

    @property
    def num_auxiliary(self) -> int:
        """Auxiliary lists of a group, while there are any."""
        return round(self.auxiliary_share * self.group_size)


SIZES: dict[str, dict[str, Any]] = {
    "1k": {"width": 4, "layers": 1, "heads": 2, "item_embedding": 0},
    "10k": {"width": 18, "layers": 1, "heads": 2, "item_embedding": 4},
    "100k": {"width": 64, "layers": 1, "heads": 4, "item_embedding": 16},
    "1m": {"width": 192, "layers": 2, "heads": 4, "item_embedding": 32},
    "10m": {"width": 480, "layers": 4, "heads": 8, "item_embedding": 64},
    "100m": {"width": 1536, "layers": 4, "heads": 16, "item_embedding": 128},
}
"""Networks by their number of parameters, the item-id embedding not counted."""


def sized(config: GoalRankConfig, size: str) -> GoalRankConfig:
    """The same settings for a network of another size; the learning rate falls as the width grows.

    Raises:
        ValueError: a size that is not one of ``SIZES``.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {tuple(SIZES)}, got {size!r}")
    wider = SIZES[size]["width"] / config.width
    return dataclasses.replace(config, **SIZES[size], lr=config.lr / wider)


class GoalRankPolicy(nn.Module):
    """The list policy; a callable ``(request, generator) -> Decision`` that needs nothing but torch.

    Args:
        config: settings.
        shape: sizes of the requests it will meet, ``RequestShape.of(request, num_items, slate_size)``.
        greedy: answer the list that takes the likeliest candidate at every place, instead of drawing one.
    """

    def __init__(self, config: GoalRankConfig, shape: RequestShape, *, greedy: bool = False) -> None:
        super().__init__()
        self.config, self.shape, self.greedy = config, shape, greedy
        # A list of one place has nothing to look back at: both decoders say the same.
        decoder = config.decoder if shape.slate_size > 1 else "one_softmax"
        with torch.random.fork_rng(devices=[]):  # initial weights depend on the seed alone
            torch.manual_seed(config.seed)
            self.encoder = CandidateEncoder(
                shape,
                width=config.width,
                layers=config.layers,
                mixing=config.mixing,
                item_embedding=config.item_embedding,
                heads=config.heads,
                initial_ranks=config.initial_ranks,
            )
            self.decoder = make_decoder(decoder, config.width, shape.slate_size)

    @torch.no_grad()
    def forward(self, request: Request, generator: torch.Generator) -> Decision:
        """Answers B requests with one slate each; draws come from ``generator`` only."""
        self.shape.check(request)
        encoding = self.encoder(request)
        if self.greedy:
            positions_BK = self.decoder.greedy(encoding, self.shape.slate_size)
            return Decision(items_at(request.candidates_BC, positions_BK))
        positions_BGK, log_prob_BGK = self.decoder.sample(encoding, 1, self.shape.slate_size, generator)
        return Decision(items_at(request.candidates_BC, positions_BGK[:, 0]), log_prob_BGK[:, 0])

    @torch.no_grad()
    def sample_group(self, request: Request, num_lists: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws G lists per request: positions (B, G, K) and log-probabilities (B, G) of whole lists."""
        self.shape.check(request)
        encoding: Encoding = self.encoder(request)
        positions_BGK, log_prob_BGK = self.decoder.sample(encoding, num_lists, self.shape.slate_size, generator)
        return positions_BGK, log_prob_BGK.sum(dim=-1)

    def group_log_prob(self, request: Request, positions_BGK: Tensor) -> Tensor:
        """Log-probability (B, G) of whole lists given as positions; carries gradients."""
        return self.decoder.log_prob(self.encoder(request), positions_BGK).sum(dim=-1)

    def log_prob(self, request: Request, items_BK: Tensor) -> Tensor:
        """Log-probability (B, K) of each place of a slate of item codes, given the places before it.

        Raises:
            ValueError: an item is not among its request's candidates, or stands in its slate twice.
        """
        positions_B1K = positions_of(items_BK, request.candidates_BC).unsqueeze(1)
        if not bool(first_showing(items_BK).all()):
            raise ValueError("log_prob: some slates hold an item twice; no list policy writes such slates")
        return self.decoder.log_prob(self.encoder(request), positions_B1K).squeeze(1)

    def save(self, folder: str | Path) -> Path:
        """Writes ``policy.json`` and ``policy.safetensors``; the folder appears whole or not at all.

        Raises:
            ValueError: a weight is NaN or infinite.
        """
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
        if broken:
            raise ValueError(
                f"training diverged: {len(broken)} of {len(tensors)} tensors hold NaN or infinity, {broken[0]} first; "
                "train anew with a lower lr or grad_clip"
            )
        card = {
            "format": FORMAT,
            "kind": "goalrank",
            "config": dataclasses.asdict(self.config),
            "shape": dataclasses.asdict(self.shape),
        }
        with whole_folder(folder, ("policy.json", "policy.safetensors")) as aside:
            save_file(tensors, aside / "policy.safetensors")
            write_json(aside / "policy.json", card)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path, *, greedy: bool = True, device: torch.device | str = "cpu") -> "GoalRankPolicy":
        """Reads a saved policy, ready to rank.

        Raises:
            ValueError: the folder is missing, damaged, of another format version or of another policy.
        """
        folder = Path(folder)
        try:
            card = json.loads((folder / "policy.json").read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{folder} is not a saved policy: policy.json cannot be read ({error}); give the folder that "
                "GoalRankPolicy.save wrote"
            ) from error
        found = (card.get("kind"), card.get("format")) if isinstance(card, dict) else (None, None)
        if found != ("goalrank", FORMAT):
            raise ValueError(
                f"{folder} holds a policy of kind {found[0]!r}, format {found[1]!r}; this class reads kind "
                f"'goalrank', format {FORMAT}"
            )
        try:
            policy = cls(GoalRankConfig(**card["config"]), RequestShape(**card["shape"]), greedy=greedy)
            policy.load_state_dict(load_file(folder / "policy.safetensors"))
            if not all(bool(tensor.isfinite().all()) for tensor in policy.state_dict().values()):
                raise RuntimeError("a weight is NaN or infinite")
        except (KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
            raise ValueError(
                f"the policy in {folder} is damaged or of another version ({error}); export it again"
            ) from error
        return policy.to(device).eval()


def _one_of(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {given!r}")
