"""sign, approve, promote and history: what is signed counts for one version and its bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import one_line, points, register_points, run_here
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException

from forward_inf_mlflow import auditing, found_audit, promotion
from forward_inf_mlflow.errors import TrackingError
from forward_inf_mlflow.mlflow_errors import refusal
from forward_inf_mlflow.policy import load_policy
from forward_inf_mlflow.registry import content_of, resolve
from forward_inf_mlflow.sealed_tags import attach, find_approvals, subject_of, tags_of
from forward_inf_mlflow.signing import sign
from forward_inf_mlflow.verdicts.events import HISTORY
from forward_inf_mlflow.verdicts.gate_file import default_gate_text
from forward_inf_mlflow.verdicts.keys import PrivateKey, PublicKey, Ring, read_ring, write_ring
from forward_inf_mlflow.verdicts.seal import PREFIXES, read_sealed, signer_of
from forward_inf_mlflow.verdicts.statement import Override, Verdict

PASS, REFUSED, UNDECIDED = 0, 1, 2
KEY, OTHER = PrivateKey.generate(), PrivateKey.generate()


@pytest.fixture(scope="module")
def folder(shared_store: Path) -> Path:
    """Return the folder of the store, with a key that may sign all, and the ring."""
    KEY.write(shared_store / "ci.key")
    key = PublicKey(name="ci", public=KEY.public, may=("verdict", "override"))
    write_ring(Ring((key,)), shared_store / "keys.yaml")
    write_ring(Ring((replace(key, revoked="2026-01-01"),)), shared_store / "revoked.yaml")
    return shared_store


@pytest.fixture(scope="module")
def good(folder: Path) -> auditing.AuditResult:
    """Return the audit of a version that passes; tests leave both so."""
    return auditing.audit(register_points(points(), "good"))


@pytest.fixture(scope="module")
def leaky(folder: Path) -> auditing.AuditResult:
    """Return the audit of a version that is refused; tests leave both so."""
    return auditing.audit(register_points(points(leaks=9), "leaky"))


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> Iterator[None]:
    """Take away what a test set on the shared versions."""
    yield
    client = MlflowClient()
    for name in {"good", "leaky"} & set(request.fixturenames):
        for key in client.get_model_version(name, "1").tags:
            if key.startswith((*PREFIXES.values(), HISTORY)):
                client.delete_model_version_tag(name, "1", key)
        for alias in client.get_registered_model(name).aliases:
            client.delete_registered_model_alias(name, alias)


def champion(name: str) -> str | None:
    """Return the version that has the alias; a SQL store says it as a number."""
    version = MlflowClient().get_registered_model(name).aliases.get("champion")
    return None if version is None else str(version)


def verdict_of(uri: str) -> Verdict:
    """Return the only verdict that a version has, whose signature and tag are right."""
    tags = tags_of(resolve(uri))
    [key] = [key for key in tags if key.startswith(PREFIXES["verdict"])]
    sealed = read_sealed(tags[key])
    assert sealed.tag == key
    assert isinstance(sealed.statement, Verdict)
    signer_of(sealed, Ring((PublicKey(name="ci", public=KEY.public, may=("verdict",)),)))
    return sealed.statement


def files_of(folder: Path, uri: str) -> Path:
    """Return where the version's model lies on the disk."""
    model_id = resolve(uri).model_id
    [file] = folder.rglob(f"models/{model_id}/artifacts/MLmodel")
    return file.parent


@pytest.fixture
def replaced(folder: Path, good: auditing.AuditResult) -> Iterator[str]:
    """Yield the good version with a byte of its model replaced, and put it back."""
    file = files_of(folder, good.version.uri) / "MLmodel"
    before = file.read_bytes()
    file.write_bytes(before + b"\n")
    yield good.version.uri
    file.write_bytes(before)


def test_audit_and_report_name_the_model_by_its_files(good: auditing.AuditResult) -> None:
    digest = content_of(good.version)
    assert good.record["model"]["sha256"] == digest
    report = mlflow.artifacts.load_text(f"runs:/{good.run_id}/forward_inf/report.html")
    assert digest in report


