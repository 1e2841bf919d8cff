"""The options that every study shares, and the steps before and after it."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import click

from repsim.cli.asked import Asked, label, load, standing
from repsim.cli.base import AS_JSON, Place, Seconds, Source, given, is_first, options
from repsim.cli.words import (
    PROCESSES,
    check_range,
    command_line,
    print_json,
    progress_bar,
    say,
)
from repsim.errors import UsageError
from repsim.passes.ranks import world_size

RUN = "repsim.run"
"""Key of the run under way in click's context."""


@dataclass(frozen=True)
class Job:
    """The options that every study shares, and the steps before and after it."""

    command: str
    data: str | None
    data_dir: str | None
    split: str | None
    images: int | None
    seed: int
    workers: int | None
    skip_broken: bool
    groups: str | None
    batch_size: int | None
    device: str | None
    precision: str | None
    compiled: bool
    seed_each_pass: bool
    memory: str | None
    out: Path | None
    redraw: Path | None
    checkpoint_every: float
    fresh: bool
    overwrite: bool
    quiet: bool
    as_json: bool

    def start(
        self,
        asked: list[Asked],
        writes: Sequence[str],
        *,
        train: Any = None,
        called: str | None = None,
        beside: Collection[str] = (),
        features: Sequence[Any] = (),
        images: Any = None,
    ) -> Run:
        """Load networks, see `ready`, and make the directory.

        Args:
            asked: the networks.
            writes: the files and folders that the run will write beside `run.json`.
            features: features beside the networks, after them.
            train: training images, if the run has some.
            called: name of the directory without `--out`; None: the command and its networks.
            beside: options that may differ between runs whose results lie in one directory.
            images: those that are looked at, where they are chosen already.
        """
        from repsim.cli.directory import SETTINGS, before, digest, own_directory
        from repsim.passes import processes
        from repsim.passes.resume import FOLDER, Resume
        from repsim.tables import prepare, recording

        started = time.perf_counter()
        context = click.get_current_context()
        networks, chosen = self.ready(asked, features, images)
        apart = about(self, networks, chosen, train)
        common = {name: value for name, value in apart["options"].items() if name not in beside}
        settings, out, old = digest({**apart, "options": common}), self.out, {}
        if out is None:
            labels = [
                *(label(one.model, one.weights, one.key) for one in asked),
                *(label(one.name) for one in features),
            ]
            name = called or "-".join([self.command, *labels])
            out = processes.agreed(own_directory(name, settings) if is_first() else None)
            if out.name != name:
                say(f"the results go into {out}", self.quiet)

        def allow(known: Collection[str], out: Path = out) -> None:
            old.update(before(out, settings, writes, known, self.overwrite))
            if old.get(SETTINGS) == settings:
                say(f"{out} holds the results of this run already; they are computed again", self.quiet)
            prepare(out)

        resume = Resume(
            out / FOLDER,
            {**apart, **bound("images", chosen), **(bound("training images", train) if train is not None else {})},
            every=self.checkpoint_every,
            fresh=self.fresh,
            settings=settings,
            files=writes,
            allow=allow,
            say=lambda text: say(text, False),
        )
        context.call_on_close(resume.release)
        context.with_resource(resume.stoppable())
        written = context.with_resource(recording())
        if not is_first():  # every process makes the results, and only the first one writes them
            out = Path(context.with_resource(tempfile.TemporaryDirectory()))
        run = Run(self, networks, chosen, out, started, resume, settings, old, written)
        context.meta[RUN] = run
        context.call_on_close(run.let_go_of_what_nobody_would_know)
        return run

    def ready(self, asked: list[Asked], features: Sequence[Any] = (), images: Any = None) -> tuple[list[Any], Any]:
        """Check first everything that is cheap to check, then load the networks and images. Nothing is written.

        For features alone, without data, the images are those that they have in common.
        """
        if self.images is not None:
            check_range("--images", self.images, 4)
        if self.batch_size is not None:
            check_range("--batch-size", self.batch_size, 4)
        if self.workers is not None:
            check_range("--workers", self.workers, 0, PROCESSES)

        from repsim.cli.introducing import differences, introduced
        from repsim.networks.memory import give_back_blocks
        from repsim.networks.models import check_name, told_apart
        from repsim.networks.transforms import read_words
        from repsim.passes.plan import limited
        from repsim.studies.results import hearing

        context = click.get_current_context()
        give_back_blocks()
        context.with_resource(limited(self.memory, lambda text: say(text, self.quiet)))
        for network in asked:
            check_name(network.model)
            if network.transform is not None:
                read_words(network.transform, network.model)
        if images is not None:
            chosen = images
        elif asked or self.data:
            chosen = self.chosen(self.data or default_data([network.model for network in asked]), self.split)
        else:
            chosen = self.known_to(features)
        options = {name: getattr(self, name) for name in ("precision", "compiled", "seed_each_pass")}
        networks = [*load(asked, self.device, self.seed, **options), *standing(features, self.device)]
        networks = told_apart(networks)
        for line in (*map(introduced, networks), *differences(networks)):
            say(line, self.quiet)
        heard: set[str] = set()

        def hear(notice: str) -> None:
            if notice not in heard:
                heard.add(notice)
                say(notice, self.quiet)

        context.with_resource(hearing(hear))
        return networks, chosen

    def chosen(self, data: str, split: str | None) -> Any:
        """The images that are looked at, of some data."""
        from repsim.images.image_set import ImageSet

        place = {"split": split, "root": self.data_dir}
        images = ImageSet(data, **place, images=self.images, seed=self.seed, groups=self.groups)
        return images if given("images") else images.at_most_all()

    def known_to(self, features: Sequence[Any]) -> Any:
        """The images that all features have in common, where there are no networks and no data."""
        from repsim.features.aligned import of_features_alone

        options_of_images = {"--split": self.split, "--data-dir": self.data_dir, "--groups": self.groups}
        for option, value in options_of_images.items():
            if value is not None:
                raise UsageError(f"{option} is for images, and there are only features; name the images with --data")
        return of_features_alone(features, images=self.images, seed=self.seed)


