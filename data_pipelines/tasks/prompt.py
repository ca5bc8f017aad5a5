"""Writes the interleaved tokens of a question about a user; prompts are written only here.

An item of the history is written as

    <image> Genres G Year Y Title T … <answer> ITEM <|endofchunk|>

and a complete example, here for recommendation, as

    <s> ITEM ITEM … (bare ids of older items)
    <image> … <answer> ITEM <|endofchunk|> … (recent items, shown whole)
    What is the next item recommended to the user? <answer> ITEM </s>
"""

import copy
import dataclasses
import sys
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.disk_cache import DiskCache
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import Example, Ragged, RowShape, TokenSpan, int32, longest_kept
from data_pipelines.tasks.history import History, Shown, continues_history, past_last_id, up_to_last_id
from data_pipelines.tasks.query import Queries, Query
from data_pipelines.tasks.registry import TASKS, task_at
from data_pipelines.tasks.texts import QUERY, SELECT, Part, PromptTexts
from data_pipelines.vocabulary import Vocabulary


def prompt_texts(*, images: bool = False) -> tuple[str, ...]:
    """Returns the fixed phrases of prompts; with `images`, including the questions of tasks that need image codes."""
    return (*(task.question for task in TASKS.values() if images or not task.needs_codes), QUERY, SELECT)


@dataclasses.dataclass(frozen=True, eq=False)
class Layouts:
    """The plan of n examples, which determines their sizes.

    Attributes:
      longest: int64 [n], the number of tokens to which texts of question and answer are cut.
      shortened: bool [n], whether any text is longer than that.
      sizes: int64 [n, 3], the tokens, images and answers of each example.
    """

    queries: Queries
    longest: np.ndarray
    shortened: np.ndarray
    shown: Shown
    sizes: np.ndarray


