"""Learned policies as folders: they answer the same, refuse what is spoiled, and run no stranger's code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from agents.goalrank import GoalRank, GoalRankConfig
from agents.list_policy import ListPolicy
from agents.networks import RequestShape
from agents.policies import load_policy, policy_card, save_policy
from tests.helpers.list_game import K, N, make_request

SMALL = GoalRankConfig(width=16, item_embedding=4, heads=2)
SHAPE = RequestShape.of(make_request(1, torch.Generator()), N, K)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def saved(tmp_path: Path, policy: ListPolicy | None = None) -> Path:
    return save_policy(tmp_path / "policy", GoalRank(SMALL), policy or ListPolicy(SMALL, SHAPE), SHAPE, {"requests": 7})


def test_saved_policy_answers_the_same(tmp_path: Path) -> None:
    policy, request = ListPolicy(SMALL, SHAPE), make_request(30, seeded())
    loaded = load_policy(saved(tmp_path, policy), greedy=False)
    assert loaded.config == policy.config
    assert loaded.shape == policy.shape
    assert torch.equal(loaded(request, seeded(4)).items_BK, policy(request, seeded(4)).items_BK)
    assert policy_card(tmp_path / "policy")["training"] == {"requests": 7}
    saved(tmp_path)  # replaces the older one
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def _rewrite(folder: Path, **changes: object) -> None:
    card = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(card | changes))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "policy.json").unlink(), "is not a saved policy"),
        (lambda f: (f / "policy.json").write_text("{"), "is not a saved policy"),
        (lambda f: (f / "policy.json").write_text("[]"), "format None"),
        (lambda f: (f / "policy.json").write_text('{"format": 2}'), r"lacks \['config', 'method', 'shape'\]"),
        (lambda f: _rewrite(f, format=1), "format 1, this version reads 2; train it again"),
        (lambda f: _rewrite(f, method="agents.goalrank:NoRank"), "has no 'NoRank'"),
        (lambda f: _rewrite(f, config={"breadth": 3}), "has no setting 'breadth'"),
        (lambda f: _rewrite(f, config={"width": 32, "heads": 2}), "damaged or of another version"),
        (lambda f: (f / "policy.safetensors").unlink(), "damaged or of another version"),
        (lambda f: (f / "policy.safetensors").write_bytes(b"short"), "damaged or of another version"),
    ],
)
def test_spoiled_policies_are_refused(tmp_path: Path, spoil: object, message: str) -> None:
    folder = saved(tmp_path)
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        load_policy(folder)


def test_a_run_folder_is_told_from_its_policy(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"its policy is in the folder policy/"):
        load_policy(tmp_path)


def test_code_of_strangers_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('this ran')")
    monkeypatch.syspath_prepend(tmp_path)
    _rewrite(folder, method="evil:Method")
    with pytest.raises(ValueError, match=r"of another project, whose code would run .*trusted=\('evil',\)"):
        load_policy(folder)
    with pytest.raises(SystemExit, match="this ran"):
        load_policy(folder, trusted=("evil",))


def test_runs_without_ray(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    program = (
        "import sys; sys.modules['ray'] = None\n"
        "import torch\n"
        "from agents.policies import load_policy\n"
        "from tests.helpers.list_game import make_request\n"
        "g = torch.Generator().manual_seed(0)\n"
        f"print(load_policy({str(folder)!r})(make_request(3, g), g).items_BK.tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    generator = seeded()
    expected = load_policy(folder)(make_request(3, generator), generator).items_BK.tolist()
    assert json.loads(done.stdout) == expected


def test_weights_that_diverged_are_neither_saved_nor_loaded(tmp_path: Path) -> None:
    policy = ListPolicy(SMALL, SHAPE)
    with torch.no_grad():
        next(policy.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="training diverged: 1 of"):
        saved(tmp_path, policy)
    assert not (tmp_path / "policy").exists()


class Tied(nn.Module):
    """Two names for one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2)
        self.other = self.one


def test_weights_that_parts_of_a_network_share_are_saved(tmp_path: Path) -> None:
    save_policy(tmp_path / "policy", GoalRank(GoalRankConfig()), Tied(), SHAPE)
    kept = load_file(tmp_path / "policy" / "policy.safetensors")
    assert torch.equal(kept["one.weight"], kept["other.weight"])
