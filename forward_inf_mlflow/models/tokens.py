"""Tokens: a transformer as a module of token ids, what it makes of texts, and fresh weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

#: How a model is told which tokens are padding: not at all, token by token, or pair by pair.
Mask = Literal["none", "tokens", "pairs"]
#: Tokens of the rows by which the way to say it is chosen: windows of attention are shorter.
_PROBED = 256


class Tokens(nn.Module):
    """A transformer that takes token ids ``(B, L)`` alone, and answers logits.

    Rows are padded on the right. A causal model never looks there and needs no mask; any other is
    told which tokens are padding.

    Attributes:
        inner: The model of ``transformers``, with or without an adapter.
        padding: The id of padding.
        mask: How the model is told of it.
    """

    def __init__(self, inner: nn.Module, padding: int = 0, mask: Mask = "none") -> None:
        super().__init__()
        self.inner, self.padding, self.mask = inner, padding, mask

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits ``(B, L, V)`` of a language model, ``(B, K)`` of a classifier."""
        logits: Tensor = self.inner(input_ids=ids, **self._told(ids)).logits
        return logits

    def _told(self, ids: Tensor) -> dict[str, Any]:
        if self.mask == "none":
            return {"use_cache": False}
        there = ids != self.padding
        if self.mask == "tokens":
            return {"attention_mask": there.long()}
        # As the library makes it of the other, but for a look at the values, which no model may
        # take where it is differentiated row by row.
        kind = next(self.inner.parameters()).dtype
        pairs = torch.zeros_like(ids, dtype=kind).masked_fill(~there, torch.finfo(kind).min)
        return {"attention_mask": pairs[:, None, None, :].expand(-1, 1, ids.shape[1], -1)}

    @torch.no_grad()
    def renew(self, seed: int) -> None:
        """Give every trainable parameter the value that its library begins training with.

        Of an adapter that is one that changes nothing; what lies below it stays.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if any(not p.requires_grad for p in self.inner.parameters()):
                _renew_adapter(self.inner)
                return
            fresh = type(self.inner)(self.inner.config)
        for mine, new in zip(self.inner.parameters(), fresh.parameters(), strict=True):
            mine.copy_(new)


def _renew_adapter(adapted: nn.Module) -> None:
    for part in adapted.modules():
        reset = getattr(part, "reset_lora_parameters", None)
        if callable(reset):
            for name in (*part.lora_A, *part.lora_embedding_A):  # type: ignore[misc]
                reset(name, True)
        copies, original = (getattr(part, n, None) for n in ("modules_to_save", "original_module"))
        if copies is not None and original is not None:
            for copied in copies.values():
                copied.load_state_dict(original.state_dict())


@torch.no_grad()
def told(inner: nn.Module, padding: int, limit: int | None, vocabulary: int) -> Mask:
    """Return how a classifier is told of padding: pair by pair where it takes that alike.

    Most bidirectional models do, and can then be differentiated row by row. Causal ones, and those
    with a mask of their own, do not.
    """
    draw = torch.Generator().manual_seed(0)
    length = min(limit or _PROBED, _PROBED)
    ids = torch.randint(vocabulary, (2, length), generator=draw)
    ids[ids == padding] = (padding + 1) % vocabulary
    ids[1, -(length // 3) :] = padding
    usual = Tokens(inner, padding, "tokens")(ids)
    try:
        other = Tokens(inner, padding, "pairs")(ids)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):
        return "tokens"
    alike = other.shape == usual.shape and torch.allclose(other, usual, atol=1e-5, rtol=1e-4)
    return "pairs" if alike else "tokens"


def bag_of_words(module: Tokens) -> Callable[[Tensor], Tensor]:
    """Return a function from ids ``(B, L)`` to the mean of their words' embeddings ``(B, h)``."""

    def read(ids: Tensor) -> Tensor:
        embeddings: nn.Module = module.inner.get_input_embeddings()  # type: ignore[operator]
        return _mean(embeddings(ids), ids != module.padding)

    return read


def last_layer(module: Tokens) -> Callable[[Tensor], Tensor] | None:
    """Return a function from ids ``(B, L)`` to what the last linear layer sees, ``(B, h)``.

    Of a layer that answers for every token, a classifier's at the last one and a language model's
    in the mean. None where there is no such layer.
    """
    layers = [part for part in module.inner.modules() if isinstance(part, nn.Linear)]
    if not layers:
        return None

    def read(ids: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def remember(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen[:] = arguments[:1]

        hooks = [layer.register_forward_pre_hook(remember) for layer in layers]
        try:
            logits = module(ids)
        finally:
            for hook in hooks:
                hook.remove()
        (values,) = seen
        if values.ndim == 2:
            return values
        there = ids != module.padding
        if logits.ndim == 3:
            return _mean(values, there)
        places = torch.arange(ids.shape[1], device=ids.device)
        last = torch.where(there, places, 0).amax(1)
        return values[torch.arange(len(ids), device=ids.device), last]

    return read


def _mean(values: Tensor, there: Tensor) -> Tensor:
    """Return the mean over the tokens that are there, ``(B, h)``."""
    weight = there.to(values.dtype)[..., None]
    return (values * weight).sum(1) / weight.sum(1).clamp(min=1)
