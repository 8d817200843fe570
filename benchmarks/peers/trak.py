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
    def logits(parameters: Parameters, row: Row) -> tuple[Tensor, Tensor]:
        """Return the logits ``(t, k)`` and the right answers ``(t, 1)``; a label is one token."""
        outputs: Tensor = functional_call(module, parameters, (row[0].unsqueeze(0),))
        return outputs.flatten(0, -2), row[1].reshape(-1, 1)

    def log_odds(parameters: Parameters, row: Row) -> Tensor:
        found, right = logits(parameters, row)
        others = found.scatter(1, right, -torch.inf).logsumexp(1)
        return (found.gather(1, right)[:, 0] - others).sum()

    def probability(parameters: Parameters, row: Row) -> Tensor:
        found, right = logits(parameters, row)
        return found.softmax(1).gather(1, right).mean()

    dimension = arguments.dimension or min(512, len(setting.train_y) // 8)
    peer = TRAKAttributor(
        AttributionTask(loss_func=log_odds, model=module, checkpoints=module.state_dict()),
        correct_probability_func=probability,
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
