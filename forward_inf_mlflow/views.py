"""Views: the rows as they are, and as the audited model sees them, for whoever compares rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from forward_inf_mlflow.detect import neighbours as nb
from forward_inf_mlflow.detect.experts import Expert
from forward_inf_mlflow.detect.opinions import of_linear, of_neighbours, of_trusted_neighbours
from forward_inf_mlflow.memory import batches_that_fit
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.tensors import Tensors

#: Numbers of a view that are held at most; more are projected at random, to fewer columns.
_HELD, _COLUMNS = 2**28, 256
#: Words of texts that neighbours are looked for by.
_WORDS = 2**16

#: Inputs ``(k, ...)`` to encodings ``(k, h)``.
Encode = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class View:
    """Training rows and queries in one form, float32.

    Attributes:
        name: What rows are compared by.
        train: ``(n, d)``.
        queries: ``(m, d)``.
    """

    name: str
    train: np.ndarray
    queries: np.ndarray


@dataclass(frozen=True)
class Views:
    """Every form there is.

    Attributes:
        inputs: The model's inputs as they are, and columns by their spread where they are a table.
        encodings: What the model's first linear layer sees, where that is not the input; or None.
        features: What its last one sees; or None.
        said: The probabilities that a model gives of which nothing else can be seen; or None. Near
            by these is alike in the model's eyes, and no copy.
    """

    inputs: tuple[View, ...]
    encodings: View | None
    features: View | None
    said: View | None = None


def read_views(model: AuditedModel, problem: Problem) -> Views:
    """Read all rows once more where the model has features."""
    if problem.texts is not None and not problem.train.inputs.is_floating_point():
        inputs = text_views(*problem.texts)  # the inputs are the numbers of tokens
    else:
        inputs = input_views(problem.train.inputs.numpy(), problem.queries.inputs.numpy())
    encodings = _view("the model's encodings", model.encoded, problem)
    features = _view("the model's features", model.features, problem)
    if encodings is not None and inputs and encodings.train.shape == inputs[0].train.shape:
        encodings = None if np.allclose(encodings.train, inputs[0].train, atol=1e-5) else encodings
    said = None
    if model.fixed and problem.classes is not None:
        said = _view("the model's probabilities", _probable(problem.module), problem)
    return Views(inputs, encodings, features, said)


def _probable(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return inputs ``(B, ...)`` to probabilities ``(B, K)``."""
    return lambda inputs: torch.softmax(module(inputs), dim=1)


def input_views(train: np.ndarray, queries: np.ndarray) -> tuple[View, ...]:
    """Return inputs ``(n, ...)`` and ``(m, ...)`` by direction, and a table's columns by spread."""
    flat = [x.reshape(len(x), -1).astype(np.float32) for x in (train, queries)]
    views = [View("input", *map(nb.unit, flat))]
    if train.ndim == 2:
        other, own = nb.standardized(queries, train)
        views.append(View("standardised input", own, other))
    return tuple(views)


def text_views(train: np.ndarray, queries: np.ndarray) -> tuple[View, ...]:
    """Return texts ``(n,)`` and ``(m,)`` by their words, in the space of what occurs together."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(
        sublinear_tf=True,
        min_df=2,
        max_features=_WORDS,
        token_pattern=r"(?u)\w+",  # noqa: S106  no secret
        dtype=np.float32,
    )
    try:
        counted = words.fit_transform(train)
    except ValueError:  # no word occurs twice
        return ()
    if min(counted.shape) < 3:
        return ()
    space = TruncatedSVD(min(_COLUMNS, min(counted.shape) - 1), random_state=0)
    own, others = space.fit_transform(counted), space.transform(words.transform(queries))
    return (View("words", nb.unit(own), nb.unit(others)),)


def experts(
    views: Views,
    labels: np.ndarray,
    groups: np.ndarray,
    query_labels: np.ndarray,
    trusted: np.ndarray,
    classes: int,
) -> tuple[list[Expert], list[Expert]]:
    """Return what neighbours and linear models say, by two kinds of views of the rows.

    First by those that no label has shaped, then by those that the model has learned.

    Args as in `detect.opinions.of_neighbours`.
    """

    def votes(views: Iterable[View | None]) -> list[Expert]:
        found: list[Expert | None] = []
        for view in views:
            if view is None:
                continue
            rows = view.train, view.queries
            found.append(
                of_neighbours(
                    f"neighbours by {view.name}",
                    *rows,
                    labels,
                    groups,
                    query_labels,
                    trusted,
                    classes=classes,
                )
            )
            name = f"queries near by {view.name}"
            found.append(of_trusted_neighbours(name, *rows, query_labels, trusted, classes=classes))
            name = f"linear by {view.name}"
            found.append(of_linear(name, *rows, labels, query_labels, trusted, classes=classes))
        return [expert for expert in found if expert is not None]

    return votes(views.inputs), votes([views.encodings, views.features, views.said])


def encoder(model: AuditedModel, problem: Problem, views: Views) -> Encode | None:
    """Return what gives the encodings of other inputs ``(k, ...)``; None where there are none."""
    if views.encodings is None or model.encoded is None:
        return None
    read = _reader(model.encoded, len(problem.train) + len(problem.queries))

    def encode(inputs: np.ndarray) -> np.ndarray:
        some = problem.queries
        targets = some.targets[:1].expand(len(inputs), *some.targets.shape[1:])
        rows = torch.from_numpy(inputs).to(some.inputs.dtype)
        return read(replace(some, inputs=rows, targets=targets))

    return encode


def _view(name: str, function: Callable[[Tensor], Tensor] | None, problem: Problem) -> View | None:
    """Return what a function of the inputs gives, rows at unit length."""
    if function is None:
        return None
    read = _reader(function, len(problem.train) + len(problem.queries))
    return View(name, read(problem.train), read(problem.queries))


def _reader(function: Callable[[Tensor], Tensor], in_all: int) -> Callable[[Tensors], np.ndarray]:
    """Return what reads rows by a function of the inputs, at unit length; with few columns if many.

    Args:
        function: ``(B, ...)`` to ``(B, h)``.
        in_all: How many rows there are in all.
    """
    projection: Tensor | None = None

    @torch.no_grad()
    def of(rows: Tensors) -> np.ndarray:
        def read(values: Tensor) -> Tensor:
            nonlocal projection
            found = function(values).float()
            if found.shape[1] * in_all > _HELD and found.shape[1] > _COLUMNS:
                if projection is None:
                    draw = torch.Generator().manual_seed(0)
                    drawn = torch.randn(found.shape[1], _COLUMNS, generator=draw)
                    projection = drawn.to(found.device)
                found = found @ projection
            return found.cpu()

        return nb.unit(torch.cat(list(batches_that_fit(rows, lambda b: read(b.inputs)))).numpy())

    return of
