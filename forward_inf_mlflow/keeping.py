"""Keeping: rows that a person kept, remembered for every version of a registered model.

A review's run holds ``kept.json``, and a tag of the registered model, ``fi.kept.<run id>``, names
the run and the SHA-256 of that file: all who share the server see it, two reviews at once lose
nothing, and deleting the tag asks again. Whoever may write such tags can silence rows; the worst
that a broken or hostile one does is to be ignored, with a sentence.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient

from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.mlflow_errors import impatient, translate_errors
from forward_inf_mlflow.registry import Version

#: Folder of a review's files among its run's artifacts, and the file of the kept rows.
FOLDER, FILE = "forward_inf_review", "kept.json"
#: What the registered model's tags begin with.
TAG = "fi.kept."
#: What a row can be kept as: what the verdicts are called.
VERDICTS = ("mislabeled", "leaked", "memorized")
_FORMAT = 1
#: Reviews that are read, and bytes of one.
_REVIEWS, _BYTES = 500, 50_000_000
_RUN, _DIGEST = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{40}")
_SHORT = 80


@dataclass(frozen=True)
class Review:
    """The rows that one review kept: pairs of verdict and row digest."""

    run_id: str
    by: str | None
    rows: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Kept:
    """All reviews that a registered model names.

    Attributes:
        reviews: Those that could be read.
        ignored: A sentence for each that could not.
    """

    reviews: tuple[Review, ...] = ()
    ignored: tuple[str, ...] = ()

    def of(self, verdict: str, digests: np.ndarray) -> np.ndarray:
        """Return which rows ``(n,)``, by their digests, are kept although so accused; bool."""
        kept = {digest for one in self.reviews for name, digest in one.rows if name == verdict}
        return np.fromiter((digest in kept for digest in digests), dtype=bool, count=len(digests))

    def any_of(self, digests: np.ndarray) -> np.ndarray:
        """Return which rows ``(n,)`` are kept, whatever they were accused of; bool."""
        masks = [self.of(verdict, digests) for verdict in VERDICTS]
        return np.asarray(np.any(masks, axis=0))

    def summary(self, digests: np.ndarray) -> dict[str, Any] | None:
        """Return what the record says of them; None where there is nothing to say.

        Args:
            digests: ``(n,)`` of the training rows.
        """
        here = set(digests.tolist())
        reviews = [
            {"run_id": one.run_id, "by": one.by, "rows": count}
            for one in self.reviews
            if (count := len({digest for _, digest in one.rows} & here))
        ]
        if not reviews and not self.ignored:
            return None
        rows = int(self.any_of(digests).sum())
        return {
            "rows": rows,
            **{verdict: int(self.of(verdict, digests).sum()) for verdict in VERDICTS},
            "reviews": reviews,
            "ignored": list(self.ignored),
            "sentence": _sentence(rows, reviews) if reviews else None,
        }


def _sentence(rows: int, reviews: Sequence[Mapping[str, Any]]) -> str:
    runs = [
        f"{one['run_id']}{' by ' + one['by'] if one['by'] else ''} ({one['rows']:,})"
        for one in reviews[:5]
    ]
    more = f" and {len(reviews) - 5:,} more" if len(reviews) > 5 else ""
    return (
        f"{rows:,} training row{'s are' if rows > 1 else ' is'} not named again as what a person "
        f"looked at and kept, in review run {', '.join(runs)}{more}; a kept label counts as right"
    )


def kept_file(
    rows: Sequence[tuple[str, str, str]], *, version: Version, audit_run: str, by: str | None
) -> bytes:
    """Return the content of ``kept.json``; rows are verdict, digest and id."""
    content = {
        "format": _FORMAT,
        "model": version.uri,
        "audit_run": audit_run,
        "by": by,
        "rows": [dict(zip(("verdict", "digest", "id"), row, strict=True)) for row in rows],
    }
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def remember(version: Version, run_id: str, content: bytes) -> None:
    """Name a review's ``kept.json``, logged to its run before, in a tag of the registered model."""
    with translate_errors():
        MlflowClient().set_registered_model_tag(
            version.name, f"{TAG}{run_id}", hashlib.sha256(content).hexdigest()
        )


def recall(version: Version) -> Kept:
    """Read what reviews of any version of this registered model kept.

    Raises:
        TrackingError: The server cannot be reached or refuses.
    """
    with translate_errors(), impatient():
        tags = MlflowClient().get_registered_model(version.name).tags
    named = {key.removeprefix(TAG): value for key, value in tags.items() if key.startswith(TAG)}
    reviews: list[Review] = []
    ignored: list[str] = []
    for run_id, sha256 in sorted(named.items())[:_REVIEWS]:
        try:
            reviews.append(_review(run_id, str(sha256)))
        except _UnreadableError as error:
            ignored.append(
                f"the tag {TAG}{run_id[:_SHORT]} of the registered model was ignored, {error}: "
                "delete it, or decide about these rows again"
            )
    if len(named) > _REVIEWS:
        ignored.append(f"only the first {_REVIEWS} of {len(named):,} reviews were read")
    return Kept(tuple(reviews), tuple(ignored))


class _UnreadableError(Exception):
    """Why a review does not count, in words that follow a comma."""


def _review(run_id: str, sha256: str) -> Review:
    if not _RUN.fullmatch(run_id):
        raise _UnreadableError("since it names no run")
    content = _content(run_id)
    if hashlib.sha256(content).hexdigest() != sha256.strip().lower():
        raise _UnreadableError(f"since {FILE} of that run is not the one that it was set for")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise _UnreadableError(f"since {FILE} of that run is not JSON") from None
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise _UnreadableError(f"since {FILE} of that run has another format")
    rows = found.get("rows")
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise _UnreadableError(f"since {FILE} of that run holds what are no rows")
    by = found.get("by")
    return Review(
        run_id,
        by[:_SHORT] if isinstance(by, str) and by else None,
        frozenset((row["verdict"], row["digest"]) for row in rows),
    )


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and row.get("verdict") in VERDICTS
        and isinstance(digest := row.get("digest"), str)
        and _DIGEST.fullmatch(digest) is not None
    )


def _content(run_id: str) -> bytes:
    client = MlflowClient()
    try:
        with translate_errors(), impatient(), tempfile.TemporaryDirectory() as folder:
            sizes = {f.path: f.file_size for f in client.list_artifacts(run_id, FOLDER)}
            path = f"{FOLDER}/{FILE}"
            if path not in sizes:
                raise _UnreadableError(f"since that run has no {FILE}")
            if (sizes[path] or 0) > _BYTES:
                raise _UnreadableError(f"since {FILE} of that run is larger than any review's")
            return Path(client.download_artifacts(run_id, path, folder)).read_bytes()
    except ForwardInfError as error:  # the run is gone, or its artifacts are
        raise _UnreadableError(f"since that run cannot be read ({error})") from None
