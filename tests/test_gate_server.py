"""The gate on a real server, asked as anybody may ask it: by MLflow's client and over HTTP."""

from __future__ import annotations

import json
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import Server, one_line, run_here, tracking
from gate_cases import (
    ADA,
    CI,
    RING,
    forgeries,
    now,
    override_for,
    subject_of,
    verdict_on,
    write_gate,
)
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from forward_inf_mlflow.models.content import content_sha256
from forward_inf_mlflow.verdicts.blocks import APPROVALS, VERDICT, block
from forward_inf_mlflow.verdicts.gate_file import default_gate_text
from forward_inf_mlflow.verdicts.keys import Ring
from forward_inf_mlflow.verdicts.seal import Sealed

pytestmark = pytest.mark.server


@dataclass(frozen=True)
class Gated:
    """The server, a client of it, and the folder of its gate file."""

    server: Server
    folder: Path
    client: MlflowClient

    def version(self, name: str, source: str = "s3://nowhere/model", **more: Any) -> str:
        """Register a version, and its model where there is none; return the version's number."""
        with suppress(MlflowException):
            self.client.create_registered_model(name)
        return str(self.client.create_model_version(name, source, **more).version)

    def tag(self, name: str, version: str, sealed: Sealed) -> None:
        """Give a version a sealed statement."""
        self.client.set_model_version_tag(name, version, sealed.tag, sealed.text)

    def passed(self, name: str) -> str:
        """Register a version that may become champion; return its number."""
        version = self.version(name)
        self.tag(name, version, verdict_on(subject_of(self.client, name, version)))
        return version

    def aliases(self, name: str) -> dict[str, str]:
        """Return where a model's aliases point."""
        found = self.client._get_registry_client().get_registered_model(name).aliases  # prompts too
        return {alias: str(version) for alias, version in found.items()}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the status and the answer to a request of the REST interface."""
        request = urllib.request.Request(
            f"{self.server.url}/api/2.0/mlflow/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@pytest.fixture
def gate(gated: tuple[Server, Path]) -> Iterator[Gated]:
    server, folder = gated
    write_gate(folder)
    with tracking(server.url):
        yield Gated(server, folder, MlflowClient())


def refused(gate: Gated, name: str, version: str, alias: str = "champion") -> str:
    """Return the sentence with which an alias is refused, which must leave it where it was."""
    before = gate.aliases(name)
    with pytest.raises(MlflowException) as caught:
        gate.client.set_registered_model_alias(name, alias, version)
    assert caught.value.error_code == "PERMISSION_DENIED"
    assert gate.aliases(name) == before
    return str(caught.value.message)


def test_a_pass_opens_the_alias_and_nothing_else_does(gate: Gated) -> None:
    version = gate.version("flow")
    status, answer = gate.post(
        "registered-models/alias", {"name": "flow", "alias": "champion", "version": version}
    )
    assert status == 403
    assert answer["error_code"] == "PERMISSION_DENIED"
    assert answer["message"] == (
        "models:/flow/1 may not become 'champion': it has no signed verdict; run "
        "'forward-inf audit models:/flow/1', then 'forward-inf sign models:/flow/1 --key KEY "
        "--audit-sha256 SHA256', or ask for 'forward-inf approve' by a person who may"
    )
    assert gate.aliases("flow") == {}
    gate.tag("flow", version, verdict_on(subject_of(gate.client, "flow", version)))
    gate.client.set_registered_model_alias("flow", "champion", version)
    assert gate.aliases("flow") == {"champion": version}
    events = json.loads(gate.client.get_model_version("flow", version).tags["fi.history"])
    assert [(e["event"], e["alias"], e["from"], e["by"]) for e in events] == [
        ("refused", "champion", None, None),
        ("moved", "champion", None, "ci"),
    ]
    assert abs(events[-1]["at"] - now()) < 60_000


def test_the_servers_log_begins_with_what_is_closed(gate: Gated) -> None:
    log = (gate.folder / "server.log").read_text()
    assert f"the gate {gate.folder / 'gate.yaml'}: 2 of 2 keys count, protected are champ" in log


def plant(gate: Gated, name: str, version: str, sealed: Sealed) -> None:
    """Write a tag past the gate, as it may have been written before there was one."""
    with closing(sqlite3.connect(gate.folder / "mlflow.db", timeout=60)) as database, database:
        database.execute(
            "INSERT OR REPLACE INTO model_version_tags (workspace, name, version, key, value) "
            "VALUES ('default', ?, ?, ?, ?)",
            (name, int(version), sealed.tag, sealed.text),
        )


def test_no_field_of_a_verdict_can_be_changed(gate: Gated) -> None:
    version, other = gate.version("fields"), gate.version("other fields", "s3://else/where")
    subject = subject_of(gate.client, "fields", version)
    stranger = replace(subject_of(gate.client, "other fields", other), version="2", model_id="m-9")
    found = forgeries(verdict_on(subject), stranger)
    assert len(found) == 16
    for what, forged in found.items():
        with pytest.raises(MlflowException) as caught:
            gate.tag("fields", version, forged)
        assert caught.value.error_code == "PERMISSION_DENIED", what
        plant(gate, "fields", version, forged)
    assert "its verdict does not count" in refused(gate, "fields", version)
    gate.tag("fields", version, verdict_on(subject))
    gate.client.set_registered_model_alias("fields", "champion", version)


def test_a_refusal_closes_what_an_older_pass_opened(gate: Gated) -> None:
    version = gate.version("replay")
    subject = subject_of(gate.client, "replay", version)
    passed = verdict_on(subject)
    gate.tag("replay", version, passed)
    gate.client.set_registered_model_alias("replay", "champion", version)
    failed = verdict_on(subject, outcome="fail")
    gate.tag("replay", version, failed)
    gate.tag("replay", version, passed)
    with pytest.raises(MlflowException, match="kept for good"):
        gate.client.delete_model_version_tag("replay", version, failed.tag)
    gate.client.delete_registered_model_alias("replay", "champion")
    assert "its newest verdict" in refused(gate, "replay", version)


def test_a_verdict_belongs_to_one_version(gate: Gated) -> None:
    first, second = gate.passed("moved"), gate.version("moved")
    tags = gate.client.get_model_version("moved", first).tags
    (key,) = (key for key in tags if key.startswith("fi.verdict."))
    with pytest.raises(MlflowException, match="it was made for models:/moved/1"):
        gate.client.set_model_version_tag("moved", second, key, tags[key])
    copy = gate.client.copy_model_version(f"models:/moved/{first}", "copied")
    assert not [key for key in copy.tags if key.startswith("fi.")]
    assert "no signed verdict" in refused(gate, "copied", copy.version)
    gate.client.delete_registered_model("moved")
    assert gate.version("moved") == first
    with pytest.raises(MlflowException, match="registered at another time"):
        gate.client.set_model_version_tag("moved", first, key, tags[key])
    assert "no signed verdict" in refused(gate, "moved", first)


def test_a_key_that_is_revoked_while_the_server_runs_counts_no_more(gate: Gated) -> None:
    version = gate.passed("revoked")
    write_gate(gate.folder, ring=Ring(tuple(replace(k, revoked="2026-01-01") for k in RING.keys)))
    assert "its key 'ci' was revoked" in refused(gate, "revoked", version)
    write_gate(gate.folder)
    gate.client.set_registered_model_alias("revoked", "champion", version)


def test_a_gate_file_that_breaks_while_the_server_runs_closes_it(gate: Gated) -> None:
    version = gate.passed("broken")
    write_gate(gate.folder, "protect: [{alias: [champion]}]")
    said = refused(gate, "broken", version)
    assert "gate.yaml, line 1: unknown key 'alias'; did you mean 'aliases'?" in said
    (gate.folder / "gate.yaml").unlink()
    assert "there is no file gate.yaml" in refused(gate, "broken", version, "free")
    assert gate.client.search_model_versions("name='broken'")[0].version == version
    write_gate(gate.folder)
    gate.client.set_registered_model_alias("broken", "champion", version)


@pytest.mark.parametrize("alias", ["Champion", "PRODUCTION"])
@pytest.mark.parametrize("version", ["1", "01", " 1"])
def test_other_spellings_change_nothing(gate: Gated, alias: str, version: str) -> None:
    with suppress(MlflowException):
        gate.client.get_registered_model("spelt")
    if not gate.client.search_model_versions("name='spelt'"):
        gate.version("spelt")
    body = {"name": "spelt", "alias": alias, "version": version}
    status, answer = gate.post("registered-models/alias", body)
    assert status == 403
    assert f"models:/spelt/1 may not become '{alias}'" in answer["message"]


def test_the_old_stage_is_refused_too(gate: Gated) -> None:
    version = gate.version("staged")
    body = {"name": "staged", "version": version, "stage": "production"}
    status, answer = gate.post("model-versions/transition-stage", body)
    assert status == 403
    assert "may not enter the stage 'Production'" in answer["message"]
    sealed = verdict_on(subject_of(gate.client, "staged", version))
    gate.tag("staged", version, sealed)
    assert gate.post("model-versions/transition-stage", body)[0] == 200


def test_a_model_is_not_renamed_into_protection(gate: Gated) -> None:
    write_gate(gate.folder, 'protect: [{models: ["prod-*"]}]')
    version = gate.version("harmless")
    gate.client.set_registered_model_alias("harmless", "champion", version)
    with pytest.raises(MlflowException) as caught:
        gate.client.rename_registered_model("harmless", "prod-model")
    assert caught.value.error_code == "PERMISSION_DENIED"
    assert "take it away" in str(caught.value.message)
    gate.client.delete_registered_model_alias("harmless", "champion")
    gate.client.rename_registered_model("harmless", "prod-model")
    refused(gate, "prod-model", version)


def test_prompts_are_free_and_models_do_not_pass_for_them(gate: Gated) -> None:
    prompt = mlflow.genai.register_prompt("greeting", "Hello {{name}}")
    mlflow.genai.set_prompt_alias("greeting", "champion", prompt.version)
    assert mlflow.genai.load_prompt("prompts:/greeting@champion").template == "Hello {{name}}"
    smuggled = gate.version("greeting")
    status, answer = gate.post(
        "registered-models/alias", {"name": "greeting", "alias": "champion", "version": smuggled}
    )
    assert (status, "no signed verdict" in answer["message"]) == (403, True)
    assert gate.aliases("greeting") == {"champion": "1"}
    for body in (
        {
            "name": "greeting",
            "version": smuggled,
            "key": "mlflow.prompt.is_prompt",
            "value": "true",
        },
        {"name": "greeting", "key": "mlflow.prompt.is_prompt", "value": "false"},
    ):
        kind = "model-versions" if "version" in body else "registered-models"
        assert gate.post(f"{kind}/set-tag", body)[0] == 403


def test_an_override_is_told_in_the_history(gate: Gated) -> None:
    version = gate.version("urgent")
    gate.tag("urgent", version, override_for(subject_of(gate.client, "urgent", version)))
    gate.client.set_registered_model_alias("urgent", "champion", version)
    (event,) = json.loads(gate.client.get_model_version("urgent", version).tags["fi.history"])
    assert (event["by"], event["why"]) == ("ada", "overridden: a fix that cannot wait")
    with pytest.raises(MlflowException, match="not set by clients"):
        gate.client.set_model_version_tag("urgent", version, "fi.history", "[]")


def logged(gate: Gated, folder: Path) -> tuple[str, str]:
    """Log a model of two files through the server; return its id and the files' digest."""
    files = folder / "model"
    (files / "data").mkdir(parents=True)
    (files / "MLmodel").write_text("flavors: {}\n")
    (files / "data" / "weights").write_bytes(bytes(1000))
    model = gate.client.create_logged_model("0")
    gate.client.log_model_artifacts(model.model_id, str(files))
    gate.client.finalize_logged_model(model.model_id, "READY")
    return model.model_id, content_sha256(files)


