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
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from forward_inf_mlflow import audit, gate
from forward_inf_mlflow.data.logging_data import log_training_data
from forward_inf_mlflow.models.estimator import TRUSTED

pytestmark = pytest.mark.filterwarnings("ignore")
LEAKS, WRONG = 9, np.arange(30, 230, 10)
TRAINERS = """
import numpy as np
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

def neighbours(x, y, seed):
    return KNeighborsClassifier(7).fit(x, y)

def kernel(x, y, seed):
    return SVC(C=2.0).fit(x, y)

class Luck:
    def __init__(self, y, seed):
        self.classes_, self.seed = np.unique(y), seed
    def predict_proba(self, x):
        return np.random.default_rng(self.seed).dirichlet(np.ones(3), len(x))

def luck(x, y, seed):
    return Luck(y, seed + len(y))

def words(x, y, seed):
    return "a trained model"
"""


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
