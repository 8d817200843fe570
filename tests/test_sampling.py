"""Rows to look at: drawn from the audit that was made, shown as they are, never chosen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import one_line, points, register_points, run_here
from mlflow import MlflowClient

from forward_inf_mlflow import sampling
from forward_inf_mlflow.auditing import AuditResult, audit
from forward_inf_mlflow.cleaning import apply_decisions
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.errors import DataError, ForwardInfError, TrackingError
from forward_inf_mlflow.found_audit import fetch_artifact
from forward_inf_mlflow.reviewing import apply_review
from forward_inf_mlflow.sampling import COLUMNS, sample_review
from forward_inf_mlflow.verdicts.claims import AUDIT_TAG

FEATURES = tuple(f"feature.{name}" for name in "abcd")
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def audited(shared_store: Path) -> AuditResult:
    return audit(register_points(points(leaks=3)))


def drawn(uri: str, folder: Path, **options: Any) -> pd.DataFrame:
    sample_review(uri, folder / "rows.csv", **options)
    return pd.read_csv(folder / "rows.csv", dtype=str, keep_default_na=False)


def filled(table: pd.DataFrame, folder: Path) -> Path:
    table.assign(answer="right").to_csv(folder / "filled.csv", index=False)
    return folder / "filled.csv"


def file_of(audited: AuditResult, store: Path, name: str) -> Path:
    """Return where a file of the audit lies, for whoever may write there."""
    [file] = store.rglob(f"{audited.run_id}/artifacts/forward_inf/{name}")
    return file


@pytest.fixture
def forged(audited: AuditResult, shared_store: Path, tmp_path: Path) -> Iterator[Path]:
    """Yield a sample of the audit, of which the server has another ``audit.json`` by now."""
    sample = filled(drawn(audited.version.uri, tmp_path, rows=20), tmp_path)
    file, client, of = file_of(audited, shared_store, "audit.json"), MlflowClient(), ("points", "1")
    before = file.read_bytes()
    record = json.loads(before)
    record["measures"]["leaked"].update(count=0, rate=0.0, rate_low=0.0, rate_high=0.0)
    file.write_text(json.dumps(record))
    forged = hashlib.sha256(file.read_bytes()).hexdigest()
    client.set_model_version_tag(*of, AUDIT_TAG, forged)
    yield sample
    file.write_bytes(before)
    client.set_model_version_tag(*of, AUDIT_TAG, audited.audit_sha256)


def test_a_sample_hides_what_the_audit_thinks_and_is_never_written_over(
    audited: AuditResult, tmp_path: Path
) -> None:
    uri = audited.version.uri
    table = drawn(uri, tmp_path, rows=20, seed=1, audit_sha256=audited.audit_sha256)
    assert tuple(table.columns) == (*COLUMNS, *FEATURES)
    row = table.iloc[0]
    values = row[list(FEATURES)].astype(float)
    expected = points(leaks=3).x.iloc[int(row["row_id"])]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert len(table) == 20
    assert set(table["answer"]) == {""}
    assert set(table["audit_run"]) == {audited.run_id}
    assert set(table["audit_sha256"]) == {audited.audit_sha256}
    page = (tmp_path / "rows.html").read_text()
    ids = [page.index(f"id <code>{row_id}</code>") for row_id in table["row_id"]]
    assert ids == sorted(ids), "the page has the file's order"
    for said in ("mislabeled", "leaked", "suspicio", "certain", "likel"):
        assert said not in page.split("<main>")[1]
    for gone in ("rows.csv", "rows.html"):
        with pytest.raises(ForwardInfError, match=f"{gone} exists already"):
            sample_review(uri, tmp_path / "rows.csv")
        (tmp_path / gone).unlink()
    with pytest.raises(ForwardInfError, match="name a csv file"):
        sample_review(uri, tmp_path / "rows.html")
    with pytest.raises(ForwardInfError, match="cannot write"):
        sample_review(uri, tmp_path / "none" / "rows.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def shown_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Rows], Rows]], None]:
    """Let the training rows of an audit be seen as others."""
    found = sampling.audited_data

    def become(change: Callable[[Rows], Rows]) -> None:
        @contextmanager
        def other(*where: Any) -> Iterator[Any]:
            with found(*where) as original:
                rows = change(original.data.rows)
                yield replace(original, data=replace(original.data, rows=rows))

        monkeypatch.setattr(sampling, "audited_data", other)

    return become


def test_images_are_shown_as_pictures_and_texts_as_texts(
    audited: AuditResult, tmp_path: Path, shown_as: Callable[[Callable[[Rows], Rows]], None]
) -> None:
    uri, n = audited.version.uri, 240
    images = np.random.default_rng(0).integers(0, 256, (n, 8, 8), dtype=np.uint8)
    shown_as(lambda rows: replace(rows, features=images))
    (tmp_path / "images").mkdir()
    table = drawn(uri, tmp_path / "images", rows=20)
    assert tuple(table.columns) == COLUMNS
    page = (tmp_path / "images" / "rows.html").read_text()
    assert page.count('<span class="pic p') == page.count("data:image/png;base64,") == 20
    texts = pd.DataFrame({"text": [f"{HOSTILE} & so on, {i}\nand a second line" for i in range(n)]})
    shown_as(lambda rows: replace(rows, texts=texts))
    table = drawn(uri, tmp_path, rows=20)
    assert tuple(table.columns) == (*COLUMNS, "feature.text", *FEATURES)
    page = (tmp_path / "rows.html").read_text()
    text = (
        f"&lt;script&gt;alert(1)&lt;/script&gt; &amp; so on, {table['row_id'][0]}<br>and a second"
    )
    assert text in page
    assert "<script" not in page


def test_where_the_rows_are_gone_a_sample_still_names_them(
    audited: AuditResult, tmp_path: Path, shown_as: Callable[[Callable[[Rows], Rows]], None]
) -> None:
    def gone(_: Rows) -> Rows:
        raise DataError("they are gone")

    shown_as(gone)
    done = run_here("review", "sample", audited.version.uri, "-o", str(tmp_path / "rows.csv"))
    assert done.returncode == 0
    assert "look them up by their ids, since they cannot be shown: they are gone" in done.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]
    assert tuple(pd.read_csv(tmp_path / "rows.csv").columns) == COLUMNS


def test_in_an_audit_that_was_forged_since_nothing_is_drawn_counted_or_cleaned(
    audited: AuditResult, forged: Path, tmp_path: Path
) -> None:
    uri, pin = audited.version.uri, ("--audit-sha256", audited.audit_sha256)
    with pytest.raises(TrackingError, match=r"drawn from another audit\.json"):
        apply_review(forged)  # the file itself says what it was drawn from
    other = str(tmp_path / "other.csv")
    flagged = tmp_path / "flagged.csv"
    flagged.write_bytes(fetch_artifact(audited.run_id, "flagged.csv") or b"")
    for words in (["sample", uri, "-o", other], ["apply", str(forged)], ["apply", str(flagged)]):
        done = run_here("review", *words, *pin)
        assert done.returncode == 2
        assert "is another audit, or was changed since" in one_line(done.stderr)
        done = run_here("review", *words, "--audit-sha256", "abc")
        assert done.returncode == 2
        assert "64 hexadecimal digits" in one_line(done.stderr)
    assert not Path(other).exists()


@pytest.mark.parametrize("name", ["scores.parquet", "flagged.csv", "flagged.json"])
def test_a_table_that_was_changed_since_is_refused_by_whoever_reads_it(
    name: str, audited: AuditResult, shared_store: Path, tmp_path: Path
) -> None:
    uri = audited.version.uri
    sample = filled(drawn(uri, tmp_path, rows=20), tmp_path)
    flagged = tmp_path / "flagged.csv"
    file = file_of(audited, shared_store, name)
    flagged.write_bytes(file_of(audited, shared_store, "flagged.csv").read_bytes())
    before = file.read_bytes()
    file.write_bytes(before + b"\r\n")
    readers: dict[str, list[Callable[[], Any]]] = {
        "scores.parquet": [
            lambda: sample_review(uri, tmp_path / "other.csv"),
            lambda: sampling.scores_of(sampling.find_audit(audited.version)),
            lambda: apply_review(sample),
        ],
        "flagged.csv": [lambda: apply_decisions(flagged)],
        "flagged.json": [lambda: apply_review(sample)],
    }
    try:
        for read in readers[name]:
            with pytest.raises(TrackingError, match=f"^{name} of run .* was changed since"):
                read()
    finally:
        file.write_bytes(before)
