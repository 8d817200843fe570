"""Other kinds of models: transformers, several labels, models fitted anew, pictures in folders.

Each is trained, logged and registered with its rows in a real MLflow store, audited from its
address by the product's defaults (but that one query is asked about by itself, not 100: of labels
these say nothing), and held beside what others say of the same rows. Labels as they should be, and
trainings without a row, only score the methods.

- **transformer**: a BERT of one layer with fresh weights, on 1,500 news with the labels that people
  gave (a fifth is wrong), until it *memorised* them or *stopped early*; 600 clean test texts are
  the queries. Mislabeled rows.
- **language**: a small GPT with a LoRA adapter (kinds_language.py). Memorized rows.
- **diffusion**: a small UNet of digits (kinds_diffusion.py). Memorized rows.
- **several**: a network that says of digits whether they are even, above four, and looped; one in
  twenty of each label is flipped. Rows with any wrong label.
- **anew**: nearest neighbours and a support vector machine (RBF) on the digits as a table, a tenth
  of the labels wrong, audited through ``--trainer``. Mislabeled rows.
- **pictures**: the digits as PNG files in folders, and as arrays in an npz file, under the same
  network: do both audits say the same?

Others: the model's own loss and margin, twenty neighbours in what its last layer sees (of the
estimators: in the rows), and cleanlab (`make peers`) with out-of-sample probabilities of five folds
of the same model, of texts also of a linear model of their words; and of either with the queries
among every fold's rows, since the audit reads their labels. Intervals hold 95 % of 400 draws of
seeds, and of rows within them, in pairs. Seconds are the processor's; cleanlab's are those of the
trainings.

    OMP_NUM_THREADS=1 python benchmarks/kinds.py [--only transformer ...] [--seeds 0,1,2]
        [--quick] [--json FILE]

--quick: a tenth to a quarter of the rows, one seed. News are looked for as README.md says.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from intervals import Figure, ahead
from kinds_cases import (
    TEXTS,
    fitted_anew,
    kernel_machine,
    neighbours,
    pictures,
    several_labels,
    transformer,
)
from kinds_diffusion import diffusion
from kinds_language import LEAKED, MEMORIZED, language
from kinds_rivals import Case, timed
from measure import line, machine, write
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

OURS = "forward_inf"
KINDS = ("transformer", "language", "diffusion", "several", "anew", "pictures")


def audited(case: Case) -> tuple[Any, float]:
    """Return what an audit finds, and the processor's seconds."""
    from forward_inf_mlflow.auditing import audit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timed(  # type: ignore[no-any-return]
            lambda: audit(case.uri, influence_queries=1, fresh=True, device="cpu", **case.options)
        )


@dataclass(frozen=True)
class Question:
    """What is asked of a case's rows.

    Attributes:
        column: Of the audit's scores: what ranks the rows.
        figures: From truth and scores to a number; the first orders the methods.
        told: What the audit says besides, and what that is worth.
    """

    column: str
    figures: Mapping[str, Figure]
    told: Callable[[Any, np.ndarray], dict[str, float]]


def of_labels(found: Any, wrong: np.ndarray) -> dict[str, float]:
    """Return what the audit says of all labels, and what that is worth."""
    measure = found.record["measures"]["mislabeled"]
    named, certain = (
        found.scores[column].to_numpy() for column in ("mislabeled", "mislabeled_certain")
    )
    return {
        "wrong": float(wrong.mean()),
        "rate, low": measure["rate_low"],
        "rate": measure["rate"],
        "rate, high": measure["rate_high"],
        "abstained": float(measure["abstained"] is not None),
        "named": float(named.sum()),
        "innocent among them": float((named & ~wrong).sum() / max(1, named.sum())),
        "certain": float(certain.sum()),
        "innocent among these": float((certain & ~wrong).sum() / max(1, certain.sum())),
    }


