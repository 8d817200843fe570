from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from forward_inf_mlflow.detect import opinions
from forward_inf_mlflow.detect.experts import Expert, pool, suspicions
from forward_inf_mlflow.detect.mislabeled import mislabeled_classes
from forward_inf_mlflow.detect.opinions import of_linear, of_logits, of_neighbours

K = 4


def drawn(seed: int, *, n: int = 600, m: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Return logits ``(n + m, K)`` and labels drawn from them; the last m are queries."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n + m, K)) * 3
    probability = special.softmax(logits, axis=1)
    return logits, (probability.cumsum(1) < rng.random((n + m, 1))).sum(1)


def expert(name: str, logits: np.ndarray, n: int = 600) -> Expert:
    return of_logits(name, logits[None, :n], logits[None, n:])


def likelihood(found: Expert, labels: np.ndarray) -> float:
    return float(found.queries[np.arange(len(labels)), labels].mean())


def everyone(m: int = 400) -> np.ndarray:
    return np.ones(m, dtype=bool)


@pytest.mark.parametrize("boast", [0.2, 1.0, 5.0])
def test_a_boaster_is_turned_down_and_a_shy_one_up(boast: float) -> None:
    logits, labels = drawn(0)
    found = pool([expert("a", boast * logits)], labels[600:], everyone())
    assert found.weights["a"] == pytest.approx(1 / boast, rel=0.2)
    best = expert("", logits)
    assert likelihood(found, labels[600:]) >= likelihood(best, labels[600:]) - 0.01


def test_two_who_know_different_things_are_better_than_one() -> None:
    logits, labels = drawn(1)
    rng = np.random.default_rng(2)
    both = [expert(name, logits + 3 * rng.normal(size=logits.shape)) for name in "ab"]
    alone = [pool([one], labels[600:], everyone()) for one in both]
    found = pool(both, labels[600:], everyone())
    assert set(found.weights) == {"a", "b"}
    assert likelihood(found, labels[600:]) > max(
        likelihood(one, labels[600:]) for one in alone
    ) + 0.02  # fmt: skip
    assert "a (weight" in found.described()


def test_who_knows_nothing_does_not_join() -> None:
    joined = 0
    for seed in range(20):
        logits, labels = drawn(seed)
        noise = np.random.default_rng([seed, 1]).normal(size=logits.shape)
        joined += "noise" in pool(
            [expert("a", logits), expert("noise", noise)], labels[600:], everyone()
        ).weights  # fmt: skip
    assert joined <= 6


def test_untrusted_queries_weigh_nothing() -> None:
    logits, labels = drawn(3)
    trusted = everyone()
    trusted[:200] = False
    spoiled = labels[600:].copy()
    spoiled[:200] = (spoiled[:200] + 1) % K
    some, few = pool([expert("a", logits)], spoiled, trusted), logits[None]
    rest = pool([of_logits("a", few[:, :600], few[:, 800:])], labels[800:], everyone(200))
    assert some.weights == rest.weights
    np.testing.assert_array_equal(some.train, rest.train)


def test_probabilities_sum_to_one_and_stay_above_what_queries_can_show() -> None:
    logits, labels = drawn(4)
    found = pool([expert("a", 50 * logits)], labels[600:], everyone())
    for logs in (found.train, found.queries):
        np.testing.assert_allclose(np.exp(logs).sum(1), 1)
        assert np.exp(logs).min() >= 0.5 / (400 + 1) / K - 1e-12


def test_repeats_are_averaged_as_probabilities() -> None:
    logits = np.float32([[[3, 0]], [[-2, 0]]])
    found = np.exp(of_logits("a", logits, logits).train)
    np.testing.assert_allclose(found, special.softmax(logits, axis=2).mean(0), rtol=1e-6)


def blobs(seed: int, n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(K, 5)) * 4
    labels = rng.integers(K, size=n + m)
    x = (centres[labels] + rng.normal(size=(n + m, 5))).astype(np.float32)
    return x[:n], x[n:], labels[:n], labels[n:]


def votes(x: np.ndarray, q: np.ndarray, y: np.ndarray, z: np.ndarray, **changes: object) -> Expert:
    options = {"groups": np.arange(len(x)), "trusted": everyone(len(q)), **changes}
    found = of_neighbours(
        "near", x, q, y, options["groups"], z, options["trusted"], classes=K
    )  # type: ignore[arg-type]  # fmt: skip
    assert found is not None
    return found


def test_neighbours_vote_for_the_class_around_a_row_not_for_its_own_label() -> None:
    x, q, y, z = blobs(0, 400, 200)
    spoiled = y.copy()
    spoiled[:40] = (y[:40] + 1) % K
    found = votes(x, q, spoiled, z)
    assert (found.train.argmax(1)[:40] == y[:40]).mean() > 0.9
    assert (found.queries.argmax(1) == z).mean() > 0.9
    np.testing.assert_allclose(np.exp(found.train).sum(1), 1, rtol=1e-5)


def test_votes_of_a_few_rows_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opinions, "_VOTERS", (2,))
    x = np.float32([[0], [1], [2.5], [10]])
    y = np.array([0, 1, 1, 2])
    found = votes(x, np.float32([[9]]), y, np.array([2]))
    # Of row 0 the nearest are 1 and 2, both of class 1; half a vote each class has from the start.
    np.testing.assert_allclose(
        np.exp(found.train[0]), np.array([0.5, 2.5, 0.5, 0.5]) / 4, rtol=1e-5
    )
    np.testing.assert_allclose(
        np.exp(found.queries[0]), np.array([0.5, 1.5, 1.5, 0.5]) / 4, rtol=1e-5
    )


