"""Tables: wrong labels and leaks under forests, boosting and a linear model, beside the field.

Real tables that ship with scikit-learn (tumours: 569 rows of 30 columns, two classes; digits as a
table: 1,797 rows of 64 columns, ten classes; wine: 178 rows of 13 columns, three classes), three
tenths of each for queries, whose labels stay. Models: a random forest of 100 trees, hist gradient
boosting, and a scaled logistic regression, each as it comes.

- **mislabeled**: one label in ten is wrong: *symmetric* (any row, any other class), or *by
  features* (rows near the border between classes, and the class that a linear model takes them for
  next). Beside the audit at both efforts: self-confidence and normalized margin from five-fold
  out-of-sample probabilities of the same estimator (what cleanlab ranks by), the former also with
  the queries among every fold's rows, since the audit reads their labels too, the row's own loss,
  ten neighbours by shared leaves (of the linear model: by standardised values), and chance. AUROC
  and average precision.
- **leaks**: every tenth query is a training row whose numbers are jittered by a hundredth of their
  column's spread, or one of whose columns is another row's. Beside the audit: distance of the
  nearest row by standardised values, the share of leaves that the nearest row shares, chance.

Ours goes through a registry, as a user's model would; where labels are judged, single queries are
not asked about. Costs are in trainings of the audited model, by the processor's seconds.

    OMP_NUM_THREADS=1 python benchmarks/tabular.py [--data FILE] [--only mislabeled]
        [--table digits] [--seeds 3] [--quick] [--json FILE]

--data: an npz file with train_x, train_y_noisy, train_y_clean, test_x, test_y instead of these
tables; its own wrong labels are looked for, and seeds are those of models and leaks.
--quick: one seed, tumours (or the file) only. Some two minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import rivals
import torch
from detectors import OURS, QUICK, Scored, ahead, table
from measure import line, machine, write
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict, train_test_split
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.examine import Findings, examine, plan_influence
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.estimator import TRUSTED
from forward_inf_mlflow.models.trees import Trees
from forward_inf_mlflow.preparation import choose_device, prepare
from forward_inf_mlflow.settings import Settings

TABLES: dict[str, Callable[..., Any]] = {
    "tumours": load_breast_cancer,
    "wine": load_wine,
    "digits": load_digits,
}
MODELS: dict[str, Callable[[int], Any]] = {
    "random forest": lambda seed: RandomForestClassifier(random_state=seed),
    "hist boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
    "logistic": lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
}
NOISES = ("symmetric", "by features")
#: Share of wrong labels, of queries that leak; neighbours that vote; folds.
WRONG, LEAKED, NEIGHBOURS, FOLDS = 0.1, 0.1, 10, 5
#: Queries that are asked about one by one where leaks are looked for.
ASKED = 20


@dataclass(frozen=True, eq=False)
class Table:
    """Rows with labels as given and as they should be, queries, and an estimator to be fitted."""

    x: np.ndarray
    given: np.ndarray
    clean: np.ndarray
    query_x: np.ndarray
    query_y: np.ndarray
    unfitted: Any
    seed: int

    @cached_property
    def fitted(self) -> tuple[Any, float]:
        """The audited estimator, and the processor's seconds of its training."""
        start = time.process_time()
        return clone(self.unfitted).fit(self.x, self.given), time.process_time() - start

    @cached_property
    def model(self) -> AuditedModel:
        """The same as it comes back from a registry of its own."""
        import mlflow

        from forward_inf_mlflow.registry import load, resolve

        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
            mlflow.set_experiment(
                experiment_id=mlflow.create_experiment("tabular", f"file://{folder}/artifacts")
            )
            with mlflow.start_run():
                mlflow.sklearn.log_model(
                    self.fitted[0],
                    name="model",
                    pip_requirements=["scikit-learn"],
                    registered_model_name="audited",
                    skops_trusted_types=list(TRUSTED),
                )
            return load(resolve("models:/audited/1"))

    @cached_property
    def standardised(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and queries by the rows' own spreads."""
        scaler = StandardScaler().fit(self.x)
        return scaler.transform(self.x), scaler.transform(self.query_x)


def of_sklearn(name: str, noise: str, model: str, seed: int) -> Table:
    """Return a table that ships with scikit-learn, with wrong labels of a kind ("" for none)."""
    x, y = TABLES[name](return_X_y=True)
    x, query_x, y, query_y = train_test_split(x, y, test_size=0.3, random_state=seed, stratify=y)
    rng = np.random.default_rng([23, seed])
    given = y.copy()
    if noise:
        count, classes = round(WRONG * len(y)), int(y.max()) + 1
        if noise == "symmetric":
            rows = rng.choice(len(y), count, replace=False)
            given[rows] = (y[rows] + rng.integers(1, classes, count)) % classes
        else:
            p = cross_val_predict(MODELS["logistic"](seed), x, y, method="predict_proba")
            others = p.copy()
            others[np.arange(len(y)), y] = -1
            border = np.exp(-4 * (p[np.arange(len(y)), y] - others.max(1)))
            rows = rng.choice(len(y), count, replace=False, p=border / border.sum())
            given[rows] = others[rows].argmax(1)
    return Table(x, given, y, query_x, query_y, MODELS[model](seed), seed)


def of_file(file: Path, model: str, seed: int) -> Table:
    """Return the table of a file."""
    with np.load(file, allow_pickle=False) as held:
        x, query_x = (held[name].reshape(len(held[name]), -1) for name in ("train_x", "test_x"))
        y = {name: held[name] for name in ("train_y_noisy", "train_y_clean", "test_y")}
    return Table(
        *(x, y["train_y_noisy"], y["train_y_clean"], query_x, y["test_y"]),
        *(MODELS[model](seed), seed),
    )


def with_leaks(some: Table) -> tuple[Table, np.ndarray]:
    """Return the table with copies of training rows among its queries, and which these are."""
    rng = np.random.default_rng([29, some.seed])
    query_x, query_y = some.query_x.astype(np.float64).copy(), some.query_y.copy()
    at = rng.choice(len(query_x), max(4, round(LEAKED * len(query_x))), replace=False)
    rows = rng.choice(len(some.x), len(at), replace=False)
    spread = some.x.std(0)
    for number, (query, row) in enumerate(zip(at, rows, strict=True)):
        copy = some.x[row].astype(np.float64)
        if number % 2:
            copy = copy + rng.normal(size=len(copy)) * spread / 100
        else:
            # One that says something: a column of zeros is the same in every row.
            column = rng.choice(np.flatnonzero(spread))
            copy[column] = some.x[rng.integers(len(some.x)), column]
        query_x[query], query_y[query] = copy, some.given[row]
    leaked = np.zeros(len(query_x), dtype=bool)
    leaked[at] = True
    return replace(some, query_x=query_x, query_y=query_y), leaked


def audit(some: Table, settings: Settings) -> tuple[Findings, float]:
    """Return what an audit finds, and its cost in trainings of the audited model."""
    seconds = some.fitted[1]
    train, queries = (
        Rows(x, y, np.arange(len(y)).astype(str), None, "memory", "")
        for x, y in ((some.x, some.given), (some.query_x, some.query_y))
    )
    model = some.model
    start = time.process_time()
    problem = prepare(
        model, train, queries, task="auto", device=choose_device("cpu"), batch_size=None
    )
    planned = plan_influence(model, problem, settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = examine(model, problem, planned, settings, lambda *_: None)
    return found, (time.process_time() - start) / seconds


def judge_labels(some: Table) -> Iterator[tuple[str, Scored]]:
    """Yield every method's figures."""
    wrong = some.given != some.clean

    def scored(scores: np.ndarray, seconds: float, needs: str) -> Scored:
        figures = {
            "auroc": float(roc_auc_score(wrong, scores)),
            "ap": float(average_precision_score(wrong, scores)),
            "cost": seconds,
        }
        return Scored(figures, needs)

    for effort, name in (("standard", OURS), ("quick", QUICK)):
        found, cost = audit(some, Settings(seed=some.seed, effort=effort, influence_queries=0))  # type: ignore[arg-type]
        yield name, scored(found.labels.mislabeled.suspicion, cost, rivals.FINAL)
    estimator, training = some.fitted
    rows = np.arange(len(some.given))
    label = np.unique(some.given, return_inverse=True)[1]
    start = time.process_time()
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=some.seed)
    p = cross_val_predict(some.unfitted, some.x, label, cv=folds, method="predict_proba")
    cost = (time.process_time() - start) / training
    yield "self_confidence", scored(-p[rows, label], cost, rivals.AGAIN)
    others = p.copy()
    others[rows, label] = -1
    yield "normalized_margin", scored(others.max(1) - p[rows, label], cost, rivals.AGAIN)
    yield "with_queries", scored(*_with_queries(some, folds, label))
    own = estimator.predict_proba(some.x)[rows, label]
    yield "loss", scored(-np.log(np.maximum(own, 1e-15)), 0.0, rivals.FINAL)
    near = neighbours(some, some.x, some.standardised[0])[:, 1:]  # a row is its own nearest
    yield "knn", scored((label[near] != label[:, None]).mean(1), 0.0, rivals.FINAL)
    yield "random", scored(np.random.default_rng(some.seed).random(len(rows)), 0.0, "nothing")


def _with_queries(
    some: Table, folds: StratifiedKFold, label: np.ndarray
) -> tuple[np.ndarray, float, str]:
    """Return self-confidence where the trusted queries are among the rows of every training."""
    start, p = time.process_time(), np.zeros(len(label))
    for kept, left in folds.split(some.x, label):
        x = np.concatenate([some.x[kept], some.query_x])
        model = clone(some.unfitted).fit(x, np.concatenate([some.given[kept], some.query_y]))
        said = np.searchsorted(model.classes_, some.given[left])
        p[left] = model.predict_proba(some.x[left])[np.arange(len(left)), said]
    return -p, (time.process_time() - start) / some.fitted[1], rivals.AGAIN


def neighbours(some: Table, asked: np.ndarray, standardised: np.ndarray) -> np.ndarray:
    """Return the nearest training rows by shared leaves, or values where there are no leaves."""
    seen = leaves(some, asked)
    if seen is None:
        nearest = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(some.standardised[0])
        return np.asarray(nearest.kneighbors(standardised, return_distance=False))
    reference = leaves(some, some.x)
    shares = np.stack([(reference == row).mean(1) for row in seen])
    if asked is some.x:
        np.fill_diagonal(shares, 2)  # before those that share every leaf with it
    return np.argsort(-shares, axis=1, kind="stable")[:, : NEIGHBOURS + 1]


def leaves(some: Table, x: np.ndarray) -> np.ndarray | None:
    """Return the leaf of each row in each tree, ``(n, T)``; None where there are no trees."""
    module = some.model.module
    if not isinstance(module, Trees):
        return None
    return module.leaves(torch.as_tensor(some.model.prepare(x))).numpy()


def judge_leaks(some: Table) -> Iterator[tuple[str, Scored]]:
    """Yield every method's figures."""
    some, leaked = with_leaks(some)

    def scored(scores: np.ndarray, needs: str, cost: float = 0.0, **more: float) -> Scored:
        clean = np.sort(scores[~leaked])[::-1]
        threshold = clean[int(0.01 * len(clean))]
        figures = {
            "auroc": float(roc_auc_score(leaked, scores)),
            "ap": float(average_precision_score(leaked, scores)),
            "tpr_at_1fpr": float((scores[leaked] > threshold).mean()),
            "cost": cost,
        }
        return Scored(figures | more, needs)

    found, cost = audit(some, Settings(seed=some.seed, effort="quick", influence_queries=ASKED))
    leaks = found.leaked
    scores = np.where(leaks.kind == "exact", 1e9, -np.nan_to_num(leaks.score))
    yield (
        OURS,
        scored(
            scores,
            rivals.FINAL,
            cost,
            found=float(leaks.flags[leaked].mean()),
            clean_accused=float(leaks.flags[~leaked].mean()),
        ),
    )
    rows, queries = some.standardised
    nearest = NearestNeighbors(n_neighbors=1).fit(rows).kneighbors(queries)[0][:, 0]
    yield "nearest", scored(-nearest, "nothing")
    if (reference := leaves(some, some.x)) is not None:
        asked = leaves(some, some.query_x)
        assert asked is not None, "there are trees"
        shares = np.array([(reference == row).mean(1).max() for row in asked])
        yield "nearest_leaves", scored(shares, rivals.FINAL)
    yield "random", scored(np.random.default_rng(some.seed).random(len(leaked)), "nothing")


def overall(cases: dict[str, list[Scored]], figure: str) -> dict[str, dict[str, Any]]:
    """Return means over all cases of the methods that were asked in each, and ours ahead of them.

    Intervals are paired over settings and seeds, which share tables: they are a little narrow.
    """
    most = max(map(len, cases.values()))
    found = {}
    print(f"\nall {most} cases, {figure}")
    for name, runs in cases.items():
        if len(runs) < most:
            continue
        found[name] = {
            key: round(float(np.mean([run.figures[key] for run in runs])), 4)
            for key in runs[0].figures
        }
        shown = f"  {name:22} {found[name][figure]:.3f}"
        if name != OURS and most > 1:
            low, middle, high = ahead(cases[OURS], runs, figure)
            found[name]["ours_ahead"] = [round(end, 4) for end in (low, middle, high)]
            shown += f"  ours ahead {middle:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(shown, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="an npz file instead of scikit-learn's tables")
    parser.add_argument("--only", choices=("mislabeled", "leakage"), action="append")
    parser.add_argument("--table", choices=TABLES, action="append", help="repeatable")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, one table")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(line(machine("numpy", "scikit-learn", "mlflow")))
    seeds = 1 if arguments.quick else arguments.seeds
    tables = arguments.table or [*TABLES][: 1 if arguments.quick else None]
    if arguments.data:
        tables = ["file"]
    results: dict[str, Any] = {}
    parts = {"mislabeled": (judge_labels, "ap"), "leakage": (judge_leaks, "ap")}
    for part in arguments.only or parts:
        judge, figure = parts[part]
        cases: dict[str, list[Scored]] = {}
        results[part] = {}

        def remembered(
            some: Table, judge: Any = judge, cases: dict[str, list[Scored]] = cases
        ) -> Iterator[tuple[str, Scored]]:
            for name, scored in judge(some):
                cases.setdefault(name, []).append(scored)
                yield name, scored

        for name in tables:
            kinds = ("",) if arguments.data or part == "leakage" else NOISES
            for noise in kinds:
                for model in MODELS:
                    setting = ", ".join(filter(None, (name, noise, model)))

                    def judged(
                        seed: int, of: tuple[str, str, str] = (name, noise, model)
                    ) -> Iterator[tuple[str, Scored]]:
                        return remembered(
                            of_file(arguments.data, of[2], seed)
                            if arguments.data
                            else of_sklearn(*of, seed)
                        )

                    results[part][setting] = table(part, setting, judged, seeds, figure)
                    write(arguments.json, results)
        results[part]["all"] = overall(cases, figure)
        write(arguments.json, results)


if __name__ == "__main__":
    main()