@dataclass(frozen=True)
class Run:
    """A run of a command that is under way."""

    job: Job
    networks: list[Any]
    images: Any
    out: Path
    started: float
    resume: Any
    settings: str
    """Digest of the settings that tell the run apart."""
    old: dict[str, Any]
    """The record of the run whose results are replaced."""
    written: set[Path]
    """The results that this run has written."""
    said: list[str] = field(default_factory=list)
    """The closing sentences on the result."""

    def pass_options(self, repeats: int = 1) -> dict[str, Any]:
        """Options of the passes over images, by the names that every study takes."""
        progress = progress_bar(self.job.quiet, repeats)
        options = {"workers": self.job.workers, "skip_broken": self.job.skip_broken}
        return {"progress": progress, **options, "resume": self.resume}

    def let_go_of_what_nobody_would_know(self) -> None:
        """Remove the results of a run that failed where no record could be written, as on a full disk.

        The next run could not tell them from files of the user, and would be refused.
        """
        from repsim.passes.resume import ABOUT
        from repsim.tables import RECORD

        if not ((self.out / RECORD).exists() or (self.resume.folder / ABOUT).exists()):
            for path in self.written:
                path.unlink(missing_ok=True)

    def finish(self) -> None:
        """End the run once everything is written."""
        from repsim.cli.directory import settle
        from repsim.passes import processes

        if is_first():
            settle(self.out, self.old, self.written)
        self.resume.finish()
        processes.leave()

    def save(self, result: Any, **options: Any) -> None:
        """Write tables, `run.json` and pictures, and print their paths and the closing sentences.

        Args:
            result: the result of a study.
            options: options of the pictures, see `draw`.
        """
        from repsim.cli.closing import said
        from repsim.cli.pictures import draw

        result.save_tables(self.out)
        self.record(result.record)
        draw(self.out, result.name, self.job.quiet, **options)
        self.said.extend(said(result))
        for sentence in self.said:
            say(sentence, self.job.quiet)

    def record(self, record_of_result: dict[str, Any]) -> dict[str, Any]:
        """Write `run.json`, and return it: it holds everything that is needed to repeat the run."""
        from repsim.cli.directory import SETTINGS, drop_tables
        from repsim.tables import RECORD, save_record

        record = {
            "command": command_line(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **record_of_result,
            SETTINGS: self.settings,
            "seconds": round(time.perf_counter() - self.started, 2),
        }
        drop_tables(self.out, self.old, self.written)
        save_record(record, self.out / RECORD)
        return record


def job_options(command: str, images: int | None, batch: int | str, batch_kind: str) -> Callable:
    """The options of a `Job`, which the command gets as its first argument.

    Args:
        command: its name.
        images: the default number of images; None: all images.
        batch: the batch size where there are many images, see `fitting`.
        batch_kind: the kind of batch.
    """
    drawn = "How many, drawn at random." + ("" if images else "  [default: all]")
    decorate = options(
        click.option(
            "--data",
            type=Source(),
            metavar="DATA",
            help="Folder of images, `sample`, `fashion-mnist`, `noise`, or a timm data set such as torch/cifar10.  "
            "[default: the bundled sample for bundled networks, else data/imagenet/val or $REPSIM_IMAGENET]",
        ),
        click.option("--data-dir", type=Source(), metavar="DIR", help="Folder of timm's data sets or Fashion-MNIST."),
        click.option("--split", help="A split, or a folder inside DATA."),
        click.option("--images", type=int, default=images, show_default=True, help=drawn),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**63 - 1),
            default=0,
            show_default=True,
            help="Seed for choosing images and for untrained weights.",
        ),
        click.option("--workers", type=int, help="Processes that decode images.  [default: one per core, up to 8]"),
        click.option("--skip-broken", is_flag=True, help="Go on without images that cannot be read, and count them."),
        click.option(
            "--groups",
            type=click.Choice(["class"]),
            help="Images of a class are not independent, as crops of a photograph: intervals are over classes.",
        ),
        click.option(
            "--batch-size",
            type=int,
            help=f"Images per {batch_kind}.  [default: {batch}; fewer if images are few, so that there are 8 batches]",
        ),
        click.option("--device", help="cpu, cuda, cuda:1, mps ...  [default: cuda where there is one]"),
        click.option(
            "--precision",
            type=click.Choice(["fp32", "tf32", "bf16"]),
            help="Precision of the networks; tf32 on CUDA only.  [default: tf32 on CUDA, else fp32]",
        ),
        click.option("--compile", "compiled", is_flag=True, help="Have torch.compile run the networks."),
        click.option(
            "--seed-each-pass",
            is_flag=True,
            help="Begin every pass with the same seed, for networks that draw at random while they run.",
        ),
        click.option(
            "--memory",
            metavar="SIZE",
            help="Main memory that may be used, such as 8G or 50%.  [default: three quarters of the free memory]",
        ),
        click.option(
            "--out",
            type=Place(),
            help=f"Directory of the results.  [default: runs/{command}-..., and digits if another run has that]",
        ),
        click.option(
            "--redraw",
            type=Place(),
            metavar="DIR",
            help="Only draw the pictures of a finished run anew.",
        ),
        click.option(
            "--checkpoint-every",
            type=Seconds(0),
            default=60.0,
            show_default=True,
            metavar="SECONDS",
            help="Time between two saves of the sums; the same command, given again, goes on from the last save.",
        ),
        click.option("--fresh", is_flag=True, help="Start over, without saved sums."),
        click.option("--overwrite", is_flag=True, help="Replace the results of another run in --out."),
        click.option("--quiet", is_flag=True, help="Print errors only."),
        AS_JSON,
    )
    shared = [f.name for f in fields(Job) if f.name != "command"]

    def with_job(function: Callable) -> Callable:
        @functools.wraps(function)
        def called(**given: Any) -> Any:
            job = Job(command, **{name: given.pop(name) for name in shared})
            if not is_first():
                job = replace(job, quiet=True, as_json=False)
            if job.redraw is None:
                out = function(job, **given)
            else:
                from repsim.cli.pictures import redrawing

                with redrawing(job.redraw):
                    out = function(job, **given)
            run = click.get_current_context().meta.get(RUN)
            if run is not None:
                run.finish()
            if job.as_json and out is not None:
                print_json({"directory": str(out), **said_of(out), "said": [] if run is None else run.said})

        return decorate(called)

    return with_job


