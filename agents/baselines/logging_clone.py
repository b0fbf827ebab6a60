"""Logging-policy clone: a small pointwise softmax over candidates, fitted to the slates a log shows.

It is behaviour cloning (``agents.rl.behaviour_cloning``) without RLlib: the likelihood is Plackett-Luce, the item at
each place against the candidates still left, and each candidate is scored alone. Where the log kept its candidate
lists, these are the alternatives. Where it did not, they are drawn from the whole catalogue, so that the clone then
explains retrieval and ranking of the production system at once; against what our own retriever finds best for a user,
it would learn to put that last.
"""

from torch import Tensor

from agents.list_policy import ListPolicy
from agents.rerankers.logged_slates import fit_to_slates
from agents.rl.behaviour_cloning import BehaviourCloning, BehaviourCloningConfig
from recsim_env.data.requests import LoggedRequests

CLONE = BehaviourCloningConfig(decoder="one_softmax", layers=0, width=32, item_embedding=0, lr=0.01, minibatch_size=128)
"""Settings of the clone: no layer in which candidates meet, and no item embedding, which would learn what is popular in
the log instead of how it ranks."""


def fit_logging_clone(
    requests: LoggedRequests,
    slate_size: int,
    *,
    among: Tensor | None = None,
    config: BehaviourCloningConfig = CLONE,
    max_epochs: int = 8,
) -> ListPolicy:
    """Fits a clone by maximum likelihood; it draws slates, or answers the likeliest one once it is set ``greedy``.

    Args:
        requests: logged requests, annotated with the predictor and retriever that the clone will meet.
        slate_size: K of the slates it will answer.
        among: int64 indices of the requests to fit to; by default all but those of uniform exposure. Slates with videos
            that were no candidates do not count.
        config: settings.
        max_epochs: passes over the slates, at most; every tenth user is held out to stop early.

    Raises:
        ValueError: see ``agents.rerankers.logged_slates.fit_to_slates``.
    """
    clone: ListPolicy = fit_to_slates(
        requests, BehaviourCloning(config), slate_size, among=among, max_epochs=max_epochs
    )
    clone.greedy = False
    return clone
