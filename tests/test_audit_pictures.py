"""Pictures through a real store: a folder of them is audited, a parquet column asked about."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_here
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from forward_inf_mlflow.auditing import AuditResult, audit
from forward_inf_mlflow.cleaning import apply_decisions
from forward_inf_mlflow.data.lineage import declared_data
from forward_inf_mlflow.data.pictures import PictureForm
from forward_inf_mlflow.data.reading import Columns
from forward_inf_mlflow.decisions import read_filled
from forward_inf_mlflow.explaining import explain

TRAIN, QUERIES, FLIPPED = 300, 100, 15
#: In another order than the digits: outputs are the folders in sorted order.
NAMES = ["nought", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ORDER = sorted(NAMES)


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@dataclass(frozen=True)
class Story:
    """Folders of digits, which of them lie in the wrong one, and the audit."""

    folder: Path
    pictures: list[bytes]
    given: np.ndarray
    flipped: set[str]
    uri: str
    audit: AuditResult


@pytest.fixture(scope="module")
def story(shared_store: Path) -> Story:
    images, digits = load_digits(return_X_y=True)
    pixels = (images[: TRAIN + QUERIES].reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)
    truth = np.array([ORDER.index(NAMES[digit]) for digit in digits[: TRAIN + QUERIES]])
    given = truth.copy()
    given[:FLIPPED] = (given[:FLIPPED] + 3) % 10
    folder, pictures = shared_store / "digits", [png(one) for one in pixels]
    for i, content in enumerate(pictures):
        part = "train" if i < TRAIN else "test"
        file = folder / part / ORDER[given[i]] / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (folder / "train" / "nine" / "broken.png").write_bytes(pictures[0][:50])
    uri = register(pixels, given)
    result = audit(
        uri,
        train=str(folder / "train"),
        queries=str(folder / "test"),
        effort="quick",
        influence_queries=8,
        direction="gradient",
    )
    flipped = {f"{ORDER[given[i]]}/{i:03}.png" for i in range(FLIPPED)}
    return Story(folder, pictures, given, flipped, uri, result)


def register(pixels: np.ndarray, given: np.ndarray) -> str:
    """Train a linear network on pixels from 0 to 1 and register it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x = torch.as_tensor(pixels[:TRAIN, None].astype(np.float32) / 255)
    y, adam = torch.as_tensor(given[:TRAIN]), torch.optim.Adam(module.parameters(), 0.05)
    for _ in range(60):
        adam.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(module(x), y))
        adam.step()
    with mlflow.start_run():
        info = mlflow.pytorch.log_model(
            module.eval(),
            name="model",
            input_example=x[:3].numpy(),
            pip_requirements=["torch"],
            registered_model_name="digits",
        )
    return f"models:/digits/{info.registered_model_version}"


def test_an_audit_of_folders_finds_what_lies_in_the_wrong_one(story: Story) -> None:
    result = story.audit
    wrong = result.flagged[result.flagged["verdict"] == "mislabeled"]
    found = set(wrong["row_id"])
    assert len(found & story.flipped) >= 10
    assert len(found - story.flipped) <= 10
    # The likelier label is a folder.
    assert set(wrong["likelier_label"]) <= set(ORDER)
    row = wrong[wrong["row_id"].isin(story.flipped)].iloc[0]
    position = int(Path(row["row_id"]).stem)
    truth = ORDER[(story.given[position] - 3) % 10]
    assert row["likelier_label"] == truth


def test_a_damaged_picture_makes_it_partial_and_all_is_said(story: Story) -> None:
    record = story.audit.record
    assert record["partial"]
    assert record["data"]["train"]["rows"] == TRAIN
    notes = "\n".join(record["notes"])
    assert "1 training picture(s) do not decode and were left out: 'nine/broken.png'" in notes
    assert "rows of shape (1, 8, 8), their pixels from 0 to 1, as the model's input ex" in notes
    assert "taken for the folders in sorted order, eight to two" in notes


def test_the_report_shows_the_pictures(story: Story) -> None:
    page = run_here("report", story.uri, "-o", str(story.folder / "report.html"))
    assert page.returncode == 0
    html = (story.folder / "report.html").read_text("utf-8")
    assert html.count("data:image/png;base64,") >= 10


def test_a_decision_moves_a_picture_into_its_folder(story: Story, tmp_path: Path) -> None:
    client = mlflow.MlflowClient()
    file = client.download_artifacts(story.audit.run_id, "forward_inf/flagged.csv", str(tmp_path))
    table = read_filled(Path(file))
    mine = (table["verdict"] == "mislabeled") & table["row_id"].isin(story.flipped)
    row = table[mine].iloc[0]
    table.loc[row.name, "decision"] = "fix"
    table.to_csv(file, index=False)
    cleaned = apply_decisions(file, out=tmp_path / "cleaned")
    assert (cleaned.before, cleaned.after, cleaned.fixed) == (TRAIN + 1, TRAIN + 1, 1)
    name = Path(row["row_id"]).name
    assert not (tmp_path / "cleaned" / row["row_id"]).exists()
    moved = tmp_path / "cleaned" / row["likelier_label"] / name
    assert moved.read_bytes() == story.pictures[int(Path(name).stem)]
    assert (tmp_path / "cleaned" / "nine" / "broken.png").exists()


def test_a_parquet_column_of_pictures_says_the_same(story: Story, tmp_path: Path) -> None:
    held = [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(story.pictures)]
    frame = pd.DataFrame({"image": held, "label": story.given, "nr": range(len(held))})
    frame[:TRAIN].to_parquet(tmp_path / "train.parquet")
    frame[TRAIN:].to_parquet(tmp_path / "test.parquet")
    form = PictureForm((1, 8, 8), ranges=((0, 1),))
    columns = Columns(id="nr", pictures=form)
    stored = declared_data(str(tmp_path / "train.parquet"), "train", columns).rows
    folders = declared_data(str(story.folder / "train"), "train", Columns(pictures=form)).rows
    # A row is known by its pixels, wherever they lie.
    assert set(stored.feature_digests) == set(folders.feature_digests)

    found = explain(
        story.uri,
        query_rows=[TRAIN + 3],
        train=str(tmp_path / "train.parquet"),
        queries=str(tmp_path / "test.parquet"),
        id="nr",
        top=3,
        direction="gradient",
        out=tmp_path / "out",
    )
    assert found.influence["kind"].value_counts().to_dict() == {"proponent": 3, "opponent": 3}
    first = found.influence[found.influence["kind"] == "proponent"].iloc[0]
    assert first["label"] == story.given[TRAIN + 3]
    assert not found.record["partial"]
    page = (tmp_path / "out" / "influence.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") >= 7


def test_what_nobody_says_is_asked_for_in_a_line(story: Story, tmp_path: Path) -> None:
    where = ("--train", str(story.folder / "train"), "--queries", str(story.folder / "test"))
    (story.folder / "test" / "one" / "999.png").write_bytes(png(np.zeros((9, 8), np.uint8)))
    said = run_here("influence", story.uri, "--query-rows", "all", "--plan", *where)
    (story.folder / "test" / "one" / "999.png").unlink()
    assert said.returncode == 2
    assert "'one/999.png' has 8 x 9 pixels, and the model takes 8 x 8" in said.stderr
    said = run_here("influence", story.uri, "--query-rows", "all", "--pixels", "x", *where)
    assert said.returncode == 2
    assert "--pixels is 'x'" in said.stderr
