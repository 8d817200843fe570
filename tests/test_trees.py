"""Ensembles of trees: modules answer as they do, and influence is what counting by hand says."""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
import torch
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from forward_inf_mlflow.directions import Replay
from forward_inf_mlflow.directions.leaves import LeafValues, Stages, counted
from forward_inf_mlflow.errors import ForwardInfError, ModelError
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.models.estimator import audited_estimator, read_skops
from forward_inf_mlflow.models.parity import check_parity
from forward_inf_mlflow.models.trees import LEAST, Boosting, Forest
from forward_inf_mlflow.planner import Job, plan
from forward_inf_mlflow.tasks import Classification, Regression
from forward_inf_mlflow.tensors import Tensors

IRIS = load_iris(return_X_y=True)
TWO = IRIS[0][:100, :2], IRIS[1][:100]
DIABETES = load_diabetes(return_X_y=True)
ENSEMBLES = {
    "tree": (DecisionTreeClassifier(max_depth=3, random_state=0), IRIS),
    "forest": (RandomForestClassifier(5, random_state=0), IRIS),
    "forest of two classes": (RandomForestClassifier(5, max_leaf_nodes=6, random_state=0), TWO),
    "balanced forest": (RandomForestClassifier(5, class_weight="balanced", random_state=0), TWO),
    "regression tree": (DecisionTreeRegressor(max_depth=3, random_state=0), DIABETES),
    "forest of numbers": (RandomForestRegressor(5, max_depth=4, random_state=0), DIABETES),
    "extra trees": (ExtraTreesRegressor(5, max_depth=4, random_state=0), DIABETES),
    "boosting": (GradientBoostingClassifier(n_estimators=4, random_state=0), IRIS),
    "boosting of two classes": (GradientBoostingClassifier(n_estimators=4, random_state=0), TWO),
    "boosting from zero": (GradientBoostingClassifier(n_estimators=2, init="zero"), IRIS),
    "boosting of numbers": (GradientBoostingRegressor(n_estimators=4, random_state=0), DIABETES),
    "hist": (HistGradientBoostingClassifier(max_iter=4, random_state=0), IRIS),
    "hist of two classes": (HistGradientBoostingClassifier(max_iter=4, random_state=0), TWO),
    "hist of numbers": (
        HistGradientBoostingRegressor(max_iter=4, l2_regularization=1.0, random_state=0),
        DIABETES,
    ),
}


@functools.cache
def fitted(name: str) -> Any:
    estimator, (x, y) = ENSEMBLES[name]
    return copy.deepcopy(estimator).fit(x, y)


def tensors(x: np.ndarray, y: np.ndarray) -> Tensors:
    return Tensors(torch.as_tensor(x), torch.as_tensor(y), torch.device("cpu"), 64)


@pytest.mark.parametrize("piped", [False, True], ids=["alone", "in a pipeline"])
@pytest.mark.parametrize("name", ENSEMBLES)
def test_the_module_answers_as_the_ensemble_does(name: str, piped: bool, tmp_path: Path) -> None:
    estimator, (x, y) = ENSEMBLES[name]
    found = fitted(name)
    if piped:
        found = make_pipeline(StandardScaler(), copy.deepcopy(estimator)).fit(x, y)
    skops.io.dump(found, tmp_path / "model.skops")
    model = audited_estimator(read_skops(tmp_path / "model.skops"))  # no permission is needed
    assert check_parity(model, x, rows=len(x)) <= 2 * LEAST
    assert model.task == ("classification" if hasattr(found, "classes_") else "regression")


def by_counting(estimator: Any, x: np.ndarray, y: Any, train: np.ndarray) -> np.ndarray:
    """Return what a forest answers of training rows when one copy of a query was added."""
    answers = []
    for row in train:
        said = []
        for member in estimator.estimators_:
            tree = member.tree_
            asked, own = (int(tree.apply(r[None].astype(np.float32))[0]) for r in (x, row))
            s, n = (
                tree.value[own, 0] * tree.weighted_n_node_samples[own],
                tree.weighted_n_node_samples[own],
            )
            if asked == own:
                s = s + (np.eye(len(s))[int(y)] if hasattr(estimator, "classes_") else y)
                n = n + 1
            said.append(s / n)
        answers.append(np.mean(said, 0))
    return np.array(answers)


