"""How real a world is: its users against held-out rows, under many requests, and before slates of any quality.

``logged`` (with ``groups`` and ``variance``) compares with a log, ``drift`` and ``depth`` let users act, ``verdicts``
says what the figures carry, ``card`` makes the whole, which ``build`` stores as ``World.fidelity``.
"""

from reward_models.fidelity.card import fidelity_card
from reward_models.fidelity.depth import play_depth
from reward_models.fidelity.drift import probe_drift, retriever_order, rollout_drift
from reward_models.fidelity.logged import logged_fidelity
from reward_models.fidelity.verdicts import verdicts

__all__ = [
    "fidelity_card",
    "logged_fidelity",
    "play_depth",
    "probe_drift",
    "retriever_order",
    "rollout_drift",
    "verdicts",
]
