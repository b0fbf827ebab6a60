"""Rerankers: list generators, the choice among their lists, and the search for generators that complete a set."""