def of_memory(found: Any, truth: np.ndarray) -> dict[str, float]:
    """Return what the audit says of all rows, and what that is worth."""
    named, measures = found.scores["memorized"].to_numpy(), found.record["measures"]
    leaks = found.flagged[found.flagged["verdict"] == "leaked"]["query_id"].astype(int)
    return {
        "named": float(named.sum()),
        "memorized beyond .25 among them": float(
            (truth[named] > MEMORIZED).sum() / max(1, named.sum())
        ),
        "their mean memorization": float(truth[named].sum() / max(1, named.sum())),
        "rate, low": measures["memorized"]["rate_low"],
        "rate, high": measures["memorized"]["rate_high"],
        "leaked queries named": float((leaks < LEAKED).sum()),
        "others named as leaked": float((leaks >= LEAKED).sum()),
    }


def average_precision(wrong: np.ndarray, scores: np.ndarray) -> float:
    """Return it; 0 where there is nothing to be found, as in some draws of few rows."""
    return float(average_precision_score(wrong, scores)) if wrong.any() else 0.0


LABELS = Question(
    "mislabeled_suspicion", {"ap": average_precision, "auroc": roc_auc_score}, of_labels
)
MEMORY = Question(
    "memorized_score",
    {
        "spearman": lambda truth, score: float(stats.spearmanr(truth, score)[0]),
        "ap of .25": lambda truth, score: average_precision(truth > MEMORIZED, score),
    },
    of_memory,
)


def judged(
    name: str, make: Callable[[int], Case], seeds: Sequence[int], question: Question
) -> dict[str, Any]:
    """Judge the rows under every seed's model, print a table and return it."""
    truths, scores, seconds, facts = [], [], [], []
    for seed in seeds:
        case = make(seed)
        found, took = audited(case)
        truths.append(case.truth)
        ours = np.nan_to_num(found.scores[question.column].to_numpy())
        chance = np.random.default_rng(seed).random(len(ours))
        scores.append(
            {OURS: ours} | {key: rank for key, (rank, _) in case.said.items()} | {"random": chance}
        )
        cost = {key: spent for key, (_, spent) in case.said.items()}
        seconds.append({OURS: took, "training": case.seconds} | cost)
        facts.append(case.facts | question.told(found, case.truth))
        first = next(iter(question.figures))
        value = question.figures[first](case.truth, ours)
        print(
            f"{name}, seed {seed}: {first} {value:.3f}, {took:.0f} s", file=sys.stderr, flush=True
        )
    return table(name, question.figures, truths, scores, seconds, facts)


def table(
    name: str,
    figures: Mapping[str, Figure],
    truths: Sequence[np.ndarray],
    scores: Sequence[dict[str, np.ndarray]],
    seconds: Sequence[dict[str, float]],
    facts: Sequence[dict[str, float]],
) -> dict[str, Any]:
    """Print the methods' figures in order, how far ours is ahead, and return all of it.

    Args:
        name: Of the setting.
        figures: The first orders the methods; ours is compared in each.
        truths: ``(n,)`` of each seed.
        scores: Of each seed ``(n,)`` by method.
        seconds: The same of what methods cost.
        facts: The same of what else is told.
    """
    each = {
        method: {
            figure: [float(value(truth, said[method]))
                     for truth, said in zip(truths, scores, strict=True)]
            for figure, value in figures.items()
        }
        for method in scores[0]
    }  # fmt: skip
    apart = {figure: ahead(OURS, truths, scores, value) for figure, value in figures.items()}
    print(f"\n{name}, {len(truths)} seeds of {len(truths[0])} rows")
    main = next(iter(figures))
    methods: dict[str, Any] = {}
    for method in sorted(each, key=lambda method: -np.mean(each[method][main])):
        cost = float(np.mean([some.get(method, 0.0) for some in seconds]))
        methods[method] = {
            "each": each[method],
            **{figure: float(np.mean(found)) for figure, found in each[method].items()},
            "seconds": cost,
            "ours_ahead": {figure: apart[figure].get(method) for figure in figures},
        }
        shown = "  ".join(f"{figure} {methods[method][figure]:.3f}" for figure in figures)
        if method != OURS:
            low, middle, high = apart[main][method]
            shown += f"  ours ahead {middle:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(f"  {method:34} {shown}  {cost:.1f} s", flush=True)
    told = {key: [some[key] for some in facts] for key in facts[0]}
    training = float(np.mean([some["training"] for some in seconds]))
    for key, found in told.items():
        print(f"  {key}: {', '.join(f'{value:.3f}' for value in found)}")
    print(f"  one training: {training:.1f} s", flush=True)
    return {"methods": methods, "facts": told, "training": training}


