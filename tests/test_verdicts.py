from __future__ import annotations

import base64
import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from forward_inf_mlflow.errors import PolicyError, VerdictError
from forward_inf_mlflow.policy import load_policy
from forward_inf_mlflow.verdicts.gate_file import load_gate
from forward_inf_mlflow.verdicts.keys import (
    PrivateKey,
    PublicKey,
    Ring,
    read_private_key,
    read_ring,
    write_ring,
)
from forward_inf_mlflow.verdicts.seal import Sealed, read_sealed, seal, signer_of
from forward_inf_mlflow.verdicts.statement import (
    Override,
    Statement,
    Subject,
    Verdict,
    as_dict,
    parse_statement,
    signed_bytes,
)

SUBJECT = Subject(
    name="digits",
    version="3",
    creation_timestamp=1_700_000_000_000,
    source="models:/m-1",
    model_id="m-1",
)
VERDICT = Verdict(
    subject=SUBJECT,
    outcome="pass",
    policy_sha256="a" * 64,
    model_sha256="b" * 64,
    train_sha256="c" * 64,
    queries_sha256="d" * 64,
    audit_sha256="e" * 64,
    audit_run="run",
    issued=1_700_000_100_000,
    expires=1_700_000_200_000,
)
OVERRIDE = Override(
    subject=SUBJECT,
    alias="champion",
    reason="a fix that cannot wait",
    issued=1_700_000_100_000,
    expires=1_700_000_200_000,
)
BOTH = pytest.mark.parametrize("statement", [VERDICT, OVERRIDE], ids=["verdict", "override"])


def public(key: PrivateKey, **changes: Any) -> PublicKey:
    entry = {"name": "ci", "public": key.public, "may": ("verdict", "override"), **changes}
    return PublicKey(**entry)


KEY = PrivateKey.generate()
RING = Ring((public(KEY),))


@BOTH
def test_a_sealed_statement_survives_its_tag(statement: Statement) -> None:
    sealed = seal(statement, KEY)
    read = read_sealed(sealed.text)
    assert read == sealed
    assert read.tag == sealed.tag
    assert signer_of(read, RING).name == "ci"


def changed() -> list[tuple[str, Statement]]:
    """Return every field of a verdict and of an override, changed one at a time."""
    other = {
        "name": "other",
        "version": "4",
        "creation_timestamp": 1,
        "source": "models:/m-2",
        "model_id": None,
        "outcome": "fail",
        "audit_run": "other",
        "issued": 1_700_000_100_001,
        "expires": 1_700_000_200_001,
        "alias": "production",
        "reason": "because",
    }
    found: list[tuple[str, Statement]] = []
    for statement in (VERDICT, OVERRIDE):
        for field in fields(statement):
            if field.name == "subject":
                continue
            value = "f" * 64 if field.name.endswith("_sha256") else other[field.name]
            found.append((field.name, replace(statement, **{field.name: value})))
        for field in fields(Subject):
            subject = replace(SUBJECT, **{field.name: other[field.name]})
            found.append((f"subject.{field.name}", replace(statement, subject=subject)))
    return found


@pytest.mark.parametrize(("name", "statement"), changed())
def test_a_changed_field_breaks_the_signature(name: str, statement: Statement) -> None:
    original = VERDICT if isinstance(statement, Verdict) else OVERRIDE
    assert signed_bytes(statement) != signed_bytes(original)
    forged = read_sealed(Sealed(statement, KEY.key_id, seal(original, KEY).signature).text)
    with pytest.raises(VerdictError, match="does not fit what it says"):
        signer_of(forged, RING)


def test_a_verdict_cannot_pass_for_an_override() -> None:
    values = {**as_dict(VERDICT), "kind": "override"}
    with pytest.raises(VerdictError, match="missing or unknown"):
        parse_statement(values)


