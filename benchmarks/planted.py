"""Leaks that are planted: queries made from training rows by what happens to copies on their way.

Some of the queries are training rows, each with one change; the others are as they were. Images are
shifted by two pixels, mirrored, cropped and enlarged, compressed (JPEG, quality 50), made brighter
by a quarter and given noise; one in seven is left as it is. Texts lose a tenth of their words, have
a tenth replaced by words of other texts, or have one in five swapped with the next. Rows of a table
have every number jittered by a hundredth of its column's spread, or one column taken from another
row.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import RECIPES, Case, Recipe, arrays, convolutional, perceptron, pixels
from PIL import Image, ImageEnhance
from sklearn.datasets import load_breast_cancer
from sklearn.feature_extraction.text import TfidfVectorizer

#: Kinds of rows; images and texts come from files.
KINDS = ("images", "texts", "table")
#: Queries made of each change, and those that are clean.
EACH, CLEAN = 40, 600


#: A case, what was done to each query ("" for clean ones), whose copies they are, and the images.
Leaks = tuple[Case, np.ndarray, dict[int, int], tuple[np.ndarray, np.ndarray] | None]


def planted(kind: str, state: str, seed: int, file: Path | None, device: str = "cpu") -> Leaks:
    """Return queries of which some are changed training rows.

    Args:
        kind: One of `KINDS`.
        state: "memorised" or "generalising".
        seed: Of the weights, the rows that are copied and the changes.
        file: With images (keys of the leakage file; its own leaks are left out) or texts.
        device: See `Case`.
    """
    rng = np.random.default_rng([17, seed])
    if kind == "table":
        return _table(state, seed, rng, device)
    assert file is not None, "images and texts come from files"
    make = _images if kind == "images" else _texts
    return make(state, seed, rng, arrays(file), device)


def _images(
    state: str,
    seed: int,
    rng: np.random.Generator,
    held: Mapping[str, np.ndarray],
    device: str,
) -> Leaks:
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "same": lambda x: x,
        "shift": lambda x: np.pad(x, ((2, 0), (2, 0), (0, 0)), mode="edge")[:-2, :-2],
        "mirror": lambda x: x[:, ::-1],
        "crop": lambda x: _picture(x, _cropped),
        "jpeg": lambda x: _picture(x, _compressed),
        "brightness": lambda x: _picture(x, lambda p: ImageEnhance.Brightness(p).enhance(1.25)),
        "noise": lambda x: np.clip(x + rng.normal(0, 8, x.shape), 0, 255).astype(np.uint8),
    }
    train, y = held["train_x"], held["train_y"].astype(np.int64)
    clean = rng.permutation(np.flatnonzero(~(held["test_leaked"] | held["test_lookalike_absent"])))[
        :CLEAN
    ]
    source = rng.permutation(len(train))[: EACH * len(changes)]
    made = [change(train[i]) for i, change in zip(source, _each(changes), strict=True)]
    images = np.concatenate([held["test_x"][clean], np.stack(made)])
    labels = np.concatenate([held["test_y"][clean], y[source]]).astype(np.int64)
    return _case(
        "images", state, seed, pixels(train), y, pixels(images), labels, list(changes), source,
        convolutional(int(y.max()) + 1, train.shape[-1]), RECIPES["images", state], device,
        (train, images),
    )  # fmt: skip


def _texts(
    state: str,
    seed: int,
    rng: np.random.Generator,
    held: Mapping[str, np.ndarray],
    device: str,
) -> Leaks:
    texts, y = held["train_text"].tolist(), held["train_y_clean"].astype(np.int64)
    every = sorted({word for text in texts for word in text.split()})

    def shorter(words: list[str]) -> list[str]:
        return [word for word in words if rng.random() >= 0.1]

    def replaced(words: list[str]) -> list[str]:
        return [str(rng.choice(every)) if rng.random() < 0.1 else word for word in words]

    def swapped(words: list[str]) -> list[str]:
        found = list(words)
        for at in np.flatnonzero(rng.random(max(0, len(found) - 1)) < 0.2):
            found[at], found[at + 1] = found[at + 1], found[at]
        return found

    changes = {"shorter": shorter, "replaced": replaced, "swapped": swapped}
    source = rng.permutation(len(texts))[: EACH * len(changes)]
    made = [
        " ".join(change(texts[i].split())) for i, change in zip(source, _each(changes), strict=True)
    ]
    words = TfidfVectorizer(max_features=3000, sublinear_tf=True, min_df=2)
    x = words.fit_transform(texts).toarray().astype(np.float32)
    clean = rng.permutation(len(held["test_y"]))[:CLEAN]
    asked = held["test_text"][clean].tolist() + made
    labels = np.concatenate([held["test_y"][clean], y[source]]).astype(np.int64)
    return _case(
        "texts", state, seed, x, y, words.transform(asked).toarray().astype(np.float32), labels,
        list(changes), source, perceptron(x.shape[1], 64, int(y.max()) + 1),
        RECIPES["texts", state], device,
    )  # fmt: skip


def _table(state: str, seed: int, rng: np.random.Generator, device: str) -> Leaks:
    x, y = load_breast_cancer(return_X_y=True)
    order = rng.permutation(len(x))
    x, y = ((x - x.mean(0)) / x.std(0)).astype(np.float32)[order], y[order].astype(np.int64)
    train, labels, others, truth = x[:350], y[:350], x[350:], y[350:]

    def jittered(row: np.ndarray) -> np.ndarray:
        return row + rng.normal(0, 0.01, row.shape)

    def crossed(row: np.ndarray) -> np.ndarray:
        found = row.copy()
        column = rng.integers(len(row))
        found[column] = train[rng.integers(len(train)), column]
        return found

    changes = {"jittered": jittered, "one column": crossed}
    source = rng.permutation(len(train))[: EACH * len(changes)]
    made = [change(train[i]) for i, change in zip(source, _each(changes), strict=True)]
    recipe = Recipe(epochs=200 if state == "memorised" else 30, rate=0.1, batch=32)
    return _case(
        "table", state, seed, train, labels,
        np.concatenate([others, np.stack(made)]).astype(np.float32),
        np.concatenate([truth, labels[source]]), list(changes), source,
        perceptron(x.shape[1], 64, 2), recipe, device,
    )  # fmt: skip


def _each(changes: Mapping[str, Any]) -> list[Any]:
    return [change for change in changes.values() for _ in range(EACH)]


def _case(
    kind: str,
    state: str,
    seed: int,
    x: np.ndarray,
    y: np.ndarray,
    query_x: np.ndarray,
    query_y: np.ndarray,
    changes: list[str],
    source: np.ndarray,
    make: Callable[[int], torch.nn.Module],
    recipe: Recipe,
    device: str,
    images: tuple[np.ndarray, np.ndarray] | None = None,
) -> Leaks:
    rows = map(torch.as_tensor, (x, y, y, query_x, query_y))
    clean = len(query_x) - len(source)
    done = np.array([""] * clean + [name for name in changes for _ in range(EACH)], dtype=object)
    found = Case(f"planted leaks, {kind}, {state}", seed, *rows, make, recipe, device)
    return found, done, {clean + i: int(row) for i, row in enumerate(source)}, images


def _picture(x: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Change one image of bytes ``(h, w, C)``, C 1 or 3."""
    made = np.asarray(change(Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x)))
    return made.reshape(x.shape)


def _cropped(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    return picture.crop((2, 2, width - 2, height - 2)).resize((width, height))


def _compressed(picture: Image.Image) -> Image.Image:
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=50)
    return Image.open(held)
