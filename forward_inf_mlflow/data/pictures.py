"""Pictures, which are other people's files: decoded one at a time into rows that a model takes."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.machine import total_memory

#: Endings of pictures.
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
#: What Pillow reads by itself; for others (EPS) it starts programs, whatever the file's ending is.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
#: What Pillow calls pictures of so many channels.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
#: Modes without colour, and those with transparency; what is deeper than 8 bits would be cut off.
_GREY, _CLEAR = frozenset({"1", "L", "LA"}), frozenset({"LA", "PA", "RGBA"})
_DEEP = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
#: What `attribute` calls two ranges.
_NAMED_RANGES = {"signed": (-1.0, 1.0), "unit": (0.0, 1.0)}
#: Pixels as they are stored.
_BYTES = ((0.0, 255.0),)
#: The share of the machine's memory that rows may take.
_SHARE = 0.75
#: An example of pixels as they are stored has one in the upper half.
_BRIGHT = 128


#: What the pixels 0 and 255 become, one pair for all channels or one each.
Ranges: TypeAlias = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class PictureForm:
    """How pictures become the rows that a model takes.

    Attributes:
        shape: Of a row, ``(C, H, W)``, ``(H, W, C)``, ``(H, W)`` or ``(D,)``, None in it for a size
            that varies; None if the model does not say.
        dtype: NumPy's name of the model's type.
        ranges: What the pixels 0 and 255 become, one pair for all channels or one each; None where
            nobody says.
        why: Who says so, or why nobody does.
        resize: Whether pictures of another size are resized.
        most, seed: How many pictures are drawn of all, None for all, and by which seed.
    """

    shape: tuple[int | None, ...] | None = None
    dtype: str = "float32"
    ranges: Ranges | None = None
    why: str = "it was logged without an input example"
    resize: bool = False
    most: int | None = None
    seed: int = 0

    def drawn(self, count: int) -> np.ndarray:
        """Return which of ``count`` pictures are read, ascending positions."""
        if self.most is None or self.most >= count:
            return np.arange(count)
        return np.sort(np.random.default_rng(self.seed).choice(count, self.most, replace=False))

    def as_dict(self) -> dict[str, Any]:
        """Return what decides the rows that pictures become; see `form_of`."""
        return {k: v for k, v in asdict(self).items() if k not in ("most", "seed")}


class _Layout(NamedTuple):
    """A row's order of axes, its channels, and its sides, None where any will do."""

    order: str
    channels: int
    sides: tuple[int | None, int | None]


