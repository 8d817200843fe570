"""Trace: which training texts made a language model say this? From a version to the texts."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forward_inf_mlflow import asked_run, output, tracking
from forward_inf_mlflow.asking import DirectionName, ReadoutName
from forward_inf_mlflow.command_line import command_line
from forward_inf_mlflow.data.fetch import public_uri
from forward_inf_mlflow.data.lineage import DataSet, declared_texts, logged_texts
from forward_inf_mlflow.data.texts import TextColumns
from forward_inf_mlflow.directions import GradientStep
from forward_inf_mlflow.errors import ForwardInfError
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
from forward_inf_mlflow.record import data_as_dict, tools, write_record
from forward_inf_mlflow.registry import Version, load_language_model, resolve
from forward_inf_mlflow.report.trace import render_trace
from forward_inf_mlflow.tasks import CausalLM
from forward_inf_mlflow.workplace import earlier_runs, named_direction, open_work

#: Raised when ``trace.json`` changes its shape.
FORMAT = 1
#: Folder of the artifacts in the run.
FOLDER = "forward_inf_trace"
#: The page, and what it was made of; the latter is written last.
PAGE, TABLE, RECORD = "trace.html", "trace.parquet", "trace.json"
_KEYS = ("completion", "rows", "trace", "unit", "per", "costs", "data", "partial", "notes")


@dataclass(frozen=True)
class Trace:
    """The training texts behind a completion.

    Attributes:
        version: The version that was asked.
        run_id: The MLflow run that keeps the trace.
        page: Its address inside the MLflow UI.
        record: The content of ``trace.json``.
        rows: One line per candidate, best first: rank (from 1), train_id, influence, screen,
            features, text, source, tokens (its next tokens as text) and token_influence (of each
            of them).
    """

    version: Version
    run_id: str
    page: str
    record: Mapping[str, Any]
    rows: pd.DataFrame

    @property
    def artifact(self) -> str:
        """Return the page's path among the run's artifacts."""
        return f"{FOLDER}/{PAGE}"

    def as_dict(self) -> dict[str, Any]:
        """Return the result for ``--json``."""
        return {
            "model": self.version.uri,
            "run_id": self.run_id,
            "page": self.page,
            **{key: self.record[key] for key in (*_KEYS, "repeat")},
        }


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
    posed = _pose(
        model_uri,
        prompt=prompt,
        completion=completion,
        train=train,
        text=text,
        prompt_column=prompt_column,
        id=id,
        group_by=group_by,
        top=top,
        candidates=candidates,
        direction=direction,
        readout=readout,
        weight_decay=weight_decay,
        max_rows=max_rows,
        device=device,
        batch_size=batch_size,
        seed=seed,
        allow_pickle=allow_pickle,
    )
    version, data, question, plan = posed.version, posed.data, posed.question, posed.plan
    on = question.train.rows.device

    with asked_run.begun(version, experiment, "trace") as run:
        work = open_work(work_dir, trace_key(version, question, plan), fresh=fresh)
        earlier = earlier_runs(work, run.run_id)
        tracking.end_killed(earlier)
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
            "format": FORMAT,
            "kind": "trace",
            "finished_at": int(time.time() * 1000),
            "tool": tools(str(on)),
            "model": {**asdict(version), "uri": version.uri, "kind": "transformers"},
            "notes": notes_of(question, posed.empty, found),
            "run": asdict(run),
            "data": {"train": data_as_dict(data)},
            "partial": posed.partial,
            "task": CausalLM.name,
            "unit": "nats",
            # A plain step adds no copy of anything.
            "per": "unit of step" if isinstance(plan.direction, GradientStep) else "added copy",
            "settings": {
                "seed": seed,
                "top": top,
                "max_rows": max_rows,
                "batch_size": question.train.rows.batch_size,
            },
            "trace": {
                **plan.as_dict(),
                **found.facts,
                "read_by": found.choice.method,
                "read_why": found.choice.note,
            },
            "resumed_pieces": work.done - len(earlier),
            "costs": {
                "rows": len(question.train.rows),
                "candidates": len(rows),
                "seconds": round(time.monotonic() - began, 3),
                "forward_passes": found.forward_passes,
            },
            "repeat": command_line(
                "trace",
                version.uri,
                {
                    "prompt": prompt,
                    "completion": completion,
                    "train": public_uri(train) if train else None,  # a signed URL is a password
                    "text": text,
                    "prompt_column": prompt_column,
                    "id": id,
                    "group_by": group_by,
                    "top": top,
                    "candidates": candidates,
                    "direction": _unusual(direction),
                    "readout": _unusual(readout),
                    "weight_decay": weight_decay,
                    "max_rows": max_rows,
                    "device": _unusual(device),
                    "batch_size": batch_size,
                    "seed": seed,
                    "allow_pickle": allow_pickle,
                },
            ),
            "completion": said(question, prompt, completion),
            "rows": rows.head(top).to_dict("records"),
        }
        page = render_trace(record)
        with asked_run.saved(run, FOLDER, out) as folder:
            rows.to_parquet(folder / TABLE, index=False)
            (folder / PAGE).write_text(page, encoding="utf-8")
            (folder / RECORD).write_bytes(write_record(record))
            tracking.link_inputs(run, version, data)
        work.remove()
    return Trace(
        version=version,
        run_id=run.run_id,
        page=f"{run.link()}/artifacts/{FOLDER}/{PAGE}",
        record=record,
        rows=rows,
    )


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
    if candidates < top:
        raise ForwardInfError(
            f"{candidates} candidates cannot hold the top {top}: take more (--candidates)"
        )
    on = choose_device(device)
    version = resolve(model_uri)
    columns = TextColumns(text, prompt_column, id, group_by)
    data, empty = declared_texts(train, columns) if train else logged_texts(version, columns)
    data, partial = _at_most(data, max_rows, seed)
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


def _unusual(value: str) -> str | None:
    return None if value == "auto" else value


def _at_most(data: DataSet, most: int | None, seed: int) -> tuple[DataSet, bool]:
    """Draw texts at random, in the data's order; say whether any were left out."""
    if most is None or most >= len(data.rows):
        return data, False
    chosen = np.random.default_rng(seed).choice(len(data.rows), most, replace=False)
    return replace(data, rows=data.rows.take(np.sort(chosen))), True
