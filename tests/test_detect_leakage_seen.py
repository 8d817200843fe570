"""Leaks that only the model shows: by its encodings, or by its features and influence together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from leaks import D, M, N, images, table

from forward_inf_mlflow.detect import neighbours as nb
from forward_inf_mlflow.detect.leakage import Leaked, ModelView, feature_copies, leaked


def encoded(copies: int, twins: int, seed: int) -> Leaked:
    """Leaks that only encodings show: the values are others altogether."""
    rng = np.random.default_rng(seed)
    seen, reference = rng.normal(size=(400, 16)), rng.normal(size=(2000, 16))
    reference[:twins] = reference[1000 : 1000 + twins] + 0.05 * rng.normal(size=(twins, 16))
    seen[:copies] = reference[500 : 500 + copies] + 0.05 * rng.normal(size=(copies, 16))
    unit = [
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (seen, reference)
    ]
    return leaked(table(400, seed + 1), table(2000, seed), None, encodings=(unit[0], unit[1]))


def test_copies_to_the_model_are_found_by_its_encodings() -> None:
    found = encoded(40, 0, 0)
    assert found.kind[:40].tolist() == ["encoded"] * 40
    assert found.train_index[:40].tolist() == list(range(500, 540))
    assert found.flags[40:].mean() <= 0.01
    assert "in the model's encodings" in found.evidence[0]
    assert 0.08 < found.measure.rate_low <= 0.1


def test_copies_inside_the_training_set_hide_leaks_and_invent_none() -> None:
    found = encoded(40, 200, 0)
    assert found.flags[40:].mean() <= 0.01


def test_the_promised_share_of_clean_queries_is_kept() -> None:
    accused = [encoded(0, 20, seed).flags.mean() for seed in range(20)]
    assert np.mean(accused) <= 0.01
    bounds = [encoded(0, 20, seed).measure.rate_low for seed in range(20)]
    assert np.mean(np.array(bounds) > 0) <= 0.1


def seen_by_model(*, features: bool, influence: bool) -> Leaked:
    """Queries 0 to 2 are paraphrases of training rows 40 to 42, which values do not show."""
    rng = np.random.default_rng(0)
    suspects = np.full(M, -1)
    scores = rng.normal(size=(M, N))
    for q in range(3):
        if features:
            suspects[q] = 40 + q
        if influence:
            scores[q, 40 + q] = 30
    return leaked(table(M, 1), table(N), ModelView(suspects, np.arange(M), scores))


def test_features_and_influence_that_name_one_row_are_a_leak() -> None:
    found = seen_by_model(features=True, influence=True)
    assert found.kind[:3].tolist() == ["influence"] * 3
    assert found.train_index[:3].tolist() == [40, 41, 42]
    assert found.flags.sum() == 3
    assert "names this row first" in found.evidence[0]


@pytest.mark.parametrize(("features", "influence"), [(True, False), (False, True), (False, False)])
def test_features_or_influence_alone_are_no_leak(features: bool, influence: bool) -> None:
    assert not seen_by_model(features=features, influence=influence).flags.any()


def test_a_row_that_tops_every_querys_influence_confirms_nothing() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(M, N))
    scores[:, 40] = 30
    suspects = np.full(M, -1)
    suspects[0] = 40
    found = leaked(table(M, 1), table(N), ModelView(suspects, np.arange(M), scores))
    assert not found.flags.any()


def test_influence_is_matched_to_the_queries_that_were_asked() -> None:
    asked = np.arange(M - 1, M - 31, -1)
    suspects, scores = np.full(M, -1), np.random.default_rng(0).normal(size=(30, N))
    suspects[M - 1], scores[0, 40] = 40, 30
    found = leaked(table(M, 1), table(N), ModelView(suspects, asked, scores))
    assert np.flatnonzero(found.flags).tolist() == [M - 1]

    few = ModelView(suspects, asked[:19], scores[:19])
    assert not leaked(table(M, 1), table(N), few).flags.any(), "too few to know a row's usual size"


def test_an_exact_copy_stays_exact_whatever_the_model_says() -> None:
    queries, train = table(M, 1), table(N)
    queries[0] = train[7]
    suspects, scores = np.full(M, -1), np.random.default_rng(0).normal(size=(M, N))
    suspects[0], scores[0, 40] = 40, 30
    found = leaked(queries, train, ModelView(suspects, np.arange(M), scores))
    assert (found.kind[0], found.train_index[0]) == ("exact", 7)


def test_feature_copies_are_those_in_direction_whatever_their_length() -> None:
    queries, train = table(M, 1), table(500)
    queries[:2] = 5 * train[[8, 9]] + 1e-4
    train[20:27] = train[8]  # twins hide nothing
    found = feature_copies(queries, train)
    assert found[:2].tolist() == [8, 9]
    assert (found[2:] == -1).all()
    assert (feature_copies(queries, train[:300]) == -1).all(), "too few to show their rate"


@pytest.mark.parametrize(
    ("queries", "train"),
    [
        (table(19, 1), table(N)),
        (table(M, 1), table(5)),
        (table(M, 1), np.ones((N, D), np.float32)),
        (np.zeros((M, D), np.float32), np.zeros((N, D), np.float32)),
    ],
    ids=["few queries", "few rows", "one row many times", "dead features"],
)
def test_features_that_cannot_show_what_is_usual_suspect_nobody(
    queries: np.ndarray, train: np.ndarray
) -> None:
    assert (feature_copies(queries, train) == -1).all()


def test_planted_copies_are_asked_of_the_encodings_too() -> None:
    queries, train = images()
    reference = table(850, 2)

    def reliability(encode: Callable[[np.ndarray], np.ndarray]) -> float:
        seen = nb.unit(table(150, 3)), nb.unit(reference)
        found = leaked(queries, train, None, encodings=seen, encode=encode).measure
        assert "shifted, mirrored or recoloured" in found.note
        assert found.reliability is not None
        return found.reliability

    def knowing(rows: np.ndarray) -> np.ndarray:
        return nb.unit(reference[: len(rows)] + 1e-3)

    # Pixels alone find what was shifted or mirrored, and some of the others.
    assert 0.5 <= reliability(lambda rows: nb.unit(table(len(rows), 4))) < 1
    assert reliability(knowing) == 1


def test_all_kinds_together_keep_the_promised_rate() -> None:
    # The features of clean queries, and an influence that always names what the features suspect.
    accused = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        seen, reference = rng.normal(size=(400, 8)), rng.normal(size=(1000, 8))
        # A quarter of the rows have no like: gaps with heavy tails.
        queries, train = (x * rng.choice([1, 1, 1, 0.01], (len(x), 1)) for x in (seen, reference))
        suspects = feature_copies(queries, train)
        influence = rng.normal(size=(400, 1000))
        influence[suspects >= 0, suspects[suspects >= 0]] = 1e3
        view = ModelView(suspects, np.arange(400), influence)
        accused.append(leaked(table(400, seed + 1), table(1000, seed), view).flags.mean())
    assert np.mean(accused) <= 0.01
