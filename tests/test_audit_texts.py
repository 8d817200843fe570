"""Pipelines with a text vectorizer before a linear model, from a csv file to the report."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from forward_inf_mlflow import audit, gate
from forward_inf_mlflow.data.logging_data import log_training_data
from forward_inf_mlflow.models.estimator import audited_estimator
from forward_inf_mlflow.models.parity import check_parity
from forward_inf_mlflow.trainers import Refitted

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS, QUERIES, LEAKS, WRONG = 330, 90, 5, np.arange(20, 330, 20)


def texts(seed: int = 0) -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame, np.ndarray]:
    """Return rows and queries of two topics; the first queries are rows with one word changed."""
    rng = np.random.default_rng(seed)
    topics = [[f"{kind}{i}" for i in range(40)] for kind in ("goal", "bond")]
    rest = [f"word{i}" for i in range(500)]
    y = np.arange(ROWS + QUERIES) % 2
    written = [" ".join(rng.permutation([*rng.choice(topics[k], 7), *rng.choice(rest, 13)]))
               for k in y]  # fmt: skip
    rows, queries = written[:ROWS], written[ROWS:]
    labels, truth = y[:ROWS].copy(), y[ROWS:]
    for i in range(LEAKS):
        rows[i], labels[i] = queries[i], truth[i]
        queries[i] = " ".join(["<b>changed</b>", *queries[i].split()[1:]])
    labels[WRONG] = 1 - labels[WRONG]
    return pd.DataFrame({"text": rows}), labels, pd.DataFrame({"text": queries}), truth


def test_a_text_classifier_is_audited_and_refused(shared_store: Path, tmp_path: Path) -> None:
    x, y, test_x, test_y = texts()
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10)).fit(x["text"], y)
    with mlflow.start_run():
        log_training_data((x, y), (test_x, test_y))
        info = mlflow.sklearn.log_model(
            model,
            name="model",
            pip_requirements=["scikit-learn"],
            registered_model_name="texts",
        )
    uri = f"models:/texts/{info.registered_model_version}"
    found = audit(uri, out=tmp_path / "out", influence_queries=10)
    named = set(found.scores[found.scores["mislabeled"]]["id"].astype(int))
    assert len(named & set(WRONG)) >= 10
    assert len(named) <= 20
    leaks = found.flagged[found.flagged["verdict"] == "leaked"]
    assert sorted(leaks["query_id"].astype(int)) == list(range(LEAKS))
    assert (leaks["row_id"] == leaks["query_id"]).all()
    assert gate(uri).decision.outcome == "fail"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<mark>&lt;b&gt;changed&lt;/b&gt;</mark>" in page


@pytest.mark.parametrize(
    "vectorizer",
    [CountVectorizer(), HashingVectorizer(n_features=64), TfidfVectorizer(ngram_range=(1, 2))],
    ids=["counts", "hashes", "pairs"],
)
def test_vectorizers_are_read_and_fitted_anew(vectorizer: Any) -> None:
    x, y, test_x, _ = texts()
    estimator = make_pipeline(vectorizer, LogisticRegression()).fit(x["text"], y)
    model = audited_estimator(estimator)
    assert check_parity(model, x) <= 1e-12
    half = Refitted(estimator, x, y, test_x, np.arange(2))
    index = np.arange(0, ROWS, 2)
    rows, queries = half(index, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = make_pipeline(vectorizer, LogisticRegression(random_state=3))
        again.fit(x["text"].iloc[index], y[index])
    np.testing.assert_allclose(np.exp(queries), again.predict_proba(test_x["text"]), atol=1e-6)
    assert rows.shape == (ROWS, 2)
