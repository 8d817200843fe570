"""Placing: a module moved to a device, with what an exported graph names by its old one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn


def place(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module on the device; it is moved in place.

    ``Module.to`` moves parameters and buffers. An exported graph also makes tensors on the device
    that it was exported on, checks that others are there, and keeps constants.
    """

    def placed(argument: Any) -> Any:
        return device if isinstance(argument, torch.device) else argument

    for part in module.modules():
        if not isinstance(part, fx.GraphModule):
            continue
        for node in part.graph.nodes:
            if node.op == "get_attr":
                _place_constant(part, str(node.target), device)
                continue
            node.args = fx.node.map_aggregate(node.args, placed)
            node.kwargs = fx.node.map_aggregate(node.kwargs, placed)
        part.recompile()
    return module.to(device)


def _place_constant(part: fx.GraphModule, target: str, device: torch.device) -> None:
    path, _, name = target.rpartition(".")
    owner = part.get_submodule(path)
    value = getattr(owner, name)
    if isinstance(value, Tensor) and name not in owner._parameters and name not in owner._buffers:
        setattr(owner, name, value.to(device))
