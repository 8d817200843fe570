"""scikit-learn estimators, rebuilt as float64 torch modules that answer the same.

Linear models and networks here, ensembles of trees in `ensembles`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline
from torch import Tensor, nn

from forward_inf_mlflow.errors import ModelError, UnsafeModelError
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.compiled import check_compiled
from forward_inf_mlflow.models.ensembles import check_trees, ensemble
from forward_inf_mlflow.models.fixed import fixed_estimator
from forward_inf_mlflow.models.inputs import InputSpec
from forward_inf_mlflow.models.mlmodel import FIXED_BY, SUPPORTED
from forward_inf_mlflow.models.several_estimators import stacked
from forward_inf_mlflow.models.transform import Transform
from forward_inf_mlflow.models.trees import Boosting, Forest, Trees

#: Types beyond skops's own list that supported estimators and usual transformers hold. Each only
#: stores numbers or computes with them; a model's own list is never read. Trees, search trees and
#: support vectors are checked too or built anew, because compiled code follows them.
TRUSTED = (
    "sklearn.tree._tree.Tree",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neighbors._ball_tree.BallTree",
    *(
        f"sklearn.metrics._dist_metrics.{name}Distance64"
        for name in ("Euclidean", "Manhattan", "Chebyshev", "Minkowski")
    ),
    "sklearn.compose._column_transformer.make_column_selector",
    "sklearn.feature_selection._univariate_selection.f_classif",
    "sklearn.feature_selection._univariate_selection.f_regression",
    "sklearn.feature_selection._univariate_selection.chi2",
    "numpy.dtype",
    "scipy.interpolate._bsplines.BSpline",
    "scipy._lib.array_api_compat.numpy._aliases.asarray",
)
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}


class Logits(nn.Module):
    """Scores of an estimator ``(B, K)`` or ``(B, 1)`` to logits whose softmax it predicts.

    Attributes:
        body: The estimator's own parameters: inputs ``(B, d)`` to scores.
        one_vs_rest: Whether each class has a sigmoid of its own, normalised afterwards.
    """

    def __init__(self, body: nn.Sequential, *, one_vs_rest: bool) -> None:
        super().__init__()
        self.body = body
        self.one_vs_rest = one_vs_rest

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``(B, K)``, two of them for a binary estimator."""
        scores = self.body(inputs)
        if scores.shape[1] == 1:
            return torch.cat([torch.zeros_like(scores), scores], dim=1)
        # softmax(log s) = s / sum(s)
        return nn.functional.logsigmoid(scores) if self.one_vs_rest else scores


class Several(nn.Module):
    """Several linear scores: inputs ``(B, d)`` to log-odds of labels or predictions ``(B, k)``."""

    def __init__(self, body: nn.Sequential, task: str) -> None:
        super().__init__()
        self.body, self.task = body, task

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the scores ``(B, k)``."""
        return torch.as_tensor(self.body(inputs))


class Value(nn.Module):
    """A regressor: inputs ``(B, d)`` to predictions ``(B,)``."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, inputs: Tensor) -> Tensor:
        """Return predictions ``(B,)``."""
        return torch.as_tensor(self.body(inputs)).squeeze(1)


def read_skops(path: Path, *, trust_all: bool = False) -> Any:
    """Load a skops file, trusting the types on our list only.

    Args:
        path: The file.
        trust_all: Trust whatever it holds: this permits it to run code.

    Raises:
        UnsafeModelError: It holds a type that is not on the list; the message names it.
        ModelError: A tree in it leads nowhere, or support vectors do not fit each other.
    """
    import skops.io

    unknown = set(skops.io.get_untrusted_types(file=path))
    if not trust_all and (foreign := sorted(unknown - set(TRUSTED))):
        raise UnsafeModelError(
            f"The model holds {', '.join(foreign)[:160]}, which is not known to be safe: use "
            "scikit-learn's own parts, or permit it with --allow-pickle if you trust who made it."
        )
    loaded = skops.io.load(path, trusted=sorted(unknown))
    check_trees(loaded)
    check_compiled(loaded)
    return loaded


