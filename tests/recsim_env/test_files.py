"""Folders say what they are for, and nothing is lost when they are asked for something else."""

from pathlib import Path

import pytest

from recsim_env.files import claim

CARD = {"method": "one", "settings": {"lr": 0.1, "sizes": [1, 2]}}


def test_a_folder_is_new_once_and_the_same_ever_after(tmp_path: Path) -> None:
    assert claim(tmp_path / "run", CARD)
    assert not claim(tmp_path / "run", {"settings": {"sizes": (1, 2), "lr": 0.1}, "method": "one"})


def test_other_work_is_named_setting_by_setting(tmp_path: Path) -> None:
    claim(tmp_path / "run", CARD)
    other = {"method": "one", "settings": {"lr": 0.2, "sizes": [1, 2], "seed": 3}}
    with pytest.raises(ValueError, match=r"\(settings.lr was 0.1, now 0.2, settings.seed was None, now 3\)"):
        claim(tmp_path / "run", other)
    assert not claim(tmp_path / "run", CARD)


def test_folders_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match=r"holds files but no card.json"):
        claim(tmp_path, CARD)
    with pytest.raises(ValueError, match=r"mine.txt is a file"):
        claim(tmp_path / "mine.txt", CARD)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
