"""Wrappers that compute nothing: they are looked through, or refused where their inside cannot be seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from repsim.errors import UsageError

INSIDE = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}
"""Class of a wrapper of torch's -> where it keeps the network, which gives the same by itself."""
PART = {**INSIDE, "FullyShardedDataParallel": "_fsdp_wrapped_module"}
"""The same for wrappers of a part of a network, which must run there."""
SHARDED = ("FullyShardedDataParallel", "FSDPModule")


def looked_through(module: Any) -> nn.Module:
    """The network inside `torch.compile`, (distributed) data parallelism, checkpointing and PEFT's adapters.

    Its layers have the names that they have without wrappers, so that they are found again in a network without them.
    PEFT's adapters stay, because they are inside the network's own layers.

    Raises:
        UsageError: it is TorchScript or an exported program, whose inside cannot be seen.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError(
            f"{_called(module)} is TorchScript, whose inside cannot be seen; give the nn.Module that it was made of"
        )
    if isinstance(module, ExportedProgram) or (isinstance(module, torch.fx.GraphModule) and "eval" in vars(module)):
        raise UsageError(
            f"{_called(module)} is an exported program, which has lost the network's modules; give the nn.Module that "
            "it was exported from"
        )
    inner = _inner(module) if isinstance(module, nn.Module) else None
    return module if inner is None else looked_through(inner)


def _called(module: Any) -> str:
    return getattr(module, "original_name", None) or type(module).__name__


def _inner(module: Any) -> nn.Module | None:
    kind = type(module)
    if kind.__module__.startswith("torch.") and kind.__name__ in INSIDE:
        return getattr(module, INSIDE[kind.__name__])
    if kind.__module__.startswith("peft.") and hasattr(module, "active_peft_config"):
        if module.active_peft_config.is_prompt_learning:
            return None
        return module.get_base_model()
    return None


def inside(module: nn.Module) -> nn.Module:
    """A part of a network without its wrappers."""
    while type(module).__module__.startswith("torch.") and type(module).__name__ in PART:
        module = getattr(module, PART[type(module).__name__])
    return module


def children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules directly inside a part of a network, by name."""
    return [(name, inside(child)) for name, child in inside(module).named_children()]


def held_in(module: nn.Module) -> list[nn.Module]:
    """The modules directly inside a part of a network."""
    return [child for _, child in children(module)]


def parts(root: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """All modules of a network without duplicates, by paths that leave wrappers out.

    >>> list(parts(nn.Sequential(nn.DataParallel(nn.Sequential(nn.ReLU())))))
    ['', '0', '0.0']
    """
    modules = {prefix: root}
    visited = {root, inside(root)}

    def walk(module: nn.Module, path: str) -> None:
        for name, child in children(module):
            if child not in visited:
                visited.add(child)
                modules[here := f"{path}.{name}" if path else name] = child
                walk(child, here)

    walk(root, prefix)
    return modules


def part(root: nn.Module, path: str) -> nn.Module:
    """The module at a path of `parts`."""
    for name in path.split(".") if path else ():
        root = inside(getattr(inside(root), name))
    return root


def check_gradients(module: nn.Module, name: str) -> None:
    """Raise `UsageError` for a network whose weights are sharded except while it runs: it has no gradients."""
    if any(kind.__name__ in SHARDED for part in module.modules() for kind in type(part).__mro__):
        raise UsageError(
            f"{name} is sharded (FSDP), so its gradients cannot be taken; give the network before it is sharded"
        )


class Called(nn.Module):
    """A network that is called by its user's function; it shares the modules and weights of the network.

    >>> inner = nn.Linear(3, 2)
    >>> Called(inner, lambda images: inner(images.mean((2, 3))))(torch.zeros(5, 3, 8, 8)).shape
    torch.Size([5, 2])
    """

    of: nn.Module
    call: Callable[[torch.Tensor], Any]

    def __init__(self, module: nn.Module, call: Callable[[torch.Tensor], Any]) -> None:
        mode = module.training
        vars(self).update(of=module, call=call)  # not as a module of its own: layers keep their names
        super().__init__()
        self.training = mode
        for name in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            setattr(self, name, getattr(module, name))

    @property
    def training(self) -> bool:
        return self.of.training

    @training.setter
    def training(self, mode: bool) -> None:
        self.of.training = mode

    def forward(self, images: torch.Tensor) -> Any:
        return self.call(images)
