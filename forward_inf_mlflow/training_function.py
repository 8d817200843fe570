"""Training functions: how a user's own code trains a model, named as ``module:function``."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.data.several import are_flags
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.models.modes import set_training
from forward_inf_mlflow.models.scored import logits_of, odds_of
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.sweep import outputs
from forward_inf_mlflow.tasks import MultiLabel
from forward_inf_mlflow.tensors import Tensors
from forward_inf_mlflow.work import KEEP_NOTHING, Arrays, Work

#: Called as ``train(x, y, seed)``; see `load_trainer`.
TrainingFunction = Callable[[Any, np.ndarray, int], Any]
#: What a probability of zero is read as: the least that float32 holds.
_TINY = float(np.finfo(np.float32).tiny)
#: Its logarithm, as answers hold it.
NEVER = np.float32(np.log(_TINY))


def load_trainer(name: str) -> TrainingFunction:
    """Import a training function; this runs the module's code.

    The function is called as ``train(x, y, seed)`` with rows and labels as they were logged (an
    array ``(k, ...)`` or a frame, and ``(k,)``, or a column for each of several labels), and
    returns a torch module that gives logits (or predictions) for the audited model's inputs, or
    anything with ``predict_proba`` or ``decision_function`` (see `models.scored`; for regression,
    ``predict``).

    Args:
        name: ``module:function``; modules of the current folder are found too.

    Raises:
        ForwardInfError: It cannot be found, or is not a function.
    """
    module, _, function = name.partition(":")
    if not module or not function or module.startswith("."):
        raise ForwardInfError(f"the trainer {name!r} is not written as module:function")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except AttributeError:
        raise ForwardInfError(f"the module {module!r} has no function {function!r}") from None
    except (Exception, SystemExit) as error:  # importing runs other people's code
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ForwardInfError(
            f"the trainer's module {module!r} cannot be imported ({reason}): run where it is, or "
            "set PYTHONPATH"
        ) from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ForwardInfError(f"the trainer {name!r} is not a function")
    return found  # type: ignore[no-any-return]


def code_digest(name: str) -> str:
    """Return a hash of the file that a training function is in: other code, other models."""
    path = inspect.getsourcefile(sys.modules[load_trainer(name).__module__])
    content = Path(path).read_bytes() if path else name.encode()
    return hashlib.sha256(content).hexdigest()


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
        kept = self._kept(index, np.empty(0, np.int64), seed)
        return kept["train"], kept["queries"]

    def with_queries(
        self, index: np.ndarray, queries: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the same of a model trained on the ``queries`` (positions) too."""
        kept = self._kept(index, queries, seed)
        return kept["train"], kept["queries"]

    def seconds(self, seed: int) -> float:
        """Return how long one training on all rows takes; it is kept like any other."""
        whole = np.arange(len(self._problem.train_rows))
        return float(self._kept(whole, np.empty(0, np.int64), seed)["seconds"])

    def _kept(self, index: np.ndarray, queries: np.ndarray, seed: int) -> Arrays:
        both = [np.asarray(some, np.int64).tobytes() for some in (index, queries)]
        name = hashlib.sha256(both[0]).hexdigest()[:16]
        if len(queries):
            name += f"+{hashlib.sha256(both[1]).hexdigest()[:16]}"
        return self._work.once(f"trained/{name}-{seed}", lambda: self._fit(index, queries, seed))

    def _fit(self, index: np.ndarray, queries: np.ndarray, seed: int) -> Arrays:
        problem, began = self._problem, time.perf_counter()
        features, labels = problem.train_rows.features, _taught(problem.train_rows)[index]
        chosen = _chosen(features, index)
        if len(queries):
            chosen = _joined(chosen, _chosen(problem.query_rows.features, queries))
            labels = np.concatenate([labels, self._as_trained(queries)])
        try:
            model = self._train(chosen, labels, seed)
            found = {
                "train": self._answers(model, problem.train, features),
                "queries": self._answers(model, problem.queries, problem.query_rows.features),
            }
        except ForwardInfError:
            raise
        except (Exception, SystemExit) as error:  # other people's code fails in any way it likes
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ForwardInfError(
                f"the trainer failed on {len(labels):,} rows with seed {seed} ({reason})"
            ) from error
        return {**found, "seconds": np.array(time.perf_counter() - began)}

    def _as_trained(self, queries: np.ndarray) -> np.ndarray:
        """Return the queries' labels as the training labels are written."""
        problem = self._problem
        labels, own = _taught(problem.train_rows), _taught(problem.query_rows)[queries]
        if problem.classes is None or labels.dtype.kind == own.dtype.kind:
            return np.asarray(own)
        known, first = np.unique(problem.train.targets.numpy(), return_index=True)
        written = dict(zip(known.tolist(), labels[first].tolist(), strict=True))
        wanted = problem.queries.targets.numpy()[queries].tolist()
        return np.array([written.get(one, problem.classes[one]) for one in wanted])

    def _answers(self, model: Any, rows: Tensors, features: Any) -> np.ndarray:
        """Return logits ``(n, K)`` in the order of the audited model's classes, or predictions."""
        classes, targets = self._problem.classes, self._problem.train.targets
        wide = len(classes) if classes is not None else 1 if targets.ndim == 1 else targets.shape[1]
        if model is None:
            raise ForwardInfError("the trainer returned nothing: return the trained model")
        if isinstance(model, nn.Module):
            set_training(model, False)
            first = next((p for p in model.parameters() if p.is_floating_point()), None)
            fitting = rows
            if first is not None and rows.inputs.is_floating_point():
                fitting = replace(rows, inputs=rows.inputs.to(first.dtype))
            with torch.no_grad():
                said = outputs(model.to(rows.device), fitting).numpy().reshape(len(rows), -1)
            return _checked(said, (len(rows), wide))
        if isinstance(self._problem.task, MultiLabel):
            return _checked(odds_of(model, features, _TINY).astype(np.float32), (len(rows), wide))
        if classes is None:
            if not hasattr(model, "predict"):
                raise ForwardInfError(
                    f"the trainer returned a {type(model).__name__}, which has no predict: return "
                    "the trained model"
                )
            predicted = np.asarray(model.predict(features), dtype=np.float32)
            return _checked(predicted.reshape(len(predicted), -1), (len(rows), wide))
        said = logits_of(model, features, _TINY)
        known = np.asarray(getattr(model, "classes_", classes))
        said = _checked(said, (len(rows), len(known)))
        # As text where one side is: a signature's columns are named so, whatever the labels are.
        numbers = all(np.issubdtype(some.dtype, np.number) for some in (classes, known))
        names = [
            some.tolist() if numbers else some.astype(str).tolist() for some in (classes, known)
        ]
        place = {name: position for position, name in enumerate(names[0])}
        if foreign := [name for name in names[1] if name not in place]:
            raise ForwardInfError(
                f"the trainer's model knows the class {foreign[0]}, which the audited model does "
                "not have: train it on the labels as they are given"
            )
        logits = np.full((len(said), wide), NEVER, dtype=np.float32)
        logits[:, [place[name] for name in names[1]]] = said
        return logits


