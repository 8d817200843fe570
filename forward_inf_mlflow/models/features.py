"""What a model's linear layers see: the last one penultimate features, the first one encodings."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from forward_inf_mlflow.models.logits import Wrapped

_LINEAR = frozenset({"aten.linear.default", "aten.addmm.default"})
_CONVOLUTION = re.compile(r"aten\.conv(_transpose)?\dd\.|aten\.convolution\.")
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
#: What stands between a network's last features and its last layer.
_NORMS = re.compile(
    r"aten\.(silu|relu|gelu|mish|elu|leaky_relu|hardtanh|group_norm|native_group_norm|layer_norm"
    r"|native_layer_norm|batch_norm|dropout|clone)\."
)
_NORM_LAYERS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)
#: What flattens an image network's last encodings before its first linear layer, or averages them.
_FLATTENS = re.compile(
    r"aten\.(adaptive_avg_pool\dd|avg_pool\dd|mean|flatten|view|_unsafe_view|reshape|squeeze"
    r"|dropout|clone)\."
)


def penultimate(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return a function from inputs ``(B, ...)`` to penultimate features ``(B, h)``.

    It always reads the module's present weights, wherever they have been moved.

    Returns:
        None where the module has no linear layer that its output depends on.
    """
    return _seen(module, last=True)


def encoded(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return a function from inputs to what the *first* linear layer sees, ``(B, h)``.

    Of an image network these are the maps that its convolutions make, before they are averaged:
    they say more of a row than later layers do, and know less of its label by heart.

    Returns:
        None as of `penultimate`.
    """
    return _seen(module, last=False)


def before_last(module: nn.Module) -> Callable[..., Tensor] | None:
    """Return a function from a module's inputs to what its last layer is given, ``(B, h)``.

    The last layer is the last linear one or convolution that answers, with the norm right before
    it; the module may take several inputs.

    Returns:
        None where there is no such layer.
    """
    if isinstance(module, fx.GraphModule):
        node = _linear_input(module.graph, last=True, convolutions=True)
        while node is not None and _NORMS.match(str(node.target)):
            source = node.args[0]
            node = source if isinstance(source, fx.Node) else None
        found = node
        return None if found is None else lambda *inputs: _flat(_value_of(module, found, *inputs))
    if any(isinstance(part, _LAYERS) for part in module.modules()):
        return lambda *inputs: _flat(_seen_last(module, inputs))
    return None


def _seen(module: nn.Module, *, last: bool) -> Callable[[Tensor], Tensor] | None:
    if isinstance(module, Wrapped):  # its answers are those of the inner module, written otherwise
        return _seen(module.inner, last=last)
    if isinstance(module, fx.GraphModule):
        node = _linear_input(module.graph, last=last)
        return None if node is None else lambda inputs: _flat(_value_of(module, node, inputs))
    if any(isinstance(part, nn.Linear) for part in module.modules()):
        return lambda inputs: _flat(_seen_by_linear(module, inputs, last=last))
    return None


def _flat(values: Tensor) -> Tensor:
    return values.flatten(1) if values.ndim > 1 else values[:, None]


def _linear_input(graph: fx.Graph, *, last: bool, convolutions: bool = False) -> fx.Node | None:
    """Walk back from the output to the nearest linear layer, or the farthest; return its input."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    needed, found = {output}, None
    for node in reversed(graph.nodes):
        if node not in needed:
            continue
        target = str(node.target)
        if target in _LINEAR or (convolutions and _CONVOLUTION.match(target)):
            source = node.args[1 if "addmm" in target else 0]
            found = source if isinstance(source, fx.Node) else None
            if last:
                return found
        needed.update(node.all_input_nodes)
    while found is not None and _FLATTENS.match(str(found.target)):
        source = found.args[0]
        found = source if isinstance(source, fx.Node) else None
    return found


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the value of one node.

    A graph cut off at that node would hold copies of the buffers, which stay behind when the
    module moves to another device.
    """

    def __init__(self, module: fx.GraphModule, wanted: fx.Node) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.value: Tensor | None = None

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n is self.wanted:
            self.value = result
        return result


def _value_of(module: fx.GraphModule, node: fx.Node, *inputs: Tensor) -> Tensor:
    recorder = _Recorder(module, node)
    recorder.run(*inputs)
    assert recorder.value is not None  # the output depends on the node
    return recorder.value


def _seen_by_linear(module: nn.Module, inputs: Tensor, *, last: bool) -> Tensor:
    kinds = (nn.Linear,) if last else (nn.Linear, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
    seen = _recorded(module, (inputs,), kinds)
    return seen[-1 if last else 0][1]


def _seen_last(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return what the layer that runs last is given, or the norm that runs right before it."""
    seen = _recorded(module, inputs, (*_LAYERS, *_NORM_LAYERS))
    last = max(i for i, (part, _) in enumerate(seen) if isinstance(part, _LAYERS))
    before = last - 1 if last and isinstance(seen[last - 1][0], _NORM_LAYERS) else last
    return seen[before][1]


def _recorded(
    module: nn.Module, inputs: tuple[Tensor, ...], kinds: tuple[type[nn.Module], ...]
) -> list[tuple[nn.Module, Tensor]]:
    """Return the layers of some kinds in the order in which they ran, and what each was given."""
    seen: list[tuple[nn.Module, Tensor]] = []

    def remember(part: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append((part, torch.as_tensor(arguments[0])))

    hooks = [
        part.register_forward_pre_hook(remember)
        for part in module.modules()
        if isinstance(part, kinds)
    ]
    try:
        module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise RuntimeError("no such layer ran")
    return seen
