"""The evaluations that are known, by the names of their tasks."""

from __future__ import annotations

from data_pipelines.tasks.registry import check_names
from experiments.evals.base import TaskEval

EVALS: dict[str, TaskEval] = {}


def register(evaluation: TaskEval) -> None:
    """Makes the evaluation of a task known.

    Raises:
      ValueError: there is no such task, or it has another evaluation already.
    """
    check_names("an evaluation", [evaluation.task])
    if type(EVALS.setdefault(evaluation.task, evaluation)) is not type(evaluation):
        raise ValueError(f"the task {evaluation.task!r} has another evaluation already")
