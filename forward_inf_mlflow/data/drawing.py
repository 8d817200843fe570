"""Drawing: only so many rows of a data set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from forward_inf_mlflow.data.lineage import DataSet


def at_most(data: DataSet, most: int | None, seed: int) -> tuple[DataSet, bool]:
    """Draw rows at random, in the data's order; say whether any were left out."""
    if most is None or most >= len(data.rows):
        return data, False
    chosen = np.random.default_rng(seed).choice(len(data.rows), most, replace=False)
    return replace(data, rows=data.rows.take(np.sort(chosen))), True
