"""Kept rows in tags of the registered model: read if they are whole, else ignored and named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from forward_inf_mlflow import keeping
from forward_inf_mlflow.keeping import FILE, FOLDER, TAG, Kept, Review, kept_file, recall, remember
from forward_inf_mlflow.registry import Version

ROW = {"verdict": "mislabeled", "digest": "ab" * 20, "id": "7"}
VERSION = Version("m", "3", 0, "", None, None)


@pytest.fixture(scope="module", autouse=True)
def model(shared_store: Path) -> None:
    MlflowClient().create_registered_model("m")


def logged(content: bytes) -> str:
    with mlflow.start_run() as run:
        mlflow.log_text(content.decode(), f"{FOLDER}/{FILE}")
    return str(run.info.run_id)


def forget() -> None:
    for key in MlflowClient().get_registered_model("m").tags:
        MlflowClient().delete_registered_model_tag("m", key)


def test_what_reviews_kept_is_found_by_verdict_and_digest_from_any_version() -> None:
    forget()
    runs = []
    for rows, by in (
        ([("mislabeled", "ab" * 20, "7")], "A. Owner"),
        ([("leaked", "cd" * 20, "7")], None),
    ):
        content = kept_file(rows, version=VERSION, audit_run="r", by=by)
        runs.append(logged(content))
        remember(VERSION, runs[-1], content)
    kept = recall(VERSION)
    assert not kept.ignored
    digests = np.array(["cd" * 20, "ab" * 20, "ef" * 20], dtype=object)
    assert kept.of("mislabeled", digests).tolist() == [False, True, False]
    assert kept.of("leaked", digests).tolist() == [True, False, False]
    assert kept.of("memorized", digests).tolist() == [False, False, False]
    assert kept.any_of(digests).tolist() == [True, True, False]
    found = kept.summary(digests)
    assert found is not None
    assert (found["rows"], found["mislabeled"], found["leaked"], found["memorized"]) == (2, 1, 1, 0)
    assert {one["run_id"] for one in found["reviews"]} == set(runs)
    assert all(run in found["sentence"] for run in runs)
    assert kept.summary(digests[2:]) is None, "none of them is here"
    MlflowClient().delete_registered_model_tag("m", f"{TAG}{runs[0]}")
    assert [one.run_id for one in recall(VERSION).reviews] == [runs[1]], "deleted: asked again"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "has another format"),
        (b'{"format": 2, "rows": []}', "has another format"),
        (b'{"format": 1}', "holds what are no rows"),
        (json.dumps({"format": 1, "rows": {"a": 1}}).encode(), "holds what are no rows"),
        (json.dumps({"format": 1, "rows": [ROW, 3]}).encode(), "holds what are no rows"),
        (json.dumps({"format": 1, "rows": [{**ROW, "verdict": ["x"]}]}).encode(), "no rows"),
        (json.dumps({"format": 1, "rows": [{**ROW, "digest": "<b>"}]}).encode(), "no rows"),
        (json.dumps({"format": 1, "rows": [{**ROW, "digest": 7}]}).encode(), "no rows"),
    ],
)
def test_what_is_no_review_is_ignored_with_a_sentence(content: bytes, says: str) -> None:
    forget()
    run_id = logged(content)
    remember(VERSION, run_id, content)
    kept = recall(VERSION)
    assert not kept.reviews
    [sentence] = kept.ignored
    assert says in sentence
    assert run_id in sentence
    assert "\n" not in sentence


def test_a_run_that_is_gone_or_too_large_or_another_file_is_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forget()
    content = json.dumps({"format": 1, "rows": [ROW], "by": 3}).encode()
    run_id = logged(content)
    remember(VERSION, run_id, content)
    [review] = recall(VERSION).reviews
    assert review == Review(run_id, None, frozenset({("mislabeled", "ab" * 20)}))
    monkeypatch.setattr(keeping, "_BYTES", 10)
    assert "larger than any review's" in recall(VERSION).ignored[0]
    monkeypatch.undo()
    sha256 = hashlib.sha256(b"else").hexdigest()
    MlflowClient().set_registered_model_tag("m", f"{TAG}{run_id}", sha256)
    assert "not the one that it was set for" in recall(VERSION).ignored[0]
    MlflowClient().set_registered_model_tag("m", f"{TAG}{'0' * 32}", sha256)
    assert "that run cannot be read" in " ".join(recall(VERSION).ignored)


def test_many_reviews_are_bounded_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    monkeypatch.setattr(keeping, "_REVIEWS", 1)
    for number in range(3):
        MlflowClient().set_registered_model_tag("m", f"{TAG}x{number}", "1")
    assert recall(VERSION).ignored[-1] == "only the first 1 of 3 reviews were read"
    assert Kept().summary(np.array(["a"], dtype=object)) is None


def test_a_name_that_somebody_gave_is_short_and_text() -> None:
    long: Any = {"format": 1, "rows": [ROW], "by": "<b>" * 100}
    forget()
    content = json.dumps(long).encode()
    remember(VERSION, logged(content), content)
    [review] = recall(VERSION).reviews
    assert review.by is not None
    assert len(review.by) == 80
