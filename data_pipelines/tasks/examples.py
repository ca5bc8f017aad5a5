"""What prompts are made of: pieces of tokens with their images and targets, and the whole examples."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class RowShape:
    """What fits into a row: the fixed sizes of a batch's arrays."""

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
      image_positions: int32 [n], where these markers are, ascending; where an image takes several tokens, the first of
        them. What an item is called may read like a marker: only who writes an example knows which are.
      answer_positions: int32 [a], where a target is predicted.
      answer_targets: int32 [a].
      answer_weights: float32 [a].
      task: an index into `TASKS`.
      shortened: whether texts of the question or of the answer are cut because a row has no room for them whole.
    """

    tokens: np.ndarray
    images: np.ndarray
    image_positions: np.ndarray
    answer_positions: np.ndarray
    answer_targets: np.ndarray
    answer_weights: np.ndarray
    task: int
    shortened: bool = False

    @property
    def size(self) -> tuple[int, int, int]:
        return len(self.tokens), len(self.images), len(self.answer_positions)


def int32(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


class Ragged:
    """Many short token arrays in one.

    Attributes:
      offsets: int64 [rows + 1]; row r has the tokens offsets[r] to offsets[r + 1].
      lengths_and_end: int64 [rows + 1], how many tokens rows have, and 0.
    """

    def __init__(self, flat: np.ndarray, lengths: np.ndarray):
        """
        Args:
          flat: int32, all rows one after the other.
          lengths: int [rows].
        """
        self._flat = flat
        self.offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self.lengths_and_end = np.append(lengths, 0)  # row -1 is empty

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return cls(np.fromiter((token for row in rows for token in row), np.int32, lengths.sum()), lengths)

    @classmethod
    def of_arrays(cls, flat: np.ndarray, offsets: np.ndarray, lengths_and_end: np.ndarray) -> Ragged:
        """Of arrays that are one's already, none of which is copied."""
        rows = cls.__new__(cls)
        rows._flat, rows.offsets, rows.lengths_and_end = flat, offsets, lengths_and_end
        return rows

    @property
    def lengths(self) -> np.ndarray:
        """int64 [rows]."""
        return self.lengths_and_end[:-1]

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """How many tokens rows have, 0 for row -1: int64, of the shape of `rows`."""
        return self.lengths_and_end[rows]

    def __getitem__(self, row: int) -> np.ndarray:
        return self._flat[self.offsets[row] : self.offsets[row + 1]]


@dataclasses.dataclass(frozen=True, eq=False)
class TokenSpan:
    """A run of tokens, the items whose images it shows, and what it predicts where.

    Attributes:
      shown_at: int32 [n], where the markers of `images` are, counted from the piece's first token.
      asked_at: int32 [a], counted from the piece's first token; -1 is the token before it.
      targets: int32 [a].
      weights: float32 [a], next to a token of the answer asked for.
    """

    tokens: np.ndarray
    images: tuple[int, ...] = ()
    shown_at: np.ndarray = dataclasses.field(default_factory=int32)
    asked_at: np.ndarray = dataclasses.field(default_factory=int32)
    targets: np.ndarray = dataclasses.field(default_factory=int32)
    weights: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def size(self) -> np.ndarray:
        return np.array([len(self.tokens), len(self.images), len(self.targets)])


def longest_kept(lengths: np.ndarray, over: np.ndarray) -> np.ndarray:
    """To how many tokens texts that are longer must be cut, so that they have `over` fewer in all: int64 [n].

    Args:
      lengths: int64 [n, k], of k texts that share what room there is.
      over: int64 [n]; where it is above 0, all that is longer than the result is cut to it.
    """
    room = np.maximum(lengths.sum(axis=1) - over, 0)
    ascending = np.sort(lengths, axis=1)
    shorter = np.cumsum(ascending, axis=1) - ascending
    shares = (room[:, None] - shorter) // np.arange(lengths.shape[1], 0, -1)
    too_long = ascending > shares
    first = too_long.argmax(axis=1) if lengths.shape[1] else np.zeros(len(lengths), int)
    levels = np.take_along_axis(np.pad(shares, ((0, 0), (0, 1))), first[:, None], axis=1)[:, 0]
    return np.where(too_long.any(axis=1), levels, sys.maxsize)
