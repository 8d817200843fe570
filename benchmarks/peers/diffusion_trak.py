"""Peer: dattri's TRAK on a denoiser, with the output function of D-TRAK.

    .venv-peers/bin/python benchmarks/peers/diffusion_trak.py TAUGHT.npz OUT.npz

``TAUGHT.npz`` holds the weights of `denoisers.UNet`, images ``x`` and ``query_x``, and the
``times`` that they are read at. ``OUT.npz`` holds ``scores (q, n)``, positive for a proponent.
D-TRAK (Zheng and others, ICLR 2024) asks for the squared norm of what the model answers instead of
its loss, here the mean over the times, all with the same noise; gradients are projected, and the
kernel is damped by ``REGULARIZATION``, which was best where variants were chosen.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from torch import Tensor
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

# A script finds its own folder; the network lies one above.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from denoisers import UNet, kept

#: Dimensions of the projection, and what is added to the kernel's diagonal.
DIMENSION, REGULARIZATION = 512, 1e-4


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with np.load(sys.argv[1], allow_pickle=False) as held:
        arrays = {name: torch.as_tensor(held[name]) for name in held.files}
    x, queries, times = (arrays.pop(name) for name in ("x", "query_x", "times"))
    module = UNet()
    module.load_state_dict(arrays)
    module.eval()
    left = kept().float()[times]
    noise = torch.randn(1, *x.shape[1:], generator=torch.Generator().manual_seed(0))

    def output(parameters: dict[str, Tensor], row: tuple[Tensor, ...]) -> Tensor:
        a = left[:, None, None, None]
        noised = a.sqrt() * row[0] + (1 - a).sqrt() * noise
        answer: Tensor = functional_call(module, parameters, (noised, times))
        return answer.square().mean()

    peer = TRAKAttributor(
        AttributionTask(loss_func=output, model=module, checkpoints=module.state_dict()),
        # TRAK weighs rows by how surely they are wrong; D-TRAK does not.
        correct_probability_func=lambda parameters, row: 0 * output(parameters, row),
        projector_kwargs={"proj_dim": DIMENSION, "device": "cpu"},
        regularization=REGULARIZATION,
    )
    train, asked = (DataLoader(TensorDataset(rows), batch_size=64) for rows in (x, queries))
    peer.cache(train)
    np.savez(sys.argv[2], scores=peer.attribute(asked).T.numpy())


if __name__ == "__main__":
    main()
