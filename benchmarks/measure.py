"""How speed is measured and written down: interleaved runs, and what they ran on."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

Seconds = dict[str, np.ndarray]


def machine(*packages: str) -> dict[str, object]:
    """Return what was run where: command, processor, threads, versions of torch and others."""
    found: dict[str, object] = {
        "command": shlex.join(["python", *(os.path.relpath(sys.argv[0]), *sys.argv[1:])]),
        "processor": f"{os.cpu_count()} x {_processor()}",
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    for package in ("torch", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if torch.cuda.is_available():
        found["card"] = torch.cuda.get_device_name()
    return found


def line(facts: Mapping[str, object]) -> str:
    """Return a machine's facts in one line."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def side_by_side(jobs: Mapping[str, Callable[[], object]], *, repeats: int = 5) -> Seconds:
    """Return the seconds of each job in each round, ``(repeats,)``.

    Every round runs all jobs one after the other, so that what else the machine does falls on all
    of them; a first round warms up and does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(repeats + 1):
        for name, job in jobs.items():
            took = timed(job)
            if round_:
                seconds[name].append(took)
    return {name: np.array(found) for name, found in seconds.items()}


def timed(job: Callable[[], object]) -> float:
    """Return the seconds that a job takes.

    With a GPU those of the clock, its work included; else those of this process's processor, which
    for one thread are the same on an idle machine and do not count what others take.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        start = time.perf_counter()
        job()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    job()
    return time.process_time() - start


def ratio(seconds: Seconds, of: str, over: str, *, times: float = 1.0) -> float:
    """Return the median over rounds of one job's seconds over ``times`` another's."""
    return float(np.median(seconds[of] / (times * seconds[over])))


def write(path: Path | None, results: Mapping[str, object]) -> None:
    """Write results as JSON where a file is named."""
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for row in info.read_text().splitlines():
            if row.startswith("model name"):
                return row.partition(":")[2].strip()
    return platform.machine()
