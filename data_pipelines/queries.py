"""What is asked, of whom, about which moment of their history: an endless stream to train on, and the held-out ones."""

from __future__ import annotations

import collections
import dataclasses
from typing import Literal

import numpy as np

from data_pipelines.corpus import SHOWN, TEST, TRAIN, VALIDATION, Corpus
from data_pipelines.errors import DataError
from data_pipelines.vocabulary import NUM_CANDIDATES

TASKS = ("recommendation", "search", "preference", "selection", "image")
RECOMMENDATION, SEARCH, PREFERENCE, SELECTION, IMAGE = range(len(TASKS))
NO_CODES = (
    "queries.mix.image asks for pictures, but vocabulary.image_codes names no file of their codes: `unimp vqgan codes` "
    "makes one"
)


@dataclasses.dataclass(frozen=True)
class Query:
    """One question about one user.

    Attributes:
      task: an index into `TASKS`.
      user: whose history it is.
      position: the history is the user's interactions before this one, and this one is what is asked about; as many as
        there are, where it is yet to come, so that the question is open and can only be asked.
      right: the items that are right answers, at most two, oldest first; the first is the one at `position`. An open
        question has none, but for preference: there it is the item asked about.
      candidates: for selection, the three items to select from.
      words: what is searched for, where it is not the categories of the right item.
      bare: for image, whether the history and what is searched for are left out.
      instead_of: what could not be asked, in words to be counted, where it could have been of most people.
    """

    task: int
    user: int
    position: int
    right: tuple[int, ...]
    candidates: tuple[int, ...] = ()
    words: str | None = None
    bare: bool = False
    instead_of: str = ""


@dataclasses.dataclass(frozen=True)
class TaskMix:
    """How often each task is asked in training, in proportion to one another; 0 leaves a task out."""

    recommendation: float = 1.0
    search: float = 1.0
    preference: float = 1.0
    selection: float = 1.0
    image: float = 0.0


@dataclasses.dataclass(frozen=True)
class QueryConfig:
    """Which questions training asks."""

    mix: TaskMix = TaskMix()
    window: Literal["uniform", "latest"] = "uniform"
    """Where a user's random window ends: at any interaction, or only where a full window lies before it."""
    window_items: int = 0
    """For `latest`: how many items make a full window."""
    bare_images: float = 0.1
    """This share of the image questions is asked without history and query, which guidance needs in decoding
    (classifier-free, arXiv:2207.12598)."""

    def __post_init__(self) -> None:
        if not 0 <= self.bare_images <= 1:
            raise ValueError(f"queries.bare_images {self.bare_images} must be a share, 0 to 1")


