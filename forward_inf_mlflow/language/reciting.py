"""Recite: what does a language model know word for word? Texts, canaries, benchmark items."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from forward_inf_mlflow import asked_run, output, tracking
from forward_inf_mlflow.command_line import command_line
from forward_inf_mlflow.data.fetch import public_uri
from forward_inf_mlflow.data.lineage import DataSet, declared_texts, logged_texts
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.data.texts import PROMPT, TEXT, TextColumns
from forward_inf_mlflow.errors import DataError, ForwardInfError
from forward_inf_mlflow.language import canaries, contamination
from forward_inf_mlflow.language.contamination import WAYS
from forward_inf_mlflow.language.extraction import Extraction, Share, extract
from forward_inf_mlflow.language.wording import joined, word_texts, word_training
from forward_inf_mlflow.models.transformer import Transformer
from forward_inf_mlflow.planning import require_positive
from forward_inf_mlflow.preparation import choose_device
from forward_inf_mlflow.progress import Progress, silent, stage
from forward_inf_mlflow.record import data_as_dict, tools, write_record
from forward_inf_mlflow.registry import Version, load_language_model, resolve
from forward_inf_mlflow.report.recite import render_recitation
from forward_inf_mlflow.screen import nearest
from forward_inf_mlflow.tasks import CausalLM

#: Raised when ``recite.json`` changes its shape.
FORMAT = 1
#: Folder of the artifacts in the run.
FOLDER = "forward_inf_recite"
#: The page, and what it was made of; the latter is written last.
PAGE, RECORD = "recite.html", "recite.json"
_PARTS = ("extraction", "canaries", "contamination")
#: Characters of a text in the record.
_MOST_TEXT = 1000


@dataclass(frozen=True)
class Recitation:
    """What a language model knows word for word.

    Attributes:
        version: The version that was asked.
        run_id: The MLflow run that keeps the answer.
        page: Its address inside the MLflow UI.
        record: The content of ``recite.json``; of its parts "extraction", "canaries" and
            "contamination" those that were not asked are None.
        tables: The whole tables, by part.
    """

    version: Version
    run_id: str
    page: str
    record: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]

    @property
    def artifact(self) -> str:
        """Return the page's path among the run's artifacts."""
        return f"{FOLDER}/{PAGE}"

    def as_dict(self) -> dict[str, Any]:
        """Return the result for ``--json``."""
        keys = (*_PARTS, "costs", "data", "notes", "repeat")
        return {
            "model": self.version.uri,
            "run_id": self.run_id,
            "page": self.page,
            **{key: self.record[key] for key in keys},
        }


@dataclass(frozen=True)
class _Asked:
    """The model and its texts, and how they are read."""

    model: Transformer
    train: Rows
    device: torch.device
    batch_size: int | None
    seed: int
    progress: Progress


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
    asked = _Asked(model, data.rows, on, batch_size, seed, progress or silent)
    notes = list(model.notes)
    if empty:
        notes.append(f"{empty:,} training texts are empty and were left out")

    with asked_run.begun(version, experiment, "recite") as run:
        tables: dict[str, pd.DataFrame] = {}
        extraction = told = exposed = None
        if sample:
            extraction, tables["extraction"] = _extraction(
                asked, strangers, given, written, sample, top
            )
        if planted is not None:
            exposed, tables["canaries"] = _canaries(asked, planted, candidates, top)
        if items is not None:
            told, tables["contamination"] = _contamination(
                asked, items.rows, strangers, ngram, overlap, false_positives, top
            )
        record = {
            "format": FORMAT,
            "kind": "recite",
            "finished_at": int(time.time() * 1000),
            "tool": tools(str(on)),
            "model": {**asdict(version), "uri": version.uri, "kind": "transformers"},
            "notes": notes,
            "run": asdict(run),
            "data": {
                "train": data_as_dict(data),
                "benchmark": None if items is None else _data(items.rows),
                "unseen": None if strangers is None else _data(strangers),
            },
            "task": CausalLM.name,
            "extraction": extraction,
            "canaries": exposed,
            "contamination": told,
            "settings": {"seed": seed, "top": top, "batch_size": batch_size},
            "costs": {
                "rows": len(data.rows),
                "seconds": round(time.monotonic() - began, 3),
            },
            "repeat": command_line(
                "recite",
                version.uri,
                {
                    "train": public_uri(train) if train else None,  # a signed URL is a password
                    "text": text,
                    "prompt_column": prompt_column,
                    "id": id,
                    "given": given,
                    "written": written,
                    "sample": sample,
                    "canaries": None if canaries_file is None else str(canaries_file),
                    "candidates": None if planted is None else candidates,
                    "benchmark": public_uri(benchmark) if benchmark else None,
                    "benchmark_text": benchmark_text,
                    "unseen": public_uri(unseen) if unseen else None,
                    "unseen_text": unseen_text,
                    "ngram": None if items is None else ngram,
                    "overlap": None if items is None else overlap,
                    "false_positives": None if items is None else false_positives,
                    "top": top,
                    "device": None if device == "auto" else device,
                    "batch_size": batch_size,
                    "seed": seed,
                    "allow_pickle": allow_pickle,
                },
            ),
        }
        page = render_recitation(record)
        with asked_run.saved(run, FOLDER, out) as folder:
            for name, table in tables.items():
                table.to_parquet(folder / f"{name}.parquet", index=False)
            (folder / PAGE).write_text(page, encoding="utf-8")
            (folder / RECORD).write_bytes(write_record(record))
            tracking.link_inputs(run, version, data)
            tracking.log_metrics(run, version, data, _metrics(record))
    return Recitation(
        version=version,
        run_id=run.run_id,
        page=f"{run.link()}/artifacts/{FOLDER}/{PAGE}",
        record=record,
        tables=tables,
    )


def _extraction(
    asked: _Asked, strangers: Rows | None, given: int, written: int, sample: int, top: int
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


def _canaries(
    asked: _Asked, planted: list[canaries.Canary], most: int, top: int
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


def _contamination(
    asked: _Asked,
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


def _nearest(asked: _Asked, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
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


def _named(uri: str | None, text: str | None) -> DataSet | None:
    return None if uri is None else declared_texts(uri, TextColumns(text))[0]


def _texts(rows: Rows) -> list[str]:
    assert isinstance(rows.features, pd.DataFrame)  # texts are read into a frame
    texts = rows.features[TEXT]
    if PROMPT not in rows.features:
        return list(texts)
    return [joined(p, t) for p, t in zip(rows.features[PROMPT], texts, strict=True)]


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
