"""Leaked query rows: copies by their values, exact, near, shifted or mirrored; who is accused."""

from __future__ import annotations

import numpy as np
import pytest
from leaks import D, M, N, images, table
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.model_selection import train_test_split

from forward_inf_mlflow.detect import neighbours as nb
from forward_inf_mlflow.detect.leakage import leaked
from forward_inf_mlflow.detect.planted import planted


def layout(x: np.ndarray, name: str) -> np.ndarray:
    return {"NHW": x, "NCHW": x[:, None], "NHWC": x[..., None]}[name]


def test_exact_copies_are_found_with_the_first_row_that_they_copy() -> None:
    queries, train = table(M, 1), table(N)
    queries[:9] = train[[7, 50, 9, 1, 2, 3, 4, 5, 6]]
    train[100] = train[50]
    found = leaked(queries, train, None)
    assert found.kind[:9].tolist() == ["exact"] * 9
    assert found.train_index[:3].tolist() == [7, 50, 9]
    assert found.flags.sum() == found.measure.count == 9
    assert np.flatnonzero(found.train_flags).tolist() == [*range(1, 8), 9, 50, 100], "and copies"
    assert found.evidence[0] == "every value is the same"
    assert (found.evidence[~found.flags] == "").all()


def test_minus_zero_is_zero() -> None:
    queries, train = table(M, 1), table(N)
    train[4, 2], queries[0] = 0.0, train[4]
    queries[0, 2] = -0.0
    assert leaked(queries, train, None).kind[0] == "exact"


@pytest.mark.parametrize("m", [1, 5, M])
def test_queries_that_are_the_training_set_are_all_found(m: int) -> None:
    train = table(N)
    found = leaked(train[:m].copy(), train, None)
    assert (found.kind == "exact").all()
    assert found.train_index.tolist() == list(range(m))
    assert found.measure.rate == 1


def test_rows_with_a_little_noise_are_near_copies() -> None:
    queries, train = table(M, 1), table(N)
    queries[:3] = train[[7, 50, 9]] + 1e-3
    found = leaked(queries, train, None)
    assert found.kind[:3].tolist() == ["near"] * 3
    assert found.train_index[:3].tolist() == [7, 50, 9]
    assert "of the distance of the fifth nearest row" in found.evidence[0]
    assert not found.flags[3:].any()
    assert found.score[:3].max() <= found.measure.threshold


def test_columns_of_any_scale_count_alike() -> None:
    queries, train = table(M, 1), table(N)
    queries[:3] = train[:3] + 1e-3
    scale = 10.0 ** np.arange(-4, 8).astype(np.float32)
    found, scaled = (leaked(queries * s, train * s, None) for s in (1, scale))
    assert found.kind.tolist() == scaled.kind.tolist()
    assert found.kind[0] == "near"


def test_constant_columns_say_nothing() -> None:
    queries, train = table(M, 1), table(N)
    queries[:3] = train[:3] + 1e-3
    more = [np.concatenate([x, np.full((len(x), 3), 7.5, np.float32)], 1) for x in (queries, train)]
    assert leaked(*more, None).kind.tolist() == leaked(queries, train, None).kind.tolist()


def test_copies_within_the_training_set_hide_no_leak() -> None:
    # Six twins are six nearest neighbours at one distance: no gap, unless they count once.
    queries, train = table(M, 1), table(N)
    train[10:16] = train[3]
    queries[0] = train[3] + 1e-3
    found = leaked(queries, train, None)
    assert found.kind[0] == "near"
    assert found.train_index[0] == 3


@pytest.mark.parametrize("name", ["NHW", "NCHW", "NHWC"])
def test_shifted_images_are_found_and_the_evidence_names_the_shift(name: str) -> None:
    queries, train = images()
    moves = [(0, 1), (0, -1), (1, 0), (-1, 0), (2, -1)]
    for q, (down, right) in enumerate(moves):
        padded = np.pad(train[q], 2)
        queries[q] = padded[2 - down : 10 - down, 2 - right : 10 - right]
    found = leaked(layout(queries, name), layout(train, name), None)
    hits = [q for q in range(4) if found.kind[q] == "near" and found.train_index[q] == q]
    assert len(hits) >= 3, "the shift may push a stroke out of a picture of 8 x 8"
    for q in hits:
        down, right = moves[q]
        assert f"shifted by {down:+d} down, {right:+d} right" in found.evidence[q]
    assert found.flags[5:].mean() < 0.02
    assert "shifts of up to 2 pixels" in found.measure.note


def test_a_near_copy_in_place_is_not_called_shifted() -> None:
    queries, train = images()
    queries[0] = train[5] + 0.1
    found = leaked(queries, train, None)
    assert found.kind[0] == "near"
    assert "shifted" not in found.evidence[0]


