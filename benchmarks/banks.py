"""The ground truth: networks retrained on random halves, and without chosen rows.

What the queries' losses and margins are after each retraining is kept under ``benchmarks/.cache``,
one whole file per retraining, in a folder named by a hash of all that decides it. An interrupted
run goes on where it stopped, a longer bank extends a shorter one, and nothing is trained twice. On
one core the digits take about 2 minutes, the CNN 8 and the language model 20.

    python benchmarks/banks.py [--only digits_mlp] [--processes 2]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from settings import SETTINGS, Setting, SettingError, load

CACHE = Path(__file__).resolve().parent / ".cache"

#: Random halves and retrainings of each.
SIZES = {"digits_mlp": (150, 2), "cifar10n_cnn": (60, 4), "small_lm": (60, 4)}

#: The networks that are audited have seeds 0, 1, 2; those of the bank start here.
FIRST_SEED = 1000


@dataclass(frozen=True, eq=False)
class Bank:
    """What retraining on random halves gave.

    Attributes:
        masks: ``(m, n)`` bool: the training rows of each half.
        losses: ``(m, s, q)`` float32: the queries' losses after each retraining, in nats.
        margins: ``(m, s, q)`` float32: their log-odds; for texts minus the loss.
    """

    masks: np.ndarray
    losses: np.ndarray
    margins: np.ndarray


@dataclass(frozen=True)
class Job:
    """One retraining: the rows it sees, its seed, and where its outcome is kept."""

    rows: np.ndarray
    seed: int
    path: Path


def half(count: int, number: int) -> np.ndarray:
    """Return the mask ``(count,)`` of a random half; it depends on its number alone."""
    mask = np.zeros(count, dtype=bool)
    mask[np.random.default_rng([7, number]).permutation(count)[: count // 2]] = True
    return mask


def bank(setting: Setting, *, processes: int = 1) -> Bank:
    """Return a setting's bank, training what is missing; progress goes to stderr."""
    subsets, repeats = SIZES[setting.name]
    masks = np.stack([half(len(setting.train_y), i) for i in range(subsets)])
    folder = _folder(setting)
    jobs = [
        Job(masks[i], FIRST_SEED + 10 * i + r, folder / f"half-{i:03d}-{r}.npy")
        for i in range(subsets)
        for r in range(repeats)
    ]
    found = _outcomes(setting, jobs, processes).reshape(subsets, repeats, 2, -1)
    return Bank(masks, found[:, :, 0], found[:, :, 1])


def retrain_without(
    setting: Setting, indices: Sequence[int] | np.ndarray, seeds: Iterable[int]
) -> np.ndarray:
    """Return the queries' losses after retraining without some rows, ``(seeds, q)`` float32.

    Args:
        setting: The setting.
        indices: Positions of the rows left out; none gives what to compare with.
        seeds: One retraining each; the same seeds on both sides of a comparison.
    """
    mask = np.ones(len(setting.train_y), dtype=bool)
    mask[np.asarray(indices, dtype=np.int64)] = False
    key = hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()[:16]
    folder = _folder(setting)
    jobs = [Job(mask, seed, folder / f"without-{key}-{seed}.npy") for seed in seeds]
    return _outcomes(setting, jobs, 1)[:, 0]


def _folder(setting: Setting) -> Path:
    folder = CACHE / f"{setting.name}-{setting.digest()}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _outcomes(setting: Setting, jobs: Sequence[Job], processes: int) -> np.ndarray:
    """Return losses and margins, ``(jobs, 2, q)`` float32, training what is not kept yet."""
    missing = [job for job in jobs if not job.path.exists()]
    retrain = partial(_retrain, setting)
    if processes > 1 and missing:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            _count(pool.map(retrain, missing), len(missing), setting.name)
    else:
        _count(map(retrain, missing), len(missing), setting.name)
    return np.stack([np.load(job.path, allow_pickle=False) for job in jobs])


def _count(done: Iterable[Path], total: int, name: str) -> None:
    """Take each as it comes and say about every tenth second how far it is."""
    start = said = time.monotonic()
    for number, _ in enumerate(done, 1):
        now = time.monotonic()
        if now - said > 10:
            left = (now - start) / number * (total - number)
            print(f"{name}: {number} of {total} retrained, {left:.0f} s left", file=sys.stderr)
            said = now


def _retrain(setting: Setting, job: Job) -> Path:
    """Train, read the queries, and keep what they say, whole or not at all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Faster for networks this small, and the sums do not depend on cores.
    module = setting.fit(job.rows, job.seed)
    torch.set_num_threads(threads)
    with torch.no_grad():
        outputs = module(setting.query_x)
        found = torch.stack(
            [
                setting.loss(outputs, setting.query_y),
                setting.margin(outputs, setting.query_y),
            ]
        )
    aside = job.path.with_suffix(f".{os.getpid()}")
    with aside.open("wb") as file:
        np.save(file, found.numpy())
    return aside.replace(job.path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SETTINGS, action="append", help="repeatable")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    for name in arguments.only or SIZES:
        try:
            setting = load(name)
        except SettingError as error:
            parser.exit(2, f"{error}\n")
        found = bank(setting, processes=arguments.processes)
        print(f"{name}: losses {found.losses.shape}, mean {found.losses.mean():.4f} nats")


if __name__ == "__main__":
    main()
