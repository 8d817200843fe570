"""Thumbnails: a row that is an image, as a small PNG."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from forward_inf_mlflow.errors import DataError

_SHORTEST_SIDE = 4  # pixels; anything smaller is a table, not a picture
_SHADES = 128  # of many colours; a page of 500 noisy pictures stays under 5 MB
_LONGEST_RATIO = 8  # a sequence of feature vectors is long and thin, a picture is not


def image_shape(shape: Sequence[int]) -> bool:
    """Say whether a row of this shape looks like an image.

    Args:
        shape: The shape of one row, without the batch axis: ``(H, W)``, ``(H, W, 1|3|4)`` or
            ``(1|3, H, W)``.
    """
    sides = _sides(tuple(shape))
    return (
        sides is not None
        and min(sides) >= _SHORTEST_SIDE
        and max(sides) <= _LONGEST_RATIO * min(sides)
    )


def thumbnail(image: np.ndarray, *, size: int = 64) -> bytes:
    """Draw one image row as a PNG that fits into a square.

    Small images grow by a whole factor without smoothing, so that a reader sees the pixels that
    the model saw; large ones shrink with their proportions kept. More than 256 colours become 128,
    which keeps a report with hundreds of thumbnails small.

    Args:
        image: ``(H, W)``, ``(H, W, 1|3|4)`` or ``(1|3, H, W)``. uint8 and floats in [0, 1] are
            shown as they are; any other range is stretched from its 1st to its 99th percentile.
            NaN and infinities are shown as 0.
        size: Longest side of the result in pixels.

    Raises:
        DataError: The array has no pixels, no numbers, or is not shaped like an image.
    """
    array = np.asarray(image)
    sides = _sides(array.shape)
    if sides is None or 0 in sides or array.dtype.kind not in "buif":
        raise DataError(
            f"a {array.dtype} array of shape {array.shape} is no image: "
            "give numbers shaped (H, W), (H, W, 1|3|4) or (1|3, H, W)"
        )
    if _channels_first(array.shape):
        array = np.moveaxis(array, 0, -1)
    if array.shape[2:] == (1,):
        array = array[:, :, 0]
    picture = _flatten(Image.fromarray(_to_bytes(array)))
    picture = picture.resize(_fitted(picture.size, size), _filter(picture.size, size))
    if picture.mode == "RGB":
        few = picture.getcolors(256) is not None
        picture = picture.quantize(256 if few else _SHADES)
    buffer = BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _sides(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return height and width, or None if the shape is not that of an image."""
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) != 3:
        return None
    if _channels_first(shape):
        return shape[1], shape[2]
    return (shape[0], shape[1]) if shape[2] in (1, 3, 4) else None


def _channels_first(shape: tuple[int, ...]) -> bool:
    """Tell (C, H, W) from (H, W, C); where both are possible a square picture decides."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        return False
    return shape[2] not in (1, 3, 4) or shape[1] == shape[2]


def _to_bytes(array: np.ndarray) -> np.ndarray:
    """Return the same pixels as uint8."""
    if array.dtype == np.uint8:
        return array
    pixels = array.astype(np.float64)
    pixels[~np.isfinite(pixels)] = 0.0
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        robust_low, robust_high = np.percentile(pixels, [1, 99])
        # A sparse image (a thin stroke on black) is flat between its percentiles.
        if robust_low < robust_high:
            low, high = float(robust_low), float(robust_high)
    else:
        low, high = 0.0, 1.0
    # Halved, so that a range as wide as float64 itself does not overflow.
    spread = high / 2 - low / 2
    scaled = (pixels / 2 - low / 2) / spread if spread > 0 else np.zeros_like(pixels)
    return (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)


def _flatten(picture: Image.Image) -> Image.Image:
    """Put a transparent picture on white: the page behind it may be dark or light."""
    if picture.mode != "RGBA":
        return picture
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _fitted(sides: tuple[int, int], size: int) -> tuple[int, int]:
    """Return the width and height of the thumbnail."""
    longest = max(sides)
    factor = size // longest if longest <= size else size / longest
    return max(1, round(sides[0] * factor)), max(1, round(sides[1] * factor))


def _filter(sides: tuple[int, int], size: int) -> Image.Resampling:
    return Image.Resampling.NEAREST if max(sides) <= size else Image.Resampling.BOX
