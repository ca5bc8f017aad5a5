"""Evaluation and answering of each task of `data_pipelines.tasks`: one object per task, under the task's name."""

from data_pipelines.tasks.registry import check_names
from experiments.evals.base import TaskEval
from experiments.evals.image import ImageEval
from experiments.evals.rating import RatingEval
from experiments.evals.recommendation import RecommendationEval
from experiments.evals.search import SearchEval
from experiments.evals.selection import SelectionEval

__all__ = ["EVALS", "TaskEval", "register"]

EVALS: dict[str, TaskEval] = {}


def register(evaluation: TaskEval) -> None:
    """Registers the evaluation of a task; ValueError if the task does not exist, or already has another evaluation."""
    check_names("an evaluation", [evaluation.task])
    if type(EVALS.setdefault(evaluation.task, evaluation)) is not type(evaluation):
        raise ValueError(f"the task {evaluation.task!r} already has an evaluation")


for one in (RecommendationEval(), SearchEval(), RatingEval(), SelectionEval(), ImageEval()):
    register(one)
