"""The stored trace: what is played and learned has not changed unless somebody meant to change it."""

import json

import pytest

pytest.importorskip("ray")

from tests.helpers.trace import KEPT, trace


def test_rollouts_and_first_losses_are_those_of_the_stored_trace() -> None:
    kept, now = json.loads(KEPT.read_text()), trace()
    assert now.keys() == kept.keys()
    for name in now.keys() - {"goalrank_losses"}:
        assert now[name]["items_of_row_0"] == kept[name]["items_of_row_0"], name
        for was, found in zip(kept[name]["reward"], now[name]["reward"], strict=True):
            assert found == pytest.approx(was, abs=0.05), name  # another processor rounds differently
    assert now["goalrank_losses"] == pytest.approx(kept["goalrank_losses"], rel=1e-4)
