"""Nearest rows, and which arrays are images."""

from __future__ import annotations

import numpy as np
import pytest
from leaks import M, N, table

from forward_inf_mlflow.detect import neighbours as nb


def test_nearest_rows_are_those_of_the_obvious_loop_for_any_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queries, train = table(M, 1), table(N)
    distance = np.sqrt(np.square(queries[:, None] - train).sum(2))
    nearest = np.sort(distance, 1)
    for block in (1, 7 * N, 10**9):
        monkeypatch.setattr(nb, "_BLOCK", block)
        near = nb.nearest_rows(queries, train)
        assert (near.index == distance.argmin(1)).all()
        np.testing.assert_allclose(near.gap, np.log(nearest[:, 0] / nearest[:, 4]), atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "as_image"),
    [
        ((9, 8, 8), (9, 1, 8, 8)),
        ((9, 3, 8, 8), (9, 3, 8, 8)),
        ((9, 8, 6, 3), (9, 3, 8, 6)),
        ((9, 8), None),
        ((9, 3, 3), None),
        ((9, 16, 8, 8), None),
        ((9, 2, 3, 8, 8), None),
    ],
)
def test_images_are_told_by_their_shape(
    shape: tuple[int, ...], as_image: tuple[int, ...] | None
) -> None:
    found = nb.as_images(np.zeros(shape))
    assert (None if found is None else found.shape) == as_image