class TrainingQueries:
    """The endless, seeded stream of training questions: query number i is the same whoever asks for it, and when.

    Every user is asked once an epoch, in a random order, about one random window of their training interactions. A task
    that a user cannot be asked about (a rating where none was given, the picture of an item that has none, a selection
    where everything was met) falls back to recommendation.

    Attributes:
      tasks: those that are asked, by index into `TASKS`.
      notes: what is left out, and why, in lines to be shown.
    """

    def __init__(self, corpus: Corpus, config: QueryConfig, seed: int, has_codes: np.ndarray | None = None):
        """
        Args:
          has_codes: bool [I], the items whose picture is known as codes; None: there are no codes.
        """
        self.corpus, self.config, self.seed = corpus, config, seed
        self._paintable = paintable(corpus, has_codes)
        starts = corpus.offsets[:-1]
        self._num_train = np.add.reduceat((corpus.splits == TRAIN).astype(np.int64), starts)
        self.users = np.flatnonzero(self._num_train >= 2)
        if not len(self.users):
            raise DataError("no user has two interactions to train on: there is no history to ask about")
        weights = np.array([getattr(config.mix, task) for task in TASKS], np.float64)
        if not (weights >= 0).all() or not weights.any():
            raise ValueError(f"task mix {config.mix}: weights must be 0 or more, and one above 0")
        if weights[IMAGE] and has_codes is None:
            raise ValueError(NO_CODES)
        self.notes: list[str] = []
        if len(self.users) < corpus.num_users:
            few = corpus.num_users - len(self.users)
            self.notes.append(f"{few} users with fewer than two interactions to train on are not asked about")
        for task, why in unaskable(corpus, self._paintable).items():
            if weights[task]:
                self.notes.append(f"{TASKS[task]} is left out: {why}; --queries.mix.{TASKS[task]} 0 says so")
                weights[task] = 0
        if not weights.any():
            raise ValueError(
                "this source has neither ratings, categories, enough items to select from nor pictures for the only "
                f"tasks of the mix ({'; '.join(self.notes)})"
            )
        self.tasks = tuple(np.flatnonzero(weights).tolist())
        cumulative = np.cumsum(weights)
        self._cumulative = cumulative / cumulative[-1]  # 1 exactly from the last task on that has a weight
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, number: int) -> Query:
        epoch, place = divmod(number, len(self.users))
        if epoch != self._epoch:
            self._order = np.random.default_rng((self.seed, 0, epoch)).permutation(self.users)
            self._epoch = epoch
        user = int(self._order[place])
        rng = np.random.default_rng((self.seed, 1, number))
        task = int(np.searchsorted(self._cumulative, rng.random(), side="right"))
        last = int(self._num_train[user]) - 1
        first = min(self.config.window_items, last) if self.config.window == "latest" else 1
        position = int(rng.integers(max(first, 1), last + 1))
        return self._query(task, user, position, last, rng)

    def _query(self, task: int, user: int, position: int, last: int, rng: np.random.Generator) -> Query:
        event = int(self.corpus.offsets[user]) + position
        item = int(self.corpus.items[event])
        rated = not np.isnan(self.corpus.ratings[event])
        if (task == PREFERENCE and not rated) or (task == SEARCH and not self.corpus.categories[item]):
            task = RECOMMENDATION
        if task == IMAGE and self._paintable[item]:
            return Query(IMAGE, user, position, (item,), bare=rng.random() < self.config.bare_images)
        if task == IMAGE:
            task = RECOMMENDATION
        if task != SELECTION:
            return Query(task, user, position, (item,))
        both = position < last and rng.random() < 0.5
        following = self.corpus.items[event + 1 : event + 1 + both].tolist()
        right = tuple(dict.fromkeys([item, *following]))  # the same item twice in a row is one right answer
        met = self.corpus.history(user, last + 1)  # what is held out is not known here, so it may be offered as wrong
        offered = candidates(self.corpus.num_items, right, met, rng)
        if offered is None:
            return Query(RECOMMENDATION, user, position, (item,), instead_of="selection where nothing is left unmet")
        return Query(SELECTION, user, position, right, offered)


def unaskable(corpus: Corpus, can_paint: np.ndarray) -> dict[int, str]:
    """The tasks that nobody can be asked, and why.

    Args:
      can_paint: as of `paintable`.
    """
    why: dict[int, str] = {}
    if not corpus.rating_levels:
        why[PREFERENCE] = "no rating is among what is to train on"
    if not any(corpus.categories):
        why[SEARCH] = "no item has categories"
    if corpus.num_items < NUM_CANDIDATES:
        why[SELECTION] = f"it takes {NUM_CANDIDATES} items, and the catalogue has {corpus.num_items}"
    if not can_paint.any():
        why[IMAGE] = "no item has both codes of a picture and categories"
    return why


def paintable(corpus: Corpus, has_codes: np.ndarray | None) -> np.ndarray:
    """Which items a picture can be asked for of, those that have codes and categories to search by: bool [I]."""
    has_categories = np.array([bool(words) for words in corpus.categories], bool)
    return np.zeros(corpus.num_items, bool) if has_codes is None else has_codes & has_categories