class Decoder:
    """Decodes pictures of one form.

    Attributes:
        faded: How many lost their colours or their transparency, because the model takes none.
    """

    def __init__(self, form: PictureForm, uri: str) -> None:
        """Check that the model says what it takes.

        Raises:
            DataError: It does not, or says what no picture can be.
        """
        self._form, self._uri, self.faded = form, uri, 0
        layout = _layout(form.shape)
        if layout is None:
            takes = "does not say which shape of rows it takes"
            if form.shape is not None:
                takes = f"takes rows of shape {_said(form.shape)}, which no picture has"
            raise DataError(
                f"{uri} holds pictures, but the model {takes}: log it with a signature or an "
                "input_example of pictures, or give the rows as arrays"
            )
        if form.ranges is None:
            raise DataError(
                f"{uri} holds pictures, but how their pixels become the model's numbers is not "
                f"known ({form.why}): say what 0 and 255 become, such as --pixels 0:1 or 0:255"
            )
        whole = np.issubdtype(np.dtype(form.dtype), np.integer)
        if whole and form.ranges != _BYTES:
            raise DataError("the model takes whole numbers: leave --pixels out, or say 0:255")
        if len(form.ranges) not in (1, layout.channels):
            raise DataError(
                f"--pixels has {len(form.ranges)} ranges and the model {layout.channels} "
                "channel(s): give one for all, or one for each"
            )
        if form.resize and None in layout.sides:
            raise DataError(
                f"the model takes rows of shape {_said(form.shape)}, which say no height and "
                "width: leave --resize out, and give pictures of one size"
            )
        self._layout, self._stored = layout, form.ranges == _BYTES
        self._low, self._high = np.array(form.ranges, np.float64).T

    @property
    def told(self) -> str:
        """Return how pictures were read, one clause."""
        form = self._form
        spans = ", ".join(f"{low:g} to {high:g}" for low, high in form.ranges or ())
        resized = ", resized where they had another size" if form.resize else ""
        return (
            f"pictures were read as rows of shape {_said(form.shape)}{resized}, their pixels from "
            f"{spans}, {form.why}"
        )

    def row(self, content: Path | BytesIO, name: str, first: tuple[int, ...] | None) -> np.ndarray:
        """Return a picture as a row; its head is read before its pixels.

        Args:
            content: A file, or its bytes.
            name: What it is called.
            first: The shape of the row before, for models that take any size.

        Raises:
            DataError: It is no picture that the model takes. Whatever Pillow raises, where it does
                not decode.
        """
        with opened(content) as picture:
            if picture.mode in _DEEP:
                raise DataError(
                    f"{self._uri}: {name!r} has pixels of more than 8 bits ({picture.mode}): store "
                    "8-bit pictures, or give the rows as arrays"
                )
            height, width = self._sides(picture.size[::-1], name, first)
            mode = _MODES[self._layout.channels]
            grey = mode == "L" and picture.mode not in _GREY
            clear = mode != "RGBA" and (picture.mode in _CLEAR or "transparency" in picture.info)
            decoded = picture.convert(mode)
            self.faded += grey or clear
            if decoded.size != (width, height):
                decoded = decoded.resize((width, height), Image.Resampling.BILINEAR)
            return self._arranged(self._scaled(np.asarray(decoded)))

    def _sides(
        self, found: tuple[int, int], name: str, first: tuple[int, ...] | None
    ) -> tuple[int, int]:
        """Return the height and width that a picture is brought to."""
        order, _, (height, width) = self._layout
        if order == "flat":
            assert self._form.shape is not None
            if found[0] * found[1] != self._form.shape[0]:
                raise DataError(
                    f"{self._uri}: {name!r} has {_size(found)} pixels, and the model takes rows of "
                    f"{self._form.shape[0]} numbers, one for each pixel: give pictures of that size"
                )
        if None in (height, width):
            before = found if first is None else (first[1:] if order == "chw" else first[:2])
            height, width = height or before[0], width or before[1]
            whose, more = "the pictures before it have", ""
        else:
            whose, more = "the model takes", ", or let them be resized with --resize"
        assert height is not None
        assert width is not None
        wanted = height, width
        if found != wanted and not self._form.resize:
            raise DataError(
                f"{self._uri}: {name!r} has {_size(found)} pixels, and {whose} {_size(wanted)} "
                f"(width x height): give all that size{more}"
            )
        return wanted

    def _scaled(self, pixels: np.ndarray) -> np.ndarray:
        if self._stored:
            return pixels
        # In double precision, whose quotient rounds to the one that float32 would have.
        values = self._low + (self._high - self._low) * pixels / 255
        return np.asarray(values).astype(self._form.dtype)

    def _arranged(self, pixels: np.ndarray) -> np.ndarray:
        if self._layout.order == "chw":
            return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        if self._layout.order == "hwc":
            return pixels[..., None] if pixels.ndim == 2 else pixels
        return pixels  # flat rows keep their sides, for whoever looks at them


@contextmanager
def opened(content: Path | BytesIO) -> Iterator[Image.Image]:
    """Open a picture by its head; one of too many pixels raises, as Pillow's limit says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(content, formats=FORMATS) as picture:
            yield picture


def picture_files(folder: Path, uri: str) -> list[Path]:
    """Return the pictures in a folder and those in it, by their names; hidden ones are no data.

    Raises:
        DataError: A folder is a link, which might lead anywhere, or cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{uri} cannot be read ({error.strerror or error}); check its permissions")

    found: list[Path] = []
    for at, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if Path(at, name).is_symlink():
                raise DataError(
                    f"{uri}: the folder {name!r} in it is a link, which is not followed: put the "
                    "folder itself there"
                )
        found += [
            Path(at, name)
            for name in files
            if not name.startswith(".")
            and Path(name).suffix.lower() in ENDINGS
            and (Path(at, name).is_symlink() or Path(at, name).is_file())
        ]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def leads_out(file: Path, folder: Path) -> bool:
    """Say whether a file of `picture_files` is a link to something outside of a folder."""
    if not file.is_symlink():
        return False
    target = file.resolve()
    return not (target.is_relative_to(folder.resolve()) and target.is_file())


