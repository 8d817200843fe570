from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forward_inf_mlflow import machine
from forward_inf_mlflow.memory import room

HOST = torch.device("cpu")


def test_an_eighth_of_the_memory_is_room_as_a_power_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_LIMITS", ())
    monkeypatch.setattr(machine, "_installed", lambda: 24 * 2**30)
    assert room(HOST) == 2 * 2**30


@pytest.mark.parametrize(
    ("said", "expected"), [("4294967296\n", 2**29), ("max\n", 2**31), ("", 2**31)]
)
def test_a_containers_limit_counts(
    said: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(said)
    monkeypatch.setattr(machine, "_LIMITS", (str(tmp_path / "memory.max"), str(tmp_path / "none")))
    monkeypatch.setattr(machine, "_installed", lambda: 16 * 2**30)
    assert room(HOST) == expected


def test_a_system_that_does_not_say_counts_as_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> int:
        raise OSError(name)

    monkeypatch.setattr(machine, "_LIMITS", ())
    monkeypatch.setattr(machine.os, "sysconf", refuse)
    assert room(HOST) == 2**30
