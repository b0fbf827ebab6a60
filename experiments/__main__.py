"""Lists the verbs: ``python -m experiments``."""

import ast
from pathlib import Path


def verbs() -> dict[str, str]:
    """Name of each verb to the first line of its docstring."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.stem not in ("__main__", "command") and "run_command(" in text:
            found[path.stem] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return found


if __name__ == "__main__":
    print("python -m experiments.<verb> --help says how each is used\n")
    for name, line in verbs().items():
        print(f"  {name:14}{line}")
