"""What a sweep costs, in forward passes, in memory, and beside peers.

Times are processor seconds of one thread (wall clock with a GPU); ratios are medians of five rounds
in which all that is compared runs one after the other in one process. A bare forward pass is
``module(x)`` without gradients over the same rows, in the same batches, with the same attention
kernel.

Networks: the CNN and the small language model of settings.py (21,430 and 64,481 parameters, where
every cost that is not a product of matrices shows), and a decoder 256 wide, 4 layers deep (3.2
million parameters).

- Differences: a sweep of 8 moves over 9 bare passes.
- Derivatives: a sweep of 1 move over a bare pass, and what each of 3 more adds.
- Memory: peak of a sweep over rows on disk, above the loaded model, each size in a fresh process.
- Peers: the influence of all rows on the mean of all queries, everything included. The peers'
  environment (peers/requirements.txt) runs both sides in one process.
- CUDA: the sweep's share of the bare forward rate, on a ResNet-18 and a network of GPT-2's size.

    OMP_NUM_THREADS=1 python benchmarks/speed.py [--only forward] [--quick] [--json FILE]

About 10 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from measure import Seconds, line, machine, ratio, side_by_side, write
from settings import Decoder, SettingError, load
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from forward_inf_mlflow.directions.moves import MoveAlong, Tangent, at_rest, whole_float32
from forward_inf_mlflow.streams import NpzStream, ParquetStream
from forward_inf_mlflow.sweep import sweep
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tasks import CausalLM, Classification
from forward_inf_mlflow.tensors import Stream, Tensors

PEERS = Path(__file__).resolve().parents[1] / ".venv-peers" / "bin" / "python"
MOVES = 8
PASSES = MOVES + 1
#: Moves whose derivatives are read together, to see what each after the first adds.
TOGETHER = 4
HOST = torch.device("cpu")
Method = Literal["difference", "derivative"]


@dataclass(frozen=True)
class Case:
    """A network, rows to sweep, and their task."""

    module: nn.Module
    rows: Tensors
    task: Task


def of_setting(name: str, rows: int, batch_size: int) -> Case:
    """Return a setting's network, untrained, and some of its rows."""
    setting = load(name)
    task = CausalLM() if setting.kind == "causal_lm" else Classification()
    some = Tensors(setting.train_x[:rows], setting.train_y[:rows], HOST, batch_size)
    return Case(setting.make(0).eval(), some, task)


def decoder(
    vocabulary: int, context: int, width: int, heads: int, layers: int, rows: int, batch_size: int
) -> Case:
    """Return a language model of some size and random texts."""
    module = Decoder(vocabulary, context, width, heads, layers).eval()
    tokens = torch.randint(vocabulary, (rows, context + 1), generator=torch.manual_seed(0))
    texts = Tensors(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), HOST, batch_size)
    return Case(module, texts, CausalLM())


class _Residual(nn.Module):
    """Two convolutions with batch norm, added to what came in (He et al., CVPR 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.skip = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def resnet18(width: int, pixels: int, rows: int, batch_size: int) -> Case:
    """Return a ResNet-18 (its width is 64) and random images."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    before = width
    for stage in range(4):
        after = width * 2**stage
        layers += [_Residual(before, after, 2 if stage else 1), _Residual(after, after, 1)]
        before = after
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000)]
    images = Tensors(
        torch.randn(rows, 3, pixels, pixels), torch.randint(1000, (rows,)), HOST, batch_size
    )
    return Case(nn.Sequential(*layers).eval(), images, Classification())


def random_moves(module: nn.Module, count: int) -> MoveAlong:
    """Return moves along random tangents: what they are does not change what a sweep costs."""
    base = at_rest(module)
    tangents = [
        Tangent(base, {name: torch.randn_like(p) for name, p in base.parameters.items()})
        for _ in range(count)
    ]
    return MoveAlong(base, tangents, np.eye(count), 0.0003)