@pytest.mark.parametrize(
    ("ring", "message"),
    [
        (Ring(), "not one that this server knows"),
        (Ring((public(PrivateKey.generate()),)), "not one that this server knows"),
        (Ring((public(KEY, revoked="2026-01-01"),)), "key 'ci' was revoked"),
        (Ring((public(KEY, may=("override",)),)), "'ci' may not sign verdicts"),
    ],
)
def test_a_key_that_does_not_count_is_named(ring: Ring, message: str) -> None:
    with pytest.raises(VerdictError, match=message):
        signer_of(seal(VERDICT, KEY), ring)


def test_a_claimed_key_is_not_believed() -> None:
    other = PrivateKey.generate()
    forged = replace(seal(VERDICT, other), key_id=KEY.key_id)
    with pytest.raises(VerdictError, match="does not fit"):
        signer_of(forged, RING)


def mangled() -> dict[str, str]:
    text = seal(VERDICT, KEY).text
    content = json.loads(text)
    statement = content["statement"]

    def with_statement(**changes: Any) -> str:
        return json.dumps({**content, "statement": {**statement, **changes}})

    twice = text.replace('"outcome":"pass"', '"outcome":"fail","outcome":"pass"')
    return {
        "nothing": "",
        "no JSON": "{",
        "a list": "[]",
        "deep": "[" * 5000,
        "long": " " * 9000,
        "another key besides": json.dumps({**content, "more": 1}),
        "no signature": json.dumps({**content, "signature": ""}),
        "a signature that is no text": json.dumps({**content, "signature": 7}),
        "a short signature": json.dumps({**content, "signature": base64.b64encode(b"x").decode()}),
        "a key twice": twice,
        "other spacing": json.dumps(content),
        "no kind": with_statement(kind=None),
        "kind of a list": with_statement(kind=["verdict"]),
        "true for a number": with_statement(issued=True),
        "a fraction of a millisecond": with_statement(issued=1.5),
        "NaN": with_statement(expires=float("nan")),
        "an endless number": with_statement(expires=10**400),
        "an unknown outcome": with_statement(outcome="PASS"),
        "a digest in capitals": with_statement(policy_sha256="A" * 64),
        "no run": with_statement(audit_run=""),
        "a subject that is a text": with_statement(subject="digits"),
        "a subject without a source": with_statement(
            subject={k: v for k, v in statement["subject"].items() if k != "source"}
        ),
        "expired at once": with_statement(expires=statement["issued"]),
    }


@pytest.mark.parametrize("text", mangled().values(), ids=mangled().keys())
def test_what_is_not_a_sealed_statement_is_refused(text: str) -> None:
    with pytest.raises(VerdictError) as caught:
        read_sealed(text)
    assert "\n" not in str(caught.value)


def test_text_that_ends_a_line_or_is_not_ascii_is_signed_as_it_is() -> None:
    strange = replace(OVERRIDE, reason='line\nend "quoted" ü \U0001f600')
    assert signer_of(read_sealed(seal(strange, KEY).text), RING).name == "ci"


