"""Explain: why did the model say this? From a version's address to the rows that speak for it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from forward_inf_mlflow import answers, asked_run, output, tracking
from forward_inf_mlflow.asking import DirectionName, ReadoutName, ask
from forward_inf_mlflow.command_line import command_line
from forward_inf_mlflow.data.fetch import public_uri
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.influence import ForwardInfluence
from forward_inf_mlflow.planning import require_positive
from forward_inf_mlflow.posing import Posed
from forward_inf_mlflow.progress import Progress, silent, stage
from forward_inf_mlflow.record import write_record
from forward_inf_mlflow.registry import Version
from forward_inf_mlflow.report.influence import render_influence
from forward_inf_mlflow.screened import screened_top
from forward_inf_mlflow.workplace import earlier_runs, open_work

#: Folder of the artifacts in the run; not an audit's, which may be in the same run.
FOLDER = "forward_inf_influence"
#: The page, and what it was made of; the latter is written last.
PAGE, RECORD = "influence.html", "influence.json"


@dataclass(frozen=True)
class Explanation:
    """The rows that speak for a model's answers, and those that speak against them.

    Attributes:
        version: The version that was asked.
        run_id: The MLflow run that keeps the explanation.
        page: Its address inside the MLflow UI.
        record: The content of ``influence.json``.
        influence: One line per query and row: query_id, kind ("proponent" or "opponent"), rank
            (from 1), train_id, label, influence (per added copy of the query), source.
        sources: One line per query and data source: query_id, source, rows, influence (the sum
            over its rows), low, high (its 95 % interval); None where rows have no sources.
    """

    version: Version
    run_id: str
    page: str
    record: Mapping[str, Any]
    influence: pd.DataFrame
    sources: pd.DataFrame | None

    @property
    def artifact(self) -> str:
        """Return the page's path among the run's artifacts."""
        return f"{FOLDER}/{PAGE}"

    def as_dict(self) -> dict[str, Any]:
        """Return the result for ``--json``."""
        keys = (
            "answers",
            "influence",
            "unit",
            "per",
            "costs",
            "data",
            "partial",
            "notes",
            "repeat",
        )
        return {
            "model": self.version.uri,
            "run_id": self.run_id,
            "page": self.page,
            **{key: self.record[key] for key in keys},
        }


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
    if candidates is not None and candidates < top:
        raise ForwardInfError(
            f"{candidates} candidates cannot hold the top {top}: take more (--candidates)"
        )
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

    with asked_run.begun(posed.version, experiment, "influence") as run:
        work = open_work(work_dir, question.key(), fresh=fresh)
        earlier = earlier_runs(work, run.run_id)
        tracking.end_killed(earlier)
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
            repeat=command_line("influence", posed.version.uri, _options({**asked, "top": top})),
            resumed=work.done - len(earlier),
            seconds=time.monotonic() - began,
        )
        page = render_influence(record, *answers.portraits(problem, record))
        _save(run, posed, record, rows, found.by_source, page, out)
        work.remove()
    return Explanation(
        version=posed.version,
        run_id=run.run_id,
        page=f"{run.link()}/artifacts/{FOLDER}/{PAGE}",
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


def _save(
    run: tracking.AuditRun,
    posed: Posed,
    record: Mapping[str, Any],
    rows: pd.DataFrame,
    sources: pd.DataFrame | None,
    page: str,
    out: str | Path | None,
) -> None:
    """Write everything, log it, and copy it to where the user wants it."""
    with asked_run.saved(run, FOLDER, out) as folder:
        rows.to_parquet(folder / "influence.parquet", index=False)
        if sources is not None:
            sources.to_parquet(folder / "sources.parquet", index=False)
        (folder / PAGE).write_text(page, encoding="utf-8")
        (folder / RECORD).write_bytes(write_record(record))
        tracking.link_inputs(run, posed.version, posed.train, posed.queries)


def _options(asked: Mapping[str, object]) -> dict[str, object]:
    """Return what was asked as options of a command line, without what is usual or secret."""
    found = {name: value for name, value in asked.items() if value != "auto"}
    for name in ("train", "queries"):
        if found[name]:
            found[name] = public_uri(str(found[name]))  # a signed URL is a password
    return found
