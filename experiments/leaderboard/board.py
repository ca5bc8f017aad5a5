"""From evaluated cells to standings: for each data set and task our one model, every rival, and who is ahead."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from experiments.evals.base import OURS
from experiments.report.compare import HEADLINES, paired_values
from experiments.report.runs import EvaluatedRun
from unimp_jax.evaluation.bootstrap import Difference, Interval
from unimp_jax.evaluation.repeats import difference_over_seeds, over_seeds

Verdict = Literal["won", "level", "lost", "alone"]
LEVEL = 0.05
"""A difference that chance gives more often than this is none."""
CONTROLS = ("the wanted image from its codes",)
"""Rows that are no rivals: what the best possible answer would score."""


@dataclasses.dataclass(frozen=True)
class Entrant:
    """One model at one task.

    Attributes:
      metrics: over seeds and users.
    """

    model: str
    metrics: dict[str, Interval]


@dataclasses.dataclass(frozen=True)
class Standing:
    """A task on a data set.

    Attributes:
      metric: by which models are compared.
      ours: our rows, the one that is compared first.
      rivals: best first.
      difference: of ours to the best rival, of the same users; None where there is no rival.
    """

    contest: str
    task: str
    metric: str
    users: int
    larger_is_better: bool
    ours: tuple[Entrant, ...]
    rivals: tuple[Entrant, ...]
    difference: Difference | None

    @property
    def verdict(self) -> Verdict:
        """Whether we are ahead of the best rival, beyond chance."""
        if self.difference is None:
            return "alone"
        if self.difference.p_value >= LEVEL:
            return "level"
        ahead = (self.difference.mean > 0) == self.larger_is_better
        return "won" if ahead else "lost"


def standings(contest: str, runs: Sequence[EvaluatedRun]) -> list[Standing]:
    """All tasks that have a headline metric.

    Args:
      runs: one of each seed.
    """
    found: list[Standing] = []
    for table in runs[0].evaluation.tables:
        metric = next((name for name in HEADLINES if name in table.rows[0].metrics), "")
        models = [row.model for row in table.rows if metric in row.metrics and row.model not in CONTROLS]
        if metric:
            found.append(standing(contest, runs, table.task, metric, models, table.users, table.larger_is_better))
    return found


def standing(
    contest: str,
    runs: Sequence[EvaluatedRun],
    task: str,
    metric: str,
    models: Sequence[str],
    users: int,
    larger_is_better: bool,
) -> Standing:
    """Compares all models at one task."""
    rows = {row.model: row for table in runs[0].evaluation.tables if table.task == task for row in table.rows}
    values: dict[str, np.ndarray] = {}
    entrants: dict[str, Entrant] = {}
    for model in models:
        by_name, _ = paired_values(runs, task, model, list(rows[model].metrics))
        values[model] = by_name[metric]
        entrants[model] = Entrant(model, {name: over_seeds(x) for name, x in by_name.items()})
    sign = 1 if larger_is_better else -1
    ours = [model for model in models if model.startswith(OURS)]
    rivals = sorted((m for m in models if m not in ours), key=lambda m: -sign * entrants[m].metrics[metric].mean)
    difference = None
    if rivals:
        difference = difference_over_seeds(values[ours[0]], values[rivals[0]])
    return Standing(
        contest, task, metric, users, larger_is_better,
        tuple(entrants[m] for m in ours), tuple(entrants[m] for m in rivals), difference,
    )  # fmt: skip


def as_json(found: Sequence[Standing]) -> list[dict[str, Any]]:
    """The standings with their verdicts."""
    return [dataclasses.asdict(one) | {"verdict": one.verdict} for one in found]
