from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.detect.leakage import Leaked, leaked
from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.detect.neighbours import row_keys
from forward_inf_mlflow.judging import (
    MIN_CLASS,
    MIN_TAUGHT,
    all_taught,
    comparable,
    unasked,
    vouched_for,
)
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.preparation import Problem, prepare


def problem(x: np.ndarray, y: np.ndarray, q: np.ndarray, z: np.ndarray, k: int = 3) -> Problem:
    model = AuditedModel(nn.Linear(x.shape[1], k).eval(), np.asarray, "pt2", np.asarray)
    train, queries = (
        Rows(rows, labels, np.arange(len(rows)).astype(str), None, "memory", "")
        for rows, labels in ((x, y), (q, z))
    )
    host = torch.device("cpu")
    return prepare(model, train, queries, task="classification", device=host, batch_size=None)


def nothing_leaked(m: int, n: int) -> Leaked:
    nobody = np.full(m, "", dtype=object)
    zeros = np.zeros(m, int)
    none = Measure.none(m, "")
    return Leaked(nobody, zeros, np.zeros(n, bool), np.zeros(m), np.ones(m), nobody, none)


def test_copies_and_small_classes_stand_apart_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    q = rng.normal(size=(30, 4)).astype(np.float32)
    y = np.r_[np.zeros(40, int), np.ones(20 - (MIN_CLASS - 1), int), np.full(MIN_CLASS - 1, 2)]
    z = np.arange(30) % 3
    x[7] = x[3]
    q[4] = x[20]
    trusted, apart = comparable(problem(x, y, q, z), nothing_leaked(30, 60), row_keys(x))
    assert np.flatnonzero(apart).tolist() == [3, 7, *range(60 - (MIN_CLASS - 1), 60)]
    assert not trusted[4]
    assert not trusted[z == 2].any()
    assert trusted[(z != 2) & (np.arange(30) != 4)].all()


def test_leaked_queries_and_the_rows_that_they_copy_stand_apart() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(120, 4)).astype(np.float32)
    q = rng.normal(size=(30, 4)).astype(np.float32)
    q[:3] = x[50:53] + 1e-4
    y, z = np.arange(120) % 3, np.arange(30) % 3
    found = leaked(q, x, None)
    assert found.flags[:3].all()
    trusted, apart = comparable(problem(x, y, q, z), found, row_keys(x))
    assert apart[50:53].all()
    assert not trusted[:3].any()


def test_rows_of_classes_that_no_query_has_stand_apart() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(90, 4)).astype(np.float32)
    q = rng.normal(size=(30, 4)).astype(np.float32)
    y, z = np.arange(90) % 3, np.arange(30) % 2
    _, apart = comparable(problem(x, y, q, z), nothing_leaked(30, 90), row_keys(x))
    assert apart.tolist() == (y == 2).tolist()


def test_who_never_heard_of_a_class_is_not_asked() -> None:
    labels = np.repeat(np.arange(3), 20)
    assert all_taught(labels, np.repeat(np.arange(3), MIN_TAUGHT))
    assert not all_taught(labels, np.repeat(np.arange(2), 50))
    assert not all_taught(labels, np.r_[np.repeat(np.arange(2), 50), np.full(MIN_TAUGHT - 1, 2)])
    few = np.r_[np.repeat(np.arange(2), 50), np.full(MIN_CLASS - 1, 2)]
    assert all_taught(few, np.repeat(np.arange(2), 50)), "a class of a few rows is apart anyway"


def test_a_rare_class_that_lacks_a_query_by_chance_does_not_stand_apart() -> None:
    # Of 160 classes most have no query among 40; the two common ones are the hard ones.
    rng = np.random.default_rng(0)

    def labels(k: int) -> np.ndarray:
        return np.where(rng.random(k) < 0.2, rng.integers(2, size=k), rng.integers(2, 160, k))

    assert not unasked(labels(3000), labels(40)).any()
    assert unasked(np.repeat([0, 1], 500), np.zeros(40, int)).sum() == 500
    assert not unasked(np.repeat([0, 1], [1000, 3]), np.zeros(40, int)).any()


def test_a_query_that_stands_there_five_times_counts_once() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(90, 4)).astype(np.float32)
    q = np.repeat(rng.normal(size=(12, 4)).astype(np.float32), 5, axis=0)
    y, z = np.arange(90) % 3, np.repeat(np.arange(12) % 3, 5)
    trusted, _ = comparable(problem(x, y, q, z), nothing_leaked(60, 90), row_keys(x))
    assert trusted.sum() == 12


def test_a_label_that_a_trusted_copy_bears_is_right_whatever_models_say() -> None:
    groups = np.array([0, 0, 0, 3, 4, 5])
    labels, truth = np.array([0, 0, 1, 1, 0, 0]), np.array([0, 0, 0])
    leaks = replace(
        nothing_leaked(3, 6),
        kind=np.array(["exact", "exact", "near"], dtype=object),
        train_index=np.array([0, 3, 4]),
        train_flags=np.array([True, True, True, True, True, False]),
    )
    found = vouched_for(leaks, labels, truth, groups)
    assert np.flatnonzero(found).tolist() == [0, 1], "others have another label, or other values"
