"""Networks: the paper's names, timm's, the bundled ones and the user's own, each with its transform."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import itertools
import os
import random
import socket
import sys
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub.errors
import numpy as np
import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from repsim.errors import RepsimError, UsageError, first_line, one_of
from repsim.networks import minis
from repsim.networks.aliases import ALIASES
from repsim.networks.checkpoints import few, no_file
from repsim.networks.hashing import NoStableForm, state_sha256
from repsim.networks.known import ADVICE, check_form
from repsim.networks.libraries import call_of, check_library, found_in_library, of_library, tower, transform_of
from repsim.networks.memory import physical
from repsim.networks.precision import Precision, check_precision, computing, usual_precision
from repsim.networks.transforms import HOW_TO_SAY, EvalTransform, Transform, Unsaid, as_transform, said_in_words
from repsim.networks.weights import Taken, load_file, packed
from repsim.networks.wrappers import Called, looked_through
from repsim.tables import regular

WAYS_OUT = (
    "give weights as a file (safetensors or a state dict), ask for `random` ones, "
    "or use the bundled networks vit_mini and resnet_mini"
)

NO_HASH = "cannot be hashed"


@dataclass(frozen=True, eq=False)
class Network:
    """A network, with its name, its preparation of images and its settings. Nothing is written onto the module.

    Wrappers that compute nothing (`torch.compile`, data parallelism, PEFT) are looked through, and a network of images
    and texts is reduced to the part that sees images.

    >>> module = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    >>> Network(module, "mine", transform="size=28 mean=0.5 std=0.5")
    Network 'mine': Sequential, 7,850 parameters, weights as given, images 1x28x28
    """

    module: nn.Module
    name: str
    """Its name in tables and pictures; ends in `-random` if it is untrained."""
    source: str = ""
    """Source of the architecture: an exact timm name, a bundled one, or `module:factory`."""
    weights: str = "as given"
    """`pretrained`, `random`, a file, `factory`, or `as given` for a module handed over in Python."""
    transform: Transform | Any = None
    """Or whatever else prepares images: an image processor of transformers, a transform of torchvision's or
    open_clip's, a function from a PIL image to a tensor; or words, such as `size=224 mean=0.5,0.5,0.5 std=0.5,0.5,0.5`
    or `imagenet`. None: what the module says of it; of one that says nothing it is asked for, where images are no
    tensors."""
    model_args: dict[str, Any] = field(default_factory=dict)
    precision: Precision | None = None
    """Precision of its forward passes and of computations in their hooks; None: the usual one of its device."""
    compiled: bool = False
    """Whether `torch.compile` runs it, where a study allows it."""
    prefix: tuple[str, ...] | None = None
    """Kinds of the tokens before the grid, first to last: `cls`, `distillation`, `register`. None: by the names of
    their parameters."""
    seed: int | None = None
    """Seed of parameters that lazy modules draw in their first pass; None: they continue torch's generators."""
    taken: Taken | None = None
    """The choice of weights from a file; None: they do not come from a file."""
    notices: tuple[str, ...] = ()
    """Sentences for its user on how it was loaded."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Its origin, as the library that loaded it records it."""
    seed_each_pass: bool = False
    """Whether every pass begins with the same seed, so that random draws are the same in each."""
    call: InitVar[Callable[[Tensor], Any] | None] = None
    """Calls it with a batch of images, where `module(images)` does not do:
    `lambda images: module(pixel_values=images).last_hidden_state`."""

    def __post_init__(self, call: Callable[[Tensor], Any] | None) -> None:
        module = looked_through(self.module)
        if not isinstance(module, Called):
            module = module if call else tower(module)
            call = call or call_of(module)
        transform = self.transform
        if transform is None:
            transform = _transform_of(module, {})
        elif isinstance(transform, str):
            transform = said_in_words(transform, _transform_of(module, {}), self.name)
        elif not isinstance(transform, Transform):
            channels = getattr(getattr(module, "config", None), "num_channels", 3)
            transform = as_transform(transform, channels=channels, name=self.name)
        object.__setattr__(self, "module", Called(module, call) if call else module)
        object.__setattr__(self, "transform", transform)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of images.

        Raises:
            UsageError: nothing says how large they are.
        """
        if self.transform.input_size is None:
            raise UsageError(self.transform.why)
        return self.transform.input_size

    @property
    def device(self) -> torch.device:
        first = next(itertools.chain(self.module.parameters(), self.module.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of its weights, and so of the images it takes."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    @cached_property
    def runner(self) -> Callable[[Tensor], Any]:
        """The callable that runs a forward pass."""
        return torch.compile(self.module) if self.compiled else self.module

    @property
    def computes_in(self) -> Precision:
        return self.precision or usual_precision(self.device)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """While active, operations have its precision (see `repsim.networks.precision`), and draws are seeded."""
        with computing(self.computes_in, self.device), self.seeded():
            yield

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """While active, random draws are the same as in every other pass, where `seed_each_pass` says so."""
        if not self.seed_each_pass:
            yield
            return
        states = random.getstate(), np.random.get_state()  # noqa: NPY002  what networks may draw from
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            for seed in (torch.manual_seed, random.seed, np.random.seed):
                seed((self.seed or 0) % 2**32)
            try:
                yield
            finally:
                random.setstate(states[0])
                np.random.set_state(states[1])

    def sized(self, size: tuple[int, int, int] | None) -> Network:
        """The network, told the (c, h, w) of images that go into it as they are; None: its transform makes them."""
        if size is not None:
            network = dataclasses.replace(self, transform=dataclasses.replace(self.transform, input_size=size))
            return with_values(network)
        if isinstance(self.transform, Unsaid):
            raise UsageError(self.transform.why)
        if self.input_size[0] not in (1, 3):
            raise UsageError(
                f"{self.name} takes {self.input_size[0]} channels; give its images as a float tensor (n, c, h, w)"
            )
        return with_values(self)

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of its whole state (see `repsim.networks.hashing`), or `cannot be hashed: ` and the reason."""
        try:
            return state_sha256(with_values(self).module)
        except NoStableForm as reason:
            return f"{NO_HASH}: {reason}"

    def __repr__(self) -> str:
        size = self.transform.input_size
        images = "images of unknown size" if size is None else f"images {'x'.join(map(str, size))}"
        count, kind = self._parameters, self._class.__name__
        parameters = f"{count / 1e6:.3g} million" if count >= 10_000 else f"{count:,}"
        return f"Network {self.name!r}: {kind}, {parameters} parameters, weights {self.weights}, {images}"

    @property
    def _parameters(self) -> int:
        """Number of parameters, without those of lazy modules that have not run."""
        return sum(t.numel() for t in (*self.module.parameters(), *packed(self.module)) if not is_lazy(t))

    @property
    def _class(self) -> type:
        return type(self.module.of if isinstance(self.module, Called) else self.module)

    def record(self) -> dict[str, Any]:
        """The entry of `run.json` for the network."""
        kind = self._class
        return {
            "name": self.name,
            "source": self.source,
            "class": f"{kind.__module__}.{kind.__qualname__}",
            **({"origin": self.origin} if self.origin else {}),
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            **(self.taken.record() if self.taken else {}),
            "model_args": self.model_args,
            "parameters": self._parameters,
            "transform": self.transform.record(),
            "device": str(self.device),
            "precision": self.computes_in,
            "compiled": self.compiled,
            **({"seed_each_pass": True} if self.seed_each_pass else {}),
            **({"prefix": list(self.prefix)} if self.prefix is not None else {}),
            **({"notices": list(self.notices)} if self.notices else {}),
        }


