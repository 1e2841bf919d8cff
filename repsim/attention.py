"""Reading the attention of a network as it runs, fused or not, without changing it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from repsim.errors import UsageError
from repsim.models import Network
from repsim.tracing import unobserved

SDPA = torch.nn.functional.scaled_dot_product_attention
Take = Callable[[str, Tensor], None]


class _Fused(TorchFunctionMode):
    """Sees calls of fused attention and works out the weights from the very queries and keys it is given."""

    def __init__(self, took: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.took = took

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is SDPA:
            with unobserved():
                self.took(weights(*args, **kwargs))
        return function(*args, **kwargs)


def weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The attention weights that `scaled_dot_product_attention` uses and does not return. (..., q, k)."""
    if query.dtype.itemsize < 4:
        query, key = query.float(), key.float()
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    logits = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        allowed = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        logits = logits.masked_fill(~allowed, -math.inf)
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    return logits.softmax(-1)


def attention_modules(network: Network) -> dict[str, nn.Module]:
    """The modules that compute attention weights: those with a dropout on them, `attn_drop`."""
    return {
        path: module
        for path, module in network.module.named_modules()
        if isinstance(getattr(module, "attn_drop", None), nn.Module)
    }


@contextmanager
def watch_attention(network: Network, take: Take) -> Iterator[list[str]]:
    """Within the `with`, `take(path, weights)` is called with each module's attention, (n, h, q, k).

    Fused attention is left fused: its weights are computed beside it from the queries, keys, scale and
    mask it is called with. Attention that is not fused is read where it enters its dropout. One module's
    weights exist at a time; they must not be changed.

    Raises:
        UsageError: the network has no attention that can be read.
    """
    modules = attention_modules(network)
    if not modules:
        raise UsageError(f"{network.name} has no attention to measure; take a transformer with self-attention")
    running: list[str] = []

    def took(attention: Tensor) -> None:
        if running:
            with unobserved():
                take(running[-1], attention)

    # A pass that failed half-way, for lack of memory say, leaves modules behind that never ended.
    handles = [network.module.register_forward_pre_hook(lambda m, args: running.clear())]
    try:
        for path, module in modules.items():
            handles.append(module.register_forward_pre_hook(lambda m, args, path=path: running.append(path)))
            handles.append(module.register_forward_hook(lambda m, args, out: running.pop() and None))
            handles.append(module.attn_drop.register_forward_pre_hook(lambda m, args: took(args[0])))
        with ExitStack() as stack:
            stack.enter_context(_Fused(took))
            yield list(modules)
    finally:
        for handle in handles:
            handle.remove()
