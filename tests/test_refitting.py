"""The mirrored question by refits: closed forms by counting, seeds that disagree, bad trainers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import SplineTransformer
from sklearn.svm import SVC, SVR, LinearSVC

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.directions import Refit, Replay
from forward_inf_mlflow.errors import ForwardInfError, ModelError
from forward_inf_mlflow.models.compiled import check_compiled
from forward_inf_mlflow.models.estimator import audited_estimator
from forward_inf_mlflow.models.parity import check_parity
from forward_inf_mlflow.models.scored import logits_of
from forward_inf_mlflow.planner import plan_refits
from forward_inf_mlflow.preparation import Problem, prepare
from forward_inf_mlflow.refitting import ByRefits
from forward_inf_mlflow.singles import Rest
from forward_inf_mlflow.training_function import Trained
from forward_inf_mlflow.views import experts, read_views

N, M = 60, 30
RNG = np.random.default_rng(0)
Y, TRUTH = np.arange(N) % 3, np.array([0] * 20 + [1] * 10)
X, ASKED = (np.eye(3)[y] * 2 + RNG.normal(size=(len(y), 3)) for y in (Y, TRUTH))


def posed(labels: np.ndarray = Y, truth: np.ndarray = TRUTH) -> Problem:
    """Return the rows around a model of neighbours, which no query can move."""
    model = audited_estimator(KNeighborsClassifier(5).fit(X, labels), fixed=True)
    train, queries = (
        Rows(x, y, np.arange(len(y)).astype(str), None, "memory", "")
        for x, y in ((X, labels), (ASKED, truth))
    )
    host = torch.device("cpu")
    return prepare(model, train, queries, task="auto", device=host, batch_size=None)


class Shares:
    """Answers the share of each class among the rows that it was fitted on."""

    def __init__(self, labels: np.ndarray) -> None:
        self.classes_, counts = np.unique(labels, return_counts=True)
        self.shares = counts / counts.sum()

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        return np.tile(self.shares, (len(rows), 1))


class Luck:
    """Answers whatever the seed draws."""

    def __init__(self, labels: np.ndarray, seed: int) -> None:
        self.classes_, self.draw = np.unique(labels), np.random.default_rng([seed, len(labels)])

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        return self.draw.dirichlet(np.ones(3), len(rows))


def by_refits(train: Any, problem: Problem | None = None, **settings: Any) -> ByRefits:
    problem = problem or posed()
    refit = Refit(**settings)
    return ByRefits(Trained(train, problem), problem, refit, "loss", most=3, answers=True)


def test_who_answers_shares_of_classes_is_moved_by_counts() -> None:
    found = by_refits(lambda x, y, seed: Shares(y)).influence(np.array([0]))
    for scores, added in ((found.scores.values[0], TRUTH), (found.scores.values[1], TRUTH[:1])):
        counts = np.bincount(added, minlength=3)
        change = np.log((N / 3 + counts) / (N + len(added))) - np.log(1 / 3)
        np.testing.assert_allclose(scores, (change / len(added))[Y], rtol=1e-4, atol=1e-7)
    assert found.facts == {"seeds": 2, "reliability": 1.0, "refused": 0}
    assert "not shown" not in str(found.choice.note)


def test_a_training_row_is_asked_about_as_one_copy_more() -> None:
    mirror = by_refits(lambda x, y, seed: Shares(y))
    asked, _ = mirror.ask(Rest(np.array([4]), np.empty(0, np.int64)))
    counts = np.bincount(Y[[4]], minlength=3)
    change = np.log((N / 3 + counts) / (N + 1)) - np.log(1 / 3)
    wanted = change[Y]
    wanted[4] = np.nan  # a row speaks for itself
    np.testing.assert_allclose(asked.rows.values[0], wanted, rtol=1e-4, atol=1e-7)
    assert not len(asked.queries.query_ids)


def test_seeds_that_disagree_are_refused_and_what_they_do_is_said() -> None:
    found = by_refits(lambda x, y, seed: Luck(y, seed)).influence(np.array([0, 1]))
    assert np.isnan(found.scores.values).all()
    assert found.facts["refused"] == 3
    said = str(found.choice.note)
    assert "so they are not shown" in said
    assert "2 of 2 single queries" in said
    assert "another seed would put other rows first" in said
    assert "\n" not in said


def test_seeds_are_added_until_they_agree() -> None:
    def half_luck(x: np.ndarray, y: np.ndarray, seed: int) -> Any:
        shares, luck = Shares(y), Luck(y, seed)
        luck.predict_proba = lambda rows: (  # type: ignore[method-assign]
            (3 * shares.predict_proba(rows) + luck.draw.dirichlet(np.ones(3), len(rows))) / 4
        )
        return luck

    found = by_refits(half_luck, reliable=0.97, floor=0.1).influence(np.empty(0, np.int64))
    assert found.facts["seeds"] == 5
    assert 0.1 < float(str(found.facts["reliability"])) < 0.97
    assert np.isfinite(found.scores.values).all()


def test_it_is_seen_early_that_more_seeds_will_not_do() -> None:
    assert Refit().hopeless(0.1, 2)
    assert not Refit().hopeless(0.3, 2)
    assert Refit().hopeless(-0.5, 2)
    assert not Refit().hopeless(1.0, 2)
    with pytest.raises(ForwardInfError, match="least_seeds"):
        Refit(least_seeds=1)


def test_a_vote_that_nobody_gives_is_half_a_vote() -> None:
    mirror = by_refits(lambda x, y, seed: KNeighborsClassifier(5).fit(x, y))
    found = mirror.influence(np.empty(0, np.int64))
    assert np.abs(found.scores.values[0]).max() <= np.log(10) / M  # from half a vote to five
    assert found.scores.values[0].any()


def test_queries_that_write_labels_otherwise_are_learned_as_training_rows() -> None:
    taught: list[np.ndarray] = []

    def train(x: np.ndarray, y: np.ndarray, seed: int) -> Shares:
        taught.append(y)
        return Shares(y)

    by_refits(train, posed(Y, TRUTH.astype(str))).influence(np.empty(0, np.int64))
    assert all(labels.dtype.kind == "i" for labels in taught)
    assert max(map(len, taught)) == N + M


def test_the_answers_are_those_of_models_that_did_not_learn_the_query() -> None:
    mirror = by_refits(
        lambda x, y, seed: KNeighborsClassifier(5).fit(x, y), posed(truth=np.arange(M) % 3)
    )
    assert mirror.moved(np.arange(M) < 9) is None  # too few
    wide = ByRefits(mirror._trained, mirror._problem, Refit(), "loss", most=3, answers=False)
    assert wide.moved(np.ones(M, bool)) is None


def test_a_decision_function_is_read_as_logits() -> None:
    three, two = LinearSVC().fit(X, Y), LinearSVC().fit(X, Y == 1)
    np.testing.assert_allclose(logits_of(three, X, 1e-6), three.decision_function(X))
    np.testing.assert_allclose(logits_of(two, X, 1e-6)[:, 1], two.decision_function(X))
    assert not logits_of(two, X, 1e-6)[:, 0].any()
    pairs = SVC(decision_function_shape="ovo").fit(X, Y)
    with pytest.raises(ModelError, match="decision_function_shape='ovr'"):
        logits_of(pairs, X, 1e-6)
    model = audited_estimator(three, fixed=True)
    assert any("its decision function was read as logits" in note for note in model.notes)
    assert check_parity(model, X) == 0
    trained, _ = Trained(lambda *_: three, posed())(np.arange(N), 0)
    np.testing.assert_allclose(trained, three.decision_function(X), rtol=1e-5)


def test_who_says_nothing_of_how_sure_it_is_is_one_line() -> None:
    class Labels:
        classes_ = np.arange(3)

        def predict(self, rows: np.ndarray) -> np.ndarray:
            return np.zeros(len(rows))

    with pytest.raises(ForwardInfError, match="neither predict_proba nor decision_function") as e:
        Trained(lambda *_: Labels(), posed())(np.arange(N), 0)
    assert "\n" not in str(e.value)
    with pytest.raises(ModelError, match="neither predict_proba nor decision_function"):
        check_parity(audited_estimator(Labels(), fixed=True), X)


def test_rows_are_near_by_what_a_model_says_that_shows_nothing_else() -> None:
    model = audited_estimator(KNeighborsClassifier(5).fit(X, Y), fixed=True)
    seen = read_views(model, posed())
    assert (seen.features, seen.encodings) == (None, None)
    assert seen.said is not None
    p = model.original(ASKED)
    np.testing.assert_allclose(
        seen.said.queries, p / np.linalg.norm(p, axis=1, keepdims=True), atol=1e-4
    )
    groups, trusted = np.arange(N), np.ones(M, dtype=bool)
    _, learned = experts(seen, Y, groups, TRUTH, trusted, 3)
    assert "neighbours by the model's probabilities" in {one.name for one in learned}


def test_a_direction_is_refused_where_nothing_moves() -> None:
    counts = {"rows": N, "queries": M, "singles": 2, "parts": 4}
    planned = plan_refits(Refit(), **counts)
    assert planned.fits == 5 * (1 + 1 + 2) + 2 * (4 + 1)
    assert planned.costs["total"] == planned.fits * (N + M)
    with pytest.raises(ForwardInfError, match="leave --direction out"):
        plan_refits(Refit(), direction=Replay(), **counts)


def damaged_neighbours() -> Any:
    model = KNeighborsClassifier(5).fit(X, Y)
    model._y = model._y + 7
    return model


def damaged_vectors(**values: Any) -> Any:
    model = SVC().fit(X, Y)
    for name, value in values.items():
        setattr(model, name, value)
    return model


def without_rows() -> Any:
    model = KNeighborsClassifier(5, algorithm="kd_tree").fit(X, Y)
    del model._fit_X
    return model


def machine_of_targets(**values: Any) -> Any:
    model = SVR().fit(X, X[:, 0])
    for name, value in values.items():
        setattr(model, name, value)
    return model


def damaged_spline(**values: Any) -> Any:
    model = SplineTransformer(n_knots=5).fit(X)
    for name, value in values.items():
        setattr(model.bsplines_[0], name, value)
    return model


@pytest.mark.parametrize(
    "model",
    [
        without_rows(),
        machine_of_targets(_n_support=np.array([60] + [0] * 200, np.int32)),
        machine_of_targets(_impl="c_svc"),
        damaged_spline(k=10**9),
        damaged_spline(t=np.linspace(-5, 5, 3000)),
        damaged_neighbours(),
        damaged_vectors(_n_support=np.array([1, 1, 900], np.int32)),
        damaged_vectors(_dual_coef_=np.zeros((2, 1))),
        damaged_vectors(support_=np.full(10**4, 3, np.int32)),
        damaged_vectors(shape_fit_=(60, 900)),
        damaged_vectors(_intercept_=np.zeros(0)),
    ],
    ids=[
        "rows",
        "targets",
        "routine",
        "degree",
        "knots",
        "labels",
        "counts",
        "coefficients",
        "positions",
        "columns",
        "intercepts",
    ],
)
def test_what_compiled_code_would_follow_out_of_a_file_is_refused(model: Any) -> None:
    with pytest.raises(ModelError, match="damaged: do not use this model"):
        check_compiled([{"inside": model}])


def test_a_search_tree_of_a_file_is_built_anew_from_its_rows() -> None:
    model = KNeighborsClassifier(5, weights="distance", algorithm="kd_tree").fit(X, Y)
    before, tree = model.predict_proba(ASKED), model._tree
    check_compiled(model)
    assert model._tree is not tree
    np.testing.assert_array_equal(model.predict_proba(ASKED), before)
    with pytest.raises(ModelError, match="search tree"):
        check_compiled({"elsewhere": tree})
    model._fit_X = tree  # which scikit-learn would take over as it is
    with pytest.raises(ModelError, match="holds no dense rows"):
        check_compiled(model)
    check_compiled(SVC().fit(X, Y))  # whole ones pass
    check_compiled(machine_of_targets())
    check_compiled(damaged_spline())
    check_compiled(LogisticRegression().fit(X, Y))
