"""From a question about a user to the interleaved tokens that ask it: the only place that writes a prompt.

An item of the history is written

    <image> Genres G Year Y Title T … <answer> ITEM <|endofchunk|>

and a whole example, here for recommendation,

    <s> ITEM ITEM … (bare ids of older items)
    <image> … <answer> ITEM <|endofchunk|> … (recent items, shown whole)
    What is the next item recommended to the user? <answer> ITEM </s>
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Sequence
from typing import Self

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.tasks.base import Query
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import Example, RowShape, TokenSpan, cut_longest, int32
from data_pipelines.tasks.history import History, continues_history, up_to_last_id
from data_pipelines.tasks.registry import TASKS, task_number
from data_pipelines.tasks.texts import QUERY, SELECT, PromptTexts
from data_pipelines.vocabulary import Vocabulary


def prompt_texts(*, images: bool = False) -> tuple[str, ...]:
    """What prompts say beside the items; with `images`, the questions of tasks that need images as codes too."""
    return (*(task.question for task in TASKS.values() if images or not task.needs_codes), QUERY, SELECT)


class PromptWriter:
    """Writes examples. Every text is tokenised once, when the writer is made."""

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        config: TaskConfig,
        row_shape: RowShape,
        *,
        attributes: Sequence[str],
        has_image: np.ndarray,
    ):
        """
        Args:
          attributes: what a prompt says of each item (`vocabulary.attribute_texts`).
          has_image: bool [I], the items that have an image.
        """
        self.vocabulary, self.config, self.row_shape = vocabulary, config, row_shape
        self.texts = PromptTexts(
            corpus,
            vocabulary,
            attributes=attributes if config.text else [""] * corpus.num_items,
            has_image=has_image & config.images,
            explanation_words=config.explanation_words,
            explanation_tokens=max(row_shape.answers - 2, 0),  # beside the rating and the end
            show_ids=config.questions_show_ids,
        )
        self._questions = {
            name: vocabulary.encode_phrase(task.question if task.begins_text else vocabulary.space + task.question)
            for name, task in TASKS.items()
        }

    @property
    def corpus(self) -> Corpus:
        """The interactions that are asked about."""
        return self.texts.corpus

    @property
    def has_image(self) -> np.ndarray:
        """The items that are shown with an image: bool [I]."""
        return self.texts.has_image

    def of(self, corpus: Corpus) -> Self:
        """A writer of other users' histories of the same items, whose texts are not tokenised again.

        Raises:
          ValueError: the items are others.
        """
        if corpus.item_ids != self.corpus.item_ids:
            raise ValueError("a writer goes on with the items that it was made for")
        other = copy.copy(self)
        other.texts = self.texts.of(corpus)
        return other

    def blank(self) -> Self:
        """A writer with room for everything, of items without texts: it writes the least that a question takes."""
        other = copy.copy(self)
        other.row_shape, other.texts = RowShape(*[sys.maxsize] * 3), self.texts.blank()
        return other

    def write(self, query: Query, *, ask: bool = False, begun: Sequence[int] = ()) -> Example:
        """The example that asks `query`, with its answer; the oldest history that does not fit the row is left out.

        Where the question and its answer alone do not fit, their texts are cut, the longest first.

        Args:
          ask: write the prompt only, up to and with the last `<answer>`, followed by `begun`, the beginning of an
            answer. The single answer position is then the last token, its target what truly comes there (the end, where
            that is not known).

        Raises:
          ValueError: the question is larger than a row even without them, or open and not only to be asked.
        """
        task = TASKS[query.task]
        query = dataclasses.replace(query, whole=self.config.ask_whole) if ask else query
        if not ask and task.is_open(self.corpus, query):
            raise ValueError(f"the {query.task} question {query} is open: it has no answer to write")
        texts = task.texts(self.texts, query)
        question, answer = self._question(query, texts), self._answer(query, texts)
        over = 1 + len(question.tokens) + len(answer) - self.row_shape.tokens
        if over > 0:
            texts = cut_longest(texts, over)
            question, answer = self._question(query, texts), self._answer(query, texts)
        left = self._room(query, question, answer)
        history = (
            [] if query.unconditional else History(self.texts, self.config, query, self._whole_question).pieces(left)
        )
        if history and continues_history(query, self.config):
            history[-1] = up_to_last_id(history[-1], self.vocabulary.end_of_chunk)
        pieces = [TokenSpan(int32(self.vocabulary.bos)), *history, question]
        if ask:
            pieces.append(TokenSpan(int32(*begun)))
        else:
            pieces.append(TokenSpan(answer, (), int32(), np.arange(-1, len(answer) - 1), answer, np.ones(len(answer))))
        tokens = np.concatenate([piece.tokens for piece in pieces])
        starts = np.cumsum([0, *(len(piece.tokens) for piece in pieces[:-1])])
        shown = [piece.shown_at + start for piece, start in zip(pieces, starts, strict=True) if piece.images]
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
            image_positions=np.concatenate([int32(), *shown]).astype(np.int32),
            answer_positions=positions.astype(np.int32),
            answer_targets=targets,
            answer_weights=(self.config.loss_weights[query.task] * weights).astype(np.float32),
            task=task_number(query.task),
            shortened=over > 0,
        )

    def _room(self, query: Query, question: TokenSpan, answer: np.ndarray) -> np.ndarray:
        """The tokens, images and answers that are left for the history: int64 [3].

        Raises:
          ValueError: there is not even room for the question and its answer.
        """
        left = np.array([self.row_shape.tokens, self.row_shape.images, self.row_shape.answers])
        left -= [1 + len(question.tokens) + len(answer), len(question.images), len(answer)]
        if left.min() < 0 and not query.unconditional:
            raise ValueError(
                f"the {query.task} question of user {self.corpus.user_ids[query.user]} exceeds {self.row_shape} "
                f"(left: {left.tolist()}); raise row_shape or show fewer attribute words"
            )
        return left

    def _whole_question(self, query: Query) -> TokenSpan:
        return self._question(query, TASKS[query.task].texts(self.texts, query))

    def _question(self, query: Query, texts: Sequence[np.ndarray]) -> TokenSpan:
        """What stands between the history and the answer, the last `<answer>` included."""
        if continues_history(query, self.config):
            return TokenSpan(TASKS[query.task].continuation(self.vocabulary, query))
        segments = TASKS[query.task].prompt(self.texts, query, texts)
        starts = np.cumsum([0, *(len(segment.tokens) for segment in segments)])
        shown = [
            (segment.item, start)
            for segment, start in zip(segments, starts.tolist(), strict=False)
            if segment.item is not None and self.has_image[segment.item]
        ]
        marker_at = self.vocabulary.image_marker.index(self.vocabulary.image)
        tokens = [segment.tokens for segment in segments]
        return TokenSpan(
            np.concatenate([*tokens, self._questions[query.task], int32(self.vocabulary.answer)]),
            tuple(item for item, _ in shown),
            shown_at=int32(*(start + marker_at for _, start in shown)),
        )

    def _answer(self, query: Query, texts: Sequence[np.ndarray]) -> np.ndarray:
        """The tokens after the last `<answer>`, the end of the sequence included: int32 [t]."""
        task = TASKS[query.task]
        is_open = task.is_open(self.corpus, query)
        answer = task.open_answer(self.vocabulary) if is_open else task.answer(self.texts, query, texts)
        return np.append(answer, np.int32(self.vocabulary.eos))
