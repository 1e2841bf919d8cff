"""Results, which the function of every study returns: tables, notices, the record of a run, and pictures."""

from __future__ import annotations

import io
import platform
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from typing_extensions import Unpack

from repsim.errors import Notice, UsageError
from repsim.features.aligned import known_images, of_features_alone
from repsim.features.arrays import FeatureNetwork, Features
from repsim.images.image_set import FEWEST, Counts, Data, ImageSet, as_image_set
from repsim.networks.layers import notices_of
from repsim.networks.libraries import DISTRIBUTIONS
from repsim.networks.models import Network, as_networks
from repsim.passes.study import Study
from repsim.passes.sweep import Passing, fitting, sweep
from repsim.tables import RECORD, prepare, save_arrays, save_record, save_table

if TYPE_CHECKING:
    from repsim.plots.style import Figure

AnyNetwork = Network | Features | nn.Module | str
AnyImages = ImageSet | Data | None
USUAL = 50
"""Images in a batch of a study that does not say how many are usual."""
INSIDE = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent))
"""Where code lies that no warning is about: repsim, and decorators of PyTorch between its functions."""


# Notices

_hears: ContextVar[Callable[[str], None] | None] = ContextVar("hears", default=None)


@contextmanager
def hearing(hear: Callable[[str], None]) -> Iterator[None]:
    """While active, notices go to a function, such as a command's, instead of becoming warnings."""
    token = _hears.set(hear)
    try:
        yield
    finally:
        _hears.reset(token)


def remark(sentence: str) -> None:
    """Say to a command's user what the record has too; in Python nobody need be told."""
    if (hear := _hears.get()) is not None:
        hear(sentence)


class Notices(list[str]):
    """Sentences on gaps of a result, and on reasons for NaN; each is given as soon as it is known, and only once."""

    def say(self, *sentences: str) -> None:
        """Add new sentences: each becomes a warning (`repsim.errors.Notice`) where the study was called."""
        for sentence in sentences:
            if sentence in self:
                continue
            self.append(sentence)
            if (hear := _hears.get()) is not None:
                hear(sentence)
            else:
                warnings.warn(sentence, Notice, stacklevel=_outside())


def _outside() -> int:
    """How far up the first frame is that is not repsim's, as `warnings.warn` counts it from its caller."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(INSIDE):
        level, frame = level + 1, frame.f_back
    return level


# The beginning and the end of a study

study = torch.inference_mode(mode=False)
"""Decorates the function of every study: in a caller's inference mode no sum could be added to."""


@dataclass(frozen=True)
class Begun:
    """The networks and images of a study."""

    networks: list[Network]
    """The networks, with the size of their images and with distinct names."""
    images: ImageSet
    notices: Notices
    batch_size: int
    """Images in a batch."""

    def result(
        self,
        name: str,
        table: pd.DataFrame,
        counts: Counts | dict[str, Any],
        protocol: Mapping[str, Any],
        *,
        tables: Mapping[str, pd.DataFrame] | None = None,
        arrays: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    ) -> Result:
        """Make a result with its record.

        Args:
            name: the name of its table.
            table: the main table.
            counts: counts of the images; or their entry of the record.
            protocol: settings that the numbers depend on, beside networks and images.
            tables, arrays: further tables and arrays, by the names of their files.
        """
        return Result(name, table, self.record(counts, protocol), dict(tables or {}), dict(arrays or {}))

    def swept(self, study: Study, *, batch_size: int | None = None, **pass_options: Unpack[Passing]) -> Result:
        """Run a study in one pass over the images, and return its result; batches are as `begin` has them, or given."""
        size = self.batch_size if batch_size is None else batch_size
        counts = sweep(self.images, [study], batch_size=size, **pass_options)
        return self.finished(study.result(counts), counts)

    def finished(self, result: Result, counts: Counts) -> Result:
        """The result of a study, with the whole record."""
        return replace(result, record=self.record(counts, result.protocol))

    @property
    def untrained(self) -> bool:
        """Whether some network has random weights."""
        return any(network.weights == "random" for network in self.networks)

    def record(self, counts: Counts | dict[str, Any], protocol: Mapping[str, Any]) -> dict[str, Any]:
        """The content of `run.json`; see `result`."""
        images = self.images.record(counts) if isinstance(counts, Counts) else counts
        losses = {
            "dropped_in_short_batch": "were left out with a short last batch",
            "broken_count": "could not be read",
        }
        for key, loss in losses.items():
            if images[key]:
                self.notices.say(f"{images['used']} images were used; {images[key]} {loss}")
        for network, size in images.get("forward_batch_sizes", {}).items():
            self.notices.say(f"memory was too small: {network} took {size} images at a time")
        return {
            "networks": [network.record() for network in self.networks],
            "images": images,
            "protocol": {**protocol, "seed": self.images.seed},
            "intervals": what_intervals_cover(images, protocol),
            "random": self.untrained,
            "notices": list(self.notices),
            "versions": versions(self.networks),
            "device": device_name(self.networks[0].device),
        }


