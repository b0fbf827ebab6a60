"""The operator's recommender: what it knows and fits on its own log, the same in every world of a build.

The world's users are the other party; nothing here ever asks them. A folder holds ``recommender.json`` (classes and
settings) and ``models.safetensors`` (their tensors).
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recsim_env.files import whole_folder
from recsim_env.saving import check_device, models_digest, moved, read_card, read_models, sizes_of, write_models
from recsim_env.types import CandidateSource, ListEvaluator, Predictor

FORMAT = 4
"""Version of the folder layout; raised when an older reader would misread it."""

FILES = ("recommender.json", "models.safetensors")
"""What a recommender's folder holds; ``Recommender.save`` replaces no other."""

PARTS = ("predictor", "candidates", "evaluator")


@dataclass(frozen=True, kw_only=True)
class Recommender:
    """Predictor, candidate source and list evaluator."""

    predictor: Predictor
    """Its own expected signals (pXTR)."""
    candidates: CandidateSource
    """Chooses the candidate set of each request."""
    evaluator: ListEvaluator | None = None
    """What whole lists are worth, if one was fitted."""

    def replace(self, **changes: Any) -> "Recommender":
        """A copy with some parts changed, for instance another predictor."""
        return dataclasses.replace(self, **changes)

    def to(self, device: torch.device | str) -> "Recommender":
        """The same recommender on another device.

        Raises:
            ValueError: there is no such device.
        """
        check_device(device)
        return Recommender(**{name: moved(name, model, device) for name, model in self._models().items()})

    @property
    def digest(self) -> str:
        """Digest of classes, settings and tensors.

        Raises:
            ValueError: a part cannot be saved, so there is nothing to tell it by.
        """
        return models_digest(self._models())

    def save(self, folder: str | Path) -> Path:
        """Writes the folder; it appears whole or not at all, replacing an older recommender.

        Raises:
            ValueError: a part cannot be saved, or the folder holds anything else than a recommender.
        """
        with whole_folder(folder, FILES) as aside:
            self.write(aside)
        return Path(folder)

    def write(self, folder: Path) -> None:
        """Writes the files of ``save`` into a folder that is being written."""
        cards = write_models(self._models(), folder / "models.safetensors")
        card = {
            "format": FORMAT,
            "digest": self.digest,
            "models": cards,
            "bytes": sizes_of(folder, ["models.safetensors"]),
        }
        (folder / "recommender.json").write_text(json.dumps(card, indent=1) + "\n")

    @classmethod
    def load(
        cls, folder: str | Path, device: torch.device | str = "cpu", *, trusted: Sequence[str] = ()
    ) -> "Recommender":
        """Reads a recommender's folder.

        Args:
            folder: what ``save`` wrote.
            device: where the tensors go.
            trusted: modules or packages that classes may come from, beside this project's own.

        Raises:
            ValueError: the folder is missing, incomplete, damaged or of another format version, a class is of a module
                that is not trusted, or there is no such device.
        """
        check_device(device)
        card = read_card(Path(folder) / "recommender.json", "recommender", FORMAT)
        return cls(**read_models(card["models"], Path(folder) / "models.safetensors", device, trusted))

    def _models(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in PARTS}
