"""Fits learned users on a log: search on validation days, calibrate on held-out users, fit on all days.

What the log's ranker showed to whom is fitted first (``exposure``). Three stages share one trainer then (``fitting``).
(1) Early stopping on the validation days chooses the number of epochs. (2) Users are cut into folds; each fold is
predicted by a model that saw the other folds on all days, and these predictions calibrate watch-time cells and
signals. (3) The final model is fitted on all users and days for the chosen number of epochs, and the calibration is
folded into its last layer, at no cost later.

Legend: P rows of the log, N items, U users, D features.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from recsim_env.data.features import item_features, user_features
from recsim_env.data.schema import LoggedDataset
from reward_models.exposure import fit_exposure
from reward_models.users.calibrate import calibrate, set_levels
from reward_models.users.fitting import Fitting, ResponseFitConfig
from reward_models.users.response import SequenceResponse
from reward_models.users.sequences import Sequences, read_sequences


def fit_response(
    dataset: LoggedDataset,
    *,
    users: ArrayLike | None = None,
    train_until: int,
    validation_dates: Collection[int] = (),
    config: ResponseFitConfig | None = None,
    seed: int = 0,
    run_dir: Path | str | None = None,
) -> SequenceResponse:
    """Learns users from a log; see ``fit_sequences``, which takes what is encoded already.

    Only the log's pre-log history and rows up to the last training or validation day are looked at, and item features
    are counted from the chosen users' history alone.
    """
    config = config or ResponseFitConfig()
    own = None if users is None else np.asarray(users)
    return fit_sequences(
        read_sequences(dataset, config.history_length),
        item_features_ND=torch.from_numpy(item_features(dataset, users=own).values),
        user_features_UD=torch.from_numpy(user_features(dataset).values),
        users=own,
        train_until=train_until,
        validation_dates=validation_dates,
        config=config,
        seed=seed,
        run_dir=run_dir,
    )


def fit_sequences(
    sequences: Sequences,
    *,
    item_features_ND: Tensor,
    user_features_UD: Tensor,
    users: ArrayLike | None = None,
    choosing_users: ArrayLike | None = None,
    train_until: int,
    validation_dates: Collection[int] = (),
    config: ResponseFitConfig | None = None,
    seed: int = 0,
    run_dir: Path | str | None = None,
) -> SequenceResponse:
    """Learns users from a log that has been read into sequences.

    Args:
        sequences: the log; only its pre-log history and rows up to the last training or validation day are looked at.
        item_features_ND: float32 (N, D), counted from feedback of the users to learn from alone.
        user_features_UD: float32 (U, D); D may be 0.
        users: codes of the users to learn from; ``None`` takes all. The model can simulate every user.
        choosing_users: codes of the users whose rows on the validation days choose the number of epochs; ``None`` takes
            the users to learn from.
        train_until: YYYYMMDD, last day to learn from.
        validation_dates: YYYYMMDD days that the search leaves out and stops early on; the calibration and
            the final fit include them. Without any, training takes ``config.train.max_epochs``.
        config: settings; defaults suit logs of 1e5 to 1e7 rows.
        seed: of weights, order and dropout.
        run_dir: keeps checkpoints and TensorBoard files; the same call resumes a run that was killed.

    Returns:
        The calibrated model, users starting from what they did up to the last of these days.

    Raises:
        ValueError: no rows are left to learn from or to choose by, or ``run_dir`` holds another run.
    """
    config, run_dir = config or ResponseFitConfig(), None if run_dir is None else Path(run_dir)
    # The search stops by rows of later days, as the model will be used, and of users who taught it nothing.
    is_own_P = _rows_of(users, sequences)
    is_choosing_P = is_own_P if choosing_users is None else _rows_of(choosing_users, sequences)
    is_held_out_P = torch.isin(sequences.date_P, torch.tensor(sorted(validation_dates)).long())
    validation_P = is_choosing_P & is_held_out_P
    train_P = is_own_P & (sequences.date_P <= train_until) & ~is_held_out_P
    last_date = max([train_until, *validation_dates])
    all_P = is_own_P & (sequences.date_P <= last_date)
    if not train_P.any() or (len(validation_dates) > 0 and not validation_P.any()):
        raise ValueError(
            f"there are {int(train_P.sum())} rows to learn from up to {train_until} and {int(validation_P.sum())} rows "
            f"to choose by on {sorted(validation_dates)}, of {int(is_own_P.sum())} and {int(is_choosing_P.sum())} rows "
            f"of these users; the log covers {int(sequences.date_P.min())} to {int(sequences.date_P.max())}: choose "
            "days and users with rows"
        )
    exposure = fit_exposure(
        sequences,
        item_features_ND,
        user_features_UD,
        all_P,
        last_date=last_date,
        keep=config.history_length,
        epochs=config.exposure_epochs,
        seed=seed,
    )
    fitting = Fitting(sequences, item_features_ND, user_features_UD, exposure, config, seed)
    epochs, list_epochs = config.train.max_epochs, config.list_train.max_epochs
    if len(validation_dates) > 0:
        network, epochs = fitting.fit(train_P, validation_P, epochs, run_dir, "search")
        list_epochs = fitting.fit_lists(network, train_P, validation_P, list_epochs, run_dir, "search-lists")
    network, _ = fitting.fit(all_P, None, epochs, run_dir, "final")
    fitting.fit_lists(network, all_P, None, list_epochs, run_dir, "final-lists")
    if config.calibration_folds:
        calibrate(network, fitting, all_P, epochs, run_dir)
    if sequences.uniform_P.any():
        set_levels(network, fitting, all_P)
    return network.export(sequences, last_date + 1, config.history_length)


def _rows_of(users: ArrayLike | None, sequences: Sequences) -> Tensor:
    """Which rows tell what some users answered, bool (P,)."""
    chosen_U = torch.zeros(len(sequences.start_U1) - 1, dtype=torch.bool)
    chosen_U[torch.arange(len(chosen_U)) if users is None else torch.as_tensor(np.asarray(users))] = True
    return chosen_U[sequences.user_P] & sequences.known_PF.any(1)
