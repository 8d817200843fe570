"""Rows: what an audit reads of a data set, before any model has seen it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from forward_inf_mlflow.data.fingerprint import row_digests


@dataclass(frozen=True)
class Decoded:
    """What became of the pictures that rows were read from.

    Attributes:
        whole: How many pictures the file or folder has.
        positions: ``(n,)`` the place of each row among them.
        lost: Ids of those that were left out, by the reason.
        faded: How many lost their colours or transparency.
        folders: ``(K,)`` the folders that they lie in, sorted, where these are their labels.
        told: How they were read, one clause.
    """

    whole: int
    positions: np.ndarray
    lost: Mapping[str, tuple[str, ...]]
    faded: int
    folders: np.ndarray | None
    told: str


@dataclass(frozen=True)
class Rows:
    """A data set in memory.

    Attributes:
        features: ``(n, d)`` frame with named columns, or ``(n, ...)`` array of numbers.
        labels: ``(n,)`` labels (or regression targets) as they were stored.
        ids: ``(n,)`` strings, unique; the row's position where the data has no id column.
        sources: ``(n,)`` strings that say where each row came from, or None.
        uri: Where the rows were read from, without credentials.
        sha256: Digest of every feature, label, id and source, in order.
        texts: ``(n, t)`` columns of text that the model does not read, for whoever looks at rows;
            None where there are none.
        decoded: Of rows that were read from pictures, what became of these.
        targets: ``(n, k)`` float64, several labels a row, which ``labels`` hold as text; or None.
        label_names: ``(k,)`` what these are called.
    """

    features: pd.DataFrame | np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    sources: np.ndarray | None
    uri: str
    sha256: str
    texts: pd.DataFrame | None = None
    decoded: Decoded | None = None
    targets: np.ndarray | None = None
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def _digests(self) -> tuple[np.ndarray, np.ndarray]:
        return row_digests(self.features, self.labels if self.targets is None else self.targets)

    @property
    def feature_digests(self) -> np.ndarray:
        """Return the digest of each row's features, ``(n,)`` text; see `row_digests`."""
        return self._digests[0]

    @property
    def digests(self) -> np.ndarray:
        """Return the digest of each row's features and label, ``(n,)`` text."""
        return self._digests[1]

    def take(self, index: np.ndarray) -> Rows:
        """Return the rows at ``index`` (positions or a mask); ``sha256`` stays the whole's."""
        features = (
            self.features.iloc[index].reset_index(drop=True)
            if isinstance(self.features, pd.DataFrame)
            else self.features[index]
        )
        return replace(
            self,
            features=features,
            labels=self.labels[index],
            ids=self.ids[index],
            sources=None if self.sources is None else self.sources[index],
            texts=None if self.texts is None else self.texts.iloc[index].reset_index(drop=True),
            decoded=None
            if self.decoded is None
            else replace(self.decoded, positions=self.decoded.positions[index]),
            targets=None if self.targets is None else self.targets[index],
        )


def as_table(features: pd.DataFrame | np.ndarray) -> pd.DataFrame:
    """Return stored features ``(n, d)`` as a table; one without columns for any other shape."""
    if isinstance(features, pd.DataFrame):
        return features
    return pd.DataFrame(features if features.ndim == 2 else np.empty((len(features), 0)))