def said_of(out: Path) -> dict[str, Any]:
    """The files and notices of a run, from its record."""
    from repsim.cli.directory import read

    record = read(out)
    return {"files": [str(out / name) for name in record.get("files", [])], "notices": record.get("notices", [])}


def about(job: Job, networks: list[Any], images: Any, train: Any = None) -> dict[str, Any]:
    """The settings that the sums of a run depend on, which tell it apart from other runs."""
    from repsim.images.image_set import Counts
    from repsim.networks.models import NO_HASH
    from repsim.studies.results import device_name, versions

    means = {"out", "redraw", "workers", "memory", "checkpoint_every", "fresh", "overwrite", "quiet", "as_json"}
    options_given = click.get_current_context().params

    def seen(images: Any) -> dict[str, Any]:
        """The record of images without their surroundings, which change no sums."""
        return {name: value for name, value in images.record(Counts()).items() if name != "left_out"}

    records = [network.record() for network in networks]
    for record in records:
        if record["weights_sha256"].startswith(NO_HASH):  # whether a second run has the same weights cannot be known
            record["weights_sha256"] = uuid4().hex
    return {
        "command": job.command,
        "options": {name: value for name, value in options_given.items() if name not in means},
        "networks": records,
        "images": seen(images),
        **({} if train is None else {"training images": seen(train)}),
        "versions": versions(networks),
        "device": device_name(networks[0].device),
        "processes": world_size(),
    }


def bound(subject: str, images: Any) -> dict[str, str]:
    """The digests of the images that sums belong to, because files may have been replaced since."""
    return {f"{kind} of {subject}": value for kind, value in images.identity().items()}


IMAGENET = "data/imagenet/val"
"""The folder of ImageNet's validation images, unless REPSIM_IMAGENET names one."""


def default_data(networks: list[str]) -> str:
    """The default data: the bundled sample for bundled networks, else ImageNet.

    Raises:
        UsageError: there is none.
    """
    if (data := data_at_hand(networks)) is not None:
        return data
    raise UsageError(
        "no images: give a folder with --data DIR (data/README.md says how to get some), or put ImageNet's validation "
        f"images into {IMAGENET} or name their folder in REPSIM_IMAGENET; `--data noise` gives a dry run"
    )


def data_at_hand(networks: list[str]) -> str | None:
    """The default data of these networks; None: there is none."""
    from repsim.networks.minis import ARCHITECTURES, bundled

    if all(name in ARCHITECTURES or name in bundled() for name in networks):
        return "sample"
    named = os.environ.get("REPSIM_IMAGENET")
    if named and not Path(named).is_dir():
        raise UsageError(f"REPSIM_IMAGENET names {named!r}, which is not a folder")
    for place in (named, IMAGENET):
        if place and Path(place).is_dir():
            return place
    return None
