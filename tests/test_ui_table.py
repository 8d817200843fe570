"""flagged.json, the table that MLflow's UI shows: whole, of the last audit, with its pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import points, register_points
from mlflow import MlflowClient
from PIL import Image

from forward_inf_mlflow import tracking
from forward_inf_mlflow.auditing import audit
from forward_inf_mlflow.report.thumbnails import thumbnail
from forward_inf_mlflow.tracking import AuditRun
from forward_inf_mlflow.ui_table import PICTURES, ui_table

pytestmark = pytest.mark.usefixtures("store")


def test_two_audits_into_one_run_leave_the_table_of_the_last() -> None:
    uri = register_points(points(leaks=9))
    with mlflow.start_run() as run:
        for _ in range(2):
            result = audit(uri, run_id=run.info.run_id)
    table = mlflow.load_table("forward_inf/flagged.json", run_ids=[run.info.run_id])
    path = f"runs:/{run.info.run_id}/forward_inf/flagged.csv"
    rows = pd.read_csv(mlflow.artifacts.download_artifacts(path))
    assert len(table) == len(rows) == len(result.flagged) > 0
    filled_in = ["decision", "new_label", "row_digest", "audit_run"]  # the file's alone
    assert list(table.columns) == list(rows.columns.drop(filled_in))
    marked = json.loads(MlflowClient().get_run(run.info.run_id).data.tags["mlflow.loggedArtifacts"])
    assert marked == [{"path": "forward_inf/flagged.json", "type": "table"}]


def test_every_row_of_a_table_with_pictures_names_one_that_is_there(tmp_path: Path) -> None:
    images = {f"train:r{i}": thumbnail(np.eye(8) if i else 1 - np.eye(8)) for i in range(2)}
    flagged = pd.DataFrame({"row_id": ["r0", "r1", "no picture", "r0"], "loss": [1, 2, None, 4]})
    table = ui_table(flagged, images)
    (tmp_path / "flagged.json").write_text(table.json)
    with mlflow.start_run() as run:
        ours = AuditRun(run.info.run_id, run.info.experiment_id)
        for _ in range(2):
            tracking.log_table(ours, "forward_inf/flagged.json", table.pictures, PICTURES)
            mlflow.log_artifact(str(tmp_path / "flagged.json"), "forward_inf")
    back = mlflow.load_table("forward_inf/flagged.json", run_ids=[run.info.run_id])
    assert list(back["row_id"]) == list(flagged["row_id"])
    assert back["loss"].isna().tolist() == [False, False, True, False]
    for i, cell in enumerate(back["image"]):
        assert cell["type"] == "image"
        for key in ("filepath", "compressed_filepath"):
            local = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/{cell[key]}")
            content = Path(local).read_bytes()
            assert Image.open(io.BytesIO(content)).format == "PNG"
            assert content == images.get(f"train:{flagged['row_id'][i]}", content)
    assert len(table.pictures) == 3, "the same picture is kept once"
