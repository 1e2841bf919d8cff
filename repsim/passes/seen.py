"""`Seen`: the values that a study keeps from the activations of a network in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from repsim.networks.attention_weights import AttentionLayer, Attentions, watch_attention, watch_heads
from repsim.networks.hooks import Reduce, hooked
from repsim.networks.layers import Layer
from repsim.networks.models import Network
from repsim.networks.pieces import add_piece, piece
from repsim.networks.residual_sums import ResidualSum, watch_sums
from repsim.networks.tracing import is_own, unobserved


class Seen(dict[Any, Any]):
    """Names -> values that are kept from a batch, in the order in which they were computed.

    The sweep makes one for each network of a study and empties it before each batch. In `Study.watch` a study enters
    one or more of the contexts below. Each calls a function of the study and keeps the value that this returns. The
    function must not keep or change the tensors that it gets: the network may write into them in place. It need not
    take account of further studies of the same network, of modules that several networks call, or of batches that go
    through the network in pieces where memory is small.

    >>> import repsim as rs
    >>> from repsim.networks.tracing import passing  # a sweep does this
    >>> vit = rs.load_model("vit_mini")
    >>> seen, layers = Seen(vit), rs.find_layers(vit, ["blocks.0"])
    >>> with torch.no_grad(), passing(vit), seen.rows(layers, lambda layer, x: x.mean((1, 2))):
    ...     _ = vit.module(torch.zeros(2, 1, 28, 28))
    >>> seen["blocks.0"].shape
    torch.Size([2])
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.groups: Tensor | None = None
        """(n,) in which group of the jackknife each image of the batch is, where images come in groups."""
        self._of_inputs: dict[str, Callable[[Tensor], Any]] = {}
        self._waiting: dict[str, list[Tensor]] = {}

    @contextmanager
    def inputs(self, name: str, reduce: Callable[[Tensor], Any]) -> Iterator[None]:
        """While active, keep `reduce(inputs)` of the inputs of each batch, (n, c, h, w), under this name."""
        self._of_inputs[name] = reduce
        try:
            yield
        finally:
            del self._of_inputs[name]

    @contextmanager
    def layers(self, layers: Iterable[Layer], reduce: Reduce) -> Iterator[None]:
        """While active, keep `reduce(layer, activation)` of each layer and batch, (n, ...), under the layer's name."""

        def take(layer: Layer, activation: Tensor) -> None:
            self._whole(layer.name, activation, lambda x: reduce(layer, x))

        with hooked(self.network, layers, take, self._own):
            yield

    @contextmanager
    def rows(self, layers: Iterable[Layer], reduce: Reduce) -> Iterator[None]:
        """As `layers`, where `reduce` returns a row for each image that depends on that image alone.

        It returns a tensor (n, ...), or a named tuple or dictionary of such. Activations of several pieces of a batch
        do not wait for each other then.
        """

        def take(layer: Layer, activation: Tensor) -> None:
            add_piece(self, layer.name, reduce(layer, activation))

        with hooked(self.network, layers, take, self._own):
            yield

    @contextmanager
    def attention(self, attentions: Attentions, reduce: Callable[[AttentionLayer, int, Tensor], Any]) -> Iterator[None]:
        """While active, keep `reduce(layer, number, weights)` of each attention map.

        It is kept under (name of the layer, number of its map), and is rows for images, see `rows`. `watch_attention`
        says what weights are.
        """

        def take(layer: AttentionLayer, number: int, weights: Tensor) -> None:
            add_piece(self, (layer.name, number), reduce(layer, number, weights))

        with watch_attention(self.network, take, attentions, passed=True):
            yield

    @contextmanager
    def heads(self, layer: AttentionLayer, name: str, reduce: Callable[[Tensor], Any]) -> Iterator[None]:
        """While active, keep `reduce(outputs)` of what each head sums, of a whole batch, under this name.

        `watch_heads` says what outputs are, (n, heads, windows, q, d).
        """
        take = partial(self._whole, name, reduce=reduce)
        with watch_heads(self.network, layer, take, passed=True):
            yield

    @contextmanager
    def sums(self, sums: Iterable[ResidualSum], reduce: Callable[[ResidualSum, Tensor, Tensor], Any]) -> Iterator[None]:
        """While active, keep `reduce(sum, skip, branch)` of each residual sum, rows for images, under its name."""

        def take(residual_sum: ResidualSum, skip: Tensor, branch: Tensor) -> None:
            with unobserved():
                add_piece(self, residual_sum.name, reduce(residual_sum, skip, branch))

        with watch_sums(self.network, list(sums), take, passed=True):
            yield

    @contextmanager
    def lesions(
        self, sums: Iterable[ResidualSum], cut: Callable[[ResidualSum, Tensor, Tensor], Tensor | None]
    ) -> Iterator[None]:
        """While active, what `cut(sum, skip, branch)` returns takes the place of a residual sum; None leaves it."""
        with watch_sums(self.network, list(sums), cut, passed=True):
            yield

    @contextmanager
    def calls(self, count: Callable[[int], Any]) -> Iterator[None]:
        """While active, call `count` with the number of images of every forward pass that the sweep makes."""

        def end(module: Any, arguments: tuple[Any, ...], output: Any) -> None:
            if self._own():
                count(len(arguments[0]))

        handle = self.network.module.register_forward_hook(end)
        try:
            yield
        finally:
            handle.remove()

    def _whole(self, name: str, values: Tensor, reduce: Callable[[Tensor], Any]) -> None:
        """Keep what is made of values of a whole batch; those of its pieces wait for each other."""
        if piece().whole:
            self[name] = reduce(values)
            return
        self._waiting.setdefault(name, []).append(values.to("cpu", copy=True))
        if piece().last:
            self[name] = reduce(torch.cat(self._waiting.pop(name)).to(values.device))

    def begin(self, inputs: Tensor, groups: Tensor | None = None) -> None:
        """Forget the batch before, and take what is asked for of the inputs of this one."""
        self.groups = groups
        self.clear()
        self._waiting.clear()
        with unobserved():
            for name, reduce in self._of_inputs.items():
                self[name] = reduce(inputs)

    def _own(self) -> bool:
        return is_own(self.network, passed=True)
