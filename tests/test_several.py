"""Several labels a row: how they are read, which task they are, and what is promised of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import nn

from forward_inf_mlflow.data.acceptance import accept
from forward_inf_mlflow.data.logging_data import _rows, _write
from forward_inf_mlflow.data.reading import Columns, read_rows
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.detect.mislabeled import undecided
from forward_inf_mlflow.detect.several import Column, together
from forward_inf_mlflow.errors import DataError, ForwardInfError, ModelError
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.estimator import audited_estimator
from forward_inf_mlflow.models.parity import check_parity
from forward_inf_mlflow.models.penalty import is_linear, penalty_of
from forward_inf_mlflow.models.scored import odds_of
from forward_inf_mlflow.preparation import Problem, prepare
from forward_inf_mlflow.several_outputs import coded
from forward_inf_mlflow.tasks import MultiLabel, Regression
from forward_inf_mlflow.training_function import Trained

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 4))
Y = (X[:, :3] + RNG.normal(size=(80, 3)) > 0).astype(np.int64)
Z = X @ RNG.normal(size=(4, 2))


def rows_of(labels: Any, x: np.ndarray = X) -> Rows:
    return accept(x, labels, uri="memory")


def posed(labels: Any, width: int, *, probabilities: bool = False, **settings: Any) -> Problem:
    module: nn.Module = nn.Linear(4, width)
    if probabilities:
        module = nn.Sequential(module, nn.Sigmoid())
    model = AuditedModel(
        module.double().eval(), lambda x: np.asarray(x, np.float64), "pt2", np.asarray
    )
    host = torch.device("cpu")
    wanted = {"task": "auto", "device": host, "batch_size": None, **settings}
    return prepare(model, rows_of(labels), rows_of(labels), **wanted)


@pytest.mark.parametrize("frame", [True, False])
def test_several_labels_come_back_as_they_were_logged(frame: bool, tmp_path: Path) -> None:
    features = pd.DataFrame(X, columns=["a", "b", "c", "d"]) if frame else X
    labels = pd.DataFrame(Y, columns=["a", "two, words", "z"])
    logged = _rows("train", (features, labels), None, None)
    path, columns = _write(logged, tmp_path / "rows", has_ids=False, labelled=True)
    found = read_rows(path, uri="rows", columns=Columns(columns["label"]))
    assert found.sha256 == logged.sha256
    assert (found.digests == logged.digests).all()
    assert found.targets is not None
    np.testing.assert_array_equal(found.targets, Y)
    assert (found.label_names == ("a_", "two, words", "z")) is frame
    assert found.take(np.arange(3)).targets is not None


def test_labels_of_a_csv_file_are_named_together(tmp_path: Path) -> None:
    table = pd.DataFrame(X, columns=list("abcd")).assign(p=Y[:, 0], q=Y[:, 1])
    table.to_csv(tmp_path / "t.csv", index=False)

    def read(label: str, **columns: Any) -> Rows:
        return read_rows(tmp_path / "t.csv", uri="t", columns=Columns(label, **columns))

    found = read("p,q")
    assert isinstance(found.features, pd.DataFrame)
    assert list(found.features.columns) == list("abcd")
    assert set(found.labels) <= {"(none)", "p", "q", "p, q"}
    assert found.labels[0] == ", ".join(n for n, one in zip("pq", Y[0], strict=False) if one) or (
        found.labels[0] == "(none)"
    )
    for label, columns, why in (
        ("p,r", {}, "names 'r'"),
        ("p,p", {}, "two columns are called 'p'"),
        ("p,q", {"features": ("a", "q")}, "names the label 'q'"),
    ):
        with pytest.raises(DataError, match=why):
            read(label, **columns)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (np.eye(3)[np.arange(80) % 3], "not one-hot"),
        (np.where(np.arange(160).reshape(80, 2) == 5, np.nan, 1.0), "label '1' of row 2"),
        (np.array([["a", "b"]] * 80), "must be numbers"),
    ],
    ids=["one-hot", "gap", "text"],
)
def test_several_labels_that_are_none_are_one_line(labels: np.ndarray, why: str) -> None:
    with pytest.raises(DataError, match=why) as caught:
        rows_of(labels)
    assert "\n" not in str(caught.value)


def test_the_task_is_told_by_the_labels() -> None:
    assert isinstance(posed(Y, 3).task, MultiLabel)
    assert isinstance(posed(Z, 2).task, Regression)
    assert isinstance(posed(Y, 3, task="regression").task, Regression)
    sure = posed(Y, 3, probabilities=True)
    assert "their log-odds were used" in sure.notes[0]
    inner = sure.module.inner  # type: ignore[union-attr]
    x = sure.train.inputs
    torch.testing.assert_close(sure.module(x), inner[0](x), rtol=1e-4, atol=1e-6)  # type: ignore[index,operator]


def test_targets_of_the_wrong_width_are_one_line() -> None:
    for labels, width, why in (
        (Y, 2, "training rows have 3 labels each and the model answers 2 numbers a row"),
        (Y[:, 0] + 0.5, 2, "the model answers 2 numbers a row and the data have one target"),
    ):
        with pytest.raises(ForwardInfError, match=why) as caught:
            posed(labels, width, task="auto" if labels.ndim == 2 else "regression")
        assert "\n" not in str(caught.value)


def test_the_losses_are_those_of_the_labels_together() -> None:
    outputs = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor(Y[:6], dtype=torch.float64)
    task = MultiLabel()
    p = outputs.sigmoid()
    joint = torch.where(targets > 0, p, 1 - p).prod(1)
    torch.testing.assert_close(task.loss(outputs, targets), -joint.log())
    odds = (torch.where(targets > 0, p, 1 - p) / torch.where(targets > 0, 1 - p, p)).log().sum(1)
    torch.testing.assert_close(task.margin(outputs, targets), odds)
    assert task.skill((2 * targets - 1) * 9, targets) == 1
    assert abs(task.skill(targets.mean(0).expand_as(targets) - 0.5, targets)) < 0.5
    draw = torch.Generator().manual_seed(0)
    drawn = torch.stack([task.drawn(outputs, targets, draw) for _ in range(2000)])
    torch.testing.assert_close(drawn.var(0), p * (1 - p), rtol=0.1, atol=0.02)
    values = torch.tensor(Z[:6])
    squares = Regression().loss(outputs[:, :2], values)
    torch.testing.assert_close(squares, (outputs[:, :2] - values).square().sum(1) / 2)
    assert Regression().skill(values, values) == 1


@pytest.mark.parametrize(
    ("estimator", "labels", "task"),
    [
        (MultiOutputClassifier(LogisticRegression()), Y, "multilabel"),
        (OneVsRestClassifier(LogisticRegression(C=2.0)), Y, "multilabel"),
        (make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression())), Y, None),
        (LinearRegression(), Z, "regression"),
        (Ridge(2.0), Z, "regression"),
        (MultiOutputRegressor(Ridge(2.0)), Z, "regression"),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else "",
)
def test_linear_models_of_several_labels_answer_as_they_are(
    estimator: Any, labels: np.ndarray, task: str | None
) -> None:
    model = audited_estimator(estimator.fit(X, labels))
    assert model.task == (task or "multilabel")
    assert check_parity(model, X) < 1e-9
    assert model.module(torch.as_tensor(X)).shape == labels.shape
    assert is_linear(estimator)
    assert penalty_of(estimator, 80) is not None


def test_other_models_of_several_labels_are_one_line() -> None:
    for estimator, why in (
        (MultiOutputClassifier(RandomForestClassifier(2)).fit(X, Y), "over RandomForest"),
        (MultiOutputClassifier(LogisticRegression()).fit(X, 2 * Y), "not 0 and 1"),
    ):
        with pytest.raises(ModelError, match=why):
            audited_estimator(estimator)


def test_a_trainer_of_several_labels_gives_log_odds() -> None:
    taught = []

    def train(x: np.ndarray, y: np.ndarray, seed: int) -> Any:
        taught.append(y)
        return RandomForestClassifier(5, random_state=seed).fit(x, y)

    trained, _ = Trained(train, posed(Y, 3))(np.arange(60), 0)
    assert taught[0].shape == (60, 3)
    assert taught[0].dtype == np.int64
    forest = RandomForestClassifier(5, random_state=0).fit(X[:60], Y[:60])
    p = np.stack([one[:, 1] for one in forest.predict_proba(X)], 1)
    fine = (p > 0) & (p < 1)
    np.testing.assert_allclose(trained[fine], np.log(p[fine] / (1 - p[fine])), rtol=1e-5)
    scored = OneVsRestClassifier(LinearSVC()).fit(X, Y)
    np.testing.assert_allclose(odds_of(scored, X, 1e-9), scored.decision_function(X))
    with pytest.raises(ForwardInfError, match="as the audited model does"):
        Trained(lambda *_: nn.Linear(4, 2), posed(Y, 3))(np.arange(60), 0)
    with pytest.raises(ForwardInfError, match=r"answers \(80, 1\), not \(80, 2\)"):
        Trained(lambda x, y, _: Ridge().fit(x, y[:, 0]), posed(Z, 2))(np.arange(60), 0)


def test_rows_with_the_same_labels_have_the_same_number() -> None:
    train, queries = coded(torch.tensor(Y[:50]), torch.tensor(Y[50:]))
    for i, j in ((0, 1), (3, 20)):
        assert (train[i] == queries[j]) == bool((Y[i] == Y[50 + j]).all())
    assert len(np.unique(np.concatenate([train, queries]))) == len(np.unique(Y, axis=0))


def column(name: str, wrong: np.ndarray, rng: np.random.Generator, m: int) -> Column:
    """Return a label of rows whose wrong ones are hard to believe, others as the queries'."""
    n = len(wrong)
    train, queries = rng.normal(size=n) + 5 * wrong, rng.normal(size=m)
    verdict = undecided(n, "x")
    measure = type(verdict.measure)(
        count=0, total=n, rate_low=0.0, rate_high=0.1, estimate=float(wrong.mean()),
        reliability=0.9, threshold=None, note="",
    )  # fmt: skip
    half = np.full(n, 0.5)
    judged = type(verdict)(**{**vars(verdict), "score": half, "measure": measure,
                              "held_out_probability": half})  # fmt: skip
    return Column(name, judged, train, queries, np.zeros(n, bool), np.ones(n))