class Stands(ABC):
    """An object that may stand where a network may, such as features."""

    @abstractmethod
    def as_network(self) -> Network:
        """The network that takes its place in a pass over images."""


def as_network(network: Network | Stands | nn.Module | str) -> Network:
    """Make a `Network` of anything that stands for one: a name is loaded, a module keeps its timm transform."""
    if isinstance(network, Network):
        return network
    if isinstance(network, Stands):
        return network.as_network()
    if isinstance(network, str):
        return load_model(network)
    if isinstance(network, nn.Module):
        return Network(network, type(looked_through(network)).__name__)
    looked_through(network)  # which says what is wrong with an exported program
    raise UsageError(f"a network is a Network, an nn.Module, a name or Features, got {type(network).__name__}")


def as_networks(
    networks: Network | Stands | nn.Module | str | Sequence[Network | Stands | nn.Module | str],
) -> list[Network]:
    """Make networks of one or several stand-ins, under names that tell them apart."""
    is_single = isinstance(networks, (Network, Stands, nn.Module, str))
    return told_apart([as_network(network) for network in ([networks] if is_single else networks)])


def told_apart(networks: Sequence[Network]) -> list[Network]:
    """Give networks of the same name names of their own that no other has: the table knows them by nothing else."""
    names = [network.name for network in networks]
    taken, distinct = {name for name in names if names.count(name) == 1}, []
    for network in networks:
        if names.count(network.name) > 1:
            free = (f"{network.name}#{number}" for number in itertools.count(1))
            name = next(candidate for candidate in free if candidate not in taken)
            taken.add(name)
            network = dataclasses.replace(network, name=name)
        distinct.append(network)
    return distinct


