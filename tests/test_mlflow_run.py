"""``mlflow run`` does what the command line does, and its run is the audit's run."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from conftest import ROOT, points, register_points, run_tool, sqlite_store, tracking
from mlflow import MlflowClient

from forward_inf_mlflow.promotion import gate


@pytest.fixture(autouse=True, scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tracking(sqlite_store(tmp_path_factory.mktemp("run"))) as uri:
        mlflow.set_experiment("tests")
        yield uri


def mlflow_run(
    store: str, folder: Path, entry: str, **parameters: str
) -> subprocess.CompletedProcess[str]:
    words = ["mlflow", "run", str(ROOT), "-e", entry, "--env-manager", "local"]
    words += ["--experiment-name", "tests"]
    for name, value in parameters.items():
        words += ["-P", f"{name}={value}"]
    return run_tool(*words, tracking_uri=store, cwd=folder)


def newest_run() -> mlflow.entities.Run:
    return mlflow.search_runs(
        experiment_names=["tests"],
        filter_string="tags.mlflow.source.type = 'PROJECT'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
        output_format="list",
    )[0]


def test_a_passed_audit_finishes_the_run_and_opens_the_way_to_the_alias(
    store: str, tmp_path: Path
) -> None:
    uri = register_points(points(), "clean")
    audited = mlflow_run(
        store,
        tmp_path,
        "audit",
        model_uri=uri,
        **{"batch-size": "64", "allow-pickle": "false", "seed": "1"},
    )
    assert audited.returncode == 0, audited.stderr
    run = newest_run()
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "1"
    assert run.data.metrics["forward_inf/gate_passed"] == 1
    version = MlflowClient().get_model_version("clean", "1")
    assert version.tags["fi.run"] == run.info.run_id
    record = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/forward_inf/audit.json")
    assert record["settings"]["seed"] == 1
    assert record["settings"]["batch_size"] == 64

    gated = mlflow_run(store, tmp_path, "gate", model_uri=uri)
    assert gated.returncode == 0, gated.stderr
    promoted = mlflow_run(store, tmp_path, "promote", model_uri=uri)
    assert promoted.returncode == 0, promoted.stderr
    assert MlflowClient().get_model_version_by_alias("clean", "champion").version == version.version


def test_a_refused_audit_counts_although_mlflow_calls_its_run_failed(
    store: str, tmp_path: Path
) -> None:
    uri = register_points(points(leaks=40), "leaky")
    assert mlflow_run(store, tmp_path, "audit", model_uri=uri).returncode == 1
    run = newest_run()
    assert run.info.status == "FAILED"
    found = gate(uri)
    assert found.run_id == run.info.run_id
    assert found.decision.outcome == "fail"
    promoted = mlflow_run(store, tmp_path, "promote", model_uri=uri, alias="best")
    assert promoted.returncode == 1
    assert MlflowClient().get_registered_model("leaky").aliases == {}


def test_an_option_that_does_not_exist_is_named_and_fails_the_run(
    store: str, tmp_path: Path
) -> None:
    wrong = mlflow_run(store, tmp_path, "audit", model_uri="models:/clean/1", sede="1")
    assert wrong.returncode == 1
    assert "--sede" in wrong.stderr
    assert newest_run().info.status == "FAILED"


@pytest.mark.parametrize(
    ("model_uri", "said"),
    [
        ("models:/a b/1", "no registered model 'a b'"),
        ("models:/x/1; echo ran > ran.txt", repr("models:/x/1; echo ran > ran.txt")),
    ],
)
def test_a_parameter_is_one_word_whatever_it_holds(
    store: str, tmp_path: Path, model_uri: str, said: str
) -> None:
    done = mlflow_run(store, tmp_path, "gate", model_uri=model_uri)
    assert done.returncode == 1
    assert said in done.stderr
    assert not (ROOT / "ran.txt").exists()