def test_copies_of_a_row_do_not_vote_for_it() -> None:
    x, q, y, z = blobs(1, 100, 100)
    y[0] = (y[0] + 1) % K
    x, y = np.concatenate([x, np.repeat(x[:1], 30, 0)]), np.concatenate([y, np.repeat(y[:1], 30)])
    groups = np.concatenate([np.arange(100), np.zeros(30, int)])
    found = votes(x, q, y, z, groups=groups)
    assert (found.train.argmax(1)[[0, 100, 129]] != y[0]).all()


def test_too_many_rows_to_compare_let_some_vote_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    x, q, y, z = blobs(2, 600, 200)
    monkeypatch.setattr(opinions, "_BUDGET", 250 * 800 * 5)
    found = votes(x, q, y, z)
    assert (found.train.argmax(1) == y).mean() > 0.9
    monkeypatch.setattr(opinions, "_BUDGET", 100 * 800 * 5)
    nobody = of_neighbours("", x, q, y, np.arange(600), z, everyone(200), classes=K)
    assert nobody is None


def test_of_very_many_rows_all_vote_through_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("voyager")
    x, q, y, z = blobs(4, 600, 200)
    x[0], y[0] = x[1], (y[1] + 1) % K
    groups = np.concatenate([[1], np.arange(1, 600)])
    each_with_each = votes(x, q, y, z, groups=groups)
    monkeypatch.setattr(opinions, "LARGE", 0)
    monkeypatch.setattr(opinions, "_BUDGET", 0)  # without the index nobody could vote
    found = votes(x, q, y, z, groups=groups)
    same = np.abs(found.train - each_with_each.train).max(1) < 1e-6
    assert same.mean() > 0.98
    assert same[:2].all(), "a copy of a row votes for neither"


def test_a_handful_of_rows_has_no_neighbours_to_ask() -> None:
    x, q, y, z = blobs(3, 5, 50)
    assert of_neighbours("", x, q, y, np.arange(5), z, everyone(50), classes=K) is None


def test_no_query_is_judged_by_weights_that_were_fitted_on_it() -> None:
    # Eight experts and few queries: fitted on all of them, the queries would look too sure.
    over = []
    for seed in range(60):
        logits, labels = drawn(seed, n=600, m=60)
        rng = np.random.default_rng([seed, 5])
        noisy = [logits + 4 * rng.normal(size=logits.shape) for _ in range(8)]
        found = mislabeled_classes(
            [expert(f"e{i}", one) for i, one in enumerate(noisy)],
            labels[:600],
            labels[600:],
            everyone(60),
        )
        over.append(found.measure.rate_low > 0)
    assert np.mean(over) <= 0.05 + 0.085


