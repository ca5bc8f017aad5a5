"""What a task is: one kind of question about a user, how it is drawn, how a prompt asks it, and what answers it."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar, Literal

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.tasks.examples import int32
from data_pipelines.tasks.query import Queries, Query
from data_pipelines.tasks.texts import Part, PromptTexts
from data_pipelines.vocabulary import Vocabulary

Split = Literal["validation", "test"]


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
        none = np.zeros(corpus.num_items, bool)
        can_generate = none if has_codes is None else has_codes & corpus.has_categories
        return cls(corpus, can_generate, unconditional_rate)

    def events(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The numbers of interactions among those of all users: int64 [n]."""
        return self.corpus.offsets[users] + positions


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
    unasked: ClassVar[str] = ""
    """What the log counts where a training question gives way to a recommendation; "": that is not worth counting."""

    def unavailable(self, data: TaskData) -> str:
        """Why nobody can be asked, in words; "" where somebody can."""
        return ""

    def missing(self, data: TaskData, events: np.ndarray) -> np.ndarray:
        """What interactions lack to be asked about, in words that follow "users"; "" where they lack nothing: str [n].

        Args:
          events: int [n], indices into the interactions of the corpus.
        """
        return np.full(len(events), "")

    def can_ask_about(self, corpus: Corpus, items: np.ndarray) -> np.ndarray:
        """Which earlier items of a history can be asked about (`asked_along`): bool [n]."""
        return np.ones(len(items), bool)

    def sample(
        self, data: TaskData, asked: Queries, last: np.ndarray, rng: np.random.Generator
    ) -> tuple[Queries, np.ndarray]:
        """Completes training questions, which know the user, the position and the right item there.

        Args:
          last: int [n], the position of each user's last interaction to train on; nothing after it may be looked at.

        Returns:
          The questions, and which of them can be asked: bool [n].
        """
        return asked, self.missing(data, data.events(asked.users, asked.positions)) == ""

    def held_out(self, data: TaskData, split: Split, user: int, position: int) -> Query | str:
        """The held-out question about the interaction at `position`, the same at every call; or why there is none."""
        event = int(data.corpus.offsets[user]) + position
        missing = str(self.missing(data, np.array([event]))[0])
        return missing or Query(self.name, user, position, (int(data.corpus.items[event]),))

    def is_open(self, corpus: Corpus, query: Query) -> bool:
        """Whether nobody knows the answer."""
        return not query.right

    def prompt(self, texts: PromptTexts, asked: Queries) -> list[Part]:
        """What stands between the history and the words of each question, part after part."""
        return []

    def continuation(self, texts: PromptTexts, asked: Queries) -> list[Part]:
        """What follows the history's last id in the place of a question (`continues_history`)."""
        return []

    @abc.abstractmethod
    def answer(self, texts: PromptTexts, asked: Queries) -> list[Part]:
        """The answer to each question, none of which is open, without the end of the sequence."""

    def open_answer(self, vocabulary: Vocabulary) -> np.ndarray:
        """Tokens in the place of an answer that nobody knows, as many as an answer takes: int32 [t]."""
        return int32(*[vocabulary.eos] * vocabulary.depth)

    @abc.abstractmethod
    def answer_tokens(self, vocabulary: Vocabulary) -> np.ndarray | None:
        """The tokens that an answer may consist of, beside the end of the sequence: int32 [n]; None: any."""


def item_tokens(vocabulary: Vocabulary) -> np.ndarray:
    """The tokens that items' ids consist of: int32 [n]."""
    return np.unique(vocabulary.items).astype(np.int32)
