"""Worlds by name, folder or object: what ``world=`` takes everywhere."""

from collections.abc import Sequence
from pathlib import Path

import torch

from recsim_env.known_worlds.short_video import short_video_world
from recsim_env.known_worlds.tiny import tiny_world
from recsim_env.plugins import nearest
from recsim_env.world import World

KNOWN_WORLDS = {"short_video": short_video_world, "tiny": tiny_world}
"""Builders by name."""


def resolve_world(
    world: str | Path | World, device: torch.device | str = "cpu", *, trusted: Sequence[str] = ()
) -> World:
    """A world from a name ("short_video", "tiny"), a folder, or a world itself.

    Args:
        world: name, folder or world.
        device: where its tensors go.
        trusted: modules or packages that a folder's models may come from, see ``World.load``.

    Raises:
        ValueError: there is neither a known world of that name nor a folder with a ``world.json``, or the folder cannot
            be loaded.
    """
    if isinstance(world, World):
        return world if torch.device(device).type == "cpu" else world.to(device)
    if isinstance(world, str) and world in KNOWN_WORLDS:
        return resolve_world(KNOWN_WORLDS[world](), device)
    if (Path(world) / "world.json").exists():
        return World.load(world, device, trusted=trusted)
    raise ValueError(
        f"no world {str(world)!r}{nearest(str(world), KNOWN_WORLDS)}: give one of the names {sorted(KNOWN_WORLDS)}, a "
        "folder with a world.json (made by python -m experiments.build_world), or a World"
    )
