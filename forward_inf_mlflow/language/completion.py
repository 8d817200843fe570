"""Completion: what is asked of a language model, how it is answered, and the answer as a table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.data.texts import PROMPT, TEXT
from forward_inf_mlflow.directions import Direction
from forward_inf_mlflow.directions.moves import trainable
from forward_inf_mlflow.language.traced import Traced
from forward_inf_mlflow.language.wording import Worded, joined, word_query, word_training
from forward_inf_mlflow.memory import room
from forward_inf_mlflow.models.transformer import Transformer
from forward_inf_mlflow.planner import Job, Plan, plan
from forward_inf_mlflow.probe import Which
from forward_inf_mlflow.registry import Version
from forward_inf_mlflow.shards import digest_arrays, digest_module
from forward_inf_mlflow.tasks.causal_lm import IGNORED
from forward_inf_mlflow.version import __version__

#: Of a text, in the record and in the table.
_MOST_TEXT = 2000
#: A word matters where it has this share of what the most important one has.
_MATTERS = 0.25
#: A share of unknown words beyond which training texts and tokenizer look like strangers.
_STRANGE = 0.2


@dataclass(frozen=True)
class Asked:
    """A question: the model, its training texts as tokens, and the completion as one more row."""

    model: Transformer
    train: Worded
    query: Worded


def asked(
    model: Transformer,
    rows: Rows,
    prompt: str,
    completion: str,
    *,
    device: torch.device,
    batch_size: int | None,
) -> Asked:
    """Turn all texts into tokens.

    Raises:
        DataError: They are empty, or no texts of this model.
    """
    query = word_query(model, prompt, completion, device)
    return Asked(model, word_training(model, rows, device=device, batch_size=batch_size), query)


def planned(
    question: Asked,
    *,
    direction: Direction | None,
    readout: Which,
    weight_decay: float | None,
    candidates: int,
    seed: int,
) -> Plan:
    """Choose what nobody has chosen, and say what it costs in forward-equivalents of one row."""
    rows = question.train.rows
    job = Job(
        rows=len(rows),
        groups=1,
        queries=1,
        parameters=sum(p.numel() for p in trainable(question.model.module).values()),
        saturates=True,
        known=0.0,
        penalty=weight_decay,
        device=rows.device.type,
        memory=room(rows.device),
    )
    found = plan(job, direction=direction, readout=readout, seed=seed)
    count = min(candidates, len(rows))
    made, swept = found.costs["direction"], 2 * len(rows) + 2 * count
    why = f"{found.why}; {count:,} texts that the last layer points to are read token by token"
    return Plan(
        found.direction,
        found.readout,
        why,
        {"direction": made, "sweep": swept, "total": made + swept},
        count,
    )


def trace_key(version: Version, question: Asked, chosen: Plan) -> dict[str, object]:
    """Return all that the pieces of a trace depend on."""
    train, query = question.train.rows, question.query.rows
    return {
        "what": "trace",
        "model": [version.uri, version.creation_timestamp, digest_module(question.model.module)],
        "train": digest_arrays(train.inputs, train.targets),
        "query": digest_arrays(query.inputs, query.targets),
        "direction": chosen.direction.describe(),
        "readout": chosen.readout,
        "candidates": chosen.candidates,
        "batch_size": train.batch_size,
        "device": [str(train.device), room(train.device)],
        "threads": torch.get_num_threads(),
        "versions": [__version__, torch.__version__],
    }


@torch.no_grad()
def said(question: Asked, prompt: str, completion: str) -> dict[str, Any]:
    """Return what the model makes of the completion: its tokens, and what it would rather say."""
    query = question.query
    text = joined(prompt, completion)
    logits = question.model.module(query.rows.inputs.to(query.rows.device))[0].double().cpu()
    targets = query.rows.targets[0]
    p = torch.softmax(logits, -1)
    tokens, chance = [], 1.0
    for place in torch.nonzero(targets != IGNORED)[:, 0].tolist():
        start, end = query.spans[0][place]
        best, mine = int(p[place].argmax()), float(p[place, targets[place]])
        chance *= mine
        tokens.append(
            {
                "text": text[start:end],
                "probability": mine,
                "best": str(question.model.tokenizer.decode([best])),
                "best_probability": float(p[place, best]),
            }
        )
    return {
        "prompt": prompt,
        "text": completion,
        "probability": chance,
        "tokens": tokens,
    }


def traced_table(question: Asked, rows: Rows, found: Traced) -> pd.DataFrame:
    """Return one line per candidate; see `tracing.Trace`."""
    assert isinstance(rows.features, pd.DataFrame)  # texts are read into a frame
    prompts = rows.features.get(PROMPT)
    lines = []
    for rank, position in enumerate(found.rows.tolist()):
        row = int(question.train.kept[position])
        text = rows.features[TEXT].iloc[row]
        if prompts is not None:
            text = joined(prompts.iloc[row], text)
        spans = question.train.spans[position]
        values = found.tokens[rank][: len(spans)]
        counted = (question.train.rows.targets[position][: len(spans)] != IGNORED).numpy()
        lines.append(
            {
                "rank": rank + 1,
                "train_id": str(rows.ids[row]),
                "influence": float(found.influence[rank]),
                "screen": float(found.screen[rank]),
                "features": float(found.features[rank]),
                "text": text[:_MOST_TEXT],
                "source": "" if rows.sources is None else str(rows.sources[row]),
                "tokens": [text[a:b] for (a, b), c in zip(spans, counted, strict=True) if c],
                "token_influence": [float(v) for v in values[counted]],
                "words": words_that_matter(text[:_MOST_TEXT], spans, values),
            }
        )
    return pd.DataFrame(lines)


def words_that_matter(
    text: str, spans: Sequence[tuple[int, int]], values: np.ndarray
) -> list[list[int]]:
    """Return where the words stand, ``[start, end]``, whose tokens changed most."""
    places = [match.span() for match in re.finditer(r"\S+", text)]
    ends = np.array([end for _, end in places])
    worth = np.zeros(len(places))
    for (start, end), value in zip(spans, values.tolist(), strict=False):
        # A token may begin with the blank before its word.
        place = int(np.searchsorted(ends, max(start, end - 1), side="right"))
        if end > start and place < len(places):
            worth[place] += value
    least = _MATTERS * worth.max(initial=0.0)
    return [
        list(span) for span, w in zip(places, worth.tolist(), strict=True) if w > 0 and w >= least
    ]


def notes_of(question: Asked, empty: int, found: Traced) -> list[str]:
    """Return what a reader must know of model and texts."""
    train, notes = question.train, [f"the model {note}" for note in question.model.notes]
    limit = f"{question.model.limit:,} tokens that the model reads"
    if train.cut:
        notes.append(f"{train.cut:,} training texts were cut at the {limit}")
    if empty:
        notes.append(f"{empty:,} training texts are empty and were left out")
    if train.short:
        notes.append(f"{train.short:,} training texts have no token to learn and were left out")
    if train.unknown > _STRANGE:
        notes.append(
            f"the tokenizer has no word for {train.unknown:.0%} of the training texts: are they "
            "what this model was trained on?"
        )
    if question.query.cut:
        notes.append(f"the prompt lost its beginning, so that the question fits into the {limit}")
    if not np.any(found.influence > 0):
        notes.append("no training text speaks for the completion")
    return notes