def require_room(count: int, each: int, uri: str) -> None:
    """Refuse pictures that would take too much of the memory, before they are decoded.

    Args:
        count: How many.
        each: Bytes that one of them takes, with what a model is given of it.
        uri: Where they are from.

    Raises:
        DataError: They would.
    """
    needed = count * each
    if needed > _SHARE * total_memory():
        raise DataError(
            f"{uri}: {count:,} pictures take {needed / 2**30:.1f} GiB as rows, more than fits into "
            "this machine's memory: read some of them with --max-rows, or smaller ones"
        )


def picture_form(
    shape: tuple[int | None, ...] | None,
    dtype: np.dtype,
    example: tuple[float, float] | None,
    *,
    scale: Ranges | None = None,
    pixels: str | None = None,
    resize: bool = False,
) -> PictureForm:
    """Return how pictures become a model's rows.

    Args:
        shape: Of a row, as the model takes it; None if it does not say.
        dtype: What it takes.
        example: The smallest and the largest number of the input example that was logged with it.
        scale: What models of its kind are trained on; None where that is not known.
        pixels: What a user says that the pixels 0 and 255 become, ``0:1``, or one such range for
            each channel, separated by commas.
        resize: Whether pictures of another size are resized.

    Raises:
        DataError: ``pixels`` is no range of numbers.
    """
    ranges: Ranges | None = None
    why = PictureForm.why
    if pixels is not None:
        ranges, why = parsed(pixels), "as --pixels says"
    elif scale is not None:
        ranges, why = scale, "as models of its kind are trained"
    elif np.issubdtype(dtype, np.integer):
        ranges, why = _BYTES, "since the model takes whole numbers"
    elif example is not None:
        low, high = example
        why = "as the model's input example has them"
        if low >= 0 and 0 < high <= 1:
            ranges = ((0.0, 1.0),)
        elif low >= 0 and _BRIGHT <= high <= 255:
            ranges = _BYTES
        else:
            why = f"its input example has numbers from {low:.3g} to {high:.3g}"
    return PictureForm(shape, dtype.name, ranges, why, resize)


def form_of(stored: Any) -> PictureForm | None:
    """Return the form that `PictureForm.as_dict` described; None if it is none."""
    try:
        shape, ranges = stored["shape"], stored["ranges"]
        if np.dtype(str(stored["dtype"])).kind not in "iuf":
            return None
        return PictureForm(
            None if shape is None else tuple(None if d is None else int(d) for d in shape),
            np.dtype(str(stored["dtype"])).name,
            None if ranges is None else tuple((float(a), float(b)) for a, b in ranges),
            str(stored["why"]),
            stored["resize"] is True,
        )
    except (TypeError, KeyError, ValueError):
        return None


def parsed(text: str) -> Ranges:
    """Return what a user says that the pixels 0 and 255 become, ``0:1`` or one range a channel.

    Raises:
        DataError: That is no range of numbers.
    """
    if text in _NAMED_RANGES:
        return (_NAMED_RANGES[text],)
    try:
        ranges = tuple(tuple(map(float, part.split(":"))) for part in text.split(","))
        fine = all(len(r) == 2 and r[0] != r[1] and all(map(math.isfinite, r)) for r in ranges)
    except ValueError:
        fine = False
    if not fine:
        raise DataError(
            f"--pixels is {text[:80]!r}: write what 0 and 255 become, such as 0:1, or a range for "
            "each channel, separated by commas"
        )
    return ranges  # type: ignore[return-value]


def _layout(shape: tuple[int | None, ...] | None) -> _Layout | None:
    if shape is None:
        return None
    # Where either end could be the channels, a square picture decides, as in thumbnails.
    last = len(shape) == 3 and shape[2] in _MODES and shape[1] != shape[2]
    if len(shape) == 3 and shape[0] in _MODES and not last:
        return _Layout("chw", shape[0], (shape[1], shape[2]))
    if len(shape) == 3 and shape[2] in _MODES:
        return _Layout("hwc", shape[2], (shape[0], shape[1]))
    if len(shape) == 2:
        return _Layout("hw", 1, (shape[0], shape[1]))
    # Of colours nobody knows whether the channels of a flat row lie together or the pixels.
    if len(shape) == 1 and shape[0] is not None:
        return _Layout("flat", 1, (None, None))
    return None


def _said(shape: tuple[int | None, ...] | None) -> str:
    sizes = ", ".join("any" if size is None else str(size) for size in shape or ())
    return f"({sizes},)" if shape is not None and len(shape) == 1 else f"({sizes})"


def _size(sides: tuple[int, int]) -> str:
    return f"{sides[1]} x {sides[0]}"
