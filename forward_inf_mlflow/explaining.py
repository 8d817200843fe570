"""Explain: why did the model say this? From a version's address to the rows that speak for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from forward_inf_mlflow import answers, asked_record, asked_run, output
from forward_inf_mlflow.asked_run import Answer
from forward_inf_mlflow.asking import DirectionName, ReadoutName, ask, require_room_for
from forward_inf_mlflow.influence import ForwardInfluence
from forward_inf_mlflow.planning import require_positive
from forward_inf_mlflow.progress import Progress, silent, stage
from forward_inf_mlflow.report.influence import render_influence
from forward_inf_mlflow.screened import screened_top


@dataclass(frozen=True)
class Explanation(Answer):
    """The rows that speak for and against a model's answers; ``influence.json`` is its record.

    Attributes:
        influence: One line per query and row: query_id, kind ("proponent" or "opponent"), rank
            (from 1), train_id, label, influence (per added copy of the query), source.
        sources: One line per query and data source: query_id, source, rows, influence (the sum
            over its rows), low, high (its 95 % interval); None where rows have no sources.
    """

    KIND = "influence"
    KEYS = ("answers", "influence", "unit", "per", "partial")

    influence: pd.DataFrame
    sources: pd.DataFrame | None


def explain(
    model_uri: str,
    *,
    query_rows: Sequence[str | int],
    queries: str | None = None,
    train: str | None = None,
    label: str | None = None,
    id: str | None = None,
    features: Sequence[str] | None = None,
    group_by: str | None = None,
    task: Literal["auto", "classification", "regression"] = "auto",
    together: bool = False,
    top: int = 10,
    direction: DirectionName = "auto",
    readout: ReadoutName = "auto",
    weight_decay: float | None = None,
    candidates: int | None = None,
    max_rows: int | None = None,
    pixels: str | None = None,
    resize: bool = False,
    work_dir: str | Path | None = None,
    fresh: bool = False,
    compiled: bool = False,
    device: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    allow_pickle: bool = False,
    experiment: str | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """Ask a registered model version why it says what it says of some rows; log it to MLflow.

    Args:
        model_uri: ``models:/name/3`` or ``models:/name@alias``.
        query_rows: Ids of the query rows to ask about; ``["all"]`` for every one.
        queries: Path or URI of the query rows; None for the version's own logged data.
        train: Path or URI of the training rows; None as above.
        label: Column of the label; None for what was logged, or a usual name.
        id: Column of the row ids; None for what was logged, or the position.
        features: Columns that the model reads; None for all others.
        group_by: Column that says where a training row came from: adds sums by source.
        task: "auto" takes it from the model and the labels.
        together: Ask about the mean over the query rows, not about each alone.
        top: Proponents and opponents of each query.
        direction: How a query moves the model; "auto" leaves it to the planner.
        readout: What is read of a training row; "auto" leaves it to the planner.
        weight_decay: The training objective's penalty in nats per row; None takes an estimator's
            own, and none for other models.
        candidates: Sweep each query only over so many training rows of each kind, those that the
            model's last layer points to; None for all rows. No sums by source then.
        max_rows: Look at so many training rows only, drawn at random.
        pixels: What the pixels 0 and 255 of pictures become, ``0:1``; None takes it from the
            model's input example.
        resize: Resize pictures of another size than the model takes; else they are refused.
        work_dir: Where finished pieces are kept until the end, so that an interrupted explanation
            goes on; None for the user's cache folder.
        fresh: Begin again even if there are such pieces.
        compiled: Run the sweep's passes through ``torch.compile``.
        device: "auto", "cpu", "cuda" ...
        batch_size: Rows read at once; None chooses.
        seed: Of what is drawn at random.
        allow_pickle: Permit models whose loading runs code of their own.
        experiment: Where the run goes; None for the environment's, else the version's own.
        out: Folder that gets a copy of all artifacts.
        progress: Called as ``progress(stage, done, total)``.

    Raises:
        ForwardInfError: There is no answer; the message says what to do.
    """
    began = time.monotonic()
    require_positive(top=top)
    require_room_for(top, candidates)
    if out is not None:
        output.require_writable(Path(out))
    asked: dict[str, Any] = {
        "query_rows": query_rows,
        "together": together,
        "queries": queries,
        "train": train,
        "label": label,
        "id": id,
        "features": features,
        "group_by": group_by,
        "task": task,
        "direction": direction,
        "readout": readout,
        "weight_decay": weight_decay,
        "candidates": candidates,
        "compiled": compiled,
        "max_rows": max_rows,
        "pixels": pixels,
        "resize": resize,
        "device": device,
        "batch_size": batch_size,
        "seed": seed,
        "allow_pickle": allow_pickle,
    }
    question = ask(model_uri, **asked)
    posed, planned = question.posed, question.planned
    problem, sources = posed.problem, posed.problem.train_rows.sources

    with asked_run.begun(posed.version, experiment, Explanation.KIND) as run:
        work, earlier = asked_run.pieces(run, work_dir, question.key(), fresh=fresh)
        engine = ForwardInfluence(
            task=problem.task,
            direction=planned.direction,
            readout=planned.readout,
            compiled=compiled,
        )
        reads: dict[str, Any] = {
            "work": work,
            "progress": stage(
                progress or silent, "influence of the training rows", planned.costs["sweep"]
            ),
        }
        rows_ids = (problem.module, question.groups, problem.train, problem.train_rows.ids, top)
        if planned.candidates is None:
            found = engine.top(*rows_ids, sources=sources, **reads)
        else:
            found = screened_top(engine, *rows_ids, count=planned.candidates, **reads)
        rows = answers.rows_table(problem, found.rows)
        record = answers.make_record(
            posed=posed,
            run=run,
            groups=question.groups,
            index=question.index,
            planned=planned,
            found=found,
            rows=rows,
            settings={"seed": seed, "top": top, "max_rows": max_rows, "together": together},
            repeat=asked_record.repeat("influence", posed.version, {**asked, "top": top}),
            resumed=work.done - earlier,
            seconds=time.monotonic() - began,
        )
        page = render_influence(record, *answers.portraits(problem, record))
        tables = {"influence": rows}
        if found.by_source is not None:
            tables["sources"] = found.by_source
        data = (posed.train, posed.queries)
        where = asked_run.keep(run, posed.version, record, page, tables, *data, out=out)
        work.remove()
    return Explanation(
        version=posed.version,
        run_id=run.run_id,
        page=where,
        record=record,
        influence=rows,
        sources=found.by_source,
    )


def plan_explanation(model_uri: str, **asked: Any) -> dict[str, Any]:
    """Return what `explain` would do with the same arguments, and what it would cost; log nothing.

    Costs are predicted forward-equivalents of one row: "direction", "sweep" and "total".

    Raises:
        ForwardInfError: There would be no answer; the message says what to do.
    """
    question = ask(model_uri, **asked)
    problem = question.posed.problem
    return {
        "model": question.posed.version.uri,
        "task": problem.task.name,
        "rows": len(problem.train),
        "queries": len(question.index),
        "plan": question.planned.as_dict(),
    }
