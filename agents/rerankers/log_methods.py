"""The rerankers that learn from logged slates, by name, with the settings that suit such slates."""

from typing import Any, Literal, get_args

from agents.rerankers.nar4rec import Nar4Rec, Nar4RecConfig
from agents.rerankers.scorers import SCORERS, Scorer, scorer_config
from agents.rerankers.seq2slate import Seq2Slate, Seq2SlateConfig

LogMethodName = Literal["prm", "setrank", "dlcm", "seq2slate", "nar4rec"]
LOG_METHODS: tuple[LogMethodName, ...] = get_args(LogMethodName)

# No item embeddings: with them held-out slates are likelier, but lists made of another retriever's candidates are worth
# less to the evaluator (a tenth, for PRM), for they learn what the log's own retrieval offered.
_SETTINGS: dict[str, Any] = {"item_embedding": 0, "lr": 2e-3, "minibatch_size": 128}


def log_method(name: LogMethodName, **settings: Any) -> Scorer | Seq2Slate | Nar4Rec:
    """A method by name, ready for ``agents.rerankers.logged_slates.fit_to_slates``.

    Args:
        name: one of ``LOG_METHODS``.
        settings: fields of the method's config to be set otherwise.

    Raises:
        ValueError: an unknown method, or a setting that would make it another one.
    """
    settings = {**_SETTINGS, **settings}
    if name in SCORERS:
        return Scorer(scorer_config(name, **settings))
    if name == "seq2slate":
        return Seq2Slate(Seq2SlateConfig(**settings))
    if name == "nar4rec":
        return Nar4Rec(Nar4RecConfig(**settings))
    raise ValueError(f"method must be one of {LOG_METHODS}, got {name!r}")
