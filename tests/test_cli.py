"""The command line as a process: exit codes, what goes where, terminals, interruptions."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import mlflow
import pytest
from conftest import BIN, PATIENCE, one_line, points, register_points, run_here, run_tool
from mlflow import MlflowClient

from forward_inf_mlflow.cli import common
from forward_inf_mlflow.cli.common import Console
from forward_inf_mlflow.demo import digits, register

FORWARD_INF = str(BIN / "forward-inf")


@pytest.fixture(scope="module")
def small(shared_store: Path) -> str:
    """Return a version that is audited within a second or two."""
    return register_points(points(leaks=9), "small")


@pytest.fixture(scope="module")
def large(shared_store: Path) -> str:
    """Return a version whose audit takes long enough to be interrupted."""
    return register(digits(0, spoiled=False), 0)[0]


def on_terminal(*words: str, **environment: str) -> tuple[int, str]:
    """Run a command on a terminal of 80 columns; return its exit code and all it wrote."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        words, stdout=follower, stderr=follower, stdin=follower, env={**kept, **environment}
    )
    os.close(follower)
    written = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        written += piece
    os.close(leader)
    return process.wait(PATIENCE), written.decode()


def test_json_is_one_object_on_stdout_and_nothing_else_anywhere(small: str, tmp_path: Path) -> None:
    uri = mlflow.get_tracking_uri()
    done = run_tool("forward-inf", "audit", small, "--json", tracking_uri=uri, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    result = json.loads(done.stdout)
    assert result["outcome"] == "fail"
    assert result["measures"]["leaked"]["count"] >= 9
    assert result["model"] == small
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_audit_ends_with_130_and_its_run_killed(
    number: signal.Signals, large: str, tmp_path: Path
) -> None:
    out, client, before = tmp_path / "out", MlflowClient(), _version(large)
    experiment = client.create_experiment(f"interrupted-{number.name}")
    process = subprocess.Popen(
        [
            *(FORWARD_INF, "audit", large, "--out", out),
            *("--experiment", f"interrupted-{number.name}"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE
    while not client.search_runs([experiment]):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(0.5)  # the store shows the run a moment before its maker knows the number
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (130, "")
    assert one_line(stderr).startswith("forward-inf: interrupted; finished pieces are kept")
    [left] = client.search_runs([experiment])
    assert left.info.status == "KILLED"
    assert client.list_artifacts(left.info.run_id, "forward_inf") == []
    assert list(out.iterdir()) == []
    assert _version(large) == before


def _version(uri: str) -> tuple[dict[str, str], str | None]:
    version = MlflowClient().get_model_version(*uri.removeprefix("models:/").split("/"))
    return version.tags, version.description


def test_a_terminal_gets_bars_and_colours_and_no_line_beyond_its_width(small: str) -> None:
    code, written = on_terminal(FORWARD_INF, "audit", small)
    assert code == 1
    assert "models trained on half of the rows" in written
    assert "100%" in written
    assert "\x1b[31m" in written
    verdict = written[written.index("REFUSED") :]
    assert "\x1b[31m\x1b[1mREFUSED" in written
    too_long = [
        line
        for line in verdict.replace("\r", "").splitlines()
        if len(line) > 80 and "models:/" not in line and "#/experiments" not in line
    ]
    assert too_long == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("obeyed", [False, True])
def test_no_color_is_obeyed_on_a_terminal(obeyed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    if not obeyed:
        monkeypatch.delenv("NO_COLOR")
    Console(json=False, quiet=False, verbose=False).verdict("fail", ["why"], "models:/m/1")
    assert ("\x1b" in terminal.getvalue()) is not obeyed


def test_what_other_libraries_log_is_silent_while_a_store_is_made(tmp_path: Path) -> None:
    words = ["forward-inf", "gate", "models:/nobody/1"]
    done = run_tool(*words, tracking_uri=f"sqlite:///{tmp_path}/new.db", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "It knows no models." in one_line(done.stderr)


@pytest.mark.parametrize("mode", ["", "-v", "--debug"])
def test_other_libraries_are_silenced_unless_their_words_are_wished_for(
    mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    silenced: list[bool] = []
    monkeypatch.setattr(common, "hush", lambda: silenced.append(True))
    assert (
        run_here("policy", "init", str(tmp_path / "p.yaml"), *filter(None, [mode])).returncode == 0
    )
    assert bool(silenced) is not bool(mode)


def test_a_reader_that_left_reads_neither_allowed_nor_refused(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for words in (["policy", "init", "policy.yaml"], ["policy", "check", "policy.yaml", "--json"]):
        done = subprocess.run(
            [FORWARD_INF, *words], stdout=writing, stderr=writing, cwd=tmp_path, check=False
        )
        assert done.returncode == 2
    os.close(writing)


def test_letters_that_the_output_cannot_show_do_not_change_the_exit_code(tmp_path: Path) -> None:
    words = ["policy", "init", str(tmp_path / "漢.yaml")]
    done = run_tool(
        "forward-inf", *words, tracking_uri="", cwd=tmp_path, PYTHONIOENCODING="latin-1"
    )
    assert done.returncode == 0
    assert "\\u6f22.yaml" in done.stdout


def test_help_and_policies_load_neither_torch_nor_mlflow(tmp_path: Path) -> None:
    script = (
        "import sys; from forward_inf_mlflow.cli import run\n"
        "for words in (['--help'], ['audit', '--help'], ['--version'], ['policy', 'init', 'p'],\n"
        "              ['policy', 'check', 'p'], ['policy', 'check', 'none'], ['audit']):\n"
        "    run(words)\n"
        "sys.exit(bool({'torch', 'mlflow', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False).returncode == 0


def test_bare_use_shows_the_help_and_decides_nothing() -> None:
    for words in ([], ["policy"]):
        done = run_here(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Example:" in done.stderr


def test_a_table_shows_foreign_text_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(json=False, quiet=False, verbose=False)
    console.table("t", ["row", "label"], [("\x1b[2J", "a\nb"), ("long-name", "\u202ec")])
    console.verdict("fail", ["because \x9b31m"], "models:/\x07/1")
    out = capsys.readouterr().out
    assert "\x1b" not in out.replace("\x1b[1m", "").replace("\x1b[0m", "").replace("\x1b[31m", "")
    assert not {"\x9b", "\u202e", "\x07"} & set(out)
    assert out.splitlines()[2:5] == [
        "    row        label",
        "    \\x1b[2J    a\\nb",
        "    long-name  \\u202ec",
    ]
