"""Files of weights: reading them without running code of theirs, and the sets of tensors in them."""

from __future__ import annotations

import argparse
import json
import re
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from repsim.errors import RepsimError, first_line
from repsim.networks.older_torch import called, safe_globals
from repsim.tables import kind

INDEX = ".index.json"
"""Ending of the name of an index, which says in which of several files each tensor is."""
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", INDEX)
NUMBER: Any = np.float64(0).__reduce__()[0]
"""numpy's function that makes a number; its module has had two names."""
SAFE: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"},
    called("numpy._core.multiarray.scalar", NUMBER),
    called("numpy.core.multiarray.scalar", NUMBER),
]
"""Harmless classes that training scripts store beside weights: options, and numbers of numpy."""
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Words that `torch.compile`, FSDP and checkpointing put into the names of the modules they wrap, at any place."""
HOW_TO_SAVE = "torch.save(model.state_dict(), FILE)"


def read(file: Path) -> Any:
    """The content of a file: tensors by name, or the object that `torch.save` was given.

    Raises:
        RepsimError: it is no file of tensors, or reading it would run code.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(64)
    except OSError as error:
        raise RepsimError(f"cannot read {file} as weights: {error.strerror}") from None
    if head.startswith(b"version https://git-lfs"):
        raise RepsimError(f"{file} is a Git LFS pointer and not the weights themselves; get them with `git lfs pull`")
    if file.name.endswith(INDEX):
        return _read_parts(file)
    if head.strip(b"\0") and tarfile.is_tarfile(file):  # PyTorch before 2.6 unpacks it wherever it says, CVE-2025-32434
        raise RepsimError(
            f"cannot read {file} as weights: it is a tar archive; it must be a safetensors file or a state dict saved "
            f"with {HOW_TO_SAVE}"
        )
    try:
        if _is_safetensors(head, file.stat().st_size):
            return safetensors.torch.load_file(file)
        with warnings.catch_warnings(), safe_globals(SAFE):
            warnings.simplefilter("ignore")  # of what follows as an error
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        why = (
            f"it holds a {refused[1]}, and reading such an object runs code"
            if refused
            else first_line(error).split(". ")[0]
        )
        if refused and refused[1].endswith((".UninitializedParameter", ".UninitializedBuffer")):
            why = "it holds parameters of lazy modules, which get their values in a first pass"
        raise RepsimError(
            f"cannot read {file} as weights: {why}; it must be a safetensors file or a state dict saved with "
            f"{HOW_TO_SAVE}"
        ) from None


def _is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file is safetensors by its content: eight bytes with the length of the header, then the JSON header."""
    return head[8:9] == b"{" and 8 + int.from_bytes(head[:8], "little") <= size


def _read_parts(index: Path) -> dict[str, Any]:
    """All tensors of several files, by an index as the Hugging Face hub has it."""
    try:
        parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise RepsimError(f"{index} does not say in which file each tensor is: it has no `weight_map`") from None
    state: dict[str, Any] = {}
    for part in parts:
        if Path(part).name != part or not (index.parent / part).is_file():
            raise RepsimError(f"{index} names {part!r}, and there is no such file beside it")
        state.update(read(index.parent / part))
    return state


def index_of(file: Path) -> Path | None:
    """The index that a file among several belongs to, by its name; None for a file of its own."""
    part = re.search(r"-\d{5}-of-\d{5}\.", file.name)
    return file.with_name(f"{file.name[: part.start()]}{file.suffix}{INDEX}") if part else None


def no_file(weights: str) -> RepsimError:
    """The error for weights that are no file."""
    must = "weights are `pretrained`, `random` or a file"
    place = Path(weights)
    if not place.is_dir():
        instead = kind(place)
        return RepsimError(f"{must}; " + (f"{weights!r} is {instead}" if instead else f"there is no file {weights!r}"))
    files = sorted(path.name for path in place.iterdir() if path.name.endswith(SUFFIXES))
    advice = f"name a file in it, such as {files[0]}" if files else "name a file of weights"
    return RepsimError(f"{must}; {weights!r} is a directory: {advice}")


def sets_in(checkpoint: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every set of tensors by name, with its place in the file: keys joined by dots.

    The state of an optimiser is left out: its tensors can have the names and shapes of weights without being weights.
    """
    if not isinstance(checkpoint, dict) or depth > 8:
        return
    named = {key: value for key, value in checkpoint.items() if isinstance(key, str)}
    if any(isinstance(value, Tensor) for value in named.values()):
        yield path, named
    for key, value in checkpoint.items():
        if not str(key).startswith("optim"):
            yield from sets_in(value, joined(path, str(key)), depth + 1)


def holds(checkpoint: Any, key: str) -> bool:
    """Whether anything in a file goes by a name: keys joined by dots."""
    if not isinstance(checkpoint, dict):
        return False
    return any(
        first == key
        or first.startswith(f"{key}.")
        or (key.startswith(f"{first}.") and holds(value, key[len(first) + 1 :]))
        for first, value in ((str(first), value) for first, value in checkpoint.items())
    )


def what_it_is(checkpoint: Any) -> str:
    """A description of an object that holds no set of tensors."""
    if isinstance(checkpoint, Tensor):
        return "it is a single tensor"
    if not isinstance(checkpoint, dict):
        return f"it is a {type(checkpoint).__name__}"
    if not checkpoint:
        return "it is empty"
    if "param_groups" in checkpoint:
        return "it is the state of an optimiser"
    if any(isinstance(value, Tensor) for value in checkpoint.values()):
        return "its tensors have numbers for names"
    return f"there are no tensors by name under {few(map(str, checkpoint))}"


def without_wrappers(name: str) -> str:
    """The name that a tensor has when nothing wraps its module.

    >>> without_wrappers("_orig_mod.blocks.0._orig_mod.weight")
    'blocks.0.weight'
    """
    return re.sub("|".join(rf"(?:(?<=\.)|^){re.escape(wrapper)}" for wrapper in WRAPPERS), "", name)


def joined(*parts: str) -> str:
    """The keys under which something lies in a file, as one."""
    return ".".join(part for part in parts if part)


def few(names: Any) -> str:
    """The first names of many."""
    return ", ".join(list(names)[:3])


def listed(names: Any) -> str:
    """All names, as a sentence has them."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
