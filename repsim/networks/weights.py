"""Weights for a network: which of a file's sets of tensors fits it, and loading that one.

A file may hold one state dict, or several under keys (raw and averaged weights, student and teacher), each perhaps with
a prefix before all its names. What is taken fits the network exactly. Where several sets fit, the usual one is taken,
and the user is told; where none is the usual one, the user is asked.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX as EXTRA_STATE
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from repsim.errors import RepsimError, UsageError, first_line
from repsim.networks.checkpoints import (
    WRAPPERS,
    few,
    holds,
    index_of,
    joined,
    listed,
    read,
    sets_in,
    what_it_is,
    without_wrappers,
)

USUAL = ("state_dict_ema", "model_ema", "state_dict", "model")
"""timm's keys for sets of weights, in timm's order: averaged weights come first."""
COUNTER = "num_batches_tracked"
"""BatchNorm's counter, which old files do not have; nothing uses it in evaluation."""
AT_THE_TOP = "."
"""The key for the set of weights that a file holds under no key, beside sets with keys."""
TORN = "one tensor in the network and two in the file"


@dataclass(frozen=True)
class Taken:
    """Which of a file's weights a network was given."""

    file: str
    key: str = ""
    """Where they are in the file, as `weights_key` takes it; empty in a file that is one state dict."""
    keys: tuple[str, ...] = ()
    """The keys of all sets that fit, where there are several."""
    prefix: str = ""
    """The prefix that was taken off every name."""
    wrappers: tuple[str, ...] = ()
    """The words that were taken out of names, at any place."""
    left_out: tuple[str, ...] = ()
    """Names of tensors in the same set that do not have the prefix."""
    misfits: tuple[str, ...] = ()
    """Other sets of weights of this kind, which do not fit the network."""
    asked: bool = False
    """Whether the user named these weights."""

    def record(self) -> dict[str, Any]:
        """The entry of `run.json`; empty for a file that is one state dict with the network's own names."""
        entries = {
            "weights_key": self.key,
            "weights_keys": list(self.keys),
            "weights_prefix": self.prefix,
            "weights_wrappers": list(self.wrappers),
            "weights_left_out": len(self.left_out),
        }
        return {name: value for name, value in entries.items() if value}

    def notices(self) -> Iterator[str]:
        """Sentences for the user on the choice of weights."""
        if self.keys:
            advice = ", as asked for" if self.asked else "; --weights-key chooses"
            yield f"{self.file} holds {_said(self.keys)}; {_said([self.key])} was taken{advice}"
        elif self.left_out and not self.asked:
            yield (
                f"{self.file}: only tensors under {self.prefix.rstrip('.')} were taken, and {len(self.left_out)} "
                f"beside them were not ({few(self.left_out)})"
            )
        if self.misfits and not self.asked:
            yield f"{self.file} also holds {listed(self.misfits)}, which cannot be taken: it does not fit the network"


def load_file(module: nn.Module, file: Path, name: str, key: str | None = None) -> Taken:
    """Load the weights in a file into a module, strictly.

    Args:
        file: safetensors; what `torch.save` made (read with `weights_only=True`); the index of several files; or a
            ViT's original `.npz`.
        name: of the network, in errors.
        key: which set of weights; None: the only one that fits, or the usual one of several.

    Raises:
        UsageError: the file has no such key.
        RepsimError: the file cannot be read, nothing in it fits, or several sets fit and none is the usual one.
    """
    own: Any = getattr(module, "load_pretrained", None)
    if file.suffix == ".npz" and own is not None:
        if key is not None:
            raise UsageError(f"{file} holds one set of weights; leave the weights key {key!r} out")
        try:
            own(str(file))
        except Exception as error:
            raise RepsimError(f"{file} does not fit {name}: {first_line(error)}") from None
        return Taken(str(file))
    checkpoint = read(file)
    sets = list(sets_in(checkpoint))
    if not sets:
        raise RepsimError(f"{file} does not hold a state dict (tensors by name): {what_it_is(checkpoint)}")
    needed = Needed.of(module)
    tried = _tried(needed, sets)
    chosen = tried if key is None else _under(key, tried, checkpoint, file)
    fits = [fit for fit in chosen if fit.fits]
    if not fits:
        raise _misfit(chosen, file, name)
    fit = _usual(fits, file, name, key)
    _load(module, fit, needed, file, name)
    keys_that_fit = dict.fromkeys(fit.key or AT_THE_TOP for fit in tried if fit.fits)
    fitting = {fit.path for fit in tried if fit.fits}
    like = {one.path for one in tried if one.path not in fitting and 2 * len(one.names) > len(needed.state)}
    return Taken(
        str(file),
        fit.key or (AT_THE_TOP if len(keys_that_fit) > 1 else ""),
        tuple(keys_that_fit) if len(keys_that_fit) > 1 else (),
        fit.prefix,
        tuple(w for w in WRAPPERS if any(w in name and w not in own for own, name in fit.names.items())),
        fit.outside,
        tuple(sorted(like - {""})),
        key is not None and len({one.key for one in fits}) == 1,
    )


