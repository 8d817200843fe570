"""The files of an audit: written whole, then moved to where people look for them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.policy import Policy
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.record import write_record
from forward_inf_mlflow.report import render
from forward_inf_mlflow.report.thumbnails import image_shape, thumbnail
from forward_inf_mlflow.ui_table import UITable, ui_table
from forward_inf_mlflow.verdicts.seal import Sealed

#: Written last: where it is, the audit is whole.
RECORD = "audit.json"
#: The policy that the version was judged by; the command that repeats an audit names it.
POLICY = "policy.yaml"
#: The flagged rows as MLflow's UI shows them.
FLAGGED = "flagged.json"
#: Rows of each verdict that get a picture.
_PICTURES = 100


@dataclass(frozen=True)
class Artifacts:
    """Everything that an audit writes."""

    record: dict[str, Any]
    scores: pd.DataFrame
    flagged: pd.DataFrame
    influence: pd.DataFrame
    policy: Policy
    thumbnails: Mapping[str, bytes]
    approvals: Sequence[Sealed] = ()

    @cached_property
    def table(self) -> UITable:
        """Return the flagged rows as MLflow's UI shows them."""
        return ui_table(self.flagged, self.thumbnails)

    def write(self, folder: Path) -> None:
        """Write all files into an empty folder, the record last."""
        html = render(
            self.record, self.flagged, self.scores, self.thumbnails, approvals=self.approvals
        )
        (folder / "report.html").write_text(html, encoding="utf-8")
        # RFC 4180's line ends: with them a carriage return inside a text is quoted too, else it
        # would begin a row of its own, with a formula in its first cell.
        harmless(self.flagged).to_csv(folder / "flagged.csv", index=False, lineterminator="\r\n")
        (folder / FLAGGED).write_text(self.table.json, encoding="utf-8")
        _storable(self.scores).to_parquet(folder / "scores.parquet", index=False)
        _storable(self.influence).to_parquet(folder / "influence.parquet", index=False)
        policy = yaml.safe_dump(asdict(self.policy), sort_keys=False)
        (folder / POLICY).write_text(policy, encoding="utf-8")
        (folder / RECORD).write_bytes(write_record(self.record))


@contextmanager
def written(artifacts: Artifacts) -> Iterator[Path]:
    """Write the files into a folder that is gone after the block."""
    with tempfile.TemporaryDirectory(prefix="forward-inf-") as name:
        artifacts.write(Path(name))
        yield Path(name)


def require_writable(folder: Path) -> None:
    """Make the folder that ``--out`` names, before hours of work depend on it.

    Raises:
        ForwardInfError: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ForwardInfError(
            f"cannot write to {folder}: {error.strerror or error}; name another folder with --out"
        ) from error


def publish(source: Path, folder: Path) -> None:
    """Copy the files to ``folder``: each appears whole or not at all, the record last."""
    for file in sorted(source.iterdir(), key=lambda f: (f.name == RECORD, f.name)):
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{file.name}.", delete=False) as new:
            try:
                new.write(file.read_bytes())
                new.flush()
                Path(new.name).chmod(0o666 & ~_umask())
                Path(new.name).replace(folder / file.name)
            except BaseException:
                Path(new.name).unlink(missing_ok=True)
                raise


def pictures(problem: Problem, flagged: pd.DataFrame) -> dict[str, bytes]:
    """Return PNG thumbnails of flagged rows by ``train:<id>`` and ``query:<id>``, for images."""
    if not image_shape(problem.train.inputs.shape[1:]):
        return {}
    some = flagged.groupby("verdict", sort=False).head(_PICTURES)
    found: dict[str, bytes] = {}
    for kind, tensors, rows, column in (
        ("train", problem.train, problem.train_rows, "row_id"),
        ("query", problem.queries, problem.query_rows, "query_id"),
    ):
        wanted = set(some[column].dropna())
        for i in np.flatnonzero(np.isin(rows.ids, list(wanted))):
            found[f"{kind}:{rows.ids[i]}"] = thumbnail(tensors.inputs[i].numpy())
    return found


def harmless(table: pd.DataFrame) -> pd.DataFrame:
    """Quote texts that a spreadsheet would run as a formula; the data are other people's."""

    def quoted(value: Any) -> Any:
        if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
            return value
        try:
            float(value)
        except ValueError:
            return f"'{value}"
        return value

    return table.map(quoted)


def _storable(table: pd.DataFrame) -> pd.DataFrame:
    """Turn columns of mixed Python objects into text, which parquet can hold."""
    return table.assign(
        **{
            str(name): table[name].map(lambda v: None if v is None else str(v))
            for name in table.columns
            if table[name].dtype == object
        }
    )


def _umask() -> int:
    """Return the process's file mode mask; temporary files ignore it, published ones must not."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