def test_a_private_key_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "ci.key"
    KEY.write(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_private_key(path).public == KEY.public
    with pytest.raises(VerdictError, match="exists already"):
        KEY.write(path)
    path.chmod(0o640)
    with pytest.raises(VerdictError, match="chmod 600"):
        read_private_key(path)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----", b"secret words"])
def test_what_is_no_key_is_refused_without_being_shown(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ci.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(VerdictError, match="not an Ed25519 key") as caught:
        read_private_key(path)
    assert "secret" not in str(caught.value)
    with pytest.raises(VerdictError, match="keys new"):
        read_private_key(tmp_path / "none.key")


def test_a_ring_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "conf" / "keys.yaml"
    ring = Ring(
        (
            public(KEY, may=("verdict",)),
            public(PrivateKey.generate(), name="Zoë", may=("override",), revoked="2026-01-01"),
        )
    )
    write_ring(ring, path)
    assert read_ring(path) == ring
    assert [file.name for file in path.parent.iterdir()] == ["keys.yaml"]
    assert read_ring(path).named("Zoë") == ring.keys[1]
    path.write_text("")
    assert read_ring(path) == Ring()


GOOD = base64.b64encode(bytes(range(32))).decode()


@pytest.mark.parametrize(
    "text",
    [
        "keys: 7",
        "- a",
        "keys: [7]",
        "keys: [{name: a, public: b, may: [verdict]}]",
        f"keys: [{{name: a, public: {GOOD}, may: []}}]",
        f"keys: [{{name: a, public: {GOOD}, may: [everything]}}]",
        f"keys: [{{name: a, public: {GOOD}, may: [[verdict]]}}]",
        f"keys: [{{name: a, public: {GOOD}, may: verdict}}]",
        f"keys: [{{name: '', public: {GOOD}, may: [verdict]}}]",
        f"keys: [{{name: a, public: {GOOD}, may: [verdict], extra: 1}}]",
        f"keys: [{{name: a, public: {GOOD}, may: [verdict]}}]\nmore: 1",
        f"keys: [{{name: a, public: {GOOD}, may: [verdict]}}, "
        f"{{name: b, public: {GOOD}, may: [verdict]}}]",
        "keys: [",
        "[" * 3000,
    ],
)
def test_a_ring_that_is_not_one_says_so_in_a_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(VerdictError) as caught:
        read_ring(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "counts"),
    [
        *(("null", True), ("~", True), ("false", True)),
        *((v, False) for v in ("2026-01-01", "true", "''", "0", "0.0", "-0", "[]", "{}", "no!")),
        ("0x" + "f" * 9000, False),
    ],
)
def test_only_nothing_leaves_a_key_its_rights(value: str, counts: bool, tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys:\n- {{name: a, public: {GOOD}, may: [verdict], revoked: {value}}}\n")
    assert (read_ring(path).keys[0].revoked is None) == counts


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ("revoked: !!null 2026-01-01", 5),
        ("revoked: !!bool xyz", 5),
        ("revoked: !!timestamp x", 5),
        ("revoked: ! ''", 5),
        ("!!str revoked: 2026-01-01", 5),
        ("revoked: 2026-01-01\n  <<: {revoked: null}", 6),
        ("<<: &a {revoked: null}", 5),
    ],
)
def test_merge_keys_and_explicit_types_restore_nobody(
    entry: str, line: int, tmp_path: Path
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys:\n- name: a\n  public: {GOOD}\n  may: [verdict]\n  {entry}\n")
    with pytest.raises(VerdictError, match=rf"keys.yaml, line {line}: .* is not read here"):
        read_ring(path)


def test_what_is_no_small_file_is_no_ring(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("keys: []\n" + "#" * 2**20)
    with pytest.raises(VerdictError, match="it is larger than 1 MiB"):
        read_ring(path)
    os.mkfifo(tmp_path / "pipe")
    for name in ("/dev/full", str(tmp_path), str(tmp_path / "pipe")):
        with pytest.raises(VerdictError, match="it is not a regular file"):
            read_ring(Path(name))
        with pytest.raises(PolicyError, match="it is not a regular file"):
            load_policy(Path(name))
        with pytest.raises(VerdictError, match="it is not a regular file"):
            load_gate(Path(name))


@pytest.mark.parametrize("field", ["alias", "reason", "name", "source"])
def test_half_a_letter_is_no_text_of_a_statement(field: str) -> None:
    if field in ("alias", "reason"):
        changed = replace(OVERRIDE, **{field: "a\ud800"})
    else:
        changed = replace(OVERRIDE, subject=replace(OVERRIDE.subject, **{field: "a\ud800"}))
    with pytest.raises(VerdictError, match=f"its field '{field}' has a value that it cannot"):
        read_sealed(seal(changed, KEY).text)


def test_a_key_of_a_ring_that_stands_there_twice_restores_nobody(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(
        f"keys:\n- name: a\n  public: {GOOD}\n  may: [verdict]\n  revoked: 2026-01-01\n"
        "  revoked: null\n"
    )
    with pytest.raises(VerdictError, match=r"keys.yaml, line 6: a key of an entry"):
        read_ring(path)
