"""The interface of a task: how one kind of question about a user is drawn, how a prompt asks it, and its answer."""

import dataclasses
from typing import ClassVar, Literal, Self

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.tasks.examples import int32
from data_pipelines.tasks.query import Queries, Query
from data_pipelines.tasks.texts import Part, PromptTexts
from data_pipelines.vocabulary import Vocabulary

Split = Literal["validation", "test"]


@dataclasses.dataclass(frozen=True, eq=False)
class TaskData:
    """The data from which questions are drawn.

    Attributes:
      can_generate: bool [I], the items whose image can be asked for: those with image codes and with categories for the
        query.
      unconditional_rate: the fraction of image questions that are asked without history and query.
    """

    corpus: Corpus
    can_generate: np.ndarray
    unconditional_rate: float = 0.0

    @classmethod
    def of(cls, corpus: Corpus, has_codes: np.ndarray | None, unconditional_rate: float = 0.0) -> Self:
        """Creates the task data of a corpus; `has_codes`, bool [I], are the items that have image codes, None: there
        are none."""
        none = np.zeros(corpus.num_items, bool)
        can_generate = none if has_codes is None else has_codes & corpus.has_categories
        return cls(corpus, can_generate, unconditional_rate)

    def events(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns the indices of interactions within the corpus: int64 [n]."""
        return self.corpus.offsets[users] + positions


class Task:
    """One kind of question. Subclasses define it; `data_pipelines.tasks.register` adds a task to the registry."""

    name: ClassVar[str]
    question: ClassVar[str]
    """The text before the last `<answer>`."""
    share: ClassVar[float] = 1.0
    """The default weight of the task in the training mix, relative to the other tasks; 0 leaves it out by default."""
    loss_weight: ClassVar[float] = 1.0
    """The default loss weight of a token of its answers."""
    rated_history: ClassVar[bool] = False
    """Whether the item ids of its history are followed by the user's ratings."""
    asked_along: ClassVar[bool] = False
    """Whether it may also be asked about earlier items of the history (`TaskConfig.ask_every`)."""
    continues_history: ClassVar[str] = ""
    """The field of `TaskConfig` that makes the answer follow the last id of the history directly, without a question;
    empty for a task that always needs its question."""
    needs_codes: ClassVar[bool] = False
    """Whether it is only asked in runs with image codes."""
    begins_text: ClassVar[bool] = False
    """Whether the question is tokenised as the beginning of a text, without a separator before it."""
    num_right: ClassVar[int] = 1
    """The maximum number of items that are right answers."""
    num_texts: ClassVar[int] = 0
    """The number of texts in a question that share the remaining room of a row."""
    texts_are_categories: ClassVar[bool] = False
    """Whether these texts are categories of items rather than attributes."""
    unasked: ClassVar[str] = ""
    """The name under which the log counts training questions replaced by a recommendation; "" disables the count."""

    def unavailable(self, data: TaskData) -> str:
        """Returns the reason why nobody can be asked; "" if somebody can."""
        return ""

    def missing(self, data: TaskData, events: np.ndarray) -> np.ndarray:
        """Returns what interactions lack to be asked about: str [n], words that follow "users", or "" if nothing.

        Args:
          events: int [n], indices into the interactions of the corpus.
        """
        return np.full(len(events), "")

    def can_ask_about(self, corpus: Corpus, items: np.ndarray) -> np.ndarray:
        """Returns which earlier items of a history can be asked about (`asked_along`): bool [n]."""
        return np.ones(len(items), bool)

    def sample(
        self, data: TaskData, asked: Queries, last: np.ndarray, rng: np.random.Generator
    ) -> tuple[Queries, np.ndarray]:
        """Completes training questions that already have a user, a position and the right item at that position.

        Args:
          last: int [n], the position of each user's last training interaction; nothing after it may be used.

        Returns:
          The questions, and which of them can be asked: bool [n].
        """
        return asked, self.missing(data, data.events(asked.users, asked.positions)) == ""

    def held_out(self, data: TaskData, split: Split, user: int, position: int) -> Query | str:
        """Returns the held-out question about an interaction, the same at every call, or why there is none."""
        event = int(data.corpus.offsets[user]) + position
        missing = str(self.missing(data, np.array([event]))[0])
        return missing or Query(self.name, user, position, (int(data.corpus.items[event]),))

    def is_open(self, corpus: Corpus, query: Query) -> bool:
        """Returns whether the answer is unknown."""
        return not query.right

    def prompt(self, texts: PromptTexts, asked: Queries) -> list[Part]:
        """Returns the parts of each prompt between the history and the text of the question."""
        return []

    def continuation(self, texts: PromptTexts, asked: Queries) -> list[Part]:
        """Returns the parts that follow the last id of the history instead of a question (`continues_history`)."""
        return []

    def answer(self, texts: PromptTexts, asked: Queries) -> list[Part]:
        """Returns the answer to each question, none of which is open, without the end; by default the item's id."""
        return [Part(texts.names, asked.right[:, 0])]

    def open_answer(self, vocabulary: Vocabulary) -> np.ndarray:
        """Returns placeholder tokens for an unknown answer, as many as an answer has: int32 [t]."""
        return int32(*[vocabulary.eos] * vocabulary.depth)

    def answer_tokens(self, vocabulary: Vocabulary) -> np.ndarray | None:
        """Returns the tokens that an answer may contain before its end: int32 [n]; None: any; by default those of item
        ids."""
        return np.unique(vocabulary.items).astype(np.int32)
