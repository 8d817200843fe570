"""Tiny diffusion models and their images, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from forward_inf_mlflow import log_training_data
from forward_inf_mlflow.tasks import cosine_schedule

STEPS, SIDE, N, CLASSES, WIDTH = 20, 4, 30, 2, 4
LEFT = torch.tensor(cosine_schedule(STEPS), dtype=torch.float32)
SCHEDULE = {"schedule": "cosine", "steps": STEPS}


class Denoiser(nn.Module):
    """Two convolutions that are told the time, and, if they are to be, the label."""

    def __init__(self, *, conditional: bool = False, width: int = WIDTH) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.time = nn.Linear(1, width)
        self.label = nn.Embedding(CLASSES, width) if conditional else None
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def told(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        h = self.time(t[:, None].to(x.dtype) / STEPS)
        if self.label is not None:
            h = h + self.label(y)
        return self.last(torch.tanh(self.first(x) + h[:, :, None, None]))


class Unconditional(Denoiser):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.told(x, t, None)


class Conditional(Denoiser):
    def __init__(self) -> None:
        super().__init__(conditional=True)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.told(x, t, y)


class Linear(nn.Module):
    """A denoiser that is linear in its parameters, whatever the time."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Linear(SIDE * SIDE, SIDE * SIDE, bias=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.all(x.flatten(1)).view_as(x) + 0 * t.to(x.dtype)[:, None, None, None]


def images(seed: int = 0, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures ``(n, 4, 4)`` uint8, bright on the left (label 0) or on the right (1)."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % CLASSES
    x = rng.integers(0, 90, (n, SIDE, SIDE))
    x[y == 0, :, :2] += 150
    x[y == 1, :, 2:] += 150
    return x.astype(np.uint8), y


def signed(x: np.ndarray) -> Tensor:
    """Return pictures as a model takes them."""
    return torch.as_tensor(x[:, None].astype(np.float32) / 127.5 - 1)


def taught(module: nn.Module, *, steps: int = 150) -> Any:
    """Return a denoiser after it was taught the pictures."""
    torch.manual_seed(0)
    x, y = images()
    clean, labels = signed(x), torch.as_tensor(y)
    told = (labels,) if isinstance(module, Conditional) else ()
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(steps):
        t = torch.randint(STEPS, (N,))
        noise, left = torch.randn_like(clean), LEFT[t][:, None, None, None]
        guess = module(left.sqrt() * clean + (1 - left).sqrt() * noise, t, *told)
        optimizer.zero_grad()
        (getattr(guess, "sample", guess) - noise).square().mean().backward()
        optimizer.step()
    return module.eval()


def register(
    module: nn.Module,
    name: str,
    *,
    metadata: Any,
    data: Any = None,
    rows: dict[str, Any] | None = None,
    side: int = SIDE,
) -> str:
    """Log and register a denoiser as pt2, and return the address of the version."""
    example: tuple[np.ndarray, ...] = (np.zeros((2, 1, side, side), np.float32), np.zeros(2, int))
    takes = [TensorSpec(np.dtype(np.float32), (-1, 1, side, side), "images")]
    takes += [TensorSpec(np.dtype(np.int64), (-1,), "times")]
    if isinstance(module, Conditional):
        example = (*example, np.zeros(2, int))
        takes += [TensorSpec(np.dtype(np.int64), (-1,), "labels")]
    with mlflow.start_run():
        if data is not None:
            mlflow.log_input(data, context="training")
        if rows is not None:
            log_training_data(**rows)
        mlflow.pytorch.log_model(
            module,
            name=name,
            input_example=example,
            signature=ModelSignature(inputs=Schema(takes)),
            metadata=metadata,
            pip_requirements=["torch"],  # else MLflow asks for packages that nothing here needs
            registered_model_name=name,
        )
    return newest(name)


def save_pipeline(folder: Path, *, attention: bool = False) -> None:
    """Save a pipeline of ``diffusers``, without which the test is skipped."""
    diffusers = pytest.importorskip("diffusers")
    down, up = ("AttnDownBlock2D", "AttnUpBlock2D") if attention else ("DownBlock2D", "UpBlock2D")
    unet = diffusers.UNet2DModel(
        sample_size=SIDE,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", down),
        up_block_types=(up, "UpBlock2D"),
    )
    scheduler = diffusers.DDPMScheduler(STEPS, beta_schedule="squaredcos_cap_v2")
    diffusers.DDPMPipeline(taught(unet, steps=60), scheduler).save_pretrained(folder)


def register_folder(folder: Path, name: str) -> str:
    """Register a folder as it is."""
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(folder), "pipeline")
    client = MlflowClient()
    client.create_registered_model(name)
    source = f"{run.info.artifact_uri}/pipeline"
    client.create_model_version(name, source, run_id=run.info.run_id)
    return newest(name)


def newest(name: str) -> str:
    """Return the address of the newest version."""
    found = MlflowClient().search_model_versions(f"name='{name}'")
    return f"models:/{name}/{max(int(v.version) for v in found)}"
