"""Standings of evaluated cells and their page: for each data set and task, our model, every rival, and who is ahead."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic

from data_pipelines.atomic import write_json
from data_pipelines.errors import DataError
from experiments.evals.base import OURS
from experiments.report.compare import headline_of, paired_values
from experiments.report.runs import EvaluatedRun
from experiments.results import Row, TaskTable
from unimp_jax.evaluation.bootstrap import Difference, Interval
from unimp_jax.evaluation.repeats import difference_over_seeds, over_seeds

Verdict = Literal["won", "level", "lost", "alone"]
LEVEL = 0.05
"""Differences with a p-value of at least this are not significant."""
CONTROLS = ("the wanted image from its codes",)
"""Rows that are no rivals: the score of the best possible answer."""


@dataclasses.dataclass(frozen=True)
class Standing:
    """The comparison of all models for a task on a data set.

    Attributes:
      ours: our rows, with metrics over seeds and users, the compared one first.
      rivals: the rivals' rows, with metrics over seeds and users, best first.
      difference: ours minus the best rival, for the same users; None if there is no rival.
    """

    contest: str
    task: str
    metric: str
    users: int
    larger_is_better: bool
    ours: tuple[Row, ...]
    rivals: tuple[Row, ...]
    difference: Difference | None

    @property
    def verdict(self) -> Verdict:
        """Whether we are significantly ahead of the best rival."""
        if self.difference is None:
            return "alone"
        if self.difference.p_value >= LEVEL:
            return "level"
        ahead = (self.difference.mean > 0) == self.larger_is_better
        return "won" if ahead else "lost"


@dataclasses.dataclass(frozen=True)
class BenchmarkResult:
    """The result on one data set.

    Attributes:
      seconds: training time of our model with each of them.
      standings: one per task that has a headline metric.
    """

    seeds: tuple[int, ...]
    seconds: tuple[float, ...]
    standings: tuple[Standing, ...]


Board = dict[str, BenchmarkResult]
"""Title of a data set -> its result."""


def read_board(path: Path) -> Board:
    """Reads a saved board, empty if there is none; DataError if the file is not a leaderboard of this version."""
    if not path.exists():
        return {}
    try:
        return pydantic.TypeAdapter(Board).validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        raise DataError(
            f"{path} is not a leaderboard of this version; choose another --out, or delete the file"
        ) from error


def write_board(path: Path, board: Mapping[str, BenchmarkResult]) -> None:
    """Writes the board as JSON, with the verdict of each standing."""
    value = {title: dataclasses.asdict(one) for title, one in board.items()}
    for title, one in board.items():
        for saved, standing in zip(value[title]["standings"], one.standings, strict=True):
            saved["verdict"] = standing.verdict
    write_json(path, value)


def standings(title: str, runs: Sequence[EvaluatedRun]) -> list[Standing]:
    """Returns the standings of all tasks that have a headline metric."""
    found = [(table, headline_of(table)) for table in runs[0].evaluation.tables]
    made = [standing(title, runs, table, metric) for table, metric in found if metric]
    return [one for one in made if one.ours]  # a run that was evaluated by hand may lack a task


def answered_in_all(runs: Sequence[EvaluatedRun], task: str, model: str) -> bool:
    """Returns whether a model is in the tables of all runs; a rival missing in one of them cannot be compared."""
    tables = [table for run in runs for table in run.evaluation.tables if table.task == task]
    return sum(row.model == model for table in tables for row in table.rows) == len(runs)


def standing(title: str, runs: Sequence[EvaluatedRun], table: TaskTable, metric: str) -> Standing:
    """Compares all models for the task of a table."""
    values: dict[str, np.ndarray] = {}
    rows: list[Row] = []
    for row in table.rows:
        if metric in row.metrics and row.model not in CONTROLS and answered_in_all(runs, table.task, row.model):
            by_name, _ = paired_values(runs, table.task, row.model, list(row.metrics))
            if metric not in by_name:  # no user's answer could be read in all runs
                continue
            values[row.model] = by_name[metric]
            rows.append(Row(row.model, {name: over_seeds(x) for name, x in by_name.items()}))
    ours = [row for row in rows if row.model.startswith(OURS)]
    rivals = [row for row in rows if row not in ours]
    rivals.sort(key=lambda row: row.metrics[metric].mean, reverse=table.larger_is_better)
    compared = ours and rivals
    difference = difference_over_seeds(values[ours[0].model], values[rivals[0].model]) if compared else None
    return Standing(
        title, table.task, metric, table.users, table.larger_is_better, tuple(ours), tuple(rivals), difference
    )


COLUMNS = ("HR@10", "NDCG@10", "HR@10 (unfiltered)", "NDCG@10 (unfiltered)", "recall", "precision", "F1", "RMSE", "MAE")
"""Metrics that are shown if a task has them; other tasks show their headline metric."""


def page(board: Mapping[str, BenchmarkResult]) -> str:
    """Returns the whole page."""
    found = [one for result in board.values() for one in result.standings]
    counts = collections.Counter(one.verdict for one in found)
    lines = [
        "# Leaderboard",
        "",
        "One model per data set, all tasks, test split, by `unimp leaderboard`. Intervals cover other users and, "
        "if there are several seeds, other seeds. Differences are paired by user; a result is level if chance "
        "gives a larger difference in more than one case of twenty. The first of our rows is compared; the "
        "tables also show the model alone.",
        "",
        f"**{counts['won']} won, {counts['level']} level, {counts['lost']} lost.**",
        "",
    ]
    order = {"lost": 0, "level": 1, "won": 2, "alone": 3}
    lines += ["| | data | task | metric | ours | | best rival | | difference | p |", "|" + "---|" * 10]
    for one in sorted(found, key=lambda one: order[one.verdict]):
        ours = one.ours[0].metrics[one.metric]
        rival = one.rivals[0] if one.rivals else None
        cells = [one.verdict, one.contest, one.task, one.metric, format_interval(ours), one.ours[0].model]
        cells += [format_interval(rival.metrics[one.metric]), rival.model] if rival else ["", ""]
        if one.difference:
            cells += [f"{one.difference.mean:+.4f} [{format_bounds(one.difference)}]", f"{one.difference.p_value:.3f}"]
        lines.append("| " + " | ".join([*cells, *[""] * (10 - len(cells))]) + " |")
    for title, result in board.items():
        took = ", ".join(
            f"{second:.0f} s (seed {seed})" for seed, second in zip(result.seeds, result.seconds, strict=True)
        )
        lines += ["", f"## {title}", "", f"Training took {took}."]
        for one in result.standings:
            lines += ["", f"### {one.task} ({one.users:,} users)", "", *table(one)]
    return "\n".join(lines) + "\n"


def table(one: Standing) -> list[str]:
    """Formats all models of a task, best first, with the best value of each column in bold."""
    rows, choose = [*one.ours, *one.rivals], max if one.larger_is_better else min
    names = [name for name in COLUMNS if any(name in row.metrics for row in rows)] or [one.metric]
    best = {name: choose(row.metrics[name].mean for row in rows if name in row.metrics) for name in names}

    def cell(found: Interval | None, best: float) -> str:
        text = format_interval(found) if found else ""
        return f"**{text}**" if found and found.mean == best else text

    lines = ["| model | " + " | ".join(names) + " |", "|" + "---|" * (1 + len(names))]
    for row in sorted(rows, key=lambda row: row.metrics[one.metric].mean, reverse=one.larger_is_better):
        lines.append(f"| {' | '.join([row.model, *(cell(row.metrics.get(name), best[name]) for name in names)])} |")
    return lines


def format_interval(interval: Interval) -> str:
    return f"{interval.mean:.4f} [{format_bounds(interval)}]"


def format_bounds(interval: Interval) -> str:
    return "no interval" if math.isnan(interval.low) else f"{interval.low:.4f}, {interval.high:.4f}"
