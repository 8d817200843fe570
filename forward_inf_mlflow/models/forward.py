"""Reading a module on arrays, a batch at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from forward_inf_mlflow.errors import DataError, ModelError


def outputs(module: nn.Module, inputs: np.ndarray, *, batch: int) -> np.ndarray:
    """Return the module's outputs for every row, ``(n, ...)`` float64, without gradients.

    Args:
        module: In evaluation mode.
        inputs: ``(n, ...)`` as ``prepare`` made them.
        batch: Rows a forward pass takes at once.

    Raises:
        DataError: The module does not take rows of this shape, or there are none.
        ModelError: Its output is not one tensor with one row per input row.
    """
    if not len(inputs):
        raise DataError("There are no rows: give at least one.")
    parameter = next(module.parameters(), torch.empty(0))  # one without is on the host
    parts: list[np.ndarray] = []
    with torch.no_grad():
        for start in range(0, len(inputs), batch):
            rows = torch.as_tensor(inputs[start : start + batch]).to(parameter.device)
            try:
                answer = require_output(module(rows), rows=len(rows))
            except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
                reason = " ".join(str(error).split())[:160]
                raise DataError(
                    f"The model does not take rows of shape {inputs.shape[1:]}: {reason}"
                ) from error
            parts.append(answer.to("cpu", torch.float64).numpy())
    return np.concatenate(parts)


def require_output(output: object, *, rows: int) -> Tensor:
    """Return a module's output if it is one that can be audited.

    Raises:
        ModelError: It is not ``(rows,)`` or ``(rows, K)`` floating-point numbers.
    """
    if not isinstance(output, Tensor):
        raise ModelError(
            f"The model returns a {type(output).__name__}, not one tensor: log a model that "
            "returns its logits or predictions alone, or name the output (audit --output)."
        )
    if output.ndim not in (1, 2) or len(output) != rows or not output.is_floating_point():
        raise ModelError(
            f"The model returns {tuple(output.shape)} {output.dtype} for {rows} row(s), not logits "
            "(rows, classes) or predictions (rows,): log one that does."
        )
    return output
