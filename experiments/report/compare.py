"""Tables of groups of runs, one a task: figures over seeds, and differences to the base on the same questions."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from experiments.evals.base import OURS
from experiments.report.gather import Group, Run
from experiments.results import Table
from unimp_jax.evaluation.bootstrap import Difference, Interval, paired_difference
from unimp_jax.evaluation.metrics import RATING_FIGURES, SELECTION_FIGURES
from unimp_jax.evaluation.pictures import PICTURE_FIGURES
from unimp_jax.evaluation.repeats import difference_over_seeds, holm, influence, over_seeds
from unimp_jax.evaluation.texts import TEXT_FIGURES

FORMULAS = {
    "preference": RATING_FIGURES,
    "explanation": TEXT_FIGURES,
    "selection": SELECTION_FIGURES,
    "image": PICTURE_FIGURES,
}
"""For some tasks, what makes figures of the means of columns; of others, each is the mean of the column of its name."""

HEADLINES = ("NDCG@10", "RMSE", "F1", "ROUGE-L", "closer", "Fréchet distance")
"""What differences are drawn of, whichever a task has."""


@dataclasses.dataclass(frozen=True)
class Tested(Difference):
    """A difference to the base.

    Attributes:
      holm: the p-value, corrected for the number of groups that are compared with the base.
      worse: whether it is to the group's disadvantage.
    """

    holm: float = 1.0
    worse: bool = False

    @property
    def sure(self) -> bool:
        return self.holm < 0.05


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of a task's table.

    Attributes:
      name: of the group, and of the way it was asked where there are several; or of the baseline.
      group: None for a baseline, which every run measures; it is the first run's.
      runs: so many; 0 for a baseline.
      users: who were asked in all of them, and whose answers could be read.
      figures: over seeds and users; a baseline's over users.
      differences: to the base, over seeds and users; none for the base and baselines.
      alone: the headline's difference for these seeds as they are, over other users alone.
      few: the group has one seed, and is taken to vary between seeds as the base does.
    """

    name: str
    group: Group | None
    runs: int
    users: int
    figures: dict[str, Interval]
    differences: dict[str, Tested] = dataclasses.field(default_factory=dict)
    alone: Tested | None = None
    few: bool = False


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A task's table; `headline` is the figure that differences are drawn of, '' where there is none."""

    task: str
    note: str
    users: int
    larger_is_better: bool
    headline: str
    lines: tuple[Line, ...]

    @property
    def names(self) -> list[str]:
        """Of all figures."""
        return list(dict.fromkeys(name for line in self.lines for name in line.figures))

    @property
    def tested(self) -> list[str]:
        """Of the figures whose differences are told."""
        return [name for name in self.names if any(name in line.differences for line in self.lines)]

    @property
    def compared(self) -> list[Line]:
        """The lines with differences to the base."""
        return [line for line in self.lines if line.differences]

    def line_of(self, group: Group) -> Line | None:
        """The group's first, where it has any."""
        return next((line for line in self.lines if line.group is group), None)

    def best(self, name: str) -> float:
        means = [line.figures[name].mean for line in self.lines if name in line.figures]
        return max(means) if self.larger_is_better else min(means)


def compare(groups: Sequence[Group]) -> list[Comparison]:
    """One comparison a task, of groups on one source; the first group is the base."""
    tasks = dict.fromkeys(table.task for group in groups for run in group.runs for table in run.evaluation.tables)
    return [compare_task(task, groups) for task in tasks]


def compare_task(task: str, groups: Sequence[Group]) -> Comparison:
    tables = {run: table for group in groups for run in group.runs if (table := table_of(run, task))}
    first = next(iter(tables.values()))
    names = list(first.rows[0].figures)
    headline = next((name for name in HEADLINES if name in names), "")
    rows = [row for table in tables.values() for row in table.rows]
    models = dict.fromkeys(row.model for row in rows if row.model.startswith(OURS))
    lines = [line for model in models for line in lines_of(model, task, groups, tables, headline)]
    lines = correct(lines, first.larger_is_better)
    for name in dict.fromkeys(row.model for row in rows if row.model not in models):
        row = next(row for row in rows if row.model == name)
        lines.append(Line(name, None, 0, first.users, row.figures))
    return Comparison(task, first.note, first.users, first.larger_is_better, headline, tuple(lines))


def table_of(run: Run, task: str) -> Table | None:
    return next((table for table in run.evaluation.tables if table.task == task), None)


