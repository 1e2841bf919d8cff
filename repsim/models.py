"""Networks: the paper's names, timm's, the bundled ones and the user's own, each with its transform."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import itertools
import os
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from repsim import minis
from repsim.aliases import ALIASES
from repsim.errors import RepsimError, UsageError, first_line, one_of
from repsim.precision import Precision, check_precision, computing, usual_precision

WAYS_OUT = (
    "give weights as a file (safetensors or a state dict), ask for `random` ones, "
    "or use the bundled networks vit_mini and resnet_mini"
)


@dataclass(frozen=True)
class EvalTransform:
    """A network's evaluation preprocessing; equal ones share one decoded and resized image."""

    input_size: tuple[int, int, int] = (3, 224, 224)
    """(channels, height, width); images are converted to grey for 1 channel, to RGB for 3."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    @classmethod
    def of(cls, config: dict[str, Any]) -> EvalTransform:
        """From a timm data configuration; what it leaves open keeps the defaults above."""
        known = {f.name: config[f.name] for f in dataclasses.fields(cls) if config.get(f.name) is not None}
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})

    def __call__(self, image: Image.Image) -> Tensor:
        """(channels, height, width) float32."""
        channels = self.input_size[0]
        if channels not in (1, 3):
            raise UsageError(f"images have 1 or 3 channels, this network takes {channels}; pass tensors instead")
        return _composed(self)(image.convert("L" if channels == 1 else "RGB"))


@lru_cache(maxsize=16)
def _composed(config: EvalTransform):
    return create_transform(**dataclasses.asdict(config), is_training=False)


@dataclass(frozen=True, eq=False)
class Network:
    """A network and what repsim needs to know of it. Nothing is ever written onto the module."""

    module: nn.Module
    name: str
    """What tables and pictures call it; ends in `-random` if it is untrained."""
    source: str = ""
    """Where the architecture comes from: an exact timm name, a bundled one, or `module:factory`."""
    weights: str = "as given"
    """`pretrained`, `random`, a file, `factory`, or `as given` for a module handed over in Python."""
    transform: EvalTransform = field(default_factory=EvalTransform)
    model_args: dict[str, Any] = field(default_factory=dict)
    precision: Precision | None = None
    """Of its forward passes and what is computed in them; None: the usual one of its device."""
    compiled: bool = False
    """Whether `torch.compile` runs it, where a study allows it."""
    prefix: tuple[str, ...] | None = None
    """What the tokens before the grid are, first to last: `cls`, `distillation`, `register`. None: as their parameters
    are called."""

    @property
    def input_size(self) -> tuple[int, int, int]:
        return self.transform.input_size

    @property
    def device(self) -> torch.device:
        first = next(itertools.chain(self.module.parameters(), self.module.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights, and so of the images it takes."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    @cached_property
    def runner(self) -> Callable[[Tensor], Any]:
        """What runs a forward pass."""
        return torch.compile(self.module) if self.compiled else self.module

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within it, operations have its precision; see `repsim.precision`."""
        device = self.device
        with computing(self.precision or usual_precision(device), device):
            yield

    def sized(self, size: tuple[int, int, int] | None) -> Network:
        """The network, told the (c, h, w) of images that go into it as they are; None: its transform makes them."""
        if size is not None:
            return dataclasses.replace(self, transform=dataclasses.replace(self.transform, input_size=size))
        if self.input_size[0] not in (1, 3):
            raise UsageError(
                f"{self.name} takes {self.input_size[0]} channels; give its images as a float tensor (n, c, h, w)"
            )
        return self

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of all parameters and buffers: names, types, shapes and bytes."""
        digest = hashlib.sha256()
        for key, value in sorted(self.module.state_dict().items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """What `run.json` says of the network."""
        return {
            "name": self.name,
            "source": self.source,
            "class": f"{type(self.module).__module__}.{type(self.module).__qualname__}",
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "model_args": self.model_args,
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "transform": dataclasses.asdict(self.transform),
            "device": str(self.device),
            "precision": self.precision or usual_precision(self.device),
            "compiled": self.compiled,
        }


def as_network(network: Network | nn.Module | str) -> Network:
    """A `Network`, whatever stands for one: a name is loaded, a module keeps its timm transform."""
    if isinstance(network, Network):
        return network
    if isinstance(network, str):
        return load_model(network)
    if isinstance(network, nn.Module):
        return Network(network, type(network).__name__, transform=_transform_of(network, {}))
    raise UsageError(f"a network is a Network, an nn.Module or a name, got {type(network).__name__}")


def as_networks(networks: Network | nn.Module | str | Sequence[Network | nn.Module | str]) -> list[Network]:
    """One or several of what stands for a network, under names that tell them apart."""
    one = isinstance(networks, (Network, nn.Module, str))
    return told_apart([as_network(network) for network in ([networks] if one else networks)])


def told_apart(networks: Sequence[Network]) -> list[Network]:
    """Give networks of the same name names of their own that no other has: the table knows them by nothing else."""
    names = [network.name for network in networks]
    taken, told = {name for name in names if names.count(name) == 1}, []
    for network in networks:
        if names.count(network.name) > 1:
            free = (f"{network.name}#{number}" for number in itertools.count(1))
            name = next(each for each in free if each not in taken)
            taken.add(name)
            network = dataclasses.replace(network, name=name)
        told.append(network)
    return told


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
    device: str | torch.device | None = None,
    seed: int = 0,
    precision: Precision | None = None,
    compiled: bool = False,
    **model_args: Any,
) -> Network:
    """Load a network by name.

    Args:
        name: an alias of the paper's networks (`repsim models` lists them), a bundled network, any
            timm name, `hf-hub:owner/name`, `local-dir:path`, or `package.module:factory`, a callable
            that takes `model_args` and returns an `nn.Module` or a `Network`.
        weights: `pretrained`; `random` (untrained, only ever used when asked for); or a file: safetensors,
            a state dict as torch saves it (read with `weights_only=True`), or a ViT's original `.npz`.
        device: where the network goes; None leaves it on the CPU.
        seed: of untrained weights.
        precision: `fp32`, `tf32` (CUDA only) or `bf16`; None: tf32 on CUDA, else fp32. See `repsim.precision`.
        compiled: have `torch.compile` run the network where a study allows it; the first batch takes longer.
        **model_args: passed to the constructor, for instance `img_size=384`.

    Raises:
        UsageError: no such model, argument or precision.
        RepsimError: weights cannot be had or do not fit.
    """
    weights = os.fspath(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build(name, weights, model_args)
    network.module.eval()
    if device is not None:
        try:
            device = torch.device(device)
        except RuntimeError as error:
            raise UsageError(f"unknown device {device!r}: {first_line(error)}") from None
        try:
            network.module.to(device)
        except (RuntimeError, AssertionError) as error:
            raise RepsimError(f"cannot put {name} on device {str(device)!r}: {first_line(error)}") from None
        if device.type == "cuda":
            _channels_last(network.module)
    if precision is not None:
        check_precision(precision, network.device)
    return dataclasses.replace(network, precision=precision, compiled=compiled)


def _channels_last(module: nn.Module) -> None:
    """Lay out the maps of a convolutional network as tensor cores want them; a ViT's one convolution is none."""
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    for convolution in convolutions if len(convolutions) > 1 else ():
        convolution.to(memory_format=torch.channels_last)


