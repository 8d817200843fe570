"""Gate, promote, report and policy on the command line: what counts as an audit and passes."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ARTIFACTS, one_line, points, register_points
from mlflow import MlflowClient

from forward_inf_mlflow import auditing
from forward_inf_mlflow.cli import run
from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.found_audit import find_audit
from forward_inf_mlflow.policy import load_policy
from forward_inf_mlflow.registry import resolve
from forward_inf_mlflow.verdicts.claims import RUN_TAG

PASS, REFUSED, UNDECIDED = 0, 1, 2
MEASURE = Measure(count=9, total=90, rate_low=0.05, rate_high=0.2, threshold=None, note="")


@dataclass
class Desk:
    """A user at a command line, in a folder with a store, data files and policies."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self.capsys.readouterr()  # what MLflow said while the test prepared something
        code = run(list(words))
        out, err = self.capsys.readouterr()
        return code, out, err

    def policy(self, **values: object) -> str:
        """Write a policy file; return its path."""
        text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in values.items())
        file = self.folder / f"policy-{abs(hash(text))}.yaml"
        file.write_text(text)
        return str(file)

    def champion(self, uri: str) -> str | None:
        name = uri.split("/")[1]
        version = MlflowClient().get_registered_model(name).aliases.get("champion")
        return None if version is None else str(version)

    def artifact(self, uri: str, name: str) -> Path:
        """Return where the newest audit's artifact lies on the disk."""
        _, name_, version = uri.split("/")
        run_id = MlflowClient().get_model_version(name_, version).tags[RUN_TAG]
        [file] = self.folder.rglob(f"{run_id}/artifacts/forward_inf/{name}")
        return file


@pytest.fixture(scope="module")
def good(shared_store: Path) -> str:
    """Return a version whose audit passes; tests leave it so."""
    uri = register_points(points(), "good")
    assert run(["audit", uri, "-q"]) == PASS
    return uri


@pytest.fixture(scope="module")
def leaky(shared_store: Path) -> str:
    """Return a version whose audit refuses; tests leave it so."""
    uri = register_points(points(leaks=9), "leaky")
    assert run(["audit", uri, "-q"]) == REFUSED
    return uri


_NUMBER = itertools.count()


@pytest.fixture
def fresh(shared_store: Path) -> str:
    """Return a version without an audit, for one test alone."""
    return register_points(points(), f"fresh-{next(_NUMBER)}")


