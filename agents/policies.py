"""Learned policies as folders: saved by any method, loaded without Ray.

A folder holds ``policy.json`` (the method by its class path, its settings, the sizes of its requests, how it was
trained) and ``policy.safetensors``. Nothing is unpickled, and only this project's own methods are imported unless the
caller names other modules.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from agents.method import Method, make_method, method_path
from agents.networks import RequestShape
from recsim_env.files import read_json, whole_folder, write_json
from recsim_env.plugins import OWN_PACKAGES, check_allowed

FORMAT = 2
"""Version of the folder; raised when an older reader would misread it. 1 knew GoalRank only."""


def save_policy(
    folder: str | Path,
    method: Method,
    network: nn.Module,
    shape: RequestShape,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a policy; the folder appears whole or not at all.

    Args:
        folder: where to.
        method: what it was trained by.
        network: what it learned.
        shape: sizes of its requests.
        training: how it was trained, as JSON values; ``requests`` counts the world requests consumed.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    # Clones, because safetensors refuses weights that two parts of a network share.
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in network.state_dict().items()}
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise ValueError(
            f"training diverged: {len(broken)} of {len(tensors)} tensors hold NaN or infinity, {broken[0]} first; "
            "train anew with a lower lr or grad_clip"
        )
    card = {
        "format": FORMAT,
        "method": method_path(method),
        "config": dataclasses.asdict(method.config),
        "shape": dataclasses.asdict(shape),
        "training": dict(training or {}),
    }
    with whole_folder(folder, ("policy.json", "policy.safetensors")) as aside:
        save_file(tensors, aside / "policy.safetensors")
        write_json(aside / "policy.json", card)
    return Path(folder)


def load_policy(
    folder: str | Path,
    *,
    greedy: bool = True,
    device: torch.device | str = "cpu",
    trusted: Sequence[str] = (),
) -> Any:
    """Reads a saved policy, ready to rank: the method's network, a callable ``(request, generator) -> Decision``.

    Args:
        folder: what ``save_policy`` wrote, or a training run wrote under ``policy/``.
        greedy: sets the network's own ``greedy`` where it has one.
        device: where to.
        trusted: modules, beside this project's, whose methods the folder may name; importing a module runs its code.

    Raises:
        ValueError: the folder is missing, damaged or of another format, or its method is of a module not trusted.
    """
    folder = Path(folder)
    card = policy_card(folder)
    try:
        check_allowed(card["method"], (*OWN_PACKAGES, *trusted))
    except ValueError as error:
        module = str(card["method"]).partition(":")[0].partition(".")[0]
        raise ValueError(
            f"{folder} names a method of another project, whose code would run ({error}); if you trust it, give "
            f"trusted=({module!r},), or --trust {module}"
        ) from error
    try:
        network: Any = make_method(card["method"], card["config"]).network(RequestShape(**card["shape"]))
        network.load_state_dict(load_file(folder / "policy.safetensors"))
        if not all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values()):
            raise RuntimeError("a weight is NaN or infinite")
    except (KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        raise ValueError(
            f"the policy in {folder} is damaged or of another version ({error}); export it again"
        ) from error
    if hasattr(network, "greedy"):
        network.greedy = greedy
    return network.to(device).eval()


def policy_card(folder: str | Path) -> dict[str, Any]:
    """What a policy folder says of itself; imports nothing.

    Raises:
        ValueError: no policy there, or one of another format.
    """
    folder = Path(folder)
    try:
        card = read_json(folder / "policy.json")
    except (OSError, ValueError) as error:
        inside = " (its policy is in the folder policy/)" if (folder / "policy" / "policy.json").exists() else ""
        raise ValueError(
            f"{folder} is not a saved policy: policy.json cannot be read ({error}){inside}; give the folder that "
            "save_policy or a training run wrote"
        ) from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else None
        raise ValueError(f"{folder} holds a policy of format {found!r}, this version reads {FORMAT}; train it again")
    missing = {"method", "config", "shape"} - card.keys()
    if missing:
        raise ValueError(f"{folder / 'policy.json'} lacks {sorted(missing)}; export the policy again")
    return card
