"""Nearest training rows of queries: exact copies, near copies, images also under small shifts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from forward_inf_mlflow.detect.index import Index

#: Which neighbour stands for "usually near": the distance to the first is compared with it.
RANK = 5
#: Largest distance matrix held at once, in numbers.
_BLOCK = 32_000_000
#: Rows of which an index is asked at once.
_ASKED = 100_000
#: Multiplications beyond which shifts are not searched (minutes on two cores).
_SHIFT_BUDGET = 4e13


@dataclass(frozen=True)
class Nearest:
    """The nearest distinct training rows of every query.

    Attributes:
        index: ``(m,)`` position of the nearest training row.
        gap: ``(m,)`` log of its distance over that of the fifth; far below the others: a copy.
        distance: ``(m,)`` log of its distance.
    """

    index: np.ndarray
    gap: np.ndarray
    distance: np.ndarray


def are_texts(rows: np.ndarray) -> bool:
    """Return whether rows are texts ``(n,)``; else they are numbers ``(n, ...)``."""
    return rows.ndim == 1 and rows.dtype.kind in "OU"


def row_keys(rows: np.ndarray) -> np.ndarray:
    """Return ``(n,)`` integers, the same for two rows only if all their values are the same."""
    if are_texts(rows):
        return np.unique(rows, return_inverse=True)[1].reshape(-1)
    flat = np.ascontiguousarray(rows.reshape(len(rows), -1)) + 0  # -0.0 becomes 0.0
    void = flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1]))).ravel()
    keys: np.ndarray = np.unique(void, return_inverse=True)[1].reshape(-1)
    return keys


def exact_copies(queries: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return for every query ``(m,)`` the first training row with the same values, or -1."""
    keys = row_keys(np.concatenate([queries, train]))
    of_queries, of_train = keys[: len(queries)], keys[len(queries) :]
    first = np.full(keys.max() + 1, -1)
    first[of_train[::-1]] = np.arange(len(train))[::-1]
    found: np.ndarray = first[of_queries]
    return found


