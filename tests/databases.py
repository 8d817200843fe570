"""A PostgreSQL of one's own for the tests, where the machine can start one."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def why_no_postgres() -> str | None:
    """Return why there is no PostgreSQL here, None where there is one."""
    if importlib.util.find_spec("psycopg2") is None:
        return "no psycopg2 here: install the extra dev to run these"
    if None in (shutil.which("initdb"), shutil.which("pg_ctl")):
        return "no PostgreSQL here: install it, with initdb and pg_ctl on the path, to run these"
    if os.geteuid() == 0 and _unprivileged() is None:
        return "PostgreSQL does not run as root, and there is no user postgres or nobody"
    return None


@contextmanager
def postgres(port: int) -> Iterator[str]:
    """Start a new cluster and yield the address of an empty database; all is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="forward-inf-postgres-"))
    if (user := _unprivileged()) and os.geteuid() == 0:
        shutil.chown(folder, user=user)
    try:
        _run("initdb", "-D", folder / "data", "-U", "mlflow", "-A", "trust", "--no-sync")
        listen = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        _run("pg_ctl", "-D", folder / "data", "-l", folder / "log", "-o", listen, "-w", "start")
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        _run("pg_ctl", "-D", folder / "data", "-m", "immediate", "stop", check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> str | None:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)


def _run(*words: str | Path, check: bool = True) -> None:
    user: dict[str, Any] = {"user": _unprivileged()} if os.geteuid() == 0 else {}
    subprocess.run(
        [str(word) for word in words],
        check=check,
        timeout=120,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **user,
    )
