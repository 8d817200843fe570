"""How well influence predicts retraining: every direction and every peer on three settings.

LDS: networks were retrained on random halves of the rows (banks.py); for each query, does the sum
of influences over a half rank the halves as the retrained losses do? Beside it stands the noise
ceiling, what a perfect predictor of the expected loss would reach on this bank. Also
leave-top-k-out: how much a query's loss rises without its own 20 top proponents.

The audited networks have seeds 0, 1, 2, the banks others. A query's LDS is averaged over the
audited networks first, for they answer the same queries from the same bank; intervals are
bootstrapped over queries. Nothing is chosen by these figures: damping and rates follow each
method's own rule.

A method's cost is the processor's seconds for all queries over those of one bare forward pass over
the training rows with the same network. A peer's process says its seconds by the clock, which are
multiplied by its share of the processor. Peers run in an environment of their own (``make peers``)
and are kept under ``benchmarks/.cache`` by what decides them.

    OMP_NUM_THREADS=1 python benchmarks/lds.py [--only digits_mlp] [--quick] [--json FILE]
        [--seeds 0,1,2] [--skip-peers]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from banks import CACHE, bank, retrain_without
from measure import line, machine, timed, write
from peers.bundle import write_bundle
from reference import gradient_product, inverse_gauss_newton, last_layer
from settings import SETTINGS, Setting, SettingError, load
from torch import nn

from forward_inf_mlflow.directions import (
    Curvature,
    Direction,
    GradientStep,
    OptimizerSteps,
    Replay,
)
from forward_inf_mlflow.evaluate import (
    Estimate,
    lds,
    leave_top_k_out,
    mean_over_queries,
    reliability,
)
from forward_inf_mlflow.influence import ForwardInfluence, Influence, QueryGroups
from forward_inf_mlflow.tasks import CausalLM, Classification
from forward_inf_mlflow.tensors import Tensors

HERE = Path(__file__).resolve().parent
PEERS_PYTHON = HERE.parent / ".venv-peers" / "bin" / "python"
PEERS = ("tracin", "ekfac", "trak")
OURS = "forward_inf"
#: Where all audited networks would take too long: how many of the first are asked.
FEWER = {
    ("digits_mlp", "replay"): 1,
    ("cifar10n_cnn", "replay"): 0,
    ("small_lm", "replay"): 0,
    ("small_lm", "curvature_sketch"): 1,
}
#: Rows of a batch, for ours and for the bare forward pass.
BATCH = {"digits_mlp": 1000, "cifar10n_cnn": 250, "small_lm": 50}

#: Leave-top-k-out: rows left out, queries, and the seeds of retrainings, which no bank has.
TOP, RETRAINED = 20, (5000, 5001, 5002)
ASKED = {"digits_mlp": 10, "cifar10n_cnn": 10, "small_lm": 5}
REMOVED = (OURS, "ekfac", "gradient", "random")


class Found(NamedTuple):
    """One method on one audited network: scores ``(q, n)``, seconds, and forward passes' worth."""

    scores: np.ndarray
    seconds: float
    cost: float


def directions(setting: Setting) -> dict[str, Direction]:
    """Return ours, by name; the first is the default."""
    penalty = setting.weight_decay
    return {
        OURS: Curvature(penalty=penalty),
        "curvature_1000": Curvature(penalty=penalty, gradients=1000),
        "curvature_joint": Curvature(penalty=penalty, by_layer=False),
        "curvature_sketch": Curvature(penalty=penalty, solver="sketch"),
        "replay": Replay(penalty=penalty),
        "gradient": GradientStep(),
        "optimizer": OptimizerSteps(),
    }


def influence(setting: Setting, module: nn.Module, direction: Direction) -> Influence:
    """Return the influence of every row on every query, read through the rows' losses."""
    task = CausalLM() if setting.kind == "causal_lm" else Classification()
    host, size = torch.device("cpu"), BATCH[setting.name]
    train = Tensors(setting.train_x, setting.train_y, host, size)
    queries = Tensors(setting.query_x, setting.query_y, host, size)
    groups = QueryGroups.each(queries, np.arange(len(queries)))
    engine = ForwardInfluence(task=task, direction=direction)
    return engine.influence(module, groups, train, np.arange(len(train)))


