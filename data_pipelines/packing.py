"""Packing of several examples into one row: planning which examples share a row, and filling the row's arrays.

Every row has the same capacity of tokens, images and answers. `pack` plans and `fill_row` writes. Segments of a row
never attend to one another, so the plan affects speed only.
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
"""After this many buckets whose rows lack room for the answers, the remaining buckets are compared all at once."""


def pack(sizes: np.ndarray, row_shape: RowShape) -> list[list[int]]:
    """Packs examples by best-fit decreasing under three budgets at once.

    Examples are taken longest first. Each goes into the row where it leaves the fewest free tokens, among the rows that
    also have room for its images and answers (ties: the row opened first). Rows are kept in buckets by free tokens, and
    the bits of an integer say which buckets are occupied, so an example takes microseconds.

    Args:
      sizes: int [E, 3], tokens, images and answers of each example.

    Returns:
      For each row, the indices of its examples; every example occurs once.

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
    """Rows with free room, in buckets by their free tokens.

    A bucket holds heaps of rows, in the order in which they were opened, keyed by (free images, free answers). For each
    number of free images, one integer has a bit for each bucket with such a row. An upper bound of the free answers in
    each bucket, made exact whenever a search of the bucket fails, tells which buckets need not be searched.
    """

    def __init__(self, row_shape: RowShape, smallest: list[int]):
        """Creates the buckets without rows.

        Args:
          smallest: the fewest tokens, images and answers of any example; a row with less room is closed.
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
        """Removes and returns the best-fitting row and its free tokens, images and answers; None if no row fits."""
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
    """Returns the row length that leaves the fewest tokens empty.

    Candidates are the multiples of `step` that hold the longest example, and the length of `row_shape`. Ties go to the
    shortest, since the cost of attention grows with the row length.

    Args:
      sizes: int [E, 3], as for `pack`, with E at least 1.
      sample: the number of evenly spaced examples that are packed to compare lengths.
    """
    some = sizes[:: -(-len(sizes) // sample)]
    lengths = [*range(-(-int(sizes[:, 0].max()) // step) * step, row_shape.tokens, step), row_shape.tokens]
    tokens = [length * len(pack(some, dataclasses.replace(row_shape, tokens=length))) for length in lengths]
    return lengths[int(np.argmin(tokens))]


def fill_row(examples: Sequence[Example], row_shape: RowShape) -> dict[str, np.ndarray]:
    """Returns the arrays of one row, except the images themselves; see `unimp_jax.batch.Batch` for their meaning.

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
