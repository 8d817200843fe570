"""What tests share: stores, one real server, registered versions, and how to call the tools."""

from __future__ import annotations

import os
import tempfile

# Before anything imports MLflow, and for every process that the tests start.
os.environ.update(
    MLFLOW_DISABLE_TELEMETRY="true",
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    NO_COLOR="1",
    FORWARD_INF_WORK_DIR=tempfile.mkdtemp(prefix="forward-inf-tests-"),  # not the user's own
)

import functools
import io
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
from gate_cases import write_gate
from mlflow import MlflowClient
from mlflow.tracking import fluent
from sklearn.linear_model import LogisticRegression

from forward_inf_mlflow.cli import run
from forward_inf_mlflow.data.lineage import DataSet, logged_data
from forward_inf_mlflow.data.logging_data import log_training_data
from forward_inf_mlflow.data.reading import Columns
from forward_inf_mlflow.registry import Version

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]
#: What MLflow writes into the environment when a store or an experiment is set.
_STORE = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")
#: What an audit leaves behind.
ARTIFACTS = {
    *("audit.json", "flagged.csv", "flagged.json", "influence.parquet"),
    *("policy.yaml", "portraits.parquet", "report.html", "scores.parquet"),
}
#: Seconds; far beyond what is needed, so that only what hangs reaches it.
PATIENCE = 600


@dataclass(frozen=True)
class Points:
    """Small rows of three well separated classes, as frames."""

    x: pd.DataFrame
    y: np.ndarray
    test_x: pd.DataFrame
    test_y: np.ndarray


def points(*, leaks: int = 0) -> Points:
    """Return 240 training and 90 query rows; the first ``leaks`` queries are training rows too."""
    rng = np.random.default_rng(0)
    y = np.arange(330) % 3
    x = (rng.normal(size=(330, 4)) + 4 * np.eye(4)[y]).astype(np.float32)
    test_x, test_y = x[240:], y[240:]
    x, y = x[:240].copy(), y[:240].copy()
    x[:leaks], y[:leaks] = test_x[:leaks], test_y[:leaks]
    names = list("abcd")
    return Points(pd.DataFrame(x, columns=names), y, pd.DataFrame(test_x, columns=names), test_y)


def register_points(data: Points, name: str = "points") -> str:
    """Fit, log and register a small model with its data, in seconds; return the version's URI."""
    model = LogisticRegression().fit(data.x, data.y)
    with mlflow.start_run():
        log_training_data((data.x, data.y), (data.test_x, data.test_y))
        info = mlflow.sklearn.log_model(
            model,
            name="model",
            input_example=data.x[:2],
            pip_requirements=["scikit-learn"],
            registered_model_name=name,
        )
    return f"models:/{name}/{info.registered_model_version}"


def arrays(n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of four numbers and labels of three classes, to be logged and read again."""
    return np.random.default_rng(0).normal(size=(n, 4)), np.arange(n) % 3


def frame(n: int = 30) -> pd.DataFrame:
    """Return the same rows with names, and a column of text."""
    return pd.DataFrame(arrays(n)[0], columns=list("abcd")).assign(town=["x", "y"] * (n // 2))


def version_of(run_id: str | None) -> Version:
    """Return a version that a run made, without a registry."""
    return Version("m", "3", 0, "", run_id, None)


def train_of(run_id: str, **columns: Any) -> DataSet:
    """Return the training data that were logged to a run."""
    return logged_data(version_of(run_id), "train", Columns(**columns))


@dataclass(frozen=True)
class Server:
    """A running ``mlflow server``."""

    url: str
    port: int


@contextmanager
def tracking(uri: str) -> Iterator[str]:
    """Point MLflow to a store, for this process and those it starts, and back again.

    The active experiment goes with it: MLflow keeps it for the whole process, and for its
    children, whatever store they use.
    """
    before, experiment = mlflow.get_tracking_uri(), fluent._active_experiment_id
    environment = {name: os.environ.pop(name, None) for name in _STORE}
    fluent._active_experiment_id = None
    mlflow.set_tracking_uri(uri)
    try:
        yield uri
    finally:
        while mlflow.active_run():
            mlflow.end_run()
        mlflow.set_tracking_uri(before)
        fluent._active_experiment_id = experiment
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@functools.cache
def empty_database() -> bytes:
    """Return a store without content: MLflow takes a second to make one, a copy takes none."""
    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return Path(folder, "mlflow.db").read_bytes()


def sqlite_store(folder: Path) -> str:
    """Return the URI of a new store; its experiment ``tests`` keeps artifacts in ``folder`` too."""
    (folder / "mlflow.db").write_bytes(empty_database())
    with tracking(f"sqlite:///{folder}/mlflow.db") as uri:
        mlflow.create_experiment("tests", artifact_location=(folder / "artifacts").as_uri())
    return uri


def run_tool(
    *words: str, tracking_uri: str, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run an installed command, such as ``forward-inf`` or ``mlflow``, as a user does."""
    return subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        env={
            **{name: value for name, value in os.environ.items() if name not in _STORE},
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": tracking_uri,
            **environment,
        },
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def run_here(*words: str) -> subprocess.CompletedProcess[str]:
    """Run ``forward-inf`` within this process, for all that is not about processes."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = run(list(words))
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def one_line(text: str) -> str:
    """Return what a command said on stderr, which must be one line."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """Yield the URI of an empty store, to which MLflow points during the test."""
    with tracking(sqlite_store(tmp_path)) as uri:
        mlflow.set_experiment("tests")
        yield uri


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the folder of a store that all tests of a file share; MLflow points to it."""
    folder = tmp_path_factory.mktemp("store")
    with tracking(sqlite_store(folder)):
        mlflow.set_experiment("tests")
        yield folder


@contextmanager
def serve(folder: Path, *switches: str, workers: int = 1, **environment: str) -> Iterator[Server]:
    """Run a server on a new sqlite store in ``folder``; it hands on artifacts, as most do."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(str(BIN / "mlflow"), "server", "--host", "0.0.0.0", "--port", str(port)),
                *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
                *("--workers", str(workers), "--allowed-hosts", f"127.0.0.1:{port}"),
                *("--artifacts-destination", str(folder / "artifacts"), *switches),
            ],
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")},
                **environment,
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,  # so that its children can be ended with it
        )
    try:
        wait_for(process, f"{url}/health", log)
        yield Server(url, port)
    finally:
        end(process)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield one real server for the whole session."""
    with serve(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """Yield one real server with a gate for the whole session, and the folder of its gate file."""
    folder = tmp_path_factory.mktemp("gated")
    (folder / "mlflow.db").write_bytes(empty_database())
    write_gate(folder)
    registry = f"forward-inf-gate:sqlite:///{folder}/mlflow.db"
    with serve(folder, "--registry-store-uri", registry, workers=2) as running:
        yield running, folder


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until the server answers; show its log if it does not."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the server does not answer at {url}:\n{log.read_text()}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that began a session of its own, and all its children."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=20)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