def _taught(rows: Rows) -> np.ndarray:
    """Return the labels as a training function gets them: ``(n,)`` as stored, or ``(n, k)``."""
    if rows.targets is None:
        return rows.labels
    return rows.targets.astype(np.int64) if are_flags(rows.targets) else rows.targets


def _chosen(features: Any, index: np.ndarray) -> Any:
    return features[index] if isinstance(features, np.ndarray) else features.iloc[index]


def _joined(rows: Any, queries: Any) -> Any:
    if isinstance(rows, np.ndarray):
        return np.concatenate([rows, queries])
    return pd.concat([rows, queries[rows.columns]], ignore_index=True)


def _checked(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Refuse answers of another shape, or that are no numbers."""
    if values.shape != shape:
        raise ForwardInfError(
            f"the trainer's model answers {values.shape}, not {shape}: return one that answers as "
            "the audited model does"
        )
    if not np.isfinite(values).all():
        raise ForwardInfError("the trainer's model answers NaN or infinity: train it otherwise")
    return values


def skill(answers: np.ndarray, truth: np.ndarray, *, classes: bool) -> np.ndarray:
    """Return 1 for each right answer of logits ``(m, K)``, or minus the squared errors."""
    if classes:
        return np.asarray(answers.argmax(1) == truth, dtype=np.float64)
    apart = np.square(answers.reshape(len(truth), -1) - truth.reshape(len(truth), -1))
    return np.asarray(-apart.mean(1), dtype=np.float64)