def what_intervals_cover(images: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """The sentence of a record that says what its standard errors and intervals mean.

    Args:
        images: the entry of the record for the images.
        protocol: the protocol of the study.
    """
    if protocol.get("repeats", 1) > 1:
        return (
            "Standard errors are over repeats: they say how well the mean is known for these images, and nothing of "
            "other images."
        )
    sentence = (
        "Standard errors and intervals are over images: they say what other images, drawn as these were, would give."
    )
    if groups := images.get("groups"):
        sentence = f"Standard errors and intervals are {groups['intervals']}."
    if images.get("available") is not None and images["available"] == images.get("used"):
        sentence += " All images were used: for these images the values are exact, but for the choice of batches."
    return sentence


def begin(
    networks: AnyNetwork | Sequence[AnyNetwork],
    images: AnyImages,
    *,
    most: int | None = None,
    layers: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    usual: int = USUAL,
    over_batches: bool = False,
    short: bool = False,
) -> Begun:
    """Load the networks and images of a study, and collect notices on them.

    Args:
        networks: one or several networks, modules, names or features.
        images: an image set, or data for one; None: `most` images of the bundled sample, or, for features alone, all
            images that they have in common.
        layers: the choice for `find_layers`, for all networks; None: the study takes no layers by name.
        batch_size: the given batch size; None: `usual`, or smaller, see `fitting`.
        usual: the study's own batch size.
        over_batches: whether the study's standard errors are over minibatches.
        short: whether a last short batch counts.
    """
    images = None if images is None else as_image_set(images)
    networks, notices = as_networks(networks), Notices()
    features = [network.features for network in networks if isinstance(network, FeatureNetwork)]
    if images is None and features and len(features) == len(networks):
        images = of_features_alone(features)
    images, say = as_image_set(images, most), notices.say
    networks = _beside([network.sized(images.tensor_size) for network in networks])
    for network in networks:
        say(*network.notices)
    if images.asked is not None and len(images) < images.asked:
        say(f"{images.asked} images were asked for, there are {len(images)}; all are used")
    if images.left_out:
        say(images.left_out_in_words)
    images = known_images(images, networks, say)
    count, size = len(images), fitting(usual, images) if batch_size is None else batch_size
    if batch_size is None and size < usual:
        remark(
            f"batches are of {size} images, not {usual}, so that {count} images make {count // size}; see --batch-size"
        )
    begun = Begun(networks, images, notices, size)
    if images.groups is not None:
        say(f"standard errors and intervals are {images.groups.record()['intervals']}")
        if over_batches and not images.groups.spacing:
            say("batches hold several images of one group, which CKA takes for independent, so it comes out too high")
        elif over_batches and size > images.largest_batch:
            say(f"batches are of {images.largest_batch} images, so that no two of one group are compared")
    elif over_batches and count < (size + 1 if short else 2 * size):
        say(f"{count} images make one batch of {min(size, count)}, so there are no standard errors; {_way_out(count)}")
    if layers is not None:
        for network in begun.networks:
            with suppress(UsageError):  # the study says it where it looks for its layers
                say(*notices_of(network, layers))
    return begun


def _way_out(count: int) -> str:
    """What gives so many images standard errors over batches."""
    if count < 2 * FEWEST:
        return f"they take {2 * FEWEST} images at least"
    return f"a batch size of {count // 2} or less gives them"


def _beside(networks: Sequence[Network]) -> list[Network]:
    """The networks, with features on the device of the first that computes."""
    device = next((network.device for network in networks if not isinstance(network, FeatureNetwork)), None)
    return [
        network if device is None or not isinstance(network, FeatureNetwork) else replace(network, on=device)
        for network in networks
    ]


def too_skewed(table: pd.DataFrame) -> list[str]:
    """The notice on intervals in a table of CKA that cannot be trusted, if there are some."""
    count = int(table["skewed"].sum())
    sentence = f"{count} of {len(table)} intervals of CKA cannot be trusted"
    return [f"{sentence}: their CKA is near zero, or of few images (column skewed)"] if count else []


# Results


@dataclass(frozen=True, repr=False)
class Result:
    """The result of a study. In a notebook it shows its picture.

    >>> result = Result("mine", pd.DataFrame({"layer": ["stem"], "value": [0.5]}))
    >>> result
    Result of mine: 1 rows of layer, value
    """

    name: str
    """Name of its files: `cka`, `attention`, `residual` ..."""
    table: pd.DataFrame
    """The main table; `repsim.tables` lists its columns."""
    record: dict[str, Any] = field(default_factory=dict)
    """The content of `run.json`: networks, images used, dropped and broken, protocol, notices, versions, device."""
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Further tables, by the names of their files; `result.outliers` is that of `residual_outliers.csv`."""
    arrays: dict[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    """Arrays that go into `.npz` files, by the names of these."""

    def __getattr__(self, name: str) -> pd.DataFrame:
        if not name.startswith("_"):
            for file in (f"{self.name}_{name}", name):
                if file in self.tables:
                    return self.tables[file]
        known = ", ".join(("table", *(file.removeprefix(f"{self.name}_") for file in self.__dict__.get("tables", ()))))
        raise AttributeError(f"a result of {self.__dict__.get('name')} has no {name!r}; its tables are {known}")

    @property
    def notices(self) -> list[str]:
        """Sentences on gaps of the result, and on reasons for NaN."""
        return self.record.get("notices", [])

    @property
    def protocol(self) -> dict[str, Any]:
        """Settings that the numbers depend on, beside networks and images."""
        return self.record.get("protocol", {})

    @property
    def maps(self) -> Mapping[str, np.ndarray]:
        """The arrays of a result with one file of arrays: receptive fields by layer, attention maps."""
        (arrays,) = self.arrays.values()
        return arrays

    def figures(self, **options: Any) -> dict[str, Figure]:
        """All pictures, by the names of their files; the last is that of the main table."""
        from repsim.plots.pictures import pictures

        return pictures(self.name, {self.name: self.table, **self.tables}, self.arrays, self.record, **options)

    def plot(self, **options: Any) -> Figure:
        """The picture of the main table.

        Args:
            options: parts that are drawn: `blocks` of attention, `tokens` and `layer` of localization.

        Raises:
            UsageError: the study has none.
        """
        figures = list(self.figures(**options).values())
        if not figures:
            raise UsageError(f"there is no picture of {self.name}; its table is in `.table`")
        return figures[-1]

    def save(self, directory: str | Path, **options: Any) -> list[Path]:
        """Write tables, arrays, `run.json` and pictures into a directory; files of these names are replaced.

        Args:
            directory: made if it is not there.
            options: see `plot`.

        Returns:
            The files.
        """
        from repsim.plots.style import save

        directory = prepare(directory)
        written = self.save_tables(directory)
        save_record(self.record, directory / RECORD)
        written.append(directory / RECORD)
        for name, figure in self.figures(**options).items():
            written += save(figure, directory / name, untrained=self.record.get("random", False))
        return written

    def save_tables(self, directory: Path) -> list[Path]:
        """Write tables and arrays."""
        written = []
        for name, arrays in self.arrays.items():
            written.append(directory / f"{name}.npz")
            save_arrays(arrays, written[-1])
        for name, table in {self.name: self.table, **self.tables}.items():
            written.append(directory / f"{name}.csv")
            save_table(table, written[-1])
        return written

    def __repr__(self) -> str:
        used = f"; {self.record['images']['used']} images" if "images" in self.record else ""
        return f"Result of {self.name}: {len(self.table)} rows of {', '.join(self.table)}{used}"

    def _repr_html_(self) -> str | None:
        from repsim.plots.pictures import has_picture

        return None if has_picture(self.name, self.table) else self.table._repr_html_()  # notebooks prefer it

    def _repr_png_(self) -> bytes | None:
        from repsim.plots.pictures import has_picture

        if not has_picture(self.name, self.table):
            return None
        file = io.BytesIO()
        self.plot().savefig(file, format="png", bbox_inches="tight")
        return file.getvalue()


# The machine, in a record

PACKAGES = (
    "torch",
    "timm",
    "torchvision",
    "numpy",
    "pandas",
    "matplotlib",
    "seaborn",
    "scipy",
    "pillow",
    "safetensors",
)


def versions(networks: Iterable[Network]) -> dict[str, str]:
    """Versions of Python, of repsim and its dependencies, and of the libraries of the networks."""
    versions_of = {name: version(name) for name in ("repsim-vision", *PACKAGES)}
    roots = {type(module).__module__.partition(".")[0] for network in networks for module in network.module.modules()}
    for root in sorted(roots - {"repsim", "builtins", "__main__"} - set(PACKAGES)):
        with suppress(PackageNotFoundError):
            name = DISTRIBUTIONS.get(root, root)
            versions_of[name] = version(name)
    return {"python": platform.python_version(), **versions_of}


def device_name(device: torch.device) -> str:
    """A device, and which GPU or how many threads it is."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)
