"""Folders say what they are for, and nothing is lost when they are asked for something else."""

from pathlib import Path

import pytest

from recsim_env.files import claim, whole_folder

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


OURS = ("card.json", "part/weights.bin")


def write_ours(folder: Path | str, content: str = "new") -> None:
    with whole_folder(folder, OURS) as aside:
        (aside / "part").mkdir()
        (aside / "card.json").write_text(content)
        (aside / "part" / "weights.bin").write_text(content)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_ours_is_replaced_and_an_empty_one_is_filled(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    write_ours(tmp_path / "it", "old")
    write_ours(tmp_path / "it")
    assert contents(tmp_path) == {"it/card.json": "new", "it/part/weights.bin": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["it"], "nothing is left aside"


@pytest.mark.parametrize("name", ["notes.txt", "part/notes.txt", "weights.bin", ".hidden", "old/card.json"])
def test_a_folder_with_a_file_of_somebody_elses_is_refused(tmp_path: Path, name: str) -> None:
    write_ours(tmp_path / "it", "old")
    (tmp_path / "it" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "it" / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="holds what was not written here"):
        write_ours(tmp_path / "it")
    assert contents(tmp_path) == before


def test_a_home_folder_is_refused_even_if_its_files_have_our_names(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "part").mkdir(parents=True)
    (home / "part" / "weights.bin").write_text("mine")  # no card: nobody says that it is ours
    with pytest.raises(ValueError, match=r"holds what was not written here \(part, part/weights.bin\)"):
        write_ours(home)
    assert contents(home) == {"part/weights.bin": "mine"}


@pytest.mark.parametrize("name", ["", ".", "..", "../here"])
def test_the_current_folder_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(ValueError, match="is the current folder or one around it"):
        write_ours(name)
    (here / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is the current folder or one around it"):
        write_ours(name)
    assert contents(tmp_path) == {"here/mine.txt": "mine"}


def test_links_and_files_are_not_replaced(tmp_path: Path) -> None:
    write_ours(tmp_path / "it", "old")
    (tmp_path / "link").symlink_to(tmp_path / "it")
    (tmp_path / "file").write_text("mine")
    for name in ("link", "file"):
        with pytest.raises(ValueError, match=rf"{name} is a {name}, not a folder"):
            write_ours(tmp_path / name)
    (tmp_path / "far.bin").write_text("far")
    (tmp_path / "it" / "part" / "weights.bin").unlink()
    (tmp_path / "it" / "part" / "weights.bin").symlink_to(tmp_path / "far.bin")
    with pytest.raises(ValueError, match=r"not written here \(part/weights.bin\)"):
        write_ours(tmp_path / "it")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far.bin").read_text() == "far"


def test_a_file_that_appears_while_we_write_is_kept(tmp_path: Path) -> None:
    write_ours(tmp_path / "it", "old")
    writing = whole_folder(tmp_path / "it", OURS)
    aside = writing.__enter__()
    (aside / "card.json").write_text("new")
    (tmp_path / "it" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        writing.__exit__(None, None, None)
    assert contents(tmp_path) == {"it/card.json": "old", "it/part/weights.bin": "old", "it/notes.txt": "mine"}
