"""The project keeps its own promises: layers, wheel, README, and no leak of the world's truth."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from agents.method import make_method
from agents.method_checker import check_method
from experiments.__main__ import verbs
from tests.helpers.rllib_loop import learn

ROOT = Path(__file__).parent.parent
LAYERS = ["recsim_env", "reward_models", "agents", "experiments"]
HEAVY = {"ray", "stable_baselines3"}


def imports(path: Path) -> set[str]:
    """Full names of every module a file imports, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_down(layer: str) -> None:
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    for path in sources(layer):
        tops = {name.split(".")[0] for name in imports(path)}
        assert not tops & above, f"{path} imports {tops & above}"
        if layer in ("recsim_env", "reward_models"):
            assert not tops & HEAVY, f"{path} imports {tops & HEAVY}"


def test_no_files_import_each_other_in_a_circle() -> None:
    """Counts imports inside functions, too: a late import is a circle that hides."""
    files = {module_of(path): path for layer in LAYERS for path in sources(layer)}
    needs = {name: {other for other in imported_files(path, files) if other != name} for name, path in files.items()}
    while free := [name for name, others in needs.items() if not others & needs.keys()]:
        for name in free:
            del needs[name]
    assert not needs, f"these import each other, or what does: {sorted(needs)}"


def imported_files(path: Path, files: dict[str, Path]) -> set[str]:
    """Modules of this project that a file imports, ``from package import module`` included."""
    found = imports(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & files.keys()
            found = found - {node.module} | submodules if len(submodules) == len(node.names) else found | submodules
    return found & files.keys()


def test_importing_the_environment_does_not_import_ray() -> None:
    code = "import sys, recsim_env; sys.exit('ray' in sys.modules or 'stable_baselines3' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_only_evaluation_and_oracles_ask_for_the_truth() -> None:
    """``Simulator.expected``, ``stay_through`` and a world's ``outcomes`` are the doors to true probabilities."""
    allowed = {f"recsim_env/{name}.py" for name in ("evaluation", "session_metrics", "simulator", "checkers")}
    allowed.add("recsim_env/known_worlds/logs.py")  # draws the log
    for layer in LAYERS:
        for path in sources(layer):
            name = str(path.relative_to(ROOT))
            if name in allowed or name.startswith("recsim_env/known_worlds") or layer == "reward_models":
                continue
            calls = {
                node.func.attr
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            }
            assert not calls & {"expected", "outcomes", "stay_through"}, f"{name} asks for the truth"


def test_the_wheel_holds_the_two_library_packages(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"recsim_env", "reward_models"}
    assert {"recsim_env/py.typed", "reward_models/py.typed"} <= set(names)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


VERBS = [f"experiments.{name}" for name in verbs()]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    command = [sys.executable, "-m", verb, "--help"]
    found = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.startswith("usage:")


def test_verbs_are_listed_with_a_line_each() -> None:
    found = subprocess.run([sys.executable, "-m", "experiments"], check=True, cwd=ROOT, capture_output=True, text=True)
    listed = dict(line.split(maxsplit=1) for line in found.stdout.splitlines() if line.startswith("  "))
    modules = {path.stem for path in (ROOT / "experiments").glob("*.py") if "run_command(main," in path.read_text()}
    assert set(listed) == modules
    assert {"train", "compare", "evaluate", "demo"} <= modules


EXAMPLES = [module_of(path) for layer in LAYERS for path in sources(layer) if ">>> " in path.read_text()]


@pytest.mark.parametrize("module", EXAMPLES)
def test_docstring_examples_run(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried > 0
    assert failed == 0


def blocks_of(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [(path.name, number) for path in PAGES for number in range(len(blocks_of(path)))]


@pytest.mark.parametrize(("page", "number"), BLOCKS)
def test_code_in_readme_and_docs_runs(page: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (path,) = (path for path in PAGES if path.name == page)
    block = blocks_of(path)[number]
    exec(compile(block, f"{page} block {number}", "exec"), {"__name__": "readme"})


def test_a_strangers_method_of_the_readme_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block is saved as the file it names; RLlib finds the method by its path, trains it and it gets better."""
    (block,) = (block for block in blocks_of(ROOT / "README.md") if block.startswith("# my_ranker.py"))
    assert len(block.splitlines()) <= 40
    (tmp_path / "my_ranker.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    check_method("my_ranker:Reinforce")
    network = learn(
        make_method("my_ranker:Reinforce", {"lr": 0.03}), "recsim_env:recsim_env/Session-v0", 30, world="tiny"
    )
    assert float(network.weight_F[0].detach()) > 0.3  # watch time is what is paid for


def test_every_folder_of_the_readmes_map_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    tree = text[text.index("recsim_env/            shared") : text.index("## How far to trust it")]
    folder, missing = "", []
    for line in tree.splitlines():
        found = re.findall(r"([\w.]+(?:\.py|/))", line)
        if line and not line.startswith(" ") and found:
            folder, found = found[0], found[1:]
        inside = found[0] if found and found[0].endswith("/") else ""
        places = [(ROOT / folder / name, ROOT / folder / inside / name) for name in found]
        missing += [str(near) for near, within in places if not (near.exists() or within.exists())]
    assert not missing
