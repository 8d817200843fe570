"""Screen: which training rows are worth an exact sweep, for many queries at once.

Of the last linear layer alone influence has a closed form. A row's gradient there is the outer
product of what the layer sees, the features ``h``, and of the loss's gradient by what it answers,
the residuals ``r``; so two rows' gradients have the product ``<h_i, h_j> <r_i, r_j>``: matrix
products over all pairs, and not one forward pass per query.

Source: the last-layer case of TracIn (Pruthi et al., NeurIPS 2020). Cosines instead of products
keep rows with large features from standing first for every query. In a sequence each token has
features and residuals of its own: a query's token asks for its best match among a row's tokens, and
the answers to all its tokens are added up (late interaction: Khattab and Zaharia, SIGIR 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from forward_inf_mlflow.errors import DataError, ModelError
from forward_inf_mlflow.memory import batches_that_fit
from forward_inf_mlflow.models.features import penultimate
from forward_inf_mlflow.task import Batch, Task
from forward_inf_mlflow.tensors import Stream, Tensors

#: The lower half of a key, from which a row's position is taken away.
_LAST = 2**32 - 1


class _Rows(NamedTuple):
    """Some rows' features ``(n, L, d)`` and residuals ``(n, L, c)``."""

    features: Tensor
    residuals: Tensor


class _Compared(NamedTuple):
    """Tokens of a queries against those of b rows.

    Attributes:
        products: Of their features and of their residuals, ``(a K, b L)`` each.
        asks: ``(a, K)`` whether a query's token asks anything.
        silent: ``(b, L)`` whether a row's token says nothing.
    """

    products: tuple[Tensor, Tensor]
    asks: Tensor
    silent: Tensor


def candidates(
    query_features: Tensor,
    query_residuals: Tensor,
    train_features: Tensor,
    train_residuals: Tensor,
    *,
    count: int,
    cosine: bool = True,
    block: int = 2048,
) -> Tensor:
    """Return the rows that the last layer finds most influential on each query.

    Cost: products of all queries' tokens with all rows' tokens, of widths d and c.

    Args:
        query_features: ``(m, d)``, or ``(m, L, d)`` for sequences.
        query_residuals: ``(m, c)`` or ``(m, L, c)``.
        train_features: ``(n, d)`` or ``(n, L, d)``, with an L of its own.
        train_residuals: ``(n, c)`` or ``(n, L, c)``. Tokens whose residuals are all zero, as those
            of padding are, do not count.
        count: How many rows per query.
        cosine: Take the cosine of the features times the cosine of the residuals, or else the
            products themselves.
        block: How many tokens of either side are multiplied at once; what is held besides the
            arguments grows with its square (2048: about 300 MB).

    Returns:
        ``(m, min(count, n))`` int64 on the host, best first, ties in row order; a row whose score
        is not a number comes last.

    Raises:
        DataError: The shapes do not fit together.
    """
    if count < 1 or block < 1:
        raise DataError(f"count and block must be at least 1, not {count} and {block}")
    queries = _tokens(query_features, query_residuals)
    train = _tokens(train_features, train_residuals)
    for asked, known in zip(queries, train, strict=True):
        if asked.shape[2] != known.shape[2]:
            raise DataError(
                f"queries are {asked.shape[2]} wide and training rows {known.shape[2]}: "
                "take the features and residuals of both from one model"
            )
    device = query_features.device
    parts = [_prepared(part, device, cosine=cosine) for part in _blocks(queries, block)]
    best = [torch.empty(len(p.features), 0, dtype=torch.int64, device=device) for p in parts]
    start = 0
    for some in _blocks(train, block):
        rows = _prepared(some, device, cosine=cosine)
        for k, part in enumerate(parts):
            keys = torch.cat([best[k], _keys(_score(part, rows), start)], 1)
            best[k] = keys.topk(min(count, keys.shape[1]), 1).values
        start += len(rows.features)
    return _LAST - (torch.cat(best).cpu() & _LAST)