def _load(module: nn.Module, fit: Fit, needed: Needed, file: Path, name: str) -> None:
    state: Any = OrderedDict((own, fit.values[there]) for own, there in fit.names.items())
    state._metadata = getattr(needed.state, "_metadata", OrderedDict())  # its names are those of this version
    try:
        module.load_state_dict(state, strict=False)  # what must be there has been looked for
    except Exception as error:
        lines = [line.strip() for line in str(error).strip().splitlines()]
        raise RepsimError(
            f"{file} cannot be loaded into {name}: {lines[1] if lines[1:] else first_line(error)}"
        ) from None


# Fitting


@dataclass(frozen=True)
class Fit:
    """A set of weights in a file, read with a prefix, compared with the state of a network."""

    path: str
    """Key of the set in the file."""
    prefix: str
    names: dict[str, str]
    """The network's name of each value -> its name in the set."""
    values: dict[str, Any]
    """The set."""
    outside: tuple[str, ...]
    """Tensors whose names do not begin with the prefix."""
    faults: dict[str, list[str]]
    """Names that do not fit, by kind of fault."""
    alike: int
    """How many names are there, with the network's shapes."""
    classes: int | None = None
    """Classes in the file's head, where the head does not fit."""

    @property
    def fits(self) -> bool:
        return not any(self.faults.values())

    @property
    def key(self) -> str:
        """The name that a user gives for it."""
        return joined(self.path, self.prefix.rstrip(".")) if self.outside else self.path

    def equals(self, other: Fit) -> bool:
        """Whether two sets that fit hold the same values."""
        if self.names.keys() != other.names.keys():
            return False
        pairs = ((self.values[there], other.values[other.names[own]]) for own, there in self.names.items())
        return all(
            isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
            for a, b in pairs
        )


@dataclass(frozen=True)
class Needed:
    """The state of a network, and which of its tensors share memory."""

    state: dict[str, Any]
    sharing: dict[str, list[str]] = field(default_factory=dict)
    """Name of a tensor -> names of further tensors in its memory."""

    @classmethod
    def of(cls, module: nn.Module) -> Needed:
        state = module.state_dict(keep_vars=True)
        places: dict[tuple, list[str]] = {}
        for key, value in state.items():
            place = _memory(value)
            if place is not None:
                places.setdefault(place, []).append(key)
        groups = [keys for keys in places.values() if len(keys) > 1]
        return cls(state, {key: [other for other in keys if other != key] for keys in groups for key in keys})

    def without(self, key: str, there: dict[str, str]) -> bool:
        """Whether a name need not be in a file: a counter, or what lies in the memory of a tensor that is there."""
        shared = (self.state[other] for other in self.sharing.get(key, ()) if other in there)
        return key.split(".")[-1] == COUNTER or any(_covers(other, self.state[key]) for other in shared)

    def torn(self, names: dict[str, str], values: dict[str, Any]) -> list[str]:
        """Names that are one tensor in the network, and that a file has different values for."""
        pairs = [(a, b) for a in names for b in self.sharing.get(a, ()) if a < b and b in names]
        same = [(a, b) for a, b in pairs if _view(self.state[a]) == _view(self.state[b])]
        return [f"{a} and {b}" for a, b in same if not torch.equal(values[names[a]], values[names[b]])]


