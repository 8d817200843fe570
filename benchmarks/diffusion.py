"""Which training images did a diffusion model make an image from: ours beside what the field has.

A small convolutional denoiser of digits is taught groups of exemplars with a mark of their own,
among distractors with marks that look like them (see `denoisers`). Queries are images that it
generates and that show a group's mark. Recall@10 and mean average precision: how far up the
group's exemplars stand. Leave-k-out, the causal truth: how much a query's noise-prediction loss
(all times, noise that no method saw) rises when the network is trained again, from the same seed,
without the query's own first 10 rows; each query by itself.

Variants, of ours and of the features, were chosen by recall on the groups "chosen" (seeds 0 and 4);
what is reported is of other groups, digits and seeds. D-TRAK-like and the diagonal Fisher are
written here, after their papers; these and dattri's TRAK with D-TRAK's output function have the
damping that was best on the "chosen" groups.

    OMP_NUM_THREADS=1 python benchmarks/diffusion.py [--quick] [--only METHOD ...] [--processes 2]
        [--json FILE]

``--quick``: one query of each group is retrained without, else all, and there is no replay. A
training takes 11 seconds of one core; some 80 of them, kept under ``benchmarks/.cache``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import denoisers
import numpy as np
import torch
from denoisers import GROUPS, STEPS, UNet, generate, kept, marked, noise_loss, rows, trained
from measure import line, machine, write
from rivals import HERE, PEERS_PYTHON
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from forward_inf_mlflow.diffusion.attributed import attribute_images, noisy_times
from forward_inf_mlflow.diffusion.question import GRADIENTS
from forward_inf_mlflow.directions import Curvature, Direction, GradientStep, Replay
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.models.features import before_last
from forward_inf_mlflow.probe import Method
from forward_inf_mlflow.tasks import Denoising
from forward_inf_mlflow.tensors import Tensors

JUDGED, SEEDS, TOP, ASKED, TIMES = "judged", (1, 2, 3), 10, 7, 10
#: Queries of a group that are retrained without, with ``--quick``; and what is left out there,
#: because it takes longer than all others together.
QUICK, LONG = 1, "replay, noisy times"
#: Draws of the paired bootstrap.
DRAWS = 10_000
SCHEDULE = tuple(kept().tolist())


class Bench:
    """A trained denoiser, its rows, and images of its own making that show a group's mark."""

    def __init__(self, seed: int, groups: str = JUDGED) -> None:
        self.seed = seed
        self.rows, others = rows(seed, groups)
        self.module = trained(self.rows.x, seed)
        images = self._generated()
        sure = marked(images, others, len(GROUPS[groups]))
        found = [
            index
            for group in range(sure.shape[1])
            for index in np.argsort(-sure[:, group], kind="stable")[:ASKED]
            if sure[index, group] > denoisers.SURE
        ]
        self.x, self.group = images[found], sure[found].argmax(1)
        device = torch.device("cpu")
        self.train = Tensors(self.rows.x, torch.zeros(len(self.rows.x)), device, 64)
        self.queries = Tensors(self.x, torch.zeros(len(self.x)), device, 64)

    def _generated(self) -> Tensor:
        path = (
            denoisers.CACHE / "denoisers" / f"{denoisers.digest(self.rows.x, self.seed)}-made.npz"
        )
        if not path.exists():
            images = generate(self.module, denoisers.GENERATED, self.seed)
            denoisers.keep(path, {"x": images.numpy()})
        with np.load(path, allow_pickle=False) as stored:
            return torch.as_tensor(stored["x"])

    @property
    def groups(self) -> QueryGroups:
        return QueryGroups.each(self.queries, np.arange(len(self.x)).astype(str))

    @property
    def ids(self) -> np.ndarray:
        return np.arange(len(self.train)).astype(str)

    def influence(
        self, task: Denoising, direction: Direction, method: Method = "auto"
    ) -> np.ndarray:
        engine = ForwardInfluence(task=task, direction=direction, method=method)

        def make() -> dict[str, np.ndarray]:
            found = engine.influence(self.module, self.groups, self.train, self.ids)
            return {"influence": found.scores.values}

        return self._kept(engine, make)["influence"]

    def _kept(
        self, engine: ForwardInfluence, make: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Return arrays, from the disk where they are there."""
        key = hashlib.sha256(repr((engine.describe(), self.x.numpy().tobytes())).encode())
        path = denoisers.CACHE / "denoisers" / f"scores-{key.hexdigest()[:24]}.npz"
        if not path.exists():
            denoisers.keep(path, make())
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    @cached_property
    def ours(self) -> dict[str, np.ndarray]:
        """Return influence and score of the default of ``forward-inf attribute``."""
        engine = ForwardInfluence(
            task=NOISY, direction=Curvature(multiple=0.01, gradients=GRADIENTS)
        )
        seen = before_last(self.module)

        def make() -> dict[str, np.ndarray]:
            found = attribute_images(engine, self.module, seen, self.groups, self.train, self.ids)
            return {"influence": found.influence, "score": found.score}

        return self._kept(engine, make)

    @cached_property
    def gradients(self) -> tuple[Tensor, Tensor]:
        """Return each image's gradient of the mean loss at the noisy times, ours and D-TRAK's."""
        theta = {name: p.detach() for name, p in self.module.named_parameters()}
        left, images = kept().float(), torch.cat([self.rows.x, self.x])
        noise = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))

        def answers(parameters: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
            noised = left[t].sqrt() * x + (1 - left[t]).sqrt() * noise
            answer: Tensor = functional_call(self.module, parameters, (noised[None], t[None]))
            return answer

        def loss(parameters: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
            return (answers(parameters, x, t) - noise).square().mean()

        def output(parameters: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
            return answers(parameters, x, t).square().mean()

        found = []
        for function, times in (
            (loss, NOISY.chosen_times),
            (output, EVEN.chosen_times),
        ):
            of_rows = vmap(grad(function), in_dims=(None, 0, None))
            total = torch.zeros(len(images), sum(p.numel() for p in theta.values()))
            for t in times:
                for start in range(0, len(images), 64):
                    some = of_rows(theta, images[start : start + 64], torch.tensor(t))
                    total[start : start + 64] += torch.cat([g.flatten(1) for g in some.values()], 1)
            found.append(total / len(times))
        return found[0], found[1]


#: What the command reads by default; the same weights at evenly spread times; and no weights.
NOISY = Denoising(alphas_cumprod=SCHEDULE, times=noisy_times(SCHEDULE, TIMES))
EVEN = Denoising(alphas_cumprod=SCHEDULE, times=TIMES)
PLAIN = Denoising(alphas_cumprod=SCHEDULE, times=TIMES, clean_weight=None)


def _cosines(asked: Tensor, known: Tensor) -> np.ndarray:
    asked, known = (nn.functional.normalize(x.flatten(1)) for x in (asked, known))
    return np.asarray(asked @ known.T)


@torch.no_grad()
def _features(bench: Bench, level: int, time: int) -> np.ndarray:
    """Cosines of features of dimmed images: the deepest (0), or those before the last layer (1)."""
    dimmed = kept().float()[time].sqrt()
    asked, known = (
        bench.module.features(dimmed * x, torch.full((len(x),), time))[level]
        for x in (bench.x, bench.rows.x)
    )
    return _cosines(asked, known)


def _d_trak(bench: Bench, damping: float = 0.1) -> np.ndarray:
    """D-TRAK's kernel: gradients of the squared output, not projected, divided by their own."""
    gradients = bench.gradients[1]
    known, asked = gradients[: len(bench.train)].double(), gradients[len(bench.train) :].double()
    inner = known @ known.T
    eye = torch.eye(len(inner), dtype=torch.float64)
    # (A^T A + d)^-1 A^T = A^T (A A^T + d)^-1
    inverse = torch.linalg.inv(inner + damping * inner.diagonal().mean() * eye)
    return np.asarray(asked @ known.T @ inverse)


def _dattri(bench: Bench) -> np.ndarray:
    """D-TRAK by dattri, in the peers' environment.

    Raises:
        ImportError: There is none.
    """
    if not PEERS_PYTHON.exists():
        raise ImportError("no peers here: make peers", name="dattri (make peers)")
    weights = {name: value.numpy() for name, value in bench.module.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "taught.npz", Path(folder) / "out.npz"
        np.savez(
            given,
            x=bench.rows.x.numpy(),
            query_x=bench.x.numpy(),
            times=np.array(EVEN.chosen_times),
            **weights,
        )
        subprocess.run(
            [PEERS_PYTHON, HERE / "peers" / "diffusion_trak.py", given, out],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
        )
        with np.load(out, allow_pickle=False) as said:
            return np.asarray(said["scores"])


def _diagonal(bench: Bench, damping: float = 0.001) -> np.ndarray:
    """A Newton step with the diagonal Fisher, as Attribution-by-Unlearning has it, read exactly."""
    gradients = bench.gradients[0]
    known, asked = gradients[: len(bench.train)], gradients[len(bench.train) :]
    diagonal = known.square().mean(0)
    return np.asarray((asked / (diagonal + damping * diagonal.mean())) @ known.T)


METHODS: dict[str, Callable[[Bench], np.ndarray]] = {
    "random": lambda b: np.random.default_rng(b.seed).random((len(b.x), len(b.train))),
    "pixels": lambda b: _cosines(b.x, b.rows.x),
    "features, low noise": lambda b: _features(b, 1, 2),
    "features, middle": lambda b: _features(b, 1, STEPS // 2),
    "features, deepest": lambda b: _features(b, 0, STEPS // 2),
    "plain ascent": lambda b: b.influence(PLAIN, GradientStep()),
    "plain ascent, noisy times": lambda b: b.influence(NOISY, GradientStep()),
    "both signs": lambda b: b.influence(
        NOISY, GradientStep(relative_size=0.01, sign="both"), "difference"
    ),
    "d-trak-like": _d_trak,
    "d-trak (dattri)": _dattri,
    "diagonal fisher": _diagonal,
    "curvature, noisy times": lambda b: b.ours["influence"],
    "curvature and features": lambda b: b.ours["score"],
    "replay, noisy times": lambda b: b.influence(
        NOISY, Replay(most_steps=100, most_seeds=1), "derivative"
    ),
}
#: Which of these the command takes by default.
OURS = "curvature and features"
#: Retrained without, in this order.
TESTED = (
    *(OURS, "features, middle", "d-trak-like", "curvature, noisy times", "pixels", "random"),
    "d-trak (dattri)",
    *("diagonal fisher", "plain ascent", "both signs", "replay, noisy times"),
    *("features, deepest", "features, low noise"),
)


def retrieval(found: np.ndarray, bench: Bench) -> tuple[np.ndarray, np.ndarray]:
    """Return each query's recall@10 (of 10 places) and average precision."""
    recall, precision = [], []
    for row, group in zip(found, bench.group, strict=True):
        hits = bench.rows.group[np.argsort(-row, kind="stable")] == group
        recall.append(hits[:TOP].mean())
        precision.append((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())
    return np.array(recall), np.array(precision)


def left_out(bench: Bench, quick: bool) -> np.ndarray:
    """Return which queries are retrained without: with ``--quick`` one of each group."""
    if not quick:
        return np.arange(len(bench.x))
    groups = np.unique(bench.group)
    return np.concatenate([np.flatnonzero(bench.group == g)[:QUICK] for g in groups])


def _risen(job: tuple[Tensor, np.ndarray, Tensor, int]) -> float:
    """Return a query's loss after training without some rows."""
    torch.set_num_threads(1)
    x, without, query, seed = job
    rest = np.ones(len(x), bool)
    rest[without] = False
    return float(noise_loss(trained(x[torch.as_tensor(rest)], seed), query)[0])


def leave_out(
    found: Sequence[np.ndarray], benches: Sequence[Bench], quick: bool, pool: ProcessPoolExecutor
) -> np.ndarray:
    """Return by how much each query's loss rises without its own first rows."""
    jobs, before = [], []
    for scores, bench in zip(found, benches, strict=True):
        for query in left_out(bench, quick).tolist():
            first = np.argsort(-scores[query], kind="stable")[:TOP]
            one = bench.x[query : query + 1]
            jobs.append((bench.rows.x, np.sort(first), one, bench.seed))
            before.append(float(noise_loss(bench.module, one)[0]))
    return np.array(list(pool.map(_risen, jobs))) - np.array(before)


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a mean of paired differences, by a bootstrap over queries."""
    rng = np.random.default_rng(0)
    means = rng.choice(differences, (DRAWS, len(differences))).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer queries are retrained without")
    parser.add_argument("--only", nargs="+", choices=METHODS, metavar="METHOD", help="these alone")
    parser.add_argument("--processes", type=int, default=2, help="that train at once")
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine("numpy", "scikit-learn")
    print(line(facts), end="\n\n", flush=True)
    benches = [Bench(seed) for seed in SEEDS]
    parameters = sum(p.numel() for p in UNet().parameters())
    counts = ", ".join(str(len(b.x)) for b in benches)
    print(f"{len(benches[0].train)} rows, {parameters:,} parameters; queries: {counts}", flush=True)
    results: dict[str, Any] = {"machine": facts}
    scored: dict[str, list[np.ndarray]] = {}
    figures: dict[str, Mapping[str, np.ndarray]] = {}
    asked = arguments.only or [name for name in METHODS if not (arguments.quick and name == LONG)]
    for name, method in METHODS.items():
        if name not in asked:
            continue
        began = time.process_time()
        try:
            scored[name] = [method(bench) for bench in benches]
        except ImportError as error:
            print(f"{name}: not measured, {error.name} is not installed", flush=True)
            continue
        seconds = (time.process_time() - began) / len(benches)
        pairs = [retrieval(s, b) for s, b in zip(scored[name], benches, strict=True)]
        figures[name] = {
            "recall_at_10": np.concatenate([p[0] for p in pairs]),
            "map": np.concatenate([p[1] for p in pairs]),
        }
        key = "forward_inf" if name == OURS else name
        results[key] = {k: float(v.mean()) for k, v in figures[name].items()}
        results[key]["seconds"] = seconds
        print(name, *(f"{k} {v:.3f}" for k, v in results[key].items()), flush=True)
        write(arguments.json, results)
    risen: dict[str, np.ndarray] = {}
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("fork")) as pool:
        for name in (name for name in TESTED if name in scored):
            risen[name] = leave_out(scored[name], benches, arguments.quick, pool)
            results["forward_inf" if name == OURS else name]["leave_k_out"] = float(
                risen[name].mean()
            )
            print(f"{name}: loss rises by {1000 * risen[name].mean():.1f}e-3", flush=True)
            write(arguments.json, results)
    if OURS not in scored:
        return
    print("\nours minus each other, with 95 % intervals over queries", flush=True)
    for name in METHODS:
        if name == OURS or name not in scored:
            continue
        told = results[name]["ahead"] = {}
        for kind, values in figures[name].items():
            told[kind] = interval(figures[OURS][kind] - values)
        if name in risen:
            told["leave_k_out"] = interval(risen[OURS] - risen[name])
        shown = (f"{kind} {low:+.4f} to {high:+.4f}" for kind, (low, high) in told.items())
        print(name, *shown, sep=", ", flush=True)
    write(arguments.json, results)


if __name__ == "__main__":
    main()
