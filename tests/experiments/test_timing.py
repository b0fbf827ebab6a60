"""What benchmarks time: a clock that is known, and sessions whose requests are read or left alone."""

import pytest
import torch

from experiments.benchmarks.timing import Player, microseconds
from recsim_env.known_worlds import short_video_world
from recsim_env.recommender_memory import RecommenderMemory
from recsim_env.simulator import Simulator


def test_the_best_window_counts_and_the_first_call_does_not() -> None:
    now, costs = [0.0], iter([9.0, 3.0, 0.5, 0.5, 7.0])

    def answer() -> int:
        now[0] += next(costs)
        return 10

    assert microseconds(answer, 3.0, windows=3, clock=lambda: now[0]) == pytest.approx(0.5 / 10 * 1e6)


@pytest.mark.parametrize("reads", [True, False])
def test_a_player_reads_everything_or_nothing(reads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for name in ("retrieve", "predict"):
        own = getattr(RecommenderMemory, name)

        def noted(memory: RecommenderMemory, *given: object, name: str = name, own: object = own) -> object:
            asked.append(name)
            return own(memory, *given)  # type: ignore[operator]

        monkeypatch.setattr(RecommenderMemory, name, noted)
    Player(Simulator(short_video_world(num_users=20, num_items=60), num_candidates=10), 4, reads=reads)
    assert asked == ["retrieve", "predict"] * 3 * reads


def test_a_session_that_ended_answers_nothing_in_the_next_call() -> None:
    simulator = Simulator(short_video_world(num_users=20, num_items=60), num_candidates=10, max_requests=2)
    player, answered, open_B = Player(simulator, 50, played=0), [], torch.ones(50, dtype=torch.bool)
    for _ in range(5):
        answered.append(player())
        assert answered[-1] == int(open_B.sum())
        open_B = ~player.over_B
    assert answered[0] == 50
    assert answered[2] < 50, "no session has three requests"
