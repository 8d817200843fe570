"""What log_training_data logs comes back from the version alone, verified, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import arrays, frame, train_of, version_of
from mlflow import MlflowClient

from forward_inf_mlflow.data.lineage import logged_data
from forward_inf_mlflow.data.logging_data import log_training_data
from forward_inf_mlflow.data.reading import Columns
from forward_inf_mlflow.errors import DataError, TrackingError

pytestmark = pytest.mark.usefixtures("shared_store")

NONE = Columns()


def test_what_is_logged_comes_back_verified() -> None:
    x, y = arrays()
    ids = [f"row-{i}" for i in range(30)]
    with mlflow.start_run() as run:
        digests = log_training_data(
            (x, y), (x[:9] + 1, y[:9]), ids=ids, sources=["s", "t"] * 15, query_ids=range(100, 109)
        )
    train = train_of(run.info.run_id)
    queries = logged_data(version_of(run.info.run_id), "queries", NONE)

    assert (train.origin, train.digest, train.problem) == ("logged", "verified", None)
    assert (queries.digest, queries.problem) == ("verified", None)
    assert digests == (train.rows.sha256, queries.rows.sha256)
    assert isinstance(train.rows.features, np.ndarray)
    assert np.array_equal(train.rows.features, x)
    assert np.array_equal(train.rows.labels, y)
    assert train.rows.ids.tolist() == ids
    assert train.rows.sources is not None
    assert train.rows.sources.tolist() == ["s", "t"] * 15
    assert queries.rows.ids[0] == "100"
    assert train.rows.uri.startswith(f"runs:/{run.info.run_id}/")


CASES: dict[str, tuple[Any, Any]] = {
    "images": (np.random.default_rng(1).normal(size=(6, 1, 8, 8)).astype("f4"), range(6)),
    "bytes": (np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8), list("ababab")),
    "tensors": (torch.arange(12.0).reshape(6, 2), torch.tensor([0, 1] * 3)),
    "half": (torch.arange(12.0).reshape(6, 2).half(), [True, False] * 3),
    "big endian": (np.arange(12.0).reshape(6, 2).astype(">f4"), np.arange(6).astype(">i2")),
    "frame": (frame(6), pd.Series(list("ababab"), name="town")),
    "shuffled frame": (frame(6).iloc[::-1], pd.Series([0.5] * 6, index=range(5, -1, -1))),
    "awkward names": (pd.DataFrame({0: [1, 2], "label": [3, 4], "label_": [5, 6]}), [0, 1]),
    "nullable": (frame(6).convert_dtypes(), pd.Series([1, 2] * 3, dtype="Int32")),
    "category": (frame(6).astype({"town": "category"}), pd.Categorical(["a", "b"] * 3)),
    "gaps": (pd.DataFrame({"a": [1.0, np.nan, np.inf], "b": ["x", None, "y"]}), np.arange(3)),
    "column of labels": (np.eye(6), np.arange(6).reshape(6, 1)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("error", "ignore:.*will be keyword-only")
def test_every_kind_of_data_comes_back_verified(case: str) -> None:
    x, y = CASES[case]
    with mlflow.start_run() as run:
        logged = log_training_data((x, y))
    found = train_of(run.info.run_id)
    assert (found.digest, found.rows.sha256) == ("verified", logged.train)
    assert found.rows.features.shape == tuple(x.shape)
    assert [str(label) for label in found.rows.labels] == [
        str(label) for label in np.asarray(y).ravel()
    ]


def test_data_that_differ_late_do_not_come_back_as_an_earlier_runs() -> None:
    x, y = np.zeros((15_010, 2)), np.zeros(15_010, dtype=int)
    other = y.copy()
    other[15_000] = 1
    runs = []
    for labels in (y, other):
        with mlflow.start_run() as run:
            log_training_data((x, labels))
        runs.append(train_of(run.info.run_id))
    first, second = runs
    assert (first.digest, second.digest) == ("verified", "verified")
    assert first.rows.labels[15_000] == 0
    assert second.rows.labels[15_000] == 1
    assert first.name != second.name


def test_the_same_data_in_two_runs_and_in_both_roles_come_back_from_each() -> None:
    for _ in range(2):
        with mlflow.start_run() as run:
            log_training_data(arrays(), arrays())
        run_id = run.info.run_id
        for role in ("train", "queries"):
            found = logged_data(version_of(run_id), role, NONE)  # type: ignore[arg-type]
            assert found.digest == "verified"
            assert run_id in found.rows.uri


def test_logging_twice_is_harmless_and_never_replaces() -> None:
    x, y = arrays()
    with mlflow.start_run() as run:
        assert log_training_data((x, y)) == log_training_data((x, y))
        with pytest.raises(DataError, match="other rows as its train data already"):
            log_training_data((x + 1, y))
    assert train_of(run.info.run_id).digest == "verified"
    log_training_data((x, y), (x, y), run_id=run.info.run_id)  # adds what was missing
    assert logged_data(version_of(run.info.run_id), "queries", NONE).digest == "verified"


def test_a_changed_artifact_is_a_mismatch_that_names_the_file(shared_store: Path) -> None:
    x, y = arrays()
    with mlflow.start_run() as run:
        log_training_data((x, y))
    y[7] += 1
    [file] = shared_store.rglob(f"{run.info.run_id}/artifacts/forward_inf_data/train.npz")
    np.savez(file, x=x, y=y)
    found = train_of(run.info.run_id)
    assert found.digest == "mismatch"
    assert found.problem is not None
    assert "forward_inf_data/train.npz no longer holds the rows that were logged" in found.problem


def test_other_columns_do_not_make_logged_data_a_mismatch() -> None:
    with mlflow.start_run() as run:
        log_training_data((frame(), [0, 1] * 15))
    found = train_of(run.info.run_id, features=("a", "b"), source="town")
    assert found.digest == "verified"
    assert found.rows.features.shape == (30, 2)
    assert found.rows.sources is not None
    with pytest.raises(DataError, match="leave --label out"):
        train_of(run.info.run_id, label="town")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": (np.eye(3), [0, 1])}, "3 rows of features but 2 labels"),
        ({"train": (np.eye(1), [0])}, "one row only"),
        ({"train": (np.eye(3), range(3)), "ids": ["a", "b", "a"]}, "'a' occurs in rows 0 and 2"),
        ({"train": (np.eye(3), range(3)), "ids": ["a"]}, "3 rows of features but 1 ids"),
        ({"train": (np.eye(3), range(3)), "sources": ["a", "b" * 600, "c"]}, "row 1 has a source"),
        ({"train": ([[1], [1, 2]], range(2))}, "train: not an array"),
        ({"train": (torch.eye(3, requires_grad=True), range(3))}, "detached"),
        ({"train": (np.eye(3), 1)}, "labels are a single value"),
        ({"train": (3, range(3))}, "x is a single value"),
        ({"train": np.eye(3)}, r"give train=\(x, y\)"),
        ({"train": (np.eye(3), range(3)), "queries": (np.eye(3), [1])}, "queries: 3 rows"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_bad_rows_are_refused_before_anything_is_logged(
    arguments: dict[str, Any], message: str
) -> None:
    with mlflow.start_run() as run:
        with pytest.raises(DataError, match=message) as caught:
            log_training_data(**arguments)
        assert "\n" not in str(caught.value)
    assert not MlflowClient().list_artifacts(run.info.run_id)
    assert not MlflowClient().get_run(run.info.run_id).inputs.dataset_inputs


def test_a_store_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with mlflow.start_run() as run:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_artifact", full)
            with pytest.raises(TrackingError, match="No space left on device"):
                log_training_data(arrays())
        assert not MlflowClient().get_run(run.info.run_id).inputs.dataset_inputs
    with pytest.raises(DataError, match="no run '0123"):
        log_training_data(arrays(), run_id="0123456789abcdef0123456789abcdef")


def test_no_run_is_started_on_its_own() -> None:
    with pytest.raises(DataError, match=r"with mlflow\.start_run\(\):"):
        log_training_data(arrays())
    assert mlflow.active_run() is None
