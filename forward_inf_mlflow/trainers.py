"""Trainers: how a half-model is trained, from a torch module or from an estimator."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.models.modes import set_training
from forward_inf_mlflow.models.scored import odds_of
from forward_inf_mlflow.models.tokens import Tokens
from forward_inf_mlflow.models.transform import Transform
from forward_inf_mlflow.sweep import outputs, read
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tasks import Denoising
from forward_inf_mlflow.tensors import Tensors
from forward_inf_mlflow.work import KEEP_NOTHING, Arrays, Work

#: Rows as stored.
Features: TypeAlias = pd.DataFrame | np.ndarray
Start: TypeAlias = Literal["fresh", "shrunk"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a half-model is trained.

    The audited weights remember the rows, wrong labels included, and a half-model that starts from
    them still does: it finds few of its own errors strange. So a half-model starts *fresh*, from
    the same architecture with new weights. Some models cannot be trained anew from so few rows
    (a pretrained one, say). They start *shrunk*: from the audited weights, made smaller and noisy,
    which makes them forget single rows before what they learned ("shrink and perturb", Ash and
    Adams, NeurIPS 2020). What they still remember hides errors; it invents none.

    Attributes:
        epochs: Passes over the half.
        epochs_of_denoisers: The same for diffusion models, which see each image at one time only.
        batch_size: Rows a step.
        rates: Peak learning rates of a one-cycle AdamW, rising; from the second on they are tried
            up or down as long as the first half's loss on the queries falls.
        rates_of_transformers: The same for these.
        weight_decay: AdamW's.
        skill: Fresh weights are taken if they reach this share of the audited model's skill on the
            queries, or of that which the shrunk ones reach.
        shrink: Weight matrices of a shrunk start are multiplied by it.
        noise: Then normal noise is added, of this share of each matrix's own spread.
    """

    epochs: int = 14
    epochs_of_denoisers: int = 100
    batch_size: int = 64
    rates: Sequence[float] = (1e-3, 3e-3, 1e-2, 3e-2)
    rates_of_transformers: Sequence[float] = (1e-4, 3e-4, 1e-3, 3e-3)
    weight_decay: float = 1e-4
    skill: float = 0.8
    shrink: float = 0.5
    noise: float = 0.1

    def epochs_of(self, task: Task) -> int:
        """Return the passes over the half for a model with this task."""
        return self.epochs_of_denoisers if isinstance(task, Denoising) else self.epochs