@pytest.mark.parametrize("name", ["forest", "forest of numbers"])
def test_influence_of_a_forest_is_counted(name: str) -> None:
    estimator, (x, y) = fitted(name), ENSEMBLES[name][1]
    module = audited_estimator(estimator).module
    classes = hasattr(estimator, "classes_")
    engine = ForwardInfluence(
        task=Classification() if classes else Regression(), direction=LeafValues()
    )
    target = y if classes else y.astype(np.float64)
    at, rows = 77, np.arange(0, 140, 7)
    query = tensors(x[[at]] + 0.01, target[[at]])
    found = engine.influence(
        module,
        QueryGroups.each(query, np.array(["q"])),
        tensors(x[rows], target[rows]),
        rows.astype(str),
    )
    before = estimator.predict_proba(x[rows]) if classes else estimator.predict(x[rows])
    after = by_counting(estimator, x[at] + 0.01, target[at], x[rows])
    if classes:
        p, q = (np.maximum(a, LEAST)[np.arange(len(rows)), y[rows]] for a in (before, after))
        expected = np.log(q) - np.log(p)
    else:
        expected = ((before - y[rows]) ** 2 - (after[:, 0] - y[rows]) ** 2) / 2
    np.testing.assert_allclose(found.scores.values[0], expected, rtol=1e-4, atol=1e-6)
    assert (expected == 0).any() or not classes
    assert np.abs(expected).max() > 1e-4


def test_a_row_that_shares_no_leaf_is_not_changed_at_all() -> None:
    estimator = fitted("forest")
    module = audited_estimator(estimator).module
    assert isinstance(module, Forest)
    query = tensors(*(some[[0]] for some in IRIS))
    changed = counted(module, query, torch.as_tensor(IRIS[1])) != module.values
    leaves = module.leaves(query.inputs)[0]
    elsewhere = torch.ones(len(changed), dtype=torch.bool)
    elsewhere[leaves] = False
    assert not changed[elsewhere].any()
    assert not changed.any()  # every tree knew: an equal row changes no share


def test_a_copy_weighs_what_a_training_row_weighs() -> None:
    x, y = TWO[0][:70], TWO[1][:70]  # 50 and 20 rows
    for told, expected in (("balanced", 70 / (2 * 20)), ({0: 1.0, 1: 3.0}, 3.0), (None, 1.0)):
        tree = DecisionTreeClassifier(max_depth=1, class_weight=told, random_state=0).fit(x, y)
        module = audited_estimator(tree).module
        assert isinstance(module, Forest)
        query = tensors(x[[0]], np.array([1]))  # a row of the first class, said to be of the second
        leaf = int(module.leaves(query.inputs)[0, 0])
        n, share = float(module.weights[leaf]), module.values[leaf, 1].item()
        found = float(counted(module, query, torch.as_tensor(y))[leaf, 1])
        assert found == pytest.approx((share * n + expected) / (n + expected))
    half = RandomForestClassifier(2, max_samples=0.5, random_state=0).fit(x, y)
    module = audited_estimator(half).module
    assert isinstance(module, Forest)
    assert module.copy == 0.5


