"""An interrupted audit goes on by itself, with the same bits, and its plan is shown before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import points, register_points, run_here
from mlflow import MlflowClient

from forward_inf_mlflow.auditing import AuditResult, audit
from forward_inf_mlflow.cli import run
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.planning import plan_audit
from forward_inf_mlflow.shards import WorkFolder


@pytest.fixture(scope="module")
def uri(shared_store: Path) -> str:
    return register_points(points())


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Let pieces be made up to some number, then stop as a Ctrl-C does; None stops no more."""
    once, limit, made = WorkFolder.once, [None], [0]

    def limited(self: WorkFolder, name: str, make: Any) -> Any:
        def made_now() -> Any:
            made[0] += 1
            if limit[0] is not None and made[0] > limit[0]:
                raise KeyboardInterrupt
            return make()

        return once(self, name, made_now)

    def set_limit(most: int | None) -> None:
        limit[0], made[0] = most, 0  # type: ignore[call-overload]

    monkeypatch.setattr(WorkFolder, "once", limited)
    return set_limit


def same(a: AuditResult, b: AuditResult) -> None:
    pd.testing.assert_frame_equal(a.scores, b.scores, check_exact=True)
    pd.testing.assert_frame_equal(a.influence, b.influence, check_exact=True)


def test_what_was_finished_is_not_done_again_and_the_numbers_are_the_same(
    uri: str,
    tmp_path: Path,
    stopped: Callable[[int | None], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORWARD_INF_KEEP_MIB", "0")
    whole = audit(uri, work_dir=tmp_path / "whole")
    assert list((tmp_path / "whole").iterdir()) == [], "nothing is kept where nothing may be"
    stopped(5)
    with pytest.raises(KeyboardInterrupt):
        audit(uri, work_dir=tmp_path / "a")
    assert list((tmp_path / "a").iterdir())
    stopped(None)
    resumed = audit(uri, work_dir=tmp_path / "a")
    assert resumed.record["resumed_pieces"] == 4, "five pieces, one of which names the run"
    assert (whole.record["resumed_pieces"], whole.record["reused"]) == (0, None)
    assert resumed.record["reused"] is None, "an interrupted audit goes on, it uses nothing again"
    same(resumed, whole)
    assert list((tmp_path / "a").iterdir()) == []


def test_fresh_begins_again(
    uri: str, tmp_path: Path, stopped: Callable[[int | None], None]
) -> None:
    stopped(4)
    with pytest.raises(KeyboardInterrupt):
        audit(uri, work_dir=tmp_path)
    stopped(None)
    again = audit(uri, work_dir=tmp_path, fresh=True)
    assert again.record["resumed_pieces"] == 0


@pytest.mark.parametrize("changed", [{"seed": 1}, {"batch_size": 7}, {"direction": "gradient"}])
def test_another_audit_takes_nothing_from_a_stopped_one(
    changed: dict[str, Any], uri: str, tmp_path: Path, stopped: Callable[[int | None], None]
) -> None:
    stopped(4)
    with pytest.raises(KeyboardInterrupt):
        audit(uri, work_dir=tmp_path)
    stopped(None)
    assert audit(uri, work_dir=tmp_path, **changed).record["resumed_pieces"] == 0


def test_the_run_of_a_killed_process_is_marked_when_the_audit_goes_on(
    uri: str, tmp_path: Path, stopped: Callable[[int | None], None]
) -> None:
    stopped(4)
    with pytest.raises(KeyboardInterrupt):
        audit(uri, work_dir=tmp_path)
    client = MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments()]
    [newest] = client.search_runs(
        experiments, order_by=["attributes.start_time DESC"], max_results=1
    )
    client.update_run(newest.info.run_id, status="RUNNING")  # as a kill -9 leaves it
    stopped(None)
    finished = audit(uri, work_dir=tmp_path)
    assert client.get_run(newest.info.run_id).info.status == "KILLED"
    assert client.get_run(finished.run_id).info.status == "FINISHED"


def test_a_plan_says_what_it_costs_and_logs_nothing(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments()]
    before = len(client.search_runs(experiments))
    planned = plan_audit(uri, influence_queries=7)
    assert (planned["rows"], planned["direction"]) == (240, "curvature")
    costs = planned["forward_equivalents"]
    assert costs["sweep"] == (1 + 1 + 7 + 1) * 240, "the second sweep reads the model again"
    parts = ("direction", "sweep", "answers", "halves")
    assert costs["total"] == sum(costs[part] for part in parts)
    assert run(["audit", uri, "--plan", "--influence-queries", "7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["forward_equivalents"] == costs
    done = run_here("audit", uri, "--plan")
    assert (done.returncode, done.stderr) == (0, "")
    assert "240" in done.stdout
    assert len(client.search_runs(experiments)) == before


def test_an_audit_says_its_plan_and_keeps_it(uri: str, tmp_path: Path) -> None:
    plans: list[Any] = []
    result = audit(uri, work_dir=tmp_path, on_plan=plans.append)
    assert len(plans) == 1
    kept = result.record["influence"]
    planned = {**plans[0], "solver": "dense"}  # what "auto" turned out to be
    assert {key: kept[key] for key in planned} == planned
    costs = planned["forward_equivalents"]
    parts = ("direction", "sweep", "answers", "halves")
    assert costs["total"] == sum(costs[part] for part in parts)
    assert result.record["costs"]["forward_equivalents"] == costs["total"]
    assert kept["read_by"] in ("difference", "derivative")
    assert result.record["costs"]["forward_passes"] > 0


def test_a_work_folder_that_cannot_be_used_is_one_line(uri: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ForwardInfError, match=r"--work-dir .* cannot be used") as caught:
        audit(uri, work_dir=tmp_path / "file")
    assert "\n" not in str(caught.value)
