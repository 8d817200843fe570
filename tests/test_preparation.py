from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.errors import DataError, ForwardInfError, ModelError
from forward_inf_mlflow.models import forward
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.inputs import InputSpec
from forward_inf_mlflow.models.logits import OneOutput, Probabilities
from forward_inf_mlflow.preparation import Problem, choose_device, prepare

D = 3
SPEC = InputSpec(np.dtype(np.float32), (D,))


class Answer(nn.Module):
    """A linear layer and what comes after it."""

    def __init__(self, outputs: int, after: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.after = nn.Linear(D, outputs), after

    def forward(self, inputs: Tensor) -> Tensor:
        answer: Tensor = self.layer(inputs)
        return answer if self.after is None else self.after(answer)


def model(outputs: int = 3, after: Any = None, **settings: Any) -> AuditedModel:
    module = Answer(outputs, after).eval()

    def original(features: Any) -> np.ndarray:
        return forward.outputs(module, SPEC.prepare(features), batch=64)

    return AuditedModel(module, SPEC.prepare, "pt2", original, **settings)


def rows(labels: Any, features: Any = None) -> Rows:
    labels = np.asarray(labels)
    if features is None:
        features = np.random.default_rng(0).normal(size=(len(labels), D))
    ids = np.array([f"row-{i}" for i in range(len(labels))])
    return Rows(features, labels, ids, None, "file.csv", "00")


def posed(
    audited: AuditedModel,
    train: Rows,
    queries: Rows | None = None,
    *,
    task: Any = "auto",
    batch_size: int | None = None,
) -> Problem:
    cpu = torch.device("cpu")
    return prepare(audited, train, queries or train, task=task, device=cpu, batch_size=batch_size)


WORDS = np.array(["ape", "bee", "cat"])
NUMBERS = np.array([10, 20, 30])


@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        (None, [0, 2, 1]),
        (None, [0.0, 2.0, 1.0]),
        (None, ["0", "2", "1"]),
        (None, ["0.0", "2.0", "1.0"]),
        (None, np.array([0, 2, 1], dtype=np.uint8)),
        (None, np.array([0, 2, 1], dtype=object)),
        (WORDS, ["ape", "cat", "bee"]),
        (WORDS, np.array(["ape", "cat", "bee"], dtype=object)),
        (NUMBERS, [10, 30, 20]),
        (NUMBERS, ["10", "30", "20"]),
        (NUMBERS, [10.0, 30.0, 20.0]),
        (NUMBERS.astype(float), [10, 30, 20]),
        (NUMBERS.astype(str), [10, 30, 20]),
    ],
)
def test_a_label_is_the_position_of_its_class_however_it_was_stored(
    classes: np.ndarray | None, labels: Any
) -> None:
    problem = posed(model(classes=classes), rows(labels))
    assert problem.train.targets.tolist() == [0, 2, 1]
    assert problem.train.targets.dtype == torch.int64
    assert problem.task.name == "classification"
    assert problem.classes is not None
    assert problem.classes.tolist() == ([0, 1, 2] if classes is None else classes.tolist())


@pytest.mark.parametrize(
    ("classes", "labels", "named"),
    [
        (None, [0, 1, 3], "'3' of training row row-2"),
        (None, [0, -1, 2], "'-1' of training row row-1"),
        (None, [0, 1.5, 2], "'1.5' of training row row-1"),
        (None, [0, np.nan, 2], "'nan' of training row row-1"),
        (None, ["0", "x", "2"], "'x' of training row row-1"),
        (None, np.array([0, None, 1], dtype=object), "'nan' of training row row-1"),
        (WORDS, ["ape", "Ape", "bee"], "'Ape' of training row row-1"),
        (WORDS, [0, 1, 2], "'0' of training row row-0"),
        (NUMBERS, [10, 20, 1], "'1' of training row row-2"),
    ],
)
def test_a_label_that_is_no_class_is_named_with_its_row(
    classes: np.ndarray | None, labels: Any, named: str
) -> None:
    with pytest.raises(DataError, match=named) as error:
        posed(model(classes=classes), rows(labels))
    assert "not one of the model's 3 classes" in str(error.value)
    assert "--label" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_query_label_that_is_no_class_is_named_as_one() -> None:
    with pytest.raises(DataError, match="'9' of query row row-1"):
        posed(model(), rows([0, 1, 2]), rows([0, 9]))


def test_a_single_class_is_refused() -> None:
    with pytest.raises(DataError, match="same label"):
        posed(model(), rows([1, 1, 1]))


