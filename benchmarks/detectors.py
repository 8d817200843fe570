"""The three detectors beside what the field has, each on the same models in the same run.

- **mislabeled**: rows whose labels are wrong, by people or drawn, of models that generalise and
  models that memorised; beside rare rows whose labels are right, too. Best ranked first: AUROC,
  average precision, precision among as many rows as are wrong, and the share of the wrong ones
  missed there.
- **leakage**: queries of which a training row is a copy: AUROC, average precision, share found at
  1 % of clean queries accused, and how often the right row is named.
- **memorization**: rank and linear correlation with Feldman and Zhang's mem_i from 60 models on
  random subsets, and AUROC for mem_i > .25.
- **calibration**: what the verdicts of the mislabeled and leakage parts promised, and what it was
  worth; and of hundreds of small draws, by calibration.py and calibration_targets.py.

Ours goes through the registry as a user's model would: logged as pt2, loaded, audited; where labels
and memorization are judged, without asking about single queries (`--influence-queries 0`). What
methods need and cost (in trainings of the audited model, by the processor's seconds) stands beside
each.

    OMP_NUM_THREADS=1 python benchmarks/detectors.py [--only mislabeled] [--data FILE]
        [--leakage FILE] [--seeds 3] [--draws 8] [--quick] [--json FILE]

--quick: one seed, one setting of each part, on fewer rows and queries, and one draw of each kind;
on the processor two parts at once. The files' keys are in README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import calibration
import calibration_targets
import numpy as np
import rivals
import torch
from cases import KNOWN, Case, case, kind_of, leaky, memorized, settings, smaller
from joblib import Parallel, delayed
from measure import line, machine, write
from planted import KINDS, planted
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.detect.measure import binomial_interval
from forward_inf_mlflow.examine import Findings, examine, plan_influence
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.preparation import choose_device, prepare
from forward_inf_mlflow.settings import Settings

DATA = Path(os.environ.get("BENCH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
PARTS = ("mislabeled", "leakage", "memorization", "calibration")
OURS, QUICK = "forward_inf", "forward_inf_quick"
#: Rows of the models that are trained 60 times.
FEWER = 2000
#: With --quick: rows of the two parts about labels, queries that are asked about one by one, and
#: queries of each kind that the published recipe is asked of.
QUICK_ROWS, QUICK_SUBSETS, QUICK_ASKED, QUICK_PUBLISHED = 1500, 500, 20, 8
Figures = dict[str, float]


@dataclass(frozen=True)
class Scored:
    """A method's figures on one case."""

    figures: Figures
    needs: str


def registered(module: nn.Module, example: torch.Tensor) -> AuditedModel:
    """Return the module as it comes back from a registry of its own."""
    import mlflow

    from forward_inf_mlflow.registry import load, resolve

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment(
            experiment_id=mlflow.create_experiment("detectors", f"file://{folder}/artifacts")
        )
        with mlflow.start_run():
            mlflow.pytorch.log_model(
                module.eval(),
                name="model",
                serialization_format="pt2",
                input_example=example[:2].numpy(),
                registered_model_name="audited",
            )
        return load(resolve("models:/audited/1"))


def audit(some: Case, settings_: Settings) -> tuple[Findings, float]:
    """Return what an audit finds, and its cost in trainings of the audited model."""
    seconds = some.training().seconds
    model = registered(some.network(), some.x)
    train, queries = (
        Rows(x.numpy(), y.numpy(), np.arange(len(y)).astype(str), None, "memory", "")
        for x, y in ((some.x, some.given), (some.query_x, some.query_y))
    )
    start = time.process_time()
    problem = prepare(
        model, train, queries, task="auto", device=choose_device(some.device), batch_size=None
    )
    planned = plan_influence(model, problem, settings_)
    found = examine(model, problem, planned, settings_, lambda *_: None)
    return found, (time.process_time() - start) / seconds


