"""What a reader recognizes rows by: pictures of images, texts, and the first columns of tables."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from forward_inf_mlflow.data.rows import Decoded, Rows
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.portraits import portraits_of
from forward_inf_mlflow.preparation import Problem, prepare
from forward_inf_mlflow.report import Portraits, rows_to_show

N = 30
WANTED = {"train": ["r3", "r9"], "query": ["r5"]}


def problem(shape: tuple[int, ...], texts: pd.DataFrame | None = None) -> Problem:
    x = np.random.default_rng(0).random((N, *shape)).astype(np.float32)
    ids = np.array([f"r{i}" for i in range(N)])
    rows = Rows(x, np.arange(N) % 2, ids, None, "f", "0", texts)
    module = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 2))
    audited = AuditedModel(module, lambda a: np.asarray(a), "pt2", lambda a: np.asarray(a))
    cpu = torch.device("cpu")
    return prepare(audited, rows, rows.take(np.arange(20)), task="auto", device=cpu, batch_size=9)


def test_images_get_pictures_of_the_rows_that_are_shown_alone() -> None:
    found = portraits_of(problem((1, 8, 8)), WANTED)
    assert set(found.pictures) == {"train:r3", "train:r9", "query:r5"}
    assert all(png.startswith(b"\x89PNG") for png in found.pictures.values())
    assert found.values == {}


def flat(folders: list[str]) -> Problem:
    """Return pictures in folders, whose pixels a model with two outputs reads flat."""
    x = np.random.default_rng(0).integers(0, 256, (N, 8, 8), dtype=np.uint8)
    labels = np.array(folders)[np.arange(N) % len(folders)]
    decoded = Decoded(N, np.arange(N), {}, 0, np.unique(labels), "")
    ids = np.array([f"r{i}" for i in range(N)])
    rows = Rows(x, labels, ids, None, "f", "0", decoded=decoded)

    def read(features: Any) -> np.ndarray:
        return np.asarray(features, np.float32).reshape(len(features), -1)

    audited = AuditedModel(nn.Linear(64, 2), read, "pt2", read)
    cpu = torch.device("cpu")
    return prepare(audited, rows, rows, task="auto", device=cpu, batch_size=9)


def test_pictures_are_shown_even_where_the_model_reads_them_flat() -> None:
    found = portraits_of(flat(["dog", "cat"]), WANTED)
    assert set(found.pictures) == {"train:r3", "train:r9", "query:r5"}


def test_folders_are_outputs_in_sorted_order_or_by_position() -> None:
    named = flat(["dog", "cat"])
    assert named.classes is not None
    assert named.classes.tolist() == ["cat", "dog"]
    assert named.train.targets.tolist() == [1, 0] * (N // 2)
    assert "in sorted order, cat to dog" in named.notes[-1]
    placed = flat(["1", "0"])
    assert placed.train.targets.tolist() == [1, 0] * (N // 2)
    assert not any("sorted" in note for note in placed.notes)
    with pytest.raises(DataError, match="3 folders with pictures and the model 2 outputs"):
        flat(["dog", "cat", "cow"])


def test_rows_of_numbers_get_values_that_may_be_compared() -> None:
    posed = problem((64,))
    found = portraits_of(posed, WANTED)
    assert found.pictures == {}
    assert set(found.values) == {"train:r3", "train:r9", "query:r5"}
    names, values = zip(*found.values["train:r9"], strict=True)
    assert list(names) == [str(i) for i in range(40)]
    assert values[7] == posed.train_rows.features[9, 7]  # type: ignore[call-overload, index]


def test_texts_that_the_model_does_not_read_stand_for_what_it_reads() -> None:
    texts = pd.DataFrame({"text": [f"words {i} " + "x" * 3000 for i in range(N)]})
    found = portraits_of(problem((64,), texts), WANTED)
    ((name, value),) = found.values["query:r5"]
    assert name == "text"
    assert str(value).startswith("words 5 x")
    assert len(str(value)) == 2000


def test_columns_of_text_stand_before_numbers() -> None:
    frame = pd.DataFrame({"a": np.arange(N), "town": ["x", "y"] * (N // 2), "b": np.ones(N)})
    rows = Rows(frame, np.arange(N) % 2, np.arange(N).astype(str), None, "f", "0")
    audited = AuditedModel(nn.Linear(2, 2), _numbers, "pt2", _numbers)
    cpu = torch.device("cpu")
    posed = prepare(audited, rows, rows, task="auto", device=cpu, batch_size=9)
    found = portraits_of(posed, {"train": ["3"], "query": []})
    assert found.values == {"train:3": [("town", "y"), ("a", 3), ("b", 1.0)]}
    assert json.loads(found.table()["values"][0]) == [["town", "y"], ["a", 3], ["b", 1.0]]


def _numbers(frame: Any) -> np.ndarray:
    return np.asarray(frame[["a", "b"]], np.float32)


@pytest.mark.parametrize("shape", [(1, 8, 8), (64,)])
def test_portraits_are_read_as_they_were_kept(shape: tuple[int, ...]) -> None:
    found = portraits_of(problem(shape), WANTED)
    again = Portraits.read(found.table())
    assert again.pictures == found.pictures
    assert {key: list(map(tuple, v)) for key, v in again.values.items()} == found.values


def test_what_is_shown_are_flagged_rows_their_copies_and_who_speaks_for_them() -> None:
    flagged = pd.DataFrame(
        {
            "verdict": ["leaked", "memorized"],
            "row_id": ["r1", "r2"],
            "query_id": ["r5", None],
            "kind": "near",
        }
    )
    scores = pd.DataFrame(
        {
            "id": ["r6", "r7"],
            "label": [0, 1],
            "copy_of": ["r7", ""],
            "copy_conflicts": [True, False],
        }
    )
    influence = pd.DataFrame(
        {
            "asked": ["query", "query", "query"],
            "query_id": ["r5", "r5", "r8"],
            "kind": "proponent",
            "rank": [1, 2, 1],
            "train_id": ["r9", "r10", "r11"],
            "influence": [0.5, -0.5, 1.0],
        }
    )
    found = rows_to_show(flagged, scores, influence)
    assert {role: set(ids) for role, ids in found.items()} == {
        "train": {"r1", "r2", "r6", "r7", "r9"},
        "query": {"r5"},
    }
    empty = rows_to_show(flagged.head(0), scores.head(0), influence.head(0))
    assert empty == {"train": [], "query": []}
    assert portraits_of(problem((8, 8)), empty) == Portraits()