def chance_copies(row: np.ndarray | str, train: np.ndarray, *, sample: int = 5000) -> float:
    """Return how many copies of ``row`` to expect in ``train`` if columns were independent.

    Tables of few, coarse columns hold the same values by chance; images never do. Of a text, the
    words are taken to be independent.
    """
    if are_texts(train):
        held = [set(text.split()) for text in train[:: max(1, len(train) // sample)]]
        words = set(str(row).split())
        shares = [max(sum(word in one for one in held), 1) / len(held) for word in words]
        return float(len(train) * np.exp(np.log(shares).sum()))
    some = train.reshape(len(train), -1)[:: max(1, len(train) // sample)]
    share = np.maximum((some == np.reshape(row, (1, -1))).mean(0), 1 / len(some))
    return float(len(train) * np.exp(np.log(share).sum()))


def twins(keys: np.ndarray) -> float:
    """Return the share of rows that another row equals, from :func:`row_keys`."""
    counts = np.bincount(keys)
    return float((counts[keys] > 1).mean())


def as_images(rows: np.ndarray) -> np.ndarray | None:
    """Return the rows as images ``(n, C, H, W)``, or None if their shape is not an image's."""
    if rows.ndim == 3:
        rows = rows[:, None]
    if rows.ndim != 4:
        return None
    if rows.shape[1] > 4 and rows.shape[3] <= 4:
        rows = rows.transpose(0, 3, 1, 2)
    return rows if rows.shape[1] <= 4 and min(rows.shape[2:]) >= 4 else None


def standardized(queries: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as flat float32 rows, each column centred and over its spread in training."""
    flat, other = (x.reshape(len(x), -1).astype(np.float64) for x in (train, queries))
    # A single sentinel such as -999999 must not press all other rows together: the spread is that
    # of the middle rows, and what lies far outside is cut off.
    low, centre, high = np.quantile(flat, (0.05, 0.5, 0.95), axis=0)
    spread = (high - low) / 3.29  # a normal distribution's standard deviation
    rare = spread <= 1e-12 * np.maximum(1, np.abs(centre))
    spread[rare] = np.minimum(flat.std(0), 1e300)[rare]
    keep = spread > 1e-12 * np.maximum(1, np.abs(centre))
    other, flat = (
        np.clip((x[:, keep] - centre[keep]) / spread[keep], -50, 50).astype(np.float32)
        for x in (other, flat)
    )
    return other, flat


def search_radius(queries: np.ndarray, train: np.ndarray) -> int:
    """Return how many pixels of shift are searched: 2, 1 or, beyond the budget, 0."""
    once = 2.0 * len(queries) * train.size  # mirrored, too
    return next((r for r in (2, 1) if once * (2 * r + 1) ** 2 <= _SHIFT_BUDGET), 0)


def nearest_images(
    queries: np.ndarray, train: np.ndarray, *, radius: int, own: np.ndarray | None = None
) -> Nearest:
    """Find the nearest images ``(n, C, H, W)``, mirrored or not, under shifts of a few pixels.

    Every shift of up to ``radius`` pixels is tried; a shifted pair is compared where both
    overlap, per pixel. ``own``: as in `nearest_rows`.
    """
    centre = np.float32(train.mean())
    a, b = (x.astype(np.float32) - centre for x in (queries, train))
    crops = []
    for dy, dx in shifts(radius):
        y = overlap(b, -dy, -dx).reshape(len(b), -1)
        crops += [(overlap(x, dy, dx).reshape(len(x), -1), y) for x in (a, a[..., ::-1])]
    return _nearest(crops, own)


def nearest_rows(
    queries: np.ndarray, train: np.ndarray, *, own: np.ndarray | None = None
) -> Nearest:
    """Find the nearest rows ``(n, d)`` by Euclidean distance.

    ``own``: ``(m,)`` where the queries are training rows themselves, their positions, which do
    not count as neighbours.
    """
    return _nearest([(queries.astype(np.float32), train.astype(np.float32))], own)


def nearest_by_index(rows: np.ndarray) -> Nearest | None:
    """Find the nearest other row of each of very many; None where there is no index (`index`).

    Args:
        rows: ``(n, d)`` float32.
    """
    index = Index.of(rows)
    if index is None:
        return None
    n = len(rows)
    near, first, fifth = np.empty(n, dtype=np.int64), np.empty(n), np.empty(n)
    for start in range(0, n, _ASKED):
        part = slice(start, start + _ASKED)
        found, distance = index.nearest(rows[part], RANK, own=np.arange(n)[part])
        near[part], first[part], fifth[part] = found[:, 0], distance[:, 0], distance[:, -1]
    return told(near, np.sqrt(first), np.sqrt(fifth))


def shifts(radius: int) -> Iterator[tuple[int, int]]:
    """Yield every shift (down, right) of up to ``radius`` pixels, none first."""
    steps = sorted(range(-radius, radius + 1), key=abs)
    return ((dy, dx) for dy in steps for dx in steps)


def overlap(images: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Return the part of the images that a copy moved by (-dy, -dx) shares with them."""
    h, w = images.shape[-2:]
    return images[..., max(0, dy) : h + min(0, dy), max(0, dx) : w + min(0, dx)]


def best_view(query: np.ndarray, row: np.ndarray, *, radius: int) -> tuple[bool, tuple[int, int]]:
    """Return how ``row`` becomes ``query``, both ``(C, H, W)``: mirrored?, shift (down, right)."""

    def distance(view: tuple[bool, tuple[int, int]]) -> float:
        mirrored, (dy, dx) = view
        mine = query[..., ::-1] if mirrored else query
        return float(np.square(overlap(mine, dy, dx) - overlap(row, -dy, -dx)).mean())

    return min(((m, s) for m in (False, True) for s in shifts(radius)), key=distance)


def _nearest(pairs: list[tuple[np.ndarray, np.ndarray]], own: np.ndarray | None) -> Nearest:
    """Take the smallest mean squared difference over the pairs of views, then the gap."""
    m, n = len(pairs[0][0]), len(pairs[0][1])
    squares = [np.einsum("ij,ij->i", b, b) for _, b in pairs]
    step = max(1, _BLOCK // n)
    index, first, fifth = np.empty(m, dtype=np.int64), np.empty(m), np.empty(m)
    for start in range(0, m, step):
        rows = slice(start, start + step)
        best: np.ndarray | None = None
        for (a, b), bb in zip(pairs, squares, strict=True):
            x = a[rows]
            d = (np.einsum("ij,ij->i", x, x)[:, None] + bb - 2 * (x @ b.T)) / max(1, x.shape[1])
            best = d if best is None else np.minimum(best, d, out=best)
        assert best is not None, "there is at least one view"
        if own is not None:
            best[np.arange(len(best)), own[rows]] = np.inf
        index[rows], one, last = first_and_fifth(best)
        first[rows], fifth[rows] = (np.sqrt(np.maximum(x, 0)) for x in (one, last))
    return told(index, first, fifth)


def first_and_fifth(distance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where the nearest lies, and how far it and the fifth are, each ``(k,)``.

    Args:
        distance: ``(k, n)``.
    """
    rank = min(RANK, distance.shape[1])
    near = np.argpartition(distance, rank - 1, axis=1)[:, :rank]
    near = np.take_along_axis(near, np.argsort(np.take_along_axis(distance, near, 1), 1), 1)
    found = np.take_along_axis(distance, near, 1)
    return near[:, 0], found[:, 0], found[:, -1]


def told(index: np.ndarray, first: np.ndarray, fifth: np.ndarray) -> Nearest:
    """Return what two distances say."""
    tiny = 1e-4 * float(np.median(fifth)) + np.finfo(np.float32).tiny
    logs = np.log(np.maximum(first, tiny))
    return Nearest(index, logs - np.log(np.maximum(fifth, tiny)), logs)


def nearest_ranks(
    queries: np.ndarray,
    train: np.ndarray,
    ranks: int,
    *,
    own: np.ndarray | None = None,
    index: Index | None = None,
) -> Iterator[np.ndarray]:
    """Yield the positions of the nearest rows, nearest first, ``(rows, ranks)``, block by block.

    Args:
        queries: ``(m, d)`` float32.
        train: ``(n, d)`` float32.
        ranks: How many.
        own: ``(m,)`` a training row that does not count for each query, -1 for none.
        index: That of ``train``, to ask instead of comparing each query with each row.
    """
    if index is not None:
        for start in range(0, len(queries), _ASKED):
            part = slice(start, start + _ASKED)
            yield index.nearest(queries[part], ranks, own=None if own is None else own[part])[0]
        return
    squares = np.einsum("ij,ij->i", train, train)
    step = max(1, _BLOCK // len(train))
    for start in range(0, len(queries), step):
        # The query's own square is the same for all: it changes no order.
        d = squares - 2 * (queries[start : start + step] @ train.T)
        if own is not None:
            mine = own[start : start + step]
            rows = np.flatnonzero(mine >= 0)
            d[rows, mine[rows]] = np.inf
        near = np.argpartition(d, ranks - 1, axis=1)[:, :ranks]
        order = np.argsort(np.take_along_axis(d, near, 1), axis=1, kind="stable")
        yield np.take_along_axis(near, order, 1)


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows ``(n, d)`` at unit length, float32."""
    rows = rows.astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, np.finfo(np.float32).tiny))


def deviations(values: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Return how many robust standard deviations values lie above the usual ones' median.

    Where these have no spread nothing deviates.
    """
    centre = float(np.median(usual))
    spread = 1.4826 * float(np.median(np.abs(usual - centre)))
    return np.asarray((values - centre) / (spread if spread > 0 else np.inf))