def lines_of(
    model: str, task: str, groups: Sequence[Group], tables: Mapping[Run, Table], headline: str
) -> Iterator[Line]:
    """One way of asking, of all groups whose runs were asked in it."""
    variant = model[len(OURS) :].strip(", ")
    base_runs: list[Run] = []
    for group in groups:
        rows = {run: row for run in group.runs if run in tables for row in tables[run].rows if row.model == model}
        if not rows:
            continue
        runs, names = list(rows), list(next(iter(rows.values())).figures)
        values, users = figures_of(runs, task, model, names)
        line = Line(
            name=f"{group.name}, {variant}" if variant else group.name,
            group=group,
            runs=len(runs),
            users=users,
            figures={name: over_seeds(values_SM) for name, values_SM in values.items()},
        )
        if group is groups[0]:
            base_runs = runs
        elif base_runs:
            major = [name for name in names if not is_minor(name)]
            both, shared = figures_of([*runs, *base_runs], task, model, major)
            pairs = {name: (x[: len(runs)], x[len(runs) :]) for name, x in both.items() if shared > 1}
            line = dataclasses.replace(
                line,
                few=len(runs) == 1,
                differences={name: Tested(**vars(difference_over_seeds(*pair))) for name, pair in pairs.items()},
                alone=Tested(**vars(paired_difference(*pairs[headline]))) if headline in pairs else None,
            )
        yield line


def is_minor(figure: str) -> bool:
    """Of the shorter lists."""
    return figure.endswith(("@3", "@5"))


def figures_of(runs: Sequence[Run], task: str, model: str, figures: Sequence[str]) -> tuple[dict[str, np.ndarray], int]:
    """(float64 [runs, M] by figure, whose means are the figures; M), of questions that all runs answered readably.

    No such question makes no figures, and a figure that one of the runs was not measured by (METEOR, where WordNet is
    not installed) is left out.
    """
    tables = [run.answers[task] for run in runs]
    prefix = f"{model}: "
    columns = [
        {
            name.removeprefix(prefix): table[name].to_numpy().astype(np.float64)
            for name, kind in zip(table.column_names, table.schema.types, strict=True)
            if name.startswith(prefix) and str(kind) in ("double", "float", "int64")
        }
        for table in tables
    ]
    asked = [
        np.array(
            [f"{user}\t{item}" for user, item in zip(*table.select(["user", "item"]).to_pydict().values(), strict=True)]
        )
        for table in tables
    ]
    readable = [
        keys[np.logical_and.reduce([np.isfinite(x) for name, x in by_name.items() if not name.startswith("rank")])]
        for keys, by_name in zip(asked, columns, strict=True)
    ]
    common = functools.reduce(np.intersect1d, readable)
    if not len(common):
        return {}, 0
    found: dict[str, list[np.ndarray]] = {figure: [] for figure in figures}
    formulas = FORMULAS.get(task, {})
    for keys, by_name in zip(asked, columns, strict=True):
        order = np.argsort(keys)
        places = order[np.searchsorted(keys, common, sorter=order)]
        here = {name: x[places] for name, x in by_name.items()}
        for figure in figures:
            made = influence if len(common) > 1 else lambda of, formula: formula(of)  # of one user, no more is known
            with contextlib.suppress(KeyError):
                found[figure].append(made(here, formulas[figure]) if figure in formulas else here[figure])
    return {figure: np.stack(values) for figure, values in found.items() if len(values) == len(runs)}, len(common)


def correct(lines: Sequence[Line], larger_is_better: bool) -> list[Line]:
    """With Holm's correction, for each figure over all lines."""

    def tested(found: dict[int, Tested]) -> dict[int, Tested]:
        adjusted = holm([one.p_value for one in found.values()])
        return {
            number: dataclasses.replace(one, holm=float(p), worse=one.mean < 0 if larger_is_better else one.mean > 0)
            for (number, one), p in zip(found.items(), adjusted, strict=True)
        }

    corrected = [dict(line.differences) for line in lines]
    for figure in dict.fromkeys(name for line in lines for name in line.differences):
        found = {n: line.differences[figure] for n, line in enumerate(lines) if figure in line.differences}
        for number, one in tested(found).items():
            corrected[number][figure] = one
    alone = tested({number: line.alone for number, line in enumerate(lines) if line.alone})
    return [
        dataclasses.replace(line, differences=corrected[number], alone=alone.get(number))
        for number, line in enumerate(lines)
    ]