def methods(
    setting: Setting, module: nn.Module, seed: int, number: int
) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Return what runs in this process, by name."""

    def ours(direction: Direction) -> np.ndarray:
        return influence(setting, module, direction).scores.values

    for name, direction in directions(setting).items():
        if number < FEWER.get((setting.name, name), number + 1):
            yield name, partial(ours, direction)
    yield "last_layer", partial(last_layer, setting, module)
    if setting.name == "digits_mlp":
        yield "inverse_gauss_newton", partial(exact, setting, module)
    # A network that has seen nothing: other first weights than those that this one started from.
    yield "reinitialised", partial(gradient_product, setting, setting.make(seed + 100))


def exact(setting: Setting, module: nn.Module) -> np.ndarray:
    """Return the dense inverse of the whole Gauss-Newton matrix, damped as ours are.

    The mean eigenvalue is a fact of the network that any direction with the rule finds alike.
    """
    some = Tensors(setting.train_x, setting.train_y, torch.device("cpu"), BATCH[setting.name])
    rule = Curvature(by_layer=False)
    facts = rule.plan(module, Classification(), [some.part(0, 1)], some).facts
    damping = facts["damping_used"]
    assert isinstance(damping, float)
    return inverse_gauss_newton(setting, module, damping=damping)


def audited(setting: Setting, seed: int, number: int, *, peers: bool) -> dict[str, Found]:
    """Return every method's scores of one audited network, the first having number 0."""
    module = setting.fit(None, seed)
    batches = torch.split(setting.train_x, BATCH[setting.name])

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            module(batch)

    bare = float(np.median([timed(forward) for _ in range(9)]))
    found = {}
    for name, method in methods(setting, module, seed, number):
        start = time.process_time()
        scores = method()
        seconds = time.process_time() - start
        found[name] = Found(scores, seconds, seconds / bare)
        say(f"{setting.name} {seed}: {name} in {seconds:.1f} s")
    for name in PEERS if peers else ():
        found[name] = peer(setting, module, name, bare)
        say(f"{setting.name} {seed}: {name} in {found[name].seconds:.1f} s")
    return found


def peer(setting: Setting, module: nn.Module, name: str, bare: float) -> Found:
    """Return a peer's scores, as they were kept or from its own process.

    Raises:
        SettingError: There is no environment for peers, or the peer fails.
    """
    key = hashlib.sha256(setting.digest().encode())
    for value in module.state_dict().values():
        key.update(value.numpy().tobytes())
    for path in (f"{name}.py", "bundle.py", "requirements.txt"):
        key.update((HERE / "peers" / path).read_bytes())
    kept = CACHE / "peers" / f"{setting.name}-{name}-{key.hexdigest()[:16]}.npz"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.npz"
            write_bundle(Path(folder) / "bundle", setting, module)
            busy = _run([HERE / "peers" / f"{name}.py", Path(folder) / "bundle", out])
            with np.load(out, allow_pickle=False) as said:
                arrays = dict(said)
        arrays["seconds"] = arrays["seconds"] * busy
        aside = kept.with_suffix(f".{os.getpid()}")
        with aside.open("wb") as file:
            np.savez(file, **arrays, bare=bare)
        aside.replace(kept)
    with np.load(kept, allow_pickle=False) as said:
        seconds = float(said["seconds"])
        say(f"{name}: {said['note']}, {said['versions']}")
        return Found(said["scores"], seconds, seconds / float(said["bare"]))


