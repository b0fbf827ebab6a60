"""The recommender's own feedback predictor (pXTR): an ensemble of factorised models of all signals.

A member turns the user (decayed history, features, context) into one vector for each signal, and every item
into one vector shared by all signals; a prediction is their inner product through the signal's link. The
item part is a table, so scoring C candidates costs one small matrix product for each request. The first
item coordinate is 1, which makes the first user coordinate the user's own level, and the constant part of
the other user coordinates plays the item's.

Watch time has a log link and a Poisson quasi-likelihood: its score equations make predicted and watched
seconds agree in sum over every group the model can tell apart, whatever the distribution's tail, so the
mean needs no correction. Members differ by their initial weights and by Poisson(1) weights of the users;
users of weight 0 are a member's own validation set for early stopping.

Shape legend: B requests, C candidates, K places, F signals, M members, W hidden width, d factor width,
S state, I inputs of the user tower, H history, D features, N items, U users, R training rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsim_env.data.histories import Histories, user_histories
from recsim_env.data.requests import LoggedRequests, logged_requests
from recsim_env.data.schema import LoggedDataset
from recsim_env.numerics import enough_rows, sigmoid
from recsim_env.types import WATCH_TIME, Request
from reward_models.decayed_history import DecayedHistory, principal_components, signal_rates
from reward_models.ensemble import FitSettings, bootstrap_weights, fit_members

NUM_TABS = 16
"""Tabs 0..15 have a vector each; higher ones share the last."""

LONGEST_WATCH_S = 600.0
"""Predicted watch times are cut here, s."""

