from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.training_function import load_trainer, skill

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


@pytest.mark.parametrize("name", ["train", "", ":train", "module:"])
def test_a_trainer_is_written_as_module_and_function(name: str) -> None:
    with pytest.raises(ForwardInfError, match="module:function"):
        load_trainer(name)


def test_a_module_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ForwardInfError, match="cannot be imported") as caught:
        load_trainer("no_such_module_at_all:train")
    assert "\n" not in str(caught.value)


def test_skill_is_accuracy_or_minus_the_squared_error() -> None:
    logits = np.array([[1.0, 0], [0, 1], [2, 0], [0, 3]])
    assert skill(logits, np.array([0, 1, 1, 1]), classes=True) == 0.75
    assert skill(np.array([[1.0], [3.0]]), np.array([1.0, 1.0]), classes=False) == -2
