"""Compares groups of runs on each task: metrics over seeds, and differences to the base on the same queries."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from experiments.evals.base import OURS
from experiments.report.runs import EvaluatedRun, Group
from experiments.results import Row, TaskTable
from unimp_jax.evaluation.bootstrap import Difference, Interval
from unimp_jax.evaluation.images import IMAGE_METRICS
from unimp_jax.evaluation.metrics import RATING_METRICS, SELECTION_METRICS
from unimp_jax.evaluation.repeats import difference_over_seeds, holm, influence, over_seeds
from unimp_jax.evaluation.texts import TEXT_METRICS

FORMULAS = {
    "rating": RATING_METRICS,
    "explanation": TEXT_METRICS,
    "selection": SELECTION_METRICS,
    "image": IMAGE_METRICS,
}
"""Tasks whose metrics are computed from the means of columns; the metrics of other tasks are the means themselves."""

HEADLINES = ("NDCG@10", "RMSE", "F1", "ROUGE-L", "closer", "Fréchet distance")
"""The metrics that represent a task in the overview; a task has at most one of them."""


def headline_of(table: TaskTable) -> str:
    """Returns the metric of `HEADLINES` that a table has; "" if it has none."""
    return next((name for name in HEADLINES if name in table.rows[0].metrics), "")


@dataclasses.dataclass(frozen=True)
class Tested(Difference):
    """A difference to the base.

    Attributes:
      holm: the p-value after Holm's correction for the number of groups that are compared with the base.
      worse: whether the difference is to the group's disadvantage.
    """

    holm: float = 1.0
    worse: bool = False

    @property
    def significant(self) -> bool:
        return self.holm < 0.05


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of a task's table.

    Attributes:
      name: name of the group, with the way in which it was asked if there are several; or name of the baseline.
      group: None for a baseline, whose metrics are those of the first run.
      users: number of users whose answers could be read in all runs.
      metrics: over seeds and users; over users for a single run and for a baseline.
      differences: differences to the base, over seeds and users, by metric; empty for the base and for baselines.
    """

    name: str
    group: Group | None
    runs: int
    users: int
    metrics: dict[str, Interval]
    differences: dict[str, Tested] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A task's table; `headline` is "" for a task that has none of `HEADLINES`."""

    table: TaskTable
    headline: str
    lines: tuple[Line, ...]

    @property
    def task(self) -> str:
        return self.table.task

    @property
    def title(self) -> str:
        return self.task.replace("-", " ")

    @property
    def description(self) -> str:
        better = "larger" if self.table.larger_is_better else "smaller"
        return f"{self.table.users:,} users; {better} is better. {self.table.note}"

    @property
    def compared(self) -> list[Line]:
        """The lines with differences to the base."""
        return [line for line in self.lines if line.differences]

    def first_line(self, group: Group) -> Line | None:
        """The group's line, or the first one if it was asked in several ways."""
        return next((line for line in self.lines if line.group is group), None)


def compare(groups: Sequence[Group]) -> list[Comparison]:
    """Compares groups of runs on one source, task by task; the first group is the base."""
    tasks: dict[str, dict[EvaluatedRun, TaskTable]] = {}
    for run in (run for group in groups for run in group.runs):
        for table in run.evaluation.tables:
            tasks.setdefault(table.task, {})[run] = table
    return [compare_task(groups, tables) for tables in tasks.values()]


def compare_task(groups: Sequence[Group], tables: Mapping[EvaluatedRun, TaskTable]) -> Comparison:
    """Compares groups on the task of the tables."""
    first = next(iter(tables.values()))
    rows: dict[str, Row] = {}
    for row in (row for table in tables.values() for row in table.rows):
        rows.setdefault(row.model, row)
    models = [name for name in rows if name.startswith(OURS)]
    lines = [line for model in models for line in lines_of(model, groups, tables)]
    lines = correct(lines, first.larger_is_better)
    baselines = [Line(name, None, 0, first.users, row.metrics) for name, row in rows.items() if name not in models]
    return Comparison(first, headline_of(first), (*lines, *baselines))


