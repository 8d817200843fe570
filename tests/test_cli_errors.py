"""Bad input: one line that says what to do, exit code 2, and nothing half-written."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from pathlib import Path

import click
import mlflow
import mlflow.pytorch
import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import one_line, points, register_points, tracking
from mlflow import MlflowClient
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from sklearn.linear_model import LogisticRegression
from torch import nn

from forward_inf_mlflow import auditing, promotion
from forward_inf_mlflow.cli import cli, run
from forward_inf_mlflow.errors import ForwardInfError


@dataclass(frozen=True)
class World:
    """A store with registered versions of every bad kind, and data files beside it."""

    folder: Path

    def file(self, name: str) -> str:
        return str(self.folder / name)

    def runs(self) -> dict[str, str]:
        """Return the status of every run that an audit began."""
        ids = [e.experiment_id for e in MlflowClient().search_experiments()]
        return {
            r.info.run_id: r.info.status
            for r in MlflowClient().search_runs(ids, filter_string="tags.`forward_inf.model` != ''")
        }


@pytest.fixture(scope="module")
def world(shared_store: Path) -> World:
    folder = shared_store
    good = points()
    register_points(good)
    classifier = LogisticRegression().fit(good.x, good.y)
    _register_sklearn(classifier, "dataless", good.x)
    (folder / "helper.py").write_text("x = 1\n")
    _register_sklearn(classifier, "code", good.x, code_paths=[str(folder / "helper.py")])
    _register_torch(nn.Linear(4, 3), "pickled", serialization_format="pickle")
    spoiled = nn.Linear(4, 3)
    nn.init.constant_(spoiled.weight, torch.nan)
    _register_torch(spoiled, "nan", input_example=good.x.to_numpy()[:2])

    frame = good.x.assign(y=good.y)
    bad = {
        "good": frame,
        "unlabeled": good.x,
        "other-labels": frame.assign(y=frame["y"] + 7),
        "other-columns": frame.rename(columns={"d": "e"}),
        "nothing": frame.assign(a=np.nan),
        "empty": frame.head(0),
        "one-row": frame.head(1),
        "one-class": frame[frame["y"] == 1],
        "text": frame.assign(b="much"),
    }
    for name, rows in bad.items():
        rows.to_csv(folder / f"{name}.csv", index=False)
    (folder / "unknown.yaml").write_text("data: logged\nmax_mislabelled_rate: 0.1\n")
    (folder / "seven.yaml").write_text("max_leakage_rate: 7\n")
    (folder / "not-yaml.yaml").write_text("max_leakage_rate: [\n")
    (folder / "not.csv").write_bytes(b"\x00\xff\x00\xff" * 50)
    return World(folder)


def _register_sklearn(model: object, name: str, x: pd.DataFrame, **options: object) -> None:
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            model,
            name="model",
            pip_requirements=["scikit-learn"],
            registered_model_name=name,
            **options,
        )


def _register_torch(model: nn.Module, name: str, **options: object) -> None:
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            model, name="model", pip_requirements=["torch"], registered_model_name=name, **options
        )


def _train(name: str, queries: str = "good") -> list[str]:
    files = ["--train", f"{name}.csv", "--queries", f"{queries}.csv", "--label", "y"]
    return ["audit", "models:/points/1", *files]


CASES = {
    "no such model": (["audit", "models:/nobody/1"], "no registered model 'nobody'"),
    "no such version": (["audit", "models:/points/99"], "Known versions: 1"),
    "no such alias": (["audit", "models:/points@nobody"], "models:/points@nobody"),
    "not an address": (["audit", "points/1"], "write models:/NAME/3"),
    "gate, no such model": (["gate", "models:/nobody/1"], "no registered model 'nobody'"),
    "gate, no audit": (["gate", "models:/dataless/1"], "forward-inf audit models:/dataless/1"),
    "promote, no audit": (
        ["promote", "models:/dataless/1", "--alias", "a"],
        "forward-inf audit models:/dataless/1",
    ),
    "report, no audit": (
        ["report", "models:/dataless/1", "-o", "r.html"],
        "forward-inf audit models:/dataless/1",
    ),
    "pickled": (["audit", "models:/pickled/1", *_train("good")[2:]], "--allow-pickle"),
    "brings code": (["audit", "models:/code/1", *_train("good")[2:]], "--allow-pickle"),
    "no data": (["audit", "models:/dataless/1"], "--train"),
    "no such file": (_train("nowhere"), "nowhere.csv"),
    "not a table": (
        ["audit", "models:/points/1", "--train", "not.csv", "--queries", "good.csv"],
        "not.csv",
    ),
    "no label column": (_train("unlabeled"), "--label"),
    "other labels": (_train("other-labels"), "--label"),
    "other columns": (_train("other-columns"), "lacks the model's columns 'd'"),
    "other columns in queries": (_train("good", "other-columns"), "--features"),
    "only gaps": (_train("nothing"), "'a'"),
    "only gaps in queries": (_train("good", "nothing"), "'a'"),
    "no rows": (_train("empty"), "empty.csv"),
    "no query rows": (_train("good", "empty"), "empty.csv"),
    "one row": (_train("one-row"), "one"),
    "one class": (_train("one-class"), "label"),
    "text": (_train("text"), "'b'"),
    "NaN weights": (["audit", "models:/nan/1", *_train("good")[2:]], "trained"),
    "unknown key": (
        [*_train("good"), "--policy", "unknown.yaml"],
        "unknown.yaml, line 2: unknown key 'max_mislabelled_rate'; did you mean",
    ),
    "rate of 7": ([*_train("good"), "--policy", "seven.yaml"], "seven.yaml, line 1"),
    "policy check": (["policy", "check", "seven.yaml"], "between 0 and 1"),
    "policy check, not YAML": (["policy", "check", "not-yaml.yaml"], "not-yaml.yaml, line"),
    "no policy file": (["gate", "models:/points/1", "--policy", "no.yaml"], "policy init no.yaml"),
    "policy init over a file": (["policy", "init", "seven.yaml"], "name another file"),
    "policy init nowhere": (["policy", "init", "no/where.yaml"], "no/where.yaml"),
    "--out is a file": ([*_train("good"), "--out", "good.csv"], "--out"),
    "--device": ([*_train("good"), "--device", "nonsense"], "use auto, cpu or cuda"),
    "--batch-size 0": ([*_train("good"), "--batch-size", "0"], "--batch-size"),
    "--batch-size text": ([*_train("good"), "--batch-size", "many"], "--batch-size"),
    "--max-rows 0": ([*_train("good"), "--max-rows", "0"], "--max-rows"),
    "--max-rows 1": ([*_train("good"), "--max-rows", "1"], "one"),
    "--seed -1": ([*_train("good"), "--seed", "-1"], "--seed"),
    "--features of nothing": ([*_train("good"), "--features", ","], "--features"),
    "--features unknown": ([*_train("good"), "--features", "a,z"], "'z'"),
    "--id unknown": ([*_train("good"), "--id", "nr"], "'nr'"),
    "--group-by unknown": ([*_train("good"), "--group-by", "vendor"], "'vendor'"),
    "--task of another kind": ([*_train("good"), "--task", "regression"], "--task"),
    "--task nonsense": ([*_train("good"), "--task", "poetry"], "--task"),
    "unknown option": (["gate", "models:/points/1", "--force"], "--force"),
    "unknown command": (["admit"], "admit"),
    "no alias": (["promote", "models:/points/1"], "--alias"),
    "no output": (["report", "models:/points/1"], "--output"),
}


@pytest.mark.parametrize(("words", "advice"), CASES.values(), ids=CASES.keys())
def test_bad_input_ends_with_2_and_one_line_and_leaves_no_run(
    words: list[str],
    advice: str,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(world.folder)
    before, files = world.runs(), sorted(world.folder.iterdir())
    code = run(words)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert advice in one_line(err)
    assert err.startswith("forward-inf: ")
    assert "Traceback" not in err
    assert "unexpected" not in err
    assert world.runs() == before
    assert sorted(world.folder.iterdir()) == files


@pytest.mark.parametrize("command", ["audit", "gate"])
def test_an_unreachable_server_is_said_and_not_waited_for(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracking("http://me:hunter2@127.0.0.1:9"):
        assert run([command, "models:/points/1"]) == 2
    line = one_line(capsys.readouterr().err)
    assert "cannot be reached" in line
    assert "tracking URI" in line
    assert "hunter2" not in line


def test_a_store_that_is_damaged_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").write_text("no database")
    with tracking(f"sqlite:///{tmp_path}/mlflow.db"):
        assert run(["gate", "models:/points/1"]) == 2
    assert "check the tracking URI" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["gate", "models:/nobody/1", "--json"], 2),
        (["gate", "--json", "true", "models:/nobody/1"], 2),
        (["gate", "--json"], 2),
        (["audit", "models:/points/1", "--seed", "x", "--json"], 2),
        (["policy", "check", "seven.yaml", "--json"], 2),
    ],
)
def test_with_json_an_error_is_one_object_on_stdout_and_one_line_on_stderr(
    words: list[str],
    code: int,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(world.folder)
    assert run(words) == code
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": one_line(err).removeprefix("forward-inf: ")}


def test_a_switch_that_is_given_as_false_is_off(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world.folder)
    for word in ("false", "0", "no", ""):
        words = ["audit", "models:/pickled/1", *_train("good")[2:], "--allow-pickle", word]
        assert run([*words, "--debug", word, "--json", word]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "--allow-pickle" in one_line(err)


@pytest.mark.parametrize("word", ["true", "TRUE", "1", "yes"])
def test_a_switch_may_carry_its_value_as_mlflow_run_writes_it(
    word: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    # The permission is read: what stops the audit now is that the model has no data.
    assert run(["audit", "models:/pickled/1", "--allow-pickle", word, "--json", word]) == 2
    assert "--train" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize("mode", [[], ["--debug"]])
def test_a_traceback_is_shown_with_debug_only(
    mode: list[str], world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["gate", "models:/nobody/1", *mode]) == 2
    err = capsys.readouterr().err
    assert ("Traceback" in err) == bool(mode)
    assert err.splitlines()[-1].startswith("forward-inf: There is no registered model")


class SurpriseError(Exception):
    """Something nobody foresaw."""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SurpriseError("two\nlines, token=abc"), 2, "unexpected error: SurpriseError: two lines"),
        (AssertionError(), 2, "unexpected error: AssertionError"),
        (MemoryError(), 2, "--batch-size"),
        (ModuleNotFoundError("No module", name="psycopg"), 2, "package 'psycopg': install it"),
        (SystemExit(0), 2, "stopped"),
        (SystemExit(1), 2, "stopped"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 2, "stopped"),
        (click.Abort(), 130, "interrupted"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ForwardInfError("mend\nit"), 2, "mend it"),
    ],
    ids=repr,
)
def test_nothing_that_is_raised_comes_out_as_allowed_or_refused(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(promotion, "gate", fail)
    assert run(["gate", "models:/points/1"]) == code
    line = one_line(capsys.readouterr().err)
    assert said in line
    assert "abc" not in line


def test_a_command_that_returns_nothing_is_no_permission(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.commands["gate"], "callback", lambda **_: None)
    assert run(["gate", "models:/points/1"]) == 2
    assert "without a decision" in one_line(capsys.readouterr().err)


def test_hostile_text_cannot_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["gate", "models:/\x1b[2J\x1b[32mPASS\u202e/x"]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\u202e" not in err


def test_a_full_disk_while_logging_leaves_a_failed_run_and_no_verdict(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalArtifactRepository, "log_artifact", full)
    before = world.runs()
    out = tmp_path / "out"
    assert run(["audit", "models:/points/1", "--out", str(out)]) == 2
    assert "No space left" in one_line(capsys.readouterr().err)
    assert list(out.iterdir()) == []
    new = {run_id: status for run_id, status in world.runs().items() if run_id not in before}
    assert list(new.values()) == ["FAILED"]
    version = MlflowClient().get_model_version("points", "1")
    assert not {"fi.gate", "fi.run", "fi.audit"} & set(version.tags)
    assert "Data audit" not in (version.description or "")
    assert run(["gate", "models:/points/1"]) == 2
    assert "no finished audit" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (SurpriseError("x"), "FAILED")], ids=repr
)
def test_an_audit_that_breaks_ends_its_run(
    error: BaseException,
    status: str,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(auditing, "examine", fail)
    before = world.runs()
    assert run(["audit", "models:/points/1"]) == (130 if status == "KILLED" else 2)
    one_line(capsys.readouterr().err)
    new = {run_id: s for run_id, s in world.runs().items() if run_id not in before}
    assert list(new.values()) == [status]


def test_a_reader_that_left_is_no_refusal(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.chdir(world.folder)
    monkeypatch.setattr("forward_inf_mlflow.cli.common.click.echo", gone)
    assert run(["policy", "init", "left.yaml"]) == 2