def audited_estimator(estimator: Any, *, fixed: bool = False) -> AuditedModel:
    """Rebuild a fitted estimator, or a pipeline that ends in one, as a torch module.

    The module's parameters are the estimator's own; the pipeline's other steps stay as they are
    and run in ``prepare``.

    Args:
        estimator: What was loaded.
        fixed: Whether one that cannot be rebuilt will do, which no query can move.

    Raises:
        ModelError: The estimator is not supported, not fitted, or has several outputs.
    """
    steps: list[Any] = []
    last = estimator
    while isinstance(last, Pipeline):
        steps += [step for _, step in last.steps[:-1] if step not in (None, "passthrough")]
        last = last.steps[-1][1]
    try:
        module = _rebuild(last)
    except ModelError:
        if not fixed:
            raise
        return fixed_estimator(estimator)
    transform = Transform(estimator, tuple(steps))
    if isinstance(module, Several):
        several = module.task == "multilabel"
        return AuditedModel(
            module=module.eval(),
            prepare=transform.prepare,
            kind="sklearn",
            original=transform.label_odds if several else transform.predict,
            task=module.task,
            estimator=estimator,
        )
    columns = None if transform.reads_texts else getattr(estimator, "n_features_in_", None)
    classifier = module.classes if isinstance(module, Trees) else isinstance(module, Logits)
    return AuditedModel(
        module=module.eval(),
        prepare=transform.prepare,
        kind="sklearn",
        original=transform.predict_proba if classifier else transform.predict,
        task="classification" if classifier else "regression",
        classes=np.asarray(last.classes_) if classifier else None,
        features=_features(module),
        estimator=estimator,
        probabilities=classifier,
        texts=transform.texts if transform.reads_texts else None,
        takes=None if columns is None else InputSpec(np.dtype(np.float64), (int(columns),)),
    )


def _features(module: Logits | Value | Forest | Boosting) -> Callable[[Tensor], Tensor]:
    """Return what gives the model's own view of rows: leaves, or what its last layer sees."""
    if isinstance(module, Trees):
        return module.features
    head = module.body[:-1]  # all but the last linear layer; nothing for linear models
    return lambda inputs: torch.as_tensor(head(inputs))


def _rebuild(estimator: Any) -> Logits | Value | Several | Forest | Boosting:
    # The exact types: a subclass may predict otherwise.
    kind = type(estimator)
    try:
        if (several := stacked(estimator)) is not None:
            weight, bias, task = several
            return Several(nn.Sequential(_layer(weight, bias)), task)
        if kind is LogisticRegression:
            # Older releases fit liblinear, and multi_class="ovr", one class against the rest.
            rest = "ovr" in (getattr(estimator, "multi_class", ""),) or (
                estimator.solver == "liblinear"
            )
            return Logits(_linear(estimator), one_vs_rest=rest)
        if kind is SGDClassifier and estimator.loss == "log_loss":
            return Logits(_linear(estimator), one_vs_rest=True)
        if kind in (LinearRegression, Ridge):
            return Value(_linear(estimator, outputs=1))
        if kind is MLPClassifier and not (
            estimator.out_activation_ == "logistic" and estimator.n_outputs_ > 1
        ):
            return Logits(_layers(estimator), one_vs_rest=False)
        if kind is MLPRegressor and (estimator.n_outputs_, estimator.out_activation_) == (
            1,
            "identity",
        ):
            return Value(_layers(estimator))
        if (trees := ensemble(estimator)) is not None:
            return trees
    except AttributeError as error:
        raise ModelError(
            f"The {kind.__name__} is not fitted ({error}): fit it, and log it again."
        ) from error
    detail = f" with loss {estimator.loss!r}" if kind is SGDClassifier else ""
    if isinstance(estimator, ClassifierMixin) and not hasattr(estimator, "predict_proba"):
        raise ModelError(
            f"{kind.__name__}{detail} is not supported here, because it has no predict_proba, but "
            f"{SUPPORTED}: train one of these, or audit it as any other is, {FIXED_BY}."
        )
    raise ModelError(
        f"{kind.__name__}{detail} is not supported here, but {SUPPORTED}, and any other {FIXED_BY}."
    )


def _linear(estimator: Any, *, outputs: int | None = None) -> nn.Sequential:
    weight = np.atleast_2d(np.asarray(estimator.coef_, dtype=np.float64))  # (K, d) or (1, d)
    if outputs is not None and len(weight) != outputs:
        raise ModelError(
            f"{type(estimator).__name__} with {len(weight)} outputs is not supported here, but "
            f"{SUPPORTED} with one output."
        )
    bias = np.broadcast_to(np.asarray(estimator.intercept_, dtype=np.float64), (len(weight),))
    return nn.Sequential(_layer(weight, bias))


def _layers(estimator: Any) -> nn.Sequential:
    layers: list[nn.Module] = []
    for weight, bias in zip(estimator.coefs_, estimator.intercepts_, strict=True):
        layers += [_layer(weight.T, bias), _ACTIVATIONS[estimator.activation]()]
    return nn.Sequential(*layers[:-1])  # the last activation is the loss's business


def _layer(weight: np.ndarray, bias: np.ndarray) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(np.array(weight, dtype=np.float64)))
        layer.bias.copy_(torch.as_tensor(np.array(bias, dtype=np.float64)))
    return layer
