"""Through a real MLflow server, with the command line as people run it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from conftest import (
    ARTIFACTS,
    Server,
    free_port,
    one_line,
    points,
    register_points,
    run_here,
    run_tool,
    tracking,
)
from mlflow import MlflowClient

pytestmark = pytest.mark.server

BLOCK = "<!-- forward-inf -->"


@dataclass(frozen=True)
class Story:
    """A version with leaked rows and a clean one, both audited by the command line."""

    url: str
    spoiled: str
    clean: str
    spoiled_audit: subprocess.CompletedProcess[str]
    clean_audit: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def story(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("client")
    with tracking(server.url):
        mlflow.set_experiment("points")
        spoiled, clean = register_points(points(leaks=40)), register_points(points())
        MlflowClient().update_model_version("points", "1", "Written by a person.")
        # The one is audited from outside and the other from within; it must make no difference.
        words = ("forward-inf", "audit", spoiled, "--json")
        outside = run_tool(*words, tracking_uri=server.url, cwd=folder)
        assert list(folder.iterdir()) == []
        yield Story(server.url, spoiled, clean, outside, run_here("audit", clean))


def test_the_exit_code_is_the_decision(story: Story) -> None:
    assert story.spoiled_audit.returncode == 1, story.spoiled_audit.stderr
    assert story.clean_audit.returncode == 0, story.clean_audit.stderr
    assert "PASS" in story.clean_audit.stdout
    assert story.clean_audit.stderr == ""


def test_json_is_one_object_on_stdout_and_nothing_else_anywhere(story: Story) -> None:
    assert story.spoiled_audit.stderr == ""
    result = json.loads(story.spoiled_audit.stdout)
    assert result["outcome"] == "fail"
    assert result["measures"]["leaked"]["count"] >= 40
    assert result["model"] == story.spoiled


def test_the_alias_moves_on_a_pass_only(story: Story, tmp_path: Path) -> None:
    refused = run_here("promote", story.spoiled, "--alias", "champion")
    assert refused.returncode == 1
    assert MlflowClient().get_registered_model("points").aliases == {}
    gated = run_here("gate", story.clean, "--json")
    assert gated.returncode == 0
    assert json.loads(gated.stdout)["outcome"] == "pass"
    words = ("promote", story.clean, "--alias", "champion")
    moved = run_tool("forward-inf", *words, tracking_uri=story.url, cwd=tmp_path)
    assert moved.returncode == 0
    assert MlflowClient().get_registered_model("points").aliases == {"champion": "2"}


def test_the_version_says_the_verdict_in_tags_and_description(story: Story) -> None:
    version = MlflowClient().get_model_version("points", "1")
    run_id = version.tags["fi.run"]
    assert version.tags["fi.gate"] == "fail"
    assert re.fullmatch("[0-9a-f]{64}", version.tags["fi.audit"])
    assert version.description.startswith("Written by a person.")
    assert f"runs/{run_id}/artifacts/forward_inf/report.html" in version.description
    found = MlflowClient().search_model_versions("name='points' and tags.`fi.gate`='pass'")
    assert [v.version for v in found] == ["2"]


def test_the_run_is_linked_to_the_logged_model_and_has_every_artifact(story: Story) -> None:
    client = MlflowClient()
    version = client.get_model_version("points", "1")
    run = client.get_run(version.tags["fi.run"])
    model_id = version.source.removeprefix("models:/")
    assert run.info.status == "FINISHED"
    assert [entry.model_id for entry in run.inputs.model_inputs] == [model_id]
    assert {entry.dataset.name.split("-")[0] for entry in run.inputs.dataset_inputs} == {
        "train",
        "queries",
    }
    names = {file.path for file in client.list_artifacts(run.info.run_id, "forward_inf")}
    assert names == {f"forward_inf/{name}" for name in ARTIFACTS}
    table = mlflow.load_table("forward_inf/flagged.json", run_ids=[run.info.run_id])
    assert (table["verdict"] == "leaked").sum() >= 40


def test_metrics_stand_on_the_logged_model_with_their_data_set(story: Story) -> None:
    client = MlflowClient()
    version = client.get_model_version("points", "1")
    logged = client.get_logged_model(version.source.removeprefix("models:/"))
    first = {m.key: m for m in logged.metrics if m.run_id == version.tags["fi.run"]}
    assert first["forward_inf/leaked_count"].value == 40
    assert first["forward_inf/leaked_count"].dataset_name.startswith("queries-")
    assert first["forward_inf/mislabeled_rate"].dataset_name.startswith("train-")
    assert client.get_run(version.tags["fi.run"]).data.metrics["forward_inf/gate_passed"] == 0


def test_the_report_comes_back_as_it_was_written(story: Story, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    done = run_here("report", story.spoiled, "-o", str(file))
    assert done.returncode == 0, done.stderr
    assert "<html" in file.read_text()


def test_auditing_again_is_harmless(story: Story) -> None:
    client = MlflowClient()
    before = client.get_model_version("points", "1")
    after_text = f"{before.description}\n\nAnd more by a person."
    client.update_model_version("points", "1", after_text)
    assert run_here("audit", story.spoiled).returncode == 1
    after = client.get_model_version("points", "1")
    assert after.tags["fi.run"] != before.tags["fi.run"]
    assert after.description.count(BLOCK) == 1
    assert "Written by a person." in after.description
    assert "And more by a person." in after.description
    assert run_here("gate", story.spoiled).returncode == 1


def test_a_record_that_was_changed_after_the_audit_decides_nothing(
    story: Story, tmp_path: Path
) -> None:
    uri = register_points(points(leaks=40), "tampered")
    assert run_here("audit", uri).returncode == 1
    client = MlflowClient()
    run_id = client.get_model_version("tampered", "1").tags["fi.run"]
    path = Path(client.download_artifacts(run_id, "forward_inf/audit.json", str(tmp_path)))
    record = json.loads(path.read_text())
    record["measures"]["leaked"].update(count=0, rate_low=0.0)
    path.write_text(json.dumps(record))
    client.log_artifact(run_id, str(path), "forward_inf")
    done = run_here("gate", uri)
    assert done.returncode == 2
    assert "was changed after the audit" in one_line(done.stderr)


@pytest.mark.parametrize("command", ["audit", "gate"])
def test_a_host_that_the_server_does_not_know_is_explained(server: Server, command: str) -> None:
    with tracking(f"http://127.0.0.2:{server.port}"):
        done = run_here(command, "models:/points/1")
    assert done.returncode == 2
    assert "--allowed-hosts" in one_line(done.stderr)


def test_a_server_that_is_not_there_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracking(f"http://127.0.0.1:{free_port()}"):
        done = run_here("audit", "models:/points/1")
    assert done.returncode == 2
    assert "is it running" in one_line(done.stderr)


def test_a_version_that_does_not_exist_is_answered_with_those_that_do(story: Story) -> None:
    done = run_here("audit", "models:/points/77")
    assert done.returncode == 2
    assert "Known versions: 2, 1" in one_line(done.stderr)
