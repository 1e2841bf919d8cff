"""Making figures: choosing the possible ones, planning their passes and memory, and making all from one pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from typing_extensions import Self

from repsim.errors import RepsimError, UsageError, one_of
from repsim.images.image_set import ImageSet, as_image_set
from repsim.networks.minis import bundled
from repsim.paper.claims import claims_of, unchecked
from repsim.paper.exhibits import Exhibit, Made, Probed
from repsim.paper.figures import FIGURES, PRESETS
from repsim.paper.files import draw_figures, numbers_of, save_figure
from repsim.paper.findings import findings
from repsim.paper.measurements import Cannot, Measurements, Pass
from repsim.paper.measuring import Later, measure
from repsim.paper.numbers import over_runs
from repsim.paper.report import conclude
from repsim.paper.roles import Case, Roles, in_words
from repsim.passes.plan import unsaid
from repsim.plots.style import Figure
from repsim.studies.results import AnyImages, Begun, Result, begin, study
from repsim.tables import RECORD, prepare, save_record


def wanted(numbers: Sequence[str] | None = None) -> list[Exhibit]:
    """Figures by their numbers, such as 1 or C.5; None: all of them."""
    chosen = {number.upper(): number for number in numbers or FIGURES}
    for number, given in chosen.items():
        if number not in FIGURES:
            raise one_of("figure", given, FIGURES)
    return [FIGURES[number] for number in chosen]


class Reasons(dict[tuple[str, str], list[str]]):
    """Reasons why figures, or networks in figures, are left out: (networks, reason) -> numbers of figures."""

    def add(self, exhibit: Exhibit, reason: str, without: str = "") -> None:
        """Add a reason for one figure, or for the networks that it is made `without`."""
        self.setdefault((without, reason), []).append(exhibit.number)

    def sentences(self, words: str = "") -> list[str]:
        """One for each reason, whatever the number of figures."""
        sentences = []
        for (without, reason), numbers in self.items():
            several = len(numbers) > 1
            verb = "are" if several else "is"
            predicate = words or (f"{verb} without {without}" if without else f"{verb} left out")
            sentences.append(f"figure{'s' * several} {', '.join(numbers)} {predicate}: {reason}")
        return sentences


@dataclass(frozen=True)
class Cast:
    """The figures that can be made of the networks that play, and the reasons for leaving figures out."""

    roles: Roles
    exhibits: list[Exhibit]
    left_out: Reasons
    """Reasons for figures that cannot be made: roles without a network, and networks that were not trained."""

    @classmethod
    def of(cls, exhibits: Sequence[Exhibit], roles: Roles, trained: Collection[str] | None = None) -> Self:
        """Choose the possible figures among the wanted ones.

        Args:
            exhibits: figures.
            roles: the networks that play; bundled networks by their names.
            trained: names of the trained bundled networks; None: the networks of this installation.

        Raises:
            UsageError: none can be made.
        """
        trained = bundled() if trained is None else trained
        possible, why = [], Reasons()
        for exhibit in exhibits:
            missing_roles = roles.lacking(exhibit)
            players = [] if missing_roles or not roles.bundled else exhibit.players(roles.cases(exhibit))
            missing = [name for name in players if name not in trained]
            if missing_roles:
                why.add(exhibit, exhibit.note(roles.preset) or in_words(missing_roles))
            elif missing:
                why.add(exhibit, f"not trained: {', '.join(missing)} (analyses/train_minis.py)")
            else:
                possible.append(exhibit)
        if not possible:
            raise UsageError("; ".join(why.sentences("cannot be made")))
        return cls(roles, possible, why)

    @property
    def players(self) -> list[Any]:
        """All networks that play, without duplicates."""
        return self.roles.players(self.exhibits)

    def played_by(self, players: Mapping[Any, Any]) -> Self:
        """The same figures, with every network replaced."""
        return replace(self, roles=self.roles.played_by(players))

    @property
    def probes(self) -> bool:
        """Whether training images are needed."""
        return any(isinstance(exhibit, Probed) for exhibit in self.exhibits)


@dataclass
class Part:
    """One figure of a plan: its networks, and, once its studies were asked for, the function that makes it."""

    exhibit: Exhibit
    roles: Roles
    cases: list[Case]
    apart: set[frozenset[str]] = field(default_factory=set)
    """Sets of networks that no group may hold together."""
    later: Later | None = None
    again: dict[str, Part] = field(default_factory=dict)
    """A further training run of its ViT -> the same figure of that run, of which only the numbers are used."""

    @classmethod
    def of(cls, exhibit: Exhibit, roles: Roles) -> Part:
        """Plan a figure; where a user's ViT was trained several times, with all of its runs."""
        cases = roles.cases(exhibit)
        again: dict[str, Part] = {
            run: cls(exhibit, roles, [{**case, "vit": (run,)} for case in cases]) for run in roles.runs(exhibit)
        }
        return cls(exhibit, roles, cases, again=again)

    @property
    def networks(self) -> tuple[Any, ...]:
        return self.exhibit.networks(self.cases, self.apart)

    @property
    def players(self) -> list[str]:
        return self.exhibit.players(self.cases, self.apart)

    def ask(self, m: Measurements, why: Reasons) -> bool:
        """Ask for its studies of all networks that have the layers; whether any has. Reasons are added to `why`."""
        able = self._of_those_who_can(lambda later: None, m, why)
        self.again = {run: part for run, part in self.again.items() if able and part.ask(m, Reasons())}
        return able

    def make(self, m: Measurements, why: Reasons) -> Made | None:
        """Make its tables once the images have passed, of all networks that have the layers; None: no network has."""
        results: list[Made] = []
        self._of_those_who_can(lambda later: results.append(later()), m, why)
        if not results:
            return None
        (result,) = results
        again = {run: figure for run, part in self.again.items() if (figure := part.make(m, Reasons())) is not None}
        if again and "numbers" in result.tables:
            (run,) = self.roles.every["vit"]
            other_numbers = {other: figure.tables["numbers"] for other, figure in again.items()}
            result.tables["numbers"] = over_runs(result.tables["numbers"], run, other_numbers)
        return result

    def _of_those_who_can(self, use: Callable[[Later], None], m: Measurements, why: Reasons) -> bool:
        while True:
            try:
                if self.later is None:
                    self.later = measure(self.exhibit, m, self.networks, self.exhibit.compared(self.cases))
                use(self.later)
                return True
            except Cannot as error:
                self.later = None
                self._without(error.networks)
                if not self.networks or self.roles.lacking(self.exhibit, self.cases):
                    why.add(self.exhibit, str(error))
                    return False
                why.add(self.exhibit, str(error), " with ".join(sorted(error.networks)))
            except RepsimError as error:
                why.add(self.exhibit, str(error))
                return False

    def _without(self, networks: frozenset[str]) -> None:
        if len(networks) > 1:
            self.apart.add(networks)
            return
        self.cases = [
            {role: tuple(name for name in names if name not in networks) for role, names in case.items()}
            for case in self.cases
        ]

    def record(self) -> dict[str, Any]:
        """The record of the figure."""
        exhibit = self.exhibit
        known = {"number": exhibit.number, "title": exhibit.title, "paper_shows": exhibit.shows}
        shown = [{role: case[role] for role in exhibit.roles if case.get(role)} for case in self.cases]
        origin = {"preset": self.roles.preset, "networks": self.networks, "roles": shown}
        return {**known, **origin, "differs": exhibit.note(self.roles.preset)}


