"""Questions about users: single ones, as used in evaluation, and arrays of many, as used to plan training."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np

from data_pipelines.tasks.registry import TASKS, task_number
from data_pipelines.vocabulary import NUM_CANDIDATES


@dataclasses.dataclass(frozen=True)
class Query:
    """One question about one user.

    Attributes:
      position: the position of the interaction that is asked about; the history is the user's interactions before it.
        If it equals the number of interactions, the question is open: it can be asked, but the answer is unknown.
      right: the items that are right answers, at most two, oldest first; the first is the one at `position`. An open
        question has none, except for a rating, where it is the item asked about.
      candidates: for selection, the three items to select from.
      words: the search query, if it is not the categories of the right item.
      unconditional: for image, whether the history and the search query are left out.
      whole: whether the latest items of the history are shown whole (`TaskConfig.full_items`), not as bare ids.
    """

    task: str
    user: int
    position: int
    right: tuple[int, ...]
    candidates: tuple[int, ...] = ()
    words: str | None = None
    unconditional: bool = False
    whole: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class Queries:
    """n questions, with the fields of `Query` as arrays.

    Attributes:
      tasks: int64 [n], indices into `TASKS`.
      users, positions: int64 [n].
      right: int64 [n, 2], padded with -1.
      candidates: int64 [n, 3], -1 if there are none.
      unconditional, whole: bool [n].
      words: shared by all questions.
    """

    tasks: np.ndarray
    users: np.ndarray
    positions: np.ndarray
    right: np.ndarray
    candidates: np.ndarray
    unconditional: np.ndarray
    whole: np.ndarray
    words: str | None = None

    @classmethod
    def about(
        cls, tasks: np.ndarray, users: np.ndarray, positions: np.ndarray, items: np.ndarray, whole: np.ndarray
    ) -> Self:
        """Returns questions about the interactions at `positions`, whose items are `items`, int [n]."""
        right, candidates = np.full((len(users), 2), -1), np.full((len(users), NUM_CANDIDATES), -1)
        right[:, 0] = items
        return cls(tasks, users, positions, right, candidates, np.zeros(len(users), bool), whole)

    @classmethod
    def of(cls, queries: Sequence[Query]) -> Self:
        """Combines questions, all of which must have the same `words`."""
        numbers = [(task_number(query.task), query.user, query.position) for query in queries]
        tasks, users, positions = np.array(numbers, np.int64).reshape(-1, 3).T
        whole = np.array([query.whole for query in queries])
        asked = cls.about(tasks, users, positions, np.full(len(queries), -1), whole)
        asked.unconditional[:] = [query.unconditional for query in queries]
        for row, query in enumerate(queries):
            asked.right[row, : len(query.right)] = query.right
            asked.candidates[row, : len(query.candidates)] = query.candidates
        return dataclasses.replace(asked, words=queries[0].words)

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, number: int) -> Query:
        return Query(
            list(TASKS)[self.tasks[number]],
            int(self.users[number]),
            int(self.positions[number]),
            tuple(item for item in self.right[number].tolist() if item >= 0),
            tuple(item for item in self.candidates[number].tolist() if item >= 0),
            self.words,
            bool(self.unconditional[number]),
            bool(self.whole[number]),
        )

    def take(self, numbers: np.ndarray | slice) -> Self:
        """Returns a subset of the questions."""
        arrays = {name: array[numbers] for name, array in vars(self).items() if name != "words"}
        return dataclasses.replace(self, **arrays)

    def put(self, numbers: np.ndarray, others: Self) -> None:
        """Replaces some of the questions by others, in place."""
        for name, array in vars(others).items():
            if name != "words":
                getattr(self, name)[numbers] = array