def check_name(name: str) -> None:
    """Raise `UsageError` for a name that nothing is known by, before anything is downloaded or built."""
    if ":" not in name and name not in minis.ARCHITECTURES and name not in minis.bundled():
        _check_timm_name(ALIASES[name].timm_name if name in ALIASES else name)


def _build(name: str, weights: str, model_args: dict[str, Any]) -> Network:
    file = None if weights in ("pretrained", "random") else Path(weights)
    if file is not None and not file.is_file():
        raise RepsimError(f"weights are `pretrained`, `random` or a file; there is no file {weights!r}")
    if ":" in name and not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        network = _from_factory(name, weights, model_args)
    elif name in minis.ARCHITECTURES or name in minis.bundled():
        network = _from_minis(name, weights, model_args)
    else:
        network = _from_timm(name, weights, model_args)
    label, given = network.name, network.weights
    if file is not None:
        _load_file(network.module, file, name)
        label, given = f"{label}@{file.stem}", weights
    elif weights == "random":
        label, given = f"{label}-random", "random"
    return dataclasses.replace(network, name=label, weights=given, model_args=model_args)


def _from_minis(name: str, weights: str, model_args: dict[str, Any]) -> Network:
    file = minis.weights_file(name)
    try:
        module = minis.build(name, **model_args)
    except TypeError as error:
        raise UsageError(f"{name} does not take these arguments: {first_line(error)}") from None
    if weights == "pretrained":
        if not file.is_file():
            raise RepsimError(
                f"{name} is not shipped trained; train it with `python analyses/train_minis.py {name}`; or {WAYS_OUT}"
            )
        _load_file(module, file, name)
    return Network(module, name, f"repsim.minis:{name}", weights, _transform_of(module, model_args, minis.DATA_CONFIG))


