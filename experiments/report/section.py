"""What a page shows of the groups of runs on one source, as a list of sections."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from experiments.report import tables
from experiments.report.charts import differences_chart, learning_curves
from experiments.report.compare import compare
from experiments.report.runs import Group
from experiments.report.samples import Samples, UserSample


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading with a note, and below it tables, charts and samples of users; any of these may be none."""

    id: str
    title: str
    note: str
    tables: Sequence[tables.PageTable] = ()
    charts: Sequence[str] = ()
    users: Sequence[UserSample] = ()


def sections_of(groups: Sequence[Group], samples: Samples) -> list[Section]:
    """Lists the sections of the groups on one source, in the order of the page; the first group is the base."""
    base, comparisons, sections = groups[0].name, compare(groups), []
    if len(groups) > 1:
        note = f"One metric of each task, and in brackets the difference to {base}, coloured where it is significant."
        sections.append(Section("overview", "Overview", note, [tables.overview_table(groups, comparisons)]))
    for one in comparisons:
        found = [tables.metrics_table(one), *([tables.differences_table(one, base)] if one.compared else [])]
        sections.append(Section(one.task, one.title.capitalize(), one.description, found, differences_chart(one, base)))
    note = "Means over seeds; a band reaches from the lowest to the highest seed."
    sections.append(Section("learning", "Learning", note, charts=learning_curves(groups)))
    note = (
        "Of one run, the mean over seeds, with the runs that it was initialised from. Time is that of training steps "
        "and of waiting for data, without compilation, validation and saving. Model FLOPs follow from the geometry."
    )
    sections.append(Section("cost", "Cost", note, [tables.cost_table(groups)]))
    note = (
        "The latest items of a history, the newest on the right; then the recommendations, the best on the left. A "
        "green frame is the item that the user truly interacted with next."
    )
    if samples.error or not samples.recommendations:
        note = f"No user is shown: {samples.error or f'{base} was evaluated without samples'}"
    sections.append(Section("users", "Users, and what is recommended to them", note, users=samples.recommendations))
    if samples.images:
        note = (
            "The latest items of a history; the wanted item's own image in a green frame, and the same decoded from "
            "its codes (the best that could be generated); then what was generated for the query."
        )
        sections.append(Section("images", "Images generated for users", note, users=samples.images))
    note = (
        "Seeds, and the settings in which a group differs from the first. Of several groups, the first seed is shown."
    )
    found = [*([tables.settings_table(groups)] if len(groups) > 1 else []), tables.starts_table(groups)]
    sections.append(Section("runs", "Runs", note, found))
    return sections