def judge_mislabeled(some: Case) -> Iterator[tuple[str, Scored]]:
    """Yield every method's figures."""
    wrong = some.wrong

    def figures(scores: np.ndarray, cost: float) -> Figures:
        scores = np.nan_to_num(scores, nan=-np.inf, posinf=1e9, neginf=-1e9)
        first = np.argsort(-scores, kind="stable")[: wrong.sum()]
        return {
            "auroc": float(roc_auc_score(wrong, scores)),
            "ap": float(average_precision_score(wrong, scores)),
            "precision_at_n": float(wrong[first].mean()),
            "missed_at_n": float(1 - wrong[first].sum() / wrong.sum()),
            "cost": cost,
        } | beside_rare(scores)

    def beside_rare(scores: np.ndarray) -> Figures:
        """Return how well wrong rows are told from rare ones, and how many rare ones rank high."""
        if some.rare is None:
            return {}
        either = wrong | some.rare
        first = np.argsort(-scores, kind="stable")[: wrong.sum()]
        return {
            "auroc, wrong against rare": float(roc_auc_score(wrong[either], scores[either])),
            "rare among the first": float(some.rare[first].mean()),
        }

    for effort in ("standard", "quick"):
        found, cost = audit(some, Settings(seed=some.seed, effort=effort, influence_queries=0))
        verdict = found.labels.mislabeled
        name = OURS if effort == "standard" else QUICK
        scored = figures(verdict.suspicion, cost)
        if effort == "standard":
            accused = verdict.certain
            measure = verdict.measure
            scored |= {
                "certain": float(accused.sum()),
                "innocent among the certain": float(
                    (accused & ~wrong).sum() / max(1, accused.sum())
                ),
                "rare among the certain": float(
                    0 if some.rare is None else (accused & some.rare).sum() / max(1, accused.sum())
                ),
                "rate": float(wrong.mean()),
                "rate_low": measure.rate_low,
                "rate_estimate": measure.rate,
                "rate_high": measure.rate_high,
                "abstained": float(measure.abstained is not None),
            }
        yield name, Scored(scored, rivals.FINAL)
    for name, rival in rivals.mislabeled(some):
        yield name, Scored(figures(rival.scores, rival.cost), rival.needs)


@dataclass(frozen=True, eq=False)
class Leaky:
    """A case some of whose queries are copies of training rows.

    Attributes:
        case: The audited model and its rows.
        leaked: ``(m,)`` bool.
        copies: The row that a query is a copy of.
        change: ``(m,)`` what was done to a copy, where it was planted; else None.
        images: Training rows and queries as bytes, where they are images.
    """

    case: Case
    leaked: np.ndarray
    copies: Mapping[int, int]
    change: np.ndarray | None = None
    images: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def real(cls, state: str, seed: int, file: Path, device: str) -> Leaky:
        """Return the leaks of a file."""
        some, held = leaky(state, seed, file, device)
        return cls(
            some,
            held["test_leaked"].astype(bool),
            {int(query): int(row) for query, row in held["pairs"][:, :2]},
            images=(held["train_x"], held["test_x"]),
        )

    @classmethod
    def planted(cls, kind: str, state: str, seed: int, file: Path | None, device: str) -> Leaky:
        """Return leaks made from training rows."""
        some, change, copies, images = planted(kind, state, seed, file, device)
        return cls(some, change != "", copies, change, images)


def judge_leaks(some: Leaky, *, quick: bool) -> Iterator[tuple[str, Scored]]:
    """Yield every method's figures."""
    leaked, seed = some.leaked, some.case.seed

    def figures(scores: np.ndarray, rows: np.ndarray, cost: float) -> Figures:
        asked = ~np.isnan(scores)
        clean = np.sort(scores[~leaked & asked])[::-1]
        threshold = clean[int(0.01 * len(clean))]
        named = [rows[query] == row for query, row in some.copies.items() if asked[query]]
        by_change = {} if some.change is None else {
            f"tpr, {change}": float((scores[some.change == change] > threshold).mean())
            for change in dict.fromkeys(some.change[leaked]) if asked.all()
        }  # fmt: skip
        return {
            "auroc": float(roc_auc_score(leaked[asked], scores[asked])),
            "ap": float(average_precision_score(leaked[asked], scores[asked])),
            "tpr_at_1fpr": float((scores[leaked & asked] > threshold).mean()),
            "top1": float(np.mean(named)),
            "cost": cost,
            **by_change,
        }

    asked = QUICK_ASKED if quick else Settings.influence_queries
    settings_ = Settings(seed=seed, effort="quick", influence_queries=asked)
    found, cost = audit(some.case, settings_)
    leaks = found.leaked
    scores = np.where(leaks.kind == "exact", 1e9, -np.nan_to_num(leaks.score))
    flags = leaks.flags
    low, high = binomial_interval(int(flags[~leaked].sum()), int((~leaked).sum()))
    verdict = {
        "found": float(flags[leaked].mean()),
        "clean accused": float(flags[~leaked].mean()),
        "clean accused, low": low,
        "clean accused, high": high,
        "rate": float(leaked.mean()),
        "rate_low": leaks.measure.rate_low,
        "rate_estimate": leaks.measure.rate,
    }
    yield OURS, Scored({**figures(scores, leaks.train_index, cost), **verdict}, rivals.FINAL)
    published = QUICK_PUBLISHED if quick else rivals.PUBLISHED
    for name, rival, rows in rivals.leaks(some.case, some.images, leaked, published):
        yield name, Scored(figures(rival.scores, rows, rival.cost), rival.needs)


