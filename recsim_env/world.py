"""A world: catalogue, users, the models that make them act, and the recommender that serves them.

A folder holds ``world.json`` (what it is, where it came from, what was declared), ``tables.safetensors``
(catalogue, users, histories), ``models.safetensors`` (tensors of the users' models) and ``fidelity.json``. The
recommender lies beside the worlds of a build, once for all of them, or else in the world's own folder.

Shape legend: N items, U users, D features, P users to draw from.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsim_env import new_users
from recsim_env import recommender as recommenders
from recsim_env.card_lines import card_text
from recsim_env.data.features import UserEncoder
from recsim_env.data.histories import Histories
from recsim_env.data.recoding import recoded
from recsim_env.data.requests import LoggedRequests, logged_requests
from recsim_env.data.schema import LoggedDataset
from recsim_env.digests import digest_json, digest_tensors
from recsim_env.files import whole_folder
from recsim_env.recommender import Recommender
from recsim_env.saving import (
    check_classes,
    check_device,
    class_path,
    models_digest,
    moved,
    read_card,
    read_models,
    read_tensors,
    sizes_of,
    write_models,
    write_tensors,
)
from recsim_env.types import (
    WATCH_TIME,
    CandidateSource,
    ContextSource,
    LeaveModel,
    ListEffect,
    ListEvaluator,
    Predictor,
    ResponseModel,
)

FORMAT = 7
"""Version of the folder layout; raised when an older reader would misread it."""

FILES = (
    *("world.json", "tables.safetensors", "models.safetensors", "fidelity.json"),
    *(f"recommender/{name}" for name in recommenders.FILES),
)
"""What a world folder holds; ``World.save`` replaces no other."""

_MODELS = ("response", "leave", "list_effect", "contexts")


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The videos of a world."""

    ids: np.ndarray
    """Item ids as in the source, (N,)."""
    duration_N: Tensor
    """float32 s, never NaN."""
    features_ND: Tensor
    """float32, what the recommender knows of each item; the users' models keep what they need in tensors of their
    own."""
    feature_names: tuple[str, ...]
    tag_N: Tensor
    """int64 main tag, -1 where none."""

    def __len__(self) -> int:
        return len(self.duration_N)