def with_values(network: Network) -> Network:
    """The network with values for all parameters; lazy modules, which draw theirs in a first pass, draw them here.

    They are drawn in one pass over two black images of the size it takes: on the CPU and with its seed, where it has
    one, so that they are the same on every device.

    Raises:
        RepsimError: parameters are on the meta device, or the pass fails.
    """
    module = network.module
    tensors = _check_not_meta(network)
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    if not lazy:
        return network
    device, drawing = network.device, nullcontext()
    if network.seed is not None:
        module.to("cpu")
        drawing = torch.random.fork_rng(devices=[])
    try:
        with drawing, evaluating(module), torch.no_grad():
            if network.seed is not None:
                torch.manual_seed(network.seed)
            module(torch.zeros(2, *network.input_size, device=network.device, dtype=network.dtype))
    except (Exception, SystemExit) as error:
        raise RepsimError(
            f"{network.name} cannot run on images of {_sides(network)}, and its first pass must give {len(lazy)} "
            f"parameters of lazy modules ({few(lazy)}) their shapes: {first_line(error)}"
        ) from None
    module.to(device)
    if never := [name for name, tensor in tensors if is_lazy(tensor)]:
        raise RepsimError(
            f"{network.name} has {len(never)} parameters without shapes after its first pass ({few(never)}); give "
            "them values, or take out the modules that no pass goes through"
        )
    if network.weights == "random":
        return network
    notice = (
        f"{network.name}: {len(lazy)} parameters of lazy modules ({few(lazy)}) were drawn at random in a pass over "
        f"images of {_sides(network)}: they are untrained"
    )
    return dataclasses.replace(network, notices=(*network.notices, notice))


def _check_not_meta(network: Network) -> list[tuple[str, Tensor]]:
    """The network's parameters and buffers by name, none of which is on the meta device."""
    tensors = [*network.module.named_parameters(), *network.module.named_buffers()]
    empty = [name for name, tensor in tensors if tensor.is_meta]
    if empty:
        raise RepsimError(
            f"{network.name} has {len(empty)} tensors without values, on the meta device ({few(empty)}); build it on "
            "the CPU, or give it its weights before it is handed over"
        )
    return tensors


def _sides(network: Network) -> str:
    return "x".join(map(str, network.input_size))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module and all below it into eval mode, and each back into its own mode afterwards."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode


