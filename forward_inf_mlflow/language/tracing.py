"""Trace: which training texts made a language model say this? From a version to the texts."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from forward_inf_mlflow import asked_record, asked_run, output
from forward_inf_mlflow.asked_run import Answer
from forward_inf_mlflow.asking import DirectionName, ReadoutName, require_room_for
from forward_inf_mlflow.data.drawing import at_most
from forward_inf_mlflow.data.lineage import DataSet, declared_texts, logged_texts
from forward_inf_mlflow.data.texts import TextColumns
from forward_inf_mlflow.influence import ForwardInfluence
from forward_inf_mlflow.language.completion import (
    Asked,
    asked,
    notes_of,
    planned,
    said,
    trace_key,
    traced_table,
)
from forward_inf_mlflow.language.traced import trace_one
from forward_inf_mlflow.planner import Plan
from forward_inf_mlflow.planning import require_positive
from forward_inf_mlflow.preparation import choose_device
from forward_inf_mlflow.progress import Progress, silent, stage
from forward_inf_mlflow.record import data_as_dict
from forward_inf_mlflow.registry import Version, load_language_model, resolve
from forward_inf_mlflow.report.trace import render_trace
from forward_inf_mlflow.tasks import CausalLM
from forward_inf_mlflow.workplace import named_direction

#: Raised when ``trace.json`` changes its shape.
FORMAT = 1


@dataclass(frozen=True)
class Trace(Answer):
    """The training texts behind a completion; ``trace.json`` is its record.

    Attributes:
        rows: One line per candidate, best first: rank (from 1), train_id, influence, screen,
            features, text, source, tokens (its next tokens as text) and token_influence (of each
            of them).
    """

    KIND = "trace"
    KEYS = ("completion", "rows", "trace", "unit", "per", "partial")

    rows: pd.DataFrame


def trace(
    model_uri: str,
    *,
    prompt: str,
    completion: str,
    train: str | None = None,
    text: str | None = None,
    prompt_column: str | None = None,
    id: str | None = None,
    group_by: str | None = None,
    top: int = 20,
    candidates: int = 200,
    direction: DirectionName = "auto",
    readout: ReadoutName = "auto",
    weight_decay: float | None = None,
    max_rows: int | None = None,
    work_dir: str | Path | None = None,
    fresh: bool = False,
    device: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    allow_pickle: bool = False,
    experiment: str | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Ask a registered language model which training texts made it say something; log it to MLflow.

    Args:
        model_uri: ``models:/name/3`` or ``models:/name@alias``.
        prompt: What the model was given; may be empty.
        completion: What it said, or what it is to be asked about.
        train: Path or URI of the training texts; None for the version's own logged data.
        text: Column of the text; None for a usual name, or the only column that holds text.
        prompt_column: Column of what came before the text, which is not learned.
        id: Column of the row ids; None for the position.
        group_by: Column that says where a text came from.
        top: Texts that are shown.
        candidates: Texts that the last layer points to, and that are read token by token.
        direction: How the completion moves the model; "auto" leaves it to the planner.
        readout: What is read of a text; "auto" reads margins, since the losses of texts that a
            model knows no longer move.
        weight_decay: The training objective's penalty in nats per row; None for none.
        max_rows: Look at so many training texts only, drawn at random.
        work_dir, fresh, device, batch_size, seed, experiment, out, progress: As
            `explaining.explain`.
        allow_pickle: Permit pickled weights.

    Raises:
        ForwardInfError: There is no answer; the message says what to do.
    """
    began = time.monotonic()
    if out is not None:
        output.require_writable(Path(out))
    told: dict[str, Any] = {
        "prompt": prompt,
        "completion": completion,
        "train": train,
        "text": text,
        "prompt_column": prompt_column,
        "id": id,
        "group_by": group_by,
        "top": top,
        "candidates": candidates,
        "direction": direction,
        "readout": readout,
        "weight_decay": weight_decay,
        "max_rows": max_rows,
        "device": device,
        "batch_size": batch_size,
        "seed": seed,
        "allow_pickle": allow_pickle,
    }
    posed = _pose(model_uri, **told)
    version, data, question, plan = posed.version, posed.data, posed.question, posed.plan
    on = question.train.rows.device

    with asked_run.begun(version, experiment, Trace.KIND) as run:
        key = trace_key(version, question, plan)
        work, earlier = asked_run.pieces(run, work_dir, key, fresh=fresh)
        found = trace_one(
            ForwardInfluence(task=CausalLM(), direction=plan.direction, readout=plan.readout),
            question.model.module.to(on),
            question.query.rows,
            question.train.rows,
            count=min(candidates, len(question.train.rows)),
            work=work,
            progress=stage(progress or silent, "reading the training texts", plan.costs["sweep"]),
        )
        rows = traced_table(question, data.rows, found)
        record = {
            **asked_record.heading(
                Trace.KIND,
                FORMAT,
                version,
                run,
                model_kind="transformers",
                device=on,
                notes=notes_of(question, posed.empty, found),
            ),
            "data": {"train": data_as_dict(data)},
            "partial": posed.partial,
            "task": CausalLM.name,
            "unit": "nats",
            "per": asked_record.per(plan.direction),
            "settings": {
                "seed": seed,
                "top": top,
                "max_rows": max_rows,
                "batch_size": question.train.rows.batch_size,
            },
            "trace": asked_record.how(plan, found),
            "resumed_pieces": work.done - earlier,
            "costs": {
                "rows": len(question.train.rows),
                "candidates": len(rows),
                "seconds": round(time.monotonic() - began, 3),
                "forward_passes": found.forward_passes,
            },
            "repeat": asked_record.repeat("trace", version, told),
            "completion": said(question, prompt, completion),
            "rows": rows.head(top).to_dict("records"),
        }
        page = render_trace(record)
        tables = {"trace": rows}
        where = asked_run.keep(run, version, record, page, tables, data, out=out)
        work.remove()
    return Trace(version=version, run_id=run.run_id, page=where, record=record, rows=rows)