def test_a_pass_is_signed_with_all_that_it_rests_on(
    folder: Path, good: auditing.AuditResult
) -> None:
    done = run_here(
        "sign", good.run_id, "--unpinned", "--key", str(folder / "ci.key"), "--expires", "12h"
    )
    assert (done.returncode, done.stderr) == (PASS, "")
    assert f"PASS  {good.version.uri}" in done.stdout
    verdict = verdict_of(good.version.uri)
    data = good.record["data"]
    assert verdict == Verdict(
        subject=subject_of(good.version),
        outcome="pass",
        policy_sha256=load_policy(None).sha256,
        model_sha256=content_of(good.version),
        train_sha256=data["train"]["sha256"],
        queries_sha256=data["queries"]["sha256"],
        audit_sha256=tags_of(good.version)["fi.audit"],
        audit_run=good.run_id,
        issued=verdict.issued,
        expires=verdict.issued + 12 * 3_600_000,
    )


def test_a_refusal_is_signed_too_and_the_policy_given_decides(
    folder: Path, leaky: auditing.AuditResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARD_INF_SIGNING_KEY", (folder / "ci.key").read_text())
    done = run_here("sign", leaky.run_id, "--unpinned", "--json")
    assert done.returncode == REFUSED
    said = json.loads(done.stdout)
    assert (said["outcome"], said["key"]) == ("fail", KEY.key_id)
    verdict = verdict_of(leaky.version.uri)
    assert (verdict.outcome, verdict.issued) == ("fail", said["issued"])
    policy = folder / "loose.yaml"
    policy.write_text("max_leakage_rate: 0.5\n")
    done = run_here("sign", leaky.run_id, "--unpinned", "--policy", str(policy), "--json")
    assert done.returncode == PASS
    assert json.loads(done.stdout)["policy"]["sha256"] == load_policy(policy).sha256


def nothing_is_signed(uri: str) -> bool:
    return not any(key.startswith(tuple(PREFIXES.values())) for key in tags_of(resolve(uri)))


def test_replaced_files_are_neither_signed_nor_promoted(replaced: str, folder: Path) -> None:
    run_id = tags_of(resolve(replaced))["fi.run"]
    for words in (
        ["sign", run_id, "--unpinned", "--key", str(folder / "ci.key")],
        ["promote", replaced, "--alias", "champion"],
    ):
        done = run_here(*words)
        assert done.returncode == UNDECIDED
        assert "are not those that were audited" in one_line(done.stderr)
    assert nothing_is_signed(replaced)
    assert champion("good") is None
    # The gate alone looks at no files.
    assert run_here("gate", replaced).returncode == PASS


def edited(run_id: str, folder: Path, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Change an audit's record on the disk, and tag its version with it; return the original."""
    [file] = folder.rglob(f"{run_id}/artifacts/forward_inf/audit.json")
    before = file.read_bytes()
    record = json.loads(before)
    change(record)
    file.write_bytes(json.dumps(record).encode())
    return before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["measures"]["leaked"].update(count=0), "was changed after the audit"),
        (lambda r: r.update(finished=False), "did not finish"),
        (lambda r: r["model"].update(version="7"), "There is no"),
        (lambda r: r["model"].update(name="x/../y"), "is not a registered model version"),
        (lambda r: r["model"].update(name=7), "There is no"),
    ],
)
def test_an_edited_audit_is_not_signed(
    change: Callable[[dict[str, Any]], object],
    said: str,
    folder: Path,
    leaky: auditing.AuditResult,
) -> None:
    before = edited(leaky.run_id, folder, change)
    try:
        done = run_here("sign", leaky.run_id, "--unpinned", "--key", str(folder / "ci.key"))
    finally:
        [file] = folder.rglob(f"{leaky.run_id}/artifacts/forward_inf/audit.json")
        file.write_bytes(before)
    assert done.returncode == UNDECIDED
    assert said in one_line(done.stderr)
    assert nothing_is_signed(leaky.version.uri)


def test_an_audit_that_was_forged_since_is_not_signed_under_its_pin(
    folder: Path, leaky: auditing.AuditResult
) -> None:
    """Whoever may log artifacts and set tags can make the server's copy consistent again."""
    client, uri = MlflowClient(), leaky.version.uri
    assert leaky.audit_sha256 == leaky.as_dict()["audit_sha256"] == audit_digest(leaky.run_id)
    before = edited(leaky.run_id, folder, clear)
    words = ("sign", uri, "--key", str(folder / "ci.key"))
    client.set_model_version_tag("leaky", "1", "fi.audit", audit_digest(leaky.run_id))
    try:
        done = run_here(*words, "--audit-sha256", leaky.audit_sha256)
        assert done.returncode == UNDECIDED
        assert "sign the one that you know by its run" in one_line(done.stderr)
        with pytest.raises(TrackingError, match="was changed since"):
            sign(leaky.run_id, key=KEY, audit_sha256=leaky.audit_sha256)
        assert nothing_is_signed(uri)
        said = one_line(run_here(*words).stderr)
        assert "anybody who may write to this server could have changed the audit since" in said
        assert nothing_is_signed(uri)
        assert run_here(*words, "--unpinned").returncode == PASS  # what the pin is for
    finally:
        [file] = folder.rglob(f"{leaky.run_id}/artifacts/forward_inf/audit.json")
        file.write_bytes(before)
        client.set_model_version_tag("leaky", "1", "fi.audit", leaky.audit_sha256)
    both = ("--unpinned", "--audit-sha256", leaky.audit_sha256)
    assert "give one of" in one_line(run_here(*words, *both).stderr)
    assert "64 hexadecimal" in one_line(run_here(*words, "--audit-sha256", "abc").stderr)
    done = run_here(*words, "--audit-sha256", leaky.audit_sha256.upper(), "--json")
    assert done.returncode == REFUSED
    assert json.loads(done.stdout)["audit_sha256"] == leaky.audit_sha256
    assert json.loads(done.stdout)["run_id"] == leaky.run_id


