"""Chosen: one of the outputs of a torch module that returns several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_structure, tree_unflatten

from forward_inf_mlflow.errors import ModelError
from forward_inf_mlflow.models.modes import is_exported


def one_of(loaded: Any, name: str) -> Any:
    """Return a module that answers with one output of another.

    Args:
        loaded: What ``mlflow.pytorch.load_model`` returned; an exported graph is changed.
        name: A key of the mapping that it returns, or a position, counted from 0.

    Raises:
        ModelError: It returns one output alone, or none of that name.
    """
    if not isinstance(loaded, nn.Module):
        return loaded
    return _cut(loaded, name) if is_exported(loaded) else Chosen(loaded, name)


class Chosen(nn.Module):
    """A module that was pickled, and answers with one of its outputs."""

    def __init__(self, inner: nn.Module, name: str) -> None:
        super().__init__()
        self.inner, self.name = inner, name

    def forward(self, inputs: Tensor) -> Any:
        """Return the output of that name."""
        return chosen(self.inner(inputs), self.name)


def chosen(said: Any, name: str) -> Any:
    """Return one of several outputs.

    Raises:
        ModelError: There is one alone, or none of that name.
    """
    if isinstance(said, Mapping):
        known = [str(key) for key in said]
        found = [value for key, value in said.items() if str(key) == name]
    elif isinstance(said, tuple | list):
        known = [*getattr(said, "_fields", ()), *map(str, range(len(said)))]
        found = [said[known.index(name) % len(said)]] if name in known else []
    else:
        raise ModelError("The model returns one output: leave --output out.")
    if not found:
        raise ModelError(
            f"The model has no output {name[:40]!r}: name one of {', '.join(known[:20])} with "
            "--output."
        )
    return found[0]


def _cut(graph: nn.Module, name: str) -> nn.Module:
    """Let an exported graph return one of its outputs alone."""
    assert isinstance(graph, fx.GraphModule), "it was exported"
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    flat = list(output.args[0]) if isinstance(output.args[0], tuple | list) else [output.args[0]]
    spec: Any = graph._out_spec
    # The structure with positions in place of tensors, so that the same rule chooses.
    at = chosen(tree_unflatten(list(range(len(flat))), spec), name)
    if not isinstance(at, int):
        raise ModelError(f"The model's output {name[:40]!r} is no tensor: name one inside of it.")
    output.args = ((flat[at],),)
    codegen: Any = graph.graph._codegen
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=tree_structure(0))
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph
