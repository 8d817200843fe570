"""Peer: cleanlab's label quality scores from out-of-sample probabilities.

    .venv-peers/bin/python benchmarks/peers/label_quality.py FOLDER

``asked.npz`` in the folder holds the probabilities p ``(n, K)`` and the given labels: of classes
``(n,)`` numbers, of several labels a row ``(n, K)`` zeros and ones. ``said.npz`` is added: for each
of cleanlab's methods its scores ``(n,)``, the lower the more suspicious.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from cleanlab import multilabel_classification, rank

METHODS = ("self_confidence", "normalized_margin")


def main(folder: Path) -> None:
    with np.load(folder / "asked.npz", allow_pickle=False) as asked:
        p, given = asked["p"].astype(np.float64), asked["given"].astype(int)
    if given.ndim == 1:
        said = {one: rank.get_label_quality_scores(given, p, method=one) for one in METHODS}
    else:
        labels = [np.flatnonzero(row).tolist() for row in given]
        # Of a label that is set or not, the margin orders as the confidence does; what differs is
        # how a row's labels are put together: a mean that weighs the worst most, or the worst.
        score = multilabel_classification.get_label_quality_scores
        worst = {"method": np.min}
        said = {
            "self_confidence": score(labels, p),
            "worst_label": score(labels, p, aggregator_kwargs=worst),
        }
    np.savez(folder / "said.npz", **said)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
