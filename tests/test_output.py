from __future__ import annotations

import csv
import errno
import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ARTIFACTS

from forward_inf_mlflow import output
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.policy import Policy, load_policy
from forward_inf_mlflow.report import Portraits
from forward_inf_mlflow.tables import FLAGGED

RECORD = {
    "model": {"name": "m", "version": "1", "uri": "models:/m/1", "kind": "pt2"},
    "decision": {"outcome": "pass", "reasons": ["within"]},
    "finished": True,
    "format": 1,
}


def flagged(**changes: Any) -> pd.DataFrame:
    said = ["leaked", "r1", "q1", 3, 5, 0.5, 0.001, -0.2, "near", True, "a", 1.5, "why"]
    row = dict(zip(FLAGGED, said, strict=True))
    return pd.DataFrame([row | changes], columns=list(FLAGGED))


def artifacts(**changes: Any) -> output.Artifacts:
    parts: dict[str, Any] = {
        "record": RECORD,
        "scores": pd.DataFrame({"id": ["r1", "r2"], "label": [0, 1], "loss": [0.5, np.nan]}),
        "flagged": flagged(),
        "influence": pd.DataFrame({"query_id": ["q1"], "influence": np.float32([0.25])}),
        "policy": Policy(max_memorized_rate=0.5),
        "portraits": Portraits(),
    }
    return output.Artifacts(**(parts | changes))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_audit_leaves_seven_files_that_hold_what_went_in() -> None:
    with output.written(artifacts()) as folder:
        assert names(folder) == ARTIFACTS
        assert json.loads((folder / "audit.json").read_text("utf-8")) == RECORD
        assert load_policy(folder / "policy.yaml") == Policy(max_memorized_rate=0.5)
        scores = pd.read_parquet(folder / "scores.parquet")
        pd.testing.assert_frame_equal(scores, artifacts().scores, check_dtype=False)
        influence = pd.read_parquet(folder / "influence.parquet")
        assert influence["influence"].tolist() == [0.25]
        assert "models:/m/1" in (folder / "report.html").read_text("utf-8")
    assert not folder.exists(), "nothing stays behind"


def test_labels_of_mixed_types_fit_into_parquet_as_text_and_none_stays_missing() -> None:
    labels = np.array([1, "two", None], dtype=object)
    scores = pd.DataFrame({"id": ["a", "b", "c"], "label": labels, "loss": [1.0, 2.0, 3.0]})
    with output.written(artifacts(scores=scores)) as folder:
        found = pd.read_parquet(folder / "scores.parquet")
    assert found["label"].tolist()[:2] == ["1", "two"]
    assert found["label"].isna().tolist() == [False, False, True]
    assert found["loss"].tolist() == [1.0, 2.0, 3.0]


def read_back(table: pd.DataFrame) -> dict[str, str]:
    """Return the only row of ``flagged.csv``."""
    with output.written(artifacts(flagged=table)) as folder:
        content = (folder / "flagged.csv").read_bytes().decode()
    (row,) = csv.DictReader(io.StringIO(content, newline=""))
    return row


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-cmd|x", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_text_that_a_spreadsheet_would_run_is_quoted(text: str) -> None:
    row = read_back(flagged(given_label=text, source=text))
    assert row["given_label"] == row["source"] == f"'{text}"


@pytest.mark.parametrize("value", ["-1.5", "+3", "-inf", "a=b", "", "it's", -2])
def test_numbers_and_plain_texts_are_left_alone(value: object) -> None:
    assert read_back(flagged(given_label=value))["given_label"] == str(value)


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", ",", '"'])
def test_no_text_ends_its_cell(end: str) -> None:
    # Else what follows would stand at the beginning of a cell, where formulas run.
    text = f"harmless{end}=1+1"
    assert read_back(flagged(source=text))["source"] == text


def test_nothing_flagged_leaves_a_table_with_its_head() -> None:
    empty = pd.DataFrame(columns=list(FLAGGED))
    with output.written(artifacts(flagged=empty)) as folder:
        head = (folder / "flagged.csv").read_text().strip().split(",")
    ours = ["decision", "new_label", "row_digest", "audit_run"]
    assert [name for name in head if name not in ours] == list(FLAGGED)
    assert set(ours) <= set(head)


def test_a_failure_while_writing_leaves_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def full(self: Path, data: bytes) -> int:
        seen.append(self.parent)
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"), output.written(artifacts()):
        pytest.fail("an audit that is not whole was handed on")
    assert not seen[0].exists()


def test_published_files_are_the_same_and_readable_as_others_are(tmp_path: Path) -> None:
    with output.written(artifacts()) as folder:
        output.publish(folder, tmp_path)
        assert names(tmp_path) == ARTIFACTS
        for name in ARTIFACTS:
            assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ARTIFACTS}
    assert modes == {stat.S_IMODE(ordinary.stat().st_mode)}


def test_publishing_again_replaces_and_leaves_strangers_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "audit.json").write_text("old")
    with output.written(artifacts()) as folder:
        output.publish(folder, tmp_path)
    assert names(tmp_path) == ARTIFACTS | {"mine.txt"}
    assert json.loads((tmp_path / "audit.json").read_text()) == RECORD


@pytest.mark.parametrize("fails_at", range(7))
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space"), KeyboardInterrupt()])
def test_an_interrupted_publication_shows_no_half_file_and_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int, error: BaseException
) -> None:
    real, calls = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        calls.append(target.name)
        if len(calls) > fails_at:
            raise error
        return real(self, target)

    with output.written(artifacts()) as folder:
        whole = {name: (folder / name).read_bytes() for name in ARTIFACTS}
        monkeypatch.setattr(Path, "replace", replace)
        with pytest.raises(type(error)):
            output.publish(folder, tmp_path)
    assert names(tmp_path) == set(calls[:-1]), "nor is a temporary file left"
    assert "audit.json" not in names(tmp_path), "the record is what says that all is there"
    for name in names(tmp_path):
        assert (tmp_path / name).read_bytes() == whole[name]


def test_a_disk_that_fills_up_within_a_file_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "audit.json").write_text("old")
    real = Path.read_bytes

    def read(self: Path) -> bytes:
        if self.name == "audit.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self)

    with output.written(artifacts()) as folder:
        monkeypatch.setattr(Path, "read_bytes", read)
        with pytest.raises(OSError, match="No space"):
            output.publish(folder, tmp_path)
    assert (tmp_path / "audit.json").read_text() == "old"
    assert names(tmp_path) == ARTIFACTS


def test_a_folder_is_made_before_the_work_and_left_empty(tmp_path: Path) -> None:
    output.require_writable(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == set()


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    targets = [file, file / "below"]
    if os.geteuid() != 0:  # root may write anywhere
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        targets += [closed, closed / "below"]
    for target in targets:
        with pytest.raises(ForwardInfError, match="name another folder with --out") as error:
            output.require_writable(target)
        assert "\n" not in str(error.value)
