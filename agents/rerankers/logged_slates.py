"""List generators fitted to logged slates, without an evaluator.

A log of slates says what was shown together and how long each video was watched. Every method here is a list policy
(``agents.goalrank.ListPolicy``) with the network of its paper and a loss of its own on such slates; it needs the
logged candidate lists too. As everywhere, seconds watched stand in for clicks.

- **PRM** (arXiv 1904.06813): self-attention over candidates and their initial ranks; cross-entropy of one softmax to
  the videos' shares of the seconds. **SetRank** (1912.05891) and **DLCM** (1804.05936) are the same with their own
  networks. The softmax runs over the slate only, for what was not shown has no label. Left out: PRM's pre-trained
  personal vectors.
- **Seq2Slate** (1810.02019): a pointer network; at every place the cross-entropy to the shares of the videos that are
  left, after places that the network drew itself, weighted by 1 / log2(1 + place). Left out: its REINFORCE form, which
  is what ``objective="grpo"`` does with an evaluator.
- **NAR4Rec** (2402.06871): candidates matched with places, all places at once. A good slate is made likelier, a bad one
  less likely (unlikelihood, ``- log(1 - p)``). Good means watched longer than the predictor had expected: a threshold
  on the seconds themselves would tell patient users from others. Its contrastive decoding is ``ContrastiveDecoding``.

Shape legend: B requests, C candidates, K places of a logged slate, W width.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from agents.decoders import MatchingDecoder
from agents.goalrank import GoalRankConfig
from agents.list_policy import ListPolicy
from agents.networks import Encoding, RequestShape
from agents.offline.training import TrainingConfig
from recsim_env.data.requests import LoggedBatch, LoggedRequests
from recsim_env.slates import are_candidates, items_at, positions_of
from recsim_env.types import Decision, Request
from reward_models.trainer import train

Method = Literal["prm", "setrank", "dlcm", "seq2slate", "nar4rec"]
METHODS: tuple[Method, ...] = get_args(Method)


class Slates(NamedTuple):
    """Logged slates as positions in the candidate lists."""

    positions_BK: Tensor
    """int64."""
    seconds_BK: Tensor
    """Seconds watched."""
    expected_BK: Tensor
    """What the predictor had expected, seconds."""


Loss = Callable[[ListPolicy, Encoding, Slates, torch.Generator], Tensor]


def shares_loss(policy: ListPolicy, encoding: Encoding, slates: Slates, generator: torch.Generator) -> Tensor:
    """PRM: cross-entropy of one softmax over the slate to the shares of the seconds; a scalar."""
    logit_B1C = policy.decoder.logits(encoding, policy.decoder.begin(encoding))
    log_p_BK = logit_B1C[:, 0].gather(1, slates.positions_BK).log_softmax(dim=1)
    return -(_shares(slates.seconds_BK) * log_p_BK).sum(dim=1).mean()


def pointer_loss(policy: ListPolicy, encoding: Encoding, slates: Slates, generator: torch.Generator) -> Tensor:
    """Seq2Slate: cross-entropy at every place to the shares of what is left of the slate; a scalar."""
    decoder = policy.decoder
    summary = decoder.begin(encoding)
    taken_BK = torch.zeros_like(slates.positions_BK, dtype=torch.bool)
    total = torch.zeros(())
    for place in range(slates.positions_BK.shape[1]):
        logit_BK = decoder.logits(encoding, summary)[:, 0].gather(1, slates.positions_BK)
        log_p_BK = logit_BK.masked_fill(taken_BK, -torch.inf).log_softmax(dim=1)
        share_BK = _shares(slates.seconds_BK.masked_fill(taken_BK, 0.0))
        discount = 1 / torch.log2(torch.tensor(place + 2.0))
        total = total - discount * (share_BK * log_p_BK.masked_fill(taken_BK, 0.0)).sum(dim=1).mean()
        drawn_B1 = torch.multinomial(log_p_BK.detach().exp(), 1, generator=generator)
        taken_BK = taken_BK.scatter(1, drawn_B1, True)
        summary = decoder.extend(encoding, summary, slates.positions_BK.gather(1, drawn_B1))
    return total


def unlikelihood_loss(policy: ListPolicy, encoding: Encoding, slates: Slates, generator: torch.Generator) -> Tensor:
    """NAR4Rec: likelihood of good slates, unlikelihood of bad ones, place by place; a scalar."""
    matching_BKC, _ = policy.decoder.begin(encoding)
    log_p_BKC = matching_BKC[:, : slates.positions_BK.shape[1]].log_softmax(dim=2)
    log_p_BK = log_p_BKC.gather(2, slates.positions_BK.unsqueeze(2)).squeeze(2)
    good_B1 = slates.seconds_BK.sum(dim=1, keepdim=True) > slates.expected_BK.sum(dim=1, keepdim=True)
    unlikely_BK = -torch.log1p(-log_p_BK.exp().clamp(max=1 - 1e-6))
    return torch.where(good_B1, -log_p_BK, unlikely_BK).mean()


_SIZES = ("width", "layers", "heads", "item_embedding")

# No item embeddings: with them held-out slates are likelier, but lists made of another retriever's candidates are worth
# less to the evaluator (a tenth, for PRM), for they learn what the log's own retrieval offered.
_NETWORKS: dict[Method, tuple[dict[str, Any], Loss]] = {
    "prm": ({"decoder": "one_softmax", "initial_ranks": 50, "item_embedding": 0}, shares_loss),
    "setrank": ({"decoder": "one_softmax", "mixing": "induced", "item_embedding": 0}, shares_loss),
    "dlcm": ({"decoder": "one_softmax", "mixing": "recurrent", "item_embedding": 0}, shares_loss),
    "seq2slate": ({"decoder": "autoregressive", "item_embedding": 0}, pointer_loss),
    "nar4rec": ({"decoder": "matching", "item_embedding": 0}, unlikelihood_loss),
}


def settings_of(method: Method, **network: Any) -> GoalRankConfig:
    """Settings of a method's list policy; sizes of the network can be replaced.

    Raises:
        ValueError: an unknown method, or a setting that makes it another one.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    foreign = sorted(set(network) - set(_SIZES))
    if foreign:
        raise ValueError(f"only {_SIZES} can be replaced, got {foreign}")
    return GoalRankConfig(**{**_NETWORKS[method][0], **network})


