"""Posing: from a version's address and where its rows lie to one well-posed problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from forward_inf_mlflow.data.acceptance import has_gap
from forward_inf_mlflow.data.drawing import at_most
from forward_inf_mlflow.data.lineage import DataSet, declared_data, logged_data
from forward_inf_mlflow.data.picture_rows import lost_notes
from forward_inf_mlflow.data.pictures import PictureForm, picture_form
from forward_inf_mlflow.data.reading import Columns
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.parity import check_parity
from forward_inf_mlflow.preparation import Problem, choose_device, prepare
from forward_inf_mlflow.registry import Version, load, resolve

#: Rows that a note names.
_NAMED = 5


@dataclass(frozen=True)
class Posed:
    """A version, its model, its rows, and the problem that they are together.

    Attributes:
        partial: Whether rows were left out.
        pictures: How pictures became rows, where rows are pictures.
    """

    version: Version
    model: AuditedModel
    train: DataSet
    queries: DataSet
    problem: Problem
    partial: bool
    pictures: PictureForm | None = None


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
    pixels: str | None = None,
    resize: bool = False,
    allow_pickle: bool = False,
    fixed: bool = False,
    class_weight: str | None = None,
    chosen_output: str | None = None,
    schedule: str | None = None,
    steps: int | None = None,
) -> Posed:
    """Find the version, read its rows, load its model and bring them together.

    The arguments are those of `auditing.audit`; ``fixed`` says whether a model that no query can
    move will do.

    Raises:
        ForwardInfError: That cannot be done; the message says what to do.
    """
    on = choose_device(device)
    version = resolve(model_uri)
    model = load(
        version,
        allow_pickle=allow_pickle,
        fixed=fixed,
        chosen_output=chosen_output,
        schedule=schedule,
        steps=steps,
        pixels=pixels,
    )
    form = _form(model, pixels, resize=resize)
    columns = Columns(
        label,
        id,
        tuple(features) if features else None,
        group_by,
        labelled=model.loss is None or model.told,
        pictures=replace(form, most=max_rows, seed=seed),
    )
    train_set = _read("train", train, version, columns)
    query_set = _read("queries", queries, version, replace(columns, lenient=True, pictures=form))
    train_set, partial = at_most(train_set, max_rows, seed)
    train_rows, query_rows = (_without_gaps(model, d.rows) for d in (train_set, query_set))
    if model.loss is None:  # else nobody but the module itself says what it answers
        check_parity(model, train_rows.features)
    problem = prepare(
        model,
        train_rows,
        query_rows,
        task=task,
        device=on,
        batch_size=batch_size,
        class_weight=class_weight,
    )
    lost = [
        (kind, data.rows.ids[~np.isin(data.rows.ids, rows.ids)])
        for kind, data, rows in (
            ("training", train_set, problem.train_rows),
            ("query", query_set, problem.query_rows),
        )
        if len(rows) < len(data.rows)
    ]
    why = "a value is missing" if model.readable is None else "the text is empty"
    if model.loss is not None and model.texts is not None:
        why += ", has no token to learn,"
    decoded = [data.rows.decoded for data in (train_set, query_set) if data.rows.decoded]
    partial |= any(len(one.positions) < one.whole for one in decoded)
    notes = (
        *dict.fromkeys(one.told for one in decoded),
        *lost_notes(train_set.rows, "training"),
        *lost_notes(query_set.rows, "query"),
        *(_left_out(kind, ids, why) for kind, ids in lost),
    )
    return Posed(
        version,
        model,
        train_set,
        query_set,
        replace(problem, notes=(*problem.notes, *notes)),
        partial or bool(lost),
        form if decoded else None,
    )


def _form(model: AuditedModel, pixels: str | None, *, resize: bool) -> PictureForm:
    """Return how pictures, if there are any, become what the model takes."""
    shape, dtype = None, np.dtype(np.float32)
    if model.takes is not None:
        shape, dtype = model.takes.shape, model.takes.dtype
    return picture_form(
        shape, dtype, model.example, scale=model.scale, pixels=pixels, resize=resize
    )


def _without_gaps(model: AuditedModel, rows: Rows) -> Rows:
    """Leave out the rows with missing values, unless the model's own steps fill them.

    Of texts those that are empty.

    Raises:
        DataError: Every row has one, or the model cannot read the rows for another reason.
    """
    if model.readable is not None:
        fine = model.readable(rows.features)
        if not fine.any():
            raise DataError(f"{rows.uri}: every text is empty; name another column (--features)")
        return rows.take(fine)
    gaps = has_gap(rows.features)
    if not gaps.any():
        return rows
    if not gaps.all():
        try:
            model.prepare(rows.features)
        except DataError:
            return rows.take(~gaps)
    else:
        model.prepare(rows.features)
    return rows


def _left_out(kind: str, ids: np.ndarray, why: str) -> str:
    """Return the sentence that names rows that could not be read."""
    named = ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")
    rows = f"{len(ids):,} {kind} row{'s' if len(ids) > 1 else ''}"
    return (
        f"{rows} {'were' if len(ids) > 1 else 'was'} left out, because {why} or the model's answer "
        f"is no number ({named}): fill or drop them"
    )


def _read(
    role: Literal["train", "queries"], uri: str | None, version: Version, columns: Columns
) -> DataSet:
    return declared_data(uri, role, columns) if uri else logged_data(version, role, columns)
