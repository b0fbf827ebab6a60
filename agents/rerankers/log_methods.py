"""The rerankers that learn from logged slates, by name, with the settings that suit such slates."""

from typing import Any, Literal, get_args

from agents.method import Method, make_method

LogMethodName = Literal["prm", "setrank", "dlcm", "seq2slate", "nar4rec"]
LOG_METHODS: tuple[LogMethodName, ...] = get_args(LogMethodName)

_CLASSES: dict[LogMethodName, tuple[str, dict[str, Any]]] = {
    "prm": ("agents.rerankers.scorers:Scorer", {"network": "prm"}),
    "setrank": ("agents.rerankers.scorers:Scorer", {"network": "setrank"}),
    "dlcm": ("agents.rerankers.scorers:Scorer", {"network": "dlcm"}),
    "seq2slate": ("agents.rerankers.seq2slate:Seq2Slate", {}),
    "nar4rec": ("agents.rerankers.nar4rec:Nar4Rec", {}),
}

# No item embeddings: with them held-out slates are likelier, but lists made of another retriever's candidates are worth
# less to the evaluator (a tenth, for PRM), for they learn what the log's own retrieval offered.
_SETTINGS: dict[str, Any] = {"item_embedding": 0, "lr": 2e-3, "minibatch_size": 128}


def log_method(name: LogMethodName, **settings: Any) -> Method:
    """A method by name, ready for ``agents.rerankers.logged_slates.fit_to_slates``.

    Args:
        name: one of ``LOG_METHODS``.
        settings: fields of the method's config to be set otherwise.

    Raises:
        ValueError: an unknown method or setting, or one that would make it another method.
    """
    if name not in LOG_METHODS:
        raise ValueError(f"method must be one of {LOG_METHODS}, got {name!r}")
    path, own = _CLASSES[name]
    if "network" in own and "network" in settings:
        raise ValueError(f"{name} names its network; got network={settings['network']!r} beside it")
    return make_method(path, {**_SETTINGS, **own, **settings})
