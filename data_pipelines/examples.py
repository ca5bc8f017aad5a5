"""What prompts are made of: pieces of tokens with their pictures and targets, and the whole examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Budget:
    """What fits into a row: the fixed sizes of a batch's arrays."""

    tokens: int = 1024
    images: int = 16
    answers: int = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """An interleaved sequence with its answers.

    Attributes:
      tokens: int32 [t].
      images: int32 [n], the items whose pictures the markers stand for, in order.
      answer_positions: int32 [a], where a target is predicted.
      answer_targets: int32 [a].
      answer_weights: float32 [a].
      task: an index into `TASKS`.
      image_token: the id that marks an image in `tokens`.
    """

    tokens: np.ndarray
    images: np.ndarray
    answer_positions: np.ndarray
    answer_targets: np.ndarray
    answer_weights: np.ndarray
    task: int
    image_token: int

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

    def __getitem__(self, index: int) -> np.ndarray:
        return self._flat[self._offsets[index] : self._offsets[index + 1]]


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """A run of tokens, the items whose pictures it shows, and what it predicts where.

    Attributes:
      asked_at: int32 [a], counted from the piece's first token; -1 is the token before it.
      targets: int32 [a].
      weights: float32 [a], next to a token of the answer asked for.
    """

    tokens: np.ndarray
    images: tuple[int, ...] = ()
    asked_at: np.ndarray = dataclasses.field(default_factory=int32)
    targets: np.ndarray = dataclasses.field(default_factory=int32)
    weights: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def size(self) -> np.ndarray:
        return np.array([len(self.tokens), len(self.images), len(self.targets)])
