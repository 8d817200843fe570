"""Training and evaluation mode, for modules and for exported graphs, which have no such switch.

An exported graph has the mode that it was logged in baked into its nodes: dropout, batch norm and
recurrent layers carry it as an argument. `set_training` writes that argument, both ways.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from forward_inf_mlflow.errors import ModelError

#: Where a node keeps what its argument is in training mode; ``fx`` copies ``meta`` with the node.
_MEMORY = "forward_inf_training"
_FLAGS = frozenset({"train", "training"})
_CHANCE = "dropout_p"  # scaled_dot_product_attention has a probability and no flag
_HALVES = (torch.bfloat16, torch.float16)  # the coarser first


def set_training(module: nn.Module, on: bool) -> None:
    """Switch dropout, batch norm and the like to training (``on``) or to evaluation.

    Works on plain modules and on exported graphs, and on deep copies of either. A graph that was
    logged in evaluation mode trains attention without its dropout: the rate was not logged.
    """
    for graph_module in _graph_modules(module):
        for node in graph_module.graph.nodes:
            for name, training in _switches(node).items():
                _set(node, name, training if on else type(training)(0))
        _drop_batch_counters(graph_module)
        graph_module.recompile()
    _set_flags(module, on)


def in_training(module: nn.Module) -> bool:
    """Say whether anything in the module behaves as in training."""
    if not is_exported(module) and any(part.training for part in module.modules()):
        return True
    return any(
        bool(_get(node, name))
        for graph_module in _graph_modules(module)
        for node in graph_module.graph.nodes
        for name in _switches(node)
    )


def is_exported(module: nn.Module) -> bool:
    """Say whether the module is an exported graph: it knows its inputs and has no modes."""
    return isinstance(module, fx.GraphModule) and any(
        node.op == "placeholder" and "val" in node.meta for node in module.graph.nodes
    )


def require_deterministic(module: nn.Module) -> None:
    """Refuse a graph that draws random numbers even in evaluation mode.

    Raises:
        ModelError: It does; the message names the operator.
    """
    for graph_module in _graph_modules(module):
        for node in graph_module.graph.nodes:
            random = isinstance(node.target, torch._ops.OpOverload) and (
                torch.Tag.nondeterministic_seeded in node.target.tags
            )
            if random and not _switches(node):
                raise ModelError(
                    f"The model draws random numbers ({node.target}) when it predicts, so no "
                    "influence can be measured: log it without that."
                )


def widen(module: nn.Module) -> torch.dtype | None:
    """Turn half-precision weights and computations into float32.

    Influence is a small difference of losses: half precision would drown it.

    Returns:
        The coarsest half precision that was found, None if there was none.
    """
    found = {tensor.dtype for tensor in (*module.parameters(), *module.buffers())}
    for parameter in module.parameters():
        if parameter.dtype in _HALVES:
            parameter.data = parameter.data.float()
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.dtype in _HALVES:
                part._buffers[name] = buffer.float()
    for graph_module in _graph_modules(module):
        for node in graph_module.graph.nodes:
            if node.op == "get_attr":
                found |= _widen_constant(graph_module, str(node.target))
                continue
            before = repr((node.args, node.kwargs))
            node.args = fx.node.map_aggregate(node.args, _widened)
            node.kwargs = fx.node.map_aggregate(node.kwargs, _widened)
            if repr((node.args, node.kwargs)) != before:
                found |= {half for half in _HALVES if str(half) in before}
        graph_module.recompile()
    return next((half for half in _HALVES if half in found), None)


class _Wide(nn.Module):
    """A module that was widened, and takes half-precision rows all the same."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> Any:
        return self.inner(*(x.float() if x.dtype in _HALVES else x for x in inputs))


def full_precision(module: nn.Module) -> nn.Module:
    """Return the module itself, or a float32 copy of one in half precision; see `widen`."""
    if not any(t.dtype in _HALVES for t in (*module.parameters(), *module.buffers())):
        return module
    copied = copy.deepcopy(module)
    widen(copied)
    return _Wide(copied).train(module.training)


def _set_flags(module: nn.Module, on: bool) -> None:
    """Call ``train(on)`` as the module expects, but around exported graphs, which refuse it."""
    exported = [part for part in module.modules() if is_exported(part)]
    if not exported:
        module.train(on)
        return
    inside = {id(part) for graph in exported for part in graph.modules()}
    for part in module.modules():
        if id(part) not in inside:
            part.training = on


def _graph_modules(module: nn.Module) -> Iterator[fx.GraphModule]:
    return (part for part in module.modules() if isinstance(part, fx.GraphModule))


def _switches(node: fx.Node) -> dict[str, Any]:
    """Return the arguments that depend on the mode, with their value in training mode."""
    if _MEMORY not in node.meta:
        switches: dict[str, Any] = {}
        if isinstance(node.target, torch._ops.OpOverload):
            for argument in node.target._schema.arguments:
                if argument.name in _FLAGS and not _without_statistics(node):
                    switches[argument.name] = True
                elif argument.name == _CHANCE:
                    switches[argument.name] = float(_get(node, argument.name))
        node.meta[_MEMORY] = switches
    memory: dict[str, Any] = node.meta[_MEMORY]
    return memory


def _without_statistics(node: fx.Node) -> bool:
    """Batch norm that tracks no statistics uses the batch's own in either mode."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return "batch_norm" in str(node.target) and (
        "running_mean" not in names or _get(node, "running_mean") is None
    )


def _get(node: fx.Node, name: str) -> Any:
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    position = [argument.name for argument in arguments].index(name)
    if position < len(node.args):
        return node.args[position]
    return node.kwargs.get(name, arguments[position].default_value)


def _set(node: fx.Node, name: str, value: Any) -> None:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    position = names.index(name)
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def _drop_batch_counters(graph_module: fx.GraphModule) -> None:
    """Remove the steps that count batches: a forward pass must not change the model."""
    for node in list(graph_module.graph.nodes):
        counts = (
            str(node.target) in ("aten.add_.Tensor", "aten.add_.Scalar")
            and isinstance(node.args[0], fx.Node)
            and str(node.args[0].target).endswith("num_batches_tracked")
        )
        if counts and not node.users:
            graph_module.graph.erase_node(node)


def _widened(argument: Any) -> Any:
    return torch.float32 if argument in _HALVES else argument


def _widen_constant(graph_module: fx.GraphModule, target: str) -> set[torch.dtype]:
    """Widen a constant that is neither parameter nor buffer; return the precision it had."""
    path, _, name = target.rpartition(".")
    owner = graph_module.get_submodule(path)
    value = getattr(owner, name)
    if not isinstance(value, Tensor) or value.dtype not in _HALVES:
        return set()
    setattr(owner, name, value.float())
    return {value.dtype}
