"""Names of networks that nothing is known by, found out from text alone: no torch, no timm."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from repsim.errors import UsageError, one_of
from repsim.networks.aliases import ALIASES, BUNDLED

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".npy")
"""How files end that hold weights, and no network."""
REGISTERED = re.compile(r"^@register_model\b.*\ndef (\w+)\(", re.MULTILINE)
ADVICE = "`repsim models` lists the aliases, `timm.list_models()` the rest."


def check_form(name: str) -> None:
    """Raise `UsageError` for a name that is a file's, of weights or of the code of a factory, or that names weights."""
    network, at, _ = name.partition("@")
    if at and network and ":" not in name:
        raise UsageError(
            f"{name!r} names a network and its weights, as tables do; give the network {network}, and the file of its "
            f"weights with {_weights_option('FILE')}"
        )
    if name.endswith(WEIGHTS) and ":" not in name and name not in _timm()[0]:  # timm has tags such as beit3_....pt
        raise UsageError(
            f"a model is a name, and {name!r} is the name of a file of weights; give the network's name, and the file "
            f"with {_weights_option(name)}"
        )
    file, colon, factory = name.rpartition(":") if ":" in name else (name, "", "")
    if file.endswith(".py"):
        path = Path(file)
        inside = not path.is_absolute() and ".." not in path.parts
        module = ".".join(path.with_suffix("").parts) if inside else path.stem
        folder = "" if inside else f" in the folder {path.parent}"
        raise UsageError(
            f"a factory is named as package.module:factory, and {name!r} begins with the path of a file; "
            f"write {module}:{factory or 'FACTORY'}{folder}"
        )


def _weights_option(file: str) -> str:
    """How a file of weights is given."""
    return (
        f"--weights {file} (--weights-a or --weights-b where there are two networks, --weights ROLE={file} where they "
        "have roles; weights= in Python)"
    )


def check_early(name: str) -> None:
    """Raise `UsageError` for a name that is surely wrong, before anything heavy is imported.

    Names that it lets through may be wrong, too: `repsim.networks.models.check_name` knows that.
    """
    check_form(name)
    if ":" in name or name in ALIASES or name.startswith(tuple(BUNDLED)):
        return
    text, names = _timm()
    if not text or name.partition(".")[0] in text:
        return
    raise one_of("model", name, dict.fromkeys([*ALIASES, *BUNDLED, *names]), ADVICE)


@lru_cache(maxsize=1)
def _timm() -> tuple[str, list[str]]:
    """The source of timm's networks, and the names that it gives them; nothing where there is none to read."""
    spec = find_spec("timm")
    places = (spec and spec.submodule_search_locations) or ()
    files = [file for place in places for file in sorted(Path(place, "models").glob("*.py"))]
    text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    return text, sorted(REGISTERED.findall(text))