def test_mirrored_images_are_found_and_the_evidence_says_so() -> None:
    queries, train = images()
    queries[:3] = train[40:43, ..., ::-1]
    queries[3, 1:] = train[43, :-1, ::-1]
    found = leaked(queries, train, None)
    assert (found.kind[:4] == "near").all()
    assert found.train_index[:4].tolist() == [40, 41, 42, 43]
    assert all(text.startswith("mirrored; ") for text in found.evidence[:4])
    assert "+1 down" in found.evidence[3]


def texts(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of word counts, a dozen of 400 words each, common ones oftener."""
    rng = np.random.default_rng(seed)
    often = 1 / np.arange(1, 401)
    rows = np.zeros((M + N, 400), np.float32)
    for row in rows:
        row[rng.choice(400, 24, replace=False, p=often / often.sum())] = 1
    return rows[:M], rows[M:]


def test_texts_that_lost_or_changed_a_word_are_found_by_direction() -> None:
    queries, train = texts()
    for i in range(4):
        queries[i] = train[60 + i]
        queries[i, np.flatnonzero(queries[i])[:2]] = 0
    queries[2, 390] = queries[3, 391] = 1
    found = leaked(3 * queries, train, None)
    assert np.flatnonzero(found.flags)[:4].tolist() == [0, 1, 2, 3]
    assert found.train_index[:4].tolist() == [60, 61, 62, 63]
    assert all("in direction" in text for text in found.evidence[:4])


def test_p_values_of_clean_queries_are_no_smaller_than_they_say() -> None:
    small = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        queries, train = (rng.normal(size=(n, 5)).astype(np.float32) for n in (50, 200))
        small.append(leaked(queries, train, None).p_value <= 0.1)
    # Rows of a table that lie farther than a tenth of the fifth row's distance are surely none.
    assert np.mean(small) <= 0.1 + 2 * (0.1 * 0.9 / len(small)) ** 0.5


def test_p_values_of_copies_are_as_small_as_the_rows_allow_and_exact_ones_have_none() -> None:
    queries, train = table(M), table(N, seed=1)
    queries[0], queries[1] = train[3], train[4] + 1e-5
    found = leaked(queries, train, None)
    assert np.isnan(found.p_value[0])
    assert found.p_value[1] == pytest.approx(1 / (N + 1))
    assert np.nanmin(np.delete(found.p_value, 1)) > found.p_value[1]


def test_images_too_many_to_shift_are_compared_in_place_and_the_note_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queries, train = images()
    once = 2.0 * len(queries) * train.size
    for budget, radius in ((once * 25, 2), (once * 24, 1), (once * 8, 0)):
        monkeypatch.setattr(nb, "_SHIFT_BUDGET", budget)
        assert nb.search_radius(queries, train) == radius
    assert "no shifts" in leaked(queries, train, None).measure.note


def test_matches_that_chance_explains_are_not_accused() -> None:
    rng = np.random.default_rng(0)
    queries, train = (rng.integers(2, size=(n, 4)).astype(np.float32) for n in (M, N))
    found = leaked(queries, train, None)
    assert not found.flags.any()
    assert "as training rows equal each other" in found.measure.note
    assert nb.chance_copies(queries[0], train) > 1


def test_a_copy_of_many_coarse_columns_is_no_chance() -> None:
    rng = np.random.default_rng(0)
    queries, train = (rng.integers(2, size=(n, 64)).astype(np.float32) for n in (M, N))
    queries[0] = train[3]
    found = leaked(queries, train, None)
    assert np.flatnonzero(found.kind == "exact").tolist() == [0]


@pytest.mark.parametrize(
    "load", [load_digits, load_breast_cancer, load_wine], ids=["digits", "cancer", "wine"]
)
def test_random_splits_of_real_data_accuse_at_most_one_query_in_a_hundred(load: object) -> None:
    x = load().data.astype(np.float32)  # type: ignore[operator]
    accused = queries = 0
    for seed in range(5):
        train, held_out = train_test_split(x, test_size=0.3, random_state=seed)
        accused += leaked(held_out, train, None).measure.count
        queries += len(held_out)
    assert accused / queries <= 0.01


def test_random_splits_of_images_accuse_at_most_one_query_in_a_hundred() -> None:
    for seed in range(3):
        train, queries = train_test_split(load_digits().images, test_size=0.2, random_state=seed)
        assert leaked(queries, train, None).measure.rate <= 0.01


@pytest.mark.parametrize(("m", "n"), [(M, 5), (1, 20)], ids=["few rows", "one query"])
def test_with_few_rows_only_exact_copies_are_accused(m: int, n: int) -> None:
    queries, train = table(m, 1), table(n)
    queries[0] = train[0]
    if m > 1:
        queries[1] = train[0] + 1e-4
    found = leaked(queries, train, None)
    assert found.kind.tolist() == ["exact"] + [""] * (m - 1)
    assert np.isnan(found.score).all()
    assert "too few rows" in found.measure.note


def test_the_bound_lies_below_the_rate() -> None:
    queries, train = table(M, 1), table(N)
    queries[:6] = train[:6]
    exact = leaked(queries, train, None).measure
    assert exact.rate_low == exact.rate == 0.1 < exact.rate_high
    queries[:6] += 1e-3
    near = leaked(queries, train, None).measure
    assert near.count == 6
    assert 0 < near.rate_low < near.rate <= 0.1, "some of them may be chance"


def test_equal_distances_everywhere_accuse_nobody() -> None:
    # Without spread among the gaps there is no unusual one.
    queries = np.zeros((M, D), np.float32)
    train = np.eye(D, dtype=np.float32)
    assert not leaked(queries, train, None).flags.any()


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_test_set_that_leaks_as_a_whole_does_not_hide_itself(share: float) -> None:
    rng = np.random.default_rng(0)
    train, queries = table(N), table(M, 1)
    copies = round(share * M)
    queries[:copies] = train[:copies] + rng.normal(size=(copies, train.shape[1])) * 1e-3
    assert leaked(queries, train, None).flags[:copies].mean() > 0.9


@pytest.mark.parametrize("types", [20, 100, 500])
def test_coarse_columns_that_hang_together_match_by_chance_and_accuse_nobody(types: int) -> None:
    # Every row is one of a few types: all columns say the same, so they are not independent.
    rng = np.random.default_rng(types)
    kinds = rng.integers(0, 30, size=(types, 8)).astype(np.float32)
    train, queries = (kinds[rng.integers(types, size=n)] for n in (2000, 500))
    found = leaked(queries, train, None)
    assert found.measure.rate <= 0.01
    assert "as training rows equal each other" in found.measure.note


def test_rows_that_share_a_sentinel_are_not_taken_for_copies_of_each_other() -> None:
    accused = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(900, 64)).astype(np.float32)
        some = np.flatnonzero(rng.random(900) < 0.15)
        x[some, rng.integers(64, size=len(some))] = -999_999
        accused.append(leaked(x[:400], x[400:], None).flags.mean())
    assert np.mean(accused) <= 0.01


@pytest.mark.parametrize("n", [60, 120, 180])
def test_few_rows_accuse_nobody_by_nearness(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(5):
        queries, train = (rng.lognormal(size=(k, 70)).astype(np.float32) for k in (300, n))
        assert not leaked(queries, train, None).flags.any()


def test_the_reliability_is_the_share_of_planted_copies_that_is_found() -> None:
    queries, train = images()
    found = leaked(queries, train, None).measure
    assert found.reliability is not None
    assert found.reliability > 0.9
    assert "planted copies (shifted or mirrored)" in found.note
    assert leaked(table(M, 1), table(N), None).measure.reliability == 1
    assert leaked(table(M, 1), table(60), None).measure.reliability is None, "nobody is accused"


def test_where_copies_cannot_be_seen_the_detector_abstains_but_exact_ones_still_count() -> None:
    queries, train = table(M, 1)[:, :2], table(N)[:, :2]
    found = leaked(queries, train, None)
    assert found.measure.reliability is not None
    assert found.measure.reliability < 0.3
    assert "planted" in str(found.measure.abstained)
    queries[:6] = train[:6]
    assert leaked(queries, train, None).measure.rate_low == 0.1


def test_planting_changes_no_verdict() -> None:
    queries, train = table(M, 1), table(N)
    queries[:4] = train[:4] + 1e-3
    plain = leaked(queries, train, None, encodings=(queries, train))
    asked = leaked(queries, train, None, encodings=(queries, train), encode=lambda rows: rows)
    assert (plain.kind == asked.kind).all()
    np.testing.assert_allclose(plain.score, asked.score, rtol=1e-4)


def test_few_rows_of_small_integers_match_by_chance_and_accuse_few() -> None:
    # Columns hang together: a query is like one of 40 rows once in ten; yet these may all differ.
    accused = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        kinds = rng.integers(0, 30, size=(400, 8)).astype(np.float32)
        train, queries = (kinds[rng.integers(400, size=n)] for n in (40, 60))
        accused.append(leaked(queries, train, None).flags.mean())
    assert np.mean(accused) <= 0.01


def test_larger_pictures_are_cropped_too_and_all_layouts_are_planted_alike() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 3, 32, 32)).astype(np.float32)
    first, said = planted(rows, encoded=True)
    assert said.endswith("or cropped")
    last, _ = planted(rows.transpose(0, 2, 3, 1), encoded=True)
    np.testing.assert_allclose(first, last.transpose(0, 3, 1, 2), atol=1e-6)
    grey, _ = planted(rows[:, 0], encoded=True)
    assert grey.shape == (48, 32, 32)
    assert (grey.dtype, planted(rows[:9], encoded=False)[0].shape) == (np.float32, (9, 3, 32, 32))
