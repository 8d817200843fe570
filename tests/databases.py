"""A PostgreSQL and a MySQL of one's own for the tests, where the machine can start them."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
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


def why_no_mysql() -> str | None:
    """Return why there is no MySQL or MariaDB here, None where there is one."""
    if importlib.util.find_spec("pymysql") is None:
        return "no pymysql here: install the extra dev to run these"
    if _mysqld() is None:
        return "no MySQL here: install mariadb-server, with mariadbd on the path, to run these"
    if os.geteuid() == 0 and _unprivileged() is None:
        return "MySQL does not run as root, and there is no user mysql or nobody"
    return None


@contextmanager
def mysql() -> Iterator[str]:
    """Start a new server without a port and yield the address of an empty database."""
    import pymysql  # not everywhere, as why_no_mysql() says

    server = _mysqld()
    assert server is not None  # why_no_mysql() was asked
    folder = Path(tempfile.mkdtemp(prefix="forward-inf-mysql-"))
    if (user := _unprivileged()) and os.geteuid() == 0:
        shutil.chown(folder, user=user)
    socket, base = folder / "socket", server.parents[1]
    at = ("--no-defaults", f"--basedir={base}", f"--datadir={folder / 'data'}")
    process = None
    try:
        if install := shutil.which("mariadb-install-db"):
            _run(install, *at, "--auth-root-authentication-method=normal", "--skip-test-db")
        else:
            _run(server, *at, "--initialize-insecure")
        process = _start(
            *(server, *at, "--skip-networking", f"--socket={socket}"),
            *(f"--pid-file={folder / 'pid'}", "--innodb-flush-log-at-trx-commit=0"),
        )
        deadline = time.monotonic() + 120
        while not socket.exists():
            assert process.poll() is None, f"{server} ended"
            assert time.monotonic() < deadline, f"{server} does not begin"
            time.sleep(0.1)
        with pymysql.connect(unix_socket=str(socket), user="root") as connection:
            connection.cursor().execute("create database mlflow character set utf8mb4")
        yield f"mysql+pymysql://root@localhost/mlflow?unix_socket={socket}"
    finally:
        if process is not None:
            process.kill()
            process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _mysqld() -> Path | None:
    found = shutil.which("mariadbd") or shutil.which("mysqld")
    return None if found is None else Path(found).resolve()


def _unprivileged() -> str | None:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "mysql", "nobody") if name in known), None)


def _run(*words: str | Path, check: bool = True) -> None:
    code = _start(*words).wait(120)
    if check and code != 0:
        raise subprocess.CalledProcessError(code, [str(word) for word in words])


def _start(*words: str | Path) -> subprocess.Popen[bytes]:
    user: dict[str, Any] = {"user": _unprivileged()} if os.geteuid() == 0 else {}
    return subprocess.Popen(
        [str(word) for word in words],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **user,
    )