def test_suspicions_of_right_rows_and_queries_are_alike_however_few_values_they_have() -> None:
    # One expert speaks in three words, the other is all but certain: ties, and weights that differ.
    above = []
    for seed in range(60):
        logits, labels = drawn(seed, n=300, m=150)
        coarse = np.round(logits / 6)
        some = [expert("coarse", coarse, 300), expert("sure", 40 * logits, 300)]
        train, queries = suspicions(some, labels[:300], labels[300:], everyone(150))
        assert len(np.unique(train)) > 250
        assert train.mean() == pytest.approx(0.5)
        above.append([(queries > depth).mean() for depth in (0.3, 0.5, 0.8, 0.95)])
    np.testing.assert_allclose(np.mean(above, axis=0), [0.7, 0.5, 0.2, 0.05], atol=0.03)


def test_suspicions_order_rows_better_than_one_pool_does() -> None:
    logits, labels = drawn(0)
    rng = np.random.default_rng(1)
    some = [expert(name, logits + 4 * rng.normal(size=logits.shape)) for name in "abcd"]
    given = labels[:600].copy()
    given[:60] = (given[:60] + 1) % K
    train, _ = suspicions(some, given, labels[600:], everyone())
    alone = pool(some, labels[600:], everyone()).train[np.arange(600), given]
    wrong = np.arange(600) < 60
    assert train[wrong].mean() - train[~wrong].mean() > 0.3
    assert roc_auc_score(wrong, train) > roc_auc_score(wrong, -alone) - 0.005


def test_a_linear_model_judges_every_row_without_it() -> None:
    rng = np.random.default_rng(0)
    x, q = (rng.normal(size=(n, 6)).astype(np.float32) for n in (40, 30))
    y, z = x[:, 0] > 0, q[:, 0] > 0
    found = of_linear("", x, q, y.astype(int), z.astype(int), everyone(30), classes=2)
    assert found is not None
    best = opinions.RidgeCV(
        opinions._PENALTIES * float(np.square(x - x.mean(0)).sum()) / 6,
        scoring="neg_mean_squared_error",
    ).fit(x, np.eye(2)[y.astype(int)])
    odds, without = (found.train[:, 1] - found.train[:, 0])[:5], []
    for i in range(5):
        rest = np.arange(40) != i
        refit = Ridge(best.alpha_).fit(x[rest], np.eye(2)[y[rest].astype(int)])
        without.append(np.diff(refit.predict(x[[i]])[0])[0])
    np.testing.assert_allclose(odds / odds[0], np.array(without) / without[0], rtol=1e-4)


@pytest.mark.parametrize("rows", [3, 40])
def test_a_linear_model_of_rows_that_are_all_alike_says_nothing(rows: int) -> None:
    x, q = np.ones((rows, 4), np.float32), np.ones((5, 4), np.float32)
    labels = np.arange(rows) % 2
    assert of_linear("", x, q, labels, labels[:5], everyone(5)[: len(q)], classes=2) is None


def test_many_columns_are_projected_before_a_linear_model_sees_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opinions, "_COLUMNS", 30)
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    x = rng.normal(size=(400, 500)).astype(np.float32)
    x[:, :50] += 2 * labels[:, None]
    found = of_linear("", x[:300], x[300:], labels[:300], labels[300:], everyone(100), classes=2)
    assert found is not None
    assert (found.train.argmax(1) == labels[:300]).mean() > 0.9
    monkeypatch.setattr(opinions, "_NUMBERS", 300 * 29)
    assert (
        of_linear("", x[:300], x[300:], labels[:300], labels[300:], everyone(100), classes=2)
        is None
    )


def test_a_class_that_a_model_rules_out_does_not_stop_the_weighing() -> None:
    logits, labels = drawn(0)
    masked = np.concatenate([4 * logits, np.full((len(logits), 1), -np.inf)], axis=1)
    found = pool([expert("bold", masked)], labels[600:], everyone())
    assert found.weights["bold"] == pytest.approx(0.25, rel=0.2)
