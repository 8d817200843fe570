"""Scores without shortcuts, which methods and peers are compared with.

Each returns influence of training rows on queries, ``(q, n)`` float32, positive for a proponent,
from a network in evaluation mode: first-order products of the two rows' gradients, as they are,
of the last layer alone, or through an exact damped inverse of the Gauss-Newton matrix.
"""

from __future__ import annotations

import numpy as np
import torch
from settings import Setting, SettingError
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel


def gradient_product(setting: Setting, module: nn.Module) -> np.ndarray:
    """Return the plain products of gradients of the rows' losses, in nats per unit step."""
    train = row_gradients(setting, module, setting.train_x, setting.train_y)
    query = row_gradients(setting, module, setting.query_x, setting.query_y)
    return _scores(query @ train.T)


def last_layer(setting: Setting, module: nn.Module) -> np.ndarray:
    """Return the products of gradients of the last linear layer, from forward passes alone.

    A row's gradient there is the sum over its tokens of residual times feature, and residual for
    the bias: softmax less the one that is right.
    """
    train = _last_layer_gradients(module, setting.train_x, setting.train_y)
    query = _last_layer_gradients(module, setting.query_x, setting.query_y)
    return _scores(query @ train.T)


def inverse_gauss_newton(setting: Setting, module: nn.Module, *, damping: float) -> np.ndarray:
    """Return g_query^T (G + (damping + weight decay) I)^-1 g_row, all dense and in float64.

    G is the mean over training rows of J^T (diag(p) - p p^T) J, J a row's logits' derivative by
    the parameters (Schraudolph 2002; for influence Koh and Liang 2017, Grosse et al. 2023).

    Raises:
        SettingError: The network has more than 5,000 parameters, or rows have many tokens.
    """
    size = sum(parameter.numel() for parameter in module.parameters())
    if size > 5000 or setting.kind != "classification":
        raise SettingError(
            f"a dense inverse does not fit {setting.name}: take a classifier of at most 5,000 "
            f"parameters, not {size:,}"
        )
    parameters = _parameters(module)

    def logits(values: dict[str, Tensor], x: Tensor) -> Tensor:
        outputs: Tensor = functional_call(module, values, (x[None],))
        return outputs[0]

    total = torch.zeros(size, size, dtype=torch.float64)
    for x in torch.split(setting.train_x, 100):
        found = vmap(jacrev(logits), in_dims=(None, 0))(parameters, x)
        jacobian = torch.cat([part.flatten(2) for part in found.values()], 2).to(torch.float64)
        shares = vmap(logits, in_dims=(None, 0))(parameters, x).to(torch.float64).softmax(-1)
        roots = shares.sqrt()
        # B B^T = diag(p) - p p^T with B = diag(sqrt(p)) - p sqrt(p)^T.
        factor = torch.diag_embed(roots) - shares[:, :, None] * roots[:, None, :]
        halves = torch.einsum("nkp,nkl->nlp", jacobian, factor).flatten(0, 1)
        total += halves.T @ halves
    total /= len(setting.train_y)
    total.diagonal().add_(damping + setting.weight_decay)
    train = row_gradients(setting, module, setting.train_x, setting.train_y).to(torch.float64)
    query = row_gradients(setting, module, setting.query_x, setting.query_y).to(torch.float64)
    return _scores(torch.linalg.solve(total, query.T).T @ train.T)


def row_gradients(setting: Setting, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of each row's loss by all parameters, ``(n, p)``."""

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(module, values, (x[None],))
        return setting.loss(outputs, y[None])[0]

    parameters = _parameters(module)
    parts = []
    with sdpa_kernel(SDPBackend.MATH):  # The fused kernels cannot be batched over rows.
        for rows in zip(torch.split(x, 100), torch.split(y, 100), strict=True):
            found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, *rows)
            parts.append(torch.cat([part.flatten(1) for part in found.values()], 1))
    return torch.cat(parts)


@torch.no_grad()
def _last_layer_gradients(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the last linear layer's gradient of each row's loss, ``(n, outputs * (d + 1))``."""
    layer = [part for part in module.modules() if isinstance(part, nn.Linear)][-1]
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    outputs = module(x)
    hook.remove()
    residuals = outputs.softmax(-1) - functional.one_hot(y, outputs.shape[-1])
    features = functional.pad(seen[0], (0, 1), value=1.0)
    rows = len(y)
    pairs = (
        residuals.view(rows, -1, residuals.shape[-1]),
        features.view(rows, -1, features.shape[-1]),
    )
    return torch.einsum("ntk,ntd->nkd", *pairs).flatten(1)


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def _scores(values: Tensor) -> np.ndarray:
    return np.asarray(values.to(torch.float32).numpy())
