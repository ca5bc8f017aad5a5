"""Registry of task evaluations, by task name."""

from data_pipelines.tasks.registry import check_names
from experiments.evals.base import TaskEval

EVALS: dict[str, TaskEval] = {}


def register(evaluation: TaskEval) -> None:
    """Registers the evaluation of a task.

    Raises:
      ValueError: the task does not exist, or already has another evaluation.
    """
    check_names("an evaluation", [evaluation.task])
    if type(EVALS.setdefault(evaluation.task, evaluation)) is not type(evaluation):
        raise ValueError(f"the task {evaluation.task!r} already has an evaluation")
