"""Keys: a private one in a file of its own, and the ring of public ones that a server trusts."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from forward_inf_mlflow.errors import VerdictError
from forward_inf_mlflow.strict_yaml import BROKEN, find_trick, read_text, repeated

#: What a key may sign.
RIGHTS = ("verdict", "override")
_HEAD = """\
# Public keys whose signatures count. Written by 'forward-inf keys'; nothing in it is secret.
"""


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """A key that a server knows.

    Attributes:
        name: Whose it is; unique within a ring.
        public: The 32 raw bytes.
        may: What it may sign, of `RIGHTS`.
        revoked: When it was revoked, as ISO 8601 text; None while it counts. Nothing that a
            revoked key signed counts, whatever its date: whoever has the key writes the date.
    """

    name: str
    public: bytes
    may: tuple[str, ...]
    revoked: str | None = None

    @property
    def key_id(self) -> str:
        """Return 16 hexadecimal digits that name the key."""
        return hashlib.sha256(self.public).hexdigest()[:16]

    def verifies(self, signature: bytes, content: bytes) -> bool:
        """Return whether the signature over these bytes is this key's."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, content)
        except (InvalidSignature, ValueError):
            return False
        return True

    def as_dict(self) -> dict[str, Any]:
        """Return the key as a ring's file keeps it."""
        return {
            "name": self.name,
            "public": base64.b64encode(self.public).decode(),
            "may": list(self.may),
            **({} if self.revoked is None else {"revoked": self.revoked}),
        }


@dataclass(frozen=True)
class Ring:
    """Public keys, in the order of their file."""

    keys: tuple[PublicKey, ...] = ()

    def find(self, key_id: str) -> PublicKey | None:
        """Return the key of this id, None if the ring has none."""
        return next((key for key in self.keys if key.key_id == key_id), None)

    def named(self, name: str) -> PublicKey | None:
        """Return the key of this name, None if the ring has none."""
        return next((key for key in self.keys if key.name == name), None)

    def with_key(self, key: PublicKey) -> Ring:
        """Return the ring with one key more.

        Raises:
            VerdictError: It has a key of this name already, or the file could not hold this one.
        """
        checked = _parse_key(key.as_dict(), f"the key '{key.name[:100]}'")
        if self.named(key.name) is not None:
            raise VerdictError(f"there is a key '{key.name}' already: take another name")
        return Ring((*self.keys, checked))

    def without(self, name: str, since: str) -> Ring:
        """Return the ring with a key revoked; one that is revoked already keeps its date.

        Args:
            name: Whose key.
            since: When, as ISO 8601 text.

        Raises:
            VerdictError: There is no key of this name.
        """
        key = self.named(name)
        if key is None:
            known = ", ".join(f"'{key.name}'" for key in self.keys) or "none"
            raise VerdictError(f"there is no key '{name}': the ring has {known}")
        gone = replace(key, revoked=key.revoked if key.revoked is not None else since)
        return Ring(tuple(gone if each is key else each for each in self.keys))


@dataclass(frozen=True)
class PrivateKey:
    """A key that signs."""

    key: Ed25519PrivateKey

    @staticmethod
    def generate() -> PrivateKey:
        """Make a new key."""
        return PrivateKey(Ed25519PrivateKey.generate())

    @property
    def public(self) -> bytes:
        """Return the 32 raw bytes of the public key."""
        return self.key.public_key().public_bytes_raw()

    @property
    def key_id(self) -> str:
        """Return 16 hexadecimal digits that name the key."""
        return hashlib.sha256(self.public).hexdigest()[:16]

    def sign(self, content: bytes) -> bytes:
        """Return the 64 bytes of the signature."""
        return self.key.sign(content)

    def write(self, path: Path) -> None:
        """Write the key as PEM, readable by its owner only.

        Raises:
            VerdictError: The file exists already, or cannot be written.
        """
        pem = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise VerdictError(f"{path} exists already: name another file, a key is kept") from None
        except OSError as error:
            raise VerdictError(f"cannot write {path}: {error.strerror or error}") from error
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)


def read_private_key(path: Path) -> PrivateKey:
    """Read a private key's PEM file.

    Raises:
        VerdictError: There is none, it is no Ed25519 key, or others may read it.
    """
    try:
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise VerdictError(f"others can read the key {path}: run 'chmod 600 {path}'")
        pem = path.read_bytes()
    except OSError as error:
        raise VerdictError(
            f"cannot read the key {path}: {error.strerror or error}; make one with "
            "'forward-inf keys new'"
        ) from error
    return parse_private_key(pem, name=str(path))


