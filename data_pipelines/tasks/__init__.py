"""The tasks, one object for each kind of question about a user, and the registry of all tasks."""

from data_pipelines.tasks.base import Task, TaskData
from data_pipelines.tasks.image import Image
from data_pipelines.tasks.query import Queries, Query
from data_pipelines.tasks.rating import Rating
from data_pipelines.tasks.recommendation import Recommendation
from data_pipelines.tasks.registry import TASKS, register
from data_pipelines.tasks.search import Search
from data_pipelines.tasks.selection import Selection
from data_pipelines.tasks.texts import Part

for task in (Recommendation(), Search(), Rating(), Selection(), Image()):
    register(task)
