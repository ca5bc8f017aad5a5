"""Whether a budget has room for every question that is asked: found before anything is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from data_pipelines.examples import Budget
from data_pipelines.queries import IMAGE, PREFERENCE, SEARCH, SELECTION, TASKS, Query
from data_pipelines.tasks import TaskWriter
from data_pipelines.vocabulary import NUM_CANDIDATES

TEXTS = {PREFERENCE: 1, SELECTION: NUM_CANDIDATES}
"""How many items' texts a question shows."""


def least_budget(writer: TaskWriter, task: int) -> Budget:
    """What the longest question of a task takes with its answer, without a history and without texts."""
    pictures = writer.vocabulary.image_codes
    pictured = np.flatnonzero(pictures.has_codes if task == IMAGE and pictures else writer.has_image)[:NUM_CANDIDATES]
    others = np.setdiff1d(np.arange(min(writer.corpus.num_items, 2 * NUM_CANDIDATES)), pictured)
    items = tuple(np.concatenate([pictured, others])[:NUM_CANDIDATES].tolist())
    right = items[:2] if task == SELECTION else items[:1]
    candidates = items + items[:1] * (NUM_CANDIDATES - len(items))
    return Budget(*writer.blank().write(Query(task, 0, 0, right, candidates)).size)


def lacking_room(writer: TaskWriter, task: int) -> str:
    """Which field of the budget is too small for the questions of a task, and what would do; "": none is."""
    budget, least = dataclasses.asdict(writer.budget), dataclasses.asdict(least_budget(writer, task))
    small = [
        f"budget.{name} {budget[name]}, {least[name]} is the least" for name in least if budget[name] < least[name]
    ]
    return "; ".join(small)


def check_room(writer: TaskWriter, tasks: Iterable[int]) -> None:
    """
    Raises:
      ValueError: the budget cannot hold a question of one of the tasks, however short texts are.
    """
    for task in tasks:
        small = lacking_room(writer, task)
        if small:
            raise ValueError(
                f"a {TASKS[task]} question does not fit: {small} (or --queries.mix.{TASKS[task]} 0, which leaves the "
                "task out)"
            )


def long_texts(writer: TaskWriter, tasks: Iterable[int]) -> list[str]:
    """A line for each task that some items' texts are too long for: they are cut where they do not fit."""
    lines = []
    for task in tasks:
        room = writer.budget.tokens - least_budget(writer, task).tokens
        share = room // TEXTS.get(task, 1)
        lengths = writer.text_lengths(categories=task in (SEARCH, IMAGE))
        too_long = int((lengths > share).sum()) if task in (*TEXTS, SEARCH, IMAGE) else 0
        if too_long:
            lines.append(
                f"{too_long} items' texts are longer than {share} tokens: they are cut in {TASKS[task]} questions"
            )
    return lines
