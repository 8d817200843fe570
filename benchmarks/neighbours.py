"""Near copies among very many rows: how long the index takes, and what it misses.

Rows are made by a random network of few hidden directions, as encodings are, with 100 near copies
planted; each row's nearest other row is looked for through the index of the extra "large", then the
40 nearest that vote for its label, and both for 1,000 rows by comparing them with all.

    OMP_NUM_THREADS=1 python benchmarks/neighbours.py [--rows 1000000] [--columns 128] [--json FILE]

A million rows take some ten minutes and 2.5 GB.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
from measure import line, machine, write

from forward_inf_mlflow.detect import neighbours as nb
from forward_inf_mlflow.detect.index import Index

HIDDEN, WIDE, PLANTED, CHECKED, VOTERS = 12, 256, 100, 1000, 40


def rows(n: int, d: int) -> np.ndarray:
    """Return rows at unit length ``(n, d)``; the first 100 nearly copy 100 from the middle on."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((n, HIDDEN)).astype(np.float32)
    first = rng.standard_normal((HIDDEN, WIDE)).astype(np.float32)
    second = rng.standard_normal((WIDE, d)).astype(np.float32)
    made = np.empty((n, d), np.float32)
    for part in np.array_split(np.arange(n), max(1, n // 20_000)):
        noise = 0.1 * rng.standard_normal((len(part), d))
        made[part] = np.maximum(hidden[part] @ first, 0) @ second + noise
    copied = made[n // 2 : n // 2 + PLANTED]
    made[:PLANTED] = copied + 1e-3 * rng.standard_normal((PLANTED, d))
    return nb.unit(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=128)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    n, facts = arguments.rows, machine("voyager", "numpy")
    print(line(facts), end="\n\n")
    x = rows(n, arguments.columns)
    start = time.monotonic()
    found = nb.nearest_by_index(x)
    seconds = time.monotonic() - start
    asked = np.arange(0, n, max(1, n // CHECKED))[:CHECKED]
    start = time.monotonic()
    exact = nb.nearest_rows(x[asked], x, own=asked)
    each = time.monotonic() - start
    start = time.monotonic()
    index = Index.of(x)
    near = np.concatenate(list(nb.nearest_ranks(x, x, VOTERS, own=np.arange(n), index=index)))
    voted = time.monotonic() - start
    voters = np.concatenate(list(nb.nearest_ranks(x[asked], x, VOTERS, own=asked)))
    common = [len(np.intersect1d(*pair)) for pair in zip(near[asked], voters, strict=True)]
    figures = {
        "seconds": seconds,
        f"seconds, {VOTERS} voters": voted,
        f"of {VOTERS} voters found": float(np.mean(common)) / VOTERS,
        "seconds of comparing each with each": each * n / len(asked),
        "planted found": float((found.index[:PLANTED] == np.arange(PLANTED) + n // 2).mean()),
        "nearest found": float((found.index[asked] == exact.index).mean()),
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    write(arguments.json, {"machine": facts, "rows": n, **figures})


if __name__ == "__main__":
    main()
