"""Texts by n-grams: reworded, cut and re-cased copies are found, clean texts are not accused."""

from __future__ import annotations

import numpy as np
import pytest

from forward_inf_mlflow.detect.duplicates import duplicates
from forward_inf_mlflow.detect.leakage import leaked
from forward_inf_mlflow.detect.neighbours import chance_copies, row_keys
from forward_inf_mlflow.detect.ngrams import Grams
from forward_inf_mlflow.detect.planted import planted

WORDS = np.array([f"w{i}" for i in range(2000)])


def written(count: int, seed: int, length: int = 30) -> np.ndarray:
    """Return texts whose words are as unevenly frequent as those of a language."""
    rng = np.random.default_rng(seed)
    share = 1 / (1 + np.arange(len(WORDS)))
    drawn = rng.choice(len(WORDS), (count, length), p=share / share.sum())
    return np.array([" ".join(WORDS[row]) for row in drawn], dtype=object)


TRAIN, CLEAN = written(800, 0), written(300, 1)


def words(text: str) -> list[str]:
    return text.split()


CHANGES = {
    "re-cased": str.upper,
    "cut to a half": lambda t: " ".join(words(t)[8:23]),
    "without every fourth word": lambda t: " ".join(w for i, w in enumerate(words(t)) if i % 4),
    "halves exchanged": lambda t: " ".join(words(t)[15:] + words(t)[:15]),
    "inside a longer one": lambda t: f"{CLEAN[0]} {t} {CLEAN[1]}",
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found(change: str) -> None:
    copies = np.array([CHANGES[change](t) for t in TRAIN[::40]], dtype=object)
    found = leaked(np.concatenate([CLEAN, copies]), TRAIN, None)
    index = found.train_index[len(CLEAN) :]
    assert (found.flags[len(CLEAN) :] & (index == np.arange(0, len(TRAIN), 40))).mean() >= 0.9
    assert found.flags[: len(CLEAN)].mean() <= 0.02


def test_planted_copies_say_how_many_are_found() -> None:
    found = leaked(CLEAN, TRAIN, None)
    assert found.measure.reliability is not None
    assert found.measure.reliability > 0.8
    assert "cut or re-cased" in found.measure.note
    copies, _ = planted(TRAIN, encoded=False)
    assert len(copies) == 48
    assert sum(text == text.upper() for text in copies) >= 12
    assert not np.isin(copies, TRAIN).any()


def test_equal_texts_are_exact_copies_unless_anybody_would_write_them() -> None:
    queries = np.array([TRAIN[5], "ok", *CLEAN[:50]], dtype=object)
    short = np.array(["ok", "ok", "yes", "yes", "no", "no"] * 20, dtype=object)
    found = leaked(queries, np.concatenate([TRAIN, short]), None)
    assert found.kind[0] == "exact"
    assert found.train_index[0] == 5
    assert found.kind[1] == ""
    assert chance_copies("ok", short) > 1


def test_a_script_without_blanks_is_read_by_characters() -> None:
    rng = np.random.default_rng(0)
    signs = np.array([chr(0x4E00 + i) for i in range(400)])
    texts = np.array(["".join(rng.choice(signs, 40)) for _ in range(100)], dtype=object)
    grams = Grams(texts)
    near = grams.nearest(grams.of(np.array([texts[7][10:30]], dtype=object)))
    assert near.index[0] == 7
    assert near.gap[0] < -2


def test_copies_among_training_texts_are_paired() -> None:
    rows = TRAIN.copy()
    rows[10], rows[20], rows[30] = rows[11], rows[21].upper(), rows[31] + " and more"
    found = duplicates(rows, np.arange(len(rows)) % 2)
    assert found.twin[[10, 20, 30]].tolist() == [11, 21, 31]
    assert found.exact.sum() == 2
    assert found.conflict[[10, 11, 20, 21]].all()
    assert (found.twin >= 0).sum() <= 8
    assert len(np.unique(row_keys(rows))) == len(rows) - 1
