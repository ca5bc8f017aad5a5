"""Draws questions: an endless stream of training questions, and the held-out questions."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from data_pipelines.corpus import TEST, TRAIN, VALIDATION, Corpus
from data_pipelines.errors import DataError
from data_pipelines.permutation import hashed, permuted
from data_pipelines.tasks.base import Split, TaskData
from data_pipelines.tasks.query import Queries, Query
from data_pipelines.tasks.registry import TASKS, check_names, default_shares, task_at, task_number

NO_CODES = (
    "queries.mix.image asks for images, but vocabulary.image_codes names no file of image codes; `unimp vqgan "
    "codes` writes one"
)


@dataclasses.dataclass(frozen=True)
class QueryConfig:
    """The questions that training asks."""

    mix: Mapping[str, float] = dataclasses.field(default_factory=default_shares)
    """Relative frequency of each task; tasks with 0, or that are not listed, are left out."""
    whole_rate: float = 1.0
    """The fraction of questions that show the latest items of the history whole; the others show only bare ids, many
    more of which fit into a row."""
    window: Literal["uniform", "latest"] = "uniform"
    """Where a user's random window ends: at any interaction, or only where a full window of items precedes it."""
    window_items: int = 0
    """For `latest`: the number of items in a full window."""
    unconditional_rate: float = 0.1
    """The fraction of image questions that are asked without history and query, as classifier-free guidance requires in
    decoding (arXiv:2207.12598)."""

    def __post_init__(self) -> None:
        check_names("queries.mix", self.mix)
        object.__setattr__(self, "mix", {name: float(self.mix.get(name, 0.0)) for name in TASKS})
        for name in ("unconditional_rate", "whole_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"queries.{name} {getattr(self, name)} must be a share between 0 and 1")

    @property
    def needs_codes(self) -> bool:
        """Whether the mix includes a task that requires image codes."""
        return any(weight and TASKS[name].needs_codes for name, weight in self.mix.items())


class TrainingQueries:
    """The endless stream of training questions, drawn in blocks that depend only on seed and block number.

    Every user is asked once per epoch, in random order, about one random window of their training interactions. If a
    user cannot be asked the drawn task (a rating that was not given, the image of an item that has none, a selection
    when too few other items are left to offer), recommendation is asked instead.

    Attributes:
      notes: messages to show about what is left out, and why.
    """

    def __init__(self, corpus: Corpus, config: QueryConfig, seed: int, has_codes: np.ndarray | None = None):
        """Prepares the stream.

        Args:
          has_codes: bool [I], the items that have image codes; None if there are no codes.
        """
        self.corpus, self.config, self.seed = corpus, config, seed
        self._data = TaskData.of(corpus, has_codes, config.unconditional_rate)
        starts = corpus.offsets[:-1]
        self._num_train = np.add.reduceat((corpus.splits == TRAIN).astype(np.int64), starts)
        self.users = np.flatnonzero(self._num_train >= 2)
        if not len(self.users):
            raise DataError("no user has two training interactions, so no history can be asked about")
        weights = np.array([config.mix.get(name, 0.0) for name in TASKS], np.float64)
        if not ((weights >= 0) & (weights < np.inf)).all() or not weights.any():
            raise ValueError(f"task mix {dict(config.mix)}: weights must be 0 or more, and at least one above 0")
        if config.needs_codes and has_codes is None:
            raise ValueError(NO_CODES)
        self.notes: list[str] = []
        if len(self.users) < corpus.num_users:
            few = corpus.num_users - len(self.users)
            self.notes.append(f"{few} users with fewer than two training interactions are not asked about")
        for number, (name, task) in enumerate(TASKS.items()):
            why = task.unavailable(self._data) if weights[number] else ""
            if why:
                self.notes.append(
                    f"{name} is left out: {why}; --queries.mix.{name} 0 leaves it out without this notice"
                )
                weights[number] = 0
        if not weights.any():
            raise ValueError(
                "this source does not have what the tasks of the mix need: ratings, categories, enough items to "
                f"select from, or images ({'; '.join(self.notes)})"
            )
        self.tasks = tuple(name for name, weight in zip(TASKS, weights, strict=True) if weight)
        cumulative = np.cumsum(weights)
        self._cumulative = cumulative / cumulative[-1]  # exactly 1 from the last task with a weight on

    def draw(self, block: int, count: int) -> tuple[Queries, collections.Counter[str]]:
        """Draws the questions of a block, which are numbers `block * count` and following of the stream.

        Returns:
          `count` questions, and the number of questions that were replaced, by `Task.unasked`.
        """
        rng = np.random.Generator(np.random.Philox(key=[self.seed, block]))
        epochs, places = np.divmod(block * count + np.arange(count), len(self.users))
        keys = hashed(np.full(count, self.seed, np.uint64)) + hashed(epochs.astype(np.uint64))
        users = self.users[permuted(places, len(self.users), keys)]
        tasks = np.searchsorted(self._cumulative, rng.random(count), side="right")
        last = self._num_train[users] - 1
        first = np.minimum(self.config.window_items, last) if self.config.window == "latest" else 1
        positions = rng.integers(np.maximum(first, 1), last + 1)
        whole = rng.random(count) < self.config.whole_rate
        recommended = task_number("recommendation")
        items = self.corpus.items[self._data.events(users, positions)]
        queries = Queries.about(np.full(count, recommended), users, positions, items, whole)
        replaced: collections.Counter[str] = collections.Counter()
        for number in np.unique(tasks).tolist():
            task, rows = task_at(number), np.flatnonzero(tasks == number)
            asked = dataclasses.replace(queries.take(rows), tasks=tasks[rows])
            asked, able = task.sample(self._data, asked, last[rows], rng)
            queries.put(rows[able], asked.take(able))
            if task.unasked:
                replaced[task.unasked] += int((~able).sum())
        return queries, +replaced


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The held-out questions of a task.

    Attributes:
      queries: one for each user who can be asked.
      left_out: the number of users who cannot be asked, by reason, as words that follow "users" (`whose answer has no
        rating`).
    """

    queries: list[Query]
    left_out: dict[str, int]


def held_out(
    corpus: Corpus, split: Split, task: str, has_codes: np.ndarray | None = None, most: int | None = None
) -> HeldOut:
    """Returns one question for each user with a held-out interaction; the result is deterministic.

    Only interactions held out by the split are asked about, and images only of items in `has_codes`, bool [I].

    Args:
      most: number of users, at most, that are considered, evenly spaced; None: all.
    """
    data, which = TaskData.of(corpus, has_codes), {"validation": VALIDATION, "test": TEST}[split]
    users, positions = corpus.held_out(which)
    left_out = collections.Counter({"without a history before their answer": int((corpus.splits == which).sum())})
    left_out.subtract({"without a history before their answer": len(users)})
    count = len(users) if most is None else min(most, len(users))
    users, positions = (part[np.arange(count) * len(part) // max(count, 1)] for part in (users, positions))
    queries = []
    for user, position in zip(users.tolist(), positions.tolist(), strict=True):
        query = TASKS[task].held_out(data, split, user, position)
        if isinstance(query, Query):
            queries.append(query)
        else:
            left_out[query] += 1
    return HeldOut(queries, dict(+left_out))


def held_out_queries(
    corpus: Corpus, split: Split, task: str, has_codes: np.ndarray | None = None, most: int | None = None
) -> list[Query]:
    """Returns the questions of `held_out`."""
    return held_out(corpus, split, task, has_codes, most).queries
