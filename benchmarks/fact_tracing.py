"""Which training sentences made a small GPT state a fact: ours beside what the field has.

Invented facts in several wordings, with look-alikes that share their words or their answer (see
`facts`), are taught to a small GPT. Queries are facts in a wording that is held out; it gets them
right after training and not before. MRR and recall@10: how far up the rows stand that state the
fact. Leave-k-out, the causal truth: how far the fact's probability falls when the model is trained
again without the top k rows of a method, mean over k = 5, 10 and 20 and two seeds. The queries are
about different people, so the top k of all of them are left out together: one retraining says it
for all. What that costs a query beside its own rows is the fall without random rows.

    OMP_NUM_THREADS=1 python benchmarks/fact_tracing.py [--quick] [--fine-tuned] [--seeds 0,1]
        [--only METHOD ...] [--json FILE]

``--quick``: two corpora of about 1,900 sentences. Without it one of 20,000 and more, which takes
hours. ``--fine-tuned`` starts from a GPT that was taught tinyshakespeare first. Intervals are 95 %
bootstrap intervals over queries.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from fact_methods import METHODS, OURS, Bench
from facts import Fact
from measure import line, machine, write
from settings import SettingError
from taught import SIZES, Job, Taught

KS, SEEDS, TOP = (5, 10, 20), (1, 2), 10
#: Of a method: per query its reciprocal rank, its recall and its fall by k.
Figures = dict[str, np.ndarray]


def measured(taught: Taught, only: list[str]) -> dict[str, Figures]:
    """Return what each method's scores are worth, query by query."""
    bench, found = Bench(taught), dict[str, Figures]()
    whole = taught.retrained([Job(np.array([], int), seed) for seed in SEEDS])
    print(f"probability after training anew on all rows: {whole.mean():.3f}", flush=True)
    for name in only:
        began = time.process_time()
        try:
            scores = METHODS[name](bench)
        except ImportError as error:
            print(f"{name}: not measured, {error.name} is not installed", flush=True)
            continue
        except subprocess.CalledProcessError as error:
            last = error.stderr.decode().strip().splitlines()[-1:]
            print(f"{name}: not measured, the peer failed: {' '.join(last)}", flush=True)
            continue
        seconds = time.process_time() - began
        order = np.argsort(-scores, axis=1, kind="stable")
        jobs = [Job(np.unique(order[:, :k]), seed) for k in KS for seed in SEEDS]
        left = taught.retrained(jobs).reshape(len(KS), len(SEEDS), -1)
        falls = (whole[None] - left).mean(1)
        found[name] = {
            **retrieval(order, taught.facts),
            **{f"without_{k}": fall for k, fall in zip(KS, falls, strict=True)},
            "leave_k_out": falls.mean(0),
        }
        said = (f"{key} {value.mean():.3f}" for key, value in found[name].items())
        print(f"  {name}:", *said, f"({seconds:.0f} s)", flush=True)
    return found


def retrieval(order: np.ndarray, facts: list[Fact]) -> Figures:
    """Return how far up each fact's rows stand, ``(q,)`` each."""
    reciprocal, recall = [], []
    for mine, fact in zip(order, facts, strict=True):
        places = np.flatnonzero(np.isin(mine, fact.rows))
        reciprocal.append(1 / (1 + places[0]))
        recall.append((places < TOP).sum() / min(TOP, len(fact.rows)))
    return {"mrr": np.array(reciprocal), "recall_at_10": np.array(recall)}


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over queries."""
    drawn = np.random.default_rng(0).integers(len(values), size=(4000, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    return float(low), float(high)


def say(figures: dict[str, Figures]) -> None:
    """Print the table, and how far each method is behind ours."""
    ours = figures.get(OURS, {}).get("leave_k_out")
    print(f"\n| method | MRR | recall@{TOP} | fall | without {KS} | ours less it |")
    print("|---|---|---|---|---|---|")
    for name, found in sorted(figures.items(), key=lambda f: -f[1]["leave_k_out"].mean()):
        low, high = interval(found["leave_k_out"])
        ks = " / ".join(f"{found[f'without_{k}'].mean():.2f}" for k in KS)
        behind = ""
        if ours is not None and name != OURS:
            apart = ours - found["leave_k_out"]
            behind = "{:+.3f} [{:+.3f}, {:+.3f}]".format(apart.mean(), *interval(apart))
        print(
            f"| {name}{' (ours)' * (name == OURS)} | {found['mrr'].mean():.3f} | "
            f"{found['recall_at_10'].mean():.3f} | {found['leave_k_out'].mean():.3f} "
            f"[{low:.3f}, {high:.3f}] | {ks} | {behind} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small corpora")
    parser.add_argument("--fine-tuned", action="store_true", help="start from tinyshakespeare")
    parser.add_argument("--seeds", help="of the corpora; default: 0,1 with --quick, else 0")
    parser.add_argument("--only", nargs="+", choices=METHODS, metavar="METHOD", help="these alone")
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = SIZES["quick" if arguments.quick else "full"]
    seeds = arguments.seeds or ("0,1" if arguments.quick else "0")
    print(line(machine("numpy", "bm25s")), end="\n\n", flush=True)
    pooled: dict[str, list[Figures]] = defaultdict(list)
    for seed in map(int, seeds.split(",")):
        try:
            taught = Taught(size, fine_tuned=arguments.fine_tuned, seed=seed)
        except SettingError as error:
            parser.exit(2, f"{error}\n")
        print(
            f"corpus {seed}: {len(taught.x):,} sentences, "
            f"{sum(p.numel() for p in taught.module.parameters()):,} parameters; "
            f"{taught.share:.0%} of the facts are learned, {len(taught.facts)} asked",
            flush=True,
        )
        for name, found in measured(taught, arguments.only or list(METHODS)).items():
            pooled[name].append(found)
        figures = {
            name: {key: np.concatenate([f[key] for f in parts]) for key in parts[0]}
            for name, parts in pooled.items()
        }
        write(
            arguments.json,
            {
                "forward_inf" if name == OURS else name: {
                    key: float(found[key].mean()) for key in ("mrr", "recall_at_10", "leave_k_out")
                }
                for name, found in figures.items()
            },
        )
    say(figures)


if __name__ == "__main__":
    main()
