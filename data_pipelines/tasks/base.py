"""What a task is: one kind of question about a user, how it is drawn, how a prompt asks it, and what answers it."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.tasks.examples import int32
from data_pipelines.tasks.texts import PromptTexts
from data_pipelines.vocabulary import Vocabulary

Split = Literal["validation", "test"]


@dataclasses.dataclass(frozen=True)
class Query:
    """One question about one user.

    Attributes:
      task: the task's name.
      user: whose history it is.
      position: the history is the user's interactions before this one, and this one is asked about. As many as there
        are interactions makes the question open: it can be asked, but nobody knows the answer.
      right: the items that are right answers, at most two, oldest first; the first is the one at `position`. An open
        question has none, but for a rating: there it is the item asked about.
      candidates: for selection, the three items to select from.
      words: what is searched for, where it is not the categories of the right item.
      unconditional: for image, whether the history and what is searched for are left out.
      whole: whether the latest items of the history are shown whole (`TaskConfig.full_items`), not as bare ids.
      instead_of: the question that this one replaces, in words that are counted in the log.
    """

    task: str
    user: int
    position: int
    right: tuple[int, ...]
    candidates: tuple[int, ...] = ()
    words: str | None = None
    unconditional: bool = False
    whole: bool = True
    instead_of: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class TaskData:
    """What questions are drawn from.

    Attributes:
      corpus: the interactions.
      can_generate: bool [I], the items whose image can be asked for: those that have codes, and categories to ask by.
      unconditional_rate: the share of image questions that are asked without a history and a query.
    """

    corpus: Corpus
    can_generate: np.ndarray
    unconditional_rate: float = 0.0

    @classmethod
    def of(cls, corpus: Corpus, has_codes: np.ndarray | None, unconditional_rate: float = 0.0) -> TaskData:
        """
        Args:
          has_codes: bool [I], the items whose image is known as codes; None: there are no codes.
        """
        has_categories = np.array([bool(words) for words in corpus.categories], bool)
        none = np.zeros(corpus.num_items, bool)
        return cls(corpus, none if has_codes is None else has_codes & has_categories, unconditional_rate)

    def event(self, user: int, position: int) -> int:
        """The number of an interaction among those of all users."""
        return int(self.corpus.offsets[user]) + position

    def item(self, user: int, position: int) -> int:
        """The item of an interaction."""
        return int(self.corpus.items[self.event(user, position)])


class Segment(NamedTuple):
    """A part of a question: its tokens, int32 [t], and the item whose image, if it has one, they begin with."""

    tokens: np.ndarray
    item: int | None = None


class Task(abc.ABC):
    """One kind of question. Subclasses say what they ask; `data_pipelines.tasks.register` makes a task known."""

    name: ClassVar[str]
    question: ClassVar[str]
    """The words before the last `<answer>`."""
    share: ClassVar[float] = 1.0
    """How often it is asked in training by default, in proportion to the other tasks; 0: only where it is asked for."""
    loss_weight: ClassVar[float] = 1.0
    """What a token of its answers counts in the loss by default."""
    rated_history: ClassVar[bool] = False
    """Whether the ids of its history are followed by the ratings that they were given."""
    asked_along: ClassVar[bool] = False
    """Whether it may be asked of earlier items of the history too (`TaskConfig.ask_every`)."""
    continues_history: ClassVar[str] = ""
    """The field of `TaskConfig` by which it is answered right after the history's last id, without a question; none for
    a task that cannot do without."""
    needs_codes: ClassVar[bool] = False
    """Whether it is asked only of runs that know images as codes."""
    begins_text: ClassVar[bool] = False
    """Whether the question is tokenised as the beginning of a text, and not as what follows a word."""
    num_right: ClassVar[int] = 1
    """At most so many items are right answers."""
    num_texts: ClassVar[int] = 0
    """Among how many texts of a question the room that is left is shared."""
    texts_are_categories: ClassVar[bool] = False
    """Whether these texts are items' categories, and not their attributes."""

    def unavailable(self, data: TaskData) -> str:
        """Why nobody can be asked, in words; "" where somebody can."""
        return ""

    def missing(self, data: TaskData, event: int) -> str:
        """What an interaction lacks to be asked about, in words that follow "users"; "" where it lacks nothing."""
        return ""

    def can_ask_about(self, corpus: Corpus, item: int) -> bool:
        """Whether an earlier item of a history can be asked about (`asked_along`)."""
        return True

    def sample(
        self, data: TaskData, user: int, position: int, last: int, rng: np.random.Generator
    ) -> Query | str | None:
        """A training question about the interaction at `position`.

        Args:
          last: the position of the user's last interaction to train on; nothing after it may be looked at.

        Returns:
          The question; or None, where this interaction cannot be asked about; or, where that is worth counting in the
          log, the reason.
        """
        if self.missing(data, data.event(user, position)):
            return None
        return Query(self.name, user, position, (data.item(user, position),))

    def held_out(self, data: TaskData, split: Split, user: int, position: int) -> Query | str:
        """The held-out question about the interaction at `position`, the same at every call; or why there is none."""
        missing = self.missing(data, data.event(user, position))
        return missing or Query(self.name, user, position, (data.item(user, position),))

    def is_open(self, corpus: Corpus, query: Query) -> bool:
        """Whether nobody knows the answer."""
        return not query.right

    def texts(self, texts: PromptTexts, query: Query) -> list[np.ndarray]:
        """The texts of question and answer, int32 [t] each, that may be cut where there is no room for them."""
        return []

    def prompt(self, texts: PromptTexts, query: Query, shown: Sequence[np.ndarray]) -> list[Segment]:
        """What stands between the history and the words of the question.

        Args:
          shown: the texts of `Task.texts`, cut to the room that there is.
        """
        return []

    def continuation(self, vocabulary: Vocabulary, query: Query) -> np.ndarray:
        """What follows the history's last id in the place of a question (`continues_history`): int32 [t]."""
        return int32()

    @abc.abstractmethod
    def answer(self, texts: PromptTexts, query: Query, shown: Sequence[np.ndarray]) -> np.ndarray:
        """The tokens of the answer to a question that is not open, without the end of the sequence: int32 [t]."""

    def open_answer(self, vocabulary: Vocabulary) -> np.ndarray:
        """Tokens in the place of an answer that nobody knows, as many as an answer takes: int32 [t]."""
        return int32(*[vocabulary.eos] * vocabulary.depth)

    @abc.abstractmethod
    def answer_tokens(self, vocabulary: Vocabulary) -> np.ndarray | None:
        """The tokens that an answer may consist of, beside the end of the sequence: int32 [n]; None: any."""


def item_tokens(vocabulary: Vocabulary) -> np.ndarray:
    """The tokens that items' ids consist of: int32 [n]."""
    return np.unique(vocabulary.items).astype(np.int32)