def clear(record: dict[str, Any]) -> None:
    """Forge a record that passes."""
    rates = {"count": 0, "rate": 0.0, "rate_low": 0.0, "rate_high": 0.0, "certain": 0}
    record["measures"]["leaked"].update(rates)


def test_what_people_kept_is_said_before_it_is_signed(
    folder: Path, leaky: auditing.AuditResult
) -> None:
    kept = {"rows": 2, "reviews": [{"run_id": "a1", "by": None, "rows": 2}], "ignored": []}
    before = edited(leaky.run_id, folder, lambda record: record.update(kept=kept))
    MlflowClient().set_model_version_tag("leaky", "1", "fi.audit", audit_digest(leaky.run_id))
    said: list[tuple[str, bool]] = []
    try:
        sign(
            leaky.run_id,
            key=KEY,
            on_kept=lambda kept: said.append((kept, nothing_is_signed(leaky.version.uri))),
        )
        done = run_here("sign", leaky.run_id, "--key", str(folder / "ci.key"), "--unpinned")
    finally:
        [file] = folder.rglob(f"{leaky.run_id}/artifacts/forward_inf/audit.json")
        file.write_bytes(before)
        MlflowClient().set_model_version_tag("leaky", "1", "fi.audit", leaky.audit_sha256)
    [(sentence, first)] = said
    assert first
    assert sentence.startswith("2 training rows count as looked at and kept by a person, in rev")
    assert f"note: {sentence}\n" in done.stdout
    assert "a1" in sentence


def test_only_the_newest_audit_of_a_version_is_signed(
    folder: Path, good: auditing.AuditResult
) -> None:
    newer = auditing.audit(good.version.uri, effort="quick", influence_queries=1)
    words = ("--key", str(folder / "ci.key"))
    done = run_here("sign", good.run_id, "--unpinned", *words)
    assert done.returncode == UNDECIDED
    assert f"is not the newest audit of models:/good/1, that is {newer.run_id}" in one_line(
        done.stderr
    )
    # Who knows the older one signs it by its run; from then on gate and promote read that again.
    pinned = ("--audit-sha256", str(good.audit_sha256))
    done = run_here("sign", good.version.uri, *pinned, *words)
    assert done.returncode == UNDECIDED
    assert "sign the one that you know by its run" in one_line(done.stderr)
    done = run_here("sign", newer.run_id, *pinned, *words)
    assert "it is another audit, or was changed since" in one_line(done.stderr)
    done = run_here("sign", good.run_id, *pinned, *words)
    assert (done.returncode, done.stderr) == (PASS, "")
    assert verdict_of(good.version.uri).audit_run == good.run_id
    tags = tags_of(resolve(good.version.uri))
    assert (tags["fi.run"], tags["fi.audit"]) == (good.run_id, good.audit_sha256)
    assert good.run_id in str(MlflowClient().get_model_version("good", "1").description)
    # But no older one comes back after a verdict on a newer one.
    assert run_here("sign", newer.run_id, "--audit-sha256", newer.audit_sha256, *words)
    done = run_here("sign", good.run_id, *pinned, *words)
    assert done.returncode == UNDECIDED
    assert f"a verdict on another audit of models:/good/1, run {newer.run_id}" in one_line(
        done.stderr
    )
    run = str(good.version.run_id)
    assert "has no finished audit" in one_line(run_here("sign", run, "--unpinned", *words).stderr)
    client = MlflowClient()
    for key in ("fi.gate", "fi.run", "fi.audit"):  # as the other tests expect it
        value = {"fi.gate": "pass", "fi.run": good.run_id}.get(key) or audit_digest(good.run_id)
        client.set_model_version_tag("good", "1", key, value)


