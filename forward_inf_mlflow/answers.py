"""Answers: influences on query rows as tables, as the record of a run, and as a page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from forward_inf_mlflow.asked_record import heading, how, per
from forward_inf_mlflow.data.rows import as_table
from forward_inf_mlflow.data.several import written
from forward_inf_mlflow.directions import Refit
from forward_inf_mlflow.influence import QueryGroups, Top
from forward_inf_mlflow.planner import Plan
from forward_inf_mlflow.portraits import picture, telling_columns
from forward_inf_mlflow.posing import Posed
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.record import data_as_dict
from forward_inf_mlflow.report.influence import MAX_ANSWERS, MAX_ROWS, SIDES
from forward_inf_mlflow.sweep import outputs, read
from forward_inf_mlflow.tasks import MultiLabel
from forward_inf_mlflow.tracking import AuditRun

#: Raised when ``influence.json`` changes its shape.
FORMAT = 1
#: Names and values of telling columns by ``query:<id>`` and ``train:<id>``.
Values = dict[str, list[tuple[str, object]]]


def rows_table(problem: Problem, rows: pd.DataFrame) -> pd.DataFrame:
    """Add label and source to top rows, and leave out those that do not have their kind's sign.

    Columns: query_id, kind, rank, train_id, label, influence, source (empty where there is none).
    """
    helps = rows["influence"] > 0
    harms = rows["influence"] < 0
    rows = rows[np.where(rows["kind"] == "proponent", helps, harms)].reset_index(drop=True)
    where = pd.Index(problem.train_rows.ids).get_indexer(rows["train_id"])
    sources = problem.train_rows.sources
    rows.insert(4, "label", problem.train_rows.labels[where])
    return rows.assign(source=sources[where] if sources is not None else "")


def make_record(
    *,
    posed: Posed,
    run: AuditRun,
    groups: QueryGroups,
    index: np.ndarray,
    planned: Plan,
    found: Top,
    rows: pd.DataFrame,
    settings: Mapping[str, object],
    repeat: str,
    resumed: int,
    seconds: float,
) -> dict[str, Any]:
    """Return the content of ``influence.json``.

    Args:
        posed: Model and rows.
        run: Where it is logged.
        groups: What was asked.
        index: Positions of the query rows, in the groups' order.
        planned: How it was answered.
        found: What was found.
        rows: From `rows_table`.
        settings: What else changes the numbers.
        repeat: The command line that repeats it.
        resumed: Pieces that an interrupted explanation had left.
        seconds: It took.
    """
    problem, notes = posed.problem, list(posed.problem.notes)
    if lost := int((~np.isfinite(found.loss)).sum()):
        notes.append(f"{lost:,} training rows were left out: the model's loss there is no number")
    moved = set(rows["query_id"])
    if still := sum(str(name) not in moved for name in groups.ids):
        notes.append(
            f"{still:,} quer{'y has' if still == 1 else 'ies have'} neither proponents nor "
            "opponents: nothing moves the model there, because it is sure of the label"
        )
    reliability = found.facts.get("reliability")
    if isinstance(reliability, float) and reliability < Refit.floor:
        notes.append(
            f"two halves of what the answer was drawn from agree little (reliability "
            f"{reliability:.2f} of 1): another seed would put other rows first; hold it against "
            "--direction replay before anybody acts on a single row"
        )
    said = _said(problem, index)
    members = [said] if len(groups.ids) < len(said) else [[one] for one in said]
    return {
        **heading(
            "influence",
            FORMAT,
            posed.version,
            run,
            model_kind=posed.model.kind,
            device=problem.train.device,
            notes=notes,
        ),
        "data": {"train": data_as_dict(posed.train), "queries": data_as_dict(posed.queries)},
        "partial": posed.partial,
        "task": problem.task.name,
        "unit": problem.task.unit,
        "per": per(planned.direction),
        "settings": {**settings, "batch_size": problem.train.batch_size},
        "influence": how(planned, found),
        "resumed_pieces": resumed,
        "costs": {
            "rows": len(problem.train),
            "queries": len(index),
            "seconds": round(seconds, 3),
            "forward_passes": found.forward_passes,
        },
        "repeat": repeat,
        "answers": [
            {
                "query_id": str(name),
                "queries": queries,
                **{side: _listed(rows, name, side.removesuffix("s")) for side in SIDES},
                "sources": _summed(found.by_source, name),
            }
            for name, queries in zip(groups.ids, members, strict=True)
        ],
    }


def portraits(problem: Problem, record: Mapping[str, Any]) -> tuple[dict[str, bytes], list[Values]]:
    """Return what a page shows of rows: pictures, and for every answer its telling values.

    Both by ``query:<id>`` and ``train:<id>``; rows that a page leaves out have neither.
    """
    drawn: dict[str, bytes] = {}
    values = []
    train, queries = (as_table(r.features) for r in (problem.train_rows, problem.query_rows))
    train_ids, query_ids = pd.Index(problem.train_rows.ids), pd.Index(problem.query_rows.ids)
    for answer in record["answers"][:MAX_ANSWERS]:
        named = [row["id"] for side in SIDES for row in answer[side][:MAX_ROWS]]
        asked = [query["id"] for query in answer["queries"][:MAX_ROWS]]
        of_train, of_queries = train_ids.get_indexer(named), query_ids.get_indexer(asked)
        columns = telling_columns(train, queries.iloc[of_queries])
        shown: Values = {}
        for kind, tensors, rows, table, ids, positions in (
            ("train", problem.train, problem.train_rows, train, named, of_train),
            ("query", problem.queries, problem.query_rows, queries, asked, of_queries),
        ):
            for name, position in zip(ids, positions.tolist(), strict=True):
                if (png := picture(tensors, position, rows)) is not None:
                    drawn[f"{kind}:{name}"] = png
                shown[f"{kind}:{name}"] = [(str(c), table[c].iloc[position]) for c in columns]
        values.append(shown)
    return drawn, values


def _said(problem: Problem, index: np.ndarray) -> list[dict[str, Any]]:
    """Return what the model says of some query rows."""
    rows = problem.queries.take(index)
    loss = read(problem.module, problem.task, rows).loss.tolist()
    answers = outputs(problem.module, rows).to(torch.float64)
    labels, ids = problem.query_rows.labels[index].tolist(), problem.query_rows.ids[index].tolist()
    if isinstance(problem.task, MultiLabel):
        best = (answers > 0).to(answers)
        names = written(best.numpy(), problem.query_rows.label_names, flags=True)
        said = [
            {"answer": name, "right": right, "probability": of_best, "label_probability": of_label}
            for name, right, of_best, of_label in zip(
                names.tolist(),
                (best == rows.targets).all(1).tolist(),
                torch.exp(-problem.task.loss(answers, best)).tolist(),
                np.exp([-own for own in loss]).tolist(),
                strict=True,
            )
        ]
    elif rows.targets.ndim == 2:
        said = [{"answer": text} for text in written(answers.numpy(), (), flags=False).tolist()]
    elif problem.classes is None:
        said = [{"answer": value} for value in answers.reshape(-1).tolist()]
    else:
        p = torch.softmax(answers, 1)
        best, given = p.argmax(1), rows.targets.cpu()
        said = [
            {"answer": name, "right": right, "probability": of_best, "label_probability": of_label}
            for name, right, of_best, of_label in zip(
                problem.classes[best.numpy()].tolist(),
                (best == given).tolist(),
                p.gather(1, best[:, None])[:, 0].tolist(),
                p.gather(1, given[:, None])[:, 0].tolist(),
                strict=True,
            )
        ]
    return [
        {"id": name, "label": label, "loss": own, **one}
        for name, label, own, one in zip(ids, labels, loss, said, strict=True)
    ]


def _listed(rows: pd.DataFrame, query: str, kind: str) -> list[dict[str, Any]]:
    mine = rows[(rows["query_id"] == query) & (rows["kind"] == kind)]
    columns = ["train_id", "label", "influence", "source"]
    records: list[dict[str, Any]] = (
        mine[columns].rename(columns={"train_id": "id"}).to_dict("records")
    )
    return records


def _summed(sources: pd.DataFrame | None, query: str) -> list[dict[str, Any]] | None:
    if sources is None:
        return None
    mine = sources[sources["query_id"] == query].drop(columns="query_id")
    records: list[dict[str, Any]] = mine.to_dict("records")
    return records