@pytest.fixture
def desk(shared_store: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(shared_store, capsys)


def test_the_exit_code_is_the_decision(good: str, leaky: str, desk: Desk) -> None:
    code, out, err = desk("gate", good)
    assert (code, err) == (PASS, "")
    assert out.startswith(f"PASS  {good}\n")
    code, out, err = desk("gate", leaky)
    assert (code, err) == (REFUSED, "")
    assert out.startswith(f"REFUSED  {leaky}\n")
    assert "leaked rows: about 10.0% of 90" in out


def test_an_audit_says_what_to_pin_and_that_a_gate_wants_a_signature(
    fresh: str, desk: Desk
) -> None:
    _, out, _ = desk("audit", fresh, "--effort", "quick", "--influence-queries", "1")
    content = desk.artifact(fresh, "audit.json")
    digest = hashlib.sha256(content.read_bytes()).hexdigest()
    run_id = content.parts[-4]
    assert f"  audit run {run_id}\n  audit sha256 {digest}\n" in out
    assert f"forward-inf sign {fresh} --key KEY --audit-sha256 {digest}  (a server with a" in out
    report = desk.artifact(fresh, "report.html").read_text()
    assert "a server with a gate wants <code>forward-inf sign</code> first" in report


def test_a_policy_named_now_replaces_the_audits_own(leaky: str, desk: Desk) -> None:
    assert desk("gate", leaky, "--policy", desk.policy(max_leakage_rate=0.5))[0] == PASS
    assert desk("gate", leaky, "--policy", desk.policy(max_leakage_rate=None))[0] == PASS
    assert desk("gate", leaky, "--policy", desk.policy(max_leakage_rate=0.0))[0] == REFUSED


def test_quiet_prints_the_verdict_alone_and_json_one_object(leaky: str, desk: Desk) -> None:
    assert desk("gate", leaky, "-q") == (REFUSED, f"REFUSED  {leaky}\n", "")
    for words in (["gate", leaky], ["promote", leaky, "--alias", "champion"]):
        code, out, err = desk(*words, "--json")
        assert (code, err) == (REFUSED, "")
        assert json.loads(out)["outcome"] == "fail"
        assert out.isascii()


def test_promote_moves_the_alias_once_and_says_from_where_to_where(fresh: str, desk: Desk) -> None:
    name = fresh.split("/")[1]
    desk("audit", fresh)
    code, out, _ = desk("promote", fresh, "--alias", "champion")
    assert code == PASS
    assert "moved from nowhere to version 1" in out
    code, out, _ = desk("promote", f"models:/{name}@champion", "--alias", "champion")
    assert code == PASS
    assert "already pointed to version 1" in out
    second = register_points(points(), name)
    desk("audit", second)
    code, out, _ = desk("promote", second, "--alias", "champion")
    assert code == PASS
    assert "moved from version 1 to version 2" in out
    assert desk.champion(second) == "2"


def test_a_refused_version_leaves_the_alias_where_it_was(leaky: str, desk: Desk) -> None:
    code, out, _ = desk("promote", leaky, "--alias", "champion")
    assert code == REFUSED
    assert "stays where it was" in out
    assert desk.champion(leaky) is None


def test_a_newer_fail_beats_an_older_pass(desk: Desk) -> None:
    uri = register_points(points(leaks=9), "newer")
    assert desk("audit", uri, "--policy", desk.policy(max_leakage_rate=0.5))[0] == PASS
    assert desk("gate", uri)[0] == PASS
    assert desk("audit", uri)[0] == REFUSED
    assert desk("promote", uri, "--alias", "champion")[0] == REFUSED
    assert desk.champion(uri) is None


def test_a_newer_pass_beats_an_older_fail(desk: Desk) -> None:
    uri = register_points(points(leaks=9), "mended")
    assert desk("audit", uri)[0] == REFUSED
    assert desk("audit", uri, "--policy", desk.policy(max_leakage_rate=0.5))[0] == PASS
    assert desk("gate", uri)[0] == PASS


def test_the_audit_that_finished_last_counts_whichever_began_first(
    fresh: str, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two audits at once: the first to begin is the last to finish, and it fails."""
    strict = load_policy(Path(desk.policy(max_mislabeled_rate=0.0, max_leakage_rate=0.0)))
    whole, inner = auditing.examine, []

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(auditing, "examine", whole)
        inner.append(auditing.audit(fresh))
        found = whole(*arguments)
        return replace(
            found, leaked=replace(found.leaked, measure=replace(MEASURE, total=len(found.loss)))
        )

    monkeypatch.setattr(auditing, "examine", interrupted)
    outer = auditing.audit(fresh, policy=strict)
    assert [a.decision.outcome for a in (*inner, outer)] == ["pass", "fail"]
    assert find_audit(resolve(fresh)).run_id == outer.run_id
    assert desk("gate", fresh)[0] == REFUSED


def test_a_new_audit_heals_one_that_was_broken(fresh: str, desk: Desk) -> None:
    desk("audit", fresh)
    desk.artifact(fresh, "audit.json").write_text("{")
    assert desk("gate", fresh)[0] == UNDECIDED
    desk("audit", fresh)
    assert desk("gate", fresh)[0] == PASS


def test_an_edited_audit_decides_nothing(fresh: str, desk: Desk) -> None:
    desk("audit", fresh)
    file = desk.artifact(fresh, "audit.json")
    file.write_bytes(file.read_bytes().replace(b'"partial": false', b'"partial":  false'))
    for words in (["gate", fresh], ["promote", fresh, "--alias", "champion"]):
        code, out, err = desk(*words)
        assert (code, out) == (UNDECIDED, "")
        assert "changed after the audit" in one_line(err)
    assert desk.champion(fresh) is None


def test_a_broken_audit_decides_nothing(fresh: str, desk: Desk) -> None:
    desk("audit", fresh)
    desk.artifact(fresh, "audit.json").write_text("{")
    code, _, err = desk("gate", fresh)
    assert code == UNDECIDED
    assert "audit the version again" in one_line(err)


def test_a_number_that_was_used_before_has_no_audit(fresh: str, desk: Desk) -> None:
    name = fresh.split("/")[1]
    desk("audit", fresh)
    assert desk("gate", fresh)[0] == PASS
    MlflowClient().delete_registered_model(name)
    assert register_points(points(leaks=9), name) == fresh
    code, _, err = desk("gate", fresh)
    assert code == UNDECIDED
    assert "no finished audit" in one_line(err)


def test_a_copy_does_not_inherit_the_verdict(good: str, desk: Desk) -> None:
    copy = MlflowClient().copy_model_version(good, "copied")
    assert copy.tags["fi.gate"] == "pass"  # MLflow copies tags
    code, _, err = desk("promote", "models:/copied/1", "--alias", "champion")
    assert code == UNDECIDED
    assert "no finished audit of models:/copied/1, its tags name that of models:/" in one_line(err)


def test_a_partial_audit_is_undecided_until_a_policy_allows_it(fresh: str, desk: Desk) -> None:
    code, out, _ = desk("audit", fresh, "--max-rows", "200")
    assert code == UNDECIDED
    assert out.startswith(f"UNDECIDED  {fresh}\n")
    assert "partial: true would allow it" in out
    assert desk("promote", fresh, "--alias", "champion")[0] == UNDECIDED
    assert desk.champion(fresh) is None
    assert desk("gate", fresh, "--policy", desk.policy(partial=True))[0] == PASS


def test_declared_data_are_undecided_until_a_policy_allows_them(
    good: str, leaky: str, desk: Desk
) -> None:
    policy = desk.policy(data="declared")
    for uri, leaks, decision in ((good, 0, PASS), (leaky, 9, REFUSED)):
        data, before = points(leaks=leaks), desk("gate", uri)[0]
        train, queries = (desk.folder / f"{role}-{leaks}.csv" for role in ("train", "queries"))
        data.x.assign(y=data.y).to_csv(train, index=False)
        data.test_x.assign(y=data.test_y).to_csv(queries, index=False)
        declared = ["--train", str(train), "--queries", str(queries), "--label", "y"]
        code, out, _ = desk("audit", uri, *declared)
        assert code == UNDECIDED
        assert "data: declared would allow it" in out
        assert desk("promote", uri, "--alias", "challenger")[0] == UNDECIDED
        assert desk("gate", uri, "--policy", policy)[0] == decision
        assert desk("audit", uri)[0] == before  # as the other tests expect it


def test_data_replaced_after_logging_are_named_and_undecided(fresh: str, desk: Desk) -> None:
    name, version = fresh.split("/")[1:]
    run_id = MlflowClient().get_model_version(name, version).run_id
    [file] = desk.folder.rglob(f"{run_id}/artifacts/**/*train*.parquet")
    data = points()
    data.x.assign(label=data.y).iloc[::-1].to_parquet(file, index=False)
    code, out, _ = desk("audit", fresh)
    assert code == UNDECIDED
    assert file.name in out
    assert "no longer holds the rows that were logged" in out
    policy = desk.policy(data="declared")
    assert desk("promote", fresh, "--alias", "champion", "--policy", policy)[0] == UNDECIDED
    assert desk.champion(fresh) is None


def test_the_report_is_fetched_or_rebuilt_and_never_half_written(
    fresh: str, desk: Desk, tmp_path: Path
) -> None:
    desk("audit", fresh)
    file = tmp_path / "report.html"
    logged = desk.artifact(fresh, "report.html")
    assert desk("report", fresh, "-o", str(file))[:2] == (0, f"wrote {file}\n")
    assert file.read_bytes() == logged.read_bytes()
    whole = logged.read_text()
    logged.unlink()
    code, out, _ = desk("report", fresh, "-o", str(file), "--json")
    assert code == 0
    assert json.loads(out) == {"model": fresh, "file": str(file), "rebuilt": True}
    assert file.read_text() == whole, "built again from the tables, it is the same"
    code, _, err = desk("report", fresh, "-o", str(tmp_path / "no" / "report.html"))
    assert code == 2
    assert "cannot write" in one_line(err)
    desk.artifact(fresh, "scores.parquet").unlink()
    before = file.read_bytes()
    code, _, err = desk("report", fresh, "-o", str(file))
    assert code == 2
    assert f"audit {fresh} again" in one_line(err)
    assert file.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["report.html"]


def test_the_policy_that_init_writes_is_the_default_and_check_accepts_it(
    desk: Desk, tmp_path: Path
) -> None:
    file = tmp_path / "policy.yaml"
    code, out, err = desk("policy", "init", str(file))
    assert (code, err) == (0, "")
    assert f"forward-inf policy check {file}" in out
    code, out, err = desk("policy", "check", str(file), "--json")
    assert (code, err) == (0, "")
    checked = json.loads(out)
    assert checked["max_mislabeled_rate"] == 0.03
    assert len(checked["sha256"]) == 64


def test_all_artifacts_are_copied_to_the_folder_that_out_names(
    good: str, desk: Desk, tmp_path: Path
) -> None:
    assert desk("audit", good, "--out", str(tmp_path / "new" / "out"))[0] == PASS
    names = {f.name for f in (tmp_path / "new" / "out").iterdir()}
    assert names == ARTIFACTS
    assert (
        desk.artifact(good, "audit.json").read_bytes()
        == (tmp_path / "new" / "out" / "audit.json").read_bytes()
    )
