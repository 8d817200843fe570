"""From files to images: an npz file with one array of them, or a folder of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from forward_inf_mlflow.data.acceptance import accept
from forward_inf_mlflow.data.pictures import leads_out, opened, picture_files, require_room
from forward_inf_mlflow.data.reading import LABEL_NAMES, ROWS_NAMES, listing, one_line, readable
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.errors import DataError

#: What Pillow calls pictures of so many channels.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
#: The share of pictures of a folder that may be damaged and are left out; names that are said.
_DAMAGED, _NAMED = 0.05, 5


@dataclass(frozen=True)
class ImageColumns:
    """Which array is what; None where the default is meant.

    Attributes:
        images: Default: x, images or samples, or the only array of images.
        label: Default: the only one called label, target, y or class, if there is one; of a folder
            the name of the folder that each picture lies in.
        id: Default: ``ids``, if there is one, else the position; of a folder the picture's path.
        source: Default: ``sources``, if there is one.
    """

    images: str | None = None
    label: str | None = None
    id: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Images:
    """Images as they are stored.

    Attributes:
        rows: Features ``(n, ...)`` of numbers; labels all 0 where there are none.
        labelled: Whether there are labels.
        damaged: Pictures that do not decode and were left out.
    """

    rows: Rows
    labelled: bool
    damaged: tuple[str, ...] = ()


def read_images(
    path: Path, *, uri: str, columns: ImageColumns, channels: int | None, strict: bool
) -> Images:
    """Read an npz file or a folder of pictures, in the order of their names.

    Args:
        path: The local file or folder.
        uri: What the user calls it, without credentials.
        columns: Which array is what.
        channels: Of the pictures of a folder, as the model takes them; None keeps what they have.
        strict: Refuse a picture that does not decode, else a few may be left out; a single image
            is enough then.

    Raises:
        DataError: It is missing, damaged, or holds no images; says which.
    """
    if path.is_dir():
        return _folder(path, uri, columns, channels, strict=strict)
    if not path.exists():
        raise DataError(f"no such file: {uri}; check the path")
    if path.suffix.lower() != ".npz":
        raise DataError(
            f"{uri} is neither a .npz file with an array of images nor a folder of pictures; save "
            "the images with np.savez(file, x=images)"
        )
    return _npz(path, uri, columns, least=1 if strict else 2)


def _npz(path: Path, uri: str, columns: ImageColumns, *, least: int) -> Images:
    with readable(uri, "npz"), np.load(path, allow_pickle=False) as arrays:
        names = list(arrays.files)
        label = columns.label
        if label is None:
            found = [name for name in names if name.lower() in LABEL_NAMES]
            label = found[0] if len(found) == 1 else None
        wanted = {
            "--images": columns.images or _images_array(names, uri),
            "--label": label,
            "--id": columns.id or ("ids" if "ids" in names else None),
            "--group-by": columns.source or ("sources" if "sources" in names else None),
        }
        read: dict[str, np.ndarray | None] = {}
        for option, name in wanted.items():
            if name is not None and name not in names:
                raise DataError(
                    f"{uri}: {option} names {name!r}, which is not one of {listing(names)}"
                )
            read[option] = None if name is None else arrays[name]
    x, y = read["--images"], read["--label"]
    assert x is not None
    if x.ndim < 2 or x.dtype.kind not in "buif":
        raise DataError(
            f"{uri}: {wanted['--images']!r} has the shape {x.shape} and type {x.dtype}, which are "
            "no images: give numbers (n, h, w), (n, h, w, c) or (n, c, h, w), or name another "
            "array with --images"
        )
    rows = accept(
        x,
        np.zeros(len(x), np.int64) if y is None else y,
        ids=read["--id"],
        sources=read["--group-by"],
        uri=uri,
        least=least,
    )
    return Images(rows, y is not None)


def _images_array(names: list[str], uri: str) -> str:
    found = [name for name in ROWS_NAMES if name in names]
    if found:
        return found[0]
    if len(names) == 1:
        return names[0]
    raise DataError(f"{uri}: which array holds the images? Name it with --images: {listing(names)}")


def _folder(
    path: Path, uri: str, columns: ImageColumns, channels: int | None, *, strict: bool
) -> Images:
    if columns.images or columns.id or columns.source:
        raise DataError(f"{uri} is a folder of pictures: --images, --id and --group-by name arrays")
    files = [file for file in picture_files(path, uri) if not leads_out(file, path)]
    if not files:
        raise DataError(f"{uri}: no picture in this folder; name one with .png or .jpg files in it")
    pictures: list[np.ndarray] = []
    names: list[str] = []
    damaged: list[str] = []
    for file in files:
        name = file.relative_to(path).as_posix()
        shape = pictures[0].shape if pictures else None
        try:
            pictures.append(_picture(file, name, uri, channels, shape))
            if len(pictures) == 1:  # the others are as large; as floats beside bytes twice
                require_room(len(files), 6 * pictures[0].nbytes, uri)
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
            if strict:
                raise DataError(
                    f"{uri}: {name!r} does not decode as a picture ({one_line(error, 80)}); write "
                    "it again or remove it"
                ) from error
            damaged.append(name)
            continue
        names.append(name)
    if len(damaged) > _DAMAGED * len(files):
        raise DataError(
            f"{uri}: {len(damaged):,} of {len(files):,} pictures do not decode, such as "
            f"{listing(damaged, _NAMED)}; write them again or remove them"
        )
    kinds = [Path(name).parent.as_posix() for name in names]
    labelled = len(set(kinds)) > 1 or columns.label is not None
    labels = np.array(kinds) if labelled else np.zeros(len(names), np.int64)
    least = 1 if strict else 2
    rows = accept(np.stack(pictures), labels, ids=np.array(names), uri=uri, least=least)
    return Images(rows, labelled, tuple(damaged))


def _picture(
    file: Path, name: str, uri: str, channels: int | None, shape: tuple[int, ...] | None
) -> np.ndarray:
    """Return a picture ``(h, w)`` or ``(h, w, c)`` uint8; its head is read before its pixels."""
    try:
        with opened(file) as picture:
            if shape is not None and picture.size != (shape[1], shape[0]):
                raise DataError(
                    f"{uri}: {name!r} has {picture.size[0]} x {picture.size[1]} pixels, and "
                    f"the pictures before it {shape[1]} x {shape[0]}; give all the same size"
                )
            mode = _MODES.get(channels or 0) or (picture.mode if picture.mode == "L" else "RGB")
            return np.asarray(picture.convert(mode))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{uri}: {name!r} is too large for a picture") from error


def damaged_note(images: Images) -> str | None:
    """Return what to say of pictures that were left out."""
    if not images.damaged:
        return None
    count = len(images.damaged)
    named = listing(list(images.damaged), _NAMED)
    return f"{count:,} training picture{'s do' if count > 1 else ' does'} not decode: {named}"