@dataclass(frozen=True, kw_only=True)
class Users:
    """The users of a log: everyone, whichever worlds they act in."""

    ids: np.ndarray
    """User ids as in the source, (U,)."""
    features_UD: Tensor
    """float32, what a recommender knows of each user."""
    feature_names: tuple[str, ...]
    histories: Histories
    """What each user did before the simulated days."""
    encoder: UserEncoder | None = None
    """How the features come from a log's table of users; ``None`` where they do not, and no others can enter."""

    def __len__(self) -> int:
        return len(self.features_UD)


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything a simulator needs; build one by hand or with ``experiments.build_world``."""

    name: str
    signals: tuple[str, ...]
    catalogue: Catalogue
    users: Users
    population_P: Tensor
    """int64 codes of the users that sessions are drawn from."""
    response: ResponseModel
    leave: LeaveModel
    contexts: ContextSource
    recommender: Recommender
    """The operator's side: predictor, candidate source, list evaluator."""
    list_effect: ListEffect | None = None
    declared: dict[str, Any] = field(default_factory=dict)
    """Parameters that no log taught."""
    provenance: dict[str, Any] = field(default_factory=dict)
    fidelity: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    """Environment settings this world is meant for (``envs.EnvConfig``); keywords override them."""

    def __post_init__(self) -> None:
        if not self.signals or self.signals[0] != WATCH_TIME:
            raise ValueError(f"the first signal of a world must be {WATCH_TIME!r}, got {self.signals}")
        if tuple(self.response.signals) != tuple(self.signals):
            raise ValueError(
                f"world {self.name!r} declares the signals {self.signals}, its response model "
                f"{tuple(self.response.signals)}; they must be the same"
            )
        if not len(self.population_P):
            raise ValueError(f"world {self.name!r} has no users to draw sessions from")
        if int(self.population_P.max()) >= len(self.users) or int(self.population_P.min()) < 0:
            raise ValueError(
                f"world {self.name!r}: population codes must lie in 0..{len(self.users) - 1}, got "
                f"{int(self.population_P.min())}..{int(self.population_P.max())}"
            )

    def __repr__(self) -> str:
        """The card in a few lines: what the world is, what was declared, how real it is."""
        facts = {
            "log": self.provenance.get("log") or self.provenance.get("kind") or "not told",
            "signals": ", ".join(self.signals),
            "users": f"{len(self.population_P):,} of {len(self.users):,}",
            "videos": f"{len(self.catalogue):,}",
            "response": class_path(self.response),
        }
        return card_text(self.name, facts, self.leave, self.declared, self.fidelity)

    @property
    def predictor(self) -> Predictor:
        """The recommender's predictor."""
        return self.recommender.predictor

    @property
    def candidates(self) -> CandidateSource:
        """The recommender's candidate source."""
        return self.recommender.candidates

    @property
    def evaluator(self) -> ListEvaluator | None:
        """The recommender's own list evaluator, if one was fitted."""
        return self.recommender.evaluator

    def replace(self, **changes: Any) -> "World":
        """A copy with some fields changed, for instance another response model.

        ``predictor``, ``candidates`` and ``evaluator`` change the recommender.
        """
        parts = {name: changes.pop(name) for name in recommenders.PARTS if name in changes}
        if parts:
            changes["recommender"] = changes.get("recommender", self.recommender).replace(**parts)
        return dataclasses.replace(self, **changes)

    def users_from(self, log: LoggedDataset, before: int | str) -> "World":
        """This world with the users of a log in place of its own, whether or not it was built from that log.

        Their features are made as those of the world's own users were, and every model reads their histories as it
        read those of the users it was fitted to: nothing is fitted. Values of features that the world never met count
        as unknown. Rows of videos that the world does not have are left out, with a warning that says how many.

        Args:
            log: a checked log with the world's signals and videos.
            before: YYYYMMDD: sessions begin on this day, from what users did before it.

        Returns:
            A world in which sessions are drawn from all users of the log; it has no fidelity yet.

        Raises:
            ValueError: a model of the world cannot take users, as in worlds that were not learned from a log; the log
                has other signals, other videos throughout, or lacks a column of user features; ``before`` is no day.
        """
        new_users.check_models(self.name, {name: getattr(self, name) for name in new_users.MODELS})
        new = new_users.read_users(
            log,
            before,
            world=self.name,
            signals=self.signals,
            encoder=self.users.encoder,
            item_ids=self.catalogue.ids,
        )
        device = self.population_P.device
        here = self if device.type == "cpu" else self.to("cpu")  # logs are read there
        ids, features_UD = log.users["user_id"].to_numpy(), new.features_UD
        entered = here.replace(
            users=dataclasses.replace(here.users, ids=ids, features_UD=features_UD, histories=new.histories),
            population_P=torch.arange(len(new)),
            provenance={**here.provenance, "users_from": new.origin},
            fidelity={},  # it was of other users
            **{name: getattr(here, name).with_users(new) for name in new_users.MODELS},
        )
        return entered if device.type == "cpu" else entered.to(device)

    def requests_of(
        self, log: LoggedDataset, first_date: int | None = None, last_date: int | None = None
    ) -> LoggedRequests:
        """Requests of a log as this world's users and videos, for instance to compare its users with them.

        Args:
            log: a log whose users are users of this world, see ``users_from``. Rows of videos that the world does not
                have are left out.
            first_date: YYYYMMDD, first day whose requests are kept; earlier rows stay in histories.
            last_date: YYYYMMDD, last day whose requests are kept.

        Raises:
            ValueError: the log has other signals, users that are not the world's, or no requests on these days.
        """
        new_users.check_signals(log, self.name, self.signals)
        return logged_requests(
            recoded(log, self.catalogue.ids, self.users.ids),
            item_features_ND=self.catalogue.features_ND.cpu(),
            user_features_UD=self.users.features_UD.cpu(),
            first_date=first_date,
            last_date=last_date,
        )

    @property
    def digest(self) -> str:
        """Digest of everything that shapes what is played: tables, models, settings, the recommender.

        Name, provenance and fidelity do not count.

        Raises:
            ValueError: a model cannot be saved, so there is nothing to tell it by.
        """
        return digest_json(
            {
                "signals": list(self.signals),
                "tables": digest_tensors(self._tables()),
                "ids": [self.catalogue.ids.tolist(), self.users.ids.tolist()],
                "names": [list(self.catalogue.feature_names), list(self.users.feature_names)],
                "models": models_digest(self._models()),
                "recommender": self.recommender.digest,
                "declared": self.declared,
                "defaults": self.defaults,
            }
        )

    def to(self, device: torch.device | str) -> "World":
        """The same world on another device.

        Raises:
            ValueError: there is no such device.
        """
        check_device(device)
        catalogue = dataclasses.replace(
            self.catalogue,
            duration_N=self.catalogue.duration_N.to(device),
            features_ND=self.catalogue.features_ND.to(device),
            tag_N=self.catalogue.tag_N.to(device),
        )
        users = dataclasses.replace(
            self.users,
            features_UD=self.users.features_UD.to(device),
            histories=self.users.histories.to(device),
        )
        models = {name: moved(name, model, device) for name, model in self._models().items()}
        return self.replace(
            catalogue=catalogue,
            users=users,
            population_P=self.population_P.to(device),
            recommender=self.recommender.to(device),
            **models,
        )

    def save(self, folder: str | Path, recommender: str | Path | None = None) -> Path:
        """Writes the world folder; it appears whole or not at all, replacing an older world.

        Args:
            folder: where the world goes.
            recommender: folder in which this world's recommender is saved already; the world then refers to it, by
                its place relative to ``folder``. By default the world carries its own copy.

        Raises:
            ValueError: a model cannot be saved, ``folder`` holds anything else than a world, or ``recommender`` holds
                another recommender.
        """
        with whole_folder(folder, FILES) as aside:
            if recommender is None:
                (aside / "recommender").mkdir()
                self.recommender.write(aside / "recommender")
                place, digest = "recommender", self.recommender.digest
            else:
                place, digest = os.path.relpath(recommender, folder), self.recommender.digest
                _check_recommender(Path(recommender), digest)
            self._write(aside, {"folder": Path(place).as_posix(), "digest": digest})
        return Path(folder)

    def _write(self, folder: Path, recommender: dict[str, str]) -> None:
        models = write_models(self._models(), folder / "models.safetensors")
        write_tensors(self._tables(), folder / "tables.safetensors")
        (folder / "fidelity.json").write_text(json.dumps(self.fidelity, indent=1) + "\n")
        card = {
            "format": FORMAT,
            "name": self.name,
            "signals": list(self.signals),
            "item_feature_names": list(self.catalogue.feature_names),
            "user_feature_names": list(self.users.feature_names),
            "user_encoder": None if self.users.encoder is None else self.users.encoder.config(),
            "item_ids": self.catalogue.ids.tolist(),
            "user_ids": self.users.ids.tolist(),
            "models": models,
            "recommender": recommender,
            "declared": self.declared,
            "defaults": self.defaults,
            "provenance": self.provenance,
            "bytes": sizes_of(folder, ["tables.safetensors", "models.safetensors"]),
        }
        (folder / "world.json").write_text(json.dumps(card) + "\n")

    def _models(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _MODELS}

    def _tables(self) -> dict[str, Tensor]:
        return {
            "duration_N": self.catalogue.duration_N,
            "item_features_ND": self.catalogue.features_ND,
            "tag_N": self.catalogue.tag_N,
            "user_features_UD": self.users.features_UD,
            "history_start_U1": self.users.histories.start_U1,
            "history_item_P": self.users.histories.item_P,
            "history_feedback_PF": self.users.histories.feedback_PF,
            "history_known_PF": self.users.histories.known_PF,
            "population_P": self.population_P,
        }

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        *,
        trusted: Sequence[str] = (),
        recommender: Recommender | None = None,
    ) -> "World":
        """Reads a world folder.

        Args:
            folder: what ``save`` wrote.
            device: where the tensors go.
            trusted: modules or packages that models may come from, beside this project's own. A folder of somebody
                else's may name any class, and importing it runs its code.
            recommender: the folder's recommender, if the caller has loaded it already, see ``load_worlds``.

        Raises:
            ValueError: the folder or its recommender is missing, incomplete, damaged or of another format version, a
                model is of a module that is not trusted, or there is no such device.
        """
        check_device(device)
        folder = Path(folder)
        card = read_card(folder / "world.json", "world", FORMAT)
        check_classes(card["models"], folder, trusted)
        if recommender is None:
            place = folder / card["recommender"]["folder"]
            _check_recommender(place, card["recommender"]["digest"], folder)
            recommender = Recommender.load(place, device, trusted=trusted)
        tables = read_tensors(folder / "tables.safetensors", device)
        models = read_models(card["models"], folder / "models.safetensors", device, trusted)
        fidelity, encoder = folder / "fidelity.json", card.get("user_encoder")
        return cls(
            name=card["name"],
            signals=tuple(card["signals"]),
            catalogue=Catalogue(
                ids=np.asarray(card["item_ids"]),
                duration_N=tables["duration_N"],
                features_ND=tables["item_features_ND"],
                feature_names=tuple(card["item_feature_names"]),
                tag_N=tables["tag_N"],
            ),
            users=Users(
                ids=np.asarray(card["user_ids"]),
                features_UD=tables["user_features_UD"],
                feature_names=tuple(card["user_feature_names"]),
                histories=Histories(
                    start_U1=tables["history_start_U1"],
                    item_P=tables["history_item_P"],
                    feedback_PF=tables["history_feedback_PF"],
                    known_PF=tables["history_known_PF"],
                ),
                encoder=None if encoder is None else UserEncoder.restore(encoder),
            ),
            population_P=tables["population_P"],
            recommender=recommender,
            declared=card["declared"],
            defaults=card["defaults"],
            provenance=card["provenance"],
            fidelity=json.loads(fidelity.read_text()) if fidelity.exists() else {},
            **models,
        )


