"""Small pictures of rows: what is a picture, and that it is shown as it is."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.report import image_shape, thumbnail


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 8), True),
        ((28, 28, 1), True),
        ((1, 28, 28), True),
        ((3, 32, 32), True),
        ((32, 32, 4), True),
        ((64,), False),
        ((), False),
        ((2, 8, 8), False),
        ((3, 3), False),
        ((512, 16), False),
        ((3, 8, 8, 8), False),
    ],
)
def test_image_shape_accepts_pictures_and_not_tables(
    shape: tuple[int, ...], expected: bool
) -> None:
    assert image_shape(shape) is expected


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize("scale", [1, 16, 1e-300, -5, 1e308], ids=str)
def test_a_thumbnail_is_the_picture_enlarged_without_smoothing(scale: float) -> None:
    picture = np.zeros((8, 8))
    picture[:4] = 1
    shown = decoded(thumbnail(picture * scale))
    assert shown.shape == (64, 64, 3)
    bright = (
        np.kron(picture, np.ones((8, 8))) if scale > 0 else 1 - np.kron(picture, np.ones((8, 8)))
    )
    expected = bright * (255 if abs(scale) >= 1 else 0)
    np.testing.assert_array_equal(shown[:, :, 0], expected)


def test_a_picture_looks_the_same_with_channels_first_or_last() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8)
    last, first = decoded(thumbnail(picture)), decoded(thumbnail(np.moveaxis(picture, -1, 0)))
    np.testing.assert_array_equal(last, first)
    np.testing.assert_array_equal(last[::4, ::4][:16, :12], picture)


def test_a_large_picture_shrinks_with_its_proportions_and_nan_is_drawn() -> None:
    picture = np.full((200, 100), np.nan)
    picture[0, 0] = np.inf
    assert decoded(thumbnail(picture, size=64)).shape == (64, 32, 3)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(8),
        np.zeros((8, 8, 2)),
        np.zeros((0, 8)),
        np.full((8, 8), "x"),
        np.zeros((8, 8), "c8"),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_what_is_no_picture_is_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match="is no image"):
        thumbnail(array)
