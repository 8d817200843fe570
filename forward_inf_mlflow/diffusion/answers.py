"""Answers: the images behind generated ones as a table, in a record, and as a page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from forward_inf_mlflow.diffusion.attributed import Attributed
from forward_inf_mlflow.diffusion.pixels import SIGNED
from forward_inf_mlflow.diffusion.question import Asked
from forward_inf_mlflow.report.attribution import SIDES
from forward_inf_mlflow.report.thumbnails import image_shape, thumbnail
from forward_inf_mlflow.sweep import read


def images_table(question: Asked, found: Attributed, top: int, *, labelled: bool) -> pd.DataFrame:
    """Return the top proponents and opponents of each generated image; see `attributing`.

    Proponents are among those with an influence above 0, opponents among those below.
    """
    rows = question.train_rows
    parts = []
    for i, name in enumerate(question.query_rows.ids.tolist()):
        for kind, sign in (("proponent", 1), ("opponent", -1)):
            order = np.argsort(-sign * found.score[i], kind="stable")
            best = order[sign * found.influence[i, order] > 0][:top]
            like = np.nan if found.likeness is None else found.likeness[i, best]
            parts.append(
                pd.DataFrame(
                    {
                        "query_id": name,
                        "kind": kind,
                        "rank": np.arange(1, len(best) + 1),
                        "train_id": rows.ids[best],
                        "label": rows.labels[best] if labelled else "",
                        "influence": found.influence[i, best].astype(np.float64),
                        "likeness": np.asarray(like, np.float64),
                        "source": "" if rows.sources is None else rows.sources[best],
                    },
                    index=range(len(best)),
                )
            )
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def answers(question: Asked, table: pd.DataFrame, *, labelled: bool) -> list[dict[str, Any]]:
    """Return what the record says of each generated image: its loss, and its rows of the table."""
    columns = {name: name for name in ("train_id", "label", "influence", "likeness", "source")}
    columns["train_id"] = "id"
    queries = question.query_rows
    loss = read(question.module, question.task, question.queries).loss.tolist()
    labels = queries.labels.tolist() if labelled else [None] * len(queries)
    found = []
    for name, label, own in zip(queries.ids.tolist(), labels, loss, strict=True):
        mine = table[table["query_id"] == name]
        sides = {
            side: mine[mine["kind"] == side.removesuffix("s")][list(columns)]
            .rename(columns=columns)
            .to_dict("records")
            for side in SIDES
        }
        found.append({"query_id": name, "label": label, "loss": own, **sides})
    return found


def pictures(question: Asked, record: Mapping[str, Any], most: int) -> dict[str, bytes]:
    """Return PNG thumbnails by ``query:<id>`` and ``train:<id>`` of what a page shows."""
    drawn: dict[str, bytes] = {}
    if not image_shape(tuple(question.train.inputs.shape[1:])):
        return drawn
    low = float(question.train.inputs[:256].min()) < SIGNED
    train_ids, query_ids = (pd.Index(r.ids) for r in (question.train_rows, question.query_rows))
    for answer in record["answers"][:most]:
        named = [row["id"] for side in SIDES for row in answer[side]]
        for kind, rows, ids, wanted in (
            ("query", question.queries, query_ids, [answer["query_id"]]),
            ("train", question.train, train_ids, named),
        ):
            for name, position in zip(wanted, ids.get_indexer(wanted).tolist(), strict=True):
                image = rows.inputs[position]
                drawn[f"{kind}:{name}"] = thumbnail(_shown(image, signed=low))
    return drawn


def _shown(image: Tensor, *, signed: bool) -> np.ndarray:
    """Return an image from 0 to 1, on one scale with all others."""
    values = (image.float() + 1) / 2 if signed else image.float()
    return np.asarray(values.clamp(0, 1).numpy())