def as_files(seeds: Sequence[int], quick: bool) -> dict[str, Any]:
    """Audit the same pictures as PNG files in folders and as arrays; print how both agree."""
    from forward_inf_mlflow.auditing import audit

    found: dict[str, list[float]] = {}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            uri, where, wrong = pictures(seed, Path(folder), quick=quick)
            tables = []
            for suffix, id_ in (("", None), (".npz", "ids")):
                train, test = (str(where[part].with_suffix(suffix)) for part in ("train", "test"))
                done = audit(
                    uri, train=train, queries=test, id=id_,
                    influence_queries=1, fresh=True, device="cpu",
                )  # fmt: skip
                tables.append(done.scores.set_index("id").loc[wrong.index])
        files, arrays = (table["mislabeled_suspicion"].to_numpy() for table in tables)
        for name, value in {
            "largest difference of a score": np.abs(files - arrays).max(),
            "rank correlation": stats.spearmanr(files, arrays)[0],
            "rows with another verdict": sum(
                int((tables[0][flag] != tables[1][flag]).sum())
                for flag in ("mislabeled", "mislabeled_certain", "leaked", "memorized")
            ),
            "ap of the files": average_precision_score(wrong, files),
            "ap of the arrays": average_precision_score(wrong, arrays),
        }.items():
            found.setdefault(name, []).append(float(value))
    print(f"\npictures in folders and as arrays, {len(seeds)} seeds of {len(wrong)} rows")
    for name, values in found.items():
        print(f"  {name}: {', '.join(f'{value:.3g}' for value in values)}", flush=True)
    return found


def settings(kind: str, quick: bool) -> dict[str, Callable[[int], Case]]:
    """Return a kind's settings by name."""
    if kind == "language":
        return {"language model, LoRA": partial(language, quick=quick)}
    if kind == "diffusion":
        return {"diffusion model": partial(diffusion, quick=quick)}
    if kind == "anew":
        return {
            f"fitted anew, {name}": partial(fitted_anew, trainer=trainer, quick=quick)
            for name, trainer in (("neighbours", neighbours), ("support vectors", kernel_machine))
        }
    name, make = {
        "transformer": ("transformer", transformer),
        "several": ("several labels", several_labels),
    }[kind]
    return {
        f"{name}, {state}": partial(make, memorised=state == "memorised", quick=quick)
        for state in ("memorised", "stopped early")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--seeds", type=lambda text: [int(one) for one in text.split(",")],
                        default=[0, 1, 2], help="such as 0,1,2")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="fewer rows, one seed")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    import mlflow

    results: dict[str, Any] = {
        "machine": machine("numpy", "scikit-learn", "transformers", "peft", "mlflow")
    }
    print(line(results["machine"]))
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FORWARD_INF_WORK_DIR"] = str(Path(folder) / "work")
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment(
            experiment_id=mlflow.create_experiment("kinds", f"file://{folder}/artifacts")
        )
        for kind in arguments.only:
            if kind in ("transformer", "language") and not TEXTS.exists():
                print(f"{kind}: not measured, {TEXTS} is not there (see benchmarks/README.md)")
                continue
            if kind == "pictures":
                results[kind] = as_files(seeds, arguments.quick)
            else:
                question = MEMORY if kind in ("language", "diffusion") else LABELS
                for name, make in settings(kind, arguments.quick).items():
                    results[name] = judged(name, make, seeds, question)
                    write(arguments.json, results)
            write(arguments.json, results)


if __name__ == "__main__":
    main()