def fit_to_slates(
    requests: LoggedRequests,
    method: Method,
    slate_size: int,
    *,
    among: Tensor | None = None,
    network: dict[str, Any] | None = None,
    config: TrainingConfig | None = None,
    run_dir: Path | None = None,
) -> ListPolicy:
    """Fits one method and returns its policy, ready to rank.

    Every tenth user is held out to stop early. Slates with videos from outside the candidates, as uniform exposure has
    them, and slates whose watch time was not recorded are not used.

    Args:
        requests: logged requests with candidate lists, annotated with the predictor and retriever that the policy will
            meet.
        method: one of ``METHODS``.
        slate_size: K of the lists it will write, at least 2 and no less than the log's.
        among: int64 indices of the requests to use; by default all but those of uniform exposure.
        network: sizes of the network: "width", "layers", "heads", "item_embedding".
        config: how long and how fast.
        run_dir: checkpoints and TensorBoard events; a fit that was stopped goes on from there.

    Raises:
        ValueError: an unknown method, a log without candidate lists or predictor, slates longer than ``slate_size``, or
            no slate to fit to.
    """
    config = config or TrainingConfig(max_epochs=8, patience=1, learning_rate=2e-3, learning_rate_decay=0.75)
    settings = dataclasses.replace(settings_of(method, **(network or {})), seed=config.seed)
    loss = _NETWORKS[method][1]
    if requests.candidate_item_Q is None or requests.predictor is None:
        raise ValueError(
            "needs logged candidate lists and a predictor's opinion of them; this log holds "
            f"{'no' if requests.candidate_item_Q is None else 'its'} candidate lists and the requests have "
            f"{'no' if requests.predictor is None else 'a'} predictor"
        )
    usable = _usable(requests, (~requests.uniform_L).nonzero().squeeze(1) if among is None else among)
    held_out = requests.user_L[usable] % 10 == 0
    fitted, validation = usable[~held_out], usable[held_out]
    if not len(fitted) or not len(validation):
        raise ValueError(
            "need slates made of their candidates and with recorded watch time, of users to fit to and of users to "
            f"hold out; got {len(fitted)} and {len(validation)}"
        )
    longest = int(requests.slate_size_L[usable].max())
    if slate_size < max(longest, 2):
        raise ValueError(f"slate_size must be at least 2 and hold the log's slates of {longest}, got {slate_size}")
    shape = RequestShape.of(requests.batch(fitted[:1]).request, len(requests.item_features_ND), slate_size)
    policy = ListPolicy(settings, shape, greedy=True)

    def batch_loss(batch: LoggedBatch, generator: torch.Generator) -> Tensor:
        positions_BK = positions_of(batch.items_BK, batch.request.candidates_BC)
        expected_BK = batch.request.predicted_BCF[..., 0].gather(1, positions_BK)
        slates = Slates(positions_BK, batch.feedback.signals_BKF[..., 0], expected_BK)
        return loss(policy, policy.encoder(batch.request), slates, generator)

    def batches(generator: torch.Generator) -> Iterator[LoggedBatch]:
        return requests.batches(config.batch_size, generator, fitted)

    @torch.no_grad()
    def validate() -> float:
        generator = torch.Generator().manual_seed(config.seed)
        losses = [(len(b.items_BK), float(batch_loss(b, generator))) for b in requests.batches(1024, None, validation)]
        return sum(size * value for size, value in losses) / len(validation)

    train(
        policy,
        batches=batches,
        loss=batch_loss,
        validate=validate,
        config=config.trainer(),
        seed=config.seed,
        run_dir=run_dir,
        label=method,
        identity={
            "method": method,
            "settings": dataclasses.asdict(settings),
            "shape": dataclasses.asdict(shape),
            "slates": [len(fitted), len(validation), int(requests.slate_event_P.sum())],
        },
    )
    return policy.eval()