class PromptWriter:
    """Writes examples. Every text is tokenised once, when the writer is created, or is read from the cache."""

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        config: TaskConfig,
        row_shape: RowShape,
        *,
        attributes: Iterable[str],
        has_image: np.ndarray,
        image_tokens: int = 1,
        cache: DiskCache = DiskCache(),
    ):
        """Tokenises the texts.

        Args:
          attributes: the text of each item in prompts (`vocabulary.attribute_texts`).
          has_image: bool [I], the items that have an image.
          image_tokens: the number of tokens of an image, all of which take room in a row.
          cache: a cache keyed by what determines the corpus and `attributes`, for their tokens.
        """
        self.vocabulary, self.config, self.row_shape = vocabulary, config, row_shape
        self.texts = PromptTexts(
            corpus,
            vocabulary,
            attributes=attributes if config.text else [""] * corpus.num_items,
            has_image=has_image & config.images,
            explanation_words=config.explanation_words,
            explanation_tokens=max(row_shape.answers - 2, 0),  # leaves room for the rating and the end
            show_ids=config.questions_show_ids,
            image_tokens=image_tokens,
            cache=cache.of(config.text),
        )
        phrases = [
            vocabulary.encode_phrase(task.question if task.begins_text else vocabulary.space + task.question)
            for task in TASKS.values()
        ]
        self._questions = Ragged.of([[*phrase.tolist(), vocabulary.answer] for phrase in phrases])

    @property
    def corpus(self) -> Corpus:
        """The interactions that are asked about."""
        return self.texts.corpus

    @property
    def has_image(self) -> np.ndarray:
        """The items that are shown with an image: bool [I]."""
        return self.texts.has_image

    def of(self, corpus: Corpus) -> Self:
        """Returns a writer for other users' histories with the same items, without tokenising texts again.

        Raises:
          ValueError: the items differ.
        """
        if corpus.item_ids != self.corpus.item_ids:
            raise ValueError("a writer can only be reused for a corpus with the same items")
        other = copy.copy(self)
        other.texts = self.texts.of(corpus)
        return other

    def blank(self) -> Self:
        """Returns a writer with unlimited room and items without texts, to find the minimum size of questions."""
        other = copy.copy(self)
        other.row_shape, other.texts = RowShape(*[sys.maxsize] * 3), self.texts.blank()
        return other

    def lay_out(self, queries: Queries, *, is_open: bool = False) -> Layouts:
        """Plans the examples that ask `queries`, with their answers.

        The oldest part of a history that does not fit into a row is left out. If a question and its answer alone do not
        fit, their texts are cut, the longest first.

        Args:
          is_open: whether the answers are unknown.

        Raises:
          ValueError: a question is larger than a row even without texts.
        """
        count = len(queries)
        sizes, longest = np.zeros((count, 3), np.int64), np.full(count, sys.maxsize)
        shortened, continued = np.zeros((2, count), bool)
        for number in np.unique(queries.tasks).tolist():
            rows = np.flatnonzero(queries.tasks == number)
            of_task = queries.take(rows)
            question, answer = self._question(of_task), self._answer(of_task, is_open)
            parts = [*question, *answer]
            lengths = np.stack([part.lengths(len(rows)) for part in parts], axis=1)
            texts = [part.is_text for part in parts]
            over = 1 + lengths.sum(axis=1) - self.row_shape.tokens
            shortened[rows], longest[rows] = over > 0, longest_kept(lengths[:, texts], over)
            lengths[:, texts] = np.minimum(lengths[:, texts], longest[rows, None])
            images = lengths[:, [part.is_image for part in parts]] > 0
            counts = 1 + lengths.sum(axis=1), images.sum(axis=1), lengths[:, len(question) :].sum(axis=1)
            sizes[rows] = np.stack(counts, axis=1)
            continued[rows] = continues_history(task_at(number), self.config)
        left = np.array(dataclasses.astuple(self.row_shape)) - sizes
        self._check_room(queries, left)
        shown = self._history().fit(queries, left)
        sizes += shown.sizes - past_last_id(shown, self.config) * continued[:, None]
        return Layouts(queries, longest, shortened, shown, sizes)

    def write(self, query: Query, *, ask: bool = False, begun: Sequence[int] = ()) -> Example:
        """Writes the example that asks `query`, with its answer, as planned by `lay_out`.

        Args:
          ask: whether to write only the prompt, up to the last `<answer>`, followed by `begun`, the beginning of an
            answer. The single answer position is then the last token, and its target is the next token of the true
            answer (the end of the sequence if the answer is unknown).

        Raises:
          ValueError: the question is larger than a row even without texts, or is open although `ask` is not set.
        """
        (example,) = self.write_all([query], ask=ask, begun=[begun])
        return example

    def write_all(
        self, queries: Sequence[Query], *, ask: bool = False, begun: Sequence[Sequence[int]] | None = None
    ) -> list[Example]:
        """Writes several examples, as `write` does but faster; `begun` has one beginning for each."""
        kinds: dict[tuple[str | None, bool], list[int]] = {}
        for number, query in enumerate(queries):
            is_open = TASKS[query.task].is_open(self.corpus, query)
            if not ask and is_open:
                raise ValueError(f"the {query.task} question {query} is open: it has no answer to write")
            kinds.setdefault((query.words, is_open), []).append(number)
        examples: dict[int, Example] = {}
        for (_, is_open), numbers in kinds.items():
            asked = Queries.of([queries[number] for number in numbers])
            if ask:
                asked.whole[:] = self.config.ask_whole
            # A prompt has the same history whatever the answer is, which it would otherwise tell the length of.
            layouts = self.lay_out(asked, is_open=is_open or ask)
            for place, number in enumerate(numbers):
                start = begun[number] if begun else ()
                examples[number] = self.write_planned(layouts, place, ask=ask, begun=start, is_open=is_open)
        return [examples[number] for number in range(len(queries))]

    def write_planned(
        self, layouts: Layouts, number: int, *, ask: bool = False, begun: Sequence[int] = (), is_open: bool = False
    ) -> Example:
        """Writes the example of one of the planned questions; see `write` for the other arguments."""
        query, shown = layouts.queries.take(slice(number, number + 1)), layouts.shown
        most = int(layouts.longest[number])
        task = task_at(int(query.tasks[0]))
        question = self.texts.written(self._question(query), most)
        answer = self.texts.written(self._answer(query, is_open), most).tokens
        counts = (int(of_all[number]) for of_all in (shown.whole, shown.bare, shown.asked))
        history = self._history().pieces(query, *counts)
        if history and continues_history(task, self.config):
            history[-1] = up_to_last_id(history[-1], self.vocabulary.end_of_chunk)
        pieces = [TokenSpan(int32(self.vocabulary.bos)), *history, question]
        if ask:
            pieces.append(TokenSpan(int32(*begun)))
        else:
            pieces.append(TokenSpan(answer, (), int32(), np.arange(-1, len(answer) - 1), answer, np.ones(len(answer))))
        tokens = np.concatenate([piece.tokens for piece in pieces])
        starts = np.cumsum([0, *(len(piece.tokens) for piece in pieces[:-1])])
        images = [piece.shown_at + start for piece, start in zip(pieces, starts, strict=True) if piece.images]
        if ask:
            positions, targets = int32(len(tokens) - 1), answer[len(begun) : len(begun) + 1]
            weights = np.ones(1)
        else:
            positions = np.concatenate([piece.asked_at + start for piece, start in zip(pieces, starts, strict=True)])
            targets = np.concatenate([piece.targets for piece in pieces])
            weights = np.concatenate([piece.weights for piece in pieces])
        return Example(
            tokens=tokens,
            images=int32(*(image for piece in pieces for image in piece.images)),
            image_positions=np.concatenate([int32(), *images]).astype(np.int32),
            answer_positions=positions.astype(np.int32),
            answer_targets=targets,
            answer_weights=(self.config.loss_weights[task.name] * weights).astype(np.float32),
            task=int(query.tasks[0]),
        )

    def _check_room(self, queries: Queries, left: np.ndarray) -> None:
        """Raises ValueError if there is no room in a row even for a question and its answer."""
        small = np.flatnonzero((left.min(axis=1) < 0) & ~queries.unconditional)
        if len(small):
            query = queries[int(small[0])]
            raise ValueError(
                f"the {query.task} question of user {self.corpus.user_ids[query.user]} exceeds {self.row_shape} "
                f"(room left: {left[small[0]].tolist()}); raise row_shape or show fewer attribute words"
            )

    def _history(self) -> History:
        return History(self.texts, self.config, self._question)

    def _question(self, queries: Queries) -> list[Part]:
        """Returns what comes between history and answer for questions of one task, including the last `<answer>`."""
        task = task_at(int(queries.tasks[0]))
        if continues_history(task, self.config):
            return task.continuation(self.texts, queries)
        return [*task.prompt(self.texts, queries), Part(self._questions, int(queries.tasks[0]))]

    def _answer(self, queries: Queries, is_open: bool) -> list[Part]:
        """Returns the tokens after the last `<answer>`, including the end of the sequence."""
        task = task_at(int(queries.tasks[0]))
        end = Part(Ragged(int32(self.vocabulary.eos), np.ones(1, int)), 0)
        if is_open:
            return [Part(Ragged.of([task.open_answer(self.vocabulary).tolist()]), 0), end]
        return [*task.answer(self.texts, queries), end]
