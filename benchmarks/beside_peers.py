"""One query group: the time of captum, kronfluence and ours, side by side in one process.

The influence of all training rows on the mean (peers: the sum) of all queries, everything
included: captum's TracInCP with the final checkpoint, as it works for every model and vectorised
for the layers that it knows; kronfluence's EK-FAC. Both add the queries up first. A setting's rows
are repeated where more are wanted: what is in them does not change the time. Seconds are those of
the processor, for one thread.

    OMP_NUM_THREADS=1 .venv-peers/bin/python benchmarks/beside_peers.py [--quick] [--json FILE]

It runs in the peers' environment (peers/bundle.py says how to make it), which needs pandas too.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

# The peers' environment has what our package needs, but not the package itself.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

import numpy as np
import torch
from captum.influence import TracInCP
from ekfac import RowLoss
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from measure import line, machine, ratio, side_by_side, write
from settings import Setting, SettingError, load
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from forward_inf_mlflow.directions import Curvature, Direction, GradientStep
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.tasks import CausalLM, Classification
from forward_inf_mlflow.tensors import Tensors

#: A setting, how often its rows are repeated, and our rows of a batch.
CASES = (("cifar10n_cnn", 1, 250), ("cifar10n_cnn", 6, 250), ("small_lm", 1, 50))
PEERS = ("TracInCP", "TracInCP, vectorised", "EK-FAC")
#: More rows than this would keep captum's way of a backward pass per row busy for minutes.
FEW = 2000
Rows = tuple[Tensor, Tensor]


def ours(setting: Setting, module: nn.Module, train: Rows, size: int, direction: Direction) -> None:
    task = CausalLM() if setting.kind == "causal_lm" else Classification()
    host = torch.device("cpu")
    rows, queries = (
        Tensors(*some, host, size) for some in (train, (setting.query_x, setting.query_y))
    )
    engine = ForwardInfluence(task=task, direction=direction)
    engine.influence(module, QueryGroups.together(queries), rows, np.arange(len(rows)))


def tracin(setting: Setting, module: nn.Module, train: Rows) -> None:
    """All parameters and any loss: a backward pass per row, through its small batch."""
    _tracin(setting, module, train, loss_fn=setting.loss, batch_size=16)


def tracin_vectorised(setting: Setting, module: nn.Module, train: Rows) -> None:
    """Linear and convolutional layers alone, by hooks."""
    known = [n for n, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    loss = nn.CrossEntropyLoss(reduction="sum")
    _tracin(
        setting,
        module,
        train,
        loss_fn=loss,
        layers=known,
        sample_wise_grads_per_batch=True,
        batch_size=250,
    )


def _tracin(setting: Setting, module: nn.Module, train: Rows, **settings: object) -> None:
    peer = TracInCP(
        module,
        TensorDataset(*train),
        checkpoints=["the network as it is"],
        checkpoints_load_func=lambda *_: 1.0,
        **settings,
    )
    peer.influence((setting.query_x, setting.query_y), aggregate=True)


def ekfac(setting: Setting, module: nn.Module, train: Rows) -> None:
    task = RowLoss(setting)
    module = prepare_model(copy.deepcopy(module), task)
    rows, queries = TensorDataset(*train), TensorDataset(setting.query_x, setting.query_y)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "peer", module, task, cpu=True, disable_tqdm=True, output_dir=folder, log_level=40
        )
        analyzer.fit_all_factors(
            "ekfac",
            rows,
            per_device_batch_size=256,
            factor_args=FactorArguments(strategy="ekfac"),
        )
        analyzer.compute_pairwise_scores(
            scores_name="scores",
            factors_name="ekfac",
            query_dataset=queries,
            train_dataset=rows,
            per_device_query_batch_size=len(queries),
            per_device_train_batch_size=256,
            score_args=ScoreArguments(damping_factor=None, aggregate_query_gradients=True),
        )
        analyzer.load_pairwise_scores("scores")


def compare(name: str, times: int, size: int, repeats: int) -> dict[str, object]:
    """Return seconds, and the share of each peer's time that each of our directions takes."""
    setting = load(name)
    module = setting.fit(None, 0)
    train = (
        torch.cat([setting.train_x] * times),
        torch.cat([setting.train_y] * times),
    )
    directions = {
        "curvature": Curvature(),
        "curvature, 1,000 gradients": Curvature(gradients=1000),
        "gradient": GradientStep(),
    }
    jobs = {
        key: partial(ours, setting, module, train, size, direction)
        for key, direction in directions.items()
    }
    peers = dict(zip(PEERS, (tracin, tracin_vectorised, ekfac), strict=True))
    if len(train[1]) > FEW:
        del peers["TracInCP"]
    if setting.kind == "causal_lm":  # its hooks know one output a row, not one a token
        del peers["TracInCP, vectorised"]
    jobs |= {key: partial(peer, setting, module, train) for key, peer in peers.items()}
    seconds = side_by_side(jobs, repeats=repeats)
    return {
        "seconds": {key: round(float(np.median(s)), 2) for key, s in seconds.items()},
        **{
            key: {peer: round(ratio(seconds, key, peer), 3) for peer in peers} for key in directions
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small case, once")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for package in ("captum", "kronfluence"):  # what they say of torch is not ours to mend
        warnings.filterwarnings("ignore", module=package)
    print(line(machine("captum", "kronfluence", "numpy")))
    found: dict[str, object] = {}
    try:
        for name, times, size in CASES[:1] if arguments.quick else CASES:
            row = compare(name, times, size, 1 if arguments.quick else 5)
            key = f"{name}, {times * len(load(name).train_y):,} rows"
            found[key] = row
            print(key, *(f"{kind}: {value}" for kind, value in row.items()), sep="\n  ", flush=True)
    except SettingError as error:
        parser.exit(2, f"{error}\n")
    write(arguments.json, found)


if __name__ == "__main__":
    main()
