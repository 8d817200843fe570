"""``mlflow run`` does what the command line does, and its run is the audit's run."""

from __future__ import annotations

import os
from pathlib import Path

import mlflow
import mlflow.projects
import pytest
import yaml
from conftest import BIN, ROOT, points, register_points, run_tool
from mlflow import MlflowClient
from mlflow.exceptions import ExecutionException

from forward_inf_mlflow.cli import cli
from forward_inf_mlflow.promotion import gate

pytestmark = pytest.mark.usefixtures("shared_store")


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Begin in a folder of one's own, with the environment's commands on the path."""
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)


def project_run(entry: str, **parameters: str) -> bool:
    """Run an entry point as ``mlflow run`` does; return whether it succeeded."""
    try:
        mlflow.projects.run(
            str(ROOT), entry, parameters=parameters, experiment_name="tests", env_manager="local"
        )
    except ExecutionException:
        return False
    return True


def newest_run() -> mlflow.entities.Run:
    return mlflow.search_runs(
        experiment_names=["tests"],
        filter_string="tags.mlflow.source.type = 'PROJECT'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
        output_format="list",
    )[0]


def test_a_passed_audit_finishes_the_run_and_opens_the_way_to_the_alias(tmp_path: Path) -> None:
    uri = register_points(points(), "clean")
    words = ["mlflow", "run", str(ROOT), "-e", "audit", "--env-manager", "local"]
    words += ["--experiment-name", "tests", "-P", f"model_uri={uri}"]
    words += ["-P", "batch-size=64", "-P", "allow-pickle=false", "-P", "seed=1"]
    audited = run_tool(*words, tracking_uri=mlflow.get_tracking_uri(), cwd=tmp_path)
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

    assert project_run("gate", model_uri=uri)
    assert project_run("promote", model_uri=uri)
    assert MlflowClient().get_model_version_by_alias("clean", "champion").version == version.version


def test_a_refused_audit_counts_although_mlflow_calls_its_run_failed() -> None:
    uri = register_points(points(leaks=40), "leaky")
    assert not project_run("audit", model_uri=uri)
    run = newest_run()
    assert run.info.status == "FAILED"
    found = gate(uri)
    assert found.run_id == run.info.run_id
    assert found.decision.outcome == "fail"
    assert not project_run("promote", model_uri=uri, alias="best")
    assert MlflowClient().get_registered_model("leaky").aliases == {}


def test_an_option_that_does_not_exist_is_named_and_fails_the_run(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert not project_run("audit", model_uri="models:/clean/1", sede="1")
    assert "--sede" in capfd.readouterr().err
    assert newest_run().info.status == "FAILED"


@pytest.mark.parametrize(
    ("model_uri", "said"),
    [
        ("models:/a b/1", "no registered model 'a b'"),
        ("models:/x/1; echo ran > ran.txt", repr("models:/x/1; echo ran > ran.txt")),
    ],
)
def test_a_parameter_is_one_word_whatever_it_holds(
    model_uri: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not project_run("gate", model_uri=model_uri)
    assert said in capfd.readouterr().err
    assert not (ROOT / "ran.txt").exists()


def test_every_entry_is_a_command_with_the_options_that_it_has() -> None:
    entries = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    assert {"audit", "influence", "trace", "recite", "attribute", "gate", "promote"} == set(entries)
    for name, entry in entries.items():
        program, command, *words = entry["command"].split()
        assert (program, command) == ("forward-inf", name)
        known = {option for one in cli.commands[name].params for option in one.opts}
        assert {word for word in words if word.startswith("--")} <= known
        assert {word.strip("{}") for word in words if word.startswith("{")} == set(
            entry["parameters"]
        )


def test_an_explanation_is_the_projects_run() -> None:
    uri = register_points(points(), "explained")
    assert project_run("influence", model_uri=uri, query_rows="3,17", direction="gradient")
    record = mlflow.artifacts.load_dict(
        f"runs:/{newest_run().info.run_id}/forward_inf_influence/influence.json"
    )
    assert [answer["query_id"] for answer in record["answers"]] == ["3", "17"]


def test_a_trace_is_the_projects_run(shared_store: Path) -> None:
    texts = pytest.importorskip("texts")
    uri = texts.register(texts.gpt2().eval(), "told")
    file = shared_store / "told.csv"
    file.write_text("\n".join(["text", *texts.SENTENCES]))
    parameters = {"prompt": "the home of ada; is", "completion": "paris", "train": str(file)}
    assert project_run("trace", model_uri=uri, direction="gradient", **parameters)
    record = mlflow.artifacts.load_dict(
        f"runs:/{newest_run().info.run_id}/forward_inf_trace/trace.json"
    )
    assert record["completion"]["prompt"] == "the home of ada; is"
