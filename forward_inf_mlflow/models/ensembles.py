"""scikit-learn's trees, forests and boosting, read into torch modules that answer the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.tree._tree import Tree as SklearnTree

from forward_inf_mlflow.errors import ModelError
from forward_inf_mlflow.models.trees import Boosting, Forest, Tree

_FORESTS = (
    *(DecisionTreeClassifier, DecisionTreeRegressor, RandomForestClassifier),
    *(RandomForestRegressor, ExtraTreesClassifier, ExtraTreesRegressor),
)
_STAGED = (GradientBoostingClassifier, GradientBoostingRegressor)
_BINNED = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)
#: Criteria whose leaves answer the mean of their rows; the others' answer a median.
_MEANS = ("squared_error", "friedman_mse", "poisson", "gini", "entropy", "log_loss")
_NEWTON = ("log_loss", "squared_error")
_CATEGORIES = (
    "boosting that splits categories is not supported: encode them as numbers first "
    "(OrdinalEncoder in a Pipeline, categorical_features=None)"
)
_DAMAGED = "the model's trees are damaged: do not use this model"


def ensemble(estimator: Any) -> Forest | Boosting | None:
    """Rebuild a fitted ensemble of trees; None if it is none that is known.

    Raises:
        ModelError: Its leaves cannot be estimated anew by a count, or it is damaged.
        AttributeError: It is not fitted.
    """
    # The exact types: a subclass may predict otherwise.
    kind = type(estimator)
    if kind in _FORESTS:
        return _forest(estimator)
    if kind in _STAGED:
        return _staged(estimator)
    if kind in _BINNED:
        return _binned(estimator)
    return None


def check_trees(loaded: Any) -> None:
    """Refuse trees of a file whose nodes lead out of them: compiled code would follow them.

    scikit-learn checks the shape of a tree that it loads and not where its nodes point, and reads
    whatever lies there, for ever if they point back.

    Args:
        loaded: Any estimator, before anything is asked of it.

    Raises:
        ModelError: A node points to none that comes after it, or asks for a column that is not
            there.
    """
    for tree, width in _trees_in(loaded, None, set()):
        if isinstance(tree, SklearnTree):
            inner = tree.children_left != -1
            sides = tree.children_left[inner], tree.children_right[inner]
            column = tree.feature[inner]
        else:
            nodes = np.asarray(tree.nodes)
            if nodes.ndim != 1 or nodes.dtype.names is None or not len(nodes):
                raise ModelError(_DAMAGED)
            inner = nodes["is_leaf"] == 0
            sides = nodes["left"][inner].astype(np.int64), nodes["right"][inner].astype(np.int64)
            column = nodes["feature_idx"][inner]
            if nodes["is_categorical"].any():  # which point to sets of categories besides
                raise ModelError(_CATEGORIES)
        at = np.flatnonzero(inner)
        if not all(((side > at) & (side < len(inner))).all() for side in sides):
            raise ModelError(_DAMAGED)
        if len(column) and (column.min() < 0 or (width is not None and column.max() >= width)):
            raise ModelError(_DAMAGED)


def _trees_in(value: Any, width: int | None, seen: set[int]) -> Iterator[tuple[Any, int | None]]:
    """Yield every tree in an object, with the columns that all estimators around it let through."""
    if isinstance(value, str | bytes | int | float | type) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, SklearnTree | TreePredictor):
        yield value, width
        return
    if isinstance(value, dict):
        inner: Any = value.values()
    elif isinstance(value, list | tuple | set):
        inner = value
    elif isinstance(value, np.ndarray):
        inner = value.reshape(-1).tolist() if value.dtype == object else ()
    else:
        inner = getattr(value, "__dict__", {}).values()
        if any(hasattr(value, name) for name in ("tree_", "estimators_", "_predictors")):
            known = vars(value).get("n_features_in_")
            known = known if isinstance(known, int) else 0  # then no column is allowed
            width = known if width is None else min(width, known)
    for one in inner:
        yield from _trees_in(one, width, seen)


def _forest(estimator: Any) -> Forest:
    classes = hasattr(estimator, "classes_")
    if estimator.n_outputs_ != 1:
        raise ModelError(
            f"{type(estimator).__name__} with {estimator.n_outputs_} outputs is not supported: "
            "train one for each"
        )
    _require(estimator, "criterion", _MEANS, "leaves answer a median, which no count changes")
    if getattr(estimator, "monotonic_cst", None) is not None:
        raise ModelError(
            f"{type(estimator).__name__} with monotonic_cst is not supported, because its leaves "
            "are not the means of their rows: train it without"
        )
    members = getattr(estimator, "estimators_", None)
    if members is None:
        trees, copy = [estimator.tree_], 1.0
    else:
        trees = [member.tree_ for member in members]
        drawn = estimator._n_samples_bootstrap if estimator.bootstrap else estimator._n_samples
        copy = float(drawn / estimator._n_samples)
    return Forest(
        [_tree(tree, tree.value[:, 0, :]) for tree in trees],
        classes=classes,
        copy=copy,
        class_weights=_class_weights(estimator) if classes else None,
    )


def _staged(estimator: Any) -> Boosting:
    classes = isinstance(estimator, GradientBoostingClassifier)
    _require(estimator, "loss", _NEWTON, "leaves answer no Newton step of the loss that is read")
    if estimator.init not in (None, "zero"):
        raise ModelError(
            f"{type(estimator).__name__} that begins from another estimator (init) is not "
            "supported: train it without"
        )
    start = estimator._raw_predict_init(np.zeros((1, estimator.n_features_in_)))[0]
    k = len(start)
    return Boosting(
        [
            _tree(member.tree_, estimator.learning_rate * member.tree_.value[:, 0, :])
            for stage in estimator.estimators_
            for member in stage
        ],
        classes=classes,
        start=start,
        factor=estimator.learning_rate * ((k - 1) / k if k > 1 else 1.0),
        penalty=0.0,
        single=True,
        class_weights=None,
    )


def _binned(estimator: Any) -> Boosting:
    classes = isinstance(estimator, HistGradientBoostingClassifier)
    _require(estimator, "loss", _NEWTON, "leaves answer no Newton step of the loss that is read")
    if estimator.is_categorical_ is not None:
        raise ModelError(_CATEGORIES)
    if estimator.monotonic_cst is not None:
        raise ModelError(
            f"{type(estimator).__name__} with monotonic_cst is not supported, because its leaves "
            "are bounded by each other: train it without"
        )
    return Boosting(
        [_predictor(tree.nodes) for stage in estimator._predictors for tree in stage],
        classes=classes,
        start=np.asarray(estimator._baseline_prediction).reshape(-1),
        factor=estimator.learning_rate,
        penalty=estimator.l2_regularization,
        single=False,
        class_weights=_class_weights(estimator) if classes else None,
    )


def _tree(tree: Any, value: np.ndarray) -> Tree:
    own = np.arange(tree.node_count)
    is_leaf = tree.children_left == -1
    return Tree(
        left=np.where(is_leaf, own, tree.children_left),
        right=np.where(is_leaf, own, tree.children_right),
        feature=tree.feature,
        threshold=tree.threshold,
        value=value,
        weight=tree.weighted_n_node_samples,
    )


def _predictor(nodes: np.ndarray) -> Tree:
    own = np.arange(len(nodes))
    is_leaf = nodes["is_leaf"] != 0
    return Tree(
        left=np.where(is_leaf, own, nodes["left"]),
        right=np.where(is_leaf, own, nodes["right"]),
        feature=nodes["feature_idx"],
        threshold=nodes["num_threshold"],
        value=nodes["value"][:, None],
        weight=nodes["count"].astype(np.float64),
    )


def _class_weights(estimator: Any) -> Any:
    """Return what a row of each class weighs ``(K,)``, "balanced", or None for 1."""
    told = estimator.class_weight
    if told is None:
        return None
    if isinstance(told, str):
        return "balanced"  # over each bootstrap it is so on average
    return np.array([float(told.get(name, 1.0)) for name in estimator.classes_.tolist()])


def _require(estimator: Any, name: str, known: tuple[str, ...], why: str) -> None:
    """Refuse a setting by which leaves answer something else than what is estimated here."""
    if getattr(estimator, name) not in known:
        fitting = ", ".join(one for one in known[:2])
        raise ModelError(
            f"{type(estimator).__name__} with {name} {str(getattr(estimator, name))[:40]!r} is not "
            f"supported, because its {why}: train it with another ({fitting})"
        )
