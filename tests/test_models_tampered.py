"""A pt2 model as MLflow writes it loads without permission; one that was changed runs nothing."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import mlflow.pytorch
import numpy as np
import pytest
import torch
from torch import nn

from forward_inf_mlflow.errors import ModelError, UnsafeModelError
from forward_inf_mlflow.models.archive import check_archive
from forward_inf_mlflow.models.mlmodel import read_flavor
from forward_inf_mlflow.registry import load_folder as load


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    folder = tmp_path_factory.mktemp("plain") / "model"
    example = np.zeros((2, 4), np.float32)
    mlflow.pytorch.save_model(module, str(folder), input_example=example, pip_requirements=[])
    return folder


def test_a_pt2_flavor_needs_no_permission(plain: Path) -> None:
    assert read_flavor(plain).kind == "pt2"


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: re.sub(
            r'"expr_str": "[^"]*"', "\"expr_str\": \"open('ran', 'w')\"", text, count=1
        ),
        lambda text: text.replace('"guards_code": []', "\"guards_code\": [\"open('ran', 'w')\"]"),
        lambda text: text.replace('"0.weight"', '"0.x\\"+exec(1)+\\""'),
        lambda text: text.replace("aten.relu.default", "aten.from_file.default"),
        lambda text: text.replace("torch.ops.aten.relu.default", "torch.hub.load"),
        lambda text: text.replace('\\"context\\": \\"null\\"', '\\"context\\": \\"{}\\"'),
    ],
    ids=["size", "guard", "name", "file operator", "function", "class to import"],
)
def test_an_archive_whose_texts_would_run_code_is_refused(
    plain: Path, edit: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(plain, tmp_path / "model")
    rewrite(folder / "data" / "model.pt2", "models/model.json", edit)
    with pytest.raises(UnsafeModelError, match="--allow-pickle"):
        load(folder)
    assert not Path("ran").exists()


def test_an_archive_with_a_pickled_weight_is_refused(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, ("ran", "w")

    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(plain, tmp_path / "model")
    torch.save(Payload(), tmp_path / "payload")
    payload = (tmp_path / "payload").read_bytes()
    archive = folder / "data" / "model.pt2"
    rewrite(
        archive,
        "model_weights_config.json",
        lambda text: text.replace('"use_pickle": false', '"use_pickle": true'),
    )
    rewrite(archive, "weight_0", lambda _: payload)
    with pytest.raises(UnsafeModelError, match="--allow-pickle"):
        load(folder)
    assert not Path("ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + b"\0" * 18])
def test_a_damaged_archive_is_a_model_error(plain: Path, content: bytes, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "model")
    (folder / "data" / "model.pt2").write_bytes(content)
    with pytest.raises(ModelError):
        load(folder)


def test_archives_that_pytorch_writes_pass(tmp_path: Path) -> None:
    class Sizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(4, 4, batch_first=True)
            self.attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            states, _ = self.layer(inputs)
            with torch.no_grad():
                scale = inputs.abs().mean() + inputs.shape[1] // 2
            return self.attention(states).flatten(0, 1).mean(1) * scale  # type: ignore[no-any-return]

    dims = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(Sizes().eval(), (torch.ones(3, 6, 4),), dynamic_shapes=(dims,))
    torch.export.save(program, tmp_path / "model.pt2")
    check_archive(tmp_path / "model.pt2")


def rewrite(path: Path, name: str, edit: Callable[[str], str | bytes]) -> None:
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    (found,) = (record for record in records if record.endswith(name))
    text = records[found].decode("utf-8", errors="replace")
    edited = edit(text)
    assert edited != text, "the edit found nothing to change"
    if name.endswith(".json"):
        json.loads(edited)
    records[found] = edited if isinstance(edited, bytes) else edited.encode()
    with zipfile.ZipFile(path, "w") as archive:
        for record, content in records.items():
            archive.writestr(record, content)