def forward(quick: bool) -> dict[str, object]:
    """Compare sweeps with bare forward passes."""
    share = 4 if quick else 1
    cases = {
        "cifar10n_cnn": of_setting("cifar10n_cnn", 1500 // share, 250),
        "small_lm": of_setting("small_lm", 1000 // share, 50),
        "decoder": decoder(65, 64, 256, 4, 4, 64 // share, 16),
    }
    found: dict[str, dict[str, float]] = {
        name: {}
        for name in ("fd_over_forward", "jvp_over_forward", "jvp_over_math", "jvp_marginal")
    }
    print(f"{'':14} {'differences':>12} {'derivative':>11} {'same kernel':>12} {'each more':>10}")
    for name, case in cases.items():
        seconds = side_by_side(_sweeps(case))
        row = {
            "fd_over_forward": ratio(seconds, "difference", "bare"),
            "jvp_over_forward": ratio(seconds, "derivative", "bare", times=1 / PASSES),
            "jvp_over_math": ratio(seconds, "derivative", "bare, math", times=1 / 3),
            "jvp_marginal": marginal(seconds),
        }
        for kind, value in row.items():
            found[kind][name] = round(value, 3)
        print(f"{name:14} {row['fd_over_forward']:12.3f} {row['jvp_over_forward']:11.2f}"
              f" {row['jvp_over_math']:12.2f} {row['jvp_marginal']:10.2f}", flush=True)  # fmt: skip
    return dict(found)


def marginal(seconds: Seconds) -> float:
    """Return what each move after the first adds, in bare passes."""
    added = (seconds["derivatives"] - seconds["derivative"]) / (TOGETHER - 1)
    return float(np.median(added / (seconds["bare"] / PASSES)))


def _sweeps(case: Case) -> dict[str, Callable[[], object]]:
    one, four, eight = (random_moves(case.module, count) for count in (1, TOGETHER, MOVES))

    def math() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            bare(case, 3)

    return {
        "bare": partial(bare, case),
        "difference": partial(swept, eight, case.task, case.rows),
        "bare, math": math,
        "derivative": partial(swept, one, case.task, case.rows, "derivative"),
        "derivatives": partial(swept, four, case.task, case.rows, "derivative"),
    }


def swept(
    moves: MoveAlong,
    task: Task,
    rows: Stream,
    method: Method = "difference",
    *,
    compiled: bool = False,
) -> None:
    """Sweep all rows and keep nothing."""
    for _ in sweep(moves, task, rows, method=method, compiled=compiled):
        pass


@torch.no_grad()
def bare(case: Case, passes: int = PASSES) -> None:
    """Pass all rows forward, by default as often as the differences of all moves do."""
    for batch in case.rows:
        for _ in range(passes):
            case.module(batch.inputs)


def memory(quick: bool) -> dict[str, object]:
    """Compare the peak memory of sweeps over files with ten times as many rows."""
    small, large = (10_000, 20_000) if quick else (10_000, 100_000)
    repeats, found = (1 if quick else 5), {}
    print(f"\n{'':8} {f'{small:,} rows':>14} {f'{large:,} rows':>14} {'growth':>8}   MiB")
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("npz", "parquet"):
            peaks = {}
            for rows in (small, large):
                path = Path(folder) / f"{rows}.{ending}"
                write_images(path, rows)
                with get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
                    measured = fresh.map(peak, [path] * repeats, chunksize=1)
                peaks[rows] = float(np.median(measured))
                path.unlink()
            found[ending] = peaks[large] / peaks[small]
            print(f"{ending:8} {peaks[small] / 2**20:14.1f} {peaks[large] / 2**20:14.1f}"
                  f" {found[ending]:8.3f}", flush=True)  # fmt: skip
    return {"memory_growth": {name: round(value, 3) for name, value in found.items()}}


def write_images(path: Path, rows: int) -> None:
    """Write random images of 3,072 bytes, and labels."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (rows, 3072), dtype=np.uint8)
    y = rng.integers(0, 10, rows)
    if path.suffix == ".npz":
        np.savez(path, x=x, y=y)
    else:
        lists = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 3072)
        pq.write_table(pa.table({"x": lists, "y": y}), path)


def peak(path: Path) -> int:
    """Return how far a sweep's memory rises above the loaded model's, in bytes."""
    torch.set_num_threads(1)
    module = load("cifar10n_cnn").make(0).eval()
    moves = random_moves(module, 1)
    before = _resident("VmRSS")
    rows: Stream
    if path.suffix == ".npz":
        rows = NpzStream(path, prepare=_images, device=HOST, batch_size=250)
    else:
        rows = ParquetStream(
            path, features=["x"], label="y", prepare=_images, device=HOST, batch_size=250
        )
    swept(moves, Classification(), rows)
    return _resident("VmHWM") - before


def _images(pixels: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    inputs = torch.from_numpy(pixels.astype(np.float32) / 255).view(-1, 3, 32, 32)
    return inputs, torch.from_numpy(np.asarray(labels, dtype=np.int64))


def _resident(which: str) -> int:
    """Return this process's memory now (VmRSS) or at its peak (VmHWM), in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(f"{which}:")[2].split()[0])


def cuda(quick: bool) -> dict[str, object]:
    """Return the sweep's share of the bare forward rate, compiled passes of it also.

    Rows of the sweep come from the host, those of the bare passes lie on the card. Bare passes are
    timed twice: in float32, as a sweep reads, and as torch passes by itself, where convolutions
    round to TF32.
    """
    there = torch.cuda.is_available()
    if not (there or quick):
        print("\nCUDA: not measured (no card)")
        return {"cuda": "not measured"}
    device = torch.device("cuda" if there else "cpu")
    cases = {
        "resnet18": resnet18(64, 224, 4096, 256) if there else resnet18(4, 32, 64, 32),
        "gpt2": decoder(50257, 1024, 768, 12, 12, 64, 8)
        if there
        else decoder(50, 16, 24, 2, 2, 64, 32),
    }
    found = {}
    for name, case in cases.items():
        module, rows = case.module.to(device), replace(case.rows, device=device)
        moves = random_moves(module, MOVES)
        on_device = replace(rows, inputs=rows.inputs.to(device), targets=rows.targets.to(device))
        seconds = side_by_side(
            {
                "bare": whole_float32()(partial(bare, Case(module, on_device, case.task))),
                "bare, usual": partial(bare, Case(module, on_device, case.task)),
                "sweep": partial(swept, moves, case.task, rows),
                "compiled": partial(swept, moves, case.task, rows, compiled=True),
            }
        )
        found[name] = {
            "share": round(ratio(seconds, "bare", "sweep"), 3),
            "compiled": round(ratio(seconds, "bare", "compiled"), 3),
            "share_of_usual": round(ratio(seconds, "bare, usual", "sweep"), 3),
        }
        print(f"{device.type}: {name}: {found[name]['share']:.1%} of the bare forward rate, "
              f"{found[name]['compiled']:.1%} compiled, {found[name]['share_of_usual']:.1%} of the "
              "rate with TF32", flush=True)  # fmt: skip
    return {"cuda": found if there else "not measured"}


def peers(quick: bool) -> dict[str, object]:
    """Run beside_peers.py in the peers' environment."""
    if not PEERS.exists():
        print(f"\npeers: not measured ({PEERS} is missing: see peers/bundle.py)")
        return {"vs_peers": "not measured"}
    script = Path(__file__).with_name("beside_peers.py")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "peers.json"
        print(flush=True)
        subprocess.run([PEERS, script, "--json", out, *(["--quick"] if quick else [])], check=True)
        return {"vs_peers": json.loads(out.read_text())}


PARTS = {"forward": forward, "memory": memory, "peers": peers, "cuda": cuda}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, action="append", help="repeatable")
    parser.add_argument("--quick", action="store_true", help="fewer rows, to see that it runs")
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine("numpy", "pyarrow")
    print(line(facts), end="\n\n")
    results: dict[str, object] = {"machine": facts}
    try:
        for name in arguments.only or PARTS:
            results |= PARTS[name](arguments.quick)
    except SettingError as error:
        parser.exit(2, f"{error}\n")
    write(arguments.json, results)


if __name__ == "__main__":
    main()
