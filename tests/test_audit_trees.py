"""Ensembles of trees from end to end: logged, registered, audited and gated in a real store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import ARTIFACTS, Points, one_line, points, run_here
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.ensemble import RandomForestRegressor as Numbers

from forward_inf_mlflow import audit, gate
from forward_inf_mlflow.data.logging_data import log_training_data
from forward_inf_mlflow.models.estimator import TRUSTED

pytestmark = pytest.mark.filterwarnings("ignore")
LEAKS, WRONG = 9, np.arange(30, 230, 10)


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


@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(30, random_state=0),
        HistGradientBoostingClassifier(max_iter=15, random_state=0),
    ],
    ids=["forest", "hist"],
)
def test_trees_are_audited_and_refused(model: Any, shared_store: Path, tmp_path: Path) -> None:
    uri = register(model, spoilt(), f"trees-{type(model).__name__.lower()}")
    found = audit(uri, out=tmp_path / "out")
    named = found.scores[found.scores["mislabeled"]]["id"].astype(int)
    assert len(set(named) & set(WRONG)) >= 18
    assert len(named) <= 24
    assert found.record["measures"]["leaked"]["count"] == LEAKS
    assert found.record["influence"]["direction"] == "leaves"
    assert {path.name for path in (tmp_path / "out").iterdir()} == ARTIFACTS
    assert gate(uri).decision.outcome == "fail"
    influence = pd.read_parquet(tmp_path / "out" / "influence.parquet")
    # Who was copied shares every leaf with its copy, and speaks for it.
    speaks = influence[influence["kind"] == "proponent"].groupby("query_id")["train_id"].apply(set)
    copied = [str(i) in speaks[str(i)] for i in range(LEAKS) if str(i) in speaks.index]
    assert np.mean(copied) > 0.7
    # Wrong labels speak against the queries.
    wrong = found.scores["influence"].to_numpy()[WRONG]
    assert np.median(wrong) < np.quantile(np.delete(found.scores["influence"], WRONG), 0.05)


def test_a_command_audits_and_explains_a_forest_of_numbers(shared_store: Path) -> None:
    data = points()
    target = data.x.to_numpy() @ np.array([1.0, 2.0, 0.0, 0.0])
    asked = data.test_x.to_numpy() @ np.array([1.0, 2.0, 0.0, 0.0])
    uri = register(
        Numbers(10, random_state=0), Points(data.x, target, data.test_x, asked), "numbers"
    )
    plain = run_here("audit", uri, "--effort", "quick", "--json")
    assert plain.returncode == 2, plain.stderr  # quick decides nothing about numbers
    assert json.loads(plain.stdout)["measures"]["leaked"]["count"] == 0
    told = run_here("influence", uri, "--query-rows", "3", "--json")
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    assert answer["influence"]["direction"] == "leaves"
    assert answer["per"] == "added copy"
    (only,) = answer["answers"]
    assert len(only["proponents"]) > 3  # the others share no leaf
    refused = run_here("audit", uri, "--direction", "replay")
    assert refused.returncode not in (0, 1)
    assert "leave --direction out" in one_line(refused.stderr)