def test_files_that_were_replaced_are_seen_where_they_are_hashed(
    gate: Gated, tmp_path: Path
) -> None:
    model_id, digest = logged(gate, tmp_path)
    version = gate.version("hashed", f"models:/{model_id}", model_id=model_id)
    subject = subject_of(gate.client, "hashed", version)
    assert subject.model_id == model_id
    gate.tag("hashed", version, verdict_on(subject, model_sha256=digest))
    hashing = f"{default_gate_text()}\nhash_artifacts: {{max_bytes: 3000}}\n"
    write_gate(gate.folder, hashing)
    gate.client.set_registered_model_alias("hashed", "champion", version)
    gate.client.delete_registered_model_alias("hashed", "champion")
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(999) + b"!")
    gate.client.log_model_artifact(model_id, str(weights))  # beside the others
    assert "its files were replaced after the audit" in refused(gate, "hashed", version)
    write_gate(gate.folder, hashing.replace("3000", "1500"))
    assert "have 2012 bytes and the server reads up to 1500" in refused(gate, "hashed", version)
    write_gate(gate.folder)  # nobody looks
    gate.client.set_registered_model_alias("hashed", "champion", version)


def test_a_copy_is_audited_for_itself_and_lives_as_long_as_its_original(
    gate: Gated, tmp_path: Path
) -> None:
    model_id, _ = logged(gate, tmp_path)
    gate.version("original", f"models:/{model_id}", model_id=model_id)
    for key in ("fi.gate", "fi.run", "fi.audit", "owner"):
        gate.client.set_model_version_tag("original", "1", key, "pass")
    said = "a person's words"
    ours = [block(name, "**Data audit: passed**") for name in (VERDICT, APPROVALS)]
    gate.client.update_model_version("original", "1", "\n\n".join([said, *ours]))
    copy = gate.client.copy_model_version("models:/original/1", "its copy")
    assert (copy.tags, copy.description) == ({"owner": "pass"}, said), "nothing green on a copy"
    subject = subject_of(gate.client, "its copy", copy.version)
    assert subject.model_id == model_id
    gate.tag("its copy", copy.version, verdict_on(subject))
    gate.client.set_registered_model_alias("its copy", "champion", copy.version)
    gate.client.delete_registered_model("original")
    assert "it was made for models:/its copy/1" in refused(gate, "its copy", copy.version)


