"""Asked record: what the records of all answers have in common."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch

from forward_inf_mlflow.command_line import command_line
from forward_inf_mlflow.data.fetch import public_uri
from forward_inf_mlflow.directions import Direction, GradientStep
from forward_inf_mlflow.planner import Plan
from forward_inf_mlflow.probe import Choice
from forward_inf_mlflow.record import tools
from forward_inf_mlflow.registry import Version
from forward_inf_mlflow.tracking import AuditRun

#: Options that are left out where they are "auto", and those that hold addresses.
_CHOICES = frozenset({"task", "direction", "readout", "pixels", "device"})
_ADDRESSES = frozenset({"train", "queries", "generated", "benchmark", "unseen"})


class Found(Protocol):
    """What was found, as far as a record says how: as of an `influence.Influence`."""

    @property
    def choice(self) -> Choice:
        """Return how rows were read."""
        ...

    @property
    def facts(self) -> Mapping[str, object]:
        """Return what is known of the moves."""
        ...


def heading(
    kind: str,
    format: int,
    version: Version,
    run: AuditRun,
    *,
    model_kind: str,
    device: torch.device,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return what a record begins with: what it is, by what, of which version, in which run.

    Args:
        kind: What was asked, such as "trace".
        format: Of this kind of record.
        version: The version that was asked.
        run: Where it is logged.
        model_kind: What the version is.
        device: Where it was asked.
        notes: Sentences for the reader.
    """
    return {
        "format": format,
        "kind": kind,
        "finished_at": int(time.time() * 1000),
        "tool": tools(str(device)),
        "model": {**asdict(version), "uri": version.uri, "kind": model_kind},
        "notes": list(notes),
        "run": asdict(run),
    }


def how(planned: Plan, found: Found) -> dict[str, Any]:
    """Return how an answer was planned and computed."""
    return {
        **planned.as_dict(),
        **found.facts,
        "read_by": found.choice.method,
        "read_why": found.choice.note,
    }


def per(direction: Direction) -> str:
    """Return what influence is counted by: a plain step adds no copy of anything."""
    return "unit of step" if isinstance(direction, GradientStep) else "added copy"


def repeat(command: str, version: Version, asked: Mapping[str, object]) -> str:
    """Return the command line that asks again, without what is usual or secret."""
    told: dict[str, object] = {}
    for name, value in asked.items():
        if name in _ADDRESSES and value:
            told[name] = public_uri(str(value))  # a signed URL is a password
        elif name not in _CHOICES or value != "auto":
            told[name] = value
    return command_line(command, version.uri, told)
