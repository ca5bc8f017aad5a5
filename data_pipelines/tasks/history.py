"""The history that stands before every question: the latest items whole, older ones as bare ids."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from data_pipelines.tasks.base import Query
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import TokenSpan, int32
from data_pipelines.tasks.registry import TASKS
from data_pipelines.tasks.texts import PromptTexts

QuestionWriter = Callable[[Query], TokenSpan]
"""Writes what stands between the history and the answer of a query, the last `<answer>` included."""


class History:
    """The history of one query, in pieces."""

    def __init__(self, texts: PromptTexts, config: TaskConfig, query: Query, write_question: QuestionWriter):
        self.texts, self.config, self.query, self._write_question = texts, config, query, write_question
        self._task, self._marker_at = TASKS[query.task], texts.vocabulary.image_marker.index(texts.vocabulary.image)
        self._start = int(texts.corpus.offsets[query.user])

    def pieces(self, left: np.ndarray) -> list[TokenSpan]:
        """Bare ids, then whole items, oldest first: as much of the latest history as there is room for.

        Args:
          left: int64 [3], the tokens, images and answers that there is room for.
        """
        query = self.query
        whole: list[TokenSpan] = []
        following = int(query.right[0]) if query.right else 0  # any item: an open question's targets are never used
        shown = min(self.config.full_items, query.position) if query.whole else 0
        for place in range(query.position - 1, query.position - shown - 1, -1):
            piece = self._whole_item(place, following)
            left = left - piece.size
            if left.min() < 0:
                return whole[::-1]
            whole.append(piece)
            following = self._item(place)
        return [*self._bare_ids(query.position - shown, following, left), *whole[::-1]]

    def _item(self, place: int) -> int:
        return int(self.texts.corpus.items[self._start + place])

    def _whole_item(self, place: int, following: int) -> TokenSpan:
        """`<image> ATTRIBUTES <answer> ITEM <|endofchunk|>`, with the targets that the configuration says."""
        vocabulary, targets = self.texts.vocabulary, self.config.history_targets
        item = self._item(place)
        image, name = self.texts.image(item), self._name(place)
        answer = int32(*[vocabulary.answer] * bool(len(name)))
        before = np.concatenate([self.texts.marker(image), self.texts.attributes[item], answer])
        tokens = np.concatenate([before, name, int32(vocabulary.end_of_chunk)])
        shown_at = int32(*[self._marker_at] * len(image))
        if targets == "none":
            return TokenSpan(tokens, image, shown_at)
        used = {"reconstruct": slice(-1), "next_item": slice(1, None), "both": slice(None)}[targets]
        asked = (len(before) - 1 + np.arange(len(name) + 1))[used]
        target = np.append(name, vocabulary.items[following, :1])[used]
        return TokenSpan(tokens, image, shown_at, asked, target, self._weights(len(target)))

    def _bare_ids(self, end: int, following: int, left: np.ndarray) -> list[TokenSpan]:
        """The ids of the items before place `end`, oldest first: as many of the latest as `left` has room for.

        They come in runs, between which the question is asked that the next run's first item answers.
        """
        pieces: list[TokenSpan] = []
        first = max(end - self.config.id_items, 0)
        moments = self._moments(first, end)
        for begin, stop in reversed(list(itertools.pairwise([first, *moments, end]))):
            names = [self._name(place) for place in range(begin, stop)]
            piece = self._run(names, following, self._earlier_question(begin) if begin in moments else None)
            if (left < piece.size).any():
                room = min(left[0], left[2])
                sizes = np.cumsum([len(name) for name in names[::-1]])
                fitting = int(np.searchsorted(sizes, room, side="right"))
                return [self._run(names[len(names) - fitting :], following), *pieces[::-1]] if fitting else pieces[::-1]
            left = left - piece.size
            pieces.append(piece)
            following = self._item(begin)
        return pieces[::-1]

    def _run(self, names: list[np.ndarray], following: int, question: TokenSpan | None = None) -> TokenSpan:
        """Ids of consecutive items, each predicting the next, the last one `following`.

        With a question before them, which the first answers: `<|endofchunk|> QUESTION <answer> ITEM <|endofchunk|> …`,
        the same as behind a whole item.
        """
        if not names:
            return TokenSpan(int32())
        ids, end_of_chunk = np.concatenate(names), int32(self.texts.vocabulary.end_of_chunk)
        asked, targets = np.arange(len(ids)), np.append(ids[1:], self.texts.vocabulary.items[following, :1])
        used = len(ids) if self.config.history_targets != "none" else 0
        if question is None:
            return TokenSpan(ids, (), int32(), asked[:used], targets[:used], self._weights(used))
        start, answered = 1 + len(question.tokens), len(names[0])
        tokens = np.concatenate([end_of_chunk, question.tokens, ids[:answered], end_of_chunk, ids[answered:]])
        asked = np.concatenate([[start - 1], start + asked + (asked >= answered)])
        weights = np.concatenate([np.ones(answered), self._weights(len(ids) + 1 - answered)])
        used = len(weights) if used else answered
        return TokenSpan(tokens, (), int32(), asked[:used], np.append(ids[:1], targets)[:used], weights[:used])

    def _moments(self, first: int, end: int) -> list[int]:
        """Places between `first` and `end`, both excluded, before which the question is asked as well."""
        every, query = self.config.ask_every, self.query
        if not every or not self._task.asked_along or continues_history(query, self.config):
            return []
        user = query.user if query.right else 0  # an open question depends on the history alone, whosever it is
        phase = int(np.random.default_rng((user, query.position)).integers(every))
        places = range(first + 1 + phase, end, every)
        return [place for place in places if self._task.can_ask_about(self.texts.corpus, self._item(place))]

    def _earlier_question(self, place: int) -> TokenSpan:
        """The question of the query's task about the item at an earlier place."""
        return self._write_question(Query(self.query.task, self.query.user, place, (self._item(place),)))

    def _weights(self, count: int) -> np.ndarray:
        return np.full(count, self.config.history_weight, np.float32)

    def _name(self, place: int) -> np.ndarray:
        """The id of the item at `place`, with the rating it was given where the task wants to know; or, where ids are
        not shown, the rating alone: int32 [t]."""
        event, vocabulary = self._start + place, self.texts.vocabulary
        name = vocabulary.items[self.texts.corpus.items[event]] if self.config.history_ids else int32()
        rating = self.texts.corpus.ratings[event]
        rated = self._task.rated_history and self.config.rated_history and bool(vocabulary.rating_levels)
        if rated and not np.isnan(rating):
            return np.append(name, np.int32(vocabulary.rating_token(rating)))
        return name


def continues_history(query: Query, config: TaskConfig) -> bool:
    """Whether a query is answered right after the history's last id, without a question."""
    field = TASKS[query.task].continues_history
    return bool(field) and getattr(config, field) == "last_id"


def up_to_last_id(piece: TokenSpan, end_of_chunk: int) -> TokenSpan:
    """The end of a history without what follows its last id, which is to be the answer."""
    ends = len(piece.tokens) > 0 and piece.tokens[-1] == end_of_chunk
    tokens = piece.tokens[:-1] if ends else piece.tokens
    used = piece.asked_at < len(tokens) - 1
    answered = {name: getattr(piece, name)[used] for name in ("asked_at", "targets", "weights")}
    return dataclasses.replace(piece, tokens=tokens, **answered)