def judge_memorization(some: Case) -> Iterator[tuple[str, Scored]]:
    """Yield every method's figures."""
    truth = memorized(some)

    def figures(scores: np.ndarray, cost: float) -> Figures:
        return {
            "spearman": float(stats.spearmanr(scores, truth)[0]),
            "pearson": float(stats.pearsonr(scores, truth)[0]),
            "auroc_25": float(roc_auc_score(truth > 0.25, scores)),
            "cost": cost,
        }

    for effort in ("standard", "quick"):
        found, cost = audit(some, Settings(seed=some.seed, effort=effort, influence_queries=0))
        name = OURS if effort == "standard" else QUICK
        yield name, Scored(figures(found.labels.memorized.score, cost), rivals.FINAL)
    for name, rival in rivals.mislabeled(some):
        yield name, Scored(figures(rival.scores, rival.cost), rival.needs)


def table(
    part: str,
    setting: str,
    judge: Callable[[int], Iterator[tuple[str, Scored]]],
    seeds: int,
    main_figure: str,
) -> dict[str, dict[str, Any]]:
    """Judge every seed's model, print means with intervals, and return them."""
    found: dict[str, list[Scored]] = {}
    for seed in range(seeds):
        for name, scored in judge(seed):
            found.setdefault(name, []).append(scored)
            shown = scored.figures[main_figure]
            print(
                f"{part}, {setting}, seed {seed}: {name} {shown:.3f}", file=sys.stderr, flush=True
            )
    print(f"\n{part}: {setting}, {seeds} seeds")
    result: dict[str, dict[str, Any]] = {}
    for name in sorted(found, key=lambda name: -mean(found[name], main_figure)):
        runs = found[name]
        result[name] = {figure: round(mean(runs, figure), 4) for figure in runs[0].figures} | {
            "needs": runs[0].needs
        }
        shown = "  ".join(
            f"{figure} {value:.3f}" for figure, value in result[name].items()
            if isinstance(value, float)
        )  # fmt: skip
        for key, words, whose in (("ours_ahead", "ours", OURS), ("quick_ahead", "quick", QUICK)):
            if whose in found and seeds > 1 and name not in (OURS, QUICK):
                paired = ahead(found[whose], runs, main_figure)
                result[name][key] = [round(end, 4) for end in paired]
                shown += f"  {words} ahead {paired[1]:+.3f} [{paired[0]:+.3f}, {paired[2]:+.3f}]"
        print(f"  {name:22} {shown}  ({runs[0].needs})", flush=True)
    return result


def ahead(ours: list[Scored], theirs: list[Scored], figure: str) -> tuple[float, float, float]:
    """Return how far ours is ahead, seed by seed: low, mean and high of its 95 % interval."""
    apart = [a.figures[figure] - b.figures[figure] for a, b in zip(ours, theirs, strict=True)]
    half = stats.t.ppf(0.975, len(apart) - 1) * np.std(apart, ddof=1) / len(apart) ** 0.5
    return tuple(float(np.mean(apart) + side * half) for side in (-1, 0, 1))  # type: ignore[return-value]


def mean(runs: list[Scored], figure: str) -> float:
    """Return a figure's mean over seeds."""
    return float(np.mean([run.figures[figure] for run in runs]))