def audit_digest(run_id: str) -> str:
    content = found_audit.fetch_artifact(run_id, "audit.json")
    assert content is not None
    return hashlib.sha256(content).hexdigest()


def test_a_key_is_asked_for_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARD_INF_SIGNING_KEY", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n")
    done = run_here("sign", "none")
    assert done.returncode == UNDECIDED
    assert "FORWARD_INF_SIGNING_KEY is not an Ed25519 key" in one_line(done.stderr)
    assert "c2VjcmV0" not in done.stderr
    monkeypatch.delenv("FORWARD_INF_SIGNING_KEY")
    assert "forward-inf keys new" in one_line(run_here("sign", "none").stderr)


def approve(uri: str, folder: Path, *more: str, reason: str = "a hot fix") -> None:
    words = ("--alias", "champion", "--reason", reason, "--key", str(folder / "ci.key"), *more)
    done = run_here("approve", uri, *words)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_approval_is_for_all_to_see_and_leaves_the_audit_as_it_was(
    folder: Path, leaky: auditing.AuditResult
) -> None:
    uri, reason = leaky.version.uri, "it's <b>urgent</b> <!-- /approvals --> [x](http://evil.test)"
    before = mlflow.artifacts.load_text(f"runs:/{leaky.run_id}/forward_inf/report.html")
    approve(uri, folder, "--for", "2d", reason=reason)
    [sealed] = find_approvals(leaky.version, tags_of(leaky.version))
    override = sealed.statement
    assert isinstance(override, Override)
    assert (override.alias, override.reason) == ("champion", reason)
    assert override.expires - override.issued == 2 * 86_400_000
    description = MlflowClient().get_model_version("leaky", "1").description
    assert "Approved for alias champion" in description
    assert "Data audit of models:/leaky/1: refused" in description
    assert "<b>" not in description
    assert "](http://evil" not in description
    after = mlflow.artifacts.load_text(f"runs:/{leaky.run_id}/forward_inf/report.html")
    assert "<q>it&#39;s &lt;b&gt;urgent&lt;/b&gt; &lt;!-- /approvals --&gt;" in after
    assert after.startswith(before[: before.index("<!-- approvals -->")])
    assert after.endswith(before[before.index("<!-- /approvals -->") :])
    assert run_here("gate", uri).returncode == REFUSED  # its audit.json is untouched
    approve(uri, folder, reason="a second one")
    twice = mlflow.artifacts.load_text(f"runs:/{leaky.run_id}/forward_inf/report.html")
    assert twice.count("<q>") == 2
    assert twice.index("a second one") < twice.index("urgent")


def test_a_new_audit_and_a_rebuilt_report_show_the_approval(folder: Path, tmp_path: Path) -> None:
    uri = register_points(points(), "approved")
    words = ("--alias", "champion", "--reason", "no time", "--key", str(folder / "ci.key"))
    done = run_here("approve", uri, *words)
    assert "no report shows it: there is no finished audit" in done.stdout
    result = auditing.audit(uri, effort="quick", influence_queries=1)
    report = mlflow.artifacts.load_text(f"runs:/{result.run_id}/forward_inf/report.html")
    assert "<q>no time</q>" in report
    [logged] = folder.rglob(f"{result.run_id}/artifacts/forward_inf/report.html")
    logged.unlink()
    assert run_here("report", uri, "-o", str(tmp_path / "r.html")).returncode == 0
    assert "<q>no time</q>" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("alias", "reason", "said"),
    [
        (" ", "why", "neither may be empty"),
        ("champion", " \n", "neither may be empty"),
        ("champion", "x" * 501, "say it in 500"),
        ("x" * 2001, "why", "its field 'alias'"),
    ],
)
def test_an_approval_without_an_alias_or_a_reason_is_none(
    alias: str, reason: str, said: str, folder: Path, good: auditing.AuditResult
) -> None:
    words = ("--alias", alias, "--reason", reason, "--key", str(folder / "ci.key"))
    done = run_here("approve", good.version.uri, *words)
    assert done.returncode == UNDECIDED
    assert said in one_line(done.stderr)
    assert nothing_is_signed(good.version.uri)


