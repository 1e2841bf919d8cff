"""A hash of everything a network's state holds: the same bytes give the same hash, in every process.

Tensors of all kinds are hashed by their values, plain Python objects by their pickled parts. Nothing is
hashed by its address or its `repr`: an object without a stable form raises `NoStableForm`.
"""

from __future__ import annotations

import copyreg
import hashlib
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from repsim.networks.checkpoints import without_wrappers


class NoStableForm(Exception):
    """Something in a state has no bytes that would be the same in another process."""


def state_sha256(module: nn.Module) -> str:
    """Hash of a module's `state_dict`: names, types, shapes and bytes of parameters and buffers, and extra state.

    What `torch.compile` and the like put into names is left out: a compiled module has the weights it had before.
    Buffers that are not persistent do not count: the constructor makes them, and they are no weights.

    Raises:
        NoStableForm: an object cannot be hashed; the message names it.
    """
    try:
        state = module.state_dict()
    except Exception as error:  # whatever a module's own code does there
        raise NoStableForm(f"its state_dict() fails with {type(error).__name__}") from None
    bare = {without_wrappers(key): key for key in state}
    names = bare if len(bare) == len(state) else {key: key for key in state}
    total = hashlib.sha256()
    for name in sorted(names):
        try:
            _add(total, name, state[names[name]])
        except NoStableForm as reason:
            raise NoStableForm(f"{name} {reason}") from None
    return total.hexdigest()


def _add(total: Any, key: str, value: Any) -> None:
    if isinstance(value, Tensor) and _is_plain(value):
        total.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        total.update(_bytes(value))
    else:
        total.update(f"{key} ".encode() + _digest(value, ()))


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's values lie in memory one after the other."""
    if is_lazy(tensor) or is_traceable_wrapper_subclass(tensor):
        return False
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized


def _bytes(tensor: Tensor) -> Any:
    if tensor.is_meta:
        raise NoStableForm("has no values: it is on the meta device")
    try:
        whole = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        return whole.flatten().view(torch.uint8).numpy()
    except Exception as error:
        raise NoStableForm(f"is a tensor whose bytes cannot be read ({type(error).__name__})") from None


def _parts(tensor: Tensor) -> list[Any]:
    """The parts of a tensor that is not plain."""
    if is_lazy(tensor):
        return ["uninitialised"]
    if is_traceable_wrapper_subclass(tensor):
        names, context = tensor.__tensor_flatten__()
        return [names, context, *(getattr(tensor, name) for name in names)]
    if tensor.is_quantized:
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            return [tensor.int_repr(), tensor.q_scale(), tensor.q_zero_point()]
        scales = [tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points(), tensor.q_per_channel_axis()]
        return [tensor.int_repr(), *scales]
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.layout == torch.sparse_coo:
        whole = tensor.coalesce()
        return [whole.indices(), whole.values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor.to_dense()]


PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))
NAMED = (type, types.FunctionType, types.BuiltinFunctionType)
"""Kinds of values that pickle finds by their name; built-in functions only if a module has them."""


def _digest(value: Any, above: tuple[int, ...]) -> bytes:
    """Hash of any value; `above` are the ids of what holds it, so that a value that holds itself comes to an end."""
    if id(value) in above:
        return _joined("again", [str(above.index(id(value))).encode()])
    if len(above) > 200:
        raise NoStableForm("is nested too deeply")
    within = (*above, id(value))
    if isinstance(value, Tensor):
        if _is_plain(value):
            return _joined(f"tensor {value.dtype} {tuple(value.shape)}", [hashlib.sha256(_bytes(value)).digest()])
        try:
            parts = _parts(value)
        except Exception as error:
            raise NoStableForm(f"is a tensor of layout {value.layout} ({type(error).__name__})") from None
        shape = "" if is_lazy(value) or value.is_nested else tuple(value.shape)
        head = f"tensor {value.dtype} {value.layout} {shape}"
        return _joined(head, [_digest(part, within) for part in parts])
    kind = type(value)
    if kind in PLAIN:
        return _joined(kind.__name__, [repr(value).encode()])
    if kind in (list, tuple):
        return _joined(kind.__name__, [_digest(item, within) for item in value])
    if kind in (set, frozenset):
        return _joined(kind.__name__, sorted(_digest(item, within) for item in value))
    if kind is dict:
        pairs = [_digest(key, within) + _digest(item, within) for key, item in value.items()]
        return _joined("dict", sorted(pairs))
    if isinstance(value, NAMED) and isinstance(getattr(value, "__self__", None), (type(None), types.ModuleType)):
        name = f"{value.__module__}.{value.__qualname__}"
        if "<" in name:
            raise NoStableForm(f"holds {name}, which has no name outside its function")
        return _joined("named", [name.encode()])
    return _joined("object", [_digest(part, within) for part in _rebuilt_from(value)])


def _rebuilt_from(value: Any) -> list[Any]:
    """The parts from which pickle would rebuild an object: a function, its arguments, the state set afterwards."""
    if isinstance(value, torch.ScriptObject):
        if not value._has_method("__getstate__"):  # pyrefly: ignore [missing-attribute]
            raise NoStableForm(f"holds a {type(value).__name__}, whose state cannot be read")
        return [value._type().qualified_name(), value.__getstate__()]
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        parts: Any = reduce(value) if reduce else value.__reduce_ex__(4)
        if isinstance(parts, str):
            return [type(value), parts]
        return [*parts[:3], *(list(items) for items in parts[3:5] if items is not None)]
    except Exception:
        raise NoStableForm(f"holds a {type(value).__module__}.{type(value).__qualname__}, which has no bytes") from None


def _joined(head: str, parts: list[bytes]) -> bytes:
    whole = hashlib.sha256(f"{head} {len(parts)}\n".encode())
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.digest()
