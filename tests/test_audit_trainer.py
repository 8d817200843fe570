"""Models that no query can move, audited through their trainer in a real store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import ARTIFACTS, Points, one_line, points, run_here
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.neighbors import KNeighborsClassifier

from forward_inf_mlflow import audit, gate
from forward_inf_mlflow.data.logging_data import log_training_data
from forward_inf_mlflow.errors import ModelError
from forward_inf_mlflow.models.estimator import TRUSTED
from forward_inf_mlflow.registry import load, resolve

pytestmark = pytest.mark.filterwarnings("ignore")
LEAKS, WRONG = 9, np.arange(30, 230, 10)
TRAINERS = """
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.neighbors import KNeighborsClassifier

def neighbours(x, y, seed):
    return KNeighborsClassifier(7).fit(x, y)

def trees(x, y, seed):
    return ExtraTreesClassifier(20, random_state=seed, min_samples_leaf=3).fit(x, y)
"""


class Sure(mlflow.pyfunc.PythonModel):
    """Answers probabilities, or the class alone."""

    def __init__(self, inner: Any, method: str) -> None:
        self.inner, self.method = inner, method

    def predict(self, context: Any, model_input: pd.DataFrame) -> Any:
        return getattr(self.inner, self.method)(model_input)


def register(model: Any, data: Points, name: str) -> str:
    """Fit, log and register; return the version's URI."""
    model.fit(data.x, data.y)
    with mlflow.start_run():
        log_training_data((data.x, data.y), (data.test_x, data.test_y))
        info = mlflow.sklearn.log_model(
            model,
            name="model",
            pip_requirements=["scikit-learn"],
            registered_model_name=name,
            skops_trusted_types=list(TRUSTED),
        )
    return f"models:/{name}/{info.registered_model_version}"


def spoilt() -> Points:
    """Return rows of which twenty have another label, and nine stand among the queries too."""
    data = points(leaks=LEAKS)
    data.y[WRONG] = (data.y[WRONG] + 1) % 3
    return data


@pytest.fixture
def trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the current folder one with training functions."""
    (tmp_path / "trainers_of_tests.py").write_text(TRAINERS)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("trainers")
def test_neighbours_are_audited_by_a_command_and_refused(
    shared_store: Path, tmp_path: Path
) -> None:
    uri = register(KNeighborsClassifier(7), spoilt(), "neighbours")
    words = ("audit", uri, "--trainer", "trainers_of_tests:neighbours")
    planned = run_here(*words, "--plan")
    assert planned.returncode == 0, planned.stderr
    assert "fits the model anew" in planned.stdout
    assert "up to 79 trainings by your trainer" in planned.stdout
    found = run_here(*words, "--json", "--out", "out")
    assert found.returncode == 1, found.stderr
    assert "up to 79 trainings by your trainer" in one_line(found.stderr)  # said first, in logs too
    assert {path.name for path in (tmp_path / "out").iterdir()} == ARTIFACTS
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    named = set(scores[scores["mislabeled"]]["id"].astype(int))
    assert len(named & set(WRONG)) >= 18
    assert len(named) <= 24
    record = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert record["measures"]["leaked"]["count"] == LEAKS
    how = record["influence"]
    assert (how["direction"], how["reliability"], how["seeds"]) == ("refit", 1.0, 2)
    # More queries make wrong labels less likely, and right ones more.
    wrong, right = scores["influence"][WRONG], np.delete(scores["influence"], WRONG)
    assert wrong.max() <= 0 < right.max()
    assert wrong.mean() < -0.001 < right.mean()
    assert gate(uri).decision.outcome == "fail"


def register_pyfunc(inner: Any, method: str, data: Points, name: str) -> str:
    """Log and register a model of one's own; return the version's URI."""
    with mlflow.start_run():
        log_training_data((data.x, data.y), (data.test_x, data.test_y))
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=Sure(inner.fit(data.x, data.y), method),
            input_example=data.x[:2],
            pip_requirements=[],
            registered_model_name=name,
        )
    return f"models:/{name}/{info.registered_model_version}"


@pytest.mark.usefixtures("trainers")
def test_a_pyfunc_model_is_audited_with_permission_and_a_trainer(shared_store: Path) -> None:
    data = spoilt()
    forest = ExtraTreesClassifier(20, random_state=0, min_samples_leaf=3)
    uri = register_pyfunc(forest, "predict_proba", data, "own")
    trainer = "trainers_of_tests:trees"
    found = audit(uri, trainer=trainer, allow_pickle=True, effort="quick", influence_queries=2)
    assert found.record["model"]["kind"] == "pyfunc"
    named = set(found.scores[found.scores["mislabeled"]]["id"].astype(int))
    assert len(named & set(WRONG)) >= 18
    assert len(named) <= 30  # without half-models
    assert found.record["measures"]["leaked"]["count"] == LEAKS
    assert gate(uri).decision.outcome == "fail"
    # Refitted trees draw everything anew, which is luck: no score is shown, and it says why.
    how = found.record["influence"]
    assert how["reliability"] < 0.5
    assert "so they are not shown" in how["read_why"]
    assert any(how["read_why"] in note for note in found.record["notes"])
    assert found.scores["influence"].isna().all()
    assert not len(found.influence)
    assert how["training_seconds"] > 0

    refused = run_here("audit", uri, "--trainer", trainer)
    assert refused.returncode == 2
    assert "--allow-pickle" in one_line(refused.stderr)
    with pytest.raises(ModelError, match=r"flavors.*not supported.*--trainer"):
        load(resolve(uri), allow_pickle=True)
    labels = register_pyfunc(forest, "predict", data, "sure")
    refused = run_here("audit", labels, "--trainer", trainer, "--allow-pickle")
    assert refused.returncode == 2
    assert "not how sure it is" in one_line(refused.stderr)


def test_an_estimator_that_no_query_can_move_asks_for_a_trainer(shared_store: Path) -> None:
    uri = register(KNeighborsClassifier(3), points(), "alone")
    for command in (("audit",), ("influence", "--query-rows", "1")):
        refused = run_here(*command[:1], uri, *command[1:])
        assert refused.returncode == 2
        assert "--trainer module:function" in one_line(refused.stderr)