def test_what_is_promised_of_rows_holds_with_several_labels() -> None:
    n, m, rng = 400, 300, np.random.default_rng(0)
    nobody = np.zeros(n, dtype=bool)
    false, missed = [], 0
    for _ in range(60):
        wrong = rng.random((n, 3)) < 0.03
        columns = [column(str(j), wrong[:, j], rng, m) for j in range(3)]
        found = together(
            columns, "012", np.zeros((n, 3)), np.ones(m, bool),
            apart=nobody, right=nobody, fdr=0.1, note="",
        )  # fmt: skip
        innocent = ~wrong.any(1)
        false.append((found.certain & innocent).sum() / max(1, found.certain.sum()))
        missed += found.measure.rate_low > wrong.any(1).mean()
        # The label that is blamed is the wrong one.
        named = found.certain & ~innocent
        assert (found.likelier[named].argmax(1) == wrong[named].argmax(1)).mean() > 0.8
    assert np.mean(false) < 0.1 + 2 * np.std(false) / 60**0.5
    assert missed <= 3
    assert found.measure.rate_high == pytest.approx(0.3, abs=0.01)
    kept = together(
        columns, "012", np.zeros((n, 3)), np.ones(m, bool),
        apart=nobody, right=found.certain, fdr=0.1, note="",
    )  # fmt: skip
    assert not (kept.flags & found.certain).any()


def test_labels_that_cannot_be_judged_are_named() -> None:
    rng, nobody = np.random.default_rng(0), np.zeros(50, bool)
    some = column("b", nobody, rng, 40)
    given, settings = np.zeros((50, 2)), {"apart": nobody, "right": nobody, "fdr": 0.1}
    found = together(
        ["nobody has it", some], ["a", "b"], given, np.ones(40, bool), note="", **settings
    )
    assert "'a' is not judged: nobody has it" in found.measure.note
    assert found.measure.abstained is None
    none = together(["x", "y"], ["a", "b"], given, np.ones(40, bool), note="", **settings)
    assert "no label of the rows can be judged" in str(none.measure.abstained)
    assert none.likelier is given
