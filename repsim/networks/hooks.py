"""Taking activations from a network while it runs, and leaving no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from repsim.errors import UsageError
from repsim.networks.layers import Layer, find_layers
from repsim.networks.models import Network, as_network
from repsim.networks.tracing import (
    ADDITION,
    Call,
    OperationAt,
    following,
    is_addition,
    is_own,
    operation_at,
    unobserved,
)
from repsim.networks.wrappers import part

Reduce = Callable[[Layer, Tensor], Any]


@contextmanager
def capture(
    network: Network | nn.Module | str,
    layers: str | Iterable[str | Layer] = "blocks",
    reduce: Reduce | None = None,
) -> Iterator[dict[str, Any]]:
    """While active, every forward pass fills a dictionary: layer name -> activation.

    The hooks go on at the start and are gone at the end, also after an error. What the network
    computes does not change.

    Args:
        network: a `Network`, a module or a name.
        layers: layers from `find_layers`, or a choice that it takes: a preset, a regular expression, names.
        reduce: called inside the hook with the layer and its activation, (n, ...) with the images on the
            first axis; its return value is kept instead of the activation. It must not keep or change the
            tensor it gets: later modules may write into it in place. Without it, a copy is kept.

    Yields:
        The dictionary, in the order in which layers run; emptied when the network is called again.

    Raises:
        UsageError: a layer is not there, before the network runs.

    >>> from repsim.networks.models import load_model
    >>> import torch
    >>> vit = load_model("vit_mini")
    >>> with capture(vit, ["blocks.0", "blocks.11"]) as seen:
    ...     _ = vit.module(torch.zeros(2, 1, 28, 28))
    >>> {name: tuple(x.shape) for name, x in seen.items()}
    {'blocks.0': (2, 50, 96), 'blocks.11': (2, 50, 96)}
    """
    network = as_network(network)
    given: Any = layers if isinstance(layers, str) else list(layers)
    named = isinstance(layers, str) or not all(isinstance(layer, Layer) for layer in given)
    chosen: list[Layer] = find_layers(network, given) if named else given
    keep = reduce or (lambda layer, activation: activation.detach().clone())
    seen: dict[str, Any] = {}

    def take(layer: Layer, activation: Tensor) -> None:
        seen[layer.name] = keep(layer, activation)

    with hooked(network, chosen, take, lambda: is_own(network, passed=False), seen.clear):
        yield seen


@contextmanager
def hooked(
    network: Network,
    layers: Iterable[Layer],
    take: Callable[[Layer, Tensor], None],
    own: Callable[[], bool],
    begin: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """While active, `take(layer, activation)` is called for every layer in the forward passes of a network.

    Args:
        own: whether the forward pass under way counts.
        begin: called before each forward pass that counts.
    """
    calls: dict[tuple[str, str], int] = {}
    under_way = [False]

    def start(module: nn.Module, arguments: tuple) -> None:
        calls.clear()
        under_way[0] = own()
        if under_way[0]:
            begin()

    def end(module: nn.Module, arguments: tuple, result: Any) -> None:
        under_way[0] = False

    layers = list(layers)
    placed = {layer.place: layer for layer in layers if layer.place is not None}
    if placed and network.compiled:
        name = next(iter(placed.values())).name
        raise UsageError(
            f"layer {name!r} of {network.name} belongs to no module, and is gone once the network is compiled; choose "
            "other layers, or do not compile it"
        )
    handles = [network.module.register_forward_pre_hook(start)]
    try:
        for (path, side), at_module in _grouped(each for each in layers if each.place is None).items():
            module = part(network.module, path)
            hook = _hook(at_module, (path, side), calls, take, under_way)
            if network.compiled:  # the hook itself is not compiled
                hook = torch.compiler.disable(hook)
            if side == "output":
                handles.append(module.register_forward_hook(lambda m, args, out, hook=hook: hook(out)))
            else:
                handles.append(
                    module.register_forward_pre_hook(lambda m, args, kw, hook=hook: hook(args or kw), with_kwargs=True)
                )
        handles.append(network.module.register_forward_hook(end))
        with _at_additions(network, placed, take, under_way) if placed else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _at_additions(
    network: Network,
    placed: dict[OperationAt, Layer],
    take: Callable[[Layer, Tensor], None],
    under_way: list[bool],
) -> Iterator[None]:
    """While active, `take` gets the layers that are results of additions."""
    running: list[Call] = []

    def nothing(call: Call, values: Any) -> None:
        pass

    class Additions(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            at = operation_at(ADDITION, running) if running and is_addition(func, args) else None
            result = func(*args, **(kwargs or {}))
            if at in placed and under_way[0]:
                with unobserved():
                    take(placed[at], placed[at].read(result))
            return result

    with following(network.module, running, nothing, nothing), Additions():
        yield


def _grouped(layers: Iterable[Layer]) -> dict[tuple[str, str], list[Layer]]:
    groups: dict[tuple[str, str], list[Layer]] = {}
    for layer in layers:
        groups.setdefault((layer.path, layer.side), []).append(layer)
    return groups


def _hook(
    layers: list[Layer],
    key: tuple[str, str],
    calls: dict[tuple[str, str], int],
    take: Callable[[Layer, Tensor], None],
    under_way: list[bool],
) -> Callable[[Any], None]:
    """Make a hook that counts the calls of its module, and takes the layers of the present call."""

    def hook(value: Any) -> None:
        if not under_way[0]:
            return
        number = calls[key] = (calls.get(key, -1) + 1) % layers[0].calls
        for layer in layers:
            if layer.call == number:
                with unobserved():
                    take(layer, layer.read(value))

    return hook
