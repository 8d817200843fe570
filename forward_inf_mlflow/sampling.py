"""Sampling: training rows for a person to look at, as a file to fill in and a page that shows them.

Neither says which rows the audit suspects: who knows that sees what they expect.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forward_inf_mlflow.audited_data import audited_data
from forward_inf_mlflow.data.rows import Rows, as_table
from forward_inf_mlflow.decisions import FEATURE, harmless
from forward_inf_mlflow.detect.verified import draw, strata
from forward_inf_mlflow.errors import ForwardInfError, TrackingError
from forward_inf_mlflow.found_audit import FoundAudit, find_audit, require_sha256
from forward_inf_mlflow.record import measures_of
from forward_inf_mlflow.registry import Version, resolve
from forward_inf_mlflow.report.sample import render_sample
from forward_inf_mlflow.report.thumbnails import image_shape, thumbnail

#: Rows that are worth looking at.
FEWEST = 10
#: Of a row's values so many are written beside it, and are shown.
SHOWN = 40
#: Columns of the file that a person fills in; the training row's features follow.
COLUMNS = ("row_id", "given_label", "answer", "audit_run", "audit_sha256", "draw")
#: Pixels of a picture's longest side.
_SIDE = 160


@dataclass(frozen=True)
class Sample:
    """Rows that were drawn for a person to look at.

    Attributes:
        version: Whose training rows.
        rows: How many.
        file: The csv file to fill in.
        page: The HTML page that shows them, None where they cannot be read.
        problem: Why they cannot, a sentence; None where there is a page.
    """

    version: Version
    rows: int
    file: Path
    page: Path | None
    problem: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the result for ``--json``."""
        return {
            "model": self.version.uri,
            "file": str(self.file),
            "page": None if self.page is None else str(self.page),
            "rows": self.rows,
            "problem": self.problem,
        }


def sample_review(
    model_uri: str,
    out: str | Path,
    *,
    rows: int = 50,
    seed: int = 0,
    audit_sha256: str | None = None,
) -> Sample:
    """Draw training rows for a person to look at, into a csv file with an empty column "answer".

    The rows stand in random order. Where the training data can still be read, a page beside the
    file shows each of them: its picture, its texts or its values; these stand in the file too.

    Args:
        model_uri: ``models:/name/3`` or ``models:/name@alias``.
        out: The csv file; the page has its name and ends in ``.html``. Neither may exist.
        rows: How many, at most all that there are.
        seed: Of the draw.
        audit_sha256: SHA-256 of ``audit.json`` as the audit gave it, past the server; nothing is
            drawn from another. None draws from what the server has.

    Raises:
        TrackingError: There is no finished audit of this version, or it was changed.
        ForwardInfError: A file exists already, or cannot be written.
    """
    require_sha256(audit_sha256)
    if rows < FEWEST:
        raise ForwardInfError(f"{rows} rows say next to nothing: look at {FEWEST} at least (-n)")
    path = Path(out)
    page = path.with_suffix(".html")
    if page == path:
        raise ForwardInfError(f"{path} is the page that shows the rows: name a csv file")
    for file in (path, page):
        if file.exists():
            raise ForwardInfError(f"{file} exists already and may hold answers: name another file")
    version = resolve(model_uri)
    audit = find_audit(version)
    audit.require_pinned(version, audit_sha256)
    scores = scores_of(audit)
    chosen = scores.iloc[draw(strata_of(scores), rows, seed)].reset_index(drop=True)
    table = pd.DataFrame(
        {
            "row_id": chosen["id"],
            "given_label": chosen["label"],
            "answer": "",
            "audit_run": audit.run_id,
            "audit_sha256": audit.sha256,
            "draw": f"{rows}-{seed}",
        }
    )
    values, pictures, problem = _looks(version, audit.record, chosen["id"].astype(str))
    files = {
        path: harmless(table.join(values.add_prefix(FEATURE)))
        .to_csv(index=False, lineterminator="\r\n")
        .encode()
    }
    if problem is None:
        ids, labels = table["row_id"].tolist(), table["given_label"].tolist()
        html = render_sample(version.uri, path.name, ids, labels, pictures, values)
        files[page] = html.encode()
    _write(files)
    return Sample(version, len(table), path, page if problem is None else None, problem)


def _looks(
    version: Version, record: Mapping[str, Any], ids: pd.Series
) -> tuple[pd.DataFrame, list[bytes | None], str | None]:
    """Return what some training rows look like.

    Returns:
        Their values, a column each; their pictures, None of rows that are none; and why there is
        neither, a sentence.
    """
    try:
        with audited_data(version, record) as found:
            rows = found.data.rows
            where = pd.Series(np.arange(len(rows)), index=rows.ids)[ids].to_numpy()
            some = rows.take(where)
            return _values(some), _pictures(some), None
    except KeyError:
        problem = "the training data have other ids than the audit"
    except ForwardInfError as error:
        problem = str(error)
    return pd.DataFrame(index=ids.index), [None] * len(ids), problem


def _values(rows: Rows) -> pd.DataFrame:
    """Return the texts and the values of rows, the first of each."""
    parts = [as_table(rows.features)]
    if rows.texts is not None:
        parts.insert(0, rows.texts)
    return pd.concat(parts, axis=1).iloc[:, :SHOWN].rename(columns=str)


def _pictures(rows: Rows) -> list[bytes | None]:
    """Return the pictures of rows that are images."""
    features = rows.features
    if isinstance(features, pd.DataFrame) or not image_shape(features.shape[1:]):
        return [None] * len(rows)
    return [thumbnail(image, size=_SIDE) for image in features]


def _write(files: Mapping[Path, bytes]) -> None:
    """Write files, all of them or none."""
    with ExitStack() as aside:
        try:
            for path, content in files.items():
                new = path.with_name(f".{path.name}.part")
                aside.callback(new.unlink, missing_ok=True)
                new.write_bytes(content)
            for path in files:
                path.with_name(f".{path.name}.part").replace(path)
        except OSError as error:
            raise ForwardInfError(f"cannot write {path}: {error.strerror or error}") from error


def scores_of(audit: FoundAudit) -> pd.DataFrame:
    """Return one row per training row, as the audit wrote it.

    Raises:
        ForwardInfError: The rows have no labels.
        TrackingError: The table is gone, was changed, or lacks a column.
    """
    if not measures_of(audit.record)["mislabeled"].applies:
        raise ForwardInfError("these rows have no labels, so there is nothing to review of them")
    content = audit.fetch("scores.parquet")
    if content is None:
        raise TrackingError(f"run {audit.run_id} has lost its scores.parquet: audit again")
    scores = pd.read_parquet(io.BytesIO(content))
    needed = {"id", "label", "mislabeled", "mislabeled_certain", "mislabeled_suspicion"}
    if missing := sorted(needed - set(scores.columns)):
        raise TrackingError(
            f"scores.parquet of run {audit.run_id} lacks {', '.join(missing)}: audit again"
        )
    return scores


def strata_of(scores: pd.DataFrame) -> np.ndarray:
    """Return the stratum of suspicion of each training row, ``(n,)``."""
    score, certain, named = (
        scores[name].to_numpy()
        for name in ("mislabeled_suspicion", "mislabeled_certain", "mislabeled")
    )
    return strata(score.astype(np.float64), certain.astype(bool), named.astype(bool))
