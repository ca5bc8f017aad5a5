"""Several examples a row: which lie together, and the arrays of a row.

Every row has room for the same number of tokens, images and answers. `pack` plans, `fill_row` writes; segments in a row
never see one another, so a plan changes speed and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.examples import Budget, Example


def pack(sizes: np.ndarray, budget: Budget) -> list[list[int]]:
    """Best-fit decreasing under three budgets at once.

    The examples are taken longest first, and each goes into the row that it leaves the fewest free tokens in, among
    those with room for its images and answers too (ties: the row opened first).

    Args:
      sizes: int [E, 3], tokens, images and answers of each example.

    Returns:
      For each row, the examples in it; every example occurs once.

    Raises:
      ValueError: an example is larger than a row.
    """
    limits = np.array([budget.tokens, budget.images, budget.answers])
    too_large = np.flatnonzero((sizes > limits).any(axis=1))
    if len(too_large):
        raise ValueError(f"example {too_large[0]} of size {sizes[too_large[0]].tolist()} does not fit {budget}")
    smallest = sizes[:, 0].min(initial=budget.tokens)
    rows: list[list[int]] = []
    free = np.empty((len(sizes), 3), np.int64)  # of the rows still open, in the order they were opened
    open_rows = np.empty(len(sizes), np.int64)
    opened = 0
    for example in np.argsort(-sizes[:, 0], kind="stable"):
        size = sizes[example]
        left = free[:opened, 0] - size[0]
        fits = (left >= 0) & (free[:opened, 1] >= size[1]) & (free[:opened, 2] >= size[2])
        if fits.any():
            place = int(np.where(fits, left, budget.tokens).argmin())
        else:
            place, opened = opened, opened + 1
            free[place], open_rows[place] = limits, len(rows)
            rows.append([])
        free[place] -= size
        rows[open_rows[place]].append(int(example))
        if free[place, 0] < smallest:
            free[place : opened - 1] = free[place + 1 : opened]
            open_rows[place : opened - 1] = open_rows[place + 1 : opened]
            opened -= 1
    return rows


def best_length(sizes: np.ndarray, budget: Budget, *, step: int = 16, sample: int = 512) -> int:
    """The row length that leaves the fewest tokens empty, of the multiples of `step` that hold the longest example, and
    of the budget's; of equal ones the shortest, since attention grows with a row's length.

    Args:
      sizes: int [E, 3], as of `pack`, E at least 1.
      sample: so many examples, evenly taken, are packed to find it.
    """
    some = sizes[:: -(-len(sizes) // sample)]
    lengths = [*range(-(-int(sizes[:, 0].max()) // step) * step, budget.tokens, step), budget.tokens]
    tokens = [length * len(pack(some, dataclasses.replace(budget, tokens=length))) for length in lengths]
    return lengths[int(np.argmin(tokens))]


def fill_row(examples: Sequence[Example], budget: Budget) -> dict[str, np.ndarray]:
    """The arrays of one row (see `unimp_jax.batch.Batch` for their meaning), but for the pictures themselves.

    Returns:
      `tokens`, `segment_ids`, `positions`, `image_index`: int32 [T]; `image_items` (the item shown, -1 for none) and
      `image_segment_ids`: int32 [N]; `answer_positions`, `answer_targets`, `answer_tasks`: int32 [A];
      `answer_weights`: float32 [A].
    """
    T, N, A = budget.tokens, budget.images, budget.answers
    row = {
        "tokens": np.zeros(T, np.int32),
        "segment_ids": np.zeros(T, np.int32),
        "positions": np.zeros(T, np.int32),
        "image_index": np.full(T, -1, np.int32),
        "image_items": np.full(N, -1, np.int32),
        "image_segment_ids": np.zeros(N, np.int32),
        "answer_positions": np.zeros(A, np.int32),
        "answer_targets": np.zeros(A, np.int32),
        "answer_weights": np.zeros(A, np.float32),
        "answer_tasks": np.zeros(A, np.int32),
    }
    t = n = a = 0
    for segment, example in enumerate(examples, start=1):
        tokens, images, answers = (
            slice(start, start + size) for start, size in zip((t, n, a), example.size, strict=True)
        )
        row["tokens"][tokens] = example.tokens
        row["segment_ids"][tokens] = segment
        row["positions"][tokens] = np.arange(example.size[0])
        shown = np.cumsum(example.tokens == example.image_token) - 1
        if shown[-1] + 1 != len(example.images):
            raise ValueError(f"segment {segment} has {shown[-1] + 1} image markers and {len(example.images)} images")
        row["image_index"][tokens] = np.where(shown >= 0, shown + n, -1)
        row["image_items"][images] = example.images
        row["image_segment_ids"][images] = segment
        row["answer_positions"][answers] = example.answer_positions + t
        row["answer_targets"][answers] = example.answer_targets
        row["answer_weights"][answers] = example.answer_weights
        row["answer_tasks"][answers] = example.task
        t, n, a = tokens.stop, images.stop, answers.stop
    return row
