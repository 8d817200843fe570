"""What kinds.py compares with: what others say of labels, by one model or by several trainings."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rivals import FOLDS, HERE, NEIGHBOURS, PEERS_PYTHON
from sklearn.neighbors import NearestNeighbors
from torch import nn

#: Scores ``(n,)`` and the processor's seconds, by method.
Said = dict[str, tuple[np.ndarray, float]]
#: From rows ``(k, ...)`` to what a model says of them, ``(k, K)``.
Answers = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Case:
    """A registered version, the truth about its rows, and what others say.

    Attributes:
        uri: Of the version, with its data.
        truth: ``(n,)``: which labels are wrong, or how much a row is memorized.
        said: By others.
        seconds: The processor's, of training the audited model.
        options: Of the audit, beside the defaults.
        facts: What else is to be told.
    """

    uri: str
    truth: np.ndarray
    said: Said
    seconds: float
    options: Mapping[str, Any] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows with labels as given and as they should be, and trusted queries."""

    x: np.ndarray
    given: np.ndarray
    clean: np.ndarray
    query_x: np.ndarray
    query_y: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        """``(n,)`` bool; of several labels: any of them."""
        return np.asarray((self.given != self.clean).reshape(len(self.x), -1).any(1))


def timed(job: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a job returns, and the processor's seconds."""
    start = time.process_time()
    return job(), time.process_time() - start


def others(
    rows: Rows,
    own: np.ndarray,
    features: np.ndarray,
    fit: Callable[[np.ndarray, np.ndarray, int], Answers],
    seed: int,
) -> Said:
    """Return what the usual methods say.

    Args:
        rows: With labels ``(n,)``, or ``(n, K)`` of zeros and ones.
        own: ``(n, K)`` the audited model's probabilities.
        features: ``(n, h)`` in which neighbours are looked for.
        fit: Trains a model of the audited kind on rows and labels by a seed.
        seed: Of folds and trainings.
    """
    given, n, own = rows.given, len(rows.x), np.clip(own, 1e-15, 1 - 1e-15)
    several, said = given.ndim == 2, {}
    if several:
        each = -np.log(np.where(given == 1, own, 1 - own))
        said["own loss, sum"] = each.sum(1), 0.0
        said["own loss, worst label"] = each.max(1), 0.0
    else:
        at = np.arange(n), given
        said["own loss"] = -np.log(own[at]), 0.0
        rest = own.copy()
        rest[at] = -1
        said["own margin"] = rest.max(1) - own[at], 0.0

    def disagreement() -> np.ndarray:
        found = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(features)
        near = found.kneighbors(features, return_distance=False)
        theirs = given[np.stack([row[row != i][:NEIGHBOURS] for i, row in enumerate(near)])]
        differs = (theirs != given[:, None]).mean(1)
        return np.asarray(differs.max(1) if several else differs)

    said["kNN"] = timed(disagreement)
    for more in (False, True):  # the audit reads the queries' labels, cleanlab does not
        p, seconds = timed(partial(out_of_sample, rows, fit, seed, queries=more))
        where = ", queries in every fold" if more else ""
        for name, scores in label_quality(p, given).items():
            said[f"cleanlab {name.replace('_', ' ')}{where}"] = -scores, seconds
    return said


def out_of_sample(
    rows: Rows, fit: Callable[[np.ndarray, np.ndarray, int], Answers], seed: int, *, queries: bool
) -> np.ndarray:
    """Return each row's probabilities ``(n, K)`` by a model of the other folds.

    Args:
        rows: Of which some are left out at a time.
        fit: As of `others`.
        seed: Of folds and trainings.
        queries: Whether the queries are among every fold's rows.
    """
    folds = np.random.default_rng([seed, 31]).permutation(len(rows.x)) % FOLDS
    more, said, left = len(rows.query_x) if queries else 0, [], []
    for fold in range(FOLDS):
        kept = folds != fold
        x = np.concatenate([rows.x[kept], rows.query_x[:more]])
        y = np.concatenate([rows.given[kept], rows.query_y[:more]])
        said.append(fit(x, y, seed + 80 + fold)(rows.x[~kept]))
        left.append(np.flatnonzero(~kept))
    return np.concatenate(said)[np.argsort(np.concatenate(left))]


def label_quality(p: np.ndarray, given: np.ndarray) -> dict[str, np.ndarray]:
    """Return cleanlab's scores by method; it runs in the peers' environment."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "asked.npz", p=p, given=given)
        command = [PEERS_PYTHON, HERE / "peers" / "label_quality.py", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"cleanlab (make peers): {done.stderr.strip().splitlines()[-1]}")
        with np.load(Path(folder) / "said.npz", allow_pickle=False) as said:
            return dict(said)


def registered(info: Any) -> str:
    """Return the address of the version that was just logged."""
    return f"models:/{info.name}/{info.registered_model_version}"


def train(module: nn.Module, loss: Callable[[Any], torch.Tensor], count: int, *, seed: int,
          epochs: int, rate: float, batch: int = 64, decay: float = 0.01) -> nn.Module:  # fmt: skip
    """Train by AdamW over one cycle of rates; ``loss`` is given positions of rows."""
    torch.manual_seed(seed)
    moved = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moved, rate, weight_decay=decay)
    steps = epochs * -(-count // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    module.train()
    for _ in range(epochs):
        for part in torch.randperm(count).split(batch):
            optimizer.zero_grad()
            torch.autograd.backward(loss(part))
            nn.utils.clip_grad_norm_(moved, 1.0)
            optimizer.step()
            schedule.step()
    return module.eval()