def load_worlds(
    folders: Mapping[str, Path], device: torch.device | str = "cpu", *, trusted: Sequence[str] = ()
) -> dict[str, World]:
    """Reads several world folders by name; those of one build share one recommender object.

    Raises:
        ValueError: see ``World.load``.
    """
    worlds: dict[str, World] = {}
    shared: dict[str, Recommender] = {}
    for name, folder in folders.items():
        digest = read_card(Path(folder) / "world.json", "world", FORMAT)["recommender"]["digest"]
        worlds[name] = World.load(folder, device, trusted=trusted, recommender=shared.get(digest))
        shared[digest] = worlds[name].recommender
    return worlds


def _check_recommender(place: Path, digest: str, world: Path | None = None) -> None:
    """Refuses a recommender's folder that is missing or holds another one than the digest says."""
    of = "" if world is None else f" of the world in {world}"
    if not (place / "recommender.json").exists():
        raise ValueError(
            f"the recommender{of} should lie in {place} and does not; move or copy the folder of a build as a whole, "
            "or save the world alone, World.load(folder).save(other), which gives it a copy of its own"
        )
    found = read_card(place / "recommender.json", "recommender", recommenders.FORMAT)["digest"]
    if found != digest:
        raise ValueError(
            f"{place} holds another recommender ({found}) than the one{of} ({digest}); build the worlds again"
        )