def test_what_is_not_utf8_is_refused_before_anything_is_signed(
    folder: Path, good: auditing.AuditResult
) -> None:
    """A terminal of another encoding hands on bytes that Python keeps as halves of letters."""
    uri, key = good.version.uri, ("--key", str(folder / "ci.key"))
    for words in (
        ("approve", uri, "--alias", "champion", "--reason", "caf\udce9", *key),
        ("approve", uri, "--alias", "caf\udce9", "--reason", "why", *key),
        ("approve", "models:/caf\udce9/1", "--alias", "champion", "--reason", "why", *key),
        ("sign", "caf\udce9", "--unpinned", *key),
        ("sign", "models:/caf\udce9/1", "--unpinned", *key),
        ("history", "models:/caf\udce9@champion"),
    ):
        done = run_here(*words)
        assert done.returncode == UNDECIDED
        said = one_line(done.stderr)
        assert "is not UTF-8" in said or "is not a registered model version" in said
    assert nothing_is_signed(uri)


def test_an_approvals_reason_moves_no_cursor_in_the_description(
    folder: Path, good: auditing.AuditResult
) -> None:
    approve(good.version.uri, folder, reason="a\x1b[2J\x07\u202eb")
    description = MlflowClient().get_model_version("good", "1").description
    assert all(letter.isprintable() or letter == "\n" for letter in description)
    assert "a\\\\x1b\\[2J\\\\x07\\\\u202eb" in description


def test_on_a_plain_server_an_approval_counts_by_a_ring_alone(
    folder: Path, leaky: auditing.AuditResult
) -> None:
    uri = leaky.version.uri
    words = ("promote", uri, "--alias", "champion")
    assert "approval" not in run_here(*words).stdout
    approve(uri, folder)
    for more, said in (
        ([], "name a --ring"),
        (["--ring", str(folder / "revoked.yaml")], "its key 'ci' was revoked"),
    ):
        done = run_here(*words, *more)
        assert done.returncode == REFUSED
        assert said in done.stdout
        assert champion("leaky") is None
    # An approval of another alias is none of this one.
    other = run_here("promote", uri, "--alias", "other", "--ring", str(folder / "keys.yaml"))
    assert other.returncode == REFUSED
    done = run_here(*words, "--ring", str(folder / "keys.yaml"), "--json")
    assert done.returncode == PASS, done.stderr
    said = json.loads(done.stdout)
    assert (said["outcome"], said["now"]) == ("fail", "1")
    assert said["approval"]["reason"] == "a hot fix"
    assert said["notes"] == ["approved by 'ci'"]
    assert champion("leaky") == "1"


def test_an_expired_or_foreign_approval_is_none(
    folder: Path, leaky: auditing.AuditResult, good: auditing.AuditResult
) -> None:
    override = Override(
        subject=subject_of(leaky.version), alias="champion", reason="why", issued=1, expires=2
    )
    attach(leaky.version, override, KEY)
    foreign = replace(override, subject=subject_of(good.version), expires=2**50)
    sealed = attach(leaky.version, foreign, KEY)
    words = ("--alias", "champion", "--ring", str(folder / "keys.yaml"))
    assert run_here("promote", leaky.version.uri, *words).returncode == REFUSED
    history = json.loads(run_here("history", leaky.version.uri, "--json").stdout)
    assert [e["detail"] for e in history["events"] if e["kind"] == "override"] == ["expired, why"]
    assert f"the tag {sealed.tag} is passed over: it is about another version" in history["notes"]


def test_a_version_without_an_audit_moves_by_an_approval_only(folder: Path) -> None:
    uri = register_points(points(), "unaudited")
    words = ("promote", uri, "--alias", "champion", "--ring", str(folder / "keys.yaml"))
    assert "there is no finished audit" in one_line(run_here(*words).stderr)
    run_here(
        "approve", uri, "--alias", "champion", "--reason", "r", "--key", str(folder / "ci.key")
    )
    done = run_here(*words, "--json")
    assert done.returncode == PASS
    assert json.loads(done.stdout)["run_id"] is None
    assert champion("unaudited") == "1"


