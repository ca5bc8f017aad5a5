"""Several examples a row: which lie together, and the arrays of a row.

Every row has room for the same number of tokens, images and answers. `pack` plans, `fill_row` writes; segments in a row
never see one another, so a plan changes speed and nothing else.
"""

from __future__ import annotations

import array
import dataclasses
import functools
import heapq
import operator
from collections.abc import Sequence

import numpy as np

from data_pipelines.tasks.examples import Example, RowShape

LOOKS = 8
"""After so many buckets whose rows lack room for answers, all are compared at once."""


def pack(sizes: np.ndarray, row_shape: RowShape) -> list[list[int]]:
    """Best-fit decreasing under three budgets at once.

    The examples are taken longest first, and each goes into the row that it leaves the fewest free tokens in, among
    those with room for its images and answers too (ties: the row opened first). Rows lie in buckets by what they have
    free, and a bit of one integer says whether there is one with so many free tokens: an example takes microseconds.

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
    for example, (tokens, images, answers) in zip(order.tolist(), sizes[order].tolist(), strict=True):
        found = open_rows.take(tokens, images, answers)
        if found is None:
            rows.append([])
            found = len(rows) - 1, *limits.tolist()
        row, free_tokens, free_images, free_answers = found
        rows[row].append(example)
        open_rows.put(row, free_tokens - tokens, free_images - images, free_answers - answers)
    return rows


class _OpenRows:
    """Rows with room left, in buckets by their free tokens.

    A bucket has heaps of rows, in the order they were opened, by their free images and answers. For each number of free
    images, one integer has a bit for each bucket with such a row. Bounds of the answers that are free in each bucket,
    made exact where a look into it found nothing, say which need not be looked into.
    """

    def __init__(self, row_shape: RowShape, smallest: list[int]):
        """
        Args:
          smallest: the fewest tokens, images and answers of any example; a row with less is closed.
        """
        self._smallest = tuple(smallest)
        self._buckets: list[dict[tuple[int, int], list[int]]] = [{} for _ in range(row_shape.tokens + 1)]
        self._occupied = [0] * (row_shape.images + 1)
        self._answers = array.array("i", [-1]) * (row_shape.tokens + 1)

    def put(self, row: int, tokens: int, images: int, answers: int) -> None:
        least_tokens, least_images, least_answers = self._smallest
        if tokens < least_tokens or images < least_images or answers < least_answers:
            return
        heapq.heappush(self._buckets[tokens].setdefault((images, answers), []), row)
        self._occupied[images] |= 1 << tokens
        if answers > self._answers[tokens]:
            self._answers[tokens] = answers

    def take(self, tokens: int, images: int, answers: int) -> tuple[int, int, int, int] | None:
        """The row that fits best, taken out, and what it has free; None: none fits."""
        left = functools.reduce(operator.or_, self._occupied[images:]) >> tokens
        for _ in range(LOOKS):
            if not left:
                return None
            place = tokens + (left & -left).bit_length() - 1
            if self._answers[place] >= answers and (found := self._take_from(place, images, answers)):
                return found
            left &= left - 1
        for place in np.flatnonzero(np.frombuffer(self._answers, np.int32)[tokens:] >= answers).tolist():
            if left >> place & 1 and (found := self._take_from(tokens + place, images, answers)):
                return found
        return None

    def _take_from(self, place: int, images: int, answers: int) -> tuple[int, int, int, int] | None:
        bucket = self._buckets[place]
        fitting = [(heap[0], free) for free, heap in bucket.items() if free[0] >= images and free[1] >= answers]
        if not fitting:
            self._answers[place] = max(free[1] for free in bucket)
            return None
        row, free = min(fitting)
        heapq.heappop(bucket[free])
        if not bucket[free]:
            del bucket[free]
            if all(other != free[0] for other, _ in bucket):
                self._occupied[free[0]] ^= 1 << place
        return row, place, *free


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