def load_model(
    name: str,
    *,
    weights: str | os.PathLike[str] = "pretrained",
    weights_key: str | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    precision: Precision | None = None,
    compiled: bool = False,
    seed_each_pass: bool = False,
    transform: str | Transform | Any = None,
    **model_args: Any,
) -> Network:
    """Load a network by name.

    Args:
        name: an alias of the paper's networks (`repsim models` lists them), a bundled network, any
            timm name, `hf-hub:owner/name` and `local-dir:path` as timm has them; `hf:OWNER/NAME` or `hf:FOLDER` of
            transformers, perhaps with `:CLASS`; `torchvision:NAME[:WEIGHTS]`; `open_clip:NAME[:PRETRAINED]`; or
            `package.module:factory`, a callable that takes `model_args` and returns an `nn.Module` or a `Network`.
        weights: `pretrained`; `random` (untrained, only ever used when asked for); or a file: safetensors,
            what torch saves (read with `weights_only=True`), the `.index.json` of several such files, or a ViT's
            original `.npz`.
        weights_key: the key of weights in a file, such as `state_dict_ema`, or `model.teacher` for keys inside keys.
            None: the only weights that fit; where several fit, timm's choice or the averaged ones (`notices` says so).
        device: device of the network; None leaves it on the CPU.
        seed: seed of untrained weights.
        precision: `fp32`, `tf32` (CUDA only) or `bf16`; None: tf32 on CUDA, else fp32. See `repsim.networks.precision`.
        compiled: have `torch.compile` run the network where a study allows it; the first batch takes longer.
        seed_each_pass: begin every pass with the same seed, for networks that draw at random while they run.
        transform: preparation of images instead of the library's own: as for `Network`. Words such as
            `size=224 crop=1.0` leave the rest as the library says it, where that is timm's or the words say the
            normalisation, too.
        **model_args: passed to the constructor, for instance `img_size=384`.

    Raises:
        UsageError: no such model, argument, key or precision.
        RepsimError: weights cannot be loaded or do not fit.

    >>> load_model("vit_mini")
    Network 'vit_mini': VisionTransformer, 1.35 million parameters, weights pretrained, images 1x28x28
    >>> load_model("vit_mini", weights="random", depth=2).name
    'vit_mini-random'
    """
    weights = os.fspath(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build(name, weights, model_args, weights_key, transform)
    _evaluate(network)
    network = dataclasses.replace(network, seed=seed)
    if device is not None:
        _check_not_meta(network)
        device = _device(device)
        try:
            network.module.to(device)
        except (RuntimeError, AssertionError, ImportError) as error:  # torch imports what some devices need
            raise RepsimError(f"cannot put {name} on device {str(device)!r}: {first_line(error)}") from None
        if device.type == "cuda":
            _channels_last(network.module)
    if precision is not None:
        check_precision(precision, network.device)
    return dataclasses.replace(network, precision=precision, compiled=compiled, seed_each_pass=seed_each_pass)


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}: {first_line(error)}") from None
    if device.type == "meta":
        raise UsageError("tensors on the device 'meta' have no values; a network can run on cpu, cuda or mps")
    return device


def _evaluate(network: Network) -> None:
    try:
        network.module.eval()
    except Exception as error:  # exported programs have no modes
        raise RepsimError(f"{network.name} cannot be put into evaluation mode: {first_line(error)}") from None


def _channels_last(module: nn.Module) -> None:
    """Lay out the maps of a convolutional network as tensor cores want them; a ViT's one convolution is none."""
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d) and not is_lazy(m.weight)]
    for convolution in convolutions if len(convolutions) > 1 else ():
        convolution.to(memory_format=torch.channels_last)


def check_name(name: str) -> None:
    """Raise `UsageError` for a name that nothing is known by, before anything is downloaded or built."""
    check_form(name)
    if of_library(name):
        check_library(name)
    elif _of_factory(name):
        _factory(name)
    elif ":" not in name and name not in minis.ARCHITECTURES and name not in minis.bundled():
        _check_timm_name(ALIASES[name].timm_name if name in ALIASES else name)


def _build(name: str, weights: str, model_args: dict[str, Any], key: str | None, transform: Any = None) -> Network:
    check_form(name)
    file = None if weights in ("pretrained", "random") else Path(weights)
    if file is None and key is not None:
        raise UsageError(f"the weights key {key!r} chooses among the weights of a file; {name} has {weights!r} weights")
    if file is not None and not file.is_file():
        raise no_file(weights)
    _check_args(name, model_args)
    with _no_larger_than_memory(name, model_args):
        network = _made(name, weights, model_args)
    if isinstance(transform, str):
        transform = said_in_words(transform, network.transform, name)
    if transform is not None:
        network = dataclasses.replace(network, transform=transform)
    label, weights_label = network.name, network.weights
    if file is not None:
        with_values(network)  # the file must fit the shapes that a first pass gives
        taken = load_file(network.module, file, name, key)
        network = dataclasses.replace(network, taken=taken, notices=(*network.notices, *taken.notices()))
        label, weights_label = f"{label}@{file.stem}" + (f":{key}" if key else ""), weights
    elif weights == "random":
        label, weights_label = f"{label}-random", "random"
    return dataclasses.replace(network, name=label, weights=weights_label, model_args=model_args)


SIZES = ("img_size", "image_size", "in_chans")
BEHIND = ("pretrained", "checkpoint_path")
"""Arguments of timm's that would give a network other weights than those it was asked for with."""
TENSORS = 20_000
"""Parameters of a network; the deepest of timm's has 1,400."""