class ContrastiveDecoding:
    """NAR4Rec's decoding: a place takes what is likely there and unlike what stands before it.

    Place by place, among the candidates most likely there, the one with the largest ``(1 - penalty) * probability
    - penalty * (cosine to the most similar earlier one)``, on the encoder's own encodings.

    Args:
        policy: a list policy with the "matching" decoder.
        penalty: weight of likeness, 0 (none) to 1 (nothing else).
        among: candidates that a place chooses from, at least 1.

    Raises:
        ValueError: another decoder, or a penalty or number out of range.
    """

    def __init__(self, policy: ListPolicy, penalty: float, among: int = 8):
        if not isinstance(policy.decoder, MatchingDecoder):
            raise ValueError(
                f"contrastive decoding needs the 'matching' decoder and two places or more, got "
                f"{policy.config.decoder!r} and {policy.shape.slate_size}"
            )
        if not 0 <= penalty <= 1 or among < 1:
            raise ValueError(f"need a penalty from 0 to 1 and among of at least 1, got {penalty} and {among}")
        self.policy, self.penalty, self.among = policy, penalty, among

    @torch.no_grad()
    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        """One slate for each request."""
        self.policy.shape.check(request)
        encoding = self.policy.encoder(request)
        matching_BKC, _ = self.policy.decoder.begin(encoding)
        unit_BCW = functional.normalize(encoding.candidates_BCW, dim=2)
        likeness_BCC = unit_BCW @ unit_BCW.transpose(1, 2)
        nearest_BC = torch.zeros_like(matching_BKC[:, 0])
        taken_BC = torch.zeros_like(nearest_BC, dtype=torch.bool)
        chosen = []
        for place in range(self.policy.shape.slate_size):
            p_BC = matching_BKC[:, place].softmax(dim=1).masked_fill(taken_BC, -1.0)
            score_BC = (1 - self.penalty) * p_BC - self.penalty * nearest_BC
            likely_BX = p_BC.topk(min(self.among, p_BC.shape[1] - place), dim=1).indices
            best_B1 = likely_BX.gather(1, score_BC.gather(1, likely_BX).argmax(dim=1, keepdim=True))
            like_BC = likeness_BCC.gather(1, best_B1.unsqueeze(2).expand(-1, -1, p_BC.shape[1]))[:, 0]
            nearest_BC = like_BC if place == 0 else torch.maximum(nearest_BC, like_BC)
            taken_BC = taken_BC.scatter(1, best_B1, True)
            chosen.append(best_B1)
        return Decision(items_at(request.candidates_BC, torch.cat(chosen, dim=1)))


def _shares(seconds_BK: Tensor) -> Tensor:
    """Each place's share of a slate's seconds; 0 where nothing was watched."""
    return seconds_BK / seconds_BK.sum(dim=1, keepdim=True).clamp(min=1e-6)


def _usable(requests: LoggedRequests, among: Tensor) -> Tensor:
    """The requests whose slate was chosen from their candidates and watched for a recorded time."""
    bare = requests.annotated(None)
    found = [among[:0]]
    for index_B in bare.batch_indices(1024, None, among):
        batch = bare.batch(index_B)
        own_BK = are_candidates(batch.items_BK, batch.request.candidates_BC)
        found.append(index_B[(own_BK & batch.known_BKF[..., 0]).all(dim=1)])
    return torch.cat(found).sort().values
