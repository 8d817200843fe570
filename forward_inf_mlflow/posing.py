"""Posing: from a version's address and where its rows lie to one well-posed problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from forward_inf_mlflow.data.lineage import DataSet, declared_data, logged_data
from forward_inf_mlflow.data.reading import Columns
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.parity import check_parity
from forward_inf_mlflow.preparation import Problem, choose_device, prepare
from forward_inf_mlflow.registry import Version, load, resolve


@dataclass(frozen=True)
class Posed:
    """A version, its model, its rows, and the problem that they are together.

    Attributes:
        partial: Whether rows were left out.
    """

    version: Version
    model: AuditedModel
    train: DataSet
    queries: DataSet
    problem: Problem
    partial: bool


def pose(
    model_uri: str,
    *,
    train: str | None = None,
    queries: str | None = None,
    label: str | None = None,
    id: str | None = None,
    features: Sequence[str] | None = None,
    group_by: str | None = None,
    task: Literal["auto", "classification", "regression"] = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    max_rows: int | None = None,
    allow_pickle: bool = False,
) -> Posed:
    """Find the version, read its rows, load its model and bring them together.

    The arguments are those of `auditing.audit`.

    Raises:
        ForwardInfError: That cannot be done; the message says what to do.
    """
    on = choose_device(device)
    version = resolve(model_uri)
    columns = Columns(label, id, tuple(features) if features else None, group_by)
    train_set = _read("train", train, version, columns)
    query_set = _read("queries", queries, version, replace(columns, lenient=True))
    train_set, partial = _at_most(train_set, max_rows, seed)
    model = load(version, allow_pickle=allow_pickle)
    check_parity(model, train_set.rows.features)
    problem = prepare(
        model, train_set.rows, query_set.rows, task=task, device=on, batch_size=batch_size
    )
    return Posed(version, model, train_set, query_set, problem, partial)


def _read(
    role: Literal["train", "queries"], uri: str | None, version: Version, columns: Columns
) -> DataSet:
    return declared_data(uri, role, columns) if uri else logged_data(version, role, columns)


def _at_most(data: DataSet, most: int | None, seed: int) -> tuple[DataSet, bool]:
    """Draw rows at random, in the data's order; say whether any were left out."""
    if most is None or most >= len(data.rows):
        return data, False
    chosen = np.random.default_rng(seed).choice(len(data.rows), most, replace=False)
    return replace(data, rows=data.rows.take(np.sort(chosen))), True
