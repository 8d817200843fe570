"""The examples run: the pipelines' own commands, the training script and the notebook's cells."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from conftest import BIN, PATIENCE, ROOT, points, register_points, run_here
from mlflow import MlflowClient

from forward_inf_mlflow.registry import resolve
from forward_inf_mlflow.sealed_tags import find_statements, tags_of
from forward_inf_mlflow.verdicts.statement import Verdict

EXAMPLES = ROOT / "examples"
GITHUB = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text("utf-8"))
GITLAB = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text("utf-8"))
INSTALL = "python -m pip install --requirement requirements-audit.txt"


@pytest.fixture
def repository(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with what the pipelines expect, and a key beside it."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert run_here("policy", "init", "policy.yaml").returncode == 0
    assert run_here("keys", "new", "ci", "--out", str(tmp_path / "ci.key")).returncode == 0
    return folder


def shell(script: str, folder: Path, environment: Mapping[str, str]) -> int:
    """Run a script as the pipelines do, with nothing in the environment that they do not give."""
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script],
        env={
            **{name: os.environ[name] for name in ("HOME", "MLFLOW_DISABLE_TELEMETRY")},
            "FORWARD_INF_WORK_DIR": os.environ["FORWARD_INF_WORK_DIR"],
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        cwd=folder,
        timeout=PATIENCE,
        check=False,
    ).returncode


def outputs(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


def verdict(uri: str) -> Verdict:
    version = resolve(uri)
    [sealed] = find_statements(version, tags_of(version)).sealed
    assert isinstance(sealed.statement, Verdict)
    return sealed.statement


def aliases(name: str) -> dict[str, str]:
    found = MlflowClient().get_registered_model(name).aliases
    return {alias: str(version) for alias, version in found.items()}


def filled(value: str, known: Mapping[str, str]) -> str:
    """Put in what GitHub puts in for its expressions; one that is unknown is a slip."""
    return re.sub(r"\$\{\{ (.*?) \}\}", lambda found: known[found.group(1)], value)


def test_the_github_workflow_promotes_a_version_that_passes(store: str, repository: Path) -> None:
    uri = register_points(points(), "my-model")
    known = {
        "inputs.version": "1",
        "vars.MLFLOW_TRACKING_URI": store,
        "secrets.MLFLOW_TRACKING_TOKEN": "",
        "secrets.FORWARD_INF_SIGNING_KEY": (repository.parent / "ci.key").read_text(),
    }
    output = repository.parent / "output"
    for name, job in GITHUB["jobs"].items():
        assert set(job.get("needs", "").split()) <= {key.split(".")[1] for key in known}
        for step in job["steps"]:
            if step.get("run", INSTALL) == INSTALL:
                continue
            assert "${{" not in step["run"], "what a person typed would be run"
            given = {**GITHUB["env"], **step.get("env", {}), "GITHUB_OUTPUT": str(output)}
            environment = {key: filled(value, known) for key, value in given.items()}
            assert shell(step["run"], repository, environment) == 0
            if "id" in step:
                known |= {f"steps.{step['id']}.outputs.{k}": v for k, v in outputs(output).items()}
        for key, value in job.get("outputs", {}).items():
            known[f"needs.{name}.outputs.{key}"] = filled(value, known)
    assert verdict(uri).outcome == "pass"
    assert verdict(uri).audit_run == known["needs.audit.outputs.run"]
    assert verdict(uri).audit_sha256 == known["needs.audit.outputs.sha256"]
    assert aliases("my-model") == {"champion": "1"}


def test_the_gitlab_jobs_sign_a_refusal_and_end_with_it(store: str, repository: Path) -> None:
    uri = register_points(points(leaks=9), "my-model")
    environment = {
        "MLFLOW_TRACKING_URI": store,
        "MODEL_URI": GITLAB["variables"]["MODEL_URI"].replace("$MODEL_VERSION", "1"),
    }
    audit, promote = GITLAB["audit"], GITLAB["promote"]
    first, *rest = audit["script"]
    # Run here, which spares seconds: the line is GitHub's, which runs as it stands.
    command = shlex.split(first.removesuffix(" > audit.json || true"))
    words = [word.replace("$MODEL_URI", environment["MODEL_URI"]) for word in command]
    (repository / "audit.json").write_text(run_here(*words[1:]).stdout)
    assert shell("\n".join(rest), repository, environment) == 0
    environment |= outputs(repository / audit["artifacts"]["reports"]["dotenv"])
    secret = {"FORWARD_INF_SIGNING_KEY": (repository.parent / "ci.key").read_text()}
    assert shell("\n".join(promote["script"]), repository, environment | secret) == 1
    assert verdict(uri).outcome == "fail"
    assert aliases("my-model") == {}


def test_an_audit_that_cannot_be_made_fails_the_job(store: str, repository: Path) -> None:
    script = GITHUB["jobs"]["audit"]["steps"][-1]["run"]
    script = script.replace("forward-inf audit", "false")  # which is quicker to fail
    output = repository.parent / "output"
    assert shell(script, repository, {"GITHUB_OUTPUT": str(output), "MODEL_URI": "x"}) != 0
    (repository / "audit.json").write_text('{"error": "there is no models:/x/1"}')
    assert shell(script, repository, {"GITHUB_OUTPUT": str(output), "MODEL_URI": "x"}) != 0


def test_the_pipelines_give_the_key_to_one_step_and_pin_what_they_use() -> None:
    assert GITHUB["permissions"] == {"contents": "read"}
    jobs = GITHUB["jobs"].values()
    steps = [step for job in jobs for step in job["steps"]]
    holders = [step["run"] for step in steps if "SIGNING" in json.dumps(step.get("env", {}))]
    assert len(holders) == 1
    assert holders[0].startswith("forward-inf sign ")
    assert "SIGNING" not in json.dumps([GITHUB["env"], *(job.get("env", {}) for job in jobs)])
    assert GITHUB["jobs"]["promote"]["environment"] == GITLAB["promote"]["environment"]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in used)
    assert re.fullmatch(r"python:3\.\d+\.\d+-.*", GITLAB["default"]["image"])
    for text in EXAMPLES.glob("*.yml"):
        assert "BEGIN" not in text.read_text("utf-8")


def test_both_pipelines_do_the_same() -> None:
    github = [
        line
        for job in GITHUB["jobs"].values()
        for step in job["steps"]
        for line in step.get("run", "").splitlines()
    ]
    gitlab = [
        line
        for job in ("audit", "promote")
        for line in [*GITLAB["default"]["before_script"], *GITLAB[job]["script"]]
    ]

    def commands(lines: list[str]) -> list[str]:
        return [line for line in lines if not line.startswith("python -c")]

    assert commands(github) == commands(gitlab)
    [sign] = [line for line in gitlab if line.startswith("forward-inf sign ")]
    assert '--audit-sha256 "$AUDIT_SHA256"' in sign


@pytest.fixture
def no_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare MLflow the process that finds out which packages a model needs: seconds for each."""
    monkeypatch.setattr(mlflow.models, "infer_pip_requirements", lambda *_, **__: ["scikit-learn"])