def _from_timm(name: str, weights: str, model_args: dict[str, Any]) -> Network:
    exact = ALIASES[name].timm_name if name in ALIASES else name
    on_hub = exact.startswith(("hf-hub:", "hf_hub:"))
    if ":" not in exact:
        _check_timm_name(exact)
        if weights == "pretrained" and not _has_weights(exact):
            raise RepsimError(f"timm has no pretrained weights for {exact}; {WAYS_OUT}")
    try:
        with _quick_when_offline():
            module = timm.create_model(exact, pretrained=weights == "pretrained", **model_args)
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


def _check_timm_name(exact: str) -> None:
    architecture, _, tag = exact.partition(".")
    if not timm.is_model(architecture):
        names = [*ALIASES, *minis.ARCHITECTURES, *timm.list_models()]
        raise one_of("model", exact, names, "`repsim models` lists the aliases, `timm.list_models()` the rest.")
    tags = list(timm.models.get_arch_pretrained_cfgs(architecture))
    if tag and exact not in tags:
        raise one_of("pretrained tag", exact, tags)


def _has_weights(exact: str) -> bool:
    config = timm.models.get_pretrained_cfg(exact)
    return config is not None and config.has_weights


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


def _from_factory(name: str, weights: str, model_args: dict[str, Any]) -> Network:
    path, _, attribute = name.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        factory = importlib.import_module(path)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except AttributeError:
        raise one_of(f"factory of {path}", attribute, [n for n in vars(sys.modules[path]) if n[0] != "_"]) from None
    except Exception as error:  # whatever the user's module does when it is imported
        raise UsageError(f"cannot import {path!r} for model {name!r}: {first_line(error)}") from None
    try:
        made = factory(**model_args)
    except TypeError as error:
        raise UsageError(f"{name} does not take these arguments ({_shown(model_args)}): {first_line(error)}") from None
    except Exception as error:
        raise RepsimError(f"{name} failed to build: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(made, (nn.Module, Network)):
        raise UsageError(f"{name} must return an nn.Module or a repsim.Network, it returned {type(made).__name__}")
    if isinstance(made, Network):
        return dataclasses.replace(made, source=name)
    return Network(made, attribute.split(".")[-1], name, "factory", _transform_of(made, model_args))


def _transform_of(module: nn.Module, model_args: dict[str, Any], config: dict[str, Any] | None = None) -> EvalTransform:
    """timm's own evaluation settings where it has them; an image size among the arguments wins."""
    if config is None:
        config = resolve_model_data_config(module, use_test_size=False) if hasattr(module, "pretrained_cfg") else {}
    transform = EvalTransform.of(config)
    channels, height, width = transform.input_size
    channels = model_args.get("in_chans", model_args.get("channels", channels))
    size = next((model_args[k] for k in ("img_size", "image_size") if k in model_args), (height, width))
    height, width = (size, size) if isinstance(size, int) else size
    if channels != len(transform.mean):
        grey = channels == 1
        both = {"mean": transform.mean, "std": transform.std}
        statistics = {k: (sum(v) / len(v),) if grey else v[:1] * channels for k, v in both.items()}
        transform = dataclasses.replace(transform, **statistics)
    return dataclasses.replace(transform, input_size=(channels, height, width))


def _load_file(module: nn.Module, file: Path, name: str) -> None:
    """Load weights strictly, and say which keys are missing, left over or of the wrong shape."""
    if file.suffix == ".npz" and hasattr(module, "load_pretrained"):
        try:
            module.load_pretrained(str(file))
        except Exception as error:
            raise RepsimError(f"{file} does not fit {name}: {first_line(error)}") from None
        return
    try:
        state = timm.models.load_state_dict(str(file))
    except Exception as error:
        raise RepsimError(
            f"cannot read {file} as weights ({first_line(error)}); it must be a safetensors file "
            "or a state dict saved with torch.save(model.state_dict(), FILE)"
        ) from None
    own = module.state_dict()
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise RepsimError(f"{file} does not hold a state dict: names and tensors")
    misshapen = [k for k in own if k in state and own[k].shape != state[k].shape]
    faults = {
        "missing": [k for k in own if k not in state],
        "left over": [k for k in state if k not in own],
        "of another shape": [f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}" for k in misshapen],
    }
    if any(faults.values()):
        found = "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in faults.items() if keys)
        head = [k for k in misshapen if own[k].ndim == 2 and own[k].shape[1:] == state[k].shape[1:]]
        advice = f"; try the model argument num_classes={len(state[head[0]])}" if head else ""
        raise RepsimError(f"{file} does not fit {name}: {found}{advice}")
    module.load_state_dict(state)


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
