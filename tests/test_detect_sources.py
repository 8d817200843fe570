from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from forward_inf_mlflow.detect.measure import Measure, binomial_interval, binomial_low
from forward_inf_mlflow.detect.sources import by_source, guilty, sentence


def sums(sources: list[str], wrong: list[int], influence: list[float]) -> list[dict[str, object]]:
    n = len(sources)
    nobody = np.zeros(n, dtype=bool)
    table = by_source(
        np.array(sources, dtype=object),
        mislabeled=np.array(wrong, dtype=bool),
        leaked=np.arange(n) == 0,
        memorized=nobody,
        influence=np.array(influence),
    )
    return table.to_dict("records")


def test_every_row_is_counted_once_under_its_source() -> None:
    rng = np.random.default_rng(0)
    names = rng.choice(["a", "b", "c"], size=300)
    flags = [rng.random(300) < share for share in (0.1, 0.2, 0.3)]
    table = by_source(
        names,
        mislabeled=flags[0],
        leaked=flags[1],
        memorized=flags[2],
        influence=rng.normal(size=300),
    )
    assert table["rows"].sum() == 300
    totals = table[["mislabeled", "leaked", "memorized"]].sum()
    assert totals.tolist() == [int(f.sum()) for f in flags]


def test_two_sources_worked_by_hand() -> None:
    guilty, honest = sums(["x", "y", "x", "x"], [1, 0, 1, 0], [1.0, 5.0, 2.0, 3.0])
    assert (guilty["source"], guilty["rows"], guilty["mislabeled"]) == ("x", 3, 2)
    assert guilty["mislabeled_rate"] == pytest.approx(2 / 3)
    assert (guilty["leaked"], honest["leaked"]) == (1, 0)
    for verdict, count in (("mislabeled", 2), ("leaked", 1), ("memorized", 0)):
        assert guilty[f"{verdict}_rate"] == pytest.approx(count / 3)
        interval = guilty[f"{verdict}_low"], guilty[f"{verdict}_high"]
        assert interval == binomial_interval(count, 3)
    half = 1.96 * 1.0 / np.sqrt(3)
    interval = [guilty[k] for k in ("influence_low", "influence", "influence_high")]
    assert interval == pytest.approx([2 - half, 2, 2 + half])
    assert honest["influence"] == 5.0
    assert (guilty["influence_net"], honest["influence_net"]) == (6.0, 5.0)
    assert np.isnan(honest["influence_low"]), "one row has no spread"


def test_the_source_that_is_surely_worst_stands_first_not_the_smallest_one() -> None:
    sources = ["tiny"] * 2 + ["large"] * 100
    wrong = [1, 0] + [1] * 30 + [0] * 70
    first, second = sums(sources, wrong, [0.0] * 102)
    assert (first["source"], second["source"]) == ("large", "tiny")
    assert second["mislabeled_rate"] > first["mislabeled_rate"]


def test_equal_sources_stand_in_the_order_of_their_names() -> None:
    found = sums(["b", "a", "c"], [0, 0, 0], [0.0] * 3)
    assert [row["source"] for row in found] == ["a", "b", "c"]


@pytest.mark.parametrize(("count", "total"), [(0, 10), (1, 10), (5, 10), (10, 10), (3, 1000)])
def test_intervals_are_those_of_clopper_and_pearson(count: int, total: int) -> None:
    exact = stats.binomtest(count, total).proportion_ci(0.95, method="exact")
    assert binomial_interval(count, total) == pytest.approx((exact.low, exact.high), abs=1e-9)
    one_sided = stats.binomtest(count, total, alternative="greater").proportion_ci(
        0.95, method="exact"
    )
    assert binomial_low(count, total) == pytest.approx(one_sided.low, abs=1e-9)
    assert binomial_low(count, total) <= count / total


def test_no_rows_say_nothing_about_a_share() -> None:
    assert binomial_interval(0, 0) == (0.0, 1.0)
    assert Measure.none(0, "no rows").rate == 0.0


def test_a_source_in_words_names_all_shares_and_what_is_per_row() -> None:
    x, y = sums(["x", "y", "x", "x"], [1, 0, 1, 0], [0.01, 5.0, 0.02, 0.03])
    assert sentence(x) == (
        "x: 3 rows; mislabeled 66.7% (9.4% to 99.2%), leaked 33.3% (0.8% to 90.6%), "
        "memorized 0.0% (0.0% to 70.8%); influence +0.02 (+0.0087 to +0.031) per row, +0.06 net"
    )
    assert sentence(y).endswith("influence +5 per row, +5 net"), "one row has no interval"


def test_only_a_source_that_has_more_than_chance_gives_is_guilty() -> None:
    sources = sums(
        ["tiny"] * 2 + ["a"] * 100 + ["b"] * 100, [1, 0] + [1] * 30 + [0] * 170, [0.0] * 202
    )
    assert guilty(sources) == ["a"]


def test_p_values_worked_by_hand() -> None:
    # Of four rows two are wrong, both of x: one in six draws of two gives them to it. Holm: twice.
    x, y = sums(["x", "x", "y", "y"], [1, 1, 0, 0], [0.0] * 4)
    assert x["mislabeled_p"] == pytest.approx(2 / 6)
    assert y["mislabeled_p"] == 1


def test_among_many_innocent_sources_hardly_anybody_is_blamed() -> None:
    rng, blamed = np.random.default_rng(0), 0
    for _ in range(100):
        names = [f"s{i}" for i in rng.integers(50, size=1000)]
        blamed += bool(guilty(sums(names, list(rng.random(1000) < 0.1), [0.0] * 1000)))
    assert blamed <= 5 + 6


def test_other_verdicts_and_influence_are_tested_too() -> None:
    rng = np.random.default_rng(0)
    sources = np.repeat(["a", "b", "c"], 100)
    leaked = np.r_[np.ones(20, bool), np.zeros(280, bool)]
    influence = rng.normal(size=300) + 2 * (sources == "c")
    nobody = np.zeros(300, bool)
    table = by_source(
        sources, mislabeled=nobody, leaked=leaked, memorized=nobody, influence=influence
    ).set_index("source")
    assert table.loc["a", "leaked_p"] < 1e-6
    assert table.loc["c", "influence_p"] < 1e-6
    assert (table["mislabeled_p"] == 1).all()
    assert table.loc["b", "leaked_p"] == 1
    alone = by_source(
        np.array(["x"] * 5), mislabeled=nobody[:5], leaked=nobody[:5], memorized=nobody[:5],
        influence=influence[:5],
    )  # fmt: skip
    assert alone["influence_p"].tolist() == [1.0]


def test_rows_whose_influence_is_not_known_do_not_hide_the_others() -> None:
    with_gap, without = (
        sums(["a"] * 4 + ["b"] * 3 + ["c"], [0] * 8, [1.0, 2.0, 3.0, gap, 9.0, 9.1, 9.2, gap])
        for gap in (float("nan"), float("inf"))
    )
    for found in (with_gap, without):
        a, b, c = found
        assert (a["influence"], b["influence"]) == (2.0, pytest.approx(9.1))
        assert a["influence_low"] < 2 < a["influence_high"]
        assert a["influence_p"] < 0.05
        assert sentence(c).endswith("influence unknown")
        assert c["influence_p"] == 1
