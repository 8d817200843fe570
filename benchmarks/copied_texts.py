"""Copies of news, changed in ways that texts are: which search finds them at 1 % of clean queries?

    OMP_NUM_THREADS=1 python benchmarks/copied_texts.py --data FILE

FILE has the keys of ``noisy_agnews_5k.npz``. Of 3,000 training texts 60 are copied for each change;
800 test texts are clean. Each search is the only one that is made (`searches.judge`), once by all
training texts, once by those that share no half with another. Clean queries that
are accused are mostly what several agencies printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from forward_inf_mlflow.detect import neighbours as nb
from forward_inf_mlflow.detect.ngrams import Grams
from forward_inf_mlflow.detect.searches import SAME_TEXT, Search, judge, sample

TRAIN, CLEAN, EACH, RATE = 3000, 800, 60, 0.01
DATA = Path(__file__).parents[2] / "shared" / "data" / "noisy_agnews_5k.npz"
Change = Callable[[list[str]], list[str]]


def changes(words: list[str], rng: np.random.Generator) -> dict[str, Change]:
    """Return what is done to the words of a text; ``words`` are those of all texts."""

    def without(share: float) -> Change:
        return lambda text: [word for word in text if rng.random() >= share]

    def reworded(share: float) -> Change:
        return lambda text: [
            words[rng.integers(len(words))] if rng.random() < share else word for word in text
        ]

    def cut(share: float) -> Change:
        def of(text: list[str]) -> list[str]:
            stays = max(3, round(len(text) * share))
            start = rng.integers(max(1, len(text) - stays + 1))
            return text[start : start + stays]

        return of

    return {
        "a twentieth lost": without(0.05),
        "three in ten lost": without(0.3),
        "a fifth reworded": reworded(0.2),
        "two fifths reworded": reworded(0.4),
        "a half left": cut(1 / 2),
        "a third left": cut(1 / 3),
        "capitals": lambda text: [word.upper() for word in text],
        "halves exchanged": lambda text: text[len(text) // 2 :] + text[: len(text) // 2],
    }


def searches(train: np.ndarray, asked: np.ndarray) -> dict[str, Search]:
    """Return ours and those beside it."""
    own = sample(train)
    grams = Grams(train)
    near, usual = grams.nearest(grams.of(asked)), grams.nearest(grams.train[own], own)
    same = grams.alike(own, usual.index) >= SAME_TEXT
    found = {"n-grams shared": (near, usual)}
    for name, settings in {
        "n-grams, cosine": {"ngram_range": (1, 2)},
        "characters, cosine": {"analyzer": "char_wb", "ngram_range": (4, 4)},
    }.items():
        made = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **settings)
        rows = made.fit_transform(train)
        found[name] = by_cosine(made.transform(asked), rows), by_cosine(rows[own], rows, own)
    return {
        f"{name}{told}": Search("near", *pair, False, 0.0, str, name, alone)
        for name, pair in found.items()
        for told, alone in (("", same), (", all", None))
    }


def by_cosine(asked: Any, train: Any, own: np.ndarray | None = None) -> nb.Nearest:
    """Return the nearest of sparse rows at unit length."""
    distance = np.sqrt(np.maximum(2 - 2 * (asked @ train.T).toarray(), 0))
    if own is not None:
        distance[np.arange(len(own)), own] = np.inf
    return nb.told(*nb.first_and_fifth(distance))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    held = np.load(options.data, allow_pickle=False)
    results: dict[str, dict[str, list[float]]] = {}
    for seed in range(options.seeds):
        rng = np.random.default_rng(seed)
        train = rng.permutation(held["train_text"])[:TRAIN].astype(object)
        clean = rng.permutation(held["test_text"])[:CLEAN].astype(object)
        source = rng.permutation(TRAIN)[:EACH]
        made = changes([word for text in train for word in text.split()], rng)
        copies = [" ".join(change(train[i].split())) for change in made.values() for i in source]
        asked = np.concatenate([clean, np.array(copies, dtype=object)])
        for name, search in searches(train, asked).items():
            ratio = judge(search, [search], RATE).ratio
            right = (ratio >= 1)[CLEAN:] & (
                search.asked.index[CLEAN:] == np.tile(source, len(made))
            )
            told = dict(zip(made, right.reshape(len(made), EACH).mean(1).tolist(), strict=True))
            told["clean accused"] = float((ratio[:CLEAN] >= 1).mean())
            for what, share in told.items():
                results.setdefault(name, {}).setdefault(what, []).append(share)
    means = {n: {w: float(np.mean(s)) for w, s in found.items()} for n, found in results.items()}
    for name, found in means.items():
        print(f"{name:28}", "  ".join(f"{what} {share:.3f}" for what, share in found.items()))
    if options.json:
        options.json.write_text(json.dumps(means, indent=1))


if __name__ == "__main__":
    main()
