"""What was logged with a version is found again, and known to be the same or not."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import arrays, frame, tracking, train_of, version_of
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag

from forward_inf_mlflow.data.fetch import public_uri
from forward_inf_mlflow.data.lineage import declared_data, logged_data
from forward_inf_mlflow.data.logging_data import log_training_data
from forward_inf_mlflow.data.reading import Columns
from forward_inf_mlflow.errors import DataError, TrackingError

pytestmark = pytest.mark.usefixtures("shared_store")

NONE = Columns()


def run_with(data: Any, context: str = "training", tags: dict[str, str] | None = None) -> str:
    with mlflow.start_run() as run:
        mlflow.log_input(data, context=context, tags=tags)
    return str(run.info.run_id)


def csv(path: Path, n: int = 30, **options: Any) -> pd.DataFrame:
    data = frame(n).assign(y=[0, 1] * (n // 2))
    data.to_csv(path, **options)
    return data


def test_a_file_with_mlflows_own_digest_is_verified(tmp_path: Path) -> None:
    path = tmp_path / "train set.csv"
    data = csv(path, index=False)
    found = train_of(run_with(mlflow.data.from_pandas(data, source=str(path)), "Train"))
    assert (found.digest, found.problem) == ("verified", None)
    assert found.rows.labels.tolist() == data["y"].tolist()
    assert found.mlflow_digest

    shuffled = data.sample(frac=1, random_state=0)
    shuffled.to_csv(tmp_path / "indexed.csv")
    run_id = run_with(mlflow.data.from_pandas(shuffled, source=str(tmp_path / "indexed.csv")))
    assert train_of(run_id, features=("a", "b")).digest == "verified"

    x, y = arrays()
    np.savez(tmp_path / "a.npz", x=x.reshape(30, 2, 2), y=y)
    for features in (x.reshape(30, 2, 2), x):
        logged = mlflow.data.from_numpy(features, targets=y, source=str(tmp_path / "a.npz"))
        assert train_of(run_with(logged)).digest == "verified"


def test_a_file_that_changed_is_a_mismatch(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    # MLflow would give an equal data set of the same name its earlier source.
    logged = mlflow.data.from_pandas(csv(path, index=False), source=str(path), name="changes")
    run_id = run_with(logged)
    path.write_text(path.read_text().replace("x,0", "x,1", 1))
    found = train_of(run_id)
    assert found.digest == "mismatch"
    assert found.problem is not None
    assert f"{path} no longer has the digest" in found.problem
    assert "--train" in found.problem


def test_a_digest_of_a_part_verifies_nothing(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    data = csv(path, index=False)
    without_label = mlflow.data.from_pandas(data.drop(columns="y"), source=str(path))
    own_text = mlflow.data.from_pandas(data, source=str(path), digest="v1")
    x = np.zeros((2_600, 4))
    np.savez(tmp_path / "a.npz", x=x, y=x[:, 0])
    long = mlflow.data.from_numpy(x, targets=x[:, 0], source=str(tmp_path / "a.npz"))
    framed = mlflow.data.from_pandas(pd.DataFrame(x), source=str(tmp_path / "a.npz"))
    for logged, why in (
        (without_label, "only a part"),
        (own_text, "not of a kind"),
        (long, "only a part"),
        (framed, "does not determine"),
    ):
        found = train_of(run_with(logged))
        assert found.digest == "unverified"
        assert found.problem is not None
        assert why in found.problem


def test_tags_by_hand_find_the_file_its_label_and_its_shape(tmp_path: Path) -> None:
    x, y = arrays()
    pd.DataFrame(x).assign(kind=y, who=range(30)).to_csv(tmp_path / "a.csv", index=False)
    logged = mlflow.data.from_numpy(x, targets=y)
    tags = {
        "fi.uri": f"file://{tmp_path}/a.csv",
        "fi.label": "kind",
        "fi.id": "who",
        "fi.shape": "2,2",
    }
    found = train_of(run_with(logged, tags=tags))
    assert isinstance(found.rows.features, np.ndarray)
    assert np.array_equal(found.rows.features, x.reshape(30, 2, 2))
    assert found.digest == "verified"
    for shape, message in (("2,3", "a row has 4 values"), ("two", "write it as 1,8,8")):
        with pytest.raises(DataError, match=message):
            train_of(run_with(logged, tags={**tags, "fi.shape": shape}))


def test_ours_is_preferred_and_two_equals_are_refused(tmp_path: Path) -> None:
    data = csv(tmp_path / "a.csv", index=False)
    plain = mlflow.data.from_pandas(data, source=str(tmp_path / "a.csv"), name="plain")
    other = mlflow.data.from_pandas(data, source=str(tmp_path / "a.csv"), name="other")
    with mlflow.start_run() as run:
        mlflow.log_input(plain, context="training")
        mlflow.log_input(other, context="training")
    with pytest.raises(DataError, match=r"any of 'plain', 'other'.*--train"):
        train_of(run.info.run_id)
    log_training_data(arrays(), run_id=run.info.run_id)
    assert train_of(run.info.run_id).digest == "verified"

    with mlflow.start_run() as run:
        mlflow.log_input(plain, context="validation")
        mlflow.log_input(other, context="test")
    assert logged_data(version_of(run.info.run_id), "queries", NONE).name == "other"


def input_of(source_type: str, source: str, **tags: str) -> str:
    """Log an input as other tools may have written it."""
    with mlflow.start_run() as run:
        entity = Dataset(f"odd {len(tags)} {source}", "0" * 8, source_type, source, None, "{")
        context = InputTag("mlflow.data.context", "training")
        entry = DatasetInput(entity, [context, *(InputTag(k, v) for k, v in tags.items())])
        MlflowClient().log_inputs(run.info.run_id, [entry])
    return str(run.info.run_id)


def test_a_profile_that_says_nothing_leaves_the_digest_unverified(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", index=False)
    run_id = input_of("local", f'{{"uri": "{tmp_path}/a.csv"}}')
    found = train_of(run_id)
    assert found.digest == "unverified"
    assert "not of a kind computed here" in str(found.problem)


def test_data_that_cannot_be_found_say_how_to_go_on(tmp_path: Path) -> None:
    x, y = arrays()
    gone = '{"uri": "runs:/0123456789abcdef0123456789abcdef/a.npz"}'
    with mlflow.start_run() as empty:
        pass
    with mlflow.start_run() as deleted:
        log_training_data((x, y))
    MlflowClient().delete_run(deleted.info.run_id)
    cases: list[tuple[str | None, str]] = [
        (None, "no run made this version"),
        ("0123456789abcdef0123456789abcdef", "is gone"),
        (deleted.info.run_id, "was deleted; restore it"),
        (empty.info.run_id, "was not logged to run"),
        (
            run_with(mlflow.data.from_numpy(x, targets=y, name="code")),
            "only with the code that made it",
        ),
        (input_of("local", f'{{"uri": "{tmp_path}/gone.csv"}}'), "no such file"),
        (input_of("local", gone), "cannot be downloaded"),
        (input_of("local", "{"), "MLflow cannot read"),
        (input_of("quantum", "{}"), "'quantum', which MLflow cannot read"),
        (input_of("hugging_face", '{"path": "a"}'), "hugging_face"),
    ]
    for run_id, message in cases:
        with pytest.raises(DataError, match=message) as caught:
            logged_data(version_of(run_id), "train", NONE)
        assert "--train" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_unreachable_store_is_not_missing_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracking("http://127.0.0.1:9"), pytest.raises(TrackingError):
        train_of("0123456789abcdef0123456789abcdef")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    handler = partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_declared_data_come_from_anywhere_and_are_never_verified(
    tmp_path: Path, website: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    csv(tmp_path / "a.csv", index=False)
    with mlflow.start_run() as run:
        mlflow.log_artifact(str(tmp_path / "a.csv"), "data")
    monkeypatch.chdir(tmp_path)
    uris = [
        str(tmp_path / "a.csv"),
        "a.csv",
        (tmp_path / "a.csv").as_uri(),
        f"runs:/{run.info.run_id}/data/a.csv",
        f"{website}/a.csv?token=hidden",
    ]
    found = [declared_data(uri, "train", NONE) for uri in uris]
    assert len({data.rows.sha256 for data in found}) == 1
    assert {(data.origin, data.digest) for data in found} == {("declared", "unverified")}
    assert "hidden" not in repr(found[-1].rows.uri) + str(found[-1].problem)
    with pytest.raises(DataError, match="404") as caught:
        declared_data(f"{website}/gone.csv?token=hidden", "train", NONE)
    assert "hidden" not in str(caught.value)
    with pytest.raises(DataError, match=r"no such file: gone\.csv"):
        declared_data("gone.csv", "train", NONE)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:p@ss@host/a.csv?sig=1#x", "https://host/a.csv"),
        ("https://token@host/a@b.csv", "https://host/a@b.csv"),
        ("failed for s3://k:v@b/a?x=1 (403)", "failed for s3://b/a (403)"),
        ("abfss://box@account.dfs.core.windows.net/a?sv=1", None),
        ("models:/m@champion", "models:/m@champion"),
        ("C:\\data\\a.csv", "C:\\data\\a.csv"),
        ("data/a@b?.csv", "data/a@b?.csv"),
        ("a.csv\nallowed: \x1b[2Jyes", "a.csv allowed:  [2Jyes"),
    ],
)
def test_no_credentials_are_shown(uri: str, shown: str | None) -> None:
    assert public_uri(uri) == (shown or "abfss://box@account.dfs.core.windows.net/a")