def candidates(
    num_items: int, right: tuple[int, ...], met: np.ndarray, rng: np.random.Generator
) -> tuple[int, ...] | None:
    """The right items among others that are not in `met`, three in random order; None where so much of the catalogue
    was met that nothing wrong is left to offer."""
    offered = list(dict.fromkeys(right))
    refused = {*met.tolist(), *offered}
    if num_items - len(refused) < NUM_CANDIDATES - len(offered):
        return None
    while len(offered) < NUM_CANDIDATES:
        item = int(rng.integers(num_items))
        if item not in refused:
            offered.append(item)
            refused.add(item)
    return tuple(offered[place] for place in rng.permutation(NUM_CANDIDATES))


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The held-out questions of a task.

    Attributes:
      queries: one for each user who can be asked.
      left_out: how many users cannot, by the reason, in words that follow "users" (`whose answer has no rating`).
    """

    queries: list[Query]
    left_out: dict[str, int]


def held_out(
    corpus: Corpus, split: Literal["validation", "test"], task: str, has_codes: np.ndarray | None = None
) -> HeldOut:
    """One question for each user with a held-out interaction, the same at every call.

    Only what the split holds out is asked about, and pictures only of items in `has_codes`, bool [I]. Selection has two
    right items for every second user of the test split whose last item but one was not to train on (the validation
    item, or one that is only shown): that and the test item, asked of the history before both.
    """
    kind, which = TASKS.index(task), {"validation": VALIDATION, "test": TEST}[split]
    can_paint = paintable(corpus, has_codes)
    users, positions = corpus.held_out(which)
    left_out = collections.Counter({"without a history before their answer": int((corpus.splits == which).sum())})
    left_out.subtract({"without a history before their answer": len(users)})
    has_levels = kind != PREFERENCE or bool(corpus.rating_levels)
    queries = []
    for user, position in zip(users.tolist(), positions.tolist(), strict=True):
        event = int(corpus.offsets[user]) + position
        item = int(corpus.items[event])
        reason = ""
        if kind == PREFERENCE and not has_levels:
            reason = "whose rating cannot be foretold, for no rating is among what was to train on"
        elif kind == PREFERENCE and np.isnan(corpus.ratings[event]):
            reason = "whose answer has no rating"
        elif kind == SEARCH and not corpus.categories[item]:
            reason = "whose answer has no categories to search by"
        elif kind == IMAGE and not can_paint[item]:
            reason = "whose answer has no codes of a picture, or no categories"
        query: Query | None = Query(kind, user, position, (item,))
        if kind == SELECTION:
            query = _held_out_selection(corpus, which, user, position)
            reason = "who met so much of the catalogue that nothing wrong is left to offer" if query is None else ""
        if reason or query is None:
            left_out[reason] += 1
        else:
            queries.append(query)
    return HeldOut(queries, dict(+left_out))


def _held_out_selection(corpus: Corpus, split: int, user: int, position: int) -> Query | None:
    """Three items to select from; None where nothing wrong is left to offer."""
    event = int(corpus.offsets[user]) + position
    query = Query(SELECTION, user, position, (int(corpus.items[event]),))
    unknown = corpus.splits[event - 1] in (VALIDATION, SHOWN)
    both = split == TEST and user % 2 == 1 and position >= 2 and unknown
    if both and corpus.items[event - 1] != corpus.items[event]:
        query = Query(SELECTION, user, position - 1, (int(corpus.items[event - 1]), int(corpus.items[event])))
    rng = np.random.default_rng((user, position))
    offered = candidates(corpus.num_items, query.right, corpus.history(user, position + 1), rng)
    return None if offered is None else dataclasses.replace(query, candidates=offered)


def held_out_queries(
    corpus: Corpus, split: Literal["validation", "test"], task: str, has_codes: np.ndarray | None = None
) -> list[Query]:
    """The questions of `held_out`."""
    return held_out(corpus, split, task, has_codes).queries
