"""Packing of several examples into one row: planning which examples share a row, and filling the row's arrays.

Every row has the same capacity of tokens, images and answers. `pack` plans and `fill_row` writes. Segments of a row
never attend to one another, so the plan affects speed only.
"""

import array
import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.tasks.examples import Example, RowShape

LOOKS = 16
"""After this many buckets whose rows lack room for images or answers, the remaining ones are compared all at once."""


def pack(sizes: np.ndarray, row_shape: RowShape) -> list[list[int]]:
    """Packs examples by best-fit decreasing under three budgets at once; returns the indices of the examples of each
    row.

    Examples of the given sizes, int [E, 3] (tokens, images and answers), are taken longest first. Each goes into the
    row where it leaves the fewest free tokens, among the rows that also have room for its images and answers (ties: the
    row opened first). Rows are kept in buckets by free tokens, and the bits of an integer say which buckets are
    occupied, so an example takes microseconds. Raises ValueError if an example is larger than a row.
    """
    limits = np.array([row_shape.tokens, row_shape.images, row_shape.answers])
    too_large = np.flatnonzero((sizes > limits).any(axis=1))
    if len(too_large):
        raise ValueError(f"example {too_large[0]} of size {sizes[too_large[0]].tolist()} does not fit {row_shape}")
    rows: list[list[int]] = []
    open_rows = _OpenRows(row_shape.tokens)
    least_tokens, least_images, least_answers = sizes.min(axis=0, initial=max(limits)).tolist()
    order = np.argsort(-sizes[:, 0], kind="stable")
    for example, (tokens, images, answers) in zip(order.tolist(), sizes[order].tolist(), strict=True):
        found = open_rows.take(tokens, images, answers)
        if found is None:
            rows.append([])
            found = len(rows) - 1, row_shape.tokens, row_shape.images, row_shape.answers
        row, free_tokens, free_images, free_answers = found
        rows[row].append(example)
        free_tokens, free_images, free_answers = free_tokens - tokens, free_images - images, free_answers - answers
        if free_tokens >= least_tokens and free_images >= least_images and free_answers >= least_answers:
            open_rows.put(row, free_tokens, free_images, free_answers)
    return rows


class _OpenRows:
    """Rows with free room, in buckets by their free tokens.

    A bucket holds (row, free images, free answers), ascending, so that the first that fits was opened first. Upper
    bounds of the free images and answers in each bucket, made exact whenever a search of the bucket fails, tell which
    buckets need not be searched.
    """

    def __init__(self, tokens: int):
        """Creates the buckets of 0 to `tokens` free tokens, without rows."""
        self._buckets: list[list[tuple[int, int, int]]] = [[] for _ in range(tokens + 1)]
        self._occupied = 0
        self._images, self._answers = (array.array("i", [-1]) * (tokens + 1) for _ in range(2))

    def put(self, row: int, tokens: int, images: int, answers: int) -> None:
        bisect.insort(self._buckets[tokens], (row, images, answers))
        self._occupied |= 1 << tokens
        self._images[tokens] = max(self._images[tokens], images)
        self._answers[tokens] = max(self._answers[tokens], answers)

    def take(self, tokens: int, images: int, answers: int) -> tuple[int, int, int, int] | None:
        """Removes and returns the best-fitting row and its free tokens, images and answers; None if no row fits."""
        left, place = self._occupied >> tokens, tokens - 1
        for _ in range(LOOKS):
            if not left:
                return None
            skipped = (left & -left).bit_length()
            left, place = left >> skipped, place + skipped
            has_room = self._images[place] >= images and self._answers[place] >= answers
            if has_room and (found := self._take_from(place, images, answers)):
                return found
        free_images, free_answers = (np.frombuffer(one, np.int32)[place + 1 :] for one in (self._images, self._answers))
        for more in np.flatnonzero((free_images >= images) & (free_answers >= answers)).tolist():
            if found := self._take_from(place + 1 + more, images, answers):
                return found
        return None

    def _take_from(self, place: int, images: int, answers: int) -> tuple[int, int, int, int] | None:
        bucket = self._buckets[place]
        for at, (row, free_images, free_answers) in enumerate(bucket):
            if free_images >= images and free_answers >= answers:
                del bucket[at]
                if not bucket:
                    self._occupied ^= 1 << place
                    self._images[place] = self._answers[place] = -1
                return row, place, free_images, free_answers
        _, self._images[place], self._answers[place] = map(max, zip(*bucket, strict=True))
        return None


def best_length(sizes: np.ndarray, row_shape: RowShape, *, step: int = 16, sample: int = 512) -> int:
    """Returns the row length that leaves the fewest tokens empty when `sample` evenly spaced examples are packed.
    Candidates are the multiples of `step` that hold the longest example of `sizes`, as for `pack` with E at least 1,
    and the length of `row_shape`. Ties go to the shortest, since the cost of attention grows with the row length."""
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