def newton(estimator: Any, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the scores ``(n, K)`` of rows by fitted trees whose leaves are estimated by hand."""
    hist = hasattr(estimator, "_predictors")
    rate, k = estimator.learning_rate, 1
    if hist:
        start = estimator._baseline_prediction.reshape(-1)
        stages = estimator._predictors
    else:
        start = estimator._raw_predict_init(x[:1])[0]
        stages = estimator.estimators_
    k = len(start)
    scores = np.tile(start, (len(x), 1)).astype(np.float64)
    for stage in stages:
        if not hasattr(estimator, "classes_"):
            pull, bend = y[:, None] - scores, np.ones_like(scores)
        elif k == 1:
            p = 1 / (1 + np.exp(-scores))
            pull, bend = y[:, None] - p, p * (1 - p)
        else:
            p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
            pull, bend = np.eye(k)[y] - p, p * (1 - p)
        for c, member in enumerate(stage):
            leaf = by_hand(member.nodes, x) if hist else member.apply(x)
            for one in set(leaf.tolist()):
                here = leaf == one
                s, h = ((some[here, c] * weight[here]).sum() for some in (pull, bend))
                step = s / (h + (estimator.l2_regularization if hist else 0))
                scores[here, c] += rate * step * (1 if hist or k == 1 else (k - 1) / k)
    return scores


def by_hand(nodes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Follow each row through the nodes of a predictor."""
    leaves = []
    for row in x:
        at = 0
        while not nodes[at]["is_leaf"]:
            left = row[nodes[at]["feature_idx"]] <= nodes[at]["num_threshold"]
            at = int(nodes[at]["left" if left else "right"])
        leaves.append(at)
    return np.array(leaves)


BOOSTED = [name for name in ENSEMBLES if name.startswith(("boosting", "hist"))]


@pytest.mark.parametrize("name", BOOSTED)
def test_boosting_is_estimated_anew_stage_by_stage(name: str) -> None:
    estimator, (x, y) = fitted(name), ENSEMBLES[name][1]
    y = y if hasattr(estimator, "classes_") else y.astype(np.float64)
    module = audited_estimator(estimator).module
    assert isinstance(module, Boosting)
    stages = Stages(module, tensors(x, y))
    assert stages.agreement > 1 - 1e-9  # the fitted leaves are what is estimated here
    query, label = x[70] + 0.03, y[[10]]
    found = stages.values(tensors(query[None], label))[:, 0] - module.values[:, 0].detach()
    change = found[module.staged(torch.as_tensor(x))].sum(1).numpy()
    both, ones = np.concatenate([x, query[None]]), np.ones(len(x) + 1)
    labels = np.concatenate([y, label])
    expected = (
        newton(estimator, both, labels, ones)[:-1]
        - newton(estimator, both, labels, np.append(ones[:-1], 0.0))[:-1]
    )
    np.testing.assert_allclose(change, expected, rtol=1e-6, atol=1e-9 * np.abs(y).max())
    assert np.abs(expected).max() > 1e-4


def test_drawn_stages_are_said_to_agree_less() -> None:
    drawn = GradientBoostingClassifier(n_estimators=4, subsample=0.3, random_state=0).fit(*TWO)
    module = audited_estimator(drawn).module
    assert isinstance(module, Boosting)
    assert 0.5 < Stages(module, tensors(*TWO)).agreement < 0.9999


def test_several_queries_are_one_copy_together() -> None:
    module = audited_estimator(fitted("forest of numbers")).module
    assert isinstance(module, Forest)
    x, y = DIABETES[0][:2], DIABETES[1][:2].astype(np.float64)
    train = torch.as_tensor(DIABETES[1])
    twice = counted(module, tensors(x[[0, 0]], y[[0, 0]]), train)
    torch.testing.assert_close(twice, counted(module, tensors(x[:1], y[:1]), train))


def test_cosines_of_features_are_shares_of_trees() -> None:
    x, y = DIABETES
    for trees in (5, 60):  # a column a leaf, and random directions
        forest = RandomForestRegressor(trees, max_leaf_nodes=40, random_state=0).fit(x, y)
        model = audited_estimator(forest)
        assert model.features is not None
        seen = torch.nn.functional.normalize(model.features(torch.as_tensor(x[:50])))
        leaves = forest.apply(x[:50])
        shares = (leaves[:, None] == leaves[None]).mean(2)
        np.testing.assert_allclose(
            (seen @ seen.T).numpy(), shares, atol=1e-5 if trees == 5 else 0.15
        )


def test_leaves_are_found_once_a_batch_and_not_of_another() -> None:
    module = audited_estimator(fitted("forest")).module
    assert isinstance(module, Forest)
    first, second = (torch.as_tensor(IRIS[0][part]) for part in (slice(0, 9), slice(90, 99)))
    assert module.leaves(first) is module.leaves(first)
    assert not torch.equal(module.leaves(first), module.leaves(second))
    torch.testing.assert_close(copy.deepcopy(module)(second), module(second))


# What is refused


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (RandomForestRegressor(2, criterion="absolute_error"), "median.*squared_error"),
        (GradientBoostingRegressor(n_estimators=1, loss="huber"), "'huber'.*squared_error"),
        (HistGradientBoostingRegressor(max_iter=1, loss="poisson"), "'poisson'.*squared_error"),
        (
            HistGradientBoostingRegressor(max_iter=1, categorical_features=[0]),
            "encode them as numbers",
        ),
        (GradientBoostingRegressor(n_estimators=1, init=DecisionTreeRegressor()), "init"),
        (RandomForestRegressor(2, monotonic_cst=[1, 0, 0, 0]), "monotonic_cst"),
        (HistGradientBoostingRegressor(max_iter=1, monotonic_cst=[1, 0, 0, 0]), "monotonic_cst"),
    ],
    ids=["medians", "huber", "poisson", "categories", "init", "monotonic", "monotonic bins"],
)
def test_leaves_that_are_no_means_are_refused(estimator: Any, reason: str) -> None:
    x = np.round(np.abs(IRIS[0]))
    with pytest.raises(ModelError, match=reason) as caught:
        audited_estimator(estimator.fit(x, IRIS[1] + 1.0))
    assert "\n" not in str(caught.value)