@pytest.mark.usefixtures("no_inference")
def test_the_training_script_registers_a_version_that_an_audit_finds_all_of(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(EXAMPLES / "train.py"), run_name="__main__")
    command = capsys.readouterr().out.strip().splitlines()[-1]
    assert command == "forward-inf audit models:/my-model/1"
    words = [*command.split()[1:], "--effort", "quick", "--influence-queries", "1", "--json"]
    done = run_here(*words)
    assert json.loads(done.stdout)["outcome"] == "pass", done.stderr


@pytest.mark.usefixtures("no_inference")
def test_the_notebook_runs_from_its_first_cell_to_its_last(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads((EXAMPLES / "own_model.ipynb").read_text("utf-8"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert mlflow.get_tracking_uri() == store
    spoiled = {f"patient-{names['x_train'].index[i]}" for i in names["spoiled"]}
    flagged = names["result"].flagged
    accused = flagged[flagged["verdict"] == "mislabeled"]["row_id"]
    assert len(set(accused) & spoiled) > len(accused) / 2 > 2
    assert names["result"].decision.outcome == "fail"
    assert set(names["why"].influence["kind"]) == {"proponent", "opponent"}
    assert names["promotion"].now is None
    assert capsys.readouterr().out.startswith("fail\n- mislabeled rows")
