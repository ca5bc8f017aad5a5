"""Several examples a row: which lie together, and the arrays of a row.

Every row has room for the same number of tokens, images and answers. `pack` plans, `fill_row` writes; segments in a row
never see one another, so a plan changes speed and nothing else.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence

import numpy as np

from data_pipelines.tasks.examples import Example, RowShape


def pack(sizes: np.ndarray, row_shape: RowShape) -> list[list[int]]:
    """Best-fit decreasing under three budgets at once.

    The examples are taken longest first, and each goes into the row that it leaves the fewest free tokens in, among
    those with room for its images and answers too (ties: the row opened first). An example looks at the numbers of
    free tokens that rows have, not at the rows: a million take seconds.

    Args:
      sizes: int [E, 3], tokens, images and answers of each example.

    Returns:
      For each row, the examples in it; every example occurs once.

    Raises:
      ValueError: an example is larger than a row.
    """
    limits = np.array([row_shape.tokens, row_shape.images, row_shape.answers])
    too_large = np.flatnonzero((sizes > limits).any(axis=1))
    if len(too_large):
        raise ValueError(f"example {too_large[0]} of size {sizes[too_large[0]].tolist()} does not fit {row_shape}")
    rows: list[list[int]] = []
    open_rows = _OpenRows(row_shape, sizes.min(axis=0, initial=max(limits)).tolist())
    order = np.argsort(-sizes[:, 0], kind="stable")
    for example, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        row, free = open_rows.take(size) or (len(rows), limits.tolist())
        if row == len(rows):
            rows.append([])
        rows[row].append(example)
        open_rows.put(row, [room - used for room, used in zip(free, size, strict=True)])
    return rows


class _OpenRows:
    """Rows with room left, by what they have free.

    For each number of free tokens: heaps of rows, in the order they were opened, by their free images and answers; and
    the most images and answers that any of these rows has free (-1: there is none), which most rows' numbers need not
    be looked at for.
    """

    def __init__(self, row_shape: RowShape, smallest: list[int]):
        """
        Args:
          smallest: the fewest tokens, images and answers of any example; a row with less is closed.
        """
        self._smallest = smallest
        self._heaps: list[dict[tuple[int, int], list[int]]] = [{} for _ in range(row_shape.tokens + 1)]
        self._images, self._answers = np.full((2, row_shape.tokens + 1), -1)

    def put(self, row: int, free: list[int]) -> None:
        if any(room < least for room, least in zip(free, self._smallest, strict=True)):
            return
        tokens, images, answers = free
        heapq.heappush(self._heaps[tokens].setdefault((images, answers), []), row)
        self._images[tokens] = max(self._images[tokens], images)
        self._answers[tokens] = max(self._answers[tokens], answers)

    def take(self, size: list[int]) -> tuple[int, list[int]] | None:
        """The row that fits best, taken out, and what it has free; None: none fits."""
        tokens, images, answers = size
        may_fit = (self._images[tokens:] >= images) & (self._answers[tokens:] >= answers)
        place = int(may_fit.argmax())
        while may_fit[place]:
            heaps = self._heaps[tokens + place]
            fitting = [(heap[0], free) for free, heap in heaps.items() if free[0] >= images and free[1] >= answers]
            if fitting:
                row, free = min(fitting)
                self._remove(tokens + place, free)
                return row, [tokens + place, *free]
            may_fit[place] = False  # the most images are free in one row, the most answers in another
            place = int(may_fit.argmax())
        return None

    def _remove(self, tokens: int, free: tuple[int, int]) -> None:
        heaps = self._heaps[tokens]
        heapq.heappop(heaps[free])
        if not heaps[free]:
            del heaps[free]
            self._images[tokens] = max((images for images, _ in heaps), default=-1)
            self._answers[tokens] = max((answers for _, answers in heaps), default=-1)


def best_length(sizes: np.ndarray, row_shape: RowShape, *, step: int = 16, sample: int = 512) -> int:
    """The row length that leaves the fewest tokens empty, of the multiples of `step` that hold the longest example, and
    of the row shape's; of equal ones the shortest, since attention grows with a row's length.

    Args:
      sizes: int [E, 3], as of `pack`, E at least 1.
      sample: so many examples, evenly taken, are packed to find it.
    """
    some = sizes[:: -(-len(sizes) // sample)]
    lengths = [*range(-(-int(sizes[:, 0].max()) // step) * step, row_shape.tokens, step), row_shape.tokens]
    tokens = [length * len(pack(some, dataclasses.replace(row_shape, tokens=length))) for length in lengths]
    return lengths[int(np.argmin(tokens))]


def fill_row(examples: Sequence[Example], row_shape: RowShape) -> dict[str, np.ndarray]:
    """The arrays of one row (see `unimp_jax.batch.Batch` for their meaning), but for the images themselves.

    Returns:
      `tokens`, `segment_ids`, `positions`, `image_index`: int32 [T]; `image_items` (the item shown, -1 for none) and
      `image_segment_ids`: int32 [N]; `answer_positions`, `answer_targets`, `answer_tasks`: int32 [A];
      `answer_weights`: float32 [A].
    """
    T, N, A = row_shape.tokens, row_shape.images, row_shape.answers
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
        if len(example.image_positions) != len(example.images):
            raise ValueError(
                f"segment {segment} has {len(example.image_positions)} image markers and {len(example.images)} images"
            )
        shown = np.searchsorted(example.image_positions, np.arange(example.size[0]), side="right") - 1
        row["image_index"][tokens] = np.where(shown >= 0, shown + n, -1)
        row["image_items"][images] = example.images
        row["image_segment_ids"][images] = segment
        row["answer_positions"][answers] = example.answer_positions + t
        row["answer_targets"][answers] = example.answer_targets
        row["answer_weights"][answers] = example.answer_weights
        row["answer_tasks"][answers] = example.task
        t, n, a = tokens.stop, images.stop, answers.stop
    return row
