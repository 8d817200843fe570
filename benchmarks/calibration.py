"""Are promised error rates kept? Hundreds of cheap draws with labels that are known to be wrong.

A draw takes rows of a data set at random, spoils some labels, trains small half-models as an audit
would, and judges. Of all draws: the share of innocent rows among the certain ones (the false
discovery rate, promised 10 %), how many of the likely ones are wrong (more than half, and as many
as their probabilities add up to), how often a bound misses the true rate (promised 1 % below and
5 % above), how often anybody is accused where nothing is wrong, and what a policy of 3 % decides.

Errors: uniform (sym), one class taken for the next (pair), and those that people made (human).
Digits and breast cancer come with scikit-learn; CIFAR-10N images (60 principal components of the
pixels) and NoisyAG-News texts (100 of TF-IDF) from the folder that BENCH_DATA names.

    OMP_NUM_THREADS=1 python benchmarks/calibration.py [--draws 30] [--jobs 1] [--json FILE]

A draw takes one to five seconds of one core.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from measure import line, machine, write
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler, normalize

from forward_inf_mlflow.decision import Facts, decide
from forward_inf_mlflow.detect.mislabeled import mislabeled_classes
from forward_inf_mlflow.detect.neighbours import row_keys
from forward_inf_mlflow.detect.opinions import of_logits
from forward_inf_mlflow.halves import read_halves
from forward_inf_mlflow.policy import Policy
from forward_inf_mlflow.trainers import Refitted
from forward_inf_mlflow.views import Views, experts, input_views

DATA = Path(os.environ.get("BENCH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
ROWS, QUERIES, REPEATS = 600, 300, 3
POLICY = Policy(max_leakage_rate=None)
MODELS: dict[str, Callable[[], Any]] = {
    "logistic regression": lambda: LogisticRegression(max_iter=200),
    "network": lambda: MLPClassifier((32,), max_iter=60),
}
#: Kind of error and its share; of human errors the share is what it is.
ERRORS = (("sym", 0.0), ("sym", 0.05), ("sym", 0.2), ("sym", 0.4), ("pair", 0.1), ("pair", 0.4))


@dataclass(frozen=True)
class Source:
    """Rows, their true labels and what people said; queries if they are rows apart."""

    x: np.ndarray
    y: np.ndarray
    human: np.ndarray | None = None
    queries: tuple[np.ndarray, np.ndarray] | None = None


@cache
def source(name: str) -> Source | None:
    """Return a data set; None where its file is missing."""
    if name == "digits":
        x, y = load_digits(return_X_y=True)
        return Source(x / 16, y)
    if name == "breast cancer":
        x, y = load_breast_cancer(return_X_y=True)
        return Source(StandardScaler().fit_transform(x), y)
    file = DATA / {"CIFAR-10N": "cifar10n_10k.npz", "AG News": "noisy_agnews_5k.npz"}[name]
    if not file.exists():
        return None
    data = np.load(file, allow_pickle=False)
    if name == "CIFAR-10N":
        train, test = (data[key].reshape(len(data[key]), -1) / 255 for key in ("train_x", "test_x"))
        components = PCA(60, whiten=True, random_state=0).fit(train)
        x, q = components.transform(train), components.transform(test)
    else:
        train, test = data["train_text"], data["test_text"]
        words = TfidfVectorizer(min_df=3, sublinear_tf=True, stop_words="english")
        counts = words.fit_transform(np.concatenate([train, test]))
        both = 5 * normalize(TruncatedSVD(100, random_state=0).fit_transform(counts))
        x, q = both[: len(train)], both[len(train) :]
    return Source(x, data["train_y_clean"], data["train_y_human"], (q, data["test_y"]))


def draw(name: str, model: str, kind: str, share: float, seed: int) -> dict[str, float]:
    """Judge one draw; every figure is a share, but for numbers of likely rows."""
    data, rng = source(name), np.random.default_rng([seed, 17])
    assert data is not None, "only data sets that are there are drawn from"
    if data.queries is None:
        order = rng.permutation(len(data.x))
        n = min(ROWS, 2 * len(order) // 3)
        chosen, apart = order[:n], order[n : n + QUERIES]
        query_x, query_y = data.x[apart], data.y[apart]
    else:
        chosen = rng.choice(len(data.x), ROWS, replace=False)
        apart = rng.choice(len(data.queries[0]), QUERIES, replace=False)
        query_x, query_y = (part[apart] for part in data.queries)
    x, truth, classes = data.x[chosen], data.y[chosen], np.arange(int(data.y.max()) + 1)
    given = truth.copy()
    if kind == "human":
        assert data.human is not None, "people labelled only some data sets"
        given = data.human[chosen]
    else:
        bad = rng.choice(len(x), round(share * len(x)), replace=False)
        step = 1 if kind == "pair" else rng.integers(1, len(classes), len(bad))
        given[bad] = (truth[bad] + step) % len(classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit = Refitted(MODELS[model](), x, given, query_x, classes)
        groups = row_keys(x)
        halves = read_halves(fit, given, repeats=REPEATS, seed=seed, groups=groups)
        audited = MODELS[model]().fit(x, given)
    trusted = np.ones(len(query_y), dtype=bool)
    seen = Views(input_views(x, query_x), None, None)
    others, _ = experts(seen, given, groups, query_y, trusted, len(classes))
    itself = of_logits(
        "the audited model", *(np.log(audited.predict_proba(r) + 1e-30)[None] for r in (x, query_x))
    )
    half_models = of_logits("half-models", halves.train_out, halves.queries)
    found = mislabeled_classes([half_models, *others], given, query_y, trusted, learned=[itself])
    wrong, measure = given != truth, found.measure
    outcome = decide({"mislabeled": measure}, Facts(), POLICY).outcome

    likely = found.flags & ~found.certain

    def false(flags: np.ndarray) -> float:
        return float((flags & ~wrong).sum() / max(1, flags.sum()))

    def power(flags: np.ndarray) -> float:
        return float(flags[wrong].mean()) if wrong.any() else np.nan

    return {
        "wrong": float(wrong.mean()),
        "certain, innocent": false(found.certain),
        "certain, found": power(found.certain),
        "anybody certain": float(found.certain.any()),
        "named, innocent": false(found.flags),
        "named, found": power(found.flags),
        "likely": float(likely.sum()),
        "likely, wrong": float((likely & wrong).sum()),
        "likely, expected": float(found.score[likely].sum()),
        "low": measure.rate_low,
        "estimate": measure.rate,
        "high": measure.rate_high,
        "low above the truth": float(measure.rate_low > wrong.mean()),
        "high below the truth": float(measure.rate_high < wrong.mean()),
        "refused": float(outcome == "fail"),
        "undecided": float(outcome == "undecided"),
        "passed": float(outcome == "pass"),
    }


def upper(values: np.ndarray) -> float:
    """Return the upper 95 % bound of a mean; 1 where there is one value alone."""
    if len(values) < 2:
        return 1.0
    return float(values.mean() + 1.645 * values.std(ddof=1) / len(values) ** 0.5)


def tables(draws: int, *, jobs: int) -> dict[str, Any]:
    """Draw, judge, print and return the figures of each setting and of all together."""
    # Forks: what a data set needs is read once.
    parallel = Parallel(jobs, backend="multiprocessing")
    table: dict[str, dict[str, float]] = {}
    everything: dict[str, list[dict[str, float]]] = {}
    clean: list[dict[str, float]] = []
    spoiled: list[dict[str, float]] = []
    for name in ("digits", "breast cancer", "AG News", "CIFAR-10N"):
        data = source(name)
        if data is None:
            print(f"{name}: not measured (its file is not in {DATA}: set BENCH_DATA)")
            continue
        errors = (*ERRORS, *([("human", np.nan)] if data.human is not None else []))
        kinds = [(model, *error) for model in MODELS for error in errors]
        drawn = parallel(
            delayed(draw)(name, *kind, seed) for kind in kinds for seed in range(draws)
        )
        for number, (model, kind, share) in enumerate(kinds):
            rows = drawn[number * draws : (number + 1) * draws]
            key = f"{name}, {model}, {kind}" + ("" if kind == "human" else f" {share:.0%}")
            table[key] = {k: round(float(np.mean([r[k] for r in rows])), 4) for k in rows[0]}
            everything.setdefault(kind, []).extend(rows)
            clean += rows if share == 0 else []
            spoiled += rows if (kind, share) == ("sym", 0.2) else []
            shown = ", ".join(f"{k} {v:.3f}" for k, v in table[key].items())
            print(f"{key}: {shown}", flush=True)
    summary: dict[str, float] = {"draws": float(sum(map(len, everything.values())))}
    for kind, rows in everything.items():
        innocent = np.array([r["certain, innocent"] for r in rows])
        likely, wrong, expected = (
            sum(r[name] for r in rows) for name in ("likely", "likely, wrong", "likely, expected")
        )
        summary |= {
            f"false discovery rate, {kind}": round(float(innocent.mean()), 4),
            f"its upper bound, {kind}": round(upper(innocent), 4),
            f"likely, {kind}": likely,
            f"of these wrong, {kind}": round(wrong / max(1, likely), 4),
            f"of these expected wrong, {kind}": round(expected / max(1, likely), 4),
        }
    for name in ("anybody certain", "low above the truth", "refused", "undecided"):
        summary[f"clean: {name}"] = round(float(np.mean([r[name] for r in clean])), 4)
    for name in ("estimate", "high"):
        tail = np.quantile([r[name] for r in clean], 0.95)
        summary[f"clean: {name}, 95th percentile"] = round(float(tail), 4)
    for name in ("refused", "undecided"):
        summary[f"20 %: {name}"] = round(float(np.mean([r[name] for r in spoiled])), 4)
    print("", *(f"{name}: {value:g}" for name, value in summary.items()), sep="\n")
    return {"settings": table, "summary": summary}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=30, help="of each setting")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--jobs", type=int, default=1, help="draws at once")
    arguments = parser.parse_args()
    facts = machine("scikit-learn", "numpy")
    print(line(facts), end="\n\n")
    write(arguments.json, {"machine": facts, **tables(arguments.draws, jobs=arguments.jobs)})


if __name__ == "__main__":
    main()
