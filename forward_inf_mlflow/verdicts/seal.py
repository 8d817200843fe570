"""A sealed statement: what is said, who signed it and the signature, as a version tag holds it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from forward_inf_mlflow.errors import SignerError, VerdictError
from forward_inf_mlflow.verdicts.keys import PrivateKey, PublicKey, Ring
from forward_inf_mlflow.verdicts.statement import (
    Statement,
    as_dict,
    kind_of,
    parse_statement,
    signed_bytes,
)

#: Before a sealed statement's digest, in its tag's key.
PREFIXES = {"verdict": "fi.verdict.", "override": "fi.override."}
#: Characters; no honest statement is as long, and a server reads many.
_LONGEST = 8000


@dataclass(frozen=True)
class Sealed:
    """A statement, the id of the key that claims it, and its signature, not yet believed."""

    statement: Statement
    key_id: str
    signature: bytes

    @property
    def text(self) -> str:
        """Return the tag's value; the same for the same statement and signature."""
        content = {
            "statement": as_dict(self.statement),
            "key": self.key_id,
            "signature": base64.b64encode(self.signature).decode(),
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @property
    def tag(self) -> str:
        """Return the tag's key: named by its content, so that none can take another's place."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:12]
        return f"{PREFIXES[kind_of(self.statement)]}{digest}"


def seal(statement: Statement, key: PrivateKey) -> Sealed:
    """Sign a statement."""
    return Sealed(statement, key.key_id, key.sign(signed_bytes(statement)))


def read_sealed(text: str) -> Sealed:
    """Read a tag's value, which anybody may have written; the signature is not checked here.

    Raises:
        VerdictError: It is not a sealed statement, or is not spelt as `Sealed.text` spells it.
    """
    if len(text) > _LONGEST:
        raise VerdictError("it is longer than any statement")
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or set(content) != {"statement", "key", "signature"}:
        raise VerdictError("it is not a sealed statement")
    key_id, signature = content["key"], content["signature"]
    try:
        raw = base64.b64decode(signature, validate=True) if isinstance(signature, str) else b""
    except (binascii.Error, ValueError):
        raw = b""
    if not isinstance(key_id, str) or len(raw) != 64:
        raise VerdictError("it bears no signature")
    sealed = Sealed(parse_statement(content["statement"]), key_id, raw)
    if sealed.text != text:  # two spellings would be two tags for one statement
        raise VerdictError("it is not spelt as it was signed")
    return sealed


def signer_of(sealed: Sealed, ring: Ring) -> PublicKey:
    """Return whose key signed a statement.

    Raises:
        SignerError: The key is unknown, revoked, or may not sign this.
        VerdictError: It did not sign it.
    """
    kind = kind_of(sealed.statement)
    key = ring.find(sealed.key_id)
    other = "sign with a key of the server's ring, which 'forward-inf keys list' shows"
    if key is None:
        raise SignerError("its key is not one that this server knows", other)
    if not key.verifies(sealed.signature, signed_bytes(sealed.statement)):
        raise VerdictError("its signature does not fit what it says")
    if key.revoked is not None:
        raise SignerError(f"its key '{key.name}' was revoked", other)
    if kind not in key.may:
        raise SignerError(
            f"the key '{key.name}' may not sign {kind}s",
            "sign with one that may ('forward-inf keys list'), or have one made with "
            f"'forward-inf keys new NAME --may {kind}'",
        )
    return key
