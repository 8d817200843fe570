"""Planted copies: rows that surely leaked, to see how many of such a search finds.

Copies of training rows under the changes that the searches say they stand: images shifted,
mirrored, and, where the model's encodings are asked, cropped and recoloured; texts that lost words,
were reworded, cut or re-cased; tables with a little noise. They are asked along with the queries,
and counted apart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from forward_inf_mlflow.detect import neighbours as nb
from forward_inf_mlflow.detect.searches import WIDE

#: How many are planted at most: enough to tell a share to some seven points.
PLANTED = 48
#: Noise, in spreads of a column; share of the words that a text loses; of a picture's contrast.
_NOISE, _LOST, _CONTRAST = 0.01, 0.05, 0.1
#: Share of its words that a text loses, that are others', and that stay where it is cut.
_DROPPED, _REWORDED, _STAYS = 0.2, 0.1, 2 / 3
#: In how many pixels one is cut off at each side; smaller pictures are not cropped.
_CUT = 24


def planted(train: np.ndarray, *, encoded: bool) -> tuple[np.ndarray, str]:
    """Return changed copies of some training rows ``(k, ...)``, and what was done to them.

    Args:
        train: ``(n, ...)`` inputs, or texts ``(n,)``.
        encoded: Whether the model's encodings are asked, too.
    """
    rng = np.random.default_rng(0)
    rows = train[np.sort(rng.permutation(len(train))[:PLANTED])]
    if nb.are_texts(rows):
        return _changed_texts(rows, train, rng), "that lost words, were reworded, cut or re-cased"
    images = nb.as_images(rows)
    if images is not None:
        changes: list[Callable[[np.ndarray, np.random.Generator], np.ndarray]] = [_moved]
        said = "shifted or mirrored"
        if encoded:
            changes.append(_recoloured)
            said = "shifted, mirrored or recoloured"
            if min(images.shape[2:]) >= _CUT:
                changes.append(_cropped)
                said = "shifted, mirrored, recoloured or cropped"
        changed = np.stack(
            [changes[i % len(changes)](image, rng) for i, image in enumerate(images)]
        )
        if images.shape != rows.shape:  # channels came last, or not at all
            changed = changed[:, 0] if rows.ndim == 3 else changed.transpose(0, 2, 3, 1)
        return changed.astype(train.dtype), said
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    if flat.shape[1] >= WIDE and np.mean(flat == 0) > 0.5:
        lost = rng.random(flat.shape) < _LOST
        return np.where(lost, 0, flat).reshape(rows.shape).astype(train.dtype), "that lost words"
    spread = train.reshape(len(train), -1).astype(np.float64).std(0)
    noise = _NOISE * np.minimum(spread, 1e300) * rng.normal(size=flat.shape)
    return (flat + noise).reshape(rows.shape).astype(train.dtype), "with a little noise"


def _changed_texts(rows: np.ndarray, train: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change each text in one of four ways, in turn."""
    found = []
    for i, text in enumerate(rows):
        words = str(text).split()
        stranger = str(train[rng.integers(len(train))]).split() or words
        if i % 4 == 0:
            words = [word for word in words if rng.random() >= _DROPPED]
        elif i % 4 == 1:
            other = rng.random(len(words)) < _REWORDED
            words = [
                stranger[rng.integers(len(stranger))] if new else word
                for word, new in zip(words, other, strict=True)
            ]
        elif i % 4 == 2:
            stays = -(-len(words) * _STAYS // 1)
            start = rng.integers(len(words) - int(stays) + 1)
            words = words[start : start + int(stays)]
        else:
            words = [word.upper() for word in words]
        found.append(" ".join(words) or str(text))
    return np.array(found, dtype=object)


def _moved(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift by one or two pixels, the edge repeated; mirror every other one."""
    down, right = rng.integers(-2, 3, size=2)
    down = down or 1
    wide = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="edge")
    h, w = image.shape[1:]
    moved = wide[:, 2 - down : 2 - down + h, 2 - right : 2 - right + w]
    return moved[..., ::-1] if rng.random() < 0.5 else moved


def _cropped(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut one pixel off each side for so many, and stretch what is left."""
    h, w = image.shape[1:]
    cut = [size // _CUT for size in (h, w)]
    rows, columns = (
        np.linspace(c, size - 1 - c, size).round().astype(int)
        for c, size in zip(cut, (h, w), strict=True)
    )
    return image[:, rows][:, :, columns]


def _recoloured(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change contrast and brightness by a tenth."""
    contrast, brightness = _CONTRAST * rng.choice([-1, 1], 2) * (1, image.std()) + (1, 0)
    centre = image.mean()
    return np.asarray((image - centre) * contrast + centre + brightness)
