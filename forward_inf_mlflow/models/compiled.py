"""What compiled code follows without looking: trees are built anew, vectors and splines checked.

scikit-learn checks no more than types when it loads these, and its neighbours, libsvm and scipy's
splines read whatever the numbers of a file point to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.interpolate import BSpline
from sklearn.neighbors import (
    BallTree,
    KDTree,
    KNeighborsClassifier,
    KNeighborsRegressor,
    RadiusNeighborsClassifier,
    RadiusNeighborsRegressor,
)
from sklearn.svm._base import BaseLibSVM

from forward_inf_mlflow.errors import ModelError

_NEIGHBOURS = (
    *(KNeighborsClassifier, KNeighborsRegressor),
    *(RadiusNeighborsClassifier, RadiusNeighborsRegressor),
)
#: The highest degree of a spline.
_DEGREE = 20
_DAMAGED = "the model's {} are damaged: do not use this model"


def check_compiled(loaded: Any) -> None:
    """Make sure that compiled code can follow what is in a file, before anything is asked of it.

    Args:
        loaded: Any estimator. Its neighbours are fitted anew to the rows that they hold, which
            changes no answer.

    Raises:
        ModelError: Support vectors do not fit each other, or a search tree belongs to nobody who
            could build it anew.
    """
    for part in _parts(loaded, set()):
        if isinstance(part, _NEIGHBOURS):
            _fit_anew(part)
        elif isinstance(part, KDTree | BallTree):
            raise ModelError(
                "the model holds a search tree outside of scikit-learn's nearest neighbours, which "
                "cannot be checked: use KNeighbors or RadiusNeighbors"
            )
        elif isinstance(part, BaseLibSVM):
            _check_vectors(part)
        elif isinstance(part, BSpline):
            _check_spline(part)


def _parts(value: Any, seen: set[int]) -> Iterator[Any]:
    """Yield every object in an object; what neighbours hold is theirs."""
    if isinstance(value, str | bytes | int | float | type) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        inner: Any = value.values()
    elif isinstance(value, list | tuple | set):
        inner = value
    elif isinstance(value, np.ndarray):
        inner = value.reshape(-1).tolist() if value.dtype == object else ()
    else:
        yield value
        inner = () if isinstance(value, _NEIGHBOURS) else getattr(value, "__dict__", {}).values()
    for one in inner:
        yield from _parts(one, seen)


def _fit_anew(neighbours: Any) -> None:
    held = vars(neighbours)
    if "_fit_X" not in held:
        if any(isinstance(part, KDTree | BallTree) for part in held.values()):
            raise ModelError(_DAMAGED.format("neighbours"))
        return  # not fitted
    # Whatever else stands there, such as another's tree, scikit-learn would take over as it is.
    if not (isinstance(held["_fit_X"], np.ndarray) and held["_fit_X"].ndim == 2):
        raise ModelError(
            f"{type(neighbours).__name__} holds no dense rows, which cannot be checked: fit it to "
            "an array"
        )
    try:
        rows, labels = held["_fit_X"], held["_y"]
        if (classes := held.get("classes_")) is not None and not isinstance(classes, list):
            labels = np.asarray(classes)[labels]
        elif classes is not None:
            labels = np.stack([np.asarray(c)[y] for c, y in zip(classes, labels.T, strict=True)], 1)
        names = held.get("feature_names_in_")
        neighbours.fit(rows, labels)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(_DAMAGED.format("neighbours")) from error
    if names is not None:
        neighbours.feature_names_in_ = names


def _check_spline(spline: BSpline) -> None:
    """Refuse a spline whose knots, coefficients and degree do not fit each other."""
    try:
        checked = BSpline(spline.t, spline.c, spline.k, extrapolate=spline.extrapolate)
        fine = (
            0 <= spline.k <= _DEGREE
            and len(checked.c) == len(checked.t) - checked.k - 1
            and all(
                isinstance(one, np.ndarray) and one.dtype == np.float64
                for one in (spline.t, spline.c)
            )
        )
    except (TypeError, ValueError, AttributeError, OverflowError, MemoryError) as error:
        raise ModelError(_DAMAGED.format("splines")) from error
    if not fine:
        raise ModelError(_DAMAGED.format("splines"))


def _check_vectors(machine: Any) -> None:
    """Refuse support vectors whose counts and sizes do not fit each other."""
    held = vars(machine)
    if "_impl" in held:  # which routine of libsvm is meant is the class's to say
        raise ModelError(_DAMAGED.format("support vectors"))
    if "support_vectors_" not in held:
        return  # not fitted
    if held.get("_sparse") or held.get("kernel") == "precomputed":
        raise ModelError(
            f"{type(machine).__name__} of sparse or precomputed rows is not supported: train it on "
            "dense ones"
        )
    try:
        vectors, of_rows = np.asarray(held["support_vectors_"]), np.asarray(held["support_"])
        counts = np.asarray(held["_n_support"])
        machines = len(held["classes_"]) if "classes_" in held else 2
        pairs = machines * (machines - 1) // 2
        fine = (
            vectors.ndim == 2
            and vectors.shape[1] == held["n_features_in_"] == held["shape_fit_"][1]
            and of_rows.shape == vectors.shape[:1]
            and bool((of_rows >= 0).all() and (of_rows < held["shape_fit_"][0]).all())
            and np.shape(held["_dual_coef_"]) == (machines - 1, len(vectors))
            and np.shape(held["_intercept_"]) == (pairs,)
            and counts.shape == (machines,)
            and bool((counts >= 0).all())
            and ("classes_" not in held or counts.sum() == len(vectors))
            and all(np.shape(held[name]) in ((0,), (pairs,)) for name in ("_probA", "_probB"))
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ModelError(_DAMAGED.format("support vectors")) from error
    if not fine:
        raise ModelError(_DAMAGED.format("support vectors"))