def parse_private_key(pem: bytes, *, name: str) -> PrivateKey:
    """Read a private key from PEM.

    Raises:
        VerdictError: It is no Ed25519 key without a password; what it is, is not said.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise VerdictError(f"{name} is not an Ed25519 key in PEM, without a password")
    return PrivateKey(key)


def read_ring(path: Path) -> Ring:
    """Read a ring's file.

    Raises:
        VerdictError: It cannot be read, or an entry is not valid.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise VerdictError(f"the keys in {path} cannot be read: {error}") from error
    return parse_ring(text, name=str(path))


def parse_ring(text: str, *, name: str) -> Ring:
    """Read a ring from the text of its file.

    Raises:
        VerdictError: An entry is not valid, or a key of an entry stands there twice.
    """
    try:
        again = repeated(yaml.compose(text, Loader=yaml.SafeLoader))
        trick = find_trick(text)
        content = None if trick else yaml.safe_load(text)
    except (*BROKEN, RecursionError) as error:
        raise VerdictError(f"{name} is not YAML: write it with 'forward-inf keys'") from error
    if trick is not None:
        raise VerdictError(f"{name}, line {trick[0]}: {trick[1]}")
    if again is not None:  # a second 'revoked: null' must not restore a key
        raise VerdictError(f"{name}, line {again}: a key of an entry stands here a second time")
    if content is None:
        return Ring()
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list) or set(content) != {"keys"}:
        raise VerdictError(f"{name} is not a list of 'keys': write it with 'forward-inf keys'")
    keys = tuple(_parse_key(entry, f"{name}, key {i + 1}") for i, entry in enumerate(entries))
    for what, values in (("name", [k.name for k in keys]), ("key", [k.key_id for k in keys])):
        if len(set(values)) < len(values):
            raise VerdictError(f"{name}: a {what} stands there twice")
    return Ring(keys)


@contextmanager
def ring_to_change(path: Path) -> Iterator[Ring]:
    """Yield a ring that nobody else changes before the block ends; empty where there is no file.

    What is locked is the folder, so that nothing is left behind. Where the system has no such lock
    (Windows), two at once may still lose a key.

    Raises:
        VerdictError: The ring is not valid, or its folder cannot be made or locked.
    """
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if os.name == "posix":
                import fcntl

                folder = os.open(path.parent, os.O_RDONLY)
                stack.callback(os.close, folder)  # which unlocks it
                fcntl.flock(folder, fcntl.LOCK_EX)
        except OSError as error:
            raise VerdictError(f"cannot write {path}: {error.strerror or error}") from error
        yield read_ring(path) if path.exists() else Ring()


def write_ring(ring: Ring, path: Path) -> None:
    """Write a ring's file, whole or not at all; between reading and writing hold `ring_to_change`.

    Raises:
        VerdictError: It cannot be written.
    """
    entries = {"keys": [key.as_dict() for key in ring.keys]}
    text = _HEAD + yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
        ) as new:
            new.write(text)
        try:
            Path(new.name).chmod(0o644)  # the server is another user
            Path(new.name).replace(path)
        except BaseException:
            Path(new.name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise VerdictError(f"cannot write {path}: {error.strerror or error}") from error


def parse_rights(values: Iterable[Any], where: str) -> tuple[str, ...]:
    """Return what a key may sign, in one order.

    Raises:
        VerdictError: It may nothing, or something that there is not.
    """
    given = list(values)
    if not given or any(right not in RIGHTS for right in given):
        raise VerdictError(f"{where}: a key may sign {' or '.join(RIGHTS)} (or both)")
    return tuple(right for right in RIGHTS if right in given)


def _parse_key(entry: Any, where: str) -> PublicKey:
    known = {"name", "public", "may", "revoked"}
    if not isinstance(entry, Mapping) or not {"name", "public", "may"} <= set(entry) <= known:
        raise VerdictError(f"{where}: needs name, public and may, and knows revoked besides")
    name, public, may, revoked = (entry.get(key) for key in ("name", "public", "may", "revoked"))
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 100:
        raise VerdictError(f"{where}: 'name' is a short text")
    try:
        raw = base64.b64decode(public, validate=True) if isinstance(public, str) else b""
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32:
        raise VerdictError(f"{where}: 'public' is not an Ed25519 public key in base64")
    if not isinstance(may, list):
        raise VerdictError(f"{where}: 'may' is a list of {', '.join(RIGHTS)}")
    # Anything that stands behind 'revoked' but null and false revokes: a slip must not restore.
    counts = revoked is None or revoked is False  # 0 == False, and is neither
    when = str(revoked) if isinstance(revoked, str | date) else "at an unknown time"
    gone = None if counts else when
    return PublicKey(name=name, public=raw, may=parse_rights(may, where), revoked=gone)
