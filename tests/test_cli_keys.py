"""forward-inf keys: private keys stay private, rings stay whole; and how long a time is written."""

from __future__ import annotations

import json
import multiprocessing
import time
from datetime import timedelta
from pathlib import Path

import click
import pytest
from conftest import PATIENCE, one_line, run_here

from forward_inf_mlflow.cli.common import signing_key
from forward_inf_mlflow.cli.duration import Duration
from forward_inf_mlflow.errors import VerdictError
from forward_inf_mlflow.verdicts import keys
from forward_inf_mlflow.verdicts.keys import Ring, read_private_key, read_ring, write_ring


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_new_key_is_its_owners_alone_and_its_public_part_is_in_the_ring(folder: Path) -> None:
    done = run_here("keys", "new", "ci")
    assert (done.returncode, done.stderr) == (0, "")
    key = read_private_key(folder / "ci.key")
    assert (folder / "ci.key").stat().st_mode & 0o777 == 0o600
    [public] = read_ring(folder / "keys.yaml").keys
    assert (public.name, public.public, public.may) == ("ci", key.public, ("verdict",))
    secret = (folder / "ci.key").read_text().splitlines()[1]
    assert secret not in done.stdout
    done = run_here("keys", "new", "ann", "--may", "override", "--may", "verdict", "--json")
    made = json.loads(done.stdout)
    assert made["may"] == ["verdict", "override"]
    assert made["key"] == read_private_key(folder / "ann.key").key_id
    assert set(made) == {"name", "key", "may", "file", "ring"}


def test_nothing_is_written_over_and_no_half_is_left(folder: Path) -> None:
    assert run_here("keys", "new", "ci").returncode == 0
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    for words, said in (
        (["ci"], "there is a key 'ci' already"),
        (["other", "--out", "ci.key"], "exists already"),
        (["a b"], "--out"),
        (["../x"], "--out"),
        (["line\nend", "--out", "x.key"], "short text"),
        (["x", "--may", "everything"], "everything"),
        (["x", "--ring", "ci.key/keys.yaml"], "cannot write"),
    ):
        done = run_here("keys", "new", *words)
        assert done.returncode == 2
        assert said in one_line(done.stderr)
        assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


def test_keys_that_are_made_and_revoked_at_once_are_all_in_the_ring(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_here("keys", "new", "old").returncode == 0

    def slow(ring: Ring, path: Path) -> None:
        time.sleep(0.1)  # who reads the ring meanwhile does not see what is written here
        write_ring(ring, path)

    monkeypatch.setattr(keys, "write_ring", slow)
    processes = multiprocessing.get_context("fork")  # what is slow here is slow there
    words = [("revoke", "old"), ("new", "ci"), ("new", "ann")]
    started = [processes.Process(target=run_here, args=("keys", *some)) for some in words]
    for process in started:
        process.start()
    for process in started:
        process.join(PATIENCE)
    found = read_ring(folder / "keys.yaml").keys
    assert {(key.name, key.revoked is None) for key in found} == {
        ("old", False),
        ("ci", True),
        ("ann", True),
    }
    assert {f.name for f in folder.iterdir()} == {"keys.yaml", "old.key", "ci.key", "ann.key"}


def test_a_key_is_revoked_once_and_the_others_stay(folder: Path) -> None:
    for name in ("ci", "ann"):
        assert run_here("keys", "new", name).returncode == 0
    done = run_here("keys", "revoke", "ci")
    assert done.returncode == 0
    assert "stop counting" in done.stdout
    ring = read_ring(folder / "keys.yaml")
    assert [key.revoked is None for key in ring.keys] == [False, True]
    again = run_here("keys", "revoke", "ci")
    assert again.returncode == 0
    assert "revoked already" in again.stdout
    assert read_ring(folder / "keys.yaml") == ring
    done = run_here("keys", "revoke", "bob")
    assert done.returncode == 2
    assert "no key 'bob': the ring has 'ci', 'ann'" in one_line(done.stderr)
    listed = json.loads(run_here("keys", "list", "--json").stdout)["keys"]
    assert [key["name"] for key in listed] == ["ci", "ann"]
    assert "revoked" in listed[0]
    text = run_here("keys", "list").stdout
    assert all(key.key_id in text for key in ring.keys)


def test_a_key_comes_from_a_file_or_the_environment_and_is_never_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here("keys", "new", "ci")
    run_here("keys", "new", "ann")
    with pytest.raises(VerdictError, match=r"--key.*FORWARD_INF_SIGNING_KEY"):
        signing_key(None)
    monkeypatch.setenv("FORWARD_INF_SIGNING_KEY", (folder / "ci.key").read_text())
    assert signing_key(None).public == read_private_key(folder / "ci.key").public
    assert signing_key("ann.key").public == read_private_key(folder / "ann.key").public
    monkeypatch.setenv("FORWARD_INF_SIGNING_KEY", "-----BEGIN secret words")
    with pytest.raises(VerdictError, match="FORWARD_INF_SIGNING_KEY is not an Ed25519") as caught:
        signing_key(None)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("30d", timedelta(days=30)),
        ("12h", timedelta(hours=12)),
        ("90M", timedelta(minutes=90)),
        (" 2w ", timedelta(weeks=2)),
        ("3660d", timedelta(days=3660)),
    ],
)
def test_a_duration_is_read(text: str, duration: timedelta) -> None:
    assert Duration().convert(text, None, None) == duration


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *[(text, "write 30d") for text in ("", "30", "d", "1.5d", "-1d", "1d12h", "30 d", "٣d")],
        *[(text, "ten years") for text in ("0d", "3661d", "999999w")],
    ],
)
def test_what_is_no_duration_is_told_how_one_is_written(text: str, said: str) -> None:
    with pytest.raises(click.BadParameter, match=said):
        Duration().convert(text, None, None)
