"""`unimp report`: writes the page of one run or of several, and the tables of several as Markdown."""

import dataclasses
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import tyro

from data_pipelines.atomic import atomic_file
from data_pipelines.errors import DataError
from data_pipelines.object_store import is_remote
from experiments.path_options import PathOrURL
from experiments.report import charts, tables
from experiments.report.compare import compare, is_minor
from experiments.report.runs import Group, LeftOut, read_groups
from experiments.report.samples import Samples, UserSample, read_samples
from experiments.report.tables import PageTable
from experiments.results import load_evaluation

MOST_UNFOLDED = 6
"""With more groups than this, only the first users are unfolded."""

READING = (
    "Means over seeds [95 % interval over other seeds and other users; for baselines and for groups of one seed, "
    "over other users only]. Differences are to the first group, for the same users; p-values cover seeds and "
    "users (Student's t) and are corrected by Holm's method within a column (intervals are not corrected); "
    "**bold** means p below .05."
)


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading with a note, followed by tables, charts and samples of users, each of which may be missing."""

    id: str
    title: str
    note: str
    tables: Sequence[PageTable] = ()
    charts: Sequence[str] = ()
    users: Sequence[UserSample] = ()


@dataclasses.dataclass(frozen=True)
class SourceReport:
    """Everything shown about one data source."""

    groups: Sequence[Group]
    samples: Samples
    sections: Sequence[Section]

    @property
    def name(self) -> str:
        return self.groups[0].runs[0].config.data.source

    @property
    def stretched(self) -> bool:
        """Whether images were stretched to squares, so that generated ones are shown in their original shape."""
        return self.groups[0].runs[0].config.images.fit == "stretch"


def report_command(
    folders: tyro.conf.Positional[tuple[PathOrURL, ...]], split: str = "test", out: PathOrURL | None = None
) -> None:
    """Write one page about an evaluated run, or about several, with their differences, and their tables as Markdown.

    Args:
      folders: one or several run folders, a sweep folder, or a folder that contains them.
      split: the evaluated split.
      out: folder for the page of several runs; by default the one that contains them all.
    """
    print(write_report(folders, split, out))


def write_report(folders: Sequence[Path], split: str = "test", out: Path | None = None) -> Path:
    """Writes `report.html` and, for several runs, `report.md`, each atomically.

    Args:
      folders: folders of runs, of sweeps, or folders that contain these. The first group of runs found on a source is
        the base of the comparisons.
      out: the output folder; by default the run's, or the one that contains all `folders`.

    Returns:
      The path of the page.

    Raises:
      DataError: there is no run, or none that was evaluated. For a single run also if its data or its generated images
        cannot be shown; a page of several runs says so in their place.
    """
    if not folders:
        raise DataError("give the folder of a run, of several runs, or of a sweep")
    single = len(folders) == 1 and out is None and (folders[0] / "config.json").exists()
    if single:
        load_evaluation(folders[0] / "evaluation" / f"{split}.json")  # its error names the available splits
    found, left_out = read_groups(folders, split)
    sources = []
    for groups in found:
        samples = read_samples(groups)
        sources.append(SourceReport(groups, samples, sections_of(groups, samples)))
    if single and sources[0].samples.errors:
        raise DataError(sources[0].samples.errors[0])
    if len(folders) > 1 and out is None and any(map(is_remote, folders)):
        raise DataError("the page of several runs in an object store needs an output file; give one with --out")
    if out is None:
        out = folders[0].absolute() if len(folders) == 1 else Path(os.path.commonpath(map(os.path.abspath, folders)))
    out.mkdir(parents=True, exist_ok=True)
    options = [] if split == "test" else ["--split", split]
    command = shlex.join(["unimp", "report", *map(str, folders), *options])
    facts = facts_of(sources, command)
    page = template().render(title=out.name, facts=facts, split=split, sources=sources, left_out=left_out)
    if not single:
        write_whole(out / "report.md", markdown(out.name, command, sources, left_out))
    write_whole(out / "report.html", page)
    return out / "report.html"


def sections_of(groups: Sequence[Group], samples: Samples) -> list[Section]:
    """Returns the sections of the groups on one source, in the order of the page; the first group is the base."""
    base, comparisons, sections = groups[0].name, compare(groups), []
    if len(groups) > 1:
        note = f"One metric per task, with the difference to {base} in brackets, coloured if it is significant."
        sections.append(Section("overview", "Overview", note, [tables.overview_table(groups, comparisons)]))
    for one in comparisons:
        found = [tables.metrics_table(one), *([tables.differences_table(one, base)] if one.compared else [])]
        sections.append(
            Section(one.task, one.title.capitalize(), one.description, found, charts.differences_chart(one, base))
        )
    note = "Means over seeds; a band covers the range from the lowest to the highest seed."
    sections.append(Section("learning", "Learning", note, charts=charts.learning_curves(groups)))
    note = (
        "Cost of one run: the mean over seeds, including the runs that it was initialised from. Time is that of "
        "training steps and of waiting for data, without compilation, validation and saving. Model FLOPs are "
        "computed from the geometry."
    )
    sections.append(Section("cost", "Cost", note, [tables.cost_table(groups)]))
    note = (
        "The latest items of a history, the newest on the right; then the recommendations, the best on the left. "
        "A green frame marks the item that the user really interacted with next."
    )
    if samples.error or not samples.recommendations:
        note = f"No users are shown: {samples.error or f'{base} was evaluated without samples'}"
    sections.append(Section("users", "Users and their recommendations", note, users=samples.recommendations))
    if samples.images:
        note = (
            "The latest items of a history; the image of the wanted item in a green frame, and its "
            "reconstruction from its codes (the best image that can be generated); then the images generated for "
            "the query."
        )
        sections.append(Section("images", "Images generated for users", note, users=samples.images))
    note = (
        "Seeds, and the settings in which a group differs from the first. If there are several groups, the first "
        "seed is shown."
    )
    found = [*([tables.settings_table(groups)] if len(groups) > 1 else []), tables.starts_table(groups)]
    sections.append(Section("runs", "Runs", note, found))
    return sections


def facts_of(sources: Sequence[SourceReport], command: str) -> dict[str, Any]:
    """Returns the facts at the top of a page, by name."""
    groups = [group for source in sources for group in source.groups]
    runs = [run for group in groups for run in group.runs]
    facts = {"source": ", ".join(source.name for source in sources)}
    if len(runs) == 1:
        return facts | {"checkpoint at step": runs[0].evaluation.step} | runs[0].evaluation.facts
    return facts | {"groups": len(groups), "runs compared": len(runs), "made by": command}


def markdown(title: str, command: str, sources: Sequence[SourceReport], left_out: Sequence[LeftOut]) -> str:
    """Formats all tables of a page that are not folded."""
    lines = [f"# {title}", "", f"`{command}`", "", READING]
    for source in sources:
        lines += ["", f"## {source.name}"]
        for section in source.sections:
            shown = [tables.markdown_table(table) for table in section.tables if not table.summary]
            if shown:
                lines += ["", f"### {section.title}", "", section.note]
            for table in shown:
                lines += ["", *table]
    if left_out:
        lines += ["", "## Left out", "", *(f"- {one.name}: {one.reason}" for one in left_out)]
    return "\n".join([*lines, ""])


def template() -> jinja2.Template:
    """Returns the template of all pages; text is escaped, and undefined names are errors."""
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