class Continued:
    """Trains the audited torch module's architecture on a half."""

    alike = False  # by our recipe, whatever the model's own was

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        train: Tensors,
        queries: Tensors,
        recipe: Recipe,
        work: Work = KEEP_NOTHING,
    ) -> None:
        self._module, self._task = module, task
        self._train, self._queries, self._recipe, self._work = train, queries, recipe, work
        self._rates = recipe.rates_of_transformers if isinstance(module, Tokens) else recipe.rates
        self._epochs = recipe.epochs_of(task)
        self._choice: tuple[Start, float] | None = None
        self._guess: float | None = None

    @property
    def note(self) -> str:
        """Return how the half-models came to be."""
        start, rate = self._choice or ("fresh", self._rates[0])
        begin = {
            "fresh": "start from fresh weights in the audited architecture",
            "shrunk": (
                f"start from the audited weights, shrunk by {self._recipe.shrink:g} because fresh "
                "ones learn too little from these rows, so they may still remember wrong labels,"
            ),
        }[start]
        return (
            f"half-models {begin} and train {self._epochs} epochs with AdamW at a peak "
            f"rate of {rate:g}, chosen by the loss on the queries"
        )

    def __call__(self, index: np.ndarray, seed: int, /) -> tuple[np.ndarray, np.ndarray]:
        """Return the outputs of a model trained on ``index`` for all rows and all queries.

        Of rows without labels their losses, ``(n, 1)`` and ``(m, 1)``.
        """

        def make() -> Arrays:
            if self._choice is None:
                (start, rate), model = self._choose(index, seed)
            else:
                start, rate = self._choice
                model = self._fit(index, seed, start, rate)
            return {
                "train": self._answers(model, self._train),
                "queries": self._answers(model, self._queries),
                "fresh": np.array(start == "fresh"),
                "rate": np.array(rate),
            }

        kept = self._work.once(f"halves/{seed}", make)
        # The first half chooses for all, also where it is read from an interrupted audit.
        self._choice = ("fresh" if kept["fresh"] else "shrunk", float(kept["rate"]))
        return kept["train"], kept["queries"]

    def _choose(self, index: np.ndarray, seed: int) -> tuple[tuple[Start, float], nn.Module]:
        """Choose rate and start by the queries, whose labels are trusted."""
        rate, fresh = self._best_rate(index, seed)
        reached = self._skill(fresh)
        if reached >= self._recipe.skill * self._skill(self._module):
            return ("fresh", rate), fresh
        shrunk = self._fit(index, seed, "shrunk", rate)
        if reached >= self._recipe.skill * self._skill(shrunk):
            return ("fresh", rate), fresh
        return ("shrunk", rate), shrunk

    def _best_rate(self, index: np.ndarray, seed: int) -> tuple[float, nn.Module]:
        rates = self._rates
        start = min(1, len(rates) - 1)
        best = start, self._fit(index, seed, "fresh", rates[start])
        least = self._query_loss(best[1])
        for way in (1, -1):
            for i in range(start + way, len(rates) if way > 0 else -1, way):
                model = self._fit(index, seed, "fresh", rates[i])
                loss = self._query_loss(model)
                if loss >= least:
                    break
                best, least = (i, model), loss
            if best[0] != start:
                break
        return rates[best[0]], best[1]

    def _answers(self, model: nn.Module, rows: Tensors) -> np.ndarray:
        if self._task.labelled:
            return np.asarray(outputs(model, rows).numpy())
        return read(model, self._task, rows).loss.numpy()[:, None]

    def _skill(self, model: nn.Module) -> float:
        """Return how much better than guessing a model is on the queries.

        Without labels the guess is that of fresh weights before any training.
        """
        if not self._task.labelled:
            if self._guess is None:
                fresh = copy.deepcopy(self._module)
                _renew(fresh, torch.Generator().manual_seed(0))
                self._guess = self._query_loss(fresh)
            return 1 - self._query_loss(model) / self._guess
        return self._task.skill(outputs(model, self._queries), self._queries.targets)

    @torch.no_grad()
    def _query_loss(self, model: nn.Module) -> float:
        losses = [self._task.readout(model, b).loss for b in self._queries]
        mean = float(torch.cat(losses).mean())
        return mean if np.isfinite(mean) else np.inf

    def _fit(self, index: np.ndarray, seed: int, start: Start, rate: float) -> nn.Module:
        recipe, model = self._recipe, copy.deepcopy(self._module)
        generator = torch.Generator().manual_seed(seed)
        if start == "fresh":
            _renew(model, generator)
        else:
            _shrink_and_perturb(model, recipe, generator)
        half = self._train.take(index)
        steps = self._epochs * len(_split(torch.arange(len(half)), recipe.batch_size))
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=rate,
            weight_decay=recipe.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        # Dropout draws from the global generator: fork it, so that a seed repeats everything and
        # the caller's random state is left alone.
        device = self._train.device
        gpus = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus), torch.enable_grad():
            torch.manual_seed(seed)
            # A module that takes single rows only cannot have batch statistics.
            set_training(model, min(self._train.batch_size, len(half)) > 1)
            for _ in range(self._epochs):
                order = torch.randperm(len(half), generator=generator)
                for rows in _split(order, recipe.batch_size):
                    optimizer.zero_grad()
                    for part in _split(rows, self._train.batch_size):
                        batch = half.batch(part)
                        loss = (
                            self._task.loss(model(batch.inputs), batch.targets)
                            if self._task.labelled
                            else self._task.training_loss(model, batch, generator)
                        )
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
def _renew(model: nn.Module, generator: torch.Generator) -> None:
    """Give every parameter a new value by its shape and name, as torch's own layers begin.

    A model that knows itself how it begins is left to it. Else matrices are drawn uniformly within
    one over the root of their inputs, scales of norm layers become one and biases zero; any other
    vector stays.
    """
    if isinstance(model, Tokens):
        model.renew(int(torch.randint(2**62, (), generator=generator)))
        return
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        last = name.rpartition(".")[2]
        if p.ndim > 1:
            bound = float(np.prod(p.shape[1:])) ** -0.5
            p.copy_((torch.rand(p.shape, generator=generator) * 2 - 1).to(p) * bound)
        elif "bias" in last:
            p.zero_()
        elif "weight" in last:
            p.fill_(1)


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
    alike = True

    def __init__(
        self,
        estimator: Any,
        train: Features,
        labels: np.ndarray,
        queries: Features,
        classes: np.ndarray | None,
        work: Work = KEEP_NOTHING,
        *,
        least: float | None = None,
        odds: bool = False,
    ) -> None:
        self._estimator, self._labels, self._classes = estimator, labels, classes
        self._work, self._odds = work, odds
        self._least = least or float(np.finfo(np.float32).tiny)  # no probability is below
        seen = Transform(estimator, ())
        self._train, self._queries = seen.aligned(train), seen.aligned(queries)

    def __call__(self, index: np.ndarray, seed: int, /) -> tuple[np.ndarray, np.ndarray]:
        """Return the outputs of a clone fitted on ``index`` for all rows and all queries."""
        kept = self._work.once(f"halves/{seed}", lambda: self._fit(index, seed))
        return kept["train"], kept["queries"]

    def _fit(self, index: np.ndarray, seed: int) -> Arrays:
        from sklearn.base import clone

        model = clone(self._estimator)
        # The seed repeats the fit. A cache folder and chatter are the model's own wishes, and the
        # model is other people's: it writes nothing here.
        fixed = {"random_state": seed % 2**32, "memory": None, "verbose": False}
        names = ((name, name.split("__")[-1]) for name in model.get_params())
        model.set_params(**{name: fixed[last] for name, last in names if last in fixed})
        with warnings.catch_warnings():
            # That a half needs more iterations than allowed is the audited estimator's setting.
            warnings.simplefilter("ignore")
            try:
                model.fit(_take(self._train, index), self._labels[index])
            except ValueError as error:
                raise DataError(
                    "the audited estimator cannot be fitted on half of the training rows "
                    f"({' '.join(str(error).split())[:120]}): give more distinct rows a class"
                ) from error
        return {
            "train": self._answer(model, self._train),
            "queries": self._answer(model, self._queries),
        }

    def _answer(self, model: Any, rows: Any) -> np.ndarray:
        """Return logits ``(n, K)`` in the audited estimator's class order, or predictions.

        Of several labels a row, the log-odds of each ``(n, k)``.
        """
        if self._odds:
            return odds_of(model, rows, self._least).astype(np.float32)
        if self._classes is None:
            said = np.asarray(model.predict(rows), dtype=np.float32)
            return said.reshape(len(said), -1)
        least = self._least
        logits = np.full((len(rows), len(self._classes)), np.log(least), dtype=np.float32)
        columns = np.searchsorted(self._classes, model.classes_)
        logits[:, columns] = np.log(np.maximum(model.predict_proba(rows), least))
        return logits


def _take(rows: Any, index: np.ndarray) -> Any:
    return rows[index] if isinstance(rows, np.ndarray) else rows.iloc[index]


def describe(recipe: Recipe) -> dict[str, object]:
    """Return the settings that repeat the half-models."""
    rates = {name: list(getattr(recipe, name)) for name in ("rates", "rates_of_transformers")}
    return {**asdict(recipe), **rates}
