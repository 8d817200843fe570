"""Halves: what the model would say of a training row that it had not been trained on.

The mirrored question asked of the training set itself: continue training on one half of the rows,
read the other half with forward passes; both ways, several times. Every row then has outputs of
models that did not see it ("out") and of models that did ("in"), and so does every query ("out").
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from forward_inf_mlflow.models.modes import set_training
from forward_inf_mlflow.sweep import outputs
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tensors import Tensors

#: Rows as stored.
Features: TypeAlias = pd.DataFrame | np.ndarray


@dataclass(frozen=True)
class HeldOut:
    """Outputs of the half-models.

    Attributes:
        train_out: ``(R, n, K)`` float32, for each repeat the half-model that did not see the row.
        train_in: ``(R, n, K)`` float32, for each repeat the half-model that did.
        queries: ``(R, m, K)`` float32, one half-model a repeat, so that the mean over repeats is
            made for queries as it is for training rows.
        note: How the half-models came to be, one sentence.
    """

    train_out: np.ndarray
    train_in: np.ndarray
    queries: np.ndarray
    note: str

    @property
    def diverged(self) -> str | None:
        """Return why the outputs say nothing of any row, one clause; None if they do."""
        if all(np.isfinite(x).all() for x in (self.train_out, self.train_in, self.queries)):
            return None
        return "a model trained on half of the rows answers NaN or infinity"


class Fit(Protocol):
    """Trains on some rows and says what the result answers on all."""

    @property
    def note(self) -> str:
        """Return how the models came to be, one sentence."""
        ...

    def __call__(self, index: np.ndarray, seed: int, /) -> tuple[np.ndarray, np.ndarray]:
        """Return the outputs for all training rows ``(n, K)`` and all queries ``(m, K)``."""
        ...


def read_halves(
    fit: Fit,
    strata: np.ndarray,
    *,
    repeats: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> HeldOut:
    """Fit both halves of the rows ``repeats`` times and read everything under each.

    Args:
        fit: Trains one half.
        strata: ``(n,)`` the rows' labels (or binned targets); each is spread over both halves.
        repeats: R, how many times the rows are halved anew.
        seed: Decides the halves and the training.
        progress: Called with 1 after each of the 2 R fits.
    """
    out, inside, queries = [], [], []
    for r in range(repeats):
        rng = np.random.default_rng([seed, r])
        first = halve(strata, rng)
        pair = []
        for side, members in enumerate((first, ~first)):
            pair.append(fit(np.flatnonzero(members), seed * 1009 + 2 * r + side))
            if progress is not None:
                progress(1)
        (a_train, a_query), (b_train, _) = pair
        mine = first.reshape(-1, *[1] * (a_train.ndim - 1))
        out.append(np.where(mine, b_train, a_train))
        inside.append(np.where(mine, a_train, b_train))
        queries.append(a_query)
    return HeldOut(np.stack(out), np.stack(inside), np.stack(queries), fit.note)


def halve(strata: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random half ``(n,)`` bool that takes half of every stratum, give or take a row."""
    order = rng.permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    first = np.zeros(len(strata), dtype=bool)
    first[order[rng.integers(2) :: 2]] = True
    return first


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a half-model is trained from the audited one.

    The audited weights remember the rows. Shrinking them and adding noise first makes them forget
    single rows without losing what they learned ("shrink and perturb", Ash and Adams, NeurIPS
    2020). What they still remember makes held-out losses too small, never too large: errors are
    missed for it, not invented.

    Attributes:
        shrink: Weight matrices are multiplied by it.
        noise: Then normal noise is added, of this share of each matrix's own spread.
        epochs: Passes over the half.
        batch_size: Rows a step.
        rates: Peak learning rates of a one-cycle AdamW; the one with the lowest loss on the
            queries after the first half is taken for all.
        weight_decay: AdamW's.
    """

    shrink: float = 0.5
    noise: float = 0.1
    epochs: int = 10
    batch_size: int = 64
    rates: Sequence[float] = (1e-3, 3e-3, 1e-2)
    weight_decay: float = 1e-4


class Continued:
    """Continues training the audited torch module on a half."""

    def __init__(
        self, module: nn.Module, task: Task, train: Tensors, queries: Tensors, recipe: Recipe
    ) -> None:
        self._module, self._task = module, task
        self._train, self._queries, self._recipe = train, queries, recipe
        self._rate: float | None = None

    @property
    def note(self) -> str:
        """Return how the half-models came to be."""
        r = self._recipe
        return (
            f"half-models continue from the audited weights (times {r.shrink:g}, noise "
            f"{r.noise:g}) for {r.epochs} epochs of AdamW at a peak rate of {self._rate:g}, "
            "chosen by the loss on the queries"
        )

    def __call__(self, index: np.ndarray, seed: int, /) -> tuple[np.ndarray, np.ndarray]:
        """Return the outputs of a model trained on ``index`` for all rows and all queries."""
        if self._rate is None:
            self._rate, model = self._choose_rate(index, seed)
        else:
            model = self._fit(index, seed, self._rate)
        return outputs(model, self._train).numpy(), outputs(model, self._queries).numpy()

    def _choose_rate(self, index: np.ndarray, seed: int) -> tuple[float, nn.Module]:
        best: tuple[float, float, nn.Module] | None = None
        for rate in self._recipe.rates:
            model = self._fit(index, seed, rate)
            loss = self._query_loss(model)
            if best is None or loss < best[0]:
                best = loss, rate, model
        assert best is not None, "a recipe has at least one rate"
        return best[1], best[2]

    @torch.no_grad()
    def _query_loss(self, model: nn.Module) -> float:
        losses = [self._task.loss(model(b.inputs), b.targets) for b in self._queries]
        mean = float(torch.cat(losses).mean())
        return mean if np.isfinite(mean) else np.inf

    def _fit(self, index: np.ndarray, seed: int, rate: float) -> nn.Module:
        recipe, model = self._recipe, copy.deepcopy(self._module)
        generator = torch.Generator().manual_seed(seed)
        _shrink_and_perturb(model, recipe, generator)
        half = self._train.take(index)
        steps = recipe.epochs * len(_split(torch.arange(len(half)), recipe.batch_size))
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=rate,
            weight_decay=recipe.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        # Dropout draws from the global generator: fork it, so that a seed repeats everything and
        # the caller's random state is left alone.
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            # A module that takes single rows only cannot have batch statistics.
            set_training(model, min(self._train.batch_size, len(half)) > 1)
            for _ in range(recipe.epochs):
                order = torch.randperm(len(half), generator=generator)
                for rows in _split(order, recipe.batch_size):
                    optimizer.zero_grad()
                    for part in _split(rows, self._train.batch_size):
                        batch = half.batch(part)
                        loss = self._task.loss(model(batch.inputs), batch.targets)
                        (loss.sum() / len(rows)).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    schedule.step()
        set_training(model, False)
        return model


def _split(rows: Tensor, most: int) -> Sequence[Tensor]:
    """Split into parts of about ``most`` rows, never one alone: it has no batch statistics."""
    parts = -(-len(rows) // most)
    if most > 1:
        parts = min(parts, len(rows) // 2)
    return torch.tensor_split(rows, max(1, parts))


@torch.no_grad()
def _shrink_and_perturb(model: nn.Module, recipe: Recipe, generator: torch.Generator) -> None:
    """Shrink the weight matrices; biases and the scales of norm layers (vectors) stay."""
    for p in model.parameters():
        if p.requires_grad and p.ndim > 1:
            spread = float(p.std()) if p.numel() > 1 else 0.0
            noise = torch.randn(p.shape, generator=generator).to(p)
            p.mul_(recipe.shrink).add_(noise, alpha=recipe.noise * spread)


class Refitted:
    """Fits a fresh clone of the audited scikit-learn estimator on a half.

    A fresh fit remembers nothing, and an estimator says itself how it is fitted.
    """

    note = "half-models are fresh fits of a clone of the audited estimator"

    def __init__(
        self,
        estimator: Any,
        train: Features,
        labels: np.ndarray,
        queries: Features,
        classes: np.ndarray | None,
    ) -> None:
        self._estimator, self._labels, self._classes = estimator, labels, classes
        self._train, self._queries = self._columns(train), self._columns(queries)

    def __call__(self, index: np.ndarray, seed: int, /) -> tuple[np.ndarray, np.ndarray]:
        """Return the outputs of a clone fitted on ``index`` for all rows and all queries."""
        from sklearn.base import clone

        model = clone(self._estimator)
        settings = {k: seed for k in model.get_params() if k.split("__")[-1] == "random_state"}
        model.set_params(**settings)
        with warnings.catch_warnings():
            # That a half needs more iterations than allowed is the audited estimator's setting.
            warnings.simplefilter("ignore")
            model.fit(_take(self._train, index), self._labels[index])
        return self._answer(model, self._train), self._answer(model, self._queries)

    def _columns(self, features: Features) -> Features:
        """Return the columns that the estimator was fitted on, in its order."""
        names = getattr(self._estimator, "feature_names_in_", None)
        if names is None or not isinstance(features, pd.DataFrame):
            return features
        return features[list(names)]

    def _answer(self, model: Any, rows: Features) -> np.ndarray:
        """Return logits ``(n, K)`` in the audited estimator's class order, or predictions."""
        if self._classes is None:
            return np.asarray(model.predict(rows), dtype=np.float32).reshape(-1, 1)
        tiny = np.finfo(np.float32).tiny
        logits = np.full((len(rows), len(self._classes)), np.log(tiny), dtype=np.float32)
        columns = np.searchsorted(self._classes, model.classes_)
        logits[:, columns] = np.log(np.maximum(model.predict_proba(rows), tiny))
        return logits


def _take(features: Features, index: np.ndarray) -> Features:
    return features.iloc[index] if isinstance(features, pd.DataFrame) else features[index]


def describe(recipe: Recipe) -> dict[str, object]:
    """Return the settings that repeat the half-models."""
    return {**asdict(recipe), "rates": list(recipe.rates)}
