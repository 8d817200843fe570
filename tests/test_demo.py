"""The demo's story, told twice in one store with real audits; and what a person sees of one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import BIN
from mlflow import MlflowClient

from forward_inf_mlflow import auditing, demo
from forward_inf_mlflow.cli import demo as cli_demo
from forward_inf_mlflow.cli import run
from forward_inf_mlflow.demo import ALIAS, GUILTY, MODEL_NAME, Story, tell

Told = tuple[Story, str]


@pytest.fixture(scope="module")
def told(shared_store: Path) -> list[Told]:
    """Tell the story twice; return both stories and what was said."""
    stories = []
    for _ in range(2):
        lines: list[str] = []
        stories.append((tell(0, lines.append), "\n".join(lines)))
    return stories


@pytest.mark.parametrize("time", [0, 1], ids=["first", "again"])
def test_the_spoiled_version_is_refused_and_the_cleaned_one_promoted(
    time: int, told: list[Told]
) -> None:
    story, said = told[time]
    spoiled, cleaned = str(1 + 2 * time), str(2 + 2 * time)
    assert (story.spoiled.version.version, story.cleaned.version.version) == (spoiled, cleaned)
    assert f"Audited models:/{MODEL_NAME}/{spoiled}: REFUSED." in said
    assert f"Audited models:/{MODEL_NAME}/{cleaned}: PASS." in said
    was = "nothing" if time == 0 else "version 2"
    assert f"Alias '{ALIAS}' moved from {was} to version {cleaned}." in said
    assert (story.promotion.before, story.promotion.now) == (None if time == 0 else "2", cleaned)
    outcomes = [audit.decision.outcome for audit in (story.spoiled, story.cleaned)]
    assert outcomes == ["fail", "pass"]
    now = MlflowClient().get_model_version_by_alias(MODEL_NAME, ALIAS).version
    assert str(now) == told[-1][0].promotion.now


@pytest.mark.parametrize("time", [0, 1], ids=["first", "again"])
def test_the_story_says_why_which_rows_which_source_and_what_was_found(
    time: int, told: list[Told]
) -> None:
    story, said = told[time]
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


def test_the_same_seed_tells_the_same_story_again(told: list[Told]) -> None:
    (first, _), (second, _) = told
    assert first.found == second.found
    assert first.accuracies == second.accuracies


def test_an_audit_says_verdict_why_rows_and_report_within_the_first_screen(
    told: list[Told], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = told[0][0].spoiled
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
    told: list[Told],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "tell", lambda *_: told[0][0])
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
