"""What tests of the gate share: keys, a gate file, verdicts and overrides on real versions."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from forward_inf_mlflow.policy import load_policy
from forward_inf_mlflow.registry import model_id_of
from forward_inf_mlflow.verdicts.gate_file import default_gate_text
from forward_inf_mlflow.verdicts.keys import PrivateKey, PublicKey, Ring, write_ring
from forward_inf_mlflow.verdicts.seal import Sealed, seal
from forward_inf_mlflow.verdicts.statement import Override, Subject, Verdict

#: Signs verdicts; signs overrides; is in no ring.
CI, ADA, STRANGER = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate()
RING = Ring(
    (
        PublicKey(name="ci", public=CI.public, may=("verdict",)),
        PublicKey(name="ada", public=ADA.public, may=("override",)),
    )
)
HOUR = 3_600_000
DEFAULT_POLICY = load_policy(None).sha256


def write_gate(folder: Path, text: str | None = None, ring: Ring = RING) -> Path:
    """Write a gate file and its ring, both whole; the default gate without a text."""
    new = folder / "gate.yaml.new"
    new.write_text(default_gate_text() if text is None else text, encoding="utf-8")
    write_ring(ring, folder / "keys.yaml")
    return new.replace(folder / "gate.yaml")


def now() -> int:
    """Return milliseconds since 1970."""
    return int(time.time() * 1000)


def subject_of(client: Any, name: str, version: str) -> Subject:
    """Return the identity of a version as an audit writes it down."""
    found = client.get_model_version(name, version)
    return Subject(
        name=found.name,
        version=str(int(found.version)),
        creation_timestamp=int(found.creation_timestamp),
        source=found.source or "",
        model_id=model_id_of(client, found),
    )


def verdict_on(subject: Subject, *, key: PrivateKey = CI, **changes: Any) -> Sealed:
    """Return a verdict on a version, signed; a pass under the default policy."""
    verdict = Verdict(
        subject=subject,
        outcome="pass",
        policy_sha256=DEFAULT_POLICY,
        model_sha256="b" * 64,
        train_sha256="c" * 64,
        queries_sha256="d" * 64,
        audit_sha256="e" * 64,
        audit_run="run",
        issued=now(),
        expires=now() + HOUR,
    )
    return seal(replace(verdict, **changes), key)


def override_for(subject: Subject, *, key: PrivateKey = ADA, **changes: Any) -> Sealed:
    """Return an override for the alias champion of a version, signed."""
    override = Override(
        subject=subject,
        alias="champion",
        reason="a fix that cannot wait",
        issued=now(),
        expires=now() + HOUR,
    )
    return seal(replace(override, **changes), key)


def forgeries(sealed: Sealed, other: Subject) -> dict[str, Sealed]:
    """Return a sealed verdict with each of its fields changed in turn and its signature kept.

    Args:
        sealed: A genuine one.
        other: Another version, from which the parts of the subject are taken.
    """
    verdict = sealed.statement
    assert isinstance(verdict, Verdict)
    changed: dict[str, Any] = {
        "outcome": "undecided" if verdict.outcome == "pass" else "pass",
        "audit_run": "another",
        "issued": verdict.issued + 1,
        "expires": verdict.expires + 1,
        **{field.name: "0" * 64 for field in fields(Verdict) if field.name.endswith("_sha256")},
    }
    found = {key: replace(verdict, **{key: value}) for key, value in changed.items()}
    for field in fields(Subject):
        value = getattr(other, field.name)
        subject = replace(verdict.subject, **{field.name: value})
        found[f"subject.{field.name}"] = replace(verdict, subject=subject)
    return {
        **{key: replace(sealed, statement=forged) for key, forged in found.items()},
        "key": replace(sealed, key_id=ADA.key_id),
        "signature": replace(sealed, signature=bytes(64)),
    }
