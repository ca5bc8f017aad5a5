"""Checks before compilation whether a row has room for every question that is asked."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.prompt import PromptWriter
from data_pipelines.tasks.query import Queries, Query
from data_pipelines.tasks.registry import TASKS
from data_pipelines.vocabulary import NUM_CANDIDATES


def least_row_shape(writer: PromptWriter, task: str) -> RowShape:
    """Returns the size of the largest question of a task with its answer, without a history and without texts."""
    codes = writer.vocabulary.image_codes
    with_image = codes.has_codes if TASKS[task].needs_codes and codes else writer.has_image
    first = np.flatnonzero(with_image)[:NUM_CANDIDATES]
    others = np.setdiff1d(np.arange(min(writer.corpus.num_items, 2 * NUM_CANDIDATES)), first)
    items = tuple(np.concatenate([first, others])[:NUM_CANDIDATES].tolist())
    candidates = items + items[:1] * (NUM_CANDIDATES - len(items))
    right = items[: TASKS[task].num_right]
    return RowShape(*writer.blank().lay_out(Queries.of([Query(task, 0, 0, right, candidates)])).sizes[0].tolist())


def check_row_shape(writer: PromptWriter, tasks: Iterable[str]) -> None:
    """Checks that a row can hold the questions of all the tasks.

    Raises:
      ValueError: a row cannot hold a question of one of the tasks, however short its texts are.
    """
    row_shape = dataclasses.asdict(writer.row_shape)
    for task in tasks:
        least = dataclasses.asdict(least_row_shape(writer, task))
        small = [
            f"row_shape.{name} is {row_shape[name]} and must be at least {least[name]}"
            for name in least
            if row_shape[name] < least[name]
        ]
        if small:
            raise ValueError(
                f"a {task} question does not fit: {'; '.join(small)} (or leave the task out with "
                f"--queries.mix.{task} 0)"
            )


def long_texts(writer: PromptWriter, tasks: Iterable[str]) -> list[str]:
    """Returns a line for each task with items whose texts may be too long for a row and are then cut."""
    lines = []
    for name in tasks:
        task = TASKS[name]
        if not task.num_texts:
            continue
        room = (writer.row_shape.tokens - least_row_shape(writer, name).tokens) // task.num_texts
        lengths = (writer.texts.categories if task.texts_are_categories else writer.texts.attributes).lengths
        if too_long := int((lengths > room).sum()):
            lines.append(
                f"{too_long} items have texts of more than {room} tokens, which are truncated in {name} questions"
            )
    return lines
