"""Evaluation and answering of each task of `data_pipelines.tasks`: one object per task, under the task's name."""

from experiments.evals.base import TaskEval
from experiments.evals.image import ImageEval
from experiments.evals.rating import RatingEval
from experiments.evals.recommendation import RecommendationEval
from experiments.evals.registry import EVALS, register
from experiments.evals.search import SearchEval
from experiments.evals.selection import SelectionEval

for one in (RecommendationEval(), SearchEval(), RatingEval(), SelectionEval(), ImageEval()):
    register(one)

__all__ = ["EVALS", "TaskEval", "register"]