def _memory(value: Any) -> tuple[Any, ...] | None:
    """The memory of a tensor's values; None for a tensor without plain memory."""
    if not isinstance(value, Tensor) or is_lazy(value) or value.layout != torch.strided or not value.numel():
        return None
    try:
        start = value.untyped_storage().data_ptr()
    except RuntimeError:  # a tensor made of others
        return None
    return (value.device, start) if start else None


def _view(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _covers(one: Tensor, other: Tensor) -> bool:
    """Whether all values of the second tensor, in the same memory, are values of the first."""
    return _view(one) == _view(other) or one.numel() * one.element_size() == one.untyped_storage().nbytes()


def _tried(needed: Needed, sets: Sequence[tuple[str, dict[str, Any]]]) -> list[Fit]:
    """Every set against the network, with every prefix under which its names are the network's."""
    tried: list[Fit] = []
    for bare in (str, without_wrappers):  # names as they are, where these fit
        own = {bare(key): key for key in needed.state}
        tried = []
        for path, values in sets:
            names = {bare(key): key for key in values}
            fits = {prefix: _fit(needed, own, path, values, names, prefix) for prefix in _prefixes(own, names)}
            within = tuple(prefix for prefix, fit in fits.items() if prefix and fit.fits)
            if within:  # what lies beside whole sets under prefixes may be a whole set itself
                rest = {key: there for key, there in names.items() if not key.startswith(within)}
                fits[""] = _fit(needed, own, path, values, rest, "")
            tried += fits.values()
        if any(fit.fits for fit in tried):
            break
    return tried


def _prefixes(own: dict[str, str], names: dict[str, str]) -> list[str]:
    """Prefixes of the network's names in a set; the empty prefix is always among them."""
    counts = Counter({"": 0})
    for key in names:
        parts = key.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in own:
                counts["".join(f"{part}." for part in parts[:i])] += 1
    most = max(counts.values())
    return [prefix for prefix, count in counts.items() if not prefix or 2 * count >= most]


def _fit(
    needed: Needed, own: dict[str, str], path: str, values: dict[str, Any], names: dict[str, str], prefix: str
) -> Fit:
    """Differences between a set of weights, without a prefix of its names, and the state of a network.

    Args:
        own: the network's names, as they are compared -> as they are.
        path: of the set in the file.
        values: the set.
        names: its names, as they are compared -> as they are.
    """
    there = {own[key]: names[prefix + key] for key in own if prefix + key in names}
    tensors = {key: name for key, name in names.items() if isinstance(values[name], Tensor)}
    over = [key[len(prefix) :] for key in tensors if key.startswith(prefix) and key[len(prefix) :] not in own]
    compared = {key: _difference(key, needed.state[key], values[name]) for key, name in there.items()}
    faults = {
        "missing": [key for key in needed.state if key not in there and not needed.without(key, there)],
        "left over": [key for key in over if not (key.endswith(COUNTER) and _of_a_norm(key, own))],
        **{kind: [f"{key} {d[1]}" for key, d in compared.items() if d and d[0] == kind] for kind in KINDS},
    }
    if not any(faults.values()):
        faults[TORN] = needed.torn(there, values)
    heads = [key for key, d in compared.items() if d and d[0] == SHAPE and needed.state[key].ndim == 2]
    heads = [key for key in heads if needed.state[key].shape[1:] == values[there[key]].shape[1:]]
    classes = len(values[there[heads[0]]]) if heads else None
    outside = tuple(name for key, name in tensors.items() if not key.startswith(prefix))
    return Fit(path, prefix, there, values, outside, faults, list(compared.values()).count(None), classes)


SHAPE, TYPE = KINDS = ("of another shape", "of another type")


def _difference(key: str, needed: Any, value: Any) -> tuple[str, str] | None:
    """The fault of a value in a file for a tensor of the network: its kind, and the value that was received."""
    if not isinstance(needed, Tensor):  # extra state and the like
        return None
    if not isinstance(value, Tensor):
        return TYPE, f"{type(value).__name__} instead of a tensor"
    if is_lazy(value) or value.is_meta:
        return TYPE, "without values"
    if not is_lazy(needed) and needed.shape != value.shape:
        return SHAPE, f"{tuple(value.shape)} instead of {tuple(needed.shape)}"
    if not _can_become(value, needed, key):
        return TYPE, f"{value.dtype} instead of {needed.dtype}".replace("torch.", "")
    return None


def _can_become(value: Tensor, needed: Tensor, key: str) -> bool:
    """Whether a value of a file means the same as one of the network's type, but for rounding.

    Numbers of eight bits are weights only together with a scale.
    """
    if value.dtype == needed.dtype or key.endswith(COUNTER):
        return True
    if value.is_quantized or needed.is_quantized or (value.is_complex() and not needed.is_complex()):
        return False
    if value.is_floating_point() and not (needed.is_floating_point() or needed.is_complex()):
        return bool((value.double() == value.double().round()).all())
    return not (needed.is_floating_point() and value.dtype in (torch.int8, torch.uint8))


def _of_a_norm(key: str, own: dict[str, str]) -> bool:
    return f"{key.removesuffix(COUNTER)}running_mean" in own


# Choosing


def _under(key: str, tried: list[Fit], checkpoint: Any, file: Path) -> list[Fit]:
    """The weights that a key names in a file: a set, all sets below it, or the part of a set with a prefix."""
    if key == AT_THE_TOP:
        return [fit for fit in tried if not fit.path and not fit.prefix] or [fit for fit in tried if not fit.path]
    chosen = [fit for fit in tried if fit.key == key] or [
        fit for fit in tried if f"{joined(fit.path, fit.prefix)}.".startswith(f"{key}.") or fit.path == key
    ]
    if chosen:
        return chosen
    known = dict.fromkeys(fit.key for fit in tried if fit.key and (fit.fits or fit.key == fit.path))
    fault = "are no weights of a network under" if holds(checkpoint, key) else "is no weights key"
    advice = f"; it has {listed(known)}" if known else ", which is one state dict; leave the key out"
    raise UsageError(f"there {fault} {key!r} in {file}{advice}")


def _usual(fits: list[Fit], file: Path, name: str, key: str | None) -> Fit:
    """The default among the sets that fit."""
    named = {fit.key or AT_THE_TOP: fit for fit in fits}
    if len(named) == 1 or key in named:
        return named.get(key or "") or fits[0]
    usual = [at for at in USUAL if at in named]
    if usual:
        return named[usual[0]]
    averaged = [at for at in named if "ema" in re.split(r"[._]", at.lower())]
    if len(named) == 2 and len(averaged) == 1:
        return named[averaged[0]]
    if all(fit.equals(fits[0]) for fit in fits[1:]):
        return fits[0]
    raise RepsimError(
        f"{file} holds {_said(named)}, and each fits {name}; choose one with --weights-key (weights_key in Python)"
    )


def _said(keys: Iterable[str]) -> str:
    return listed(". (its top level)" if key == AT_THE_TOP else key for key in keys)


def _misfit(tried: list[Fit], file: Path, name: str) -> RepsimError:
    """The error for a file without a set that fits, about the nearest set."""
    order = [*USUAL, ""]

    def nearness(fit: Fit) -> tuple[int, int, int]:
        return fit.alike, -order.index(fit.path) if fit.path in order else -len(order), -len(fit.prefix)

    best = max(tried, key=nearness)
    faults = "; ".join(f"{len(keys)} {kind} ({few(keys)})" for kind, keys in best.faults.items() if keys)
    advice = f"; try the model argument num_classes={best.classes}" if best.classes is not None else ""
    index = index_of(file)
    if index and best.faults["missing"]:
        advice = f"; it is one of several files: give {index.name}"
    return RepsimError(f"{f'{best.key} of ' if best.key else ''}{file} does not fit {name}: {faults}{advice}")


def packed(module: nn.Module) -> list[Tensor]:
    """Tensors that a module keeps as neither parameters nor buffers, as quantised layers keep their weights."""
    try:
        state = module.state_dict()
    except Exception:  # whatever a module's own code does there
        return []
    named = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    named |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
    kept = [value for key, value in state.items() if key not in named and not key.endswith(EXTRA_STATE)]
    return [leaf for leaf in tree_leaves(kept) if isinstance(leaf, Tensor)]