def plan_trace(model_uri: str, **question: Any) -> dict[str, Any]:
    """Return what `trace` would do with the same arguments, and what it would cost; log nothing.

    Costs are predicted forward-equivalents of one text: "direction", "sweep" and "total".

    Raises:
        ForwardInfError: There would be no answer; the message says what to do.
    """
    usual = inspect.signature(trace).parameters
    posed = _pose(
        model_uri,
        **{name: question.get(name, usual[name].default) for name in usual if name in _POSED},
    )
    return {
        "model": posed.version.uri,
        "task": CausalLM.name,
        "rows": len(posed.question.train.rows),
        "plan": posed.plan.as_dict(),
    }


@dataclass(frozen=True)
class _Posed:
    """A question before anything is computed: who is asked, by which texts, and how."""

    version: Version
    data: DataSet
    empty: int
    partial: bool
    question: Asked
    plan: Plan


def _pose(
    model_uri: str,
    *,
    prompt: str,
    completion: str,
    train: str | None,
    text: str | None,
    prompt_column: str | None,
    id: str | None,
    group_by: str | None,
    top: int,
    candidates: int,
    direction: DirectionName,
    readout: ReadoutName,
    weight_decay: float | None,
    max_rows: int | None,
    device: str,
    batch_size: int | None,
    seed: int,
    allow_pickle: bool,
) -> _Posed:
    require_positive(top=top, candidates=candidates, max_rows=max_rows, batch_size=batch_size)
    require_room_for(top, candidates)
    on = choose_device(device)
    version = resolve(model_uri)
    columns = TextColumns(text, prompt_column, id, group_by)
    data, empty = declared_texts(train, columns) if train else logged_texts(version, columns)
    data, partial = at_most(data, max_rows, seed)
    model = load_language_model(version, allow_pickle=allow_pickle)
    question = asked(model, data.rows, prompt, completion, device=on, batch_size=batch_size)
    plan = planned(
        question,
        direction=named_direction(direction, weight_decay, seed),
        readout="margin" if readout == "auto" else readout,
        weight_decay=weight_decay,
        candidates=candidates,
        seed=seed,
    )
    return _Posed(version, data, empty, partial, question, plan)


#: What `trace` and `plan_trace` ask alike.
_POSED = frozenset(inspect.signature(_pose).parameters) - {"model_uri"}