def test_files_that_the_server_cannot_read_admit_nobody(gate: Gated) -> None:
    version = gate.passed("out of reach")
    write_gate(gate.folder, f"{default_gate_text()}\nhash_artifacts: {{max_bytes: 9}}\n")
    assert "the server cannot read the model's files" in refused(gate, "out of reach", version)


def test_of_many_at_once_on_two_workers_none_goes_wrong(gate: Gated) -> None:
    names = [f"crowd {i}" for i in range(5)]
    good = {name: gate.passed(name) for name in names}
    bad = {name: gate.version(name) for name in names}

    def ask(i: int) -> tuple[bool, int]:
        name, honest = names[i % 5], i % 3 != 0
        version = (good if honest else bad)[name]
        body = {"name": name, "alias": "champion", "version": version}
        return honest, gate.post("registered-models/alias", body)[0]

    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(ask, range(100)))
    assert {honest: {s for h, s in answers if h is honest} for honest in (True, False)} == {
        True: {200},
        False: {403},
    }
    assert all(gate.aliases(name) == {"champion": good[name]} for name in names)


def test_the_server_says_in_its_log_what_it_refused(gate: Gated) -> None:
    refused(gate, "logged", gate.version("logged"))
    write_gate(gate.folder, "")
    refused(gate, "logged", "1")
    log = (gate.folder / "server.log").read_text()
    assert "the gate is closed: gate.yaml is empty" in log


