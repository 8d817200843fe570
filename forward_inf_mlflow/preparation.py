"""From a model and its rows to one well-posed problem, or a sentence that says why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.diffusion.tried import require_skill, try_images
from forward_inf_mlflow.errors import DataError, ForwardInfError, ModelError
from forward_inf_mlflow.memory import batches_that_fit, first_that_fits, is_out_of_memory
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.class_weights import class_weights
from forward_inf_mlflow.models.fixed import require_doubt
from forward_inf_mlflow.models.logits import OneOutput, Probabilities, Wrapped
from forward_inf_mlflow.models.parity import check_probabilities
from forward_inf_mlflow.models.placing import place
from forward_inf_mlflow.several_outputs import several_task
from forward_inf_mlflow.sweep import read
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tasks import Classification, Denoising, MultiLabel, Regression, Weighted
from forward_inf_mlflow.tensors import Tensors

#: Rows whose answers show what kind they are.
_SAMPLE = 1024


@dataclass(frozen=True)
class Problem:
    """What is audited: a module that can be moved, and rows as it takes them.

    Attributes:
        module: Logits ``(B, K)`` or predictions; on the device.
        task: Its loss.
        train, queries: Inputs and targets (class indices, or numbers; ``(n, k)`` of several).
        classes: ``(K,)`` the label of each class index; None for regression and several labels.
        train_rows, query_rows: The same rows as stored; those whose loss is no number are in none
            of these.
        notes: Sentences for the reader.
        texts: The training rows and the queries as texts, ``(n,)`` and ``(m,)``, where the model
            reads these; else None.
    """

    module: nn.Module
    task: Task
    train: Tensors
    queries: Tensors
    classes: np.ndarray | None
    train_rows: Rows
    query_rows: Rows
    notes: tuple[str, ...]
    texts: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def compared(self) -> tuple[np.ndarray, np.ndarray]:
        """Return training rows and queries as copies are looked for: as texts, or as inputs."""
        return self.texts or (self.train.inputs.numpy(), self.queries.inputs.numpy())


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``; "auto" is a CUDA GPU where there is one.

    Raises:
        ForwardInfError: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device, dtype=torch.float64).tolist()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        # torch lists every kind of device that it was ever made for
        why = str(error).splitlines()[0].partition("Expected one of")[0].rstrip(" :")
        raise ForwardInfError(
            f"the device '{name}' cannot be used here: use auto, cpu or cuda"
            + (f" ({why})" if why else "")
        ) from error
    return device


def prepare(
    model: AuditedModel,
    train: Rows,
    queries: Rows,
    *,
    task: Literal["auto", "classification", "regression"],
    device: torch.device,
    batch_size: int | None,
    class_weight: str | None = None,
) -> Problem:
    """Bring model and rows together; the arguments are those of `auditing.audit`.

    Raises:
        DataError: The rows cannot be asked of this model; the message names row and column.
        ModelError: The model's output fits no task.
    """
    if model.scale is None:  # else each is brought into the model's shape
        _same_columns(train, queries)
    x_train, x_queries = model.prepare(train.features), model.prepare(queries.features)
    if batch_size is None:
        row = max(1, int(np.prod(x_train.shape[1:])))
        batch_size = min(1024, max(1, model.batch_numbers // row))
    batch_size = min(batch_size, model.max_batch or batch_size)

    posed = (
        _without_labels(model, train, queries, device, task, class_weight)
        if model.loss is not None
        else _with_labels(model, train, queries, x_train, task, class_weight, device, batch_size)
    )
    module, loss = posed.module, posed.task

    def tensors(x: np.ndarray, y: np.ndarray) -> Tensors:
        return Tensors(torch.as_tensor(x), torch.as_tensor(y), device, batch_size)

    if isinstance(loss, Denoising):
        for x, y in ((x_train, posed.train), (x_queries, posed.queries)):
            require_skill(try_images(module, loss, tensors(x, y)), tensors(x, y))
    (train_tensors, train), (query_tensors, queries) = (
        _readable(module, loss, tensors(x, y), rows, what)
        for x, y, rows, what in (
            (x_train, posed.train, train, "training"),
            (x_queries, posed.queries, queries, "query"),
        )
    )
    return Problem(
        module=module,
        task=loss,
        train=train_tensors,
        queries=query_tensors,
        classes=posed.classes,
        train_rows=train,
        query_rows=queries,
        notes=(
            *(f"the model {note}" for note in model.notes),
            *posed.notes,
            *_cut(model, train, queries),
        ),
        texts=None
        if model.texts is None
        else (model.texts(train.features), model.texts(queries.features)),
    )


@dataclass(frozen=True)
class _Posed:
    """What is asked of a model: its task, and the targets of training rows and queries."""

    module: nn.Module
    task: Task
    classes: np.ndarray | None
    train: np.ndarray
    queries: np.ndarray
    notes: tuple[str, ...] = ()


def _without_labels(
    model: AuditedModel,
    train: Rows,
    queries: Rows,
    device: torch.device,
    task: str,
    class_weight: str | None,
) -> _Posed:
    """Ask a model whose rows have no labels by its own task."""
    assert model.loss is not None
    assert model.targets is not None, "a task of its own has targets"
    if task != "auto" or class_weight is not None:
        option = "--task" if task != "auto" else "--class-weight"
        raise DataError(f"the model's rows have no labels ({model.loss.name}): leave {option} out")
    module = place(model.module, device)
    y_train, y_queries = (model.targets(rows) for rows in (train, queries))
    return _Posed(module, model.loss, None, y_train, y_queries)


def _with_labels(
    model: AuditedModel,
    train: Rows,
    queries: Rows,
    x_train: np.ndarray,
    task: str,
    class_weight: str | None,
    device: torch.device,
    batch_size: int,
) -> _Posed:
    """Find out whether rows have classes or numbers."""
    # On the host, as the registered model is asked: a GPU rounds in its own way.
    sample = torch.as_tensor(x_train[:_SAMPLE])
    shape = _outputs(model.module, sample, batch_size)
    require_doubt(model, shape, train.labels, task)
    if train.targets is not None or queries.targets is not None or model.task == "multilabel":
        kind, module, notes = several_task(model, shape, train, queries, task)
    else:
        kind, module, notes = _task(model, shape, train.labels, task)
    if class_weight is not None and kind != "classification":
        raise ForwardInfError("--class-weight is for one label of some classes: leave it out")
    if isinstance(module, Wrapped) and kind != "multilabel":
        check_probabilities(model, module, train.features)
    module = place(module, device)
    if device.type != "cpu":  # not everything that runs on the host runs there
        first = Tensors(sample, sample, device, batch_size)
        with torch.no_grad():
            first_that_fits(first, lambda batch: _output(module, batch.inputs))
    if kind == "classification":
        classes, named = _classes(model, _width(shape), train)
        y_train = _class_indices(train, classes, "training")
        y_queries = _class_indices(queries, classes, "query")
        if len(np.unique(y_train)) < 2:
            raise DataError(
                "every training row has the same label: a model of one class cannot be audited"
            )
        weights = class_weights(model.estimator, class_weight, classes, y_train)
        loss: Task = Classification() if weights is None else Weighted(weights)
        return _Posed(module, loss, classes, y_train, y_queries, (*notes, *named))
    if train.targets is not None and queries.targets is not None:
        loss = MultiLabel() if kind == "multilabel" else Regression()
        numbers = train.targets, queries.targets
    else:
        loss, numbers = Regression(), (_numbers(train, "training"), _numbers(queries, "query"))
    y_train, y_queries = (torch.as_tensor(y).to(shape.dtype).numpy() for y in numbers)
    return _Posed(module, loss, None, y_train, y_queries, tuple(notes))


def _readable(
    module: nn.Module, task: Task, tensors: Tensors, rows: Rows, what: str
) -> tuple[Tensors, Rows]:
    """Leave out the rows whose loss is not a number."""
    fine = torch.isfinite(read(module, task, tensors).loss).numpy()
    if fine.all():
        return tensors, rows
    if not fine.any():
        raise ModelError(
            f"the model's loss is not a number on any {what} row: log a model that is trained"
        )
    return tensors.take(np.flatnonzero(fine)), rows.take(fine)


def _same_columns(train: Rows, queries: Rows) -> None:
    a, b = train.features, queries.features
    if isinstance(a, pd.DataFrame) and isinstance(b, pd.DataFrame):
        only_train, only_queries = (
            [str(c) for c in x.columns if c not in y.columns] for x, y in ((a, b), (b, a))
        )
        if only_train or only_queries:
            raise DataError(
                "training and query rows have different columns: "
                f"only in training {only_train[:5] or 'none'}, only in queries "
                f"{only_queries[:5] or 'none'}; name the common ones with --features"
            )
    elif isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.shape[1:] != b.shape[1:]:
            raise DataError(
                f"a training row has shape {a.shape[1:]}, a query row {b.shape[1:]}: give both "
                "the same"
            )
    elif a.shape[1:] != b.shape[1:]:
        raise DataError("training and query rows have different columns: log both in one format")


@torch.no_grad()
def _outputs(module: nn.Module, sample: Tensor, batch_size: int) -> Tensor:
    """Return the answers that are numbers."""
    rows = Tensors(sample, sample, sample.device, batch_size)
    answers = torch.cat(list(batches_that_fit(rows, lambda batch: _output(module, batch.inputs))))
    fine = torch.isfinite(answers).reshape(len(answers), -1).all(1)
    if not fine.any():
        raise ModelError(
            "the model answers NaN or infinity for the first training rows: log one that is trained"
        )
    return answers[fine]


def _output(module: nn.Module, sample: Tensor) -> Tensor:
    try:
        output = module(sample)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise  # fewer rows may fit
        raise DataError(
            f"the model cannot read these rows, each of shape {tuple(sample.shape[1:])}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if not isinstance(output, Tensor) or output.ndim not in (1, 2) or len(output) != len(sample):
        raise ModelError(
            "the model's output is not one number or one vector per row: only classification "
            "and regression can be audited"
        )
    return output


def _width(outputs: Tensor) -> int:
    return 1 if outputs.ndim == 1 else outputs.shape[1]


def _task(
    model: AuditedModel, outputs: Tensor, labels: np.ndarray, wanted: str
) -> tuple[str, nn.Module, list[str]]:
    """Decide the task, and turn what is not logits into logits."""
    module, width = model.module, _width(outputs)
    if model.task is not None and wanted not in ("auto", model.task):
        raise DataError(f"the model is made for {model.task}: leave --task out")
    kind = model.task or wanted
    if kind == "auto":
        numeric = np.issubdtype(labels.dtype, np.number)
        binary = width == 1 and set(np.unique(labels).tolist()) <= {0, 1, "0", "1"}
        kind = "classification" if width > 1 or binary or not numeric else "regression"
    if kind == "regression":
        if width != 1:
            raise ModelError(
                f"the model answers {width} numbers a row and the data have one target: give as "
                "many target columns (--label A,B), or name the output that is meant (--output)"
            )
        return kind, module, []
    if model.task is not None:
        return kind, module, []
    probability = bool(((outputs >= 0) & (outputs <= 1)).all())
    if width == 1:
        note = "one output per row was read as " + (
            "the probability of class 1" if probability else "the logit of class 1"
        )
        return kind, OneOutput(module, probability), [note]
    if probability and torch.allclose(outputs.sum(1), torch.ones_like(outputs[:, 0]), atol=1e-4):
        note = "the model answers probabilities; their logarithms were used as logits"
        return kind, Probabilities(module), [note]
    return kind, module, []


def _classes(model: AuditedModel, width: int, train: Rows) -> tuple[np.ndarray, list[str]]:
    """Return the label of each output, as the model calls them, or their positions ``(K,)``; notes.

    Names that a transformer has for its outputs count where labels are such names. Of pictures in
    folders whose names are no positions, the outputs are the folders in sorted order.
    """
    if model.classes is None:
        return _positions(max(2, width), train)
    return _named(model, model.classes, train.labels), []


def _positions(width: int, train: Rows) -> tuple[np.ndarray, list[str]]:
    folders = None if train.decoded is None else train.decoded.folders
    if folders is None or all(name.isdecimal() for name in folders):
        return np.arange(width), []
    if len(folders) != width:
        raise DataError(
            f"{train.uri} has {len(folders)} folders with pictures and the model {width} outputs: "
            "give a folder for each class, in sorted order as the model's outputs, or named 0 to "
            f"{width - 1}"
        )
    first, last = folders[0], folders[-1]
    note = f"the model's outputs were taken for the folders in sorted order, {first} to {last}"
    return folders, [note]


def _named(model: AuditedModel, classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the outputs' labels, by their names or, where labels are numbers, by position."""
    if model.kind == "transformers" and not np.isin(labels.astype(str), classes).any():
        numbers = pd.to_numeric(pd.Series(labels), errors="coerce")
        if numbers.notna().all():
            return np.arange(len(classes))
    return classes


