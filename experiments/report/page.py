"""Writes the page of one run or of many, and the tables of many as Markdown."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from data_pipelines.atomic import atomic_file
from data_pipelines.errors import DataError
from experiments.report import charts
from experiments.report.compare import is_minor
from experiments.report.runs import Group, LeftOut, read_groups
from experiments.report.samples import Samples, read_samples
from experiments.report.section import Section, sections_of
from experiments.report.tables import markdown_table
from experiments.results import load_evaluation

MOST_UNFOLDED = 6
"""With more groups, only the first users are unfolded."""

READING = (
    "Means over seeds [95 % interval for other seeds and other users; for baselines, and for groups of one seed, for "
    "other users]. Differences are to the first group, on the same users; p over seeds and users (Student's t; of "
    "these seeds, a randomisation test over users), after Holm's correction over the column (intervals are each for "
    "itself); **bold** where it is below .05."
)


@dataclasses.dataclass(frozen=True)
class SourceReport:
    """All that is shown of one data source."""

    name: str
    groups: Sequence[Group]
    samples: Samples
    sections: Sequence[Section]

    @property
    def stretched(self) -> bool:
        """Whether generated images were squeezed into squares and are shown in their own shape."""
        return self.groups[0].runs[0].config.images.fit == "stretch"


def write_report(folders: Sequence[Path], split: str = "test", out: Path | None = None) -> Path:
    """Writes `report.html`, of several runs also `report.md`, each whole or not at all.

    Args:
      folders: of runs, of sweeps, or of folders of these. The first group of runs that is found on a source is the
        base of the comparisons.
      split: the evaluation that is read.
      out: the folder that is written to; by default the run's, or the one in which all `folders` lie.

    Returns:
      The path of the page.

    Raises:
      DataError: there is no run, or none that was evaluated. For the page of a single run also if its data or the
        images that it generated cannot be shown, which the page of several says in their place.
    """
    if not folders:
        raise DataError("name the folder of a run, several, or that of a sweep")
    single = len(folders) == 1 and out is None and (folders[0] / "config.json").exists()
    if single:
        load_evaluation(folders[0] / "evaluation" / f"{split}.json")  # its error names the splits that there are
    found, left_out = read_groups(folders, split)
    sources = [read_source(groups) for groups in found]
    if single and sources[0].samples.errors:
        raise DataError(sources[0].samples.errors[0])
    out = out or Path(os.path.commonpath([folder.absolute() for folder in folders]))
    out.mkdir(parents=True, exist_ok=True)
    options = [] if split == "test" else ["--split", split]
    command = shlex.join(["unimp", "report", *map(str, folders), *options])
    facts = facts_of(sources, command)
    page = template().render(title=out.name, facts=facts, split=split, sources=sources, left_out=left_out)
    if not single:
        write_whole(out / "report.md", markdown(out.name, command, sources, left_out))
    write_whole(out / "report.html", page)
    return out / "report.html"


def read_source(groups: Sequence[Group]) -> SourceReport:
    samples = read_samples(groups)
    return SourceReport(groups[0].runs[0].config.data.source, groups, samples, sections_of(groups, samples))


def facts_of(sources: Sequence[SourceReport], command: str) -> dict[str, Any]:
    """What stands at the head of a page, by name."""
    groups = [group for source in sources for group in source.groups]
    runs = [run for group in groups for run in group.runs]
    facts = {"source": ", ".join(source.name for source in sources)}
    if len(runs) == 1:
        return facts | {"checkpoint at step": runs[0].evaluation.step} | runs[0].evaluation.facts
    return facts | {"groups": len(groups), "runs compared": len(runs), "made by": command}


def markdown(title: str, command: str, sources: Sequence[SourceReport], left_out: Sequence[LeftOut]) -> str:
    """All tables of a page that are not folded."""
    lines = [f"# {title}", "", f"`{command}`", "", READING]
    for source in sources:
        lines += ["", f"## {source.name}"]
        for section in source.sections:
            tables = [markdown_table(table) for table in section.tables if not table.summary]
            if tables:
                lines += ["", f"### {section.title}", "", section.note]
            for table in tables:
                lines += ["", *table]
    if left_out:
        lines += ["", "## Left out", "", *(f"- {one.name}: {one.reason}" for one in left_out)]
    return "\n".join([*lines, ""])


def template() -> jinja2.Template:
    """The template of all pages; text is escaped, and a name that is not defined is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("experiments.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["minor"] = is_minor
    environment.globals |= {"charts": charts, "most_unfolded": MOST_UNFOLDED}
    return environment.get_template("page.html.jinja")


def write_whole(path: Path, text: str) -> None:
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
