"""The tables of a comparison as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.report.compare import Comparison, Line, Tested, is_minor
from experiments.report.cost import COLUMNS
from experiments.report.gather import Missing
from experiments.report.page import show_figure
from experiments.report.section import Section
from unimp_jax.evaluation.bootstrap import Interval

NONE = "\N{EN DASH}"
READING = (
    "Means over seeds [95 % interval for other seeds and other people; baselines, and groups of one seed: for other "
    "people]. Differences are to the first group, on the same people; p over seeds and people (Student's t), after "
    "Holm's correction over the column (intervals are each for itself); **bold** where it is below .05."
)


def markdown(title: str, command: str, sections: Sequence[Section], missing: Sequence[Missing]) -> str:
    """All tables but the shorter lists' figures, which are on the page."""
    lines = [f"# {title}", "", f"`{command}`", "", READING, ""]
    for section in sections:
        lines += [f"## {section.source}", ""]
        if len(section.groups) > 1:
            lines += ["### Overview", "", *show_overview(section), ""]
        for comparison in section.comparisons:
            lines += [*show_task(comparison, section.groups[0].name), ""]
        lines += ["### Cost of one run", ""]
        costs = [
            [group.name, *(shown(show, value(cost)) for _, value, show in COLUMNS)] for group, cost in section.costs
        ]
        lines += [*show_table(["", *(name for name, _, _ in COLUMNS)], costs), "", "### What was run", ""]
        for group, changed in section.changes:
            differs = "; ".join(f"`{name}` {before} → {after}" for name, before, after in changed)
            said = [f"seeds {', '.join(map(str, group.seeds))}", *filter(None, [group.description, differs])]
            lines.append(f"- **{group.name}**: {'; '.join(said)}")
        lines.append("")
    if missing:
        lines += ["## Left out", "", *(f"- {run.name}: {run.why}" for run in missing), ""]
    return "\n".join(lines)


def show_overview(section: Section) -> Iterator[str]:
    heads = [f"{task_name(one)}, {one.headline}" for one in section.headlines]

    def cell(line: Line | None, headline: str) -> str:
        if line is None or headline not in line.figures:
            return NONE
        mean, tested = show_figure(line.figures[headline]), line.differences.get(headline)
        if tested is None:
            return mean
        change = show_change(tested.mean)
        return f"{mean} ({f'**{change}**' if tested.sure else change})"

    rows = [
        [group.name, *(cell(line, one.headline) for line, one in zip(found, section.headlines, strict=True))]
        for group, found in section.overview
    ]
    yield from show_table(["", *heads], rows)


def task_name(comparison: Comparison) -> str:
    return comparison.task.replace("-", " ")


def show_task(comparison: Comparison, base: str) -> Iterator[str]:
    names = [name for name in comparison.names if not is_minor(name)]
    better = "larger" if comparison.larger_is_better else "smaller"
    yield from (f"### {task_name(comparison).capitalize()}", "")
    yield from (f"{comparison.users:,} people; {better} is better. {comparison.note}", "")
    rows = [
        [name_of(line), line.runs or "", *(interval(line.figures.get(name)) for name in names)]
        for line in comparison.lines
    ]
    yield from show_table(["", "seeds", *names], rows)
    if comparison.compared:
        rows = [
            [line.name, *(difference(line.differences.get(name)) for name in comparison.tested)]
            for line in comparison.compared
        ]
        yield from ("", *show_table([f"less {base}", *comparison.tested], rows))


def name_of(line: Line) -> str:
    return line.name if line.group else f"{line.name} (baseline)"


def interval(figure: Interval | None) -> str:
    return f"{show_figure(figure)} [{figure.bounds(', ')}]" if figure else NONE


def difference(tested: Tested | None) -> str:
    if tested is None:
        return NONE
    text = f"{show_change(tested.mean)} [{show_change(tested.low)}, {show_change(tested.high)}]"
    chance = show_chance(tested.holm)
    return f"{f'**{text}**' if tested.sure else text}, p {chance if chance.startswith('<') else f'= {chance}'}"


def show_table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    for number, row in enumerate([head, *rows]):
        yield "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
        if number == 0:
            yield "|---" * len(head) + "|"


def shown(show: Any, value: float) -> str:
    return show(value) if value == value else NONE


def show_change(value: float) -> str:
    return (f"{value:+.4f}" if abs(value) < 10 else f"{value:+.2f}").replace("-", "\N{MINUS SIGN}")


def show_chance(p_value: float) -> str:
    if p_value < 0.001:
        return "< .001"
    return f"{p_value:.3f}".removeprefix("0")
