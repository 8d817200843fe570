"""Peer: captum's TracInCPFast, each row's influence on itself over several checkpoints.

    .venv-peers/bin/python benchmarks/peers/self_influence.py FOLDER

The folder holds ``network.pt`` (a module with plain layers; it is ours, so it may be a pickle),
``rows.pt`` (x and y) and the checkpoints, ``<epoch>.pt``. ``scores.npz`` is added: scores ``(n,)``
and the processor's seconds.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from captum.influence import TracInCPFast
from torch import nn
from torch.utils.data import TensorDataset


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    module: nn.Sequential = torch.load(folder / "network.pt", weights_only=False)
    rows = torch.load(folder / "rows.pt", weights_only=True)
    names = sorted(p for p in folder.glob("*.pt") if p.stem.isdigit())

    def load(model: nn.Module, path: str) -> float:
        model.load_state_dict(torch.load(path, weights_only=True))
        model.eval()
        return 1.0

    start = time.process_time()
    peer = TracInCPFast(
        module.eval(),
        module[-1],
        TensorDataset(rows["x"], rows["y"]),
        checkpoints=[str(path) for path in names],
        checkpoints_load_func=load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        batch_size=500,
    )
    scores = peer.self_influence()
    seconds = time.process_time() - start
    np.savez(folder / "scores.npz", scores=scores.numpy(), seconds=seconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
