"""Torch models, exported (pt2) or pickled, as modules that can be moved."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, fx, nn

from forward_inf_mlflow.errors import ModelError
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.features import encoded, penultimate
from forward_inf_mlflow.models.forward import outputs, require_output
from forward_inf_mlflow.models.inputs import InputSpec
from forward_inf_mlflow.models.modes import (
    in_training,
    is_exported,
    require_deterministic,
    set_training,
    widen,
)
from forward_inf_mlflow.models.parity import half_tolerance

_BATCH = 256
_TRAINED = (
    "was logged in train mode, where it is random: dropout and batch norm were switched to "
    "evaluation, and that is what its answers were compared with"
)
_SOFTMAX = "answers with probabilities: their logarithms are read as its logits"
_SINGLE = "was logged with a batch of 1 (static): rows are read one at a time, which is slow"


def audited_module(loaded: Any, *, kind: str, shape: tuple[int, ...] | None = None) -> AuditedModel:
    """Make a loaded torch model fit to be moved and read.

    Args:
        loaded: What ``mlflow.pytorch.load_model`` returned; it is changed.
        kind: ``pt2`` or ``pickle``.
        shape: Shape of its input ``(-1, ...)`` from the model's signature, used where the model
            itself does not say.

    Raises:
        ModelError: It is not a module of one input and one output that can be differentiated.
    """
    if not isinstance(loaded, nn.Module) or isinstance(loaded, torch.jit.ScriptModule):
        raise ModelError(
            f"The model is a {type(loaded).__name__}, not a torch.nn.Module: log it as pt2."
        )
    notes = [_TRAINED] if in_training(loaded) else []
    # The copy answers for the registered model: what follows is done to the other one alone, so
    # that a mistake in it shows as a difference.
    original = copy.deepcopy(loaded)
    if notes:
        set_training(original, False)
    set_training(loaded, False)
    half = widen(loaded)
    probabilities = _softmax_to_logits(loaded)
    require_deterministic(loaded)
    if half is not None:
        notes.append(
            "was logged in half precision: audited in float32, which agrees with it within "
            f"{half_tolerance(half):.1g} of its largest answer"
        )
    if probabilities:
        notes.append(_SOFTMAX)
    _require_parameters(loaded)
    max_batch = None
    if is_exported(loaded):
        value = _placeholder(loaded)
        takes = value.dtype
        max_batch = _static_batch(value)
        spec = InputSpec(_numpy_type(value.dtype), tuple(map(_size, value.shape[1:])))
    else:
        known = None if shape is None else tuple(None if d < 0 else d for d in shape[1:])
        spec = InputSpec(_plain_type(loaded), known)
        takes = next(p.dtype for p in original.parameters() if p.is_floating_point())
    if max_batch == 1:
        notes.append(_SINGLE)
    views = [penultimate(loaded), encoded(loaded)]
    if spec.shape is not None and None not in spec.shape:
        sample = torch.zeros(
            (max_batch or 2, *(d for d in spec.shape if d is not None)),
            dtype=torch.as_tensor(np.zeros(1, spec.dtype)).dtype,
        )
        _require_differentiable(loaded, sample)
        # A linear layer that does not see one row per row gives no view of the rows.
        views = [v if v is not None and len(v(sample)) == len(sample) else None for v in views]

    asked = _Asked(original, takes)

    def answer(rows: pd.DataFrame | np.ndarray) -> np.ndarray:
        return outputs(asked, spec.prepare(rows), batch=max_batch or _BATCH)

    return AuditedModel(
        module=loaded,
        prepare=spec.prepare,
        kind=kind,
        original=answer,
        features=views[0],
        encoded=views[1],
        max_batch=max_batch,
        notes=tuple(notes),
        probabilities=probabilities,
        half=half,
        takes=spec,
    )


class _Asked(nn.Module):
    """The registered model, given numbers ``(B, ...)`` of the precision that it takes."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, inputs: Tensor) -> object:
        return self.inner(inputs.to(self.dtype) if inputs.is_floating_point() else inputs)


def _softmax_to_logits(module: nn.Module) -> bool:
    """Let a graph that ends in softmax end in its logarithm, which are logits that give the same.

    Losses take logits: probabilities in their place would be flattened by a second softmax.
    """
    if not isinstance(module, fx.GraphModule):
        return False
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    ends = output.all_input_nodes
    if len(ends) != 1 or str(ends[0].target) != "aten.softmax.int":
        return False
    if ends[0].meta["val"].ndim != 2 or ends[0].args[1] not in (1, -1):
        return False  # over the batch, say: no row has logits of its own
    ends[0].target = torch.ops.aten.log_softmax.int
    module.recompile()
    return True


def _require_parameters(module: nn.Module) -> None:
    parameters = [p for p in module.parameters() if p.is_floating_point()]
    if not parameters:
        raise ModelError("The model has no floating-point parameters, so nothing can be moved.")
    for parameter in parameters:
        parameter.requires_grad_(True)


def _placeholder(module: nn.Module) -> Tensor:
    """Return the (fake) tensor that an exported graph was traced with."""
    assert isinstance(module, fx.GraphModule)
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    values = [node.meta.get("val") for node in inputs]
    if len(values) != 1 or not isinstance(values[0], Tensor) or values[0].ndim == 0:
        raise ModelError(
            f"The model takes {len(values)} inputs or one that is no tensor of rows: log a model "
            "that takes a single tensor. A diffusion model (images, times) must say its noise "
            "schedule: name it with --schedule."
        )
    return values[0]


def _static_batch(value: Tensor) -> int | None:
    batch: int | torch.SymInt = value.shape[0]  # symbolic where it can vary
    if isinstance(batch, torch.SymInt):
        return None
    if batch != 1:
        raise ModelError(
            f"The model was exported for batches of exactly {batch} rows: log it so that its batch "
            "size can vary (do not write the batch size into view or reshape)."
        )
    return 1


def _size(size: int | torch.SymInt) -> int | None:
    return size if isinstance(size, int) else None


def _numpy_type(dtype: torch.dtype) -> np.dtype:
    # Half precision was widened with the weights.
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    try:
        return torch.empty(0, dtype=wide).numpy().dtype
    except TypeError as error:
        raise ModelError(f"The model takes {dtype}, which rows cannot be: log it again.") from error


def _plain_type(module: nn.Module) -> np.dtype:
    """Guess what a module that does not say takes: token ids if it embeds, else its own type."""
    if any(isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in module.modules()):
        return np.dtype(np.int64)
    return _numpy_type(next(p.dtype for p in module.parameters() if p.is_floating_point()))


def _require_differentiable(module: nn.Module, sample: Tensor) -> None:
    try:
        output = module(sample)
    except Exception as error:  # other people's code or graph
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ModelError(
            f"The model cannot predict rows of its own shape {tuple(sample.shape[1:])}: {reason}"
        ) from error
    if not require_output(output, rows=len(sample)).requires_grad:
        raise ModelError(
            "The model's output does not depend on its parameters in a way that can be "
            "differentiated: log it without no_grad or detach."
        )
