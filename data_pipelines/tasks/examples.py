"""The building blocks of prompts: token spans with their images and targets, and complete examples."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Self

import numpy as np


@dataclasses.dataclass(frozen=True)
class RowShape:
    """The capacity of a row, which fixes the sizes of a batch's arrays."""

    tokens: int = 1024
    images: int = 16
    answers: int = 256

    def __post_init__(self) -> None:
        if min(self.tokens, self.answers) < 1 or self.images < 0:
            raise ValueError(f"row_shape: tokens and answers must be at least 1, images at least 0, not {self}")


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """An interleaved sequence with its answers.

    Attributes:
      tokens: int32 [t].
      images: int32 [n], the items whose images the markers stand for, in order.
      image_positions: int32 [n], the positions of these markers, ascending; if an image takes several tokens, the first
        of them. They are stored because an item's text may contain the same tokens as a marker.
      answer_positions: int32 [a], the positions at which targets are predicted.
      answer_targets: int32 [a].
      answer_weights: float32 [a].
      task: an index into `TASKS`.
    """

    tokens: np.ndarray
    images: np.ndarray
    image_positions: np.ndarray
    answer_positions: np.ndarray
    answer_targets: np.ndarray
    answer_weights: np.ndarray
    task: int

    @property
    def size(self) -> tuple[int, int, int]:
        return len(self.tokens), len(self.images), len(self.answer_positions)


def int32(*numbers: int) -> np.ndarray:
    """Returns the numbers as an array: int32 [n]."""
    return np.array(numbers, np.int32)


class Ragged:
    """Many short token arrays stored as one.

    Attributes:
      offsets: int64 [rows + 1]; row r has the tokens offsets[r] to offsets[r + 1].
      lengths_and_end: int64 [rows + 1], the number of tokens of each row, followed by 0.
    """

    def __init__(self, flat: np.ndarray, lengths: np.ndarray):
        """Creates the rows from all of them one after the other, int32, and their lengths, int [rows]."""
        self._flat = flat
        self.offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self.lengths_and_end = np.append(lengths, 0)  # row -1 is empty

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Self:
        """Creates it from the tokens of each row."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return cls(np.fromiter((token for row in rows for token in row), np.int32, lengths.sum()), lengths)

    @classmethod
    def of_arrays(cls, flat: np.ndarray, offsets: np.ndarray, lengths_and_end: np.ndarray) -> Self:
        """Creates it from the given arrays without copying them."""
        rows = cls.__new__(cls)
        rows._flat, rows.offsets, rows.lengths_and_end = flat, offsets, lengths_and_end
        return rows

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each row: int64 [rows]."""
        return self.lengths_and_end[:-1]

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Returns the number of tokens of the given rows, 0 for row -1: int64, with the shape of `rows`."""
        return self.lengths_and_end[rows]

    def __getitem__(self, row: int) -> np.ndarray:
        return self._flat[self.offsets[row] : self.offsets[row + 1]]


@dataclasses.dataclass(frozen=True, eq=False)
class TokenSpan:
    """A run of tokens, the items whose images it shows, and its targets.

    Attributes:
      shown_at: int32 [n], the positions of the markers of `images`, relative to the first token of the span.
      asked_at: int32 [a], the positions of the predictions, relative to the first token; -1 is the token before the
        span.
      targets: int32 [a].
      weights: float32 [a], relative to a token of the final answer.
    """

    tokens: np.ndarray
    images: tuple[int, ...] = ()
    shown_at: np.ndarray = dataclasses.field(default_factory=int32)
    asked_at: np.ndarray = dataclasses.field(default_factory=int32)
    targets: np.ndarray = dataclasses.field(default_factory=int32)
    weights: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.float32))


def longest_kept(lengths: np.ndarray, over: np.ndarray) -> np.ndarray:
    """Returns the length to which longer texts must be cut to shorten them by `over` tokens in total: int64 [n].
    `lengths`, int64 [n, k], are those of the k texts that share the available room; if `over`, int64 [n], is above 0,
    all texts longer than the result are cut to it."""
    room = np.maximum(lengths.sum(axis=1) - over, 0)
    ascending = np.sort(lengths, axis=1)
    shorter = np.cumsum(ascending, axis=1) - ascending
    shares = (room[:, None] - shorter) // np.arange(lengths.shape[1], 0, -1)
    too_long = ascending > shares
    first = too_long.argmax(axis=1) if lengths.shape[1] else np.zeros(len(lengths), int)
    levels = np.take_along_axis(np.pad(shares, ((0, 0), (0, 1))), first[:, None], axis=1)[:, 0]
    return np.where(too_long.any(axis=1), levels, sys.maxsize)
