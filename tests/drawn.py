"""Small networks drawn at random, and their activations by a second, plain path in float64.

A drawn network keeps its tokens in memory as networks of many libraries do: batch first, second or last, channels on
any axis, tokens row by row, column by column, in mask units or shuffled, windows beside the batch, up to five tokens
before or after the grid. The activations of its blocks are known by construction: `Drawn.truth` computes them with
tokens in reading order, masks instead of windows, and no tensor moved. It uses nothing of repsim.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PREFIX = ("cls_token", "dist_token", "reg_token", "storage_tokens", "class_embedding")


@dataclass(frozen=True)
class Layout:
    """The layout of prefix (n, p, d) and grid (n, h, w, d) in one tensor."""

    axes: str
    """The order of n, t, d, or of n, h, w, d for maps; `windows` and `windows first` put windows beside the batch."""
    order: str = "rows"
    """The order of the tokens of a sequence: `rows`, `columns`, `units`, `dilated`, `shuffled`."""
    last: bool = False
    """Whether the prefix follows the grid."""

    def pack(self, prefix: Tensor, grid: Tensor) -> Tensor:
        n, h, w, d = grid.shape
        if self.axes.startswith("windows"):
            parts = grid.view(n, h // 2, 2, w // 2, 2, d)
            order = (1, 3, 0, 2, 4, 5) if "first" in self.axes else (0, 1, 3, 2, 4, 5)
            return parts.permute(order).reshape(n * (h // 2) * (w // 2), 4, d)
        if "t" not in self.axes:
            return grid.permute(["nhwd".index(axis) for axis in self.axes]).contiguous()
        tokens = self._sequence(grid)
        parts = [prefix, tokens] if not self.last else [tokens, prefix]
        tokens = torch.cat(parts, 1) if prefix.shape[1] else tokens
        return tokens.permute(["ntd".index(axis) for axis in self.axes])

    def unpack(self, x: Tensor, p: int, h: int, w: int) -> tuple[Tensor, Tensor]:
        if self.axes.startswith("windows"):
            count, d = (h // 2) * (w // 2), x.shape[2]
            n = x.shape[0] // count
            if "first" in self.axes:
                grid = x.view(h // 2, w // 2, n, 2, 2, d).permute(2, 0, 3, 1, 4, 5)
            else:
                grid = x.view(n, h // 2, w // 2, 2, 2, d).permute(0, 1, 3, 2, 4, 5)
            grid = grid.reshape(n, h, w, d)
            return grid.new_zeros(n, 0, d), grid
        if "t" not in self.axes:
            grid = x.permute([self.axes.index(axis) for axis in "nhwd"])
            return grid.new_zeros(len(grid), 0, grid.shape[3]), grid
        x = x.permute([self.axes.index(axis) for axis in "ntd"])
        tokens, prefix = (x[:, : h * w], x[:, h * w :]) if self.last else (x[:, p:], x[:, :p])
        return prefix, self._grid(tokens, h, w)

    def _sequence(self, grid: Tensor) -> Tensor:
        n, h, w, d = grid.shape
        if self.order == "columns":
            return grid.transpose(1, 2).reshape(n, h * w, d)
        if self.order == "units":
            return grid.reshape(n, h // 2, 2, w // 2, 2, d).permute(0, 1, 3, 2, 4, 5).reshape(n, h * w, d)
        if self.order == "dilated":
            return grid.reshape(n, h // 2, 2, w // 2, 2, d).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w, d)
        tokens = grid.reshape(n, h * w, d)
        return tokens[:, _shuffle(h * w)] if self.order == "shuffled" else tokens

    def _grid(self, tokens: Tensor, h: int, w: int) -> Tensor:
        n, _, d = tokens.shape
        if self.order == "columns":
            return tokens.view(n, w, h, d).transpose(1, 2)
        if self.order == "units":
            return tokens.reshape(n, h // 2, w // 2, 2, 2, d).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, d)
        if self.order == "dilated":
            return tokens.reshape(n, 2, 2, h // 2, w // 2, d).permute(0, 3, 1, 4, 2, 5).reshape(n, h, w, d)
        if self.order == "shuffled":
            tokens = tokens.index_select(1, _shuffle(h * w).argsort())
        return tokens.reshape(n, h, w, d)


def _shuffle(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(count))


def layout(draw: random.Random, p: int, *, maps: bool = True) -> Layout:
    sequences = [
        Layout(axes, order, draw.random() < 0.3)
        for axes in ("ntd", "tnd", "ndt", "tdn")
        for order in ("rows", "columns", "units", "dilated", "shuffled")
    ]
    if p or not maps or draw.random() < 0.4:
        return draw.choice(sequences)
    return Layout(draw.choice(["nhwd", "ndhw", "hwnd", "nwdh", "hdwn", "windows", "windows first"]))


class Block(nn.Module):
    """The common part of all blocks: the sum of the input and of `branch` of its normalised tokens."""

    def __init__(self, draw: random.Random, p: int, h: int, w: int, d: int, enter: Layout, leave: Layout) -> None:
        super().__init__()
        self.p, self.h, self.w, self.d, self.enter, self.leave = p, h, w, d, enter, leave
        self.inner = layout(draw, p)
        self.norm = nn.LayerNorm(d)
        self.channels_first = draw.random() < 0.3
        self.gives = draw.choice(["tensor", "tensor", "tuple", "dict"])

    def forward(self, x: Tensor | tuple | dict) -> Tensor | tuple | dict:
        prefix, grid = self.enter.unpack(_tensor(x), self.p, self.h, self.w)
        more = self.branch(self.norm(prefix), self._normed(grid))
        x = self.leave.pack(*(a if b is None else a + b for a, b in zip((prefix, grid), more)))
        return {"tensor": x, "tuple": (x, (self.h, self.w)), "dict": {"x": x}}[self.gives]

    def _normed(self, grid: Tensor) -> Tensor:
        if not self.channels_first:
            return self.norm(grid)
        x = grid.permute(0, 3, 1, 2)
        apart = x - x.mean(1, keepdim=True)
        x = apart / (apart.pow(2).mean(1, keepdim=True) + self.norm.eps).sqrt()
        x = x * self.norm.weight[:, None, None] + self.norm.bias[:, None, None]
        return x.permute(0, 2, 3, 1)

    def truth(self, prefix: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        more = self.true_branch(_norm(self.norm, prefix), _norm(self.norm, grid))
        return tuple(a if b is None else a + b for a, b in zip((prefix, grid), more))


def _tensor(x: Tensor | tuple | dict) -> Tensor:
    return x[0] if isinstance(x, tuple) else x["x"] if isinstance(x, dict) else x


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    apart = x - x.mean(-1, keepdim=True)
    return apart / (apart.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


class Mlp(Block):
    """Maps of the channels: convolutions where the channels are on the second axis, linear maps elsewhere."""

    def __init__(self, draw: random.Random, *args) -> None:
        super().__init__(draw, *args)
        self.fc1, self.fc2 = nn.Linear(self.d, 2 * self.d), nn.Linear(2 * self.d, self.d)

    def branch(self, prefix: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        x = self.inner.pack(prefix, grid)
        axis = self.inner.axes.find("d") if not self.inner.axes.startswith("windows") else x.ndim - 1
        if axis == 1 and x.ndim == 4:
            x = F.conv2d(x, self.fc1.weight[:, :, None, None], self.fc1.bias)
            x = F.conv2d(F.gelu(x), self.fc2.weight[:, :, None, None], self.fc2.bias)
        elif axis == 1 and x.ndim == 3:
            x = F.conv1d(x, self.fc1.weight[:, :, None], self.fc1.bias)
            x = F.conv1d(F.gelu(x), self.fc2.weight[:, :, None], self.fc2.bias)
        else:
            x = self.fc2(F.gelu(self.fc1(x.movedim(axis, -1)))).movedim(-1, axis)
        return self.inner.unpack(x, self.p, self.h, self.w)

    def true_branch(self, prefix: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(_linear(self.fc2, F.gelu(_linear(self.fc1, x))) for x in (prefix, grid))


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


class Mix(Block):
    """Maps of the tokens of the grid, as in a Mixer."""

    def __init__(self, draw: random.Random, *args) -> None:
        super().__init__(draw, *args)
        self.inner = Layout("ndt", self.inner.order)
        self.fc1, self.fc2 = (nn.Linear(a, b) for a, b in ((self.h * self.w, 12), (12, self.h * self.w)))

    def branch(self, prefix: Tensor, grid: Tensor) -> tuple[None, Tensor]:
        x = self.inner.pack(prefix[:, :0], grid)
        return None, self.inner.unpack(self.fc2(F.gelu(self.fc1(x))), 0, self.h, self.w)[1]

    def true_branch(self, prefix: Tensor, grid: Tensor) -> tuple[None, Tensor]:
        order = self.inner._sequence(torch.arange(self.h * self.w).view(1, self.h, self.w, 1)).flatten()
        x = grid.flatten(1, 2)[:, order]
        x = _linear(self.fc2, F.gelu(_linear(self.fc1, x.transpose(1, 2)))).transpose(1, 2)
        return None, x[:, order.argsort()].unflatten(1, (self.h, self.w))


class Conv(Block):
    """A convolution of the grid: of each channel alone, of two groups of channels, or of all channels."""

    def __init__(self, draw: random.Random, *args) -> None:
        super().__init__(draw, *args)
        self.conv = nn.Conv2d(self.d, self.d, 3, padding=1, groups=draw.choice([1, 2, self.d]))

    def branch(self, prefix: Tensor, grid: Tensor) -> tuple[None, Tensor]:
        return None, self.conv(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    true_branch = branch


class Attend(Block):
    """Attention, over the whole grid and the prefix, or within windows; to all tokens, or to a coarser grid of keys."""

    def __init__(self, draw: random.Random, *args) -> None:
        super().__init__(draw, *args)
        self.heads = draw.choice([1, 2, self.d // 4])
        kinds = ["whole", "window", "shift", "padded", "grid", "rows", "columns"]
        self.kind = "whole" if self.p else draw.choice(kinds)
        self.keys = (
            draw.choice(["own", "own", "pooled", "conv", "tall"])
            if self.kind == "whole" and self.h * self.w > 4
            else "own"
        )
        self.algorithm = draw.choice(["fused", "plain", "einsum", "turned", *["module"] * (self.keys == "own")])
        self.sequence = layout(draw, self.p, maps=False)
        self.first = draw.random() < 0.5
        self.packed = draw.random() < 0.5
        self.biased = self.kind in ("window", "grid") and self.algorithm != "module" and draw.random() < 0.5
        if self.biased:
            self.bias = nn.Parameter(torch.randn(self.heads, 4, 4))
        self.qkv, self.proj = nn.Linear(self.d, 3 * self.d), nn.Linear(self.d, self.d)
        nn.init.normal_(self.qkv.weight, std=1.5 / self.d**0.5)
        if self.keys == "conv":
            self.reduce = nn.Conv2d(self.d, self.d, 2, 2)
        if self.algorithm == "module":
            self.mha = nn.MultiheadAttention(self.d, self.heads, batch_first=self.first)
            with torch.no_grad():
                self.mha.in_proj_weight.copy_(self.qkv.weight)
                self.mha.in_proj_bias.copy_(self.qkv.bias)
            self.mha.out_proj = self.proj

    @property
    def windows(self) -> tuple[int, int]:
        """Rows and columns of tokens that attend to each other."""
        return {"rows": (1, self.w), "columns": (self.h, 1), "padded": (3, 3)}.get(self.kind, (2, 2))

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns of the grid, with the padding that fills its windows."""
        a, b = self.windows
        return (-(-self.h // a) * a, -(-self.w // b) * b) if self.kind == "padded" else (self.h, self.w)

    def branch(self, prefix: Tensor, grid: Tensor) -> tuple[Tensor | None, Tensor]:
        if self.kind == "whole":
            tokens = self.sequence.pack(prefix, grid)
            tokens = tokens.permute([self.sequence.axes.index(axis) for axis in "ntd"])
            keys = tokens if self.keys == "own" else torch.cat([prefix, self._coarse(grid).flatten(1, 2)], 1)
            x = self._attend(tokens, keys).permute(["ntd".index(axis) for axis in self.sequence.axes])
            return self.sequence.unpack(x, self.p, self.h, self.w)
        (n, h, w, d), (a, b) = grid.shape, self.windows
        grid = torch.roll(grid, (-1, -1), (1, 2)) if self.kind == "shift" else grid
        h, w = self.padded
        grid = F.pad(grid, (0, 0, 0, w - self.w, 0, h - self.h)) if self.kind == "padded" else grid
        if self.kind == "grid":
            order, back, sizes = (0, 2, 4, 1, 3, 5), (0, 3, 1, 4, 2, 5), (a, h // a, b, w // b)
            lead = (h // a, w // b, a, b)
        else:
            order, back, sizes = (0, 1, 3, 2, 4, 5), (0, 1, 3, 2, 4, 5), (h // a, a, w // b, b)
            lead = (h // a, w // b, a, b)
        parts = grid.reshape(n, *sizes, d).permute(order).reshape(-1, a * b, d)
        parts = self._attend(parts, parts).view(n, *lead, d).permute(back).reshape(n, h, w, d)
        if self.kind == "padded":
            return None, parts[:, : self.h, : self.w].contiguous()
        return None, torch.roll(parts, (1, 1), (1, 2)) if self.kind == "shift" else parts

    def _coarse(self, grid: Tensor) -> Tensor:
        x = grid.permute(0, 3, 1, 2)
        if self.keys == "conv":
            return self.reduce(x).permute(0, 2, 3, 1)
        return F.avg_pool2d(x, 2 if self.keys == "pooled" else (2, 1)).permute(0, 2, 3, 1)

    def _attend(self, x: Tensor, to: Tensor) -> Tensor:
        """(n, q, d), (n, k, d) -> (n, q, d)."""
        if self.algorithm == "module":
            x = x if self.first else x.transpose(0, 1)
            x = self.mha(x, x, x, need_weights=False)[0]
            return x if self.first else x.transpose(0, 1)
        if self.packed and x is to:
            q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        else:
            weight, bias = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
            q, k, v = (F.linear(a, *parameters) for a, parameters in zip((x, to, to), zip(weight, bias)))
            q, k, v = (a.unflatten(2, (self.heads, -1)).transpose(1, 2) for a in (q, k, v))
        scale, bias = q.shape[-1] ** -0.5, self.bias if self.biased else None
        if self.algorithm == "fused":
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        elif self.algorithm == "plain":
            out = (q * scale @ k.transpose(-2, -1) + (0 if bias is None else bias)).softmax(-1) @ v
        elif self.algorithm == "einsum":
            logits = torch.einsum("nhqd,nhkd->nhqk", q, k) * scale + (0 if bias is None else bias)
            out = torch.einsum("nhqk,nhkd->nhqd", logits.softmax(-1), v)
        else:
            logits = k @ q.transpose(-2, -1) * scale + (0 if bias is None else bias.transpose(-2, -1))
            out = logits.softmax(-2).transpose(-2, -1) @ v
        return self.proj(out.transpose(1, 2).flatten(2))

    def true_branch(self, prefix: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        weights, keys = self.true_weights(prefix, grid)
        v = _linear(self.qkv, keys)[..., 2 * self.d :].unflatten(2, (self.heads, -1))
        x = _linear(self.proj, torch.einsum("nhqk,nkhd->nqhd", weights, v).flatten(2))
        if self.kind == "padded":
            return None, x.unflatten(1, self.padded)[:, : self.h, : self.w]
        return x[:, : self.p], x[:, self.p :].unflatten(1, (self.h, self.w))

    def true_weights(self, prefix: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (n, heads, queries, keys), and the keys before they are mapped, from normalised tokens.

        The prefix comes first; where the grid is padded, so are queries and keys.
        """
        h, w = self.padded
        grid = F.pad(grid, (0, 0, 0, w - self.w, 0, h - self.h))
        tokens = torch.cat([prefix, grid.flatten(1, 2)], 1)
        keys = tokens if self.keys == "own" else torch.cat([prefix, self._coarse(grid).flatten(1, 2)], 1)
        q = _linear(self.qkv, tokens)[..., : self.d].unflatten(2, (self.heads, -1))
        k = _linear(self.qkv, keys)[..., self.d : 2 * self.d].unflatten(2, (self.heads, -1))
        logits = torch.einsum("nqhd,nkhd->nhqk", q, k) / (self.d // self.heads) ** 0.5
        if self.kind != "whole":
            r, c = (index.flatten() for index in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
            a, b = self.windows
            if self.kind == "grid":
                group, of_window = (r % (h // a)) * w + c % (w // b), r // (h // a) * b + c // (w // b)
            else:
                shift = int(self.kind == "shift")
                group = ((r - shift) % h // a) * w + (c - shift) % w // b
                of_window = (r - shift) % h % a * b + (c - shift) % w % b
            if self.biased:
                logits = logits + self.bias[:, of_window][:, :, of_window]
            logits = logits.masked_fill(group[:, None] != group, -torch.inf)
        return logits.softmax(-1), keys

    def in_image(self) -> Tensor:
        """(queries,) whether a query is in the image, neither in the prefix nor in the padding."""
        h, w = self.padded
        grid = F.pad(torch.ones(self.h, self.w), (0, w - self.w, 0, h - self.h)).flatten() > 0
        return torch.cat([torch.zeros(self.p, dtype=torch.bool), grid])

    def true_distances(self, cell: tuple[float, float]) -> Tensor:
        """Distances (h w, keys of the grid) in pixels, from the height and width of a cell."""
        key_size = {"own": (1, 1), "pooled": (2, 2), "conv": (2, 2), "tall": (2, 1)}[self.keys]
        places = []
        for tall, wide in ((1, 1), key_size):
            r = (torch.arange(self.h // tall).double() + 0.5) * tall * cell[0]
            c = (torch.arange(self.w // wide).double() + 0.5) * wide * cell[1]
            places.append(torch.stack(torch.meshgrid(r, c, indexing="ij"), -1).flatten(0, 1))
        return (places[0][:, None] - places[1]).square().sum(-1).sqrt()


class Merge(nn.Module):
    """Four cells of the grid become one."""

    def __init__(self, draw: random.Random, h: int, w: int, d: int, enter: Layout, leave: Layout) -> None:
        super().__init__()
        self.h, self.w, self.d, self.enter, self.leave = h, w, d, enter, leave
        self.conv = draw.random() < 0.5
        self.down = nn.Conv2d(d, d, 2, 2) if self.conv else nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        prefix, grid = self.enter.unpack(_tensor(x), 0, self.h, self.w)
        return self.leave.pack(*self.truth(prefix, grid))

    def truth(self, prefix: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        if self.conv:
            return prefix, self.down(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        corners = [grid[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return prefix, self.down(torch.cat(corners, -1))


class Net(nn.Module):
    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.patch = draw.choice([(4, 4), (2, 4), (4, 2)])
        self.h, self.w = draw.choice([(4, 4), (4, 8), (8, 4), (4, 6), (6, 4)])
        self.d = d = draw.choice([4, 8, 12, 16, self.h * self.w, self.h * 2])
        self.colours = draw.choice([1, 3])
        self.embed = draw.choice(["conv", "linear", "two"])
        size = self.patch[0] * self.patch[1] * self.colours
        self.proj = nn.Linear(size, d) if self.embed == "linear" else nn.Conv2d(self.colours, d, self.patch, self.patch)
        self.two = nn.Conv2d(d, d, 3, padding=1) if self.embed == "two" else None
        self.names = draw.sample(PREFIX[:4], draw.choice([0, 0, 1, 2, 3])) if draw.random() < 0.7 else []
        if "cls_token" in self.names and draw.random() < 0.3:
            self.names[self.names.index("cls_token")] = PREFIX[4]
        counts = [draw.choice([1, 2]) if name in ("reg_token", "storage_tokens") else 1 for name in self.names]
        for name, count in zip(self.names, counts):
            setattr(self, name, nn.Parameter(torch.randn(1, count, d)))
        self.p = p = sum(counts)
        self.token_names = [name for name, count in zip(self.names, counts) for _ in range(count)]
        self.positions = nn.Parameter(0.5 * torch.randn(1, self.h, self.w, d))
        self.pos_embed = nn.Parameter(0.5 * torch.randn(1, self.p, d)) if p and draw.random() < 0.5 else None
        self.early, self.shared = draw.random() < 0.5, draw.random() < 0.2
        blocks, h, w = [], self.h, self.w
        self.first = enter = layout(draw, p)
        kinds = [Mlp, Attend, Attend, Conv, *([] if p else [Mix])]
        for number in range(draw.choice([2, 3])):
            leave = enter if self.shared and not number else layout(draw, p)
            blocks.append(draw.choice(kinds)(draw, p, h, w, d, enter, leave))
            enter = leave
            if not p and min(h, w) >= 4 and h % 4 == w % 4 == 0 and draw.random() < 0.3:
                leave = layout(draw, p)
                blocks.append(Merge(draw, h, w, d, enter, leave))
                h, w, enter = h // 2, w // 2, leave
        self.blocks = nn.ModuleList(blocks)

    @property
    def size(self) -> tuple[int, int, int]:
        return self.colours, self.h * self.patch[0], self.w * self.patch[1]

    def runs(self) -> list[tuple[str, nn.Module]]:
        """Blocks in the order in which they run, with the names of their layers."""
        named = [(f"blocks.{i}", block) for i, block in enumerate(self.blocks)]
        return [named[0], ("blocks.0:1", self.blocks[0]), *named[1:]] if self.shared else named

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n = len(x)
        if self.embed == "linear":
            a, b = self.patch
            parts = x.reshape(n, self.colours, self.h, a, self.w, b).permute(0, 2, 4, 3, 5, 1)
            grid = self.proj(parts.reshape(n, self.h, self.w, -1))
        else:
            grid = self.proj(x)
            grid = (grid if self.two is None else self.two(F.relu(grid))).permute(0, 2, 3, 1)
        grid = grid + self.positions
        if not self.names:
            return grid.new_zeros(n, 0, self.d), grid
        if self.early:
            prefix = torch.cat([getattr(self, name) for name in self.names], 1).repeat(n, 1, 1)
        else:
            prefix = torch.cat([getattr(self, name).expand(n, -1, -1) for name in self.names], 1)
        return prefix if self.pos_embed is None else prefix + self.pos_embed, grid

    def forward(self, x: Tensor) -> Tensor:
        x = self.first.pack(*self.tokens(x))
        for _, block in self.runs():
            x = block(x)
        return x


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.model = net

    def forward(self, x: Tensor) -> Tensor:
        return self.model(2 * x - 0.1)


@dataclass(frozen=True)
class Run:
    """The activations of a block, by the plain path."""

    name: str
    prefix: Tensor
    """(n, p, d), in the order of the network."""
    grid: Tensor
    """(n, h, w, d)."""
    weights: Tensor | None = None
    """Weights of attention (n, heads, h w, keys), without the queries of the prefix."""
    keys: Tensor | None = None
    """(keys,) whether a key is in the image."""
    distances: Tensor | None = None
    """(h w, keys of the grid), in pixels."""


@dataclass(frozen=True)
class Drawn:
    seed: int
    module: nn.Module
    net: Net
    under: str
    """The beginning of the names of its blocks."""

    @property
    def size(self) -> tuple[int, int, int]:
        return self.net.size

    def truth(self, images: Tensor) -> list[Run]:
        """The activations of every block that runs, in float64, from images as the network takes them."""
        net = copy.deepcopy(self.net).double()
        prefix, grid = net.tokens(2 * images.double() - 0.1 if self.under else images.double())
        runs = []
        for name, block in net.runs():
            known = {}
            if isinstance(block, Attend):
                normed = (_norm(block.norm, x) for x in (prefix, grid))
                cell = self.size[1] / block.h, self.size[2] / block.w
                inside = block.in_image()
                weights = block.true_weights(*normed)[0]
                keys = inside if weights.shape[-1] == len(inside) else torch.arange(weights.shape[-1]) >= net.p
                known = {"weights": weights[:, :, inside], "keys": keys, "distances": block.true_distances(cell)}
            prefix, grid = block.truth(prefix, grid)
            runs.append(Run(self.under + name, prefix, grid, **known))
        return runs


def drawn(seed: int) -> Drawn:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    net = Net(draw).eval()
    wrapped = draw.random() < 0.3
    return Drawn(seed, Wrapped(net).eval() if wrapped else net, net, "model." if wrapped else "")