def test_the_command_line_says_what_the_server_says(gate: Gated, tmp_path: Path) -> None:
    gate.version("by command")
    CI.write(tmp_path / "ci.key")
    ADA.write(tmp_path / "ada.key")
    words = ("approve", "models:/by command/1", "--alias", "champion", "--reason", "no time")
    done = run_here(*words, "--key", str(tmp_path / "ci.key"))
    assert done.returncode == 2
    said = one_line(done.stderr)
    assert "refuses: this override does not count for models:/by command/1: the key 'ci'" in said
    assert run_here(*words, "--key", str(tmp_path / "ada.key")).returncode == 0
    promote = ("promote", "models:/by command/1", "--alias", "champion")
    done = run_here(*promote)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the server judges an approval" in done.stdout
    assert gate.aliases("by command") == {"champion": "1"}
    write_gate(gate.folder, ring=Ring((replace(RING.keys[1], revoked="2026-01-01"),)))
    done = run_here(*promote)
    assert done.returncode == 1
    assert one_line(done.stderr).startswith("forward-inf: the server refuses alias 'champion': ")
    assert "its key 'ada' was revoked" in one_line(done.stderr)
    events = json.loads(run_here("history", "models:/by command/1", "--json").stdout)["events"]
    assert [event["kind"] for event in events] == ["refused", "moved", "override"]