@dataclass
class Plan:
    """The figures that would be made, their networks, passes and memory; nothing has run yet."""

    begun: Begun
    parts: list[Part]
    passes: list[Pass]
    protocol: dict[str, Any]
    _m: Measurements

    def __str__(self) -> str:
        lines = [f"{len(self.parts)} figures, of {', '.join(network.name for network in self.begun.networks)}:"]
        for names, parts in groupby(self.parts, lambda part: part.players):
            lines.append(f"  {', '.join(part.exhibit.number for part in parts)}: {', '.join(names)}")
        return "\n".join(
            [
                *lines,
                "passes over images, and the memory of each:",
                *(f"  {planned_pass}" for planned_pass in self.passes),
            ]
        )

    def record(self) -> dict[str, Any]:
        """The plan as JSON has it."""
        figures = [{key: part.record()[key] for key in ("number", "title", "networks")} for part in self.parts]
        passes = [planned_pass.record() for planned_pass in self.passes]
        return {"figures": figures, "passes": passes, **self.protocol, "notices": list(self.begun.notices)}

    def run(self) -> Replication:
        """Pass the images, and make the figures; one that turns out not to be possible is left out, with the reason.

        Raises:
            RepsimError: none is possible.
        """
        m, why = self._m, Reasons()
        with unsaid():
            counts = m.run()
            figures_made = [(part, figure) for part in self.parts if (figure := part.make(m, why)) is not None]
        if not figures_made:
            raise RepsimError("; ".join(why.sentences()))
        figures = [(part.exhibit, figure) for part, figure in figures_made]
        for part, figure in figures_made:
            figure.record = {**part.record(), "random": self.begun.untrained}
        numbers = numbers_of(figures)
        self.begun.notices.say(*why.sentences(), *unchecked(numbers))
        ran = {"batch_size": counts.batch_size, "batches": counts.batches, "forward_passes": m.passes}
        record = self.begun.record(counts, {**self.protocol, **ran, "probes": m.probe_protocols()})
        for _, figure in figures:
            figure.record["images"] = record["images"]
        return Replication("claims", claims_of(numbers), record, made=figures)


