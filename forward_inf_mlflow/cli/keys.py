"""forward-inf keys: the keys that sign verdicts and overrides."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import click

from forward_inf_mlflow.cli.common import Console, common_options, ring_option
from forward_inf_mlflow.errors import VerdictError

#: A name that is a file's name too.
_PLAIN = re.compile(r"[\w@+-][\w.@+-]*")


@click.group("keys", short_help="Make, list or revoke the keys that sign.")
def keys_group() -> None:
    """Make, list or revoke the keys that sign verdicts and overrides.

    A private key stays where it signs. The public ones stand together in a file, the ring, which
    the MLflow server reads: copy it there after every change.

    \b
    Example:
      forward-inf keys new ci
      forward-inf keys new ann --may override
      forward-inf keys list
    """


@keys_group.command("new", short_help="Make a key and add it to the ring.")
@click.argument("name")
@click.option(
    "--may",
    multiple=True,
    default=["verdict"],
    show_default=True,
    type=click.Choice(["verdict", "override"]),
    help="What it may sign; repeat for both.",
)
@click.option(
    "--out", metavar="FILE", type=click.Path(dir_okay=False), help="Private key; default: NAME.key."
)
@ring_option(default="keys.yaml")
@common_options
def new_command(
    console: Console, name: str, may: tuple[str, ...], out: str | None, ring: str
) -> int:
    """Make a key: the private part into a file of its own, the public part into the ring.

    The private key has no password and is readable by you alone; keep it as a secret of your CI, or
    where the person who approves keeps theirs. It is never printed, and never written over.

    \b
    Example:
      forward-inf keys new ci --out ci.key --ring keys.yaml
      forward-inf keys new ann --may override --may verdict
    """
    from forward_inf_mlflow.verdicts.keys import (
        PrivateKey,
        PublicKey,
        parse_rights,
        ring_to_change,
        write_ring,
    )

    if out is None and not _PLAIN.fullmatch(name):
        raise VerdictError(f"'{name}' is no file's name: name the private key's file with --out")
    file, ring_file = Path(out or f"{name}.key"), Path(ring)
    private = PrivateKey.generate()
    key = PublicKey(name=name, public=private.public, may=parse_rights(may, name))
    with ring_to_change(ring_file) as known:
        wider = known.with_key(key)
        private.write(file)
        try:
            write_ring(wider, ring_file)
        except BaseException:
            file.unlink(missing_ok=True)  # a key that no ring knows is of no use
            raise
    console.say(f"wrote the private key of '{name}' to {file}: keep it secret")
    console.say(f"added it to {ring} as {key.key_id}; it may sign {' and '.join(key.may)}s")
    console.say(f"copy {ring} to the MLflow server, whose gate reads it")
    console.result(
        {"name": name, "key": key.key_id, "may": key.may, "file": str(file), "ring": ring}
    )
    return 0


@keys_group.command("list", short_help="List the ring's keys.")
@ring_option(default="keys.yaml")
@common_options
def list_command(console: Console, ring: str) -> int:
    """List the keys of a ring: whose they are, what they may sign, and whether they still count.

    \b
    Example:
      forward-inf keys list --ring keys.yaml
    """
    from forward_inf_mlflow.verdicts.keys import read_ring

    keys = read_ring(Path(ring)).keys
    console.table(
        f"keys in {ring}",
        ["name", "key", "may sign", "state"],
        [
            (
                key.name,
                key.key_id,
                ", ".join(key.may),
                "counts" if key.revoked is None else f"revoked {key.revoked}",
            )
            for key in keys
        ],
    )
    if not keys:
        console.say(f"{ring} has no keys: make one with 'forward-inf keys new'")
    console.result({"ring": ring, "keys": [{"key": k.key_id, **k.as_dict()} for k in keys]})
    return 0


@keys_group.command("revoke", short_help="Revoke a key.")
@click.argument("name")
@ring_option(default="keys.yaml")
@common_options
def revoke_command(console: Console, name: str, ring: str) -> int:
    """Revoke the key of this NAME: nothing that it signed counts any more, whatever its date.

    Revoking it again changes nothing.

    \b
    Example:
      forward-inf keys revoke ci --ring keys.yaml
    """
    from forward_inf_mlflow.verdicts.keys import read_ring, ring_to_change, write_ring

    ring_file = Path(ring)
    read_ring(ring_file)  # one that is not there is no empty one
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with ring_to_change(ring_file) as before:
        after = before.without(name, now)
        if after != before:
            write_ring(after, ring_file)
    key = after.named(name)
    assert key is not None  # without() raised otherwise
    if after == before:
        console.say(f"'{name}' was revoked already: {key.revoked}")
    else:
        console.say(f"revoked '{name}' ({key.key_id}) in {ring}")
        console.say(
            f"all {' and '.join(f'{right}s' for right in key.may)} that it signed stop counting "
            f"once the MLflow server has this {ring}: copy it there, and sign the versions in use "
            "again with another key. Aliases stay where they are"
        )
    console.result({"name": name, "key": key.key_id, "revoked": key.revoked, "ring": ring})
    return 0
