"""Training functions: how a user's own code trains a model, named as ``module:function``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import special
from torch import nn

from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.models.modes import set_training
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.sweep import outputs
from forward_inf_mlflow.tensors import Tensors
from forward_inf_mlflow.work import KEEP_NOTHING, Arrays, Work

#: Called as ``train(x, y, seed)``; see `load_trainer`.
TrainingFunction = Callable[[Any, np.ndarray, int], Any]


def load_trainer(name: str) -> TrainingFunction:
    """Import a training function; this runs the module's code.

    The function is called as ``train(x, y, seed)`` with rows and labels as they were logged (an
    array ``(k, ...)`` or a frame, and ``(k,)``), and returns a torch module that gives logits (or
    predictions) for the audited model's inputs, or anything with ``predict_proba`` (or, for
    regression, ``predict``).

    Args:
        name: ``module:function``; modules of the current folder are found too.

    Raises:
        ForwardInfError: It cannot be found, or is not a function.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise ForwardInfError(f"the trainer {name!r} is not written as module:function")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise ForwardInfError(
            f"the trainer's module {module!r} cannot be imported: {error}"
        ) from error
    except AttributeError:
        raise ForwardInfError(f"the module {module!r} has no function {function!r}") from None
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ForwardInfError(f"the trainer {name!r} is not a function")
    return found  # type: ignore[no-any-return]


class Trained:
    """Trains on some of the rows by a user's own function, and reads all rows and queries."""

    note = "half-models are trained by the user's own function"
    alike = True

    def __init__(
        self, train: TrainingFunction, problem: Problem, work: Work = KEEP_NOTHING
    ) -> None:
        self._train, self._problem, self._work = train, problem, work

    def __call__(self, index: np.ndarray, seed: int, /) -> tuple[np.ndarray, np.ndarray]:
        """Return the outputs of a model trained on ``index`` for all rows and all queries."""
        kept = self._work.once(f"trained/{len(index)}-{seed}", lambda: self._fit(index, seed))
        return kept["train"], kept["queries"]

    def _fit(self, index: np.ndarray, seed: int) -> Arrays:
        problem = self._problem
        rows = problem.train_rows
        features = rows.features
        chosen = features[index] if isinstance(features, np.ndarray) else features.iloc[index]
        try:
            model = self._train(chosen, rows.labels[index], seed)
            found = {
                "train": self._answers(model, problem.train, rows.features),
                "queries": self._answers(model, problem.queries, problem.query_rows.features),
            }
        except Exception as error:  # other people's code fails in any way it likes
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ForwardInfError(
                f"the trainer failed on {len(index):,} rows with seed {seed} ({reason})"
            ) from error
        wide = 1 if problem.classes is None else len(problem.classes)
        for name, values in found.items():
            if values.shape[1:] != (wide,):
                raise ForwardInfError(
                    f"the trainer's model answers {values.shape} for the {name} rows, not "
                    f"({len(values)}, {wide}): return one that answers as the audited model does"
                )
        return found

    def _answers(self, model: Any, rows: Tensors, features: Any) -> np.ndarray:
        """Return logits ``(n, K)`` in the order of the audited model's classes, or predictions."""
        if isinstance(model, nn.Module):
            set_training(model, False)
            with torch.no_grad():
                return outputs(model.to(rows.device), rows).numpy().reshape(len(rows), -1)
        if self._problem.classes is None:
            return np.asarray(model.predict(features), dtype=np.float32).reshape(-1, 1)
        said = np.asarray(model.predict_proba(features), dtype=np.float64)
        known = getattr(model, "classes_", self._problem.classes)
        logits = np.full((len(said), len(self._problem.classes)), np.finfo(np.float32).tiny)
        logits[:, np.searchsorted(self._problem.classes, known)] = said
        return np.log(np.maximum(logits, np.finfo(np.float32).tiny)).astype(np.float32)


def skill(answers: np.ndarray, truth: np.ndarray, *, classes: bool) -> float:
    """Return the accuracy of logits ``(m, K)``, or minus the mean squared error of predictions."""
    if classes:
        return float((special.softmax(answers, axis=1).argmax(1) == truth).mean())
    return -float(np.square(answers[:, 0] - truth).mean())