@study
def plan(
    networks: Mapping[str, Any] | Roles | Cast | str,
    images: AnyImages = None,
    train: ImageSet | None = None,
    figures: Sequence[str] | None = None,
    *,
    layers: str | None = None,
    batch_size: int | None = None,
    channels: int = 16,
    **pass_options: Any,
) -> Plan:
    """Plan `replicate` with the same arguments: printing the plan shows figures, passes and memory.

    >>> import repsim as rs
    >>> planned = rs.paper.plan({"vit": "vit_mini"}, rs.ImageSet("sample", images=32), figures=["3"])
    >>> print(str(planned).partition("passes")[0])
    1 figures, of vit_mini:
      3: vit_mini
    <BLANKLINE>
    """
    cast = _cast(networks, figures)
    roles = cast.roles
    if images is None and train is None and cast.probes:
        train = ImageSet("sample", split="train")
    images = as_image_set(images, roles.images)
    layers, players = layers or roles.layers, cast.players
    begun = begin(players, images, layers=layers, batch_size=batch_size, usual=roles.batch_size, over_batches=True)
    names = dict(zip(players, [network.name for network in begun.networks]))
    named = roles.played_by(names)
    by_name = {network.name: network for network in begun.networks}
    say = begun.notices.say
    say(*cast.left_out.sentences())
    if train is not None and train.left_out:
        say(train.left_out_in_words)
    m = Measurements(
        by_name.__getitem__,
        begun.images,
        train,
        layers=layers,
        batch_size=begun.batch_size,
        channels=channels,
        **pass_options,
    )
    parts = [Part.of(exhibit, named) for exhibit in cast.exhibits]
    why = Reasons()
    parts = [part for part in parts if part.ask(m, why)]
    if not parts:
        raise RepsimError("; ".join(why.sentences()))
    say(*why.sentences(), *m.notices)
    protocol: dict[str, Any] = {
        "preset": roles.preset,
        "layers": layers,
        "batch_size": begun.batch_size,
        "channels": channels,
    }
    if not roles.figures:
        protocol["roles"] = {role: list(players) for role, players in named.every.items() if players}
    return Plan(begun, parts, m.plan(), protocol, m)