def _check_args(name: str, model_args: dict[str, Any]) -> None:
    """Raise `UsageError` for arguments that no network can be built or believed with."""
    for key in SIZES:
        value = model_args.get(key, 1)
        sides = value if isinstance(value, (tuple, list)) and len(value) == 2 else [value]
        if not all(isinstance(side, int) and side >= 1 for side in sides):
            raise UsageError(f"{key} of {name} must be a whole number from 1 on, got {value!r}")
    if behind := [key for key in BEHIND if key in model_args]:
        raise UsageError(
            f"{behind[0]} is not a model argument here; name the weights of {name} with --weights (weights)"
        )


@contextmanager
def _no_larger_than_memory(name: str, model_args: dict[str, Any]) -> Iterator[None]:
    """While active, building a network that outgrows memory is an error before it has taken all memory."""
    tensors, size = 0, 0
    memory = physical()

    def registered(module: nn.Module, key: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, size
        if parameter is not None and not is_lazy(parameter):
            tensors, size = tensors + 1, size + parameter.nbytes * (parameter.device.type == "cpu")
        if tensors > TENSORS or size > memory:
            why = f"{TENSORS} parameters" if tensors > TENSORS else f"the {memory / 2**30:.0f} GiB of this machine"
            raise UsageError(f"{name} with {_shown(model_args)} is too large: it has more than {why}")

    handle = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        handle.remove()


def _made(name: str, weights: str, model_args: dict[str, Any]) -> Network:
    """The network, with pretrained weights where these were asked for."""
    if of_library(name):
        return _from_library(name, weights, model_args)
    if _of_factory(name):
        return _from_factory(name, weights, model_args)
    if name in minis.ARCHITECTURES or name in minis.bundled():
        return _from_minis(name, weights, model_args)
    return _from_timm(name, weights, model_args)


def _from_minis(name: str, weights: str, model_args: dict[str, Any]) -> Network:
    file = minis.weights_file(name)
    try:
        module = minis.build(name, **model_args)
    except RepsimError:
        raise
    except Exception as error:
        raise UsageError(f"cannot build {name} with {_shown(model_args)}: {first_line(error)}") from None
    if weights == "pretrained":
        if not file.is_file():
            raise RepsimError(
                f"{name} is not shipped trained; train it with `python analyses/train_minis.py {name}`; or {WAYS_OUT}"
            )
        load_file(module, file, name)
    return Network(
        module, name, f"repsim.networks.minis:{name}", weights, _transform_of(module, model_args, minis.DATA_CONFIG)
    )


def _from_timm(name: str, weights: str, model_args: dict[str, Any]) -> Network:
    exact = ALIASES[name].timm_name if name in ALIASES else name
    on_hub = exact.startswith(("hf-hub:", "hf_hub:"))
    if exact.startswith("local-dir:"):
        for file in Path(exact.partition(":")[2]).glob("*.*"):
            regular(file)  # timm would wait at a pipe
    if ":" not in exact:
        _check_timm_name(exact)
        if weights == "pretrained" and not _has_weights(exact):
            raise RepsimError(f"timm has no pretrained weights for {exact}; {WAYS_OUT}")
    try:
        with _quick_when_offline():
            module = timm.create_model(exact, pretrained=weights == "pretrained", **model_args)
    except RepsimError:
        raise
    except (TypeError, AttributeError) as error:
        raise UsageError(f"{exact} does not take these arguments ({_shown(model_args)}): {first_line(error)}") from None
    except Exception as error:
        if weights != "pretrained" and not on_hub:
            raise UsageError(f"cannot build {exact} with {_shown(model_args)}: {first_line(error)}") from None
        offline = isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError)
        cause = "they are not cached, and the model hub cannot be reached" if offline else first_line(error)
        raise RepsimError(f"cannot get the weights of {exact}: {cause}; {WAYS_OUT}") from None
    label = name if name in ALIASES else exact.rstrip("/").split("/")[-1]
    return Network(module, label, exact, weights, _transform_of(module, model_args))


def _from_library(name: str, weights: str, model_args: dict[str, Any]) -> Network:
    with _quick_when_offline():
        loaded = found_in_library(name, weights, model_args)
    return Network(
        loaded.module, loaded.name, name, weights, loaded.transform, notices=loaded.notices, origin=loaded.record
    )


