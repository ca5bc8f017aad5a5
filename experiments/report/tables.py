"""The tables of a page, in one form for both HTML and Markdown."""

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from experiments.report.compare import Comparison, Line, Tested, is_minor
from experiments.report.cost import COST, mean_cost
from experiments.report.runs import EvaluatedRun, Group, changes
from unimp_jax.evaluation.bootstrap import Interval


class TableCell(NamedTuple):
    """A cell with its details below.

    Attributes:
      value: sort key of the column; None in a column of text.
      mark: CSS classes, "best" or "significant" and "better" or "worse".
      group: the group whose colour is shown, in the first column; None for a baseline.
    """

    text: str = "\N{EN DASH}"
    details: Sequence[str] = ()
    value: float | str | None = None
    mark: str = ""
    group: Group | None = None


@dataclasses.dataclass(frozen=True)
class PageTable:
    """A table; each row has a cell per column name.

    Attributes:
      ascending: columns whose values are better if smaller, so that a first click sorts them in ascending order.
      summary: if given, the table is folded under this text and not in the Markdown.
    """

    id: str
    rows: list[dict[str, TableCell]]
    ascending: Collection[str] = ()
    heading: str = ""
    summary: str = ""

    def is_text(self, column: str) -> bool:
        return not any(row[column].value is not None for row in self.rows)


def overview_table(groups: Sequence[Group], comparisons: Iterable[Comparison]) -> PageTable:
    """Tabulates the headline metric of each task, and its difference to the base."""

    def cell(line: Line | None, name: str) -> TableCell:
        if not line or name not in line.metrics:
            return TableCell()
        mean, tested = line.metrics[name].mean, line.differences.get(name)
        change = [f"({format_change(tested.mean)})"] if tested else []
        return TableCell(format_metric(mean), change, mean, mark_of(tested))

    titles = {f"{one.title}, {one.headline}": one for one in comparisons if one.headline}
    rows = [
        label(group.name, group) | {title: cell(one.first_line(group), one.headline) for title, one in titles.items()}
        for group in groups
    ]
    ascending = [title for title, one in titles.items() if not one.table.larger_is_better]
    return PageTable("overview-table", rows, ascending)


def metrics_table(comparison: Comparison) -> PageTable:
    """Tabulates all metrics of groups and baselines on a task, with their intervals."""
    lines, names = comparison.lines, list(dict.fromkeys(name for line in comparison.lines for name in line.metrics))
    choose = max if comparison.table.larger_is_better else min
    best = {name: choose(line.metrics[name].mean for line in lines if name in line.metrics) for name in names}

    def cell(found: Interval | None, best: float) -> TableCell:
        if not found:
            return TableCell()
        mark = "best" if found.mean == best else ""
        return TableCell(format_metric(found.mean), [f"[{found.bounds(', ')}]"], found.mean, mark)

    def row(line: Line) -> dict[str, TableCell]:
        note = "" if line.users == comparison.table.users else f"{line.users:,} users"
        seeds = TableCell(str(line.runs), value=line.runs) if line.group else TableCell("")
        cells = {name: cell(line.metrics.get(name), best[name]) for name in names}
        return label(line.name, line.group, note if line.group else "baseline") | {"seeds": seeds} | cells

    return PageTable(
        f"{comparison.task}-metrics", [*map(row, lines)], [] if comparison.table.larger_is_better else names
    )


def differences_table(comparison: Comparison, base: str) -> PageTable:
    """Tabulates the differences of a task's metrics to the base, with intervals and p-values."""

    def cell(tested: Tested | None) -> TableCell:
        if not tested:
            return TableCell()
        interval = f"[{format_change(tested.low)}, {format_change(tested.high)}]"
        chance = "p < .001" if tested.holm < 0.001 else f"p = {tested.holm:.3f}".replace("0.", ".", 1)
        return TableCell(format_change(tested.mean), [interval, chance], tested.mean, mark_of(tested))

    lines = comparison.compared
    names = list(dict.fromkeys(name for line in lines for name in line.differences))
    rows = [label(line.name, line.group) | {name: cell(line.differences.get(name)) for name in names} for line in lines]
    heading = f"Differences to {base} for the same users"
    return PageTable(
        f"{comparison.task}-differences", rows, [] if comparison.table.larger_is_better else names, heading
    )


def cost_table(groups: Sequence[Group]) -> PageTable:
    """Tabulates the mean cost of a run."""

    def cell(name: str, value: float) -> TableCell:
        return TableCell() if math.isnan(value) else TableCell(COST[name](value), value=value)

    costs = [(group, mean_cost(group.runs)) for group in groups]
    rows = [label(group.name, group) | {name: cell(name, x) for name, x in one.items()} for group, one in costs]
    return PageTable("cost-table", rows)


def settings_table(groups: Sequence[Group]) -> PageTable:
    """Tabulates seeds, and the settings in which a group differs from the base."""

    def row(group: Group) -> dict[str, TableCell]:
        found = [f"`{name}` {before} → {now}" for name, before, now in changes(groups[0], group)]
        found += [f"different for each seed: {', '.join(group.varying)}"] if group.varying else []
        none = "the base" if group is groups[0] else "none but the seed"
        settings = TableCell("; ".join(found) or none, [*filter(None, [group.description])])
        seeds = TableCell(", ".join(map(str, group.seeds)))
        return label(group.name, group) | {"seeds": seeds, "settings, before → here": settings}

    return PageTable("settings-table", [*map(row, groups)])


def starts_table(groups: Sequence[Group]) -> PageTable:
    """Tabulates the commands and machines of all runs."""

    def cell(run: EvaluatedRun, start: Mapping[str, str]) -> TableCell:
        machine = "; ".join(text for name, text in start.items() if name != "command")
        return TableCell(f"`{start['command']}`", [machine, str(run.folder)])

    rows = [
        label(f"{group.name}, seed {run.config.seed}", group) | {"started": cell(run, start)}
        for group in groups
        for run in group.runs
        for start in run.starts or [{"command": "not logged"}]
    ]
    return PageTable("starts-table", rows, summary="Commands and machines of each run")


def label(name: str, group: Group | None, note: str = "") -> dict[str, TableCell]:
    return {"group": TableCell(name, [f"({note})"] if note else [], name, group=group)}


def mark_of(tested: Tested | None) -> str:
    return f"significant {'worse' if tested.worse else 'better'}" if tested and tested.significant else ""


def format_metric(mean: float) -> str:
    return f"{mean:.3f}" if abs(mean) < 10 else f"{mean:.1f}"


def format_change(value: float) -> str:
    return (f"{value:+.4f}" if abs(value) < 10 else f"{value:+.2f}").replace("-", "\N{MINUS SIGN}")


def markdown_table(table: PageTable) -> list[str]:
    """Returns the lines of a table in Markdown, without metrics of shorter lists; significant values are bold."""
    names = [name for name in table.rows[0] if not is_minor(name)]
    lines = [names, ["---"] * len(names)]
    for row in table.rows:
        cells = [(" ".join([row[name].text, *row[name].details]), row[name].mark) for name in names]
        lines.append([f"**{text}**" if mark.startswith("significant") else text for text, mark in cells])
    return [f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |".replace("\n", " ") for line in lines]