def promised(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return what ours promised in each setting and what it was worth."""
    wanted = ("certain", "innocent among the certain", "rate", "rate_low", "rate_estimate",
              "rate_high", "abstained", "found", "clean accused")  # fmt: skip
    kept = {}
    for part in ("mislabeled", "leakage"):
        for setting, methods in results.get(part, {}).items():
            ours = methods[OURS]
            kept[f"{part}: {setting}"] = {name: ours[name] for name in wanted if name in ours}
    return kept


def leak_settings(arguments: argparse.Namespace) -> list[tuple[str, Callable[[int], Leaky]]]:
    """Return the settings with leaks that are asked for and whose files are there."""
    found: list[tuple[str, Callable[[int], Leaky]]] = []
    for state in ("memorised", "generalising"):
        if arguments.leakage.exists():
            found.append((
                f"real leaks, {state}",
                lambda seed, s=state: Leaky.real(s, seed, arguments.leakage, arguments.device),
            ))  # fmt: skip
        for kind in KINDS:
            file = {"images": arguments.leakage, "texts": arguments.texts, "table": None}[kind]
            if file is None or file.exists():
                found.append((
                    f"planted leaks, {kind}, {state}",
                    lambda seed, k=kind, s=state, f=file: Leaky.planted(
                        k, s, seed, f, arguments.device
                    ),
                ))  # fmt: skip
    if arguments.setting:
        return [one for one in found if one[0] in arguments.setting]
    return found[:1] if arguments.quick else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA / "cifar10n_10k.npz")
    parser.add_argument("--leakage", type=Path, default=DATA / "cifair_leakage.npz")
    parser.add_argument("--texts", type=Path, default=DATA / "noisy_agnews_5k.npz")
    parser.add_argument("--device", default="cpu", help="where networks are trained and audited")
    parser.add_argument("--only", choices=PARTS, action="append", help="repeatable")
    parser.add_argument("--setting", action="append", help="repeatable; default: all of the data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, help="so many rows of the file, not random ones")
    parser.add_argument("--draws", type=int, default=8, help="of each setting of calibration.py")
    parser.add_argument("--jobs", type=int, help="such draws at once; default 1, --quick all cores")
    parser.add_argument("--quick", action="store_true", help="one seed, one setting of each part")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(line(machine("numpy", "scikit-learn", "mlflow")))
    parts = arguments.only or PARTS
    for file in (arguments.data, arguments.leakage):
        if not file.exists():
            print(f"{file} is not there: what needs it is not measured (see benchmarks/README.md)")
    file = arguments.data if arguments.data.exists() else None
    if file is not None and not arguments.setting and kind_of(file) is None:
        parser.error(f"{file} holds no images (n, h, w) or (n, h, w, 3), no table and no texts")
    names = settings("digits") + (settings(kind_of(file)) if file else [])
    if file is not None and kind_of(file) == "images" and arguments.texts.exists():
        names += settings("texts")
    if arguments.quick:
        names = settings(kind_of(file) if file else "digits")[:1]
    if arguments.setting:
        names = [name for name in arguments.setting if "leaks" not in name]
        known = [name for kind in KNOWN for name in settings(kind)]
        if unknown := sorted(set(names) - set(known)):
            parser.error(f"no such setting: {unknown[0]}; there are {'; '.join(known)}")
    asked = [part for part in ("mislabeled", "leakage", "memorization") if part in parts]
    results: dict[str, Any] = {part: {} for part in parts}

    def keep(part: str, tables: dict[str, Any]) -> None:
        results[part] = tables
        results["calibration"] = promised(results)
        write(arguments.json, results)

    if arguments.quick and arguments.device == "cpu":  # two parts at once
        found = Parallel(2, backend="multiprocessing")(
            delayed(measured)(part, names, file, arguments) for part in asked
        )
        for part, tables in zip(asked, found, strict=True):
            keep(part, tables)
    else:
        for part in asked:
            measured(part, names, file, arguments, partial(keep, part))
    results["calibration"] = promised(results)
    print("\n" + json.dumps(results["calibration"], indent=1))
    if "calibration" in parts:
        draws = 1 if arguments.quick else arguments.draws
        jobs = arguments.jobs or (os.cpu_count() or 1 if arguments.quick else 1)
        results["calibration"]["draws"] = calibration.tables(draws, jobs=jobs)
        results["calibration"]["targets"] = calibration_targets.tables(draws, jobs=jobs)
    write(arguments.json, results)


def measured(
    part: str,
    names: Sequence[str],
    file: Path | None,
    arguments: argparse.Namespace,
    keep: Callable[[dict[str, Any]], None] = lambda tables: None,
) -> dict[str, Any]:
    """Return a part's tables by setting, and tell ``keep`` of them after each.

    Args:
        part: Its name.
        names: Settings of the two parts about labels.
        file: Where their rows are from.
        arguments: The command line's.
        keep: Given the tables so far.
    """
    quick, seeds = arguments.quick, 1 if arguments.quick else arguments.seeds
    tables: dict[str, Any] = {}

    def some(setting: str, seed: int, most: int | None) -> Case:
        if setting.startswith("digits"):
            source = None
        else:
            fits = file is not None and kind_of(file) == setting.split(",")[0]
            source = file if fits else arguments.texts
        return smaller(case(setting, seed, source, arguments.device, arguments.first), most)

    judges: dict[str, tuple[Callable[[int], Iterator[tuple[str, Scored]]], str]] = {}
    if part == "leakage":
        for setting, leaks in leak_settings(arguments):
            judges[setting] = (
                lambda seed, leaks=leaks: judge_leaks(leaks(seed), quick=quick),
                "tpr_at_1fpr",
            )
    for setting in names:
        if part == "mislabeled":
            judges[setting] = (
                lambda seed, s=setting: judge_mislabeled(
                    some(s, seed, QUICK_ROWS if quick else None)
                ),
                "ap",
            )
        elif part == "memorization":
            judges[setting] = (
                lambda seed, s=setting: judge_memorization(
                    some(s, seed, QUICK_SUBSETS if quick else FEWER)
                ),
                "spearman",
            )
    for setting, (judge, figure) in judges.items():
        tables[setting] = table(part, setting, judge, seeds, figure)
        keep(tables)
    return tables


if __name__ == "__main__":
    main()
