"""Peer: captum's TracInCP with the final checkpoint, the product of two rows' gradients."""

from __future__ import annotations

import argparse

from bundle import Attribution, run_peer
from captum.influence import TracInCP
from settings import Setting
from torch import nn
from torch.utils.data import TensorDataset


def attribute(setting: Setting, module: nn.Module, _: argparse.Namespace) -> Attribution:
    peer = TracInCP(
        module,
        TensorDataset(setting.train_x, setting.train_y),
        checkpoints=["the network as it is"],
        checkpoints_load_func=lambda *_: 1.0,
        # Per row, for any loss; captum's faster way knows linear and convolutional layers alone.
        loss_fn=setting.loss,
        # A backward pass per row goes through its whole batch: large ones cost time and memory.
        batch_size=16,
    )
    scores = peer.influence((setting.query_x, setting.query_y))
    return scores, "TracInCP, final checkpoint, all parameters"


if __name__ == "__main__":
    run_peer(
        attribute,
        packages=("captum",),
        parser=argparse.ArgumentParser(description=__doc__),
    )
