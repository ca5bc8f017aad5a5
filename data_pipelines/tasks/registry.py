"""The registered tasks by name; their order is that of tables and of the indices in `answer_tasks`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_pipelines.tasks.base import Task

TASKS: dict[str, Task] = {}


def register(task: Task) -> None:
    """Makes a task known to training, evaluation, generation and reports.

    Raises:
      ValueError: another task has its name.
    """
    if type(TASKS.setdefault(task.name, task)) is not type(task):
        raise ValueError(f"there is already a task {task.name!r}; choose another name")


def task_number(name: str) -> int:
    """Returns the index of a task in the registry, which identifies its answers in a batch."""
    return list(TASKS).index(name)


def task_at(number: int) -> Task:
    """Returns the task at an index of the registry."""
    return list(TASKS.values())[number]


def default_shares() -> dict[str, float]:
    """Returns the default weight of each task in the training mix."""
    return {name: task.share for name, task in TASKS.items()}


def default_loss_weights() -> dict[str, float]:
    """Returns the default loss weight of an answer token of each task."""
    return {name: task.loss_weight for name, task in TASKS.items()}


def check_names(field: str, names: Iterable[str]) -> None:
    """Checks that all names in a configuration field are tasks.

    Raises:
      ValueError: a name is not a task.
    """
    if unknown := [name for name in names if name not in TASKS]:
        raise ValueError(f"{field}: there is no task {unknown[0]!r}; there are {', '.join(TASKS)}")
