from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.preparation import Problem, prepare
from forward_inf_mlflow.shards import WorkFolder
from forward_inf_mlflow.training_function import Trained, code_digest, load_trainer, skill

CODE = """
from sklearn.linear_model import LogisticRegression
NUMBER = 3
def train(x, y, seed):
    return LogisticRegression(max_iter=200, random_state=seed).fit(x, y)
"""


def test_a_function_of_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_recipe.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    found = load_trainer("my_recipe:train")
    assert found(np.eye(4), np.array([0, 1, 0, 1]), 0).predict_proba(np.eye(4)).shape == (4, 2)
    assert sys.path == before
    with pytest.raises(ForwardInfError, match="is not a function"):
        load_trainer("my_recipe:NUMBER")
    with pytest.raises(ForwardInfError, match="has no function 'fit'"):
        load_trainer("my_recipe:fit")


@pytest.mark.parametrize("name", ["train", "", ":train", "module:", ".module:f"])
def test_a_trainer_is_written_as_module_and_function(name: str) -> None:
    with pytest.raises(ForwardInfError, match="module:function"):
        load_trainer(name)


def test_a_module_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ForwardInfError, match="cannot be imported") as caught:
        load_trainer("no_such_module_at_all:train")
    assert "\n" not in str(caught.value)


def test_skill_is_a_right_answer_or_minus_the_squared_error() -> None:
    logits = np.array([[1.0, 0], [0, 1], [2, 0], [0, 3]])
    assert skill(logits, np.array([0, 1, 1, 1]), classes=True).tolist() == [1, 1, 0, 1]
    errors = skill(np.array([[1.0], [3.0]]), np.array([1.0, 1.0]), classes=False)
    assert errors.tolist() == [0, -4]


def problem_of(n: int = 90) -> Problem:
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    x = (np.eye(3)[y] * 4 + rng.normal(size=(n, 3))).astype(np.float32)
    ids = np.arange(n).astype(str)
    rows = Rows(x, y, ids, None, "memory", "")
    model = AuditedModel(nn.Linear(3, 3).eval(), np.asarray, "pt2", np.asarray)
    host = torch.device("cpu")
    return prepare(model, rows, rows, task="auto", device=host, batch_size=None)


class Answering:
    """A model with chosen classes and probabilities."""

    def __init__(self, probability: np.ndarray, classes: object = (0, 1, 2)) -> None:
        self.probability, self.classes_ = probability, np.array(classes)

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        return np.resize(self.probability, (len(rows), self.probability.shape[1]))


GOOD = np.array([[0.7, 0.2, 0.1]])


def torch_model(rows: np.ndarray, labels: np.ndarray, seed: int) -> nn.Module:
    return nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "returned nothing"),
        (Answering(GOOD[:, :2]), "not"),
        (Answering(GOOD * np.nan), "NaN or infinity"),
        (Answering(GOOD, (0, 1, 7)), "knows the class 7"),
        (Answering(GOOD - 1), "no probabilities"),
        (nn.Linear(3, 2), "as the audited model does"),
        ("a string", "str has neither predict_proba nor decision_function"),
    ],
)
def test_what_a_trainer_returns_is_checked(model: object, message: str) -> None:
    trained = Trained(lambda *_: model, problem_of())
    with pytest.raises(ForwardInfError, match=message) as caught:
        trained(np.arange(40), 0)
    assert "\n" not in str(caught.value)


def test_a_trainer_that_fails_or_exits_is_one_line() -> None:
    def exits(*_: object) -> None:
        raise SystemExit(0)

    with pytest.raises(ForwardInfError, match="failed on 40 rows with seed 3"):
        Trained(exits, problem_of())(np.arange(40), 3)


def test_classes_that_a_half_has_not_seen_are_improbable() -> None:
    few = Answering(np.array([[0.9, 0.1]]), (2, 0))
    train, _ = Trained(lambda *_: few, problem_of())(np.arange(40), 0)
    assert train.argmax(1).tolist() == [2] * 90
    assert np.exp(train[0, 0]) == pytest.approx(0.1, rel=1e-4)
    assert train[0, 1] < -80


def test_torch_models_of_another_precision_are_asked_in_theirs() -> None:
    some = problem_of()
    rows = replace(some.train, inputs=some.train.inputs.double())
    found = Trained(torch_model, replace(some, train=rows))(np.arange(40), 0)
    assert found[0].shape == (90, 3)


def test_other_rows_of_the_same_number_are_another_piece(tmp_path: Path) -> None:
    seen: list[int] = []

    def train(rows: np.ndarray, labels: np.ndarray, seed: int) -> Answering:
        seen.append(int(labels.sum()))
        return Answering(GOOD)

    trained = Trained(train, problem_of(), WorkFolder.open(tmp_path, {"a": 1}, fresh=True))
    trained(np.arange(40), 0)
    trained(np.arange(1, 41), 0)
    trained(np.arange(40), 0)
    assert len(seen) == 2


def test_changed_code_is_another_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "changing.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    before = code_digest("changing:train")
    (tmp_path / "changing.py").write_text(CODE + "# changed\n")
    assert code_digest("changing:train") != before


@pytest.mark.parametrize("code", ["def f(:", "raise RuntimeError('no')", "raise SystemExit(0)"])
def test_a_module_that_cannot_be_imported_is_one_line(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_recipe.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_recipe", raising=False)
    with pytest.raises(ForwardInfError, match="cannot be imported") as caught:
        load_trainer("broken_recipe:f")
    assert "\n" not in str(caught.value)