@study
def replicate(
    networks: Mapping[str, Any] | Roles | Cast | str,
    images: AnyImages = None,
    train: ImageSet | None = None,
    figures: Sequence[str] | None = None,
    *,
    layers: str | None = None,
    batch_size: int | None = None,
    channels: int = 16,
    tell: Callable[[Plan], None] | None = None,
    **pass_options: Any,
) -> Replication:
    """Make the figures of the paper from networks that play its roles, and check its claims and findings.

    Forward-only figures share one pass, in which every network sees every image once; probes are fitted before it, and
    receptive fields take passes of their own afterwards.

    Args:
        networks: role -> the network that plays it, or several: panels or curves of one figure, of which every claim
            is checked for each. Roles: `vit` and `cnn`, each enough for its own figures; `gap` (a ViT without CLS),
            `little` (trained on little data), `small` (of another size), `mixer`, `tuned` (fine-tuned from `vit`) and
            `seed` (another training run of `vit`: the ceiling that chance allows); `roles.ROLES` has some more. Or the
            name of a preset, `mini` or `paper`.
        images: see `layer_cka`; None: 2,560 of the bundled sample, or as many as the preset has.
        train: training images with labels, for probes; None: no probes, except with the bundled sample.
        figures: numbers such as 1 or C.5; None: all figures that the roles allow.
        layers: layers of similarity, see `find_layers`; None: `blocks`, or the preset's.
        batch_size: images per minibatch; None: 256, or as many as the preset has, and for few images fewer, see
            `layer_cka`.
        channels: of each layer, of receptive fields; 0: all.
        tell: gets the plan before anything runs.
        pass_options: see `repsim.passes.sweep.Passing`.

    Returns:
        `claims`: one row per claim of the paper and number: claim, source, measured, low, high, direction, paper (what
        it finds of its own networks, where it gives a value), verdict. `findings`: the paper's six, each with what was
        found here. `save` writes the files of `repsim figures`.

    Raises:
        UsageError: no figure can be made of these roles.
        RepsimError: none can be made of these networks.

    >>> import repsim as rs
    >>> replication = rs.paper.replicate({"vit": "vit_mini"}, rs.ImageSet("sample", images=32), figures=["3"])
    >>> replication.claims["verdict"].tolist(), replication.findings.shape  # one claim of this figure, six findings
    (['disagrees'], (6, 3))
    """
    options = {"layers": layers, "batch_size": batch_size, "channels": channels}
    planned = plan(networks, images, train, figures, **options, **pass_options)
    if tell is not None:
        tell(planned)
    return planned.run()


def _cast(networks: Mapping[str, Any] | Roles | Cast | str, figures: Sequence[str] | None) -> Cast:
    if isinstance(networks, Cast):
        return networks
    if isinstance(networks, str):
        if networks not in PRESETS:
            raise one_of("preset", networks, PRESETS)
        networks = PRESETS[networks]
    return Cast.of(wanted(figures), networks if isinstance(networks, Roles) else Roles.of(networks))


@dataclass(frozen=True, repr=False)
class Replication(Result):
    """The figures that were made; `table` is that of the claims."""

    made: list[tuple[Exhibit, Made]] = field(default_factory=list)
    """Each figure with its tables and numbers."""

    @property
    def claims(self) -> pd.DataFrame:
        """The claims of the paper, with the verdict on each number."""
        return self.table

    @property
    def findings(self) -> pd.DataFrame:
        """The six findings of the paper, each with a verdict and a sentence from the numbers."""
        return findings(numbers_of(self.made))

    def figures(self, **options: Any) -> dict[str, Figure]:
        """All pictures, by the names of their files."""
        return {
            f"figure-{exhibit.number}": exhibit.draw(results, exhibit.caption(results.record))
            for exhibit, results in self.made
        }

    def save_tables(self, directory: Path) -> list[Path]:
        """A folder for each figure, with its tables and record."""
        of_run = {key: self.record[key] for key in ("command", "date") if key in self.record}
        return [path for exhibit, results in self.made for path in save_figure(exhibit, results, directory, of_run)]

    def save(self, directory: str | Path, **options: Any) -> list[Path]:
        """Write what `repsim figures` writes: figures, their pictures, claims and the page, over what is there."""
        directory = prepare(directory)
        written = self.save_tables(directory)
        save_record(self.record, directory / RECORD)
        drawn = draw_figures(directory, [exhibit for exhibit, _ in self.made])
        concluded, _ = conclude(directory)
        return [*written, directory / RECORD, *drawn, *concluded]

    def _repr_html_(self) -> str:
        return self.findings._repr_html_() + self.table._repr_html_()

    def _repr_png_(self) -> None:
        return None
