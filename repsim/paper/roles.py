"""Roles of networks in the figures of the paper, and the networks that play them. No torch.

A figure says which roles it shows (`exhibits`); a preset, or a user's own networks, say who plays them. All go through
the same plan (`run`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from repsim.errors import UsageError, one_of

if TYPE_CHECKING:
    from repsim.paper.exhibits import Exhibit

ROLES = {
    "vit": "a ViT",
    "cnn": "a CNN",
    "gap": "a ViT without CLS",
    "little": "the ViT, trained on little data",
    "small": "a ViT of another size",
    "mixer": "an MLP-Mixer",
    "tuned": "the ViT, fine-tuned",
    "seed": "another training run of the ViT: the ceiling that chance allows",
    "other": "another ViT; where nobody plays it, who plays `gap`, `small` or `seed`",
    "noskip1": "the ViT, trained without the skips of its block 1 (from 0)",
    "noskip5": "of its block 5",
    "noskip9": "of its block 9",
}
"""Role -> the kind of network that plays it."""
STANDS_IN = {"other": ("gap", "small", "seed")}
"""Role -> its stand-ins: the first of these roles that has a network."""
OWN = "own"
"""The preset in records of runs on networks that a user chose."""

Case = Mapping[str, tuple[Any, ...]]
"""Role -> the networks that play it: names, or anything that stands for a network."""


def case(**players: Any) -> Case:
    """Make a case from one or several networks for each role.

    >>> case(vit="vit_b16", cnn=["resnet50", "resnet152"])
    {'vit': ('vit_b16',), 'cnn': ('resnet50', 'resnet152')}
    """
    several = {role: names if isinstance(names, (list, tuple)) else (names,) for role, names in players.items()}
    if unknown := [role for role in several if role not in ROLES]:
        raise one_of("role", str(unknown[0]), ROLES)
    return {role: tuple(dict.fromkeys(names)) for role, names in several.items() if names}


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The networks for every role, and the default images, batches and layers."""

    every: Case
    """The networks for every figure that is not in `figures`."""
    figures: Mapping[str, Sequence[Case]] = field(default_factory=dict)
    """Number of a figure -> its cases, which are complete as they are, whatever the figure needs otherwise."""
    preset: str = OWN
    images: int = 2560
    batch_size: int = 256
    """Images per minibatch; fewer if images are few, see `passes.sweep.fitting`."""
    layers: str = "blocks"
    bundled: bool = False
    """Whether the networks are bundled, if they were trained."""

    @classmethod
    def of(cls, players: Mapping[str, Any]) -> Roles:
        """Roles of a user's own networks, one or several for each role."""
        roles = cls(every=case(**players))
        if not roles.every:
            raise UsageError("no network plays a role; give at least one role, such as vit or cnn")
        return roles

    def cases(self, exhibit: Exhibit) -> list[Case]:
        """The networks of a figure, case by case."""
        if exhibit.number in self.figures:
            return list(self.figures[exhibit.number])
        stand_ins = {
            role: next(self.every[other] for other in others if self.every.get(other))
            for role, others in STANDS_IN.items()
            if not self.every.get(role) and any(self.every.get(other) for other in others)
        }
        return [{**self.every, **stand_ins}]

    def lacking(self, exhibit: Exhibit, cases: Sequence[Case] | None = None) -> list[str]:
        """The roles that need a network before a figure can be made.

        Args:
            cases: the networks that play in it, if not all that could.
        """
        cases = self.cases(exhibit) if cases is None else cases
        stated = exhibit.number in self.figures and exhibit.networks(cases)
        return [] if stated else exhibit.lacking(cases)

    def players(self, exhibits: Sequence[Exhibit]) -> list[Any]:
        """All networks of the figures, without duplicates."""
        playing = (
            player for exhibit in exhibits for player in [*exhibit.players(self.cases(exhibit)), *self.runs(exhibit)]
        )
        return list(dict.fromkeys(playing))

    def runs(self, exhibit: Exhibit) -> tuple[Any, ...]:
        """Further training runs of a user's ViT, if there is one ViT, for which a figure's numbers are made too."""
        one = self.preset == OWN and len(self.every.get("vit", ())) == 1 and "vit" in exhibit.roles
        return self.every.get("seed", ()) if one else ()

    def played_by(self, who: Mapping[Any, Any]) -> Roles:
        """The same roles with every network replaced; networks without a replacement are left out."""

        def of(case: Case) -> Case:
            return {role: tuple(who[player] for player in players if player in who) for role, players in case.items()}

        figures = {number: [of(case) for case in cases] for number, cases in self.figures.items()}
        return replace(self, every=of(self.every), figures=figures)


def in_words(roles: Sequence[str]) -> str:
    """That no network has them.

    >>> in_words(["little"]), in_words(["other", "cnn"])
    ('no network has the role little', 'no network has the role other (or gap, small, seed) or cnn')
    """
    named = [f"{role} (or {', '.join(STANDS_IN[role])})" if role in STANDS_IN else role for role in roles]
    return f"no network has the role {' or '.join(named)}"