def _cut(model: AuditedModel, train: Rows, queries: Rows) -> list[str]:
    """Return how many texts were longer than what the model reads, one sentence; none for none."""
    if model.cut is None:
        return []
    cut = [
        f"{count:,} {what} texts"
        for what, rows in (("training", train), ("query", queries))
        if (count := model.cut(rows.features))
    ]
    limit = f"{model.limit:,} tokens that the model reads"
    return [f"{' and '.join(cut)} were cut at the {limit}"] if cut else []


def _class_indices(rows: Rows, classes: np.ndarray, what: str) -> np.ndarray:
    """Return the class index of every label, ``(n,)`` int64."""
    labels = rows.labels
    if np.issubdtype(classes.dtype, np.number) and not np.issubdtype(labels.dtype, np.number):
        try:
            labels = labels.astype(np.float64)
        except (ValueError, TypeError):
            labels = labels.astype(str)
    if np.issubdtype(classes.dtype, np.number) == np.issubdtype(labels.dtype, np.number):
        index = {c: i for i, c in enumerate(classes.tolist())}
        found = [index.get(label, -1) for label in labels.tolist()]
    else:
        index = {str(c): i for i, c in enumerate(classes.tolist())}
        found = [index.get(str(label), -1) for label in labels.tolist()]
    indices = np.array(found, dtype=np.int64)
    unknown = np.flatnonzero(indices < 0)
    if len(unknown):
        row = unknown[0]
        known = ", ".join(map(str, classes[:10])) + (", ..." if len(classes) > 10 else "")
        raise DataError(
            f"the label '{labels[row]}' of {what} row {rows.ids[row]} is not one of the model's "
            f"{len(classes)} classes ({known}); {len(unknown)} rows are like that: name the right "
            "column with --label, or encode labels as the model's output positions"
        )
    return indices


def _numbers(rows: Rows, what: str) -> np.ndarray:
    """Return regression targets as ``(n,)`` float64."""
    numbers: np.ndarray = np.array(
        pd.to_numeric(pd.Series(rows.labels), errors="coerce"), dtype=np.float64
    )
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise DataError(
            f"the target '{rows.labels[bad[0]]}' of {what} row {rows.ids[bad[0]]} is not a finite "
            "number: name the right column with --label"
        )
    return numbers