def lines_of(model: str, groups: Sequence[Group], tables: Mapping[EvaluatedRun, TaskTable]) -> Iterator[Line]:
    """Yields the lines of all groups that were asked in one way, `model`, with uncorrected p-values."""
    variant = model[len(OURS) :].strip(", ")
    base: list[EvaluatedRun] = []
    for group in groups:
        rows = {run: row for run in group.runs if run in tables for row in tables[run].rows if row.model == model}
        if not rows:
            continue
        (first, *others), task, names = rows, next(iter(tables.values())).task, list(next(iter(rows.values())).metrics)
        values, users = paired_values([first, *others], task, model, names)
        metrics = {name: over_seeds(values_SM) for name, values_SM in values.items()} if others else rows[first].metrics
        differences: dict[str, Tested] = {}
        if base:
            both, shared = paired_values([*rows, *base], task, model, [name for name in names if not is_minor(name)])
            pairs = {name: (x[: len(rows)], x[len(rows) :]) for name, x in both.items() if shared > 1}
            differences = {name: Tested(**vars(difference_over_seeds(*pair))) for name, pair in pairs.items()}
        elif group is groups[0]:
            base = list(rows)
        yield Line(f"{group.name}, {variant}" if variant else group.name, group, len(rows), users, metrics, differences)


def is_minor(metric: str) -> bool:
    """Returns whether a metric is one of shorter lists (@3, @5); such metrics are not tested."""
    return metric.endswith(("@3", "@5"))


def paired_values(
    runs: Sequence[EvaluatedRun], task: str, model: str, metrics: Sequence[str]
) -> tuple[dict[str, np.ndarray], int]:
    """Gathers the values of each metric per run and user, for the M queries that all runs answered readably.

    Returns:
      float64 [runs, M] by metric, whose means over users are the metrics of the runs, and M. Metrics that one of the
      runs does not have are left out, and all metrics if M is 0.
    """
    tables = []
    for number, run in enumerate(runs):
        table, prefix = run.answers[task], f"{model}: "
        named = {field.name.removeprefix(prefix): field for field in table.schema if field.name.startswith(prefix)}
        named = {name: x for name, x in named.items() if pa.types.is_primitive(x.type) and not name.startswith("rank")}
        table = table.select(["user", "item", *(field.name for field in named.values())])
        tables.append(table.rename_columns(["user", "item", *(f"{number} {name}" for name in named)]))
    common = functools.reduce(lambda x, y: x.join(y, ["user", "item"], join_type="inner"), tables).drop_null()
    common = common.sort_by([("user", "ascending"), ("item", "ascending")])
    if not len(common):
        return {}, 0
    values: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    formulas = FORMULAS.get(task, {})
    per_user = influence if len(common) > 1 else lambda columns, formula: formula(columns)  # the mean of one user
    for number in range(len(runs)):
        own = {
            name.partition(" ")[2]: common[name].to_numpy().astype(np.float64)
            for name in common.column_names
            if name.startswith(f"{number} ")
        }
        for name in metrics if own else ():
            with contextlib.suppress(KeyError):  # this run does not have the metric
                values[name].append(per_user(own, formulas[name]) if name in formulas else own[name])
    return {name: np.stack(x) for name, x in values.items() if len(x) == len(runs)}, len(common)


def correct(lines: Sequence[Line], larger_is_better: bool) -> list[Line]:
    """Applies Holm's correction to the p-values of each difference over all lines."""
    tested = [dict(line.differences) for line in lines]
    for name in dict.fromkeys(name for line in lines for name in line.differences):
        found = {number: line.differences[name] for number, line in enumerate(lines) if name in line.differences}
        corrected = holm([one.p_value for one in found.values()])
        for (number, one), p_value in zip(found.items(), corrected, strict=True):
            worse = one.mean < 0 if larger_is_better else one.mean > 0
            tested[number][name] = dataclasses.replace(one, holm=float(p_value), worse=worse)
    return [dataclasses.replace(line, differences=found) for line, found in zip(lines, tested, strict=True)]
