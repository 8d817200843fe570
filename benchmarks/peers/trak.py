"""Peer: dattri's TRAK with one network (TRAK-1).

Gradients are projected to an eighth as many dimensions as there are rows, at most dattri's default
of 512: with half as many or more their kernel, which TRAK inverts undamped, is nearly singular. Of
a text, the output function is the sum of its tokens' log-odds and the probability of being right
the mean over tokens: TRAK's formulas are written for one label a row.
"""

from __future__ import annotations

import argparse

import torch
from bundle import Attribution, run_peer
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from settings import Setting
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

Parameters = dict[str, Tensor]
Row = tuple[Tensor, Tensor]


def attribute(setting: Setting, module: nn.Module, arguments: argparse.Namespace) -> Attribution:
    def log_shares(parameters: Parameters, row: Row) -> Tensor:
        """Return the log-probability of each right answer of a row, ``(1,)`` or ``(t,)``."""
        outputs: Tensor = functional_call(module, parameters, (row[0].unsqueeze(0),))
        logs = outputs.log_softmax(-1).flatten(0, -2)
        return logs.gather(1, row[1].reshape(-1, 1))[:, 0]

    def log_odds(parameters: Parameters, row: Row) -> Tensor:
        logs = log_shares(parameters, row)
        return (logs - torch.log1p(-logs.exp())).sum()

    def right(parameters: Parameters, row: Row) -> Tensor:
        return log_shares(parameters, row).exp().mean()

    dimension = arguments.dimension or min(512, len(setting.train_y) // 8)
    peer = TRAKAttributor(
        AttributionTask(loss_func=log_odds, model=module, checkpoints=module.state_dict()),
        correct_probability_func=right,
        projector_kwargs={"proj_dim": dimension, "device": "cpu"},
    )
    train, query = (
        DataLoader(TensorDataset(*rows), batch_size=250)
        for rows in ((setting.train_x, setting.train_y), (setting.query_x, setting.query_y))
    )
    with sdpa_kernel(SDPBackend.MATH):  # The fused kernels cannot be batched over rows.
        peer.cache(train)
        scores = peer.attribute(query)
    return scores.T, f"TRAK-1, {dimension} dimensions"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimension", type=int, help="of the projection")
    run_peer(attribute, packages=("dattri",), parser=parser)