def _run(command: Sequence[Path]) -> float:
    """Run a script among the peers on one thread; return its share of one processor."""
    if not PEERS_PYTHON.exists():
        raise SettingError(f"{PEERS_PYTHON} is missing: make peers, or give --skip-peers")
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [PEERS_PYTHON, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise SettingError(f"{command[0].name} failed: mend it or give --skip-peers ({last})")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return min(1.0, used / wall)


def removal(setting: Setting, scores: dict[str, np.ndarray]) -> None:
    """Print by how many nats the first queries' losses rise without their top proponents."""
    asked = ASKED[setting.name]
    whole = retrain_without(setting, [], RETRAINED)[:, :asked]
    losses = {}
    for name, values in scores.items():
        tops = np.argsort(-values[:asked], axis=1)[:, :TOP]
        without = [retrain_without(setting, top, RETRAINED)[:, j] for j, top in enumerate(tops)]
        losses[name] = np.stack(without, 1)
        say(f"{setting.name}: retrained without the top of {name}")
    print(f"\nwithout the top {TOP}, {asked} queries, {len(RETRAINED)} retrainings, nats")
    for name, without_them in losses.items():
        print(f"{name:22} {_estimate(leave_top_k_out(whole, without_them))}")
    if "ekfac" in losses:
        ahead = leave_top_k_out(losses["ekfac"], losses[OURS])
        print(f"{OURS} - ekfac    {_estimate(ahead)}, query by query")


def compare(setting: Setting, seeds: Sequence[int], *, peers: bool) -> dict[str, dict[str, float]]:
    """Print a setting's table; return the figures of each method."""
    truth = bank(setting)
    by_seed = [audited(setting, seed, i, peers=peers) for i, seed in enumerate(seeds)]
    runs = {name: [found[name] for found in by_seed if name in found] for name in by_seed[0]}
    values = {  # (networks, q)
        name: np.stack([lds(run.scores, truth.masks, truth.losses) for run in some])
        for name, some in runs.items()
    }
    print(f"\n{setting.name}: seeds {', '.join(map(str, seeds))}, halves {truth.losses.shape[:2]}")
    print(f"{'ceiling':22} {_estimate(mean_over_queries(reliability(truth.losses)))}")
    print(f"{'':22} {'LDS':^19} {'each network':22} {'seconds':>9} {'forwards':>9}")
    table = {}
    for name in sorted(values, key=lambda name: -values[name].mean()):
        estimate = mean_over_queries(values[name].mean(0))
        seconds = float(np.median([run.seconds for run in runs[name]]))
        cost = float(np.median([run.cost for run in runs[name]]))
        each = " ".join(f"{v:.3f}" for v in values[name].mean(1))
        print(f"{name:22} {_estimate(estimate)} {each:22} {seconds:9.2f} {cost:9.0f}")
        table[name] = {
            "lds": round(estimate.mean, 4),
            "low": round(estimate.low, 4),
            "high": round(estimate.high, 4),
            "cost": round(cost, 1),
        }
    for name in PEERS if peers else ():
        ahead = mean_over_queries((values[OURS] - values[name]).mean(0))
        print(f"{OURS} - {name:8} {_estimate(ahead)}, query by query")
    chosen = {name: f.scores for name, f in by_seed[0].items() if name in REMOVED}
    shape = (len(setting.query_y), len(setting.train_y))
    removal(setting, {**chosen, "random": np.random.default_rng(0).random(shape)})
    return table


def _estimate(found: Estimate) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def say(text: str) -> None:
    """Say how far it is."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SETTINGS, action="append", help="repeatable")
    parser.add_argument("--quick", action="store_true", help="the digits alone")
    parser.add_argument("--seeds", default="0,1,2", help="of the audited networks")
    parser.add_argument("--skip-peers", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        seeds = [int(seed) for seed in arguments.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds takes numbers like 0,1,2, not {arguments.seeds!r}")
    print(line(machine("numpy", "scipy")))
    results: dict[str, object] = {}
    names = arguments.only or (["digits_mlp"] if arguments.quick else list(SETTINGS))
    for name in names:
        try:
            results[name] = compare(load(name), seeds, peers=not arguments.skip_peers)
        except SettingError as error:
            parser.exit(2, f"{error}\n")
        write(arguments.json, results)


if __name__ == "__main__":
    main()
