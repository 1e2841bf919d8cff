"""What each entry of a tensor belongs to, carried along with the operations that made it.

Beside every tensor of a traced pass goes a `Label`: an integer for each entry that says which image, which feature
(channel) and which place in the image it belongs to. Operations that only move entries (views, permutations, rolls,
windows, concatenations, gathers) are applied to the labels as they are, so that it does not matter how a network
arranges its tensors. Convolutions, linear maps, products, poolings and means follow the rules below. What an operation
without a rule makes has no label; where it is added to something that has one, it is known again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from repsim.networks.places import BITS, HIDDEN, NOWHERE, REGION, SCATTERED, Places

MASK = 2**BITS - 1
SEVERAL = 15
"""Stands for the number of an image where several are mixed."""
MOST_MEASURED = 2**24
"""Entries of the largest tensor on which an unknown operation is tried out."""


def pack(image: Tensor | int, feature: Tensor | int, place: Tensor | int) -> Tensor:
    """(image, feature, place), each 0 for none, as one integer."""
    return (torch.as_tensor(image) << 2 * BITS) | (torch.as_tensor(feature) << BITS) | torch.as_tensor(place)


def images_in(codes: Tensor) -> Tensor:
    """Number of the image, from 1; 0 where there is none."""
    return codes >> 2 * BITS


def features_in(codes: Tensor) -> Tensor:
    """The numbers of the features that entries belong to."""
    return (codes >> BITS) & MASK


def places_in(codes: Tensor) -> Tensor:
    """The numbers of the places in the image that entries belong to."""
    return codes & MASK


@dataclass(frozen=True, eq=False)
class Label:
    """What the entries of a tensor belong to."""

    codes: Tensor
    """Of the tensor's shape."""
    across: Tensor | None = None
    """Of products of two activations, in which an entry belongs to a row of one and a column of the other: the
    column's."""
    weights: tuple[Any, ...] = ()
    """Where softmax made what it was computed from, if it may be attention weights."""
    fixed: bool = False
    """Whether it is the same for all images: tokens that come from several parameters."""
    pair: Label | None = None
    """Of sums and products, entry by entry, of each row of one activation with each of another: with `across`."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Label:
        """The same change made to all codes."""
        across = None if self.across is None else change(self.across)
        pair = None if self.pair is None else self.pair.each(change)
        return replace(self, codes=change(self.codes), across=across, pair=pair)


def of_pixels(places: Places, n: int, channels: int, height: int, width: int) -> Label:
    """The label of a batch of images: every pixel is a place, every colour a feature."""
    y, x = np.divmod(np.arange(height * width), width)
    ones = np.ones(height * width)
    numbers = torch.from_numpy(places.regions(y + 0.5, x + 0.5, ones, ones)).view(1, 1, height, width)
    image, feature = torch.arange(1, n + 1).view(n, 1, 1, 1), torch.arange(1, channels + 1).view(1, channels, 1, 1)
    return Label(pack(image, feature, numbers))


def varies(values: Tensor, axis: int) -> bool:
    """Whether values differ along an axis; 0 is not known, and differs from nothing."""
    if values.shape[axis] < 2 or values.stride(axis) == 0:
        return False
    return bool(((values != values.amax(axis, keepdim=True)) & (values != 0)).any())


class Rules:
    """How labels go through operations."""

    def __init__(self, places: Places) -> None:
        self.places = places

    # Codes

    def joined(self, a: Tensor, b: Tensor) -> Tensor:
        """Codes of a sum or product, entry by entry; the first operand's feature counts."""
        if a is b or torch.equal(a, b):
            return a
        at = a != b
        x, y = a[at], b[at]
        place_x, place_y = places_in(x), places_in(y)
        place = torch.where(place_x == NOWHERE, place_y, place_x)
        clash = (place_x != place_y) & (place_x != NOWHERE) & (place_y != NOWHERE)
        if clash.any():
            pairs, inverse = torch.unique((place_x[clash] << BITS) | place_y[clash], return_inverse=True)
            joined = self.places.joined((pairs >> BITS).numpy(), (pairs & MASK).numpy())
            place[clash] = torch.from_numpy(joined)[inverse]
        image_x, image_y = images_in(x), images_in(y)
        image = torch.where(image_x == 0, image_y, image_x)
        image = torch.where((image_x != image_y) & (image_x > 0) & (image_y > 0), SEVERAL, image)
        feature = torch.where(features_in(x) == 0, features_in(y), features_in(x))
        result = a.clone(memory_format=torch.contiguous_format)
        result[at] = pack(image, feature, place)
        return result

    def reduced(self, codes: Tensor, axes: Sequence[int], *, first: bool = False) -> Tensor:
        """Codes of a mean over some axes, which are gone then.

        Args:
            first: keep the first feature where several are summed over, which tells heads apart, instead of none.
        """
        axes = sorted(axis % codes.ndim for axis in axes)
        kept = [axis for axis in range(codes.ndim) if axis not in axes]
        rows = codes.permute(*kept, *axes).reshape(*(codes.shape[axis] for axis in kept), -1)
        result = rows[..., 0]
        mixed = (rows != rows[..., :1]).any(-1)
        if not mixed.any():
            return result
        some = rows[mixed]
        image, feature, place = images_in(some), features_in(some), places_in(some)
        known = image.amax(-1)
        several = ((image != known[:, None]) & (image > 0)).any(-1)
        if not first:
            feature = torch.where((feature != feature[:, :1]).any(-1, keepdim=True), 0, feature)
        together = place[:, 0]
        if bool((place != place[:, :1]).any()):
            together = torch.from_numpy(self.places.together(place.numpy()))
        result = result.clone()
        result[mixed] = pack(torch.where(several, SEVERAL, known), feature[:, 0], together)
        return result

    def contracted(self, codes: Tensor, axis: int, size: int) -> Tensor:
        """Codes after a learned map along an axis, from all of it to `size` new entries, at the same axis.

        The new entries are features, unless what is mixed are places alone, and other axes hold the features: then
        they are hidden units, whose place shows later.
        """
        axis %= codes.ndim
        rest = self.reduced(codes, [axis], first=True)
        feature = features_in(rest)
        mixes_features = varies(features_in(codes), axis)
        others = any(varies(feature, other) for other in range(rest.ndim))
        if others and not mixes_features and varies(places_in(codes), axis):
            new = torch.from_numpy(self.places.hidden(size))
            shape = [1] * codes.ndim
            shape[axis] = size
            return pack(images_in(rest), feature, 0).unsqueeze(axis) | new.view(shape)
        new = torch.arange(1, size + 1)
        shape = [1] * codes.ndim
        shape[axis] = size
        if others:  # heads, say, each with a map of its own
            rank = torch.unique(feature, return_inverse=True)[1].view(feature.shape)
            feature = (rank.unsqueeze(axis) * size + new.view(shape)) & MASK
        else:
            feature = new.view(shape)
        return pack(images_in(rest).unsqueeze(axis), feature, places_in(rest).unsqueeze(axis))

    def taps(
        self, codes: Tensor, axis: int, size: int, kernel: int, stride: int, padding: int, dilation: int
    ) -> Tensor:
        """Codes along one axis of what a kernel slides over: those of its central tap, or between the two."""
        start = torch.arange(size) * stride - padding
        length = codes.shape[axis]
        low = (start + dilation * ((kernel - 1) // 2)).clamp(0, length - 1)
        high = (start + dilation * (kernel // 2)).clamp(0, length - 1)
        first = codes.index_select(axis, low)
        if bool((low == high).all()):
            return first
        second = codes.index_select(axis, high)
        return self.reduced(torch.stack([first, second], -1), [-1], first=True)

    def resized(self, codes: Tensor, before: Tensor, scales: dict[int, float]) -> Tensor:
        """The same entries as cells of other sizes.

        Args:
            before: codes from which they were taken.
            scales: axis of `before` -> how much further apart entries along it have become.
        """
        scales = {axis % before.ndim: scale for axis, scale in scales.items() if scale != 1}
        if not scales:
            return codes
        places = self.places
        tall, wide = 1.0, 1.0
        for axis, scale in scales.items():
            a, b = (int(places_in(before.select(axis, i)).reshape(-1)[0]) for i in (0, min(1, before.shape[axis] - 1)))
            if abs(places.row[a] - places.row[b]) > abs(places.column[a] - places.column[b]):
                tall *= scale
            else:
                wide *= scale
        numbers, inverse = torch.unique(places_in(codes), return_inverse=True)
        at = numbers.numpy()
        new, regions = at.copy(), np.isin(places.kind[at], (REGION, SCATTERED))
        some = at[regions]
        height, width = places.height[some] * tall, places.width[some] * wide
        new[regions] = places.regions(places.row[some], places.column[some], height, width)
        return (codes & ~MASK) | torch.from_numpy(new)[inverse].view(codes.shape)

    def between(self, codes: Tensor, axis: int, wanted: np.ndarray) -> Tensor:
        """Codes at positions between those along an axis (0 is the centre of the first), by linear interpolation."""
        length = codes.shape[axis]
        if length == 1:
            return codes.expand(*(len(wanted) if i == axis else s for i, s in enumerate(codes.shape)))
        low = np.clip(np.floor(wanted), 0, length - 2).astype(np.int64)
        share = torch.from_numpy(wanted - low)
        a, b = (codes.index_select(axis, torch.from_numpy(low + i)) for i in (0, 1))
        pairs, inverse = torch.unique(
            torch.stack(
                [places_in(a), places_in(b), _along(torch.arange(len(wanted)), axis, codes.ndim).expand_as(a)], -1
            ).reshape(-1, 3),
            dim=0,
            return_inverse=True,
        )
        x, y, t_index = (pairs[:, i].numpy() for i in range(3))
        places, t = self.places, share.numpy()[t_index]
        regions = np.isin(places.kind[x], (REGION, SCATTERED)) & np.isin(places.kind[y], (REGION, SCATTERED))
        new = np.where(x == y, x, NOWHERE)
        if regions.any():
            x, y, t = x[regions], y[regions], t[regions]
            row, column = (
                coordinate[x] + t * (coordinate[y] - coordinate[x]) for coordinate in (places.row, places.column)
            )
            new[regions] = places.regions(row, column, places.height[x], places.width[x])
        return (a & ~MASK) | torch.from_numpy(new)[inverse].view(a.shape)


def _along(values: Tensor, axis: int, ndim: int) -> Tensor:
    return values.view([-1 if i == axis % ndim else 1 for i in range(ndim)])


@dataclass(frozen=True, eq=False)
class Weights:
    """Where something that may be attention weights was made: by softmax, or by what mixes its heads after it."""

    at: Any
    """Place of the operation, as the tracer names it."""
    label: Label
    shape: tuple[int, ...]
    axis: int
    """Of the keys."""
    mixed: bool = False
    """Whether a learned map mixed the heads afterwards, and made other things than weights of them."""


KEPT = set(
    "native_layer_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
    "cudnn_batch_norm miopen_batch_norm native_group_norm _fused_rms_norm _log_softmax native_dropout dropout "
    "hardswish hardsigmoid hardtanh _prelu_kernel rrelu_with_noise cumsum cumprod _to_copy clone contiguous detach "
    "alias lift_fresh lift _conj positive nan_to_num softplus log_sigmoid_forward celu elu selu mish "
    "_fake_quantize_learnable_per_tensor_affine fake_quantize_per_tensor_affine_cachemask threshold "
    "native_batch_norm_backward".split()
)
"""Operations that leave every entry where it is, by their names in ATen; those tagged pointwise are known besides."""
MOVED = set(
    "_unsafe_view _reshape_alias roll flip rot90 repeat index_select gather index take_along_dim constant_pad_nd "
    "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d pixel_shuffle pixel_unshuffle "
    "native_channel_shuffle channel_shuffle im2col repeat_interleave slice_scatter select_scatter permute_copy "
    "view_copy slice_copy select_copy expand_copy unfold_copy diagonal_copy split_with_sizes_copy cat stack "
    "index_put scatter copy_ copy".split()
)
"""Operations that move entries."""
INDEXED = ("index_select", "gather", "index", "take_along_dim", "repeat_interleave")
"""Those of them whose further tensors say where to."""
REDUCED = set(
    "mean sum amax amin logsumexp var std var_mean std_mean norm linalg_vector_norm prod any all max min nansum "
    "median".split()
)
NEW = set(
    "zeros_like empty_like ones_like full_like rand_like randn_like new_zeros new_empty new_full new_ones "
    "new_empty_strided _local_scalar_dense is_same_size argmax argmin bernoulli".split()
)
"""Operations that take no more than shapes from what they are given, or give no activation."""


PRODUCTS = set("mm addmm bmm baddbmm linear mv dot convolution einsum".split())


class Provenance:
    """The labels of a traced pass.

    Args:
        images: the batch that goes in, (n, c, h, w).
        named: parameters and buffers by name; tokens that stand before the grid are known by these.
    """

    def __init__(self, images: Tensor, named: dict[str, Tensor]) -> None:
        self.places = Places()
        self.rules = Rules(self.places)
        self._labels: Any = WeakTensorKeyDictionary()
        self._sources: Any = WeakTensorKeyDictionary()
        for name, tensor in named.items():
            self._sources[tensor] = (name,)
        self.attentions: list[Weights] = []
        """What turned out to be attention weights: a product took them as a factor."""
        self.products: dict[Any, tuple[Any, tuple[int, ...]]] = {}
        """Place of attention weights -> place and shape of the product of which they are the left factor."""
        self._lost: Any = WeakTensorKeyDictionary()
        """Tensors that depend on the images, but have no label."""
        self.unread: list[Any] = []
        """Where tokens are summed with factors that come from the image, but that are no weights found above."""
        self.unknown: list[tuple[Any, str]] = []
        """Where an operation without a rule took activations, and what it is called."""
        self.by_batch = False
        """Whether activations are rounded by the range that they have in a whole batch, as in dynamic quantisation."""
        self._labels[images] = of_pixels(self.places, *images.shape)

    def label(self, tensor: Tensor | None) -> Label | None:
        return None if tensor is None else self._labels.get(tensor)

    def sources(self, tensor: Tensor) -> tuple[str, ...]:
        """Parameters that a tensor was computed from."""
        return self._sources.get(tensor, ())

    def follow(self, func: Any, args: tuple, kwargs: dict, result: Any, at: Any) -> None:
        """Give the result of an operation its label.

        Args:
            at: the place of the operation in the network, which `attentions` and `unknown` tell.
        """
        given = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        tensors = [x for x in tree_iter(result) if isinstance(x, Tensor)]
        if not any(x.numel() for x in tensors):
            return
        names = tuple(dict.fromkeys(name for x in given for name in self.sources(x)))
        name = func.overloadpacket.__name__
        mutable = func._schema.is_mutable
        base = name[:-1] if mutable and name.endswith("_") else name
        of_images = any(map(self._of_image, given))
        lost = any(x in self._lost for x in given) and base not in NEW
        if lost and not of_images:
            for x in tensors:
                self._lost[x] = True
        if lost and base in PRODUCTS and sum(x in self._lost or self._of_image(x) for x in given) > 1:
            self.unread.append(at)
        if not of_images and not self._of_parameters(base, given, names):
            for x in tensors if names else ():
                self._sources[x] = names
            if mutable and names and given:
                self._sources[given[0]] = names
            return
        if base in NEW:
            return
        try:
            labels = self._by_rule(func, base, args, kwargs, result, at)
        except (RuntimeError, IndexError, ValueError, TypeError, KeyError):
            labels = None
        if labels is None:
            labels = self._measured(func, args, kwargs, result) if not mutable else None
            if labels is None:
                self.unknown.append((at, f"{func.namespace}::{name}"))
                if sum(x in self._lost or self._of_image(x) for x in given) > 1:
                    self.unread.append(at)
                for x in tensors if of_images else ():
                    self._lost[x] = True
                if mutable and given[0] in self._labels and tensors:
                    del self._labels[given[0]]
                return
        for number, (tensor, label) in enumerate(zip(tensors, labels)):
            if label is not None and not of_images:
                label = replace(label, fixed=True)
            if label is None or label.codes.shape != tensor.shape:
                if number == 0:
                    self.unknown.append((at, f"{func.namespace}::{name}"))
                continue
            if names:
                self._sources[tensor] = names
            if mutable and any(tensor is x for x in given):
                self._written(tensor, label)
            else:
                self._labels[tensor] = label

    def _of_image(self, tensor: Tensor) -> bool:
        label = self.label(tensor)
        return label is not None and not label.fixed

    def _of_parameters(self, name: str, tensors: Sequence[Tensor], names: tuple[str, ...]) -> bool:
        """Whether an operation on parameters alone makes a row of tokens of several of them, or goes on with one."""
        if name in ("cat", "stack"):
            return len(names) > 1 or any(map(self.label, tensors))
        return any(map(self.label, tensors)) and name not in PRODUCTS

    def _written(self, tensor: Tensor, label: Label) -> None:
        """What an operation in place made of a tensor is so in what it is a view of, too."""
        before, base = self.label(tensor), tensor._base
        self._labels[tensor] = label
        if base is None or (before is not None and before.codes is label.codes):
            return
        whole = torch.zeros_like(torch.empty_strided(base.size(), base.stride(), dtype=torch.int64))
        if (of_base := self.label(base)) is not None:
            whole.copy_(of_base.codes)
        offset = tensor.storage_offset() - base.storage_offset()
        whole.as_strided(tensor.size(), tensor.stride(), offset).copy_(label.codes)
        self._labels[base] = Label(whole)

    # Which rule

    def _by_rule(self, func: Any, name: str, args: tuple, kwargs: dict, result: Any, at: Any) -> Sequence | None:
        if func.namespace == "quantized" and "linear" in name and name.endswith("dynamic"):
            self.by_batch = True
            label = self._labels[args[0]]
            return [label.each(lambda codes: self.rules.contracted(codes, -1, result.shape[-1]))]
        if func.namespace not in ("aten", "prims"):
            return None
        if name == "as_strided":
            return [self._strided(*args, **kwargs)]
        if name in ("view", "view_copy") and func._overloadname == "dtype":
            return None
        first = self.label(args[0]) if args and isinstance(args[0], Tensor) else None
        if name in ("_softmax", "_safe_softmax", "softmax"):
            if first is None:
                return None
            axis = args[1] % result.ndim
            first = _keys_across(first.pair or first, axis)
            return [replace(first, weights=(Weights(at, first, tuple(result.shape), axis),))]
        if name in KEPT:
            return None if first is None else [replace(first, weights=()) if "norm" in name else first]
        if func.is_view or name in MOVED:
            return self._moved(func, name, args, kwargs)
        if torch.Tag.pointwise in func.tags:
            return [self._pointwise(args, kwargs, result, at)]
        rule = getattr(self, f"_{name.lstrip('_')}", None)
        if rule is not None:
            return [rule(**_bound(func, args, kwargs), result=result, at=at)]
        if name.startswith(("upsample", "_upsample")):
            return [self._upsampled(first, result)]
        if name in REDUCED:
            return self._reduction(_bound(func, args, kwargs), result)
        return None

    def _moved(self, func: Any, name: str, args: tuple, kwargs: dict) -> list[Label | None]:
        if name in ("copy_", "copy"):
            target, source = args[:2]
            label = self.label(source)
            if label is None:
                return [Label(self._constant(source).expand(target.shape))]
            return [label.each(lambda codes: codes.expand(target.shape))]
        labelled = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor) and x in self._labels]
        if name in INDEXED:
            labelled = labelled[:1] if labelled and labelled[0] is args[0] else []
            if not labelled:
                return [None]
        pair = any(self._labels[x].across is not None for x in labelled)
        own = func if name not in ("view", "_unsafe_view", "_reshape_alias") else None

        def run(field_name: str, part_of: Callable[[Label], Label | None] = lambda label: label) -> list[Tensor]:
            def codes(x: Any) -> Any:
                if not isinstance(x, Tensor):
                    return x
                if (label := self.label(x)) is not None and (name not in INDEXED or x is args[0]):
                    codes_of_label = getattr(part_of(label), field_name)
                    return label.codes if codes_of_label is None else codes_of_label
                if name in INDEXED or x.dtype in (torch.bool, torch.int64, torch.int32):
                    return x.cpu()
                return self._constant(x)

            if own is None:
                size = args[1]
                return [codes(args[0]).reshape(size)]
            if name == "constant_pad_nd":
                return [func(codes(args[0]), args[1], 0)]
            with_codes = [tree_map(codes, each) for each in (args, kwargs)]
            try:
                moved = func(*with_codes[0], **with_codes[1])
            except (NotImplementedError, RuntimeError):  # for whole numbers it may not be there; these fit into float64
                wide = [tree_map(lambda x: x.double() if isinstance(x, Tensor) else x, each) for each in with_codes]
                moved = func(*wide[0], **wide[1]).long()
            return [moved] if isinstance(moved, Tensor) else list(moved)

        first = run("codes")
        second = run("across") if pair else [None] * len(first)
        weights = tuple(dict.fromkeys(each for x in labelled for each in self._labels[x].weights))
        if len(labelled) != 1 or self._labels[labelled[0]].pair is None:
            return [Label(a, b, weights) for a, b in zip(first, second)]
        rows, columns = (run(field_name, lambda label: label.pair) for field_name in ("codes", "across"))
        return [Label(a, b, weights, pair=Label(*pair)) for a, b, pair in zip(first, second, zip(rows, columns))]

    def _strided(
        self, x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: Any = None
    ) -> Label | None:
        """Read off memory as it lies: the codes are laid out like the tensor first."""
        label = self.label(x)
        if label is None or tuple(size) == tuple(x.shape):  # other strides of axes of size one
            return label
        start = 0 if storage_offset is None else storage_offset - x.storage_offset()
        if start < 0:
            return None

        def laid_out(codes: Tensor) -> Tensor:
            same = torch.zeros_like(torch.empty_strided(x.size(), x.stride(), dtype=torch.int64)).copy_(codes)
            return same.as_strided(size, stride, start).clone()

        return label.each(laid_out)

    def _constant(self, tensor: Tensor) -> Tensor:
        """Codes of what depends on no image: a token that comes from parameters, or from none."""
        return pack(0, 0, self.places.token(self.sources(tensor))).expand(tensor.shape)

    # Rules

    def _pointwise(self, args: tuple, kwargs: dict, result: Tensor, at: Any) -> Label | None:
        labels = [self.label(x) for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        labels = [label for label in labels if label is not None]
        labels = [label for label in labels if not label.fixed] or labels
        pair = self._paired(labels, result, at)
        if len(labels) == 1 and labels[0].codes.shape == result.shape:
            whole = labels[0]
        else:
            codes, across = labels[0].codes.expand(result.shape), labels[0].across
            for other in labels[1:]:
                codes = self.rules.joined(codes, other.codes.expand(result.shape))
                if across is None:
                    across = other.across
                elif other.across is not None:
                    across = self.rules.joined(across.expand(result.shape), other.across.expand(result.shape))
            whole = Label(codes, None if across is None else across.expand(result.shape), pair=pair)
        if not any(label.weights for label in labels):
            return whole
        if _sums_to_one(result, keys_axis(whole)):  # weights that were changed are read where they were changed last
            axis = keys_axis(whole) % result.ndim
            return replace(whole, weights=(Weights(at, whole, tuple(result.shape), axis),))
        if not all(label.weights for label in labels):  # weights times something else, entry by entry
            self.unread += [at for label in labels for each in label.weights if _over_places(each.label, each.axis)]
            return replace(whole, weights=())
        return replace(whole, weights=tuple(dict.fromkeys(each for label in labels for each in label.weights)))

    def _paired(self, labels: Sequence[Label], result: Tensor, at: Any) -> Label | None:
        """The rows and columns of an operation, entry by entry, on each place of one operand and each of another."""
        before = next((label.pair for label in labels if label.pair is not None), None)
        if len(labels) != 2:
            return before
        a, b = (label.codes[(None,) * (result.ndim - label.codes.ndim)] for label in labels)
        for label, own, other in ((labels[0], a, b), (labels[1], b, a)):
            pairs = label.pair is not None or label.across is not None
            if pairs and _alone(places_in(own), other) is not None and _alone(features_in(other), own) is not None:
                self.unread.append(at)  # what is at one of two places, times a factor for both
                return None
        if _alone(places_in(a), b) is None or _alone(places_in(b), a) is None:
            return before
        return Label(a.expand(result.shape), b.expand(result.shape))

    def _reduction(self, arguments: dict[str, Any], result: Any) -> list[Label | None]:
        label = self._labels[arguments["self_"]]
        dims = arguments.get("dim")
        tensors = [x for x in tree_iter(result) if isinstance(x, Tensor)]
        ndim = label.codes.ndim
        dims = list(range(ndim)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)

        def without(codes: Tensor, first: bool = False) -> Tensor:
            codes = self.rules.reduced(codes, dims, first=first)
            for axis in sorted(d % ndim for d in dims) if arguments.get("keepdim") else ():
                codes = codes.unsqueeze(axis)
            return codes

        pair = label.pair
        if pair is not None:
            apart = not any(_over_places(pair, axis) for axis in dims)
            pair = pair.each(lambda codes: without(codes, first=True)) if apart else None
        return [Label(without(label.codes), pair=pair) for _ in tensors]

    def _mm(self, self_: Tensor, mat2: Tensor, result: Tensor, at: Any, **options: Any) -> Label | None:
        return self._product(self_, mat2, result, at)

    def _addmm(self, mat1: Tensor, mat2: Tensor, result: Tensor, at: Any, **options: Any) -> Label | None:
        return self._product(mat1, mat2, result, at)

    _addmm_activation = _addmm

    def _bmm(self, self_: Tensor, mat2: Tensor, result: Tensor, at: Any, **options: Any) -> Label | None:
        return self._product(self_, mat2, result, at)

    def _baddbmm(self, batch1: Tensor, batch2: Tensor, result: Tensor, at: Any, **options: Any) -> Label | None:
        return self._product(batch1, batch2, result, at)

    def _linear(self, input: Tensor, weight: Tensor, result: Tensor, **options: Any) -> Label | None:
        label = self.label(input)
        return None if label is None else label.each(lambda c: self.rules.contracted(c, -1, result.shape[-1]))

    def _mv(self, self_: Tensor, vec: Tensor, **options: Any) -> Label | None:
        label = self.label(self_)
        return None if label is None else label.each(lambda codes: self.rules.reduced(codes, [-1], first=True))

    def _product(self, a: Tensor, b: Tensor, result: Tensor, at: Any) -> Label | None:
        """(..., i, k) @ (..., k, j)."""
        of_a, of_b = (None if label is None or label.fixed else label for label in map(self.label, (a, b)))
        if of_a is None or of_b is None:  # with weights of the network
            label, axis, size = (of_b, -2, result.shape[-2]) if of_a is None else (of_a, -1, result.shape[-1])
            if label is None:
                return None
            contracted = label.each(lambda codes: self.rules.contracted(codes, axis, size))
            heads = varies(features_in(label.codes), axis) and not _over_places(label, axis)
            if label.across is None:
                heads &= any(_over_places(weights_.label, weights_.axis) for weights_ in label.weights)
            if not heads and keys_axis(label) % label.codes.ndim == axis % label.codes.ndim:
                return replace(contracted, weights=())
            return self._mixed(label, contracted, result, at)
        attends = False
        for label, axis in ((of_a, -1), (of_b, -2)):
            if label.weights and self._over_keys(label, axis, (a, b)[axis == -2]):
                self.attentions += [weights_ for weights_ in label.weights if weights_ not in self.attentions]
                attends = True
                if label is of_a:
                    self.products.update({weights_.at: (at, tuple(result.shape)) for weights_ in label.weights})
        if not attends and (_over_places(of_a, -1) or _over_places(of_b, -2)):
            self.unread.append(at)
        rows, columns = self._outer(of_a, -1), self._outer(of_b, -2)
        return self._resolved(rows.unsqueeze(-1), columns.unsqueeze(-2), result.shape)

    def _mixed(self, label: Label, mixed_label: Label, result: Tensor, at: Any) -> Label:
        """Attention weights are, after their heads were mixed, what came of it, if these are weights still.

        Talking heads mix with factors of any sign and sum: then the weights are those that were mixed.
        """
        if not label.weights:
            return replace(mixed_label, weights=())
        axis = keys_axis(mixed_label) % result.ndim
        if _is_laid_out(mixed_label) and _sums_to_one(result, axis) and bool((result >= 0).all()):
            return replace(mixed_label, weights=(Weights(at, mixed_label, tuple(result.shape), axis),))
        return replace(mixed_label, weights=tuple(replace(weights_, mixed=True) for weights_ in label.weights))

    def _over_keys(self, label: Label, axis: int, tensor: Tensor) -> bool:
        """Whether a product sums over the keys of attention weights."""
        if label.across is not None:
            return keys_axis(label) % tensor.ndim == axis % tensor.ndim
        return _sums_to_one(tensor, axis) or (
            all(weights_.mixed for weights_ in label.weights) and _over_places(label, axis)
        )

    def _outer(self, label: Label, axis: int) -> Tensor:
        """What stays of a factor summed over an axis: of a row and a column, the one along the other axis."""
        codes = label.codes
        if label.across is not None and varies(places_in(codes), axis) and not varies(places_in(label.across), axis):
            codes = label.across
        return self.rules.reduced(codes, [axis], first=True)

    def _resolved(self, rows: Tensor, columns: Tensor, shape: torch.Size) -> Label:
        """One label where rows or columns alone have places; else those of both."""
        place_down, place_across = varies(places_in(rows), -2), varies(places_in(columns), -1)
        if place_down and place_across:
            return Label(rows.expand(shape), columns.expand(shape))
        if place_across and shape[-2] == 1 and bool((places_in(rows) != NOWHERE).all()):  # a single query
            return Label(rows.expand(shape), columns.expand(shape))
        image = torch.where(images_in(rows) == 0, images_in(columns), images_in(rows))
        placed = columns if place_across and not place_down else rows
        place = places_in(placed)
        padding = (images_in(placed) == 0) & (place == NOWHERE) & bool((images_in(placed) > 0).any())
        image = torch.where(padding, 0, image)  # it stays padding, whatever it attends to
        down, across = varies(features_in(rows), -2), varies(features_in(columns), -1)
        if down and across:  # channels with channels: no places, but rows and columns all the same
            return Label(pack(images_in(rows), features_in(rows), place).expand(shape), columns.expand(shape))
        feature = features_in(columns) if across else features_in(rows)
        return Label(pack(image, feature, place).expand(shape))

    def attention(self, query: Tensor, key: Tensor, value: Tensor, result: Tensor, at: Any) -> None:
        """Fused attention, (..., q, d) with (..., k, d) and (..., k, v)."""
        of_q, of_k, of_v = self.label(query), self.label(key), self.label(value)
        if of_q is None and of_k is None and of_v is None:
            return
        nothing = torch.zeros(1, dtype=torch.int64)
        rows = nothing.expand(query.shape[:-1]) if of_q is None else self._outer(of_q, -1)
        columns = nothing.expand(key.shape[:-1]) if of_k is None else self._outer(of_k, -1)
        lead = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2]) if query.ndim == key.ndim else query.shape[:-2]
        shape = torch.Size([*query.shape[:-2], query.shape[-2], key.shape[-2]])
        if columns.shape[:-1] != query.shape[:-2] and columns.ndim >= 2:  # groups of queries share keys
            times = query.shape[-3] // columns.shape[-2]
            columns = columns.repeat_interleave(times, dim=-2)
        label = Label(rows.unsqueeze(-1).expand(shape), columns.unsqueeze(-2).expand(shape))
        self.attentions.append(Weights(at, label, tuple(shape), len(shape) - 1))
        self.products[at] = at, tuple(result.shape)
        if of_v is not None and lead == value.shape[:-2]:
            values = self._outer(of_v, -2)
            self._labels[result] = self._resolved(rows.unsqueeze(-1), values.unsqueeze(-2), result.shape)
        elif of_q is not None:
            self._labels[result] = Label(self.rules.contracted(of_q.codes, -1, result.shape[-1]))

    def _convolution(self, input: Tensor, weight: Tensor, result: Tensor, at: Any, **options: Any) -> Label | None:
        label = self.label(input)
        if label is None:
            return None
        if label.across is not None:  # of attention weights, whose heads it mixes
            plain = options["groups"] == 1 and input.shape[2:] == result.shape[2:] and set(weight.shape[2:]) == {1}
            return (
                self._mixed(label, label.each(lambda c: self.rules.contracted(c, 1, result.shape[1])), result, at)
                if plain
                else None
            )
        codes = self.rules.contracted(label.codes, 1, 1) if options["groups"] == 1 else self._depthwise(label.codes)
        before = codes
        spatial = range(2, input.ndim)
        every = [_each(options[key], len(spatial)) for key in ("stride", "padding", "dilation")]
        for axis, kernel, stride, padding, dilation in zip(spatial, weight.shape[2:], *every):
            size = result.shape[axis]
            if options["transposed"]:
                wanted = (np.arange(size) + padding - dilation * (kernel - 1) / 2) / stride
                codes = self.rules.between(codes, axis, wanted)
            else:
                codes = self.rules.taps(codes, axis, size, kernel, stride, padding, dilation)
        signs = {axis: 1 / s if options["transposed"] else s for axis, s in zip(spatial, every[0])}
        codes = self.rules.resized(codes, before, signs)
        if _is_hidden(self.places, codes):
            codes = self.rules.contracted(label.codes, 1, result.shape[1])
            return Label(codes) if codes.shape == result.shape else None
        features = torch.arange(1, result.shape[1] + 1).view(1, -1, *[1] * len(spatial))
        if codes.shape[1] == 1:
            kept = features_in(codes) if any(varies(features_in(codes), axis) for axis in spatial) else features
            codes = pack(images_in(codes), kept, places_in(codes)).expand(result.shape)
        elif codes.shape[1] != result.shape[1]:
            codes = codes.repeat_interleave(result.shape[1] // codes.shape[1], 1)
            codes = pack(images_in(codes), features, places_in(codes))
        return Label(codes)

    def _depthwise(self, codes: Tensor) -> Tensor:
        """A convolution of groups of channels: places alone matter where all channels share them."""
        if not varies(places_in(codes), 1):
            return pack(images_in(codes[:, :1]), 0, places_in(codes[:, :1]))
        return codes

    def _max_pool2d_with_indices(self, self_: Tensor, result: Any, **options: Any) -> Label | None:
        return self._pooled(self_, result[0], **options)

    def _avg_pool2d(self, self_: Tensor, result: Tensor, **options: Any) -> Label | None:
        return self._pooled(self_, result, **options)

    def _pooled(self, x: Tensor, result: Tensor, kernel_size: Any, stride: Any, padding: Any, **options: Any) -> Label:
        codes = self._labels[x].codes
        axes = (x.ndim - 2, x.ndim - 1)
        kernel, padding = _each(kernel_size, 2), _each(padding, 2)
        stride = _each(stride, 2) if stride else kernel
        before = codes
        for axis, k, s, p in zip(axes, kernel, stride, padding):
            size = result.shape[axis]
            if k == s and p == 0 and size * k <= codes.shape[axis]:
                codes = codes.narrow(axis, 0, size * k).unflatten(axis, (size, k))
                codes = self.rules.reduced(codes, [axis + 1], first=True)
            else:
                codes = self.rules.taps(codes, axis, size, k, s, p, 1)
                codes = self.rules.resized(codes, before, {axis: s})
        return Label(codes)

    def _adaptive_avg_pool2d(self, self_: Tensor, result: Any, **options: Any) -> Label | None:
        pooled = result if isinstance(result, Tensor) else result[0]
        codes = self._labels[self_].codes
        for axis in (codes.ndim - 2, codes.ndim - 1):
            before, size = codes.shape[axis], pooled.shape[axis]
            starts = [i * before // size for i in range(size)]
            ends = [-(-(i + 1) * before // size) for i in range(size)]
            parts = [self.rules.reduced(codes.narrow(axis, a, b - a), [axis]) for a, b in zip(starts, ends)]
            codes = torch.stack(parts, axis)
        feature = features_in(self._labels[self_].codes)[..., :1, :1]
        return Label(pack(images_in(codes), feature, places_in(codes)))

    _adaptive_max_pool2d = _adaptive_avg_pool2d

    def _upsampled(self, label: Label | None, result: Tensor) -> Label | None:
        if label is None:
            return None
        codes = label.codes
        for axis in range(2, result.ndim):
            before, size = codes.shape[axis], result.shape[axis]
            if size != before:
                wanted = (np.arange(size) + 0.5) * before / size - 0.5
                codes = self.rules.resized(self.rules.between(codes, axis, wanted), codes, {axis: before / size})
        return Label(codes)

    # Without a rule

    def _measured(self, func: Any, args: tuple, kwargs: dict, result: Any) -> list[Label] | None:
        """The label of what an operation makes of one activation, if it is seen to leave every entry where it is.

        That is tried out: of each axis along which labels differ one index is changed, and nothing else may change.
        """
        labelled = [x for x in args if isinstance(x, Tensor) and x in self._labels]
        output = result if isinstance(result, Tensor) else None
        if (
            len(labelled) != 1
            or output is None
            or output.shape != labelled[0].shape
            or not labelled[0].is_floating_point()
        ):
            return None
        if output.numel() > MOST_MEASURED:
            return None
        x, label = labelled[0], self._labels[labelled[0]]
        for axis in range(x.ndim):
            if not varies(label.codes, axis) or not _matters(label.codes, axis):
                continue
            for index in {0, x.shape[axis] // 2, x.shape[axis] - 1}:
                changed = x.clone()
                changed.select(axis, index).add_(1.0).mul_(1.7)
                with torch.no_grad():
                    other = func(*(changed if a is x else a for a in args), **kwargs)
                differs = (other != output).movedim(axis, 0).flatten(1).any(1)
                differs[index] = False
                if differs.any():
                    return None
        return [label]


def keys_axis(label: Label) -> int:
    """The axis of attention weights along which the keys are: where places of columns differ, else the last.

    A single key has no other to differ from; it is on the axis along which the queries are not.
    """
    if label.across is not None:
        axes = range(-1, -label.across.ndim - 1, -1)
        down, across = ([varies(places_in(codes), axis) for axis in axes] for codes in (label.codes, label.across))
        for axis, rows, columns in zip(axes, down, across):
            if columns and not rows:
                return axis
        if not any(across) and down[:2] == [True, False]:
            return -2
    return -1


def _is_laid_out(label: Label) -> bool:
    """Whether queries and keys are on the last two axes, and neither images nor heads."""
    if label.across is None or label.codes.ndim < 3:
        return False
    others = [part(codes) for part in (images_in, features_in) for codes in (label.codes, label.across)]
    return not any(varies(values, axis) for values in others for axis in (-1, -2))


def _keys_across(label: Label, axis: int) -> Label:
    """The same of a product of which the rows are what softmax runs over, not the columns."""
    if label.across is None or varies(places_in(label.across), axis):
        return label
    single = label.codes.shape[axis] == 1 and keys_axis(label) % label.codes.ndim != axis
    if not single and not varies(places_in(label.codes), axis):
        return label
    return replace(label, codes=label.across, across=label.codes)


def _alone(values: Tensor, other: Tensor) -> int | None:
    """An axis along which values differ and that is of size 1 in another tensor, of as many axes."""
    return next((axis for axis in range(values.ndim) if other.shape[axis] == 1 and varies(values, axis)), None)


def _over_places(label: Label, axis: int) -> bool:
    """Whether an axis is one of places."""
    across = label.across is not None and varies(places_in(label.across), axis)
    return across or varies(places_in(label.codes), axis)


def _sums_to_one(tensor: Tensor, axis: int) -> bool:
    if tensor.is_meta or not tensor.is_floating_point():
        return False
    return bool((tensor.detach().double().sum(axis) - 1).abs().max() < 1e-2)


def _matters(codes: Tensor, axis: int) -> bool:
    return varies(places_in(codes), axis) or varies(images_in(codes), axis)


def _is_hidden(places: Places, codes: Tensor) -> bool:
    return bool((places.kind[places_in(codes).reshape(-1)[:1].numpy()] == HIDDEN).any())


def _each(value: Any, count: int) -> list[int]:
    value = [value] if isinstance(value, int) else list(value)
    return value * count if len(value) == 1 else value


def _bound(func: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Arguments of an operation by name; `self` is called `self_`."""
    known = func._schema.arguments
    values = {a.name: a.default_value for a in known if a.has_default_value()}
    values |= {a.name: value for a, value in zip(known, args)} | kwargs
    if "self" in values:
        values["self_"] = values.pop("self")
    return values
