"""The tasks: what can be asked about a user, one object each, and the registry that everything else walks over."""

from __future__ import annotations

from data_pipelines.tasks.base import Query, Segment, Task, TaskData
from data_pipelines.tasks.image import Image
from data_pipelines.tasks.rating import Rating
from data_pipelines.tasks.recommendation import Recommendation
from data_pipelines.tasks.registry import TASKS, register
from data_pipelines.tasks.search import Search
from data_pipelines.tasks.selection import Selection

for task in (Recommendation(), Search(), Rating(), Selection(), Image()):
    register(task)

__all__ = ["TASKS", "Query", "Segment", "Task", "TaskData", "register"]
