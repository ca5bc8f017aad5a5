"""What is said of all groups of runs on one source."""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.report.bands import learning
from experiments.report.compare import Comparison, Line, compare
from experiments.report.contact import Asked, gather_asked
from experiments.report.cost import Cost, mean_cost
from experiments.report.gather import Group
from experiments.report.people import People, gather_people


@dataclasses.dataclass(frozen=True)
class Section:
    """What is said of all groups on one source; `changes` are a group's settings that are not the base's."""

    source: str
    groups: list[Group]
    comparisons: list[Comparison]
    curves: list[str]
    costs: list[tuple[Group, Cost]]
    people: People
    asked: tuple[Asked, ...]
    changes: list[tuple[Group, list[tuple[str, Any, Any]]]]

    @property
    def stretched(self) -> bool:
        """Whether pictures were squeezed into squares, so that they are to be shown in their own shape."""
        return self.groups[0].runs[0].config.images.fit == "stretch"

    @property
    def runs(self) -> int:
        return sum(len(group.runs) for group in self.groups)

    @property
    def headlines(self) -> list[Comparison]:
        """The tasks of an overview: those that have one figure to tell."""
        return [comparison for comparison in self.comparisons if comparison.headline]

    @property
    def overview(self) -> list[tuple[Group, list[Line | None]]]:
        """Each group's line of each of `headlines`, the first where it was asked in several ways."""
        return [(group, [comparison.line_of(group) for comparison in self.headlines]) for group in self.groups]


def section(groups: list[Group]) -> Section:
    asked = gather_asked(groups)
    return Section(
        source=groups[0].runs[0].config.data.source,
        groups=groups,
        comparisons=compare(groups),
        curves=learning(groups),
        costs=[(group, mean_cost(group.runs)) for group in groups],
        people=gather_people(groups, {item for one in asked for item in one.items}),
        asked=asked,
        changes=[(group, changes(groups[0], group)) for group in groups],
    )


def changes(base: Group, group: Group) -> list[tuple[str, Any, Any]]:
    """(setting, the base's, the group's) where they differ; seeds and what differs between seeds aside."""
    before, after = base.runs[0].settings, group.runs[0].settings
    aside = {"seed", *group.uneven, *base.uneven}
    names = [name for name in dict.fromkeys([*before, *after]) if name not in aside]
    return [(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]
