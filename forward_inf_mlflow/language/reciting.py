"""Recite: what does a language model know word for word? Texts, canaries, benchmark items."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from forward_inf_mlflow import asked_record, asked_run, output
from forward_inf_mlflow.asked_run import Answer
from forward_inf_mlflow.data.lineage import DataSet, declared_texts, logged_texts
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.data.texts import TextColumns
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.language import canaries
from forward_inf_mlflow.language.recited import Asked, contaminated, exposed, extracted
from forward_inf_mlflow.planning import require_positive
from forward_inf_mlflow.preparation import choose_device
from forward_inf_mlflow.progress import Progress, silent
from forward_inf_mlflow.record import data_as_dict
from forward_inf_mlflow.registry import load_language_model, resolve
from forward_inf_mlflow.report.recite import render_recitation
from forward_inf_mlflow.tasks import CausalLM

#: Raised when ``recite.json`` changes its shape.
FORMAT = 1
_PARTS = ("extraction", "canaries", "contamination")


@dataclass(frozen=True)
class Recitation(Answer):
    """What a language model knows word for word; ``recite.json`` is its record.

    Of the record's parts "extraction", "canaries" and "contamination" those that were not asked are
    None.

    Attributes:
        tables: The whole tables, by part.
    """

    KIND = "recite"
    KEYS = _PARTS

    tables: Mapping[str, pd.DataFrame]


def recite(
    model_uri: str,
    *,
    train: str | None = None,
    text: str | None = None,
    prompt_column: str | None = None,
    id: str | None = None,
    given: int = 32,
    written: int = 32,
    sample: int = 1000,
    canaries_file: str | Path | None = None,
    candidates: int = 10_000,
    benchmark: str | None = None,
    benchmark_text: str | None = None,
    unseen: str | None = None,
    unseen_text: str | None = None,
    ngram: int = 8,
    overlap: float = 0.8,
    false_positives: float = 0.05,
    top: int = 20,
    device: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    allow_pickle: bool = False,
    experiment: str | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Recitation:
    """Ask a registered language model what it knows word for word; log the answer to MLflow.

    Args:
        model_uri: ``models:/name/3`` or ``models:/name@alias``.
        train: Path or URI of the training texts; None for the version's own logged data.
        text, prompt_column, id: As `tracing.trace`.
        given: Tokens of a training text that the model is given.
        written: Tokens that it must then write word for word.
        sample: Training texts that are asked, drawn at random; 0 for none.
        canaries_file: Planted canaries (see `canaries`); None for none.
        candidates: Secrets that a canary is compared with, at most.
        benchmark: Path or URI of evaluation items; None for none.
        benchmark_text: Column of their text; None for a usual name.
        unseen: Path or URI of texts that the model cannot have seen: what is found among these is
            the rate of false positives. None for none; then influence accuses nobody.
        unseen_text: Column of their text; None for a usual name.
        ngram: Words of an n-gram.
        overlap: The share of an item's n-grams that accuses it.
        false_positives: The share of unseen items that influence may accuse.
        top: Lines that are shown of each part.
        device, batch_size, seed, experiment, out, progress: As `explaining.explain`.
        allow_pickle: Permit pickled weights.

    Raises:
        ForwardInfError: There is no answer; the message says what to do.
    """
    began = time.monotonic()
    require_positive(given=given, written=written, candidates=candidates, ngram=ngram, top=top)
    require_positive(batch_size=batch_size)
    if sample < 0 or not 0 < overlap <= 1 or not 0 < false_positives < 1:
        raise ForwardInfError(
            "sample must not be negative, overlap above 0 and at most 1, and false positives "
            f"between 0 and 1, not {sample}, {overlap:g} and {false_positives:g}"
        )
    if out is not None:
        output.require_writable(Path(out))
    planted = None if canaries_file is None else canaries.read(Path(canaries_file))
    on = choose_device(device)
    version = resolve(model_uri)
    columns = TextColumns(text, prompt_column, id)
    data, empty = declared_texts(train, columns) if train else logged_texts(version, columns)
    items = _named(benchmark, benchmark_text)
    stranger_data = _named(unseen, unseen_text)
    strangers = None if stranger_data is None else stranger_data.rows
    model = load_language_model(version, allow_pickle=allow_pickle)
    model.module.to(on)
    asked = Asked(model, data.rows, on, batch_size, seed, progress or silent)
    notes = [f"the model {note}" for note in model.notes]
    if empty:
        notes.append(f"{empty:,} training texts are empty and were left out")

    with asked_run.begun(version, experiment, Recitation.KIND) as run:
        tables: dict[str, pd.DataFrame] = {}
        parts: dict[str, Any] = dict.fromkeys(_PARTS)
        if sample:
            parts["extraction"], tables["extraction"] = extracted(
                asked, strangers, given, written, sample, top
            )
        if planted is not None:
            parts["canaries"], tables["canaries"] = exposed(asked, planted, candidates, top)
        if items is not None:
            parts["contamination"], tables["contamination"] = contaminated(
                asked, items.rows, strangers, ngram, overlap, false_positives, top
            )
        record = {
            **asked_record.heading(
                Recitation.KIND,
                FORMAT,
                version,
                run,
                model_kind="transformers",
                device=on,
                notes=notes,
            ),
            "data": {
                "train": data_as_dict(data),
                "benchmark": None if items is None else _data(items.rows),
                "unseen": None if strangers is None else _data(strangers),
            },
            "task": CausalLM.name,
            **parts,
            "settings": {"seed": seed, "top": top, "batch_size": batch_size},
            "costs": {
                "rows": len(data.rows),
                "seconds": round(time.monotonic() - began, 3),
            },
            "repeat": asked_record.repeat(
                "recite",
                version,
                {
                    "train": train,
                    "text": text,
                    "prompt_column": prompt_column,
                    "id": id,
                    "given": given,
                    "written": written,
                    "sample": sample,
                    "canaries": None if canaries_file is None else str(canaries_file),
                    "candidates": None if planted is None else candidates,
                    "benchmark": benchmark,
                    "benchmark_text": benchmark_text,
                    "unseen": unseen,
                    "unseen_text": unseen_text,
                    "ngram": None if items is None else ngram,
                    "overlap": None if items is None else overlap,
                    "false_positives": None if items is None else false_positives,
                    "top": top,
                    "device": device,
                    "batch_size": batch_size,
                    "seed": seed,
                    "allow_pickle": allow_pickle,
                },
            ),
        }
        page = render_recitation(record)
        where = asked_run.keep(
            run, version, record, page, tables, data, out=out, metrics=_metrics(record)
        )
    return Recitation(version=version, run_id=run.run_id, page=where, record=record, tables=tables)


def _named(uri: str | None, text: str | None) -> DataSet | None:
    return None if uri is None else declared_texts(uri, TextColumns(text))[0]


def _data(rows: Rows) -> dict[str, Any]:
    return {"uri": rows.uri, "rows": len(rows), "sha256": rows.sha256}


def _metrics(record: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    if record["extraction"]:
        found["extracted_rate"] = record["extraction"]["rate"]
    if record["canaries"]:
        found["canaries_known"] = record["canaries"]["known"]
    if record["contamination"]:
        found["contaminated_rate"] = record["contamination"]["rate"]
        if record["contamination"]["unseen"]:
            found["contaminated_rate_unseen"] = record["contamination"]["unseen"]["rate"]
    return found
