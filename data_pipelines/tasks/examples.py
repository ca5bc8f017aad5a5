"""What prompts are made of: pieces of tokens with their images and targets, and the whole examples."""

from __future__ import annotations

import dataclasses
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
      image_positions: int32 [n], where these markers are, ascending. What an item is called may read like a marker:
        only who writes an example knows which are.
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
    """Many short token arrays in one."""

    def __init__(self, rows: Sequence[Sequence[int]]):
        self._offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
        self._flat = np.fromiter((token for row in rows for token in row), np.int32, self._offsets[-1])

    @property
    def lengths(self) -> np.ndarray:
        """int64 [rows]."""
        return np.diff(self._offsets)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._flat[self._offsets[index] : self._offsets[index + 1]]


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


def cut_longest(texts: Sequence[np.ndarray], over: int) -> list[np.ndarray]:
    """Texts without their last tokens, `over` fewer in all if they have so many: the longest are cut, to one length."""
    room, lengths = max(sum(map(len, texts)) - over, 0), sorted(map(len, texts))
    for number, length in enumerate(lengths):
        share = room // (len(lengths) - number)
        if length > share:
            return [text[:share] for text in texts]
        room -= length
    return list(texts)