def test_several_outputs_and_what_is_not_fitted_are_refused() -> None:
    with pytest.raises(ModelError, match="train one for each"):
        audited_estimator(RandomForestRegressor(2).fit(IRIS[0], np.stack([IRIS[1]] * 2, 1)))
    for estimator in (RandomForestClassifier(), HistGradientBoostingClassifier()):
        with pytest.raises(ModelError, match="not fitted"):
            audited_estimator(estimator)


def test_an_estimator_without_probabilities_is_told_so() -> None:
    with pytest.raises(ModelError, match=r"RidgeClassifier .* no predict_proba.*train one"):
        audited_estimator(RidgeClassifier().fit(*IRIS))


def test_trees_follow_no_gradient() -> None:
    job = Job(
        rows=9, groups=2, queries=2, parameters=5, saturates=True, known=0.1, trees=True, stages=3
    )
    assert plan(job).as_dict()["direction"] == "leaves"
    assert plan(job).costs == {"direction": 2 + 9 * 3, "sweep": 27, "total": 56}
    with pytest.raises(ForwardInfError, match=r"not moved by 'replay'.*leave --direction out"):
        plan(job, direction=Replay())
    with pytest.raises(ForwardInfError, match="leave --candidates out"):
        plan(job, candidates=5)


# Trees of strangers


def spoil(name: str, how: str) -> Any:
    estimator = copy.deepcopy(fitted(name))
    if name == "hist":
        nodes = estimator._predictors[0][0].nodes
        if how == "column":
            nodes["feature_idx"][0] = 10**6
        else:
            nodes["left"][0] = 0 if how == "circle" else 10**6
        return estimator
    tree = estimator.estimators_[1].tree_
    if how == "column":
        tree.feature[0] = 10**6
    elif how == "width":
        estimator.n_features_in_ = 1
    else:
        tree.children_left[0] = 0 if how == "circle" else 10**6
    return estimator


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, how) for name in ("forest", "hist") for how in ("column", "circle", "beyond")),
        ("forest", "width"),
    ],
)
def test_trees_that_lead_out_of_themselves_are_refused(name: str, how: str, tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    skops.io.dump(spoil(name, how), path)
    with pytest.raises(ModelError, match="damaged: do not use"):
        read_skops(path)


def test_categories_of_strangers_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    estimator = copy.deepcopy(fitted("hist"))
    nodes = estimator._predictors[0][0].nodes
    nodes["is_categorical"][0], nodes["bitset_idx"][0] = 1, 10**6
    skops.io.dump(estimator, tmp_path / "model.skops")
    with pytest.raises(ModelError, match="splits categories"):
        read_skops(tmp_path / "model.skops")


def test_a_probability_of_zero_is_a_number() -> None:
    module = audited_estimator(fitted("forest")).module
    logs = module(torch.as_tensor(IRIS[0]))
    assert math.isclose(logs.min().item(), math.log(LEAST))
