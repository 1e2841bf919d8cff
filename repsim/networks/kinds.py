"""Kinds of modules, by the name of the class and by the parts."""

from __future__ import annotations

import re

from torch import nn


def has_parts(module: nn.Module) -> bool:
    """Whether a module is made of other modules; a parametrisation of a weight is no part."""
    return any(name != "parametrizations" for name, _ in module.named_children())


def is_a(module: nn.Module, *words: str) -> bool:
    """Whether the name of a module's class has one of these words in it."""
    name = type(module).__name__.lower()
    return any(word in name for word in words)


def is_attention(module: nn.Module) -> bool:
    """Whether a module is attention, by the name of its class."""
    return is_a(module, "attn", "attention", "mhsa", "gpsa") and not is_a(module, "pool", "norm")


def is_norm(module: nn.Module) -> bool:
    """Whether a module only normalises; a `NormFreeBlock` or a `ConvNormAct` does more."""
    return named_norm(module) and not maps_in(module)


def named_norm(module: nn.Module) -> bool:
    """Whether a module normalises by the name of its class, alone or with further operations."""
    return is_a(module, "norm") and not is_a(module, "prenorm")


def maps_in(module: nn.Module) -> int:
    """How many convolutions and linear maps are in it."""
    leaves = [leaf for leaf in module.modules() if not has_parts(leaf)]
    return sum(is_a(leaf, "conv", "linear") and not NORM.search(type(leaf).__name__) for leaf in leaves)


NORM = re.compile(r"norm(\dd)?$", re.I)
"""At the end of the name of a class that normalises only, be it the norm of a `ConvNext`."""


def is_mlp(module: nn.Module) -> bool:
    """Whether a module is an MLP, by the name of its class."""
    return is_a(module, "mlp", "feedforward", "ffn")


def is_activation(module: nn.Module) -> bool:
    """Whether a module applies an activation function only."""
    return type(module).__module__.startswith(("torch.nn.modules.activation", "timm.layers.activations")) or is_a(
        module, "gelu", "relu", "silu", "swish"
    )


def kind_of(module: nn.Module) -> str:
    """The kind of a module: `conv`, `norm`, `attention`, `activation`, `linear`, or else the name of its class."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return "conv"
    for kind, holds in (("norm", is_norm), ("attention", is_attention), ("activation", is_activation)):
        if holds(module):
            return kind
    if isinstance(module, nn.Linear):
        return "linear"
    return type(module).__name__.lower()


def is_attention_like(module: nn.Module) -> bool:
    """Attention without an MLP, wrapped or not."""
    inside = list(module.modules())
    return any(map(is_attention, inside)) and not any(map(is_mlp, inside))


def is_mlp_like(module: nn.Module) -> bool:
    """An MLP, or several side by side, wrapped or not."""
    if any(map(is_attention, module.modules())):
        return False  # whatever makes its biases of positions
    parts = [part for part in module.children() if has_parts(part) and not is_norm(part)]
    return is_mlp(module) or _plain_sequence(module) or (bool(parts) and all(map(is_mlp_like, parts)))


def _of_one_position(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)


def _plain_sequence(module: nn.Module) -> bool:
    """An MLP that is a plain sequence: of linear maps there are two, and an activation between."""
    if not isinstance(module, nn.Sequential) or any(map(has_parts, module)):
        return False
    bends = [i for i, part in enumerate(module) if is_activation(part)]
    maps = [i for i, part in enumerate(module) if isinstance(part, nn.Linear) or _of_one_position(part)]
    return len(maps) == maps_in(module) == 2 and len(bends) == 1 and maps[0] < bends[0] < maps[1]