@pytest.mark.parametrize(
    ("audited", "labels", "wanted", "task"),
    [
        (model(3), [0, 1, 2], "auto", "classification"),
        (model(2), [0, 1, 1], "auto", "classification"),
        (model(1), [0, 1, 1], "auto", "classification"),
        (model(1), ["0", "1", "1"], "auto", "classification"),
        (model(1), [0.5, 1.0, 2.0], "auto", "regression"),
        (model(1), [0, 1, 2], "auto", "regression"),
        (model(1), [0, 1, 1], "regression", "regression"),
        (model(1, after=lambda x: x[:, 0]), [0.5, 1.0, 2.0], "auto", "regression"),
        (model(1, task="regression"), [0, 1, 1], "auto", "regression"),
        (model(2, task="classification"), [0, 1, 1], "auto", "classification"),
        (model(2, task="classification"), [0, 1, 1], "classification", "classification"),
    ],
)
def test_the_task_follows_from_model_labels_and_wish(
    audited: AuditedModel, labels: Any, wanted: Any, task: str
) -> None:
    problem = posed(audited, rows(labels), task=wanted)
    assert problem.task.name == task
    assert (problem.classes is None) == (task == "regression")


@pytest.mark.parametrize(
    ("audited", "wanted", "error", "says"),
    [
        (model(3), "regression", ModelError, "answers 3 numbers a row"),
        (model(1, task="regression"), "classification", DataError, "made for regression"),
        (model(3, task="classification"), "regression", DataError, "made for classification"),
    ],
)
def test_a_task_that_the_model_cannot_do_is_refused(
    audited: AuditedModel, wanted: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        posed(audited, rows([0, 1, 1]), task=wanted)


@pytest.mark.parametrize("flat", [True, False])
def test_one_logit_becomes_two_with_the_same_probability(flat: bool) -> None:
    audited = model(1, after=(lambda x: 9 * x[:, 0]) if flat else (lambda x: 9 * x))
    train = rows([0, 1] * 10)
    problem = posed(audited, train)
    logit = audited.module(problem.train.inputs).reshape(-1)
    assert not ((logit >= 0) & (logit <= 1)).all()
    found = torch.softmax(problem.module(problem.train.inputs), 1)
    torch.testing.assert_close(found[:, 1], torch.sigmoid(logit))
    assert problem.notes == ("one output per row was read as the logit of class 1",)


def test_one_probability_becomes_two_logits_with_the_same_probability() -> None:
    audited = model(1, after=torch.sigmoid)
    problem = posed(audited, rows([0, 1] * 10))
    found = torch.softmax(problem.module(problem.train.inputs), 1)
    torch.testing.assert_close(found[:, 1:], audited.module(problem.train.inputs))
    assert problem.notes == ("one output per row was read as the probability of class 1",)


def test_probabilities_become_logits_and_the_reader_is_told() -> None:
    audited = model(3, after=lambda x: torch.softmax(x, 1), notes=("was logged so",))
    problem = posed(audited, rows([0, 1, 2] * 5))
    found = torch.softmax(problem.module(problem.train.inputs), 1)
    torch.testing.assert_close(found, audited.module(problem.train.inputs))
    assert problem.notes[0] == "the model was logged so"
    assert "logarithms were used" in problem.notes[1]


@pytest.mark.parametrize(
    ("wrapper", "audited"),
    [
        (OneOutput, model(1, after=lambda x: 9 * x)),
        (OneOutput, model(1, after=torch.sigmoid)),
        (Probabilities, model(3, after=lambda x: torch.softmax(x, 1))),
    ],
    ids=["logit", "probability", "probabilities"],
)
def test_logits_that_say_something_else_than_the_model_are_refused(
    wrapper: type[nn.Module], audited: AuditedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = rows([0, 1] * 10)
    posed(audited, train)
    true_logits = wrapper.forward
    monkeypatch.setattr(wrapper, "forward", lambda self, x: 1.01 * true_logits(self, x))
    with pytest.raises(ModelError, match="disagree"):
        posed(audited, train)


def test_what_an_output_means_does_not_depend_on_the_batch_size() -> None:
    audited = model(1, max_batch=1)
    answers = audited.module(torch.as_tensor(SPEC.prepare(rows([0, 1] * 50).features)))
    likely = (answers[:, 0] >= 0) & (answers[:, 0] <= 1)
    first = int(torch.nonzero(likely)[0])
    assert not likely.all()
    features = np.roll(rows([0, 1] * 50).features, -first, axis=0)
    problem = posed(audited, rows([0, 1] * 50, features))
    assert problem.notes == ("one output per row was read as the logit of class 1",)


def test_a_probability_of_zero_has_a_finite_loss() -> None:
    audited = model(2, after=lambda x: (x > 0).float() * 0 + torch.tensor([0.0, 1.0]))
    problem = posed(audited, rows([0, 1, 1]))
    loss = problem.task.loss(problem.module(problem.train.inputs), problem.train.targets)
    assert torch.isfinite(loss).all()


def test_logits_of_a_model_that_says_its_task_are_left_alone() -> None:
    audited = model(3, after=lambda x: torch.softmax(x, 1), task="classification")
    problem = posed(audited, rows([0, 1, 2]))
    assert problem.module is audited.module
    assert problem.notes == ()


@pytest.mark.parametrize("labels", [[1, 2.5, 3], ["1", "2.5", "3"]])
def test_regression_targets_are_numbers_of_the_models_own_type(labels: Any) -> None:
    problem = posed(model(1), rows(labels), task="regression")
    assert problem.train.targets.tolist() == [1, 2.5, 3]
    assert problem.train.targets.dtype == torch.float32


@pytest.mark.parametrize("bad", [np.nan, np.inf, "high", None])
def test_a_target_that_is_no_number_is_named_with_its_row(bad: Any) -> None:
    labels = np.array([1.5, bad, 2.5], dtype=object)
    with pytest.raises(DataError, match="of training row row-1 is not a finite number"):
        posed(model(1), rows(labels), task="regression")


@pytest.mark.parametrize(
    ("train", "queries", "says"),
    [
        (
            pd.DataFrame(np.ones((3, 3)), columns=list("abc")),
            pd.DataFrame(np.ones((3, 3)), columns=list("abd")),
            r"only in training \['c'\], only in queries \['d'\]",
        ),
        (
            pd.DataFrame(np.ones((3, 3)), columns=list("abc")),
            pd.DataFrame(np.ones((3, 2)), columns=list("ab")),
            r"only in training \['c'\], only in queries none",
        ),
        (np.ones((3, 3)), np.ones((3, 4)), r"shape \(3,\), a query row \(4,\)"),
        (
            pd.DataFrame(np.ones((3, 3)), columns=list("abc")),
            np.ones((3, 4)),
            "log both in one format",
        ),
    ],
    ids=["other names", "fewer", "arrays", "frame and array"],
)
def test_columns_that_differ_are_named(train: Any, queries: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        posed(model(), rows([0, 1, 2], train), rows([0, 1, 2], queries))


def frame(**changes: Any) -> pd.DataFrame:
    return pd.DataFrame({"a": [1.0, 2, 3], "b": [1.0, 2, 3], "c": [1.0, 2, 3]} | changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"b": ["1", "two", "3"]}, r"Column 'b' holds text .* row 1 \('two'\)"),
        ({"c": [1.0, np.nan, 3]}, "Row 1, column 'c', is nan"),
        ({"c": [1.0, 2, np.inf]}, "Row 2, column 'c', is inf"),
    ],
)
def test_features_that_are_no_numbers_are_named(changes: Any, says: str) -> None:
    for pair in ((frame(**changes), frame()), (frame(), frame(**changes))):
        with pytest.raises(DataError, match=says):
            posed(model(), rows([0, 1, 2], pair[0]), rows([0, 1, 2], pair[1]))


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (lambda x: x[:, :, None], "not one number or one vector per row"),
        (lambda x: x.sum(), "not one number or one vector per row"),
        (lambda x: x[:1], "not one number or one vector per row"),
        (lambda x: (x, x), "not one number or one vector per row"),
        (lambda x: x * float("nan"), "NaN or infinity"),
    ],
    ids=["three axes", "a scalar", "one row", "a tuple", "nan"],
)
def test_a_model_whose_answer_is_no_vector_of_numbers_is_refused(after: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        posed(model(3, after=after), rows([0, 1, 2]))


def test_rows_that_the_model_cannot_read_are_refused_in_one_line() -> None:
    loose = AuditedModel(Answer(3), lambda x: np.float32(x), "pt2", lambda x: np.float32(x))
    with pytest.raises(DataError, match=r"cannot read these rows, each of shape \(5,\)") as error:
        posed(loose, rows([0, 1, 2], np.ones((3, 5))))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wanted", "most", "used"),
    [(None, None, 1024), (7, None, 7), (None, 1, 1), (7, 1, 1), (7, 100, 7)],
)
def test_a_batch_is_never_larger_than_the_model_takes(
    wanted: int | None, most: int | None, used: int
) -> None:
    problem = posed(model(max_batch=most), rows([0, 1, 2]), batch_size=wanted)
    assert problem.train.batch_size == problem.queries.batch_size == used


def test_large_rows_come_in_small_batches() -> None:
    wide = AuditedModel(
        nn.Sequential(nn.AdaptiveAvgPool1d(3)), lambda x: np.float32(x), "pt2", np.float32
    )
    problem = posed(wide, rows([0, 1, 2], np.zeros((3, 2**20), np.float32)))
    assert problem.train.batch_size == 4


def test_rows_stay_as_they_were_stored() -> None:
    train, queries = rows([0, 1, 2]), rows([1, 2])
    problem = posed(model(), train, queries)
    assert (problem.train_rows, problem.query_rows) == (train, queries)
    assert (len(problem.train), len(problem.queries)) == (3, 2)


def test_auto_finds_a_device_and_cpu_is_one() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "cpu:x", "meta", "meta?", "xpu"])
def test_a_device_that_is_not_here_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ForwardInfError, match="use auto, cpu or cuda") as error:
        choose_device(name)
    assert "\n" not in str(error.value)
