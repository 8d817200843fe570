"""Recited: each thing that a language model may know by heart, for the record and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.data.texts import PROMPT, TEXT
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.language import canaries, contamination
from forward_inf_mlflow.language.contamination import WAYS
from forward_inf_mlflow.language.extraction import Extraction, Share, extract
from forward_inf_mlflow.language.wording import joined, word_texts, word_training
from forward_inf_mlflow.models.transformer import Transformer
from forward_inf_mlflow.progress import Progress, stage
from forward_inf_mlflow.screen import nearest
from forward_inf_mlflow.tasks import CausalLM

#: Characters of a text in the record.
_MOST_TEXT = 1000


@dataclass(frozen=True)
class Asked:
    """The model and its texts, and how they are read."""

    model: Transformer
    train: Rows
    device: torch.device
    batch_size: int | None
    seed: int
    progress: Progress


def extracted(
    asked: Asked, strangers: Rows | None, given: int, written: int, sample: int, top: int
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Ask the model to go on with a sample of the training texts, and with unseen ones."""

    def ask(rows: Rows, why: str) -> Extraction:
        chosen = np.random.default_rng(asked.seed).permutation(len(rows))[:sample]
        count = stage(asked.progress, why, 1)
        found = extract(
            asked.model,
            rows,
            np.sort(chosen),
            given=given,
            written=written,
            device=asked.device,
            batch_size=asked.batch_size,
        )
        count(1)
        return found

    found = ask(asked.train, "going on with training texts")
    try:
        others = None if strangers is None else ask(strangers, "going on with unseen texts")
    except DataError:  # all of them are too short, which is no reason to say nothing
        others = None
    return {
        "given": given,
        "written": written,
        "sample": min(sample, len(asked.train)),
        "short": found.short,
        **asdict(found.share),
        "unseen": None if others is None else asdict(others.share),
        "rows": found.rows[found.rows["written"]].head(top).to_dict("records"),
    }, found.rows


def exposed(
    asked: Asked, planted: list[canaries.Canary], most: int, top: int
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Say how far the model gives each canary away."""
    found = canaries.exposures(
        asked.model,
        planted,
        most=most,
        seed=asked.seed,
        device=asked.device,
        batch_size=asked.batch_size,
        progress=stage(asked.progress, "comparing canaries", len(planted)),
    )
    # One guess per canary: of many, some rank high by luck.
    lines = [
        {**one.as_dict(), "known": one.chance * len(planted) <= canaries.KNOWN} for one in found
    ]
    table = pd.DataFrame(lines).sort_values("bits", ascending=False, kind="stable")
    table = table.reset_index(drop=True)
    often = table.groupby("repeats")
    return {
        "count": len(table),
        "known": int(table["known"].sum()),
        "by_repeats": [
            {"repeats": int(n), "count": len(t), "bits": float(t["bits"].mean()),
             "known": int(t["known"].sum())}
            for n, t in often
        ],
        "rows": table.head(top).to_dict("records"),
    }, table  # fmt: skip


def contaminated(
    asked: Asked,
    items: Rows,
    strangers: Rows | None,
    ngram: int,
    least: float,
    most: float,
    top: int,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Hold the items of a benchmark, and unseen ones, against the training texts."""
    count = stage(asked.progress, "comparing words", 1)
    texts = _texts(asked.train)
    mine, theirs = _texts(items), [] if strangers is None else _texts(strangers)
    words = contamination.overlaps([*mine, *theirs], texts, ngram)
    count(1)
    near, rows = _nearest(asked, [*mine, *theirs])
    value, unseen = near[: len(mine)], near[len(mine) :]
    chance: list[float | None] = [None] * len(mine)
    accused = np.zeros(len(theirs), bool)
    if len(theirs):
        chance = [float(p) for p in contamination.chances(value, unseen)]
        accused = contamination.crossed(unseen, most, asked.seed)
    lines = []
    for i in range(len(mine)):
        how = contamination.way(words[i], least, chance[i], most)
        told = words[i].row
        row = int(rows[i]) if how == "influence" or told is None else told
        lines.append(
            {
                "id": str(items.ids[i]),
                "found": how,
                "share": words[i].share,
                "influence": float(value[i]),
                "chance": chance[i],
                "text": mine[i][:_MOST_TEXT],
                "train_id": str(asked.train.ids[row]),
                "train_text": texts[row][:_MOST_TEXT],
            }
        )
    table, found = pd.DataFrame(lines), [line["found"] for line in lines]
    order = table["found"].map({way: i for i, way in enumerate(WAYS)}).fillna(len(WAYS))
    table = table.assign(order=order).sort_values(
        ["order", "share", "influence"], ascending=[True, False, False], kind="stable"
    )
    table = table.drop(columns="order").reset_index(drop=True)
    wrong = [
        contamination.way(o, least, 0.0 if bad else None, most)
        for o, bad in zip(words[len(mine) :], accused.tolist(), strict=True)
    ]
    shown = table[table["found"].notna()].head(top)
    return {
        "ngram": ngram,
        "overlap": least,
        "false_positives": most,
        "short": sum(o.words < ngram for o in words[: len(mine)]),
        **asdict(Share.of(sum(how is not None for how in found), len(found))),
        "ways": {
            way: {
                "count": found.count(way),
                "unseen": asdict(Share.of(wrong.count(way), len(wrong))) if wrong else None,
            }
            for way in WAYS
        },
        "unseen": asdict(Share.of(sum(how is not None for how in wrong), len(wrong)))
        if wrong
        else None,
        "rows": shown.to_dict("records"),
    }, table


def _nearest(asked: Asked, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return how near the nearest training text comes to each text in the last layer, and which.

    A text in which nothing can be learned comes nowhere near.
    """
    train = word_training(
        asked.model, asked.train, device=asked.device, batch_size=asked.batch_size
    )
    query = word_texts(
        asked.model, [""] * len(texts), texts, device=asked.device, batch_size=asked.batch_size
    )
    passes = -(-len(query.rows) // query.rows.batch_size)
    count = stage(asked.progress, "comparing influence", passes * len(train.rows))
    near, rows = nearest(asked.model.module, CausalLM(), query.rows, train.rows, progress=count)
    value, row = np.full(len(texts), -1.0), np.zeros(len(texts), int)
    value[query.kept], row[query.kept] = near.numpy(), train.kept[rows.numpy()]
    return value, row


def _texts(rows: Rows) -> list[str]:
    assert isinstance(rows.features, pd.DataFrame)  # texts are read into a frame
    texts = rows.features[TEXT]
    if PROMPT not in rows.features:
        return list(texts)
    return [joined(p, t) for p, t in zip(rows.features[PROMPT], texts, strict=True)]
