"""Dotted paths: what may be imported, and that nothing else is."""

import sys
from pathlib import Path

import pytest

from recsim_env.plugins import OWN_PACKAGES, load_object


@pytest.fixture
def loud_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a file when it is imported; its path."""
    (tmp_path / "loud_module.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nvalue = 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "loud_module", raising=False)
    return tmp_path


def test_a_module_that_is_not_allowed_is_not_even_imported(loud_module: Path) -> None:
    for path in ("loud_module:value", "loud_module:Nothing.at.all"):
        with pytest.raises(ValueError, match="is in none of recsim_env, reward_models, agents"):
            load_object(path, allowed=OWN_PACKAGES)
    assert not (loud_module / "ran").exists()
    assert load_object("loud_module:value", allowed=(*OWN_PACKAGES, "loud_module")) == 7
    assert (loud_module / "ran").exists()


def test_own_packages_are_allowed_and_typed_paths_are_not_asked_about(loud_module: Path) -> None:
    assert load_object("recsim_env.types:WATCH_TIME", allowed=OWN_PACKAGES) == "watch_time"
    assert load_object("loud_module:value") == 7
    with pytest.raises(ValueError, match="need a path of the form 'module:Name', got 'loud_module'"):
        load_object("loud_module", allowed=OWN_PACKAGES)
