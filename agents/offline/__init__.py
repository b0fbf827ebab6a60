"""The reranking papers' offline protocol, whole: data, controls, retriever, metrics and methods."""
