"""The gate on a real server, asked as anybody may ask it: by MLflow's client and over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import Server, tracking
from gate_cases import now, subject_of, verdict_on, write_gate
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

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
        found = self.client.get_registered_model(name).aliases
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
        "'forward-inf audit models:/flow/1', then 'forward-inf sign RUN --key KEY', or ask for "
        "'forward-inf approve' by a person who may"
    )
    assert gate.aliases("flow") == {}
    gate.tag("flow", version, verdict_on(subject_of(gate.client, "flow", version)))
    gate.client.set_registered_model_alias("flow", "champion", version)
    assert gate.aliases("flow") == {"champion": version}
    assert mlflow.get_registry_uri() == gate.server.url
    events = json.loads(gate.client.get_model_version("flow", version).tags["fi.history"])
    assert [(e["event"], e["alias"], e["from"], e["by"]) for e in events] == [
        ("refused", "champion", None, None),
        ("moved", "champion", None, "ci"),
    ]
    assert abs(events[-1]["at"] - now()) < 60_000