def _check_timm_name(exact: str) -> None:
    architecture, _, tag = exact.partition(".")
    if not timm.is_model(architecture):
        names = [*ALIASES, *minis.ARCHITECTURES, *timm.list_models()]
        raise one_of("model", exact, dict.fromkeys(names), ADVICE)
    tags = timm.list_models(f"{architecture}.*", include_tags=True)
    if tag and exact not in tags:
        raise one_of("pretrained tag", exact, tags)


def _has_weights(exact: str) -> bool:
    config = timm.models.get_pretrained_cfg(exact)
    return config is not None and bool(config.has_weights)


@contextmanager
def _quick_when_offline() -> Iterator[None]:
    """Without a network the hub's client tries for 50 s and then reads its cache; read that at once."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    host = huggingface_hub.constants.ENDPOINT.split("://")[-1].split("/")[0].split(":")[0]
    try:
        if not urllib.request.getproxies():
            socket.getaddrinfo(host, 443)
    except OSError:
        huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def _of_factory(name: str) -> bool:
    return ":" in name and not name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))


def _factory(name: str) -> Callable[..., Any]:
    """The callable that `package.module:factory` names."""
    path, _, attribute = name.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        factory: Any = importlib.import_module(path)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except AttributeError:
        raise one_of(f"factory of {path}", attribute, _factories_of(path)) from None
    except (Exception, SystemExit) as error:  # whatever the user's module does when it is imported
        raise UsageError(f"cannot import {path!r} for model {name!r}: {first_line(error)}") from None
    return factory


def _factories_of(path: str) -> list[str]:
    """Names of callables that a module or its package defines, without imports from other packages."""
    package = path.partition(".")[0]
    return [
        name
        for name, value in vars(sys.modules[path]).items()
        if name[0] != "_" and callable(value) and str(getattr(value, "__module__", "")).partition(".")[0] == package
    ]


def _from_factory(name: str, weights: str, model_args: dict[str, Any]) -> Network:
    factory = _factory(name)
    try:
        product = factory(**model_args)
    except RepsimError:
        raise
    except TypeError as error:
        raise UsageError(f"{name} does not take these arguments ({_shown(model_args)}): {first_line(error)}") from None
    except (Exception, SystemExit) as error:
        raise RepsimError(f"{name} failed to build: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(product, (nn.Module, Network)):
        raise UsageError(f"{name} must return an nn.Module or a repsim.Network, it returned {type(product).__name__}")
    if isinstance(product, Network):
        return dataclasses.replace(product, source=name)
    return Network(product, name.rpartition(":")[2].split(".")[-1], name, "factory", _transform_of(product, model_args))


def _transform_of(module: nn.Module, model_args: dict[str, Any], config: dict[str, Any] | None = None) -> Transform:
    """A library's own evaluation settings where it has them; of timm's an image size among the arguments wins."""
    if (stated := transform_of(module)) is not None:
        return stated
    channels = next((n for k in ("in_chans", "channels") if isinstance(n := model_args.get(k), int)), None)
    size = next((model_args[k] for k in ("img_size", "image_size") if k in model_args), None)
    size = (size, size) if isinstance(size, int) else size
    if config is None:
        config = _timm_config(module)
    if config is None:
        known = None if size is None else (channels or 3, size[0], size[1])
        return Unsaid(known, f"nothing says how images are prepared for {type(module).__name__}; {HOW_TO_SAY}")
    transform = EvalTransform.of(config)
    height, width = size or transform.input_size[1:]
    channels = channels or transform.input_size[0]
    if channels != len(transform.mean):
        grey = channels == 1
        both = {"mean": transform.mean, "std": transform.std}
        statistics: dict[str, Any] = {k: (sum(v) / len(v),) if grey else v[:1] * channels for k, v in both.items()}
        transform = dataclasses.replace(transform, **statistics)
    return dataclasses.replace(transform, input_size=(channels, height, width))


def _timm_config(module: nn.Module) -> dict[str, Any] | None:
    """The data configuration of a module of timm, or of one written alike; None: the module has none."""
    config: Any = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if not config:
        return None
    config = dict(config) if isinstance(config, dict) else config.to_dict()
    return resolve_data_config(pretrained_cfg=config, model=module, use_test_size=False)


def parse_model_args(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`("img_size=224", "act=relu")` -> `{"img_size": 224, "act": "relu"}`."""
    parsed = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"a model argument is written KEY=VALUE, got {pair!r}")
        try:
            parsed[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed[key] = value
    return parsed


def _shown(model_args: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in model_args.items()) or "no arguments given"
