"""What is asked, of whom, about which moment of their history: an endless stream to train on, and the held-out ones."""

from __future__ import annotations

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
    "queries.mix.image asks for images, but vocabulary.image_codes names no file of their codes: `unimp vqgan codes` "
    "makes one"
)


@dataclasses.dataclass(frozen=True)
class QueryConfig:
    """Which questions training asks."""

    mix: Mapping[str, float] = dataclasses.field(default_factory=default_shares)
    """How often each task is asked, in proportion to one another; 0, or no mention, leaves a task out."""
    whole_rate: float = 1.0
    """This share of the questions shows the latest items of the history whole, the others bare ids alone, of which many
    more fit into a row."""
    window: Literal["uniform", "latest"] = "uniform"
    """Where a user's random window ends: at any interaction, or only where a full window lies before it."""
    window_items: int = 0
    """For `latest`: how many items make a full window."""
    unconditional_rate: float = 0.1
    """This share of the image questions is asked without history and query, which guidance needs in decoding
    (classifier-free, arXiv:2207.12598)."""

    def __post_init__(self) -> None:
        check_names("queries.mix", self.mix)
        object.__setattr__(self, "mix", {name: float(self.mix.get(name, 0.0)) for name in TASKS})
        for name in ("unconditional_rate", "whole_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"queries.{name} {getattr(self, name)} must be a share, 0 to 1")

    @property
    def needs_codes(self) -> bool:
        """Whether a task is asked that only runs with image codes know."""
        return any(weight and TASKS[name].needs_codes for name, weight in self.mix.items())


class TrainingQueries:
    """The endless, seeded stream of training questions, drawn in blocks: a block is the same whoever asks for it, and
    when.

    Every user is asked once an epoch, in a random order, about one random window of their training interactions. A task
    that a user cannot be asked about (a rating where none was given, the image of an item that has none, a selection
    where everything was met) falls back to recommendation.

    Attributes:
      tasks: the names of those that are asked.
      notes: what is left out, and why, in lines to be shown.
    """

    def __init__(self, corpus: Corpus, config: QueryConfig, seed: int, has_codes: np.ndarray | None = None):
        """
        Args:
          has_codes: bool [I], the items whose image is known as codes; None: there are no codes.
        """
        self.corpus, self.config, self.seed = corpus, config, seed
        self._data = TaskData.of(corpus, has_codes, config.unconditional_rate)
        starts = corpus.offsets[:-1]
        self._num_train = np.add.reduceat((corpus.splits == TRAIN).astype(np.int64), starts)
        self.users = np.flatnonzero(self._num_train >= 2)
        if not len(self.users):
            raise DataError("no user has two interactions to train on: there is no history to ask about")
        weights = np.array([config.mix.get(name, 0.0) for name in TASKS], np.float64)
        if not (weights >= 0).all() or not weights.any():
            raise ValueError(f"task mix {dict(config.mix)}: weights must be 0 or more, and one above 0")
        if config.needs_codes and has_codes is None:
            raise ValueError(NO_CODES)
        self.notes: list[str] = []
        if len(self.users) < corpus.num_users:
            few = corpus.num_users - len(self.users)
            self.notes.append(f"{few} users with fewer than two interactions to train on are not asked about")
        for number, (name, task) in enumerate(TASKS.items()):
            why = task.unavailable(self._data) if weights[number] else ""
            if why:
                self.notes.append(f"{name} is left out: {why}; --queries.mix.{name} 0 says so")
                weights[number] = 0
        if not weights.any():
            raise ValueError(
                "this source has neither ratings, categories, enough items to select from nor images for the only "
                f"tasks of the mix ({'; '.join(self.notes)})"
            )
        self.tasks = tuple(name for name, weight in zip(TASKS, weights, strict=True) if weight)
        cumulative = np.cumsum(weights)
        self._cumulative = cumulative / cumulative[-1]  # 1 exactly from the last task on that has a weight

    def draw(self, block: int, count: int) -> tuple[Queries, collections.Counter[str]]:
        """The questions of a block, number `block * count` of the stream and those after it.

        Returns:
          `count` questions, and how many of them replace another one, by which.
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
      left_out: how many users cannot, by the reason, in words that follow "users" (`whose answer has no rating`).
    """

    queries: list[Query]
    left_out: dict[str, int]


def held_out(corpus: Corpus, split: Split, task: str, has_codes: np.ndarray | None = None) -> HeldOut:
    """One question for each user with a held-out interaction, the same at every call.

    Only what the split holds out is asked about, and images only of items in `has_codes`, bool [I].
    """
    data, which = TaskData.of(corpus, has_codes), {"validation": VALIDATION, "test": TEST}[split]
    users, positions = corpus.held_out(which)
    left_out = collections.Counter({"without a history before their answer": int((corpus.splits == which).sum())})
    left_out.subtract({"without a history before their answer": len(users)})
    queries = []
    for user, position in zip(users.tolist(), positions.tolist(), strict=True):
        query = TASKS[task].held_out(data, split, user, position)
        if isinstance(query, Query):
            queries.append(query)
        else:
            left_out[query] += 1
    return HeldOut(queries, dict(+left_out))


def held_out_queries(corpus: Corpus, split: Split, task: str, has_codes: np.ndarray | None = None) -> list[Query]:
    """The questions of `held_out`."""
    return held_out(corpus, split, task, has_codes).queries
