"""What an audit has computed is used by the next one where it is exactly the same; it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import one_line, points, register_points, run_here
from torch import nn

from forward_inf_mlflow import shards
from forward_inf_mlflow.auditing import AuditResult, audit
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.policy import Policy
from forward_inf_mlflow.preparation import prepare
from forward_inf_mlflow.registry import Version
from forward_inf_mlflow.settings import Settings
from forward_inf_mlflow.shards import WorkFolder, prune
from forward_inf_mlflow.workplace import AuditWork

HALVES, SEARCHES, INFLUENCE = "half-models", "searches of rows", "pieces of influence"


@pytest.fixture(scope="module")
def uri(shared_store: Path) -> str:
    return register_points(points(leaks=3))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def first(uri: str, work: Path) -> AuditResult:
    return audit(uri, work_dir=work)


def same(a: AuditResult, b: AuditResult) -> None:
    pd.testing.assert_frame_equal(a.scores, b.scores, check_exact=True)
    pd.testing.assert_frame_equal(a.influence, b.influence, check_exact=True)
    pd.testing.assert_frame_equal(a.flagged, b.flagged, check_exact=True)
    assert json.dumps(a.record["measures"]) == json.dumps(b.record["measures"])


def test_the_same_audit_under_another_policy_computes_nothing_again(
    uri: str, work: Path, first: AuditResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first.record["reused"] is None
    pack = shards._pack

    def only_notes(name: str, arrays: Any) -> bytes:
        assert name.startswith("run/"), f"{name} was made again"
        return pack(name, arrays)

    monkeypatch.setattr(shards, "_pack", only_notes)
    again = audit(uri, work_dir=work, policy=Policy(max_leakage_rate=0.5))
    same(again, first)
    reused = again.record["reused"]
    assert reused["of_run"] == first.run_id
    assert reused["pieces"][HALVES] == 4
    assert reused["pieces"][SEARCHES] == 2
    assert reused["pieces"][INFLUENCE] > 2
    assert again.record["resumed_pieces"] == 0
    kept = mlflow.artifacts.load_dict(f"runs:/{again.run_id}/forward_inf/audit.json")
    assert kept["reused"] == reused
    done = run_here("audit", uri, "--work-dir", str(work))
    assert reused["sentence"].split(",")[0] in done.stdout


def test_more_effort_trains_only_the_further_half_models_with_the_same_bits(
    uri: str, work: Path, first: AuditResult, tmp_path: Path
) -> None:
    more = audit(uri, work_dir=work, effort="thorough", influence_queries=5)
    assert more.record["reused"]["pieces"] == {INFLUENCE: 0, HALVES: 4, SEARCHES: 2}
    assert more.record["reused"]["of_run"] is None
    anew = audit(uri, work_dir=tmp_path, effort="thorough", influence_queries=5)
    assert anew.record["reused"] is None
    same(more, anew)


def test_another_model_of_the_same_rows_takes_only_the_searches_of_rows(
    first: AuditResult, work: Path, tmp_path: Path
) -> None:
    other = register_points(points(leaks=3), "another")
    found = audit(other, work_dir=work)
    assert found.record["reused"]["pieces"] == {INFLUENCE: 0, HALVES: 0, SEARCHES: 2}
    same(found, audit(other, work_dir=tmp_path, fresh=True))


def test_another_seed_and_fresh_take_no_half_models(uri: str, work: Path, first: Any) -> None:
    assert audit(uri, work_dir=work, seed=3).record["reused"]["pieces"][HALVES] == 0
    assert audit(uri, work_dir=work, fresh=True).record["reused"] is None


def test_finished_pieces_go_the_oldest_first_and_interrupted_ones_stay(tmp_path: Path) -> None:
    folders = []
    for number in range(4):
        folder = WorkFolder.open(tmp_path, {"n": number})
        folder.once("piece", lambda: {"x": np.zeros(1000)})
        if number:
            folder.finish(str(number))
        folders.append(folder.folder)
    size = sum(file.stat().st_size for file in folders[1].iterdir())
    prune(tmp_path, 2 * size)
    assert [folder.exists() for folder in folders] == [True, False, True, True]
    prune(tmp_path, 0)
    assert [folder.exists() for folder in folders] == [True, False, False, False]


def test_how_much_may_be_kept_is_a_number(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARD_INF_KEEP_MIB", "much")
    done = run_here("audit", uri)
    assert done.returncode == 2
    assert "FORWARD_INF_KEEP_MIB is 'much'" in one_line(done.stderr)


@pytest.mark.parametrize("trainer", [None, "no_recipe:train"])
def test_models_of_ones_own_trainer_are_not_kept_for_another_audit(
    trainer: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its module imports may change, and nobody would see it."""
    (tmp_path / "no_recipe.py").write_text("def train(x, y, seed):\n    raise AssertionError\n")
    monkeypatch.chdir(tmp_path)
    x, y = np.eye(4, dtype=np.float32), np.arange(4)
    rows = Rows(x, y, y.astype(str), None, "memory", "")
    model = AuditedModel(nn.Linear(4, 4), np.asarray, "pt2", np.asarray)
    cpu = torch.device("cpu")
    problem = prepare(model, rows, rows, task="classification", device=cpu, batch_size=None)
    settings, version = Settings(trainer=trainer), Version("m", "1", 0, "", None, None)

    def piece(name: str) -> tuple[AuditWork, bool]:
        made = []
        work = AuditWork(tmp_path / "work", version, problem, settings, fresh=False)
        work.once(name, lambda: made.append(1) or {"x": x})  # type: ignore[func-returns-value]
        return work, bool(made)

    work, _ = piece("trained/rows-0")
    work.once("trained/rows-0", lambda: {"x": x})
    assert work.reused() is None, "what this audit made itself is no find"
    assert piece("trained/rows-0")[1] is False, "an interrupted audit goes on"
    work.once("spectrum", lambda: {"x": x})
    work.finish("r")
    assert piece("spectrum")[1] is False
    assert piece("trained/rows-0")[1] is (trainer is not None)