@pytest.fixture
def gate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the gate before the registry, as a server does; its ring lets our key sign all."""
    (folder / "gate.yaml").write_text(default_gate_text())
    monkeypatch.setenv("FORWARD_INF_GATE", str(folder / "gate.yaml"))
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"forward-inf-gate:{mlflow.get_tracking_uri()}")


@pytest.mark.usefixtures("gate")
def test_a_gate_opens_for_a_signed_pass_and_refuses_in_its_own_words(folder: Path) -> None:
    result = auditing.audit(register_points(points(), "gated"), effort="quick")
    uri, key = result.version.uri, str(folder / "ci.key")
    policy = folder / "mine.yaml"
    policy.write_text("max_leakage_rate: 0.02\npartial: true\n")
    done = run_here("promote", uri, "--alias", "champion")
    assert done.returncode == REFUSED
    said = one_line(done.stderr)
    assert "the server refuses alias 'champion': models:/gated/1 may not become 'champion'" in said
    assert "it has no signed verdict" in said
    assert champion("gated") is None
    assert (
        run_here(
            "sign", result.run_id, "--unpinned", "--key", key, "--policy", str(policy)
        ).returncode
        == PASS
    )
    done = run_here("promote", uri, "--alias", "champion")
    assert "is under another policy" in one_line(done.stderr)
    words = ("sign", result.run_id, "--unpinned", "--key", key)
    assert run_here(*words, "--gate", str(folder / "gate.yaml")).returncode == PASS
    done = run_here("promote", uri, "--alias", "champion")
    assert done.returncode == PASS, done.stderr
    events = json.loads(run_here("history", uri, "--json").stdout)["events"]
    # The gate wrote these, and we none besides.
    assert [e["kind"] for e in events if e["id"] == HISTORY] == ["moved", "refused", "refused"]
    assert events[0]["by"] == "ci"
    # Where the server looks at the files too, it finds the digest that was signed.
    limit = "\nhash_artifacts: {max_bytes: 10_000_000}\n"
    (folder / "gate.yaml").write_text(default_gate_text() + limit)
    assert run_here("promote", uri, "--alias", "production").returncode == PASS
    (files_of(folder, uri) / "more").write_text("")
    with pytest.raises(MlflowException, match="its files were replaced after the audit"):
        MlflowClient().set_registered_model_alias("gated", "champion", "1")


@pytest.mark.usefixtures("gate")
def test_a_gate_judges_an_approval_itself(folder: Path) -> None:
    uri = register_points(points(), "urgent")
    OTHER.write(folder / "other.key")
    words = ("approve", uri, "--alias", "champion", "--reason", "a hot fix", "--key")
    done = run_here(*words, str(folder / "other.key"))
    assert done.returncode == UNDECIDED
    said = one_line(done.stderr)
    assert "refuses: this override does not count for models:/urgent/1: its key is not one" in said
    assert "'forward-inf keys list' shows" in said
    assert run_here(*words, str(folder / "ci.key")).returncode == 0
    ring = (folder / "keys.yaml").read_bytes()
    try:
        (folder / "keys.yaml").write_bytes((folder / "revoked.yaml").read_bytes())
        done = run_here("promote", uri, "--alias", "champion")
        assert done.returncode == REFUSED
        assert "does not count: its key 'ci' was revoked" in one_line(done.stderr)
    finally:
        (folder / "keys.yaml").write_bytes(ring)
    done = run_here("promote", uri, "--alias", "Champion")
    assert done.returncode == PASS, done.stderr
    assert "the server judges an approval" in done.stdout
    assert "a person approved it: a hot fix" in done.stdout
    events = json.loads(run_here("history", uri, "--json").stdout)["events"]
    assert [e["kind"] for e in events] == ["moved", "refused", "override"]


def test_a_gate_file_says_which_policy_and_which_key(
    folder: Path, leaky: auditing.AuditResult
) -> None:
    gate, key = folder / "other-gate.yaml", str(folder / "ci.key")
    loose = folder / "loose-too.yaml"
    loose.write_text("max_leakage_rate: 0.5\n")

    def signed(text: str, *more: str) -> tuple[int, str]:
        gate.write_text(text)
        done = run_here(
            "sign", leaky.run_id, "--unpinned", "--key", key, "--gate", str(gate), *more
        )
        return done.returncode, done.stderr

    assert signed("protect: [{models: [leaky]}]")[0] == REFUSED
    assert verdict_of(leaky.version.uri).policy_sha256 == load_policy(None).sha256
    code, said = signed("protect: [{models: [leaky], policies: [loose-too.yaml]}]")
    assert code == UNDECIDED
    assert f"asks for the policy {load_policy(loose).sha256[:12]}" in one_line(said)
    code, said = signed("protect: [{models: [other]}]")
    assert "protects no alias of 'leaky'" in one_line(said)
    code, said = signed("keys: revoked.yaml\nprotect: [{models: [leaky]}]")
    assert "would not count: its key 'ci' was revoked; sign with a key of the" in one_line(said)
    code, said = signed("protect: [{models: [leaky]}]", "--policy", str(loose))
    assert "two policies" in one_line(said)
    code, said = signed("nonsense")
    assert code == UNDECIDED
    one_line(said)
    verdict_of(leaky.version.uri)  # still the only one


def test_a_refusal_over_http_is_said_without_its_code() -> None:
    error = RestException({"error_code": "PERMISSION_DENIED", "message": "may not"})
    assert refusal(error) == "may not"
    assert refusal(RestException({"error_code": "INTERNAL_ERROR", "message": "x"})) is None


def test_what_a_login_or_a_proxy_forbids_is_no_refusal_of_a_gate(
    good: auditing.AuditResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(*_: Any) -> None:
        message = (
            "API request to endpoint /x failed with error code 403 != 200. Response body: 'no'"
        )
        raise MlflowException(message, error_code=7)  # PERMISSION_DENIED

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", forbid)
    done = run_here("promote", good.version.uri, "--alias", "champion")
    assert done.returncode == UNDECIDED
    assert "ask for permission" in one_line(done.stderr)


def test_an_audit_that_names_no_files_promotes_with_a_sentence_and_is_not_signed(
    folder: Path, good: auditing.AuditResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = found_audit.find_audit(good.version)
    old = {**found.record, "model": {**found.record["model"]}}
    del old["model"]["sha256"]
    older = replace(found, record=old)
    monkeypatch.setattr(promotion, "find_audit", lambda _: older)
    monkeypatch.setattr("forward_inf_mlflow.signing.find_audit", lambda _: older)
    done = run_here("promote", good.version.uri, "--alias", "champion")
    assert done.returncode == PASS
    assert "was not checked" in done.stdout
    done = run_here("sign", good.run_id, "--unpinned", "--key", str(folder / "ci.key"))
    assert done.returncode == UNDECIDED
    assert "does not say which files it saw" in one_line(done.stderr)


def test_history_tells_everything_newest_first_and_verifies_with_a_ring(
    folder: Path, leaky: auditing.AuditResult
) -> None:
    uri = leaky.version.uri
    run_here("sign", leaky.run_id, "--unpinned", "--key", str(folder / "ci.key"))
    run_here("promote", uri, "--alias", "champion")
    approve(uri, folder)
    run_here("promote", uri, "--alias", "champion", "--ring", str(folder / "keys.yaml"))
    attach(leaky.version, replace(verdict_of(uri), outcome="pass"), OTHER)
    done = run_here("history", uri, "--json", "--ring", str(folder / "keys.yaml"))
    assert (done.returncode, done.stderr) == (0, "")
    events = json.loads(done.stdout)["events"]
    assert [e["at"] for e in events] == sorted((e["at"] for e in events), reverse=True)
    told = {(e["kind"], e["outcome"]): e for e in events}
    assert set(told) == {
        ("audit", "REFUSED"),
        ("verdict", "REFUSED"),
        ("verdict", "PASS"),
        ("refused", "champion"),
        ("override", "champion"),
        ("moved", "champion"),
    }
    assert told["audit", "REFUSED"]["id"] == leaky.run_id
    assert told["verdict", "REFUSED"]["by"] == "ci, verified"
    assert told["verdict", "PASS"]["by"].startswith("does not count: its key is not one")
    assert told["moved", "champion"]["by"] == "ci"
    assert told["moved", "champion"]["detail"] == "from nowhere; approved: a hot fix"
    assert "leaked rows" in told["refused", "champion"]["detail"]
    text = run_here("history", uri).stdout
    assert f"key {KEY.key_id}, not verified" in text
    assert "ci, verified" not in text
    assert "no signature was verified: name the keys with --ring" in text
    ringed = run_here("history", uri, "--ring", str(folder / "keys.yaml")).stdout
    assert "no signature was verified" not in ringed


def test_history_cuts_nothing_that_goes_into_a_file(
    folder: Path, good: auditing.AuditResult
) -> None:
    reason = " ".join(f"word{i}" for i in range(60))
    approve(good.version.uri, folder, reason=reason)
    assert reason in run_here("history", good.version.uri).stdout
    assert "verified" not in run_here("history", good.version.uri, "--quiet").stdout


HOSTILE = "\x1b[32mPASS\x1b[0m\r\u202e"


def test_hostile_tags_are_printed_harmlessly_or_passed_over(good: auditing.AuditResult) -> None:
    event = {"at": 2**52, "event": "moved", "alias": HOSTILE, "from": None, "why": HOSTILE}
    entries = [
        {**event, "by": HOSTILE},
        {**event, "by": None, "at": "soon"},
        {**event, "by": None, "at": True},
        {**event, "by": None, "event": "won"},
        {**event, "by": None, "more": 1},
        {**event, "by": None, "at": 1},
        7,
    ]
    client = MlflowClient()
    client.set_model_version_tag("good", "1", HISTORY, json.dumps(entries))
    client.set_model_version_tag("good", "1", "fi.verdict.0123456789ab", "[" * 3000)
    override = Override(
        subject=subject_of(good.version), alias=HOSTILE, reason=HOSTILE, issued=5, expires=2**52
    )
    attach(good.version, override, OTHER)
    done = run_here("history", "models:/good/1")
    assert done.returncode == 0
    assert all(char.isprintable() or char == "\n" for char in done.stdout)
    assert "\\x1b[32mPASS" in done.stdout
    assert "fi.history holds what is no move or refusal" in done.stdout
    assert "fi.history holds 1 entries of another version" in done.stdout
    assert "fi.verdict.0123456789ab is passed over: it is not a sealed statement" in done.stdout
    for text in ("{", "7", "[" * 5000, "null"):
        client.set_model_version_tag("good", "1", HISTORY, text)
        assert "no move or refusal" in run_here("history", "models:/good/1").stdout


def test_history_tells_of_audits_that_did_not_finish_or_were_changed(
    folder: Path, leaky: auditing.AuditResult
) -> None:
    client, uri = MlflowClient(), leaky.version.uri
    experiment = client.get_run(leaky.run_id).info.experiment_id
    tag = {"forward_inf.model": uri}
    runs = [
        client.create_run(experiment, tags=tag),
        client.create_run(experiment, tags=tag),
        client.create_run(experiment, tags=tag | {"forward_inf.kind": "influence"}),
        client.create_run(experiment, tags=tag, start_time=1),
    ]
    killed, broken, *_ = [run.info.run_id for run in runs]
    client.set_terminated(killed, "KILLED")
    client.log_text(broken, "[", "forward_inf/audit.json")
    before = edited(leaky.run_id, folder, lambda record: record.update(finished_at="soon"))
    try:
        said = json.loads(run_here("history", uri, "--json").stdout)
    finally:
        [file] = folder.rglob(f"{leaky.run_id}/artifacts/forward_inf/audit.json")
        file.write_bytes(before)
        for run in runs:
            client.delete_run(run.info.run_id)
    told = [(e["id"], e["outcome"], e["detail"][:17]) for e in said["events"]]
    assert told == [
        (killed, "not finished", "its run is killed"),
        (leaky.run_id, "REFUSED, changed since", "leaked rows: abou"),
    ]
    assert "was changed after the audit" in said["notes"][0]
    assert f"the audit in run {broken} is passed over" in said["notes"][1]


def test_a_copy_has_nothing_of_its_originals_history(
    folder: Path, good: auditing.AuditResult
) -> None:
    run_here("sign", good.run_id, "--unpinned", "--key", str(folder / "ci.key"))
    run_here("promote", good.version.uri, "--alias", "champion")
    copy = MlflowClient().copy_model_version(good.version.uri, "copied")
    assert any(key.startswith("fi.verdict.") for key in copy.tags)
    said = json.loads(run_here("history", "models:/copied/1", "--json").stdout)
    assert said["events"] == []
    copied, tags, *others = said["notes"]
    assert copied.startswith("models:/copied/1 is a copy of models:/good/1: ")
    assert "tags fi.gate, fi.run and fi.audit count for nothing: there is no finished" in tags
    assert "its tags name that of models:/good/1, with which they may have been copied" in tags
    assert len(others) == 2
    assert "Data audit of models:/good/1: passed" in copy.description, "a copy's says whose it is"


def test_only_the_newest_fifty_moves_are_kept(good: auditing.AuditResult) -> None:
    event = {"at": 1, "event": "moved", "alias": "a", "from": None, "why": "w", "by": None}
    old = json.dumps([{**event, "at": i} for i in range(60)])
    MlflowClient().set_model_version_tag("good", "1", HISTORY, old)
    run_here("promote", good.version.uri, "--alias", "champion")
    kept = json.loads(tags_of(good.version)[HISTORY])
    assert len(kept) == 50
    assert [kept[0]["at"], kept[-2]["at"]] == [11, 59]
    assert kept[-1]["alias"] == "champion"


def test_a_ring_that_is_none_is_told_before_anything_moves(
    folder: Path, good: auditing.AuditResult
) -> None:
    assert read_ring(folder / "keys.yaml").keys
    words = ("--alias", "champion", "--ring", str(folder / "none.yaml"))
    done = run_here("promote", good.version.uri, *words)
    assert done.returncode == UNDECIDED
    assert "none.yaml" in one_line(done.stderr)
    assert champion("good") is None
