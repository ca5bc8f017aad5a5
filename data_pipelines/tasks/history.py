"""The history that stands before every question: the latest items whole, older ones as bare ids.

What of a history fits is found for many questions at once, from lengths alone; the history of one is then written.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from data_pipelines.tasks.base import Task
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import TokenSpan, int32
from data_pipelines.tasks.query import Queries
from data_pipelines.tasks.registry import TASKS, task_at
from data_pipelines.tasks.texts import Part, PromptTexts

AT_ONCE = 256
"""So many histories are looked at id by id at a time, in arrays that stay in a cache."""
QuestionParts = Callable[[Queries], list[Part]]
"""What stands between the history and the answer of questions of one task, the last `<answer>` included."""


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """How much of each of n histories is shown.

    Attributes:
      whole: int64 [n], so many of the latest items are shown whole.
      bare: int64 [n], so many before those as bare ids.
      asked: int64 [n], before so many of the bare ids, the latest that `ask_every` names, the question is asked too.
      sizes: int64 [n, 3], the tokens, images and answers of all that.
    """

    whole: np.ndarray
    bare: np.ndarray
    asked: np.ndarray
    sizes: np.ndarray


class History:
    """The histories before questions."""

    def __init__(self, texts: PromptTexts, config: TaskConfig, question: QuestionParts):
        self.texts, self.config, self._question = texts, config, question
        self._id_length = texts.vocabulary.depth if config.history_ids else 0
        self._rates = config.rated_history and bool(texts.vocabulary.rating_levels)

    def fit(self, queries: Queries, left: np.ndarray) -> Shown:
        """As much of the latest history as there is room for: whole items first, then bare ids.

        Args:
          left: int64 [n, 3], the tokens, images and answers that there is room for.
        """
        corpus, targets = self.texts.corpus, self.config.history_targets
        learnt = targets != "none"
        starts, ends = corpus.offsets[queries.users], np.where(queries.unconditional, 0, queries.positions)
        wanted = np.where(queries.whole, np.minimum(self.config.full_items, ends), 0)
        there, events = _before(starts + ends, wanted)
        items, names = corpus.items[events], self._name_lengths(queries, events)
        images = self.texts.markers.lengths_of(items)
        tokens = images + self.texts.attributes.lengths_of(items) + (names > 0) + names + 1
        answers = names * learnt + (targets == "both")
        each = np.stack([tokens, images > 0, answers], axis=2) * there[:, :, None]
        fits = there & (np.cumsum(each, axis=1) <= left[:, None]).all(axis=2)
        whole, sizes = fits.sum(axis=1), (each * fits[:, :, None]).sum(axis=1)

        left, in_whole = left - sizes, sizes.copy()
        wanted = np.where(whole == wanted, np.minimum(self.config.id_items, ends - wanted), 0)
        # Ids that all take the same need not be looked at one by one.
        length = max(self._id_length, 1)
        room = np.minimum(left[:, 0], left[:, 2]) if learnt else left[:, 0]
        bare = np.clip(room // length, 0, wanted)
        asked = np.zeros_like(bare)
        sizes[:, 0] += bare * length
        sizes[:, 2] += bare * length * learnt
        uneven = np.flatnonzero((wanted > 0) & np.array([self._varies(task) for task in TASKS.values()])[queries.tasks])
        for rows in np.array_split(uneven, range(AT_ONCE, len(uneven), AT_ONCE)) if len(uneven) else ():
            found = self._fit_bare(queries.take(rows), (starts + ends - whole)[rows], wanted[rows], left[rows])
            bare[rows], asked[rows], sizes[rows] = found[0], found[1], in_whole[rows] + found[2]
        return Shown(whole, bare, asked, sizes)

    def _varies(self, task: Task) -> bool:
        """Whether bare ids before a task's questions take different room: with ratings, or questions between them."""
        return (self._rates and task.rated_history) or self._asks_along(task)

    def _asks_along(self, task: Task) -> bool:
        return self.config.ask_every > 0 and task.asked_along and not continues_history(task, self.config)

    def _fit_bare(
        self, queries: Queries, ends: np.ndarray, wanted: np.ndarray, left: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bare ids, and questions along them, as many of the latest as there is room for.

        Args:
          ends: int64 [n], the events before which they are.
          wanted: int64 [n], at most so many.
          left: as of `fit`.

        Returns:
          As `Shown`: bare, asked, sizes.
        """
        there, events = _before(ends, wanted)
        names = self._name_lengths(queries, events) * there
        questions, asks = self._questions(queries, wanted, events)
        learnt = self.config.history_targets != "none"
        answered, in_answers = names * learnt, asks if learnt else names * asks
        tokens, answers = np.cumsum(names + questions, axis=1), np.cumsum(answered + in_answers, axis=1)
        left_tokens, left_answers = left[:, :1], left[:, 2:]
        fits = there & (tokens - questions <= left_tokens) & (answers - in_answers <= left_answers)
        asks &= fits & (tokens <= left_tokens) & (answers <= left_answers)
        tokens, answers = names * fits + questions * asks, answered * fits + in_answers * asks
        images = np.zeros(len(queries), np.int64)
        return fits.sum(axis=1), asks.sum(axis=1), np.stack([tokens.sum(axis=1), images, answers.sum(axis=1)], axis=1)

    def _questions(self, queries: Queries, wanted: np.ndarray, events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What asking along the bare ids takes.

        Args:
          wanted: int64 [n], so many ids are shown where there is room.
          events: int64 [n, m], these ids, the latest first.

        Returns:
          int32 [n, m], the tokens of a question before the id, with what ends the history before it and the answer;
          and whether there is one: bool [n, m].
        """
        tokens, asks = np.zeros(events.shape, np.int32), np.zeros(events.shape, bool)
        corpus, every = self.texts.corpus, self.config.ask_every
        for number in np.unique(queries.tasks).tolist() if every else ():
            task = task_at(number)
            if not self._asks_along(task):
                continue
            # An open question depends on the history alone, whosever it is.
            phases = (np.where(queries.right[:, 0] < 0, 0, queries.users) + queries.positions) % every
            after_first = (wanted - 2 - phases)[:, None] - np.arange(events.shape[1])
            due = (queries.tasks == number)[:, None] & (after_first >= 0) & (after_first % every == 0)
            rows, backs = np.nonzero(due)
            at, users = events[rows, backs], queries.users[rows]
            able = task.can_ask_about(corpus, corpus.items[at])
            rows, backs, at, users = rows[able], backs[able], at[able], users[able]
            places = at - corpus.offsets[users]
            asked = Queries.about(queries.tasks[rows], users, places, corpus.items[at], queries.whole[rows])
            asks[rows, backs] = True
            if len(rows):
                tokens[rows, backs] = 2 + sum(part.lengths(len(rows)) for part in self._question(asked))
        return tokens, asks

    def _name_lengths(self, queries: Queries, events: np.ndarray) -> np.ndarray:
        """The tokens of the ids of events, with their ratings where the task wants to know: int32 [n, m]."""
        names = np.full(events.shape, self._id_length, np.int32)
        rated = np.array([self._rates and task.rated_history for task in TASKS.values()])[queries.tasks]
        if rated.any():
            names[rated] += ~np.isnan(self.texts.corpus.ratings[events[rated]])
        return names

    def pieces(self, query: Queries, whole: int, bare: int, asked: int) -> list[TokenSpan]:
        """The history of the one question that there is, oldest first; the counts are as of `Shown`."""
        position = int(query.positions[0])
        end = position - whole
        moments = self._moments(query, end)[:asked][::-1] if asked else []
        pieces = []
        for begin, stop in itertools.pairwise([end - bare, *moments, end]):
            if begin < stop:
                question = self._earlier_question(query, begin) if begin in moments else None
                pieces.append(self._run(query, begin, stop, question))
        return [*pieces, *(self._whole_item(query, place) for place in range(end, position))]

    def _moments(self, query: Queries, end: int) -> list[int]:
        """The places before `end`, the latest first, before which the question is asked as well."""
        wanted, start = np.array([min(self.config.id_items, end)]), int(self.texts.corpus.offsets[query.users[0]])
        events = start + end - 1 - np.arange(wanted[0])
        _, asks = self._questions(query, wanted, events[None])
        return (events[asks[0]] - start).tolist()

    def _item(self, query: Queries, place: int) -> int:
        """The item at a place, which up to the one that is asked about may be any where that is not known."""
        if place == query.positions[0]:
            return max(int(query.right[0, 0]), 0)
        return int(self.texts.corpus.items[self.texts.corpus.offsets[query.users[0]] + place])

    def _whole_item(self, query: Queries, place: int) -> TokenSpan:
        """`<image> ATTRIBUTES <answer> ITEM <|endofchunk|>`, with the targets that the configuration says."""
        vocabulary, targets = self.texts.vocabulary, self.config.history_targets
        item = self._item(query, place)
        marker, (name, _) = self.texts.markers[item], self._names(query, place, place + 1)
        answer = int32(*[vocabulary.answer] * bool(len(name)))
        before = np.concatenate([marker, self.texts.attributes[item], answer])
        tokens = np.concatenate([before, name, int32(vocabulary.end_of_chunk)])
        images = (item,) if len(marker) else ()
        shown_at = int32(*[self.texts.marker_at] * len(images))
        if targets == "none":
            return TokenSpan(tokens, images, shown_at)
        used = {"reconstruct": slice(-1), "next_item": slice(1, None), "both": slice(None)}[targets]
        asked = (len(before) - 1 + np.arange(len(name) + 1))[used]
        target = np.append(name, vocabulary.items[self._item(query, place + 1), :1])[used]
        return TokenSpan(tokens, images, shown_at, asked, target, self._weights(len(target)))

    def _run(self, query: Queries, begin: int, stop: int, question: TokenSpan | None) -> TokenSpan:
        """Ids of consecutive items, each predicting the next.

        With a question before them, which the first answers: `<|endofchunk|> QUESTION <answer> ITEM <|endofchunk|> …`,
        the same as behind a whole item.
        """
        ids, lengths = self._names(query, begin, stop)
        end_of_chunk, following = int32(self.texts.vocabulary.end_of_chunk), self._item(query, stop)
        asked, targets = np.arange(len(ids)), np.append(ids[1:], self.texts.vocabulary.items[following, :1])
        used = len(ids) if self.config.history_targets != "none" else 0
        if question is None:
            return TokenSpan(ids, (), int32(), asked[:used], targets[:used], self._weights(used))
        start, answered = 1 + len(question.tokens), int(lengths[0])
        tokens = np.concatenate([end_of_chunk, question.tokens, ids[:answered], end_of_chunk, ids[answered:]])
        asked = np.concatenate([[start - 1], start + asked + (asked >= answered)])
        weights = np.concatenate([np.ones(answered), self._weights(len(ids) + 1 - answered)])
        used = len(weights) if used else answered
        return TokenSpan(tokens, (), int32(), asked[:used], np.append(ids[:1], targets)[:used], weights[:used])

    def _earlier_question(self, query: Queries, place: int) -> TokenSpan:
        """The question of the query's task about the item at an earlier place."""
        at, item = np.array([[place], [self._item(query, place)]])
        return self.texts.written(self._question(Queries.about(query.tasks, query.users, at, item, query.whole)))

    def _weights(self, count: int) -> np.ndarray:
        return np.full(count, self.config.history_weight, np.float32)

    def _names(self, query: Queries, begin: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the items at places, each with the rating it was given where the task wants to know; or, where ids
        are not shown, the ratings alone: int32 [t], and the tokens of each name: int64 [stop - begin]."""
        vocabulary, corpus = self.texts.vocabulary, self.texts.corpus
        start = corpus.offsets[query.users[0]]
        events = slice(start + begin, start + stop)
        ids = vocabulary.items[corpus.items[events]][:, : self._id_length]
        if not self._rates or not task_at(int(query.tasks[0])).rated_history:
            return ids.ravel(), np.full(len(ids), ids.shape[1])
        ratings = corpus.ratings[events]
        tokens = np.column_stack([ids, vocabulary.ratings[vocabulary.nearest_levels(ratings)]]).astype(np.int32)
        said = np.ones(tokens.shape, bool)
        said[:, -1] = ~np.isnan(ratings)
        return tokens[said], said.sum(axis=1)


def _before(ends: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last `counts` events before each of `ends`, the latest first.

    Returns:
      bool [n, m], where there is one, and int64 [n, m], its number, or 0.
    """
    backs = np.arange(counts.max(initial=0))
    there = backs < counts[:, None]
    return there, np.where(there, ends[:, None] - 1 - backs, 0)


def continues_history(task: Task, config: TaskConfig) -> bool:
    """Whether a task's questions are answered right after the history's last id, without words."""
    return bool(task.continues_history) and getattr(config, task.continues_history) == "last_id"


def past_last_id(shown: Shown, config: TaskConfig) -> np.ndarray:
    """What `up_to_last_id` takes off histories: int64 [n, 3], tokens, images and answers."""
    of_whole = config.history_targets in ("next_item", "both")
    answers = np.where(shown.whole > 0, of_whole, (shown.bare > 0) & (config.history_targets != "none"))
    return np.stack([shown.whole > 0, np.zeros(len(answers), bool), answers], axis=1).astype(np.int64)


def up_to_last_id(piece: TokenSpan, end_of_chunk: int) -> TokenSpan:
    """The end of a history without what follows its last id, which is to be the answer."""
    ends = len(piece.tokens) > 0 and piece.tokens[-1] == end_of_chunk
    tokens = piece.tokens[:-1] if ends else piece.tokens
    used = piece.asked_at < len(tokens) - 1
    answered = {name: getattr(piece, name)[used] for name in ("asked_at", "targets", "weights")}
    return dataclasses.replace(piece, tokens=tokens, **answered)
