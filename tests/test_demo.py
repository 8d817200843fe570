"""The demo's story, told twice in one store with real audits; and what a person sees of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import BIN, run_tool, tracking
from mlflow import MlflowClient

from forward_inf_mlflow import auditing, demo
from forward_inf_mlflow.cli import demo as cli_demo
from forward_inf_mlflow.cli import run
from forward_inf_mlflow.demo import ALIAS, GUILTY, MODEL_NAME, Story, tell


@dataclass(frozen=True)
class Told:
    """What the command printed in an empty folder, and the story as it was told there again."""

    printed: str
    story: Story
    said: str


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """Tell the story by the command, as to a stranger, and again from within this process."""
    folder = tmp_path_factory.mktemp("demo")
    done = run_tool("forward-inf", "demo", tracking_uri="", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    lines: list[str] = []
    with contextlib.chdir(folder), tracking(f"sqlite:///{folder}/mlflow.db"):
        yield Told(done.stdout, tell(0, lines.append), "\n".join(lines))


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_the_spoiled_version_is_refused_and_the_cleaned_one_promoted(
    again: bool, told: Told
) -> None:
    said, spoiled, cleaned = (told.said, "3", "4") if again else (told.printed, "1", "2")
    was = "version 2" if again else "nothing"
    assert f"Audited models:/{MODEL_NAME}/{spoiled}: REFUSED." in said
    assert f"Audited models:/{MODEL_NAME}/{cleaned}: PASS." in said
    assert f"Alias '{ALIAS}' moved from {was} to version {cleaned}." in said


def test_the_story_is_what_happened(told: Told) -> None:
    story = told.story
    assert (story.spoiled.version.version, story.cleaned.version.version) == ("3", "4")
    outcomes = [audit.decision.outcome for audit in (story.spoiled, story.cleaned)]
    assert outcomes == ["fail", "pass"]
    assert (story.promotion.before, story.promotion.now) == ("2", "4")
    assert str(MlflowClient().get_model_version_by_alias(MODEL_NAME, ALIAS).version) == "4"


def test_the_story_says_why_which_rows_which_source_and_what_was_found(told: Told) -> None:
    story, said = told.story, told.said
    for reason in (*story.spoiled.decision.reasons, *story.cleaned.decision.reasons):
        assert reason in said
    flagged = story.spoiled.flagged
    for verdict in ("mislabeled", "leaked"):
        worst = flagged[flagged["verdict"] == verdict].head(3)
        assert len(worst) == 3
        for row in worst.itertuples():
            assert f"{row.row_id} from {row.source}" in said
            assert row.evidence in said
    assert f"To blame is '{GUILTY}'" in said
    assert said.count("To blame") == 1
    found = story.found
    assert f"{found.flips:.0%} of the flips, {found.exact:.0%} of the exact leaks" in said
    assert f"accused {found.accused_clean:.1%} of the clean rows" in said
    assert found.exact >= 0.95
    assert min(found.flips, found.shifted) >= 0.7
    assert found.accused_clean <= 0.02


def test_the_same_seed_tells_the_same_story_again(told: Told) -> None:
    as_first = (
        told.said.replace(f"{MODEL_NAME}/3", f"{MODEL_NAME}/1")
        .replace(f"{MODEL_NAME}/4", f"{MODEL_NAME}/2")
        .replace("from version 2 to version 4", "from nothing to version 2")
    )
    assert as_first in told.printed


def test_an_audit_says_verdict_why_rows_and_report_within_the_first_screen(
    told: Told, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = told.story.spoiled
    uri = result.version.uri
    monkeypatch.setattr(auditing, "audit", lambda *_, **__: result)  # a real one, made before
    assert run(["audit", uri]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[0] == f"REFUSED  {uri}"
    screen = "\n".join(lines[:22])  # two of its reasons take two lines at 80 columns
    assert "mislabeled rows:" in screen
    assert "leaked rows:" in screen
    assert f"forward-inf report {uri} -o report.html" in screen
    assert "artifacts/forward_inf/report.html" in screen
    assert "digit-" in screen
    assert "vendor-x" in screen


def test_the_command_that_opens_the_ui_is_one_that_can_be_run(
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "tell", lambda *_: told.story)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["demo"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if " server --backend" in line]
    command = Path(line.split()[0])
    assert os.access(command, os.X_OK)
    monkeypatch.setenv("PATH", str(BIN))
    assert cli_demo._mlflow() == "mlflow"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(BIN.parent)
    assert cli_demo._mlflow() == f"{BIN.name}/mlflow"
