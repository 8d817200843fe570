"""Diffusion models as an audit moves and reads them: rows are images without labels to judge."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from forward_inf_mlflow.data.pictures import Ranges
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.diffusion.attributed import dimmed, noisy_times
from forward_inf_mlflow.diffusion.labels import label_numbers, numbered
from forward_inf_mlflow.diffusion.pixels import SIGNED, shaped
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.denoiser import Denoiser
from forward_inf_mlflow.models.inputs import InputSpec, numeric_array, require_finite
from forward_inf_mlflow.models.noise_schedule import Schedule
from forward_inf_mlflow.tasks import Denoising

#: Times of noise that every image is read at.
_TIMES = 10
#: What the pixels 0 and 255 become where nobody says: as diffusion models are trained.
_SCALE: Ranges = ((-1.0, 1.0),)
#: Numbers above this are on no scale from -1 to 1.
_LARGE = 2.0
#: Numbers in a batch that is chosen automatically: each image is passed forward many times.
_BATCH_NUMBERS = 2**16


def _are_pixels(values: np.ndarray) -> bool:
    """Say whether floats are pixels that were stored as such: whole numbers, some far above 1."""
    return bool(values.max() > _LARGE and values.min() >= 0 and (values == values.round()).all())


class _Images:
    """What a denoiser takes of stored images.

    Whole numbers are pixels from 0 to 255, also where they are stored as floats, and become what
    they became in training; other numbers are taken as they are. What lies on one scale among the
    training rows and on another among the queries is refused: each would look like noise beside
    the other.
    """

    def __init__(self, shape: tuple[int | None, ...] | None, ranges: Ranges) -> None:
        self._shape, self._ranges = shape, ranges
        self._scale: tuple[bool, bool] | None = None

    def prepare(self, features: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Return images ``(n, C, H, W)`` float32.

        Raises:
            DataError: They have another shape, are no numbers, or lie on another scale.
        """
        values = numeric_array(features)
        require_finite(values, features)
        whole = values.dtype.kind in "iu" or _are_pixels(values)
        if whole and (values.min() < 0 or values.max() > 255):
            raise DataError(
                f"whole numbers from {values.min()} to {values.max()} are no pixels from 0 to 255: "
                "store what the model was trained on"
            )
        images = shaped(values, self._shape, "one data set").astype(np.float32)
        if whole:
            images = self._scaled(images)
        scale = bool(images.min() < SIGNED), bool(images.max() > _LARGE)
        if self._scale is not None and scale != self._scale:
            raise DataError(
                "training and query images lie on two scales (one has numbers below 0, or far "
                "above 1, and the other has none): store both as the model was trained, or both "
                "as pixels from 0 to 255"
            )
        self._scale = scale
        return np.ascontiguousarray(images)

    def _scaled(self, images: np.ndarray) -> np.ndarray:
        low, high = np.array(self._ranges, np.float32).T
        if len(low) not in (1, images.shape[1]):
            raise DataError(
                f"--pixels has {len(low)} ranges and the model {images.shape[1]} channel(s): give "
                "one for all, or one for each"
            )
        sides = (1, -1, *[1] * (images.ndim - 2))
        spread: np.ndarray = (high - low).reshape(sides)
        return np.asarray(images / np.float32(255) * spread + low.reshape(sides))


def audited_diffusion_model(
    model: Denoiser, schedule: Schedule, ranges: Ranges | None = None
) -> AuditedModel:
    """Return a diffusion model as an audit takes it: no label of its rows can be wrong.

    Images are read at the noisiest times, where a model decides what an image will be, all with the
    same noise. A class-conditional model is told the rows' labels, and these are not judged.

    Args:
        model: From `registry`.
        schedule: Under which it was trained.
        ranges: What the pixels 0 and 255 become; None for -1 and 1.
    """
    task = Denoising(
        alphas_cumprod=schedule.alphas_cumprod,
        times=noisy_times(schedule.alphas_cumprod, _TIMES),
        conditional=model.conditional,
        predicts=schedule.predicts,
    )
    images = _Images(model.shape, ranges or _SCALE)
    seen = None if model.features is None else _seen(model.features, task)
    return AuditedModel(
        module=model.module,
        prepare=images.prepare,
        kind=model.kind,
        original=images.prepare,
        task=Denoising.name,
        features=seen,
        encoded=seen,
        max_batch=model.max_batch,
        notes=(*model.notes, f"is read under the noise schedule of {schedule.said}"),
        batch_numbers=_BATCH_NUMBERS,
        loss=task,
        targets=_Told(model).targets,
        told=model.conditional,
        takes=InputSpec(np.dtype(np.float32), model.shape),
        scale=ranges or _SCALE,
    )


def _seen(features: Callable[..., Tensor], task: Denoising) -> Callable[[Tensor], Tensor]:
    """Return what the last layer sees of dimmed images, all under the first label."""

    def of(inputs: Tensor) -> Tensor:
        first = torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)
        return dimmed(features, task, inputs, first)

    return of


class _Told:
    """What a denoiser is told beside an image: its label, or nothing (0)."""

    def __init__(self, model: Denoiser) -> None:
        self._conditional, self._classes = model.conditional, model.classes
        self._names: dict[object, int] | None = None

    def targets(self, rows: Rows) -> np.ndarray:
        """Return labels ``(n,)`` int64; names are numbered in their order among the training rows.

        Raises:
            DataError: A label is not known to the model.
        """
        if not self._conditional:
            return np.zeros(len(rows), np.int64)
        what = "query"
        if self._names is None:  # training rows are asked first
            self._names, what = label_numbers(rows.labels, self._classes), "training"
        return numbered(rows, self._names, what)