def scores(
    module: nn.Module,
    task: Task,
    queries: Tensors,
    train: Stream,
    *,
    cosine: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Return what the last layer says of all rows, part by part.

    As `candidates` ranks them; a part's residuals are held while it is read and no longer, so that
    rows of a large vocabulary are no more than a batch of it. Cost: two forward passes.

    Args:
        module: The model, in evaluation mode.
        task: The loss of a row.
        queries: m rows; their targets say which of their tokens ask.
        train: n rows.
        cosine: As `candidates`.
        progress: Called with the number of rows just read.

    Returns:
        ``(m, n)`` float32 on the host.

    Raises:
        ModelError: The model has no last linear layer that answers for its rows.
    """
    parts = _read_parts(module, task, queries, train, cosine=cosine, progress=progress)
    return torch.cat([_best(*part.products, part).cpu() for part in parts], 1)


def likeness(
    module: nn.Module,
    task: Task,
    queries: Tensors,
    train: Stream,
    *,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return how like the queries all rows are to the last layer, in two ways.

    Cost, and what is raised, as of `scores`.

    Returns:
        `scores`, and the same of the features alone, whatever the loss wants of them: cosines of
        hidden states. Both ``(m, n)`` float32 on the host, added up over the tokens that ask.
    """
    both, alone = [], []
    for part in _read_parts(module, task, queries, train, progress=progress):
        features, residuals = part.products
        both.append(_best(features, residuals, part).cpu())
        alone.append(_best(features, None, part).cpu())
    return torch.cat(both, 1), torch.cat(alone, 1)


def nearest(
    module: nn.Module,
    task: Task,
    queries: Tensors,
    train: Stream,
    *,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return each query's best row, and how near its tokens come to the query's.

    As `scores` ranks them, but the ``(m, n)`` matrix is never held. Cost: two forward passes of
    all rows for every ``queries.batch_size`` queries.

    Returns:
        ``(m,)`` cosines, the mean over the query's tokens that ask, and ``(m,)`` positions.

    Raises:
        ModelError: As `scores`.
    """
    found = []
    for start in range(0, len(queries), queries.batch_size):
        some = queries.part(start, min(start + queries.batch_size, len(queries)))
        parts = _read_parts(module, task, some, train, progress=progress)
        best, rows, before = torch.full((len(some),), -torch.inf), torch.zeros(len(some)).long(), 0
        for part in parts:
            value, row = _best(*part.products, part).cpu().max(1)
            mean = value / part.asks.sum(1).cpu().clamp(min=1)
            rows = torch.where(mean > best, row + before, rows)
            best, before = torch.maximum(best, mean), before + len(part.silent)
        found.append((best, rows))
    return torch.cat([best for best, _ in found]), torch.cat([rows for _, rows in found])


def _read_parts(
    module: nn.Module,
    task: Task,
    queries: Tensors,
    train: Stream,
    *,
    cosine: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Iterator[_Compared]:
    """Yield the queries compared with one part of the rows after another."""
    device = train.part(0, 1).device
    asked = _prepared(
        _tokens(*last_layer(module, task, queries, queries=True)), device, cosine=cosine
    )
    asking = (asked.residuals != 0).any(2).any(0)  # a prompt's tokens ask nothing
    asked = _Rows(asked.features[:, asking], asked.residuals[:, asking])
    for start in range(0, len(train), train.batch_size):
        part = train.part(start, min(start + train.batch_size, len(train)))
        rows = _prepared(_tokens(*last_layer(module, task, part)), device, cosine=cosine)
        yield _compared(asked, rows)
        if progress is not None:
            progress(len(part))


def recall(found: Tensor, exact_top: Tensor) -> float:
    """Return the share of the exact top rows that are among the candidates.

    Args:
        found: ``(m, count)`` positions of candidates.
        exact_top: ``(m, k)`` positions that an exact sweep over all rows puts first.

    Raises:
        DataError: There is nothing to compare.
    """
    if len(found) != len(exact_top) or not exact_top.numel():
        raise DataError(
            f"candidates are {tuple(found.shape)}, exact rows {tuple(exact_top.shape)}: "
            "give both for the same queries, at least one"
        )
    hits = (exact_top[:, :, None] == found[:, None, :]).any(2)
    return float(hits.double().mean())


def last_layer(
    module: nn.Module, task: Task, rows: Tensors, *, queries: bool = False
) -> tuple[Tensor, Tensor]:
    """Return what the last linear layer sees of some rows, and what the loss wants of its answer.

    The model's outputs must be those of its last linear layer. Cost: two forward passes.

    Args:
        module: The model, in evaluation mode.
        task: The loss of a row.
        rows: Queries or training rows.
        queries: Take the query loss.

    Returns:
        Features ``(n, d)`` and residuals ``(n, c)``, the gradient of each row's loss by its
        outputs (softmax less one-hot in classification), float32 on the host. If the outputs are
        sequences ``(n, L, c)``, features ``(n, L, d)`` and residuals ``(n, L, c)``: c numbers for
        each token, so give many rows of a large vocabulary part by part.

    Raises:
        ModelError: The model has no last linear layer that answers for its rows.
    """
    features = penultimate(module)
    if features is None:
        raise ModelError("the model has no linear layer to find candidates by: sweep all rows")
    loss = task.query_loss if queries else task.loss
    read = list(batches_that_fit(rows, lambda b: _read(module, features, task, loss, b)))
    return torch.cat([r.features for r in read]), torch.cat([r.residuals for r in read])


def _read(
    module: nn.Module,
    features: Callable[[Tensor], Tensor],
    task: Task,
    loss: Callable[[Tensor, Tensor], Tensor],
    batch: Batch,
) -> _Rows:
    seen: list[Tensor] = []

    def forward(*inputs: Tensor) -> Tensor:
        if len(inputs) != 1:
            raise ModelError(
                f"candidates need a model of its inputs alone, and {task.name} hands over "
                f"{len(inputs)} things: sweep all rows"
            )
        seen.append(features(inputs[0]))
        output: Tensor = module(inputs[0])
        return output

    with torch.no_grad():
        outputs = task.outputs(forward, batch)
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        (residuals,) = torch.autograd.grad(loss(leaf, batch.targets).sum(), leaf)
    if residuals.ndim == 1:
        residuals = residuals[:, None]
    (h,) = seen
    if h.numel() % residuals.shape[:-1].numel():
        raise ModelError(
            f"the last linear layer sees {tuple(h.shape)} and the model answers "
            f"{tuple(residuals.shape)}: it is not the layer that answers, sweep all rows"
        )
    h = h.reshape(*residuals.shape[:-1], -1)
    return _Rows(h.to("cpu", torch.float32), residuals.to("cpu", torch.float32))


def _tokens(features: Tensor, residuals: Tensor) -> _Rows:
    """Return rows as sequences, of one token each if they are none."""
    if features.ndim not in (2, 3) or features.shape[:-1] != residuals.shape[:-1]:
        raise DataError(
            f"features are {tuple(features.shape)}, residuals {tuple(residuals.shape)}: "
            "give (rows, width) or (rows, tokens, width), as many rows and tokens of both"
        )
    if features.ndim == 3:
        return _Rows(features, residuals)
    return _Rows(features[:, None], residuals[:, None])


def _blocks(rows: _Rows, tokens: int) -> list[_Rows]:
    """Cut rows into parts of at most so many tokens, or of one row."""
    step = max(1, tokens // max(1, rows.features.shape[1]))
    return [_Rows(h, r) for h, r in zip(*(torch.split(x, step) for x in rows), strict=True)]


def _prepared(rows: _Rows, device: torch.device, *, cosine: bool) -> _Rows:
    """Return rows as they are multiplied, float32."""

    def prepare(values: Tensor) -> Tensor:
        values = values.to(device)
        if cosine:  # in float64: the residuals of what a model knows by heart are tiny
            values = nn.functional.normalize(values.to(torch.float64), dim=-1, eps=1e-300)
        return values.to(torch.float32)

    return _Rows(prepare(rows.features), prepare(rows.residuals))


def _compared(queries: _Rows, rows: _Rows) -> _Compared:
    features, residuals = (
        q.flatten(0, 1) @ r.flatten(0, 1).T for q, r in zip(queries, rows, strict=True)
    )
    silent = (rows.residuals == 0).all(2)
    silent = silent & ~silent.all(1, keepdim=True)  # else nothing of a row would be left
    return _Compared((features, residuals), (queries.residuals != 0).any(2), silent)


def _best(features: Tensor, residuals: Tensor | None, compared: _Compared) -> Tensor:
    """Return the best of each row's tokens for each of a query's, added up, ``(a, b)``."""
    products = features if residuals is None else features * residuals
    (a, asked), (b, length) = compared.asks.shape, compared.silent.shape
    best = products.view(a, asked, b, length).masked_fill(compared.silent, -torch.inf).amax(3)
    return (best * compared.asks[:, :, None]).sum(1)


def _score(queries: _Rows, rows: _Rows) -> Tensor:
    """Return the scores of b rows on a queries, ``(a, b)``."""
    compared = _compared(queries, rows)
    return _best(*compared.products, compared)


def _keys(scores: Tensor, start: int) -> Tensor:
    """Return int64 keys, larger for better scores, and of equal ones for the earlier row.

    No two are equal, so that ``topk``, which is faster than a stable sort and promises nothing
    about ties, has no choice. The upper half is the float32 score as an integer of the same order,
    the lower half counts positions down.
    """
    bits = (scores.nan_to_num(nan=-torch.inf) + 0.0).view(torch.int32)  # -0 becomes 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    place = torch.arange(start, start + scores.shape[1], device=scores.device)
    return (ordered.to(torch.int64) << 32) | (_LAST - place)
