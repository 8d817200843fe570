"""The files of an audit: written whole, then moved to where people look for them."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from forward_inf_mlflow.decisions import harmless, to_fill_in
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.policy import Policy
from forward_inf_mlflow.record import write_record
from forward_inf_mlflow.report import Portraits, render
from forward_inf_mlflow.ui_table import UITable, ui_table
from forward_inf_mlflow.verdicts.seal import Sealed

#: Written last: where it is, the audit is whole.
RECORD = "audit.json"
#: The policy that the version was judged by; the command that repeats an audit names it.
POLICY = "policy.yaml"
REPORT = "report.html"
#: The flagged rows as MLflow's UI shows them.
FLAGGED = "flagged.json"


@dataclass(frozen=True)
class Artifacts:
    """Everything that an audit writes."""

    record: dict[str, Any]
    scores: pd.DataFrame
    flagged: pd.DataFrame
    influence: pd.DataFrame
    policy: Policy
    portraits: Portraits
    approvals: Sequence[Sealed] = ()

    @cached_property
    def table(self) -> UITable:
        """Return the flagged rows as MLflow's UI shows them."""
        return ui_table(self.flagged, self.portraits.pictures)

    def write(self, folder: Path) -> None:
        """Write all files into an empty folder; the record last, which then names their digests."""
        html = render(
            self.record,
            self.flagged,
            self.scores,
            self.portraits,
            self.influence,
            approvals=self.approvals,
        )
        (folder / REPORT).write_text(html, encoding="utf-8")
        # RFC 4180's line ends: with them a carriage return inside a text is quoted too, else it
        # would begin a row of its own, with a formula in its first cell.
        run_id = self.record.get("run", {}).get("run_id")
        table = harmless(to_fill_in(self.flagged, self.scores, run_id))
        table.to_csv(folder / "flagged.csv", index=False, lineterminator="\r\n")
        (folder / FLAGGED).write_text(self.table.json, encoding="utf-8")
        _storable(self.scores).to_parquet(folder / "scores.parquet", index=False)
        _storable(self.influence).to_parquet(folder / "influence.parquet", index=False)
        self.portraits.table().to_parquet(folder / "portraits.parquet", index=False)
        policy = yaml.safe_dump(asdict(self.policy), sort_keys=False)
        (folder / POLICY).write_text(policy, encoding="utf-8")
        self.record["files"] = digests(folder)
        (folder / RECORD).write_bytes(write_record(self.record))


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each of an audit's files by its name, but of the record itself and of
    the report, to which approvals are added later."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.name not in (RECORD, REPORT)
    }


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
