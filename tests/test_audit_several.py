"""Several labels a row, weighted classes and several targets: audited in a real store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import one_line, run_here
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from forward_inf_mlflow import audit, gate
from forward_inf_mlflow.data.logging_data import log_training_data
from forward_inf_mlflow.data.several import written

pytestmark = pytest.mark.filterwarnings("ignore")
N, M = 300, 150
WRONG = np.arange(20, 290, 9)


def topics() -> tuple[np.ndarray, pd.DataFrame]:
    """Return rows, and three labels that each may have; the third is rarer."""
    rng = np.random.default_rng(0)
    y = (rng.random((N + M, 3)) < [0.5, 0.4, 0.2]).astype(int)
    x = np.hstack([6.0 * y - 3, np.zeros((N + M, 3))]) + rng.normal(size=(N + M, 6))
    return x.astype(np.float32), pd.DataFrame(y, columns=["sport", "money", "art"])


class Named(nn.Module):
    """Answers with two outputs, one of which is meant."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.inner(x).tanh()
        return {"hidden": hidden, "logits": self.outer(hidden)}


def registered(info: Any, name: str) -> str:
    return f"models:/{name}/{info.registered_model_version}"


def test_a_module_of_several_labels_is_audited_and_refused(shared_store: Path) -> None:
    x, y = topics()
    train = y[:N].copy()
    which = np.arange(len(WRONG)) % 3
    for row, column in zip(WRONG, which, strict=True):
        train.iloc[row, column] = 1 - train.iloc[row, column]
    torch.manual_seed(0)
    module = Named()
    rows, targets = torch.as_tensor(x[:N]), torch.as_tensor(train.to_numpy(np.float32))
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(module(rows)["logits"], targets).backward()
        optimizer.step()
    with mlflow.start_run():
        log_training_data((x[:N], train), (x[N:], y[N:].reset_index(drop=True)))
        info = mlflow.pytorch.log_model(
            module.eval(),
            name="model",
            input_example=x[:2],
            signature=ModelSignature(Schema([TensorSpec(np.dtype("float32"), (-1, 6))])),
            pip_requirements=[],
            registered_model_name="topics",
        )
    uri = registered(info, "topics")
    plain = run_here("audit", uri)
    assert plain.returncode == 2
    assert "name the output (audit --output)" in one_line(plain.stderr)
    found = audit(uri, chosen_output="logits", influence_queries=4)
    assert "--output logits" in found.record["repeat"]
    assert found.record["task"] == "multilabel"
    assert found.record["data"]["train"]["digest"] == "verified"
    scores = found.scores
    named = set(scores[scores["mislabeled"]]["id"].astype(int))
    assert len(named & set(WRONG)) >= 27
    assert len(named) <= 40
    # Of a row the right label is blamed.
    mended = scores["likelier_label"].to_numpy()
    truth = written(y.to_numpy(), "012", flags=True)
    assert sum(mended[row] == truth[row] for row in named & set(WRONG)) >= 27
    # And it is named.
    said = found.flagged.set_index("row_id")["evidence"]
    for row, column in zip(WRONG, which, strict=True):
        if mended[row] == truth[row]:
            given = train.iloc[row, column]
            assert f"gives {'' if given else 'that it is not '}'{column}' " in said[str(row)]
    assert found.record["measures"]["memorized"]["abstained"].endswith("a row here has several")
    assert gate(uri).decision.outcome == "fail"
    wrong = scores["influence"].to_numpy()[WRONG]
    assert np.median(wrong) < np.median(np.delete(scores["influence"], WRONG))


def test_a_command_audits_two_targets(shared_store: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(N + M, 4))
    y = x @ rng.normal(size=(4, 2)) * [1, 100] + rng.normal(size=(N + M, 2)) * [0.1, 10]
    wrong = y[:N].copy()
    wrong[WRONG, 1] += 900  # one target of the two
    model = Ridge(1.0).fit(x[:N], wrong)
    with mlflow.start_run():
        log_training_data((x[:N], wrong), (x[N:], y[N:]))
        info = mlflow.sklearn.log_model(
            model, name="model", pip_requirements=[], registered_model_name="two"
        )
    uri = registered(info, "two")
    found = run_here("audit", uri, "--json", "--influence-queries", "2", "--out", str(tmp_path))
    assert found.returncode == 1, found.stderr
    scores = pd.read_parquet(tmp_path / "scores.parquet")
    named = set(scores[scores["mislabeled"]]["id"].astype(int))
    assert named >= set(WRONG)
    assert len(named) <= 40
    said = np.array([text.split(", ") for text in scores["likelier_label"]], dtype=float)
    assert np.abs(said[WRONG, 1] - y[WRONG, 1]).max() < 200
    np.testing.assert_allclose(said[WRONG, 0], wrong[WRONG, 0], rtol=1e-4)  # nobody doubts these
    assert json.loads(found.stdout)["measures"]["mislabeled"]["rate_low"] > 0.03
    told = run_here("influence", uri, "--query-rows", "3", "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["unit"] == "half squared units"


def test_a_class_weighted_model_is_audited_by_its_own_loss(shared_store: Path) -> None:
    rng = np.random.default_rng(2)
    y = (np.arange(N + M) % 5 == 0).astype(int)
    x = rng.normal(size=(N + M, 4)) + 4 * y[:, None] * [1, 0, 0, 0]
    labels = y[:N].copy()
    labels[WRONG] = 1 - labels[WRONG]
    model = LogisticRegression(class_weight="balanced").fit(x[:N], labels)
    with mlflow.start_run():
        log_training_data((x[:N], labels), (x[N:], y[N:]))
        info = mlflow.sklearn.log_model(
            model, name="model", pip_requirements=[], registered_model_name="weighted"
        )
    uri = registered(info, "weighted")
    found = audit(uri, influence_queries=2)
    named = set(found.scores[found.scores["mislabeled"]]["id"].astype(int))
    assert len(named & set(WRONG)) >= 26
    assert len(named) <= 40
    assert gate(uri).decision.outcome == "fail"
    # Surprise is read without weights, whatever the loss was.
    p = model.predict_proba(x[:N])[np.arange(N), labels]
    np.testing.assert_allclose(found.scores["given_probability"], p, rtol=1e-4)
    refused = run_here("audit", uri, "--class-weight", "1,5")
    assert refused.returncode == 2
    assert "leave --class-weight out" in one_line(refused.stderr)
