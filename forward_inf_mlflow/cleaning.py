"""Cleaning: what a person decided about flagged rows becomes a cleaned data set and a memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput

from forward_inf_mlflow import keeping, tracking
from forward_inf_mlflow.audited_data import audited_data
from forward_inf_mlflow.data.fetch import is_local
from forward_inf_mlflow.data.lineage import Original
from forward_inf_mlflow.data.logging_data import dataset_input
from forward_inf_mlflow.data.picture_rows import read_data
from forward_inf_mlflow.data.reading import Columns, label_column, read_table
from forward_inf_mlflow.data.rewriting import rewrite
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.decisions import Choice, choices, read_filled
from forward_inf_mlflow.errors import DataError, ForwardInfError, TrackingError
from forward_inf_mlflow.found_audit import FoundAudit, audit_of_file, require_sha256
from forward_inf_mlflow.mlflow_errors import translate_errors
from forward_inf_mlflow.registry import Version

#: What was decided and changed, among the review run's artifacts.
RECORD = "review.json"


@dataclass(frozen=True)
class Cleaned:
    """What became of a person's decisions.

    Attributes:
        version: Whose audit they are about.
        audit_run: That audit's run.
        run_id: The run of the review; None for a dry run.
        file: The cleaned data set; None if no row is fixed or dropped.
        original: Where the data set came from.
        before, after: How many rows that has, and the cleaned one.
        changes: One line per training row that is fixed or dropped: row_id, decision, before,
            after (its labels; None for a dropped row).
        kept: How many verdicts will not be given again.
    """

    version: Version
    audit_run: str
    run_id: str | None
    file: Path | None
    original: str
    before: int
    after: int
    changes: list[dict[str, Any]]
    kept: int

    @property
    def fixed(self) -> int:
        """Return how many labels change."""
        return sum(change["decision"] == "fix" for change in self.changes)

    @property
    def dropped(self) -> int:
        """Return how many rows go."""
        return sum(change["decision"] == "drop" for change in self.changes)

    def as_dict(self) -> dict[str, Any]:
        """Return the result for ``--json``."""
        return {
            "model": self.version.uri,
            "audit_run": self.audit_run,
            "run_id": self.run_id,
            "file": None if self.file is None else str(self.file),
            "original": self.original,
            "rows_before": self.before,
            "rows_after": self.after,
            "fixed": self.fixed,
            "dropped": self.dropped,
            "kept": self.kept,
            "changes": self.changes,
        }


def apply_decisions(
    file: str | Path,
    *,
    out: str | Path | None = None,
    train: str | None = None,
    by: str | None = None,
    dry_run: bool = False,
    audit_sha256: str | None = None,
) -> Cleaned:
    """Carry out what a person wrote into ``flagged.csv``; log it to a run of its own.

    Args:
        file: An audit's ``flagged.csv`` with "fix", "drop" or "keep" in its column ``decision``.
        out: The cleaned data set; None for ``<name>-cleaned.<ext>`` beside the original, or in the
            current folder if the original is not a local file. It must not exist.
        train: Where the original is, if not where the audit found it.
        by: Who decided; it stands in the review.
        dry_run: Say what would change, and write nothing.
        audit_sha256: SHA-256 of ``audit.json`` as the audit gave it, past the server; of another
            content nothing is believed. None believes what the server has.

    Raises:
        DataError: A row or decision is not valid, or the data set is no longer what was audited.
        TrackingError: The file is not of the newest audit of its version, or that was changed.
        ForwardInfError: The cleaned data set exists already, or cannot be written.
    """
    require_sha256(audit_sha256)
    path = Path(file)
    table = read_filled(path)
    version, audit = audit_of_file(table, path)
    audit.require_pinned(version, audit_sha256)
    decided = choices(table, _flagged(audit), file=path)
    kept = [(one.verdict, one.digest, one.row_id) for one in decided if one.decision == "keep"]
    with audited_data(version, audit.record, train) as original:
        rows = original.data.rows
        labels, drop, changes = _changes(decided, rows, audit.record, path)
        target = _target(original, out) if changes else None
        found = Cleaned(
            version=version,
            audit_run=audit.run_id,
            run_id=None,
            file=target,
            original=rows.uri,
            before=(whole := len(rows) if rows.decoded is None else rows.decoded.whole),
            after=whole - int(drop.sum()),
            changes=changes,
            kept=len(kept),
        )
        if dry_run:
            return found
        with ExitStack() as stack:
            aside = None if target is None else stack.enter_context(_aside(target))
            if aside is not None:
                placed, dropped = _placed(rows, labels, drop)
                rewrite(original.path, aside, columns=original.columns, labels=placed, drop=dropped)
            run_id = _log(found, original, aside, kept, by)
            if aside is not None and target is not None:
                _place(aside, target)
    return Cleaned(**{**vars(found), "run_id": run_id})


def _flagged(audit: FoundAudit) -> pd.DataFrame:
    content = audit.fetch("flagged.csv")
    if content is None:
        raise TrackingError(f"run {audit.run_id} has lost its flagged.csv: audit again")
    with tempfile.TemporaryDirectory(prefix="forward-inf-") as folder:
        path = Path(folder) / "flagged.csv"
        path.write_bytes(content)
        flagged = read_filled(path)
    if "row_digest" not in flagged:
        raise TrackingError(
            f"flagged.csv of run {audit.run_id} has no digests of rows: audit the version again"
        )
    return flagged


def _changes(
    decided: Sequence[Choice], rows: Rows, record: Mapping[str, Any], file: Path
) -> tuple[dict[int, Any], np.ndarray, list[dict[str, Any]]]:
    """Return new labels by position, the rows to drop ``(n,)``, and both in words."""
    at = {row_id: position for position, row_id in enumerate(rows.ids.tolist())}
    known = set(rows.labels.tolist()) if record.get("task") == "classification" else None
    labels: dict[int, Any] = {}
    drop = np.zeros(len(rows), dtype=bool)
    changes = {}
    if rows.targets is not None and any(one.decision != "keep" for one in decided):
        raise DataError(
            f"the rows of {rows.uri} have several labels each, and such files are not rewritten "
            "here: mend or drop the rows in the file yourself, and write keep beside the others"
        )
    for one in decided:
        position = at.get(one.row_id)
        if position is None or rows.digests[position] != one.digest:
            raise DataError(
                f"row {one.row_id} of {file} is not in {rows.uri} as it was audited: audit again"
            )
        if one.decision == "fix":
            labels[position] = _stored(one, rows.labels.dtype, known)
        elif one.decision == "drop":
            drop[position] = True
        if one.decision != "keep":
            changes[position] = {
                "row_id": one.row_id,
                "decision": one.decision,
                "before": one.before,
                "after": one.label,
            }
    return labels, drop, [changes[position] for position in sorted(changes)]


def _placed(
    rows: Rows, labels: Mapping[int, Any], drop: np.ndarray
) -> tuple[Mapping[int, Any], np.ndarray]:
    """Return both by the places in the file, where pictures that do not decode have one, too."""
    if rows.decoded is None:
        return labels, drop
    places = rows.decoded.positions
    dropped = np.zeros(rows.decoded.whole, dtype=bool)
    dropped[places[drop]] = True
    return {int(places[position]): value for position, value in labels.items()}, dropped


def _stored(one: Choice, dtype: np.dtype, known: set[Any] | None) -> Any:
    """Return a new label in the type that the labels have.

    Args:
        one: The decision.
        dtype: Of the labels.
        known: The labels that there are; None for a regression's targets.
    """
    text = one.label or ""
    value: Any = text
    try:
        if dtype.kind == "b":
            value = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        elif dtype.kind in "iu":
            value = int(text) if text.lstrip("+-").isdigit() else _whole(float(text))
            np.array(value, dtype=dtype)
        elif dtype.kind == "f":
            value = dtype.type(text).item()
            if not np.isfinite(value):
                raise ValueError
    except (KeyError, ValueError, OverflowError):
        raise DataError(
            f"row {one.row_id}: the label '{text[:40]}' cannot be stored where labels are of type "
            f"{dtype}: write another into the column new_label"
        ) from None
    if known is not None and one.own and value not in known:
        some = ", ".join(sorted(map(str, known))[:10])
        raise DataError(
            f"row {one.row_id}: the new label '{text[:40]}' is none that the data have ({some}"
            f"{', ...' if len(known) > 10 else ''}): write one of these, or drop the row"
        )
    return value


def _whole(number: float) -> int:
    if number != int(number):
        raise ValueError
    return int(number)


def _target(original: Original, out: str | Path | None) -> Path:
    """Return where the cleaned data set goes.

    Raises:
        ForwardInfError: Something is there already, or the name ends in another format.
    """
    path = original.path
    if out is not None:
        target = Path(out)
    else:
        folder = path.parent if is_local(original.data.rows.uri) else Path()
        target = folder / f"{path.stem}-cleaned{path.suffix}"
    if target.suffix.lower() != path.suffix.lower():
        raise ForwardInfError(
            f"the cleaned data set keeps the format of the original: let --out end in "
            f"'{path.suffix}', as {path.name} does"
        )
    if target.exists():
        raise ForwardInfError(f"{target} exists already: name another file with --out")
    return target


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """Yield a path of the same name on the same disk; what is left there goes with the block."""
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".forward-inf-") as folder:
            yield Path(folder) / target.name
    except OSError as error:
        raise ForwardInfError(
            f"cannot write {target}: {error.strerror or error}; name another file with --out"
        ) from error


def _place(aside: Path, target: Path) -> None:
    if target.exists():  # since it was looked for
        raise ForwardInfError(f"{target} exists already: name another file with --out")
    aside.rename(target)


def _log(
    found: Cleaned,
    original: Original,
    aside: Path | None,
    kept: Sequence[tuple[str, str, str]],
    by: str | None,
) -> str:
    """Log the review to a run of its own, and name the kept rows on the registered model."""
    version, client = found.version, MlflowClient()
    inputs = [tracking.data_input(original.data, "original")]
    with tracking.audit_run(version, experiment=None, run_id=None) as run:
        uri = None
        if aside is not None:
            uri = f"runs:/{run.run_id}/{keeping.FOLDER}/{aside.name}"
            inputs.append(_cleaned_input(found, original, aside, uri))
        sha256 = original.data.rows.sha256
        record = {
            **found.as_dict(),
            "file": uri,
            "run_id": run.run_id,
            "by": by,
            "version": asdict(version),
            "original_sha256": sha256,
        }
        memory = keeping.kept_file(kept, version=version, audit_run=found.audit_run, by=by)
        with tempfile.TemporaryDirectory(prefix="forward-inf-") as name, translate_errors():
            Path(name, RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False), "utf-8")
            if kept:
                Path(name, keeping.FILE).write_bytes(memory)
            tags = {
                "forward_inf.kind": "review",
                "forward_inf.audit_run": found.audit_run,
                "forward_inf.original_sha256": sha256,
            }
            for key, value in tags.items():
                client.set_tag(run.run_id, key, value)
            for key in ("fixed", "dropped", "kept"):
                client.log_metric(run.run_id, f"forward_inf/{key}", float(getattr(found, key)))
            if aside is not None and aside.is_dir():
                client.log_artifacts(run.run_id, str(aside), f"{keeping.FOLDER}/{aside.name}")
            elif aside is not None:
                client.log_artifact(run.run_id, str(aside), keeping.FOLDER)
            client.log_artifacts(run.run_id, name, keeping.FOLDER)
            models = [LoggedModelInput(version.model_id)] if version.model_id else []
            client.log_inputs(run.run_id, models=models, datasets=inputs)
        if kept:  # last: what the tag names is there
            keeping.remember(version, run.run_id, memory)
        return run.run_id


def _cleaned_input(found: Cleaned, original: Original, aside: Path, uri: str) -> Any:
    """Return the cleaned data set as a run's input, tagged so that an audit finds its columns."""
    columns = original.columns
    rows = read_data(aside, uri=uri, columns=columns)
    folders = rows.decoded is not None and rows.decoded.folders is not None
    label = None if folders or columns.unlabelled else _label(aside, uri, columns)
    named = {"label": label, "id": columns.id, "source": columns.source}
    extra = {"fi.audit_run": found.audit_run, "fi.original_sha256": original.data.rows.sha256}
    if original.shape is not None:
        extra["fi.shape"] = original.shape
    return dataset_input(
        rows,
        "train",
        uri,
        {part: column for part, column in named.items() if column is not None},
        whole=columns.features is None,
        extra=extra,
    )


def _label(path: Path, uri: str, columns: Columns) -> str:
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return label_column(list(arrays.files), uri, columns.label)
    return label_column([str(n) for n in read_table(path, uri=uri).columns], uri, columns.label)
