"""Whether a network is a function of its images: which draws it makes while it runs, and whether they matter.

A network that draws is run on the same images again, first with every draw as low as it can be, then as high, then as
it comes: a branch that is dropped for one image of a thousand is seen as surely as noise. A draw that changes nothing
(a dropout of 0, a layer drop that is asked for in training only) is no fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from repsim.networks.tokens import first_tensor
from repsim.networks.wrappers import parts

if TYPE_CHECKING:
    from repsim.networks.tracing import Call

RANGES = {"bernoulli": (0.0, 1.0), "rand": (1e-6, 1 - 1e-6), "randn": (-1.0, 1.0), "normal": (-1.0, 1.0)}
"""Draws by name -> the values they are set to, low and high; a uniform draw is hardly ever exactly 0 or 1."""
GOLDEN = 0.6180339887498949
"""Its multiples give every place a factor of its own, so that tokens in another order have another sum."""
SETTINGS = ("mask", "drop", "noise", "prob", "rate", "std", "sigma", "jitter")
"""Words in the names of arguments that set how much is drawn."""


class Draw(NamedTuple):
    """An operation that draws at random."""

    path: str
    """Path of the module whose own code makes it."""
    name: str


def draws(operation: Any) -> bool:
    """Whether an operation of ATen takes numbers from a generator; attention is marked as such and rarely does."""
    return torch.Tag.nondeterministic_seeded in operation.tags and "attention" not in _name(operation)


def _name(operation: Any) -> str:
    return operation.overloadpacket.__name__.rstrip("_")


class _Extreme(TorchDispatchMode):
    """Sets draws to their lowest or highest values."""

    def __init__(self, high: bool) -> None:
        super().__init__()
        self.high = high

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        ends = RANGES.get(_name(func).removesuffix("_like")) if draws(func) else None
        if ends is not None and isinstance(result, Tensor) and result.is_floating_point():
            result.fill_(ends[self.high])
        return result


class Repeating:
    """A second pass over the same images, in which every value must be the same.

    Args:
        first: the pass to compare with; None: this is the first.
        high: set draws low or high; None: leave them as they come.
    """

    def __init__(self, first: Repeating | None = None, high: bool | None = None) -> None:
        self.first, self.high, self.running = first, high, []
        self.values: dict[tuple[str, int, str], Tensor] = {}
        """(path, call, side) -> sums over the inputs or outputs of a call: values by their places, and magnitudes."""
        self.given: dict[str, bool] = {}
        """Call -> whether it was given something else."""
        self.other: str | None = None
        """The first module that was given the same and gave something else."""

    @property
    def differs(self) -> bool:
        """Whether anything is not as in the first pass."""
        return self.other is not None or (self.first is not None and self.values.keys() != self.first.values.keys())

    def recording(self) -> Any:
        return ExitStack() if self.high is None else _Extreme(self.high)

    def enter(self, call: Call, arguments: Any) -> None:
        self.given[call.name] = self._changed((call.path, call.number, "input"), first_tensor(arguments))

    def leave(self, call: Call, tensor: Tensor | None) -> None:
        if self._changed((call.path, call.number, "output"), tensor) and not self.given[call.name]:
            self.other = call.name if self.other is None else self.other

    def _changed(self, key: tuple[str, int, str], tensor: Tensor | None) -> bool:
        if tensor is None or tensor.is_sparse or tensor.is_quantized or not tensor.numel():
            return False
        flat = tensor.detach().flatten()
        flat = (torch.view_as_real(flat).flatten() if flat.is_complex() else flat).double()
        at = torch.arange(len(flat), device=flat.device, dtype=torch.float64)
        now = torch.stack([(flat * (1 + (at * GOLDEN) % 1)).sum(), flat.abs().sum()])
        self.values[key] = now
        before = now if self.first is None else self.first.values.get(key, now)
        return bool(((now - before).abs() > 1e-6 * before[1] + 1e-30).any())


def not_a_function(name: str, module: nn.Module, path: str, places: list[Draw]) -> str:
    """The sentence on a network that gives other values in every pass: the modules that draw, and the argument to set.

    Args:
        path: of the module that makes something else of the same input, empty if it is the network's own code.
        places: the operations that were seen to draw.
    """
    modules = parts(module)
    places = list(dict.fromkeys(places))
    if places:
        listed = ", ".join(f"{draw.name} in {draw.path or 'its own code'}" for draw in places[:3])
        drawn = f"it draws at random ({listed}{' and more' * (len(places) > 3)})"
    else:
        drawn = f"{path or 'its own code'} gives something else for the same input"
    near = [modules.get(item, module) for item in dict.fromkeys([*(draw.path for draw in places), path])]
    settings = sorted({setting for item in near for setting in _settings(item)})
    advice = "take out the modules that draw (a mask, noise, dropout that is left on)"
    advice += f", perhaps by setting {' or '.join(settings[:4])} to 0" if settings else ""
    return (
        f"{name} gives other values for the same images in every pass: {drawn}, so its numbers would be partly "
        f"noise; {advice}, or have every pass begin with the same seed with --seed-each-pass (seed_each_pass=True)"
    )


def _settings(module: nn.Module) -> Iterator[str]:
    """Names of numbers above 0 that may set how much a module draws; a dropout's is `p`."""
    for holder in (module, getattr(module, "config", None)):
        for name, value in vars(holder).items() if hasattr(holder, "__dict__") else ():
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
            if number and (name == "p" or any(word in name for word in SETTINGS)):
                yield name
