"""The settings of a table: which there are, and that sessions cut at another pause have the length that was counted."""

from pathlib import Path

import pytest

from agents.baselines import RandomSlate
from experiments.tables.settings import LogSource, recut, settings_of
from recsim_env.assumptions import DeclaredLeave, SessionCut, hazard_per_place
from recsim_env.evaluation import EvaluationSettings, evaluate
from reward_models.plan import BuildConfig
from tests.helpers.planted import planted_world


def test_a_real_log_is_played_with_sessions_of_all_three_cuts_by_the_policies_of_one() -> None:
    found = settings_of(LogSource(data=Path("/somewhere/a_log")))
    assert {setting.name: setting.session_cut for setting in found} == {
        "a_log-declared": None,
        "a_log-none": None,
        "a_log-declared-sessions-5min": "5min",
        "a_log-declared-sessions-2h": "2h",
    }
    assert [setting.trained_in.name for setting in found if setting.session_cut] == ["a_log-declared"] * 2


@pytest.mark.parametrize(("cut", "requests"), [("5min", 4.8), ("30min", 13.6), ("2h", 29.0)])
def test_a_recut_world_has_sessions_of_the_length_that_was_counted(cut: SessionCut, requests: float) -> None:
    leave = DeclaredLeave(per_place=hazard_per_place("30min"), per_second=0.0, per_dull_place=0.0)
    world = recut(planted_world(seconds=4.0, num_items=400).replace(leave=leave), "30min", cut)
    settings = EvaluationSettings(
        true_values=False, roulette_below=0.0, num_candidates=20, slate_size=6, max_requests=50
    )
    result = evaluate({"p": RandomSlate(6)}, {"w": world}, num_sessions=4, seed=0, settings=settings, progress=False)
    until_50 = requests * (1 - (1 - 1 / requests) ** 50)
    assert result.row("p", "w", "session_length").mean == pytest.approx(until_50, rel=1e-5)
    assert world.declared["leave"] == {"session_cut": cut, **world.leave.config()}  # type: ignore[attr-defined]


def test_a_cut_that_was_not_counted_is_refused_before_anything_is_built() -> None:
    with pytest.raises(ValueError, match="sessions are counted with cuts of 5min, 30min, 2h, got '1h'"):
        BuildConfig(session_cut="1h")  # type: ignore[arg-type]
