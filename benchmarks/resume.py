"""Kill an influence computation at random moments, start it again, and compare what comes out.

A child process computes influence by curvature over some hundred shards, with a work folder, and is
killed by SIGKILL after a random share of the time that an undisturbed run takes. It is started
again until it finishes; scores, losses and margins must then be bit for bit those of the
undisturbed run. A piece (a shard, or the moves) is repeated where it was begun more than once; a
kill may cost one. "fresh" kills each computation once, "continuing" again and again.

    OMP_NUM_THREADS=1 python benchmarks/resume.py [--kills 50] [--quick] [--json FILE]

About 5 minutes on one core.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from measure import line, machine, write
from settings import SettingError, load

from forward_inf_mlflow.directions import Curvature
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.shards import WorkFolder, digest_arrays, digest_module
from forward_inf_mlflow.tasks import Classification
from forward_inf_mlflow.tensors import Tensors
from forward_inf_mlflow.work import Arrays

#: Rows of a batch, which is also a shard.
SHARD = 50


@dataclass(frozen=True)
class Logged:
    """A work folder that writes down which pieces are begun."""

    folder: WorkFolder
    log: Path

    def once(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        def begun() -> Arrays:
            with self.log.open("a") as file:
                file.write(name + "\n")
            return make()

        return self.folder.once(name, begun)


@dataclass(frozen=True)
class Computation:
    """What is computed: a trained network, queries asked one by one, and rows."""

    module: torch.nn.Module
    queries: Tensors
    train: Tensors

    def run(self, root: Path) -> None:
        """Compute in a folder, going on from what is there, and write what comes out."""
        torch.set_num_threads(1)
        engine = ForwardInfluence(
            task=Classification(),
            direction=Curvature(solver="fisher", gradients=500, rows=500),
            shard_rows=SHARD,
        )
        key = {
            "module": digest_module(self.module),
            "train": digest_arrays(self.train.inputs, self.train.targets),
            "queries": digest_arrays(self.queries.inputs, self.queries.targets),
            "engine": engine.describe(),
            "batch": SHARD,
            "threads": torch.get_num_threads(),
        }
        ids = np.arange(len(self.queries))
        found = engine.influence(
            self.module,
            QueryGroups.each(self.queries, ids),
            self.train,
            np.arange(len(self.train)),
            work=Logged(WorkFolder.open(root / "work", key), root / "begun.log"),
        )
        np.savez(root / "out.npz", scores=found.scores.values, loss=found.loss, margin=found.margin)


@dataclass(frozen=True)
class Outcome:
    """Computations that were killed and went on until they finished."""

    finished: int
    kills: int
    identical: int
    repeated: int
    most: int

    def merge(self, other: Outcome) -> Outcome:
        return Outcome(
            self.finished + other.finished,
            self.kills + other.kills,
            self.identical + other.identical,
            self.repeated + other.repeated,
            max(self.most, other.most),
        )


def prepared(shards: int, queries: int) -> Computation:
    """Return the digits of a setting, repeated to so many shards."""
    setting = load("digits_mlp")
    host, count = torch.device("cpu"), shards * SHARD
    times = -(-count // len(setting.train_y))
    x, y = torch.cat([setting.train_x] * times), torch.cat([setting.train_y] * times)
    # Repeated rows differ a little, so that no two shards are the same.
    x = x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return Computation(
        setting.fit(None, 0),
        Tensors(setting.query_x[:queries], setting.query_y[:queries], host, SHARD),
        Tensors(x[:count], y[:count], host, SHARD),
    )


def attempt(computation: Computation, root: Path, kill_after: float | None) -> bool:
    """Run once in a process of its own; say whether it was killed before it finished."""
    # Forked: importing torch anew would take longer than the computation.
    process = get_context("fork").Process(target=computation.run, args=(root,))
    process.start()
    process.join(kill_after)
    if process.is_alive():
        process.kill()
        process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the computation failed with exit code {process.exitcode}")
    return process.exitcode != 0


def killed(
    computation: Computation,
    expected: bytes,
    moments: Callable[[], float],
    most_kills: int,
) -> Outcome:
    """Kill a computation up to so often, let it finish, and look at what it did."""
    kills = most = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        while kills < most_kills:
            before = repeats(root)
            if not attempt(computation, root, moments()):
                break
            kills += 1
            most = max(most, repeats(root) - before)
        before = repeats(root)
        if not (root / "out.npz").exists():
            attempt(computation, root, None)
        most = max(most, repeats(root) - before)
        same = content(root) == expected
        return Outcome(1, kills, int(same), repeats(root), most)


def repeats(root: Path) -> int:
    """Return how many pieces were begun again."""
    log = root / "begun.log"
    begun = Counter(log.read_text().split()) if log.exists() else Counter[str]()
    return begun.total() - len(begun)


def content(root: Path) -> bytes:
    """Return the bytes of all that came out."""
    with np.load(root / "out.npz", allow_pickle=False) as out:
        return b"".join(out[name].tobytes() for name in ("scores", "loss", "margin"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="few shards, 5 kills")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    facts = machine("numpy")
    print(line(facts))
    try:
        computation = prepared(*((40, 4) if arguments.quick else (300, 20)))
    except SettingError as error:
        parser.exit(2, f"{error}\n")
    kills = 5 if arguments.quick else arguments.kills
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        attempt(computation, Path(folder), None)
        whole = time.perf_counter() - start
        expected = content(Path(folder))
    print(f"{len(computation.train) // SHARD} shards, {whole:.1f} s undisturbed\n")
    print(
        f"{'':12} {'computations':>12} {'kills':>6} {'identical':>10} {'repeated':>9} {'most':>5}"
    )
    rng = np.random.default_rng(0)
    results: dict[str, object] = {"machine": facts, "seconds": round(whole, 1)}
    # Continuing runs are killed early, so that they need many starts.
    for name, share, each in (("fresh", 0.9, 1), ("continuing", 0.4, kills)):
        total = Outcome(0, 0, 0, 0, 0)
        while total.kills < kills:
            outcome = killed(
                computation,
                expected,
                lambda share=share: float(rng.uniform(0, share * whole)),  # type: ignore[misc]
                min(each, kills - total.kills),
            )
            total = total.merge(outcome)
        results[name] = vars(total)
        print(f"{name:12} {total.finished:12} {total.kills:6} {total.identical:10}"
              f" {total.repeated:9} {total.most:5}", flush=True)  # fmt: skip
    write(arguments.json, results)


if __name__ == "__main__":
    main()
