"""The history that precedes every question: the latest items shown whole, older ones as bare ids.

The part of the history that fits is computed for many questions at once, from lengths only; then single histories are
written.
"""

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
"""The number of histories that are processed id by id at a time, so that the arrays stay in the CPU cache."""
QuestionParts = Callable[[Queries], list[Part]]
"""Returns what comes between the history and the answer for questions of one task, including the last `<answer>`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """How much of each of n histories is shown.

    Attributes:
      whole: int64 [n], the number of latest items that are shown whole.
      bare: int64 [n], the number of items before those that are shown as bare ids.
      asked: int64 [n], the number of bare ids (the latest that `ask_every` selects) before which the question is asked
        too.
      sizes: int64 [n, 3], the tokens, images and answers of the shown history.
    """

    whole: np.ndarray
    bare: np.ndarray
    asked: np.ndarray
    sizes: np.ndarray


class History:
    """Fits and writes the histories before questions."""

    def __init__(self, texts: PromptTexts, config: TaskConfig, question: QuestionParts):
        self.texts, self.config, self._question = texts, config, question
        self._id_length = texts.vocabulary.depth if config.history_ids else 0
        self._rates = config.rated_history and bool(texts.vocabulary.rating_levels)

    def fit(self, queries: Queries, left: np.ndarray) -> Shown:
        """Returns as much of the latest history as there is room for: whole items first, then bare ids. `left`, int64
        [n, 3], are the available tokens, images and answers."""
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
        # Ids that all take the same number of tokens need not be processed one by one.
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
        """Returns whether bare ids before a task's questions vary in size, due to ratings or questions among them."""
        return (self._rates and task.rated_history) or self._asks_along(task)

    def _asks_along(self, task: Task) -> bool:
        return self.config.ask_every > 0 and task.asked_along and not continues_history(task, self.config)

    def _fit_bare(
        self, queries: Queries, ends: np.ndarray, wanted: np.ndarray, left: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fits as many of the latest bare ids, and of the questions among them, as there is room for: at most `wanted`,
        int64 [n], ids before the events `ends`, int64 [n]. Returns bare, asked and sizes, as in `Shown`."""
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
        """Returns the tokens of the question asked before each bare id, including the markers that end the history
        before it and its answer, int32 [n, m]; and whether there is a question before each id, bool [n, m]. `wanted`,
        int64 [n], is the number of ids that are shown if there is room; `events`, int64 [n, m], are those of these ids,
        the latest first."""
        tokens, asks = np.zeros(events.shape, np.int32), np.zeros(events.shape, bool)
        corpus, every = self.texts.corpus, self.config.ask_every
        for number in np.unique(queries.tasks).tolist() if every else ():
            task = task_at(number)
            if not self._asks_along(task):
                continue
            # An open question depends on the history only, not on the user.
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
        """Returns the number of tokens of the ids of events, including ratings if the task shows them: int32 [n, m]."""
        names = np.full(events.shape, self._id_length, np.int32)
        rated = np.array([self._rates and task.rated_history for task in TASKS.values()])[queries.tasks]
        if rated.any():
            names[rated] += ~np.isnan(self.texts.corpus.ratings[events[rated]])
        return names

    def pieces(self, query: Queries, whole: int, bare: int, asked: int) -> list[TokenSpan]:
        """Returns the history of a single question, oldest first; the counts are as in `Shown`."""
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
        """Returns the places before `end`, latest first, before which the question is asked too."""
        wanted, start = np.array([min(self.config.id_items, end)]), int(self.texts.corpus.offsets[query.users[0]])
        events = start + end - 1 - np.arange(wanted[0])
        _, asks = self._questions(query, wanted, events[None])
        return (events[asks[0]] - start).tolist()

    def _item(self, query: Queries, place: int) -> int:
        """Returns the item at a place; for an open question, an arbitrary item at the place that is asked about."""
        if place == query.positions[0]:
            return max(int(query.right[0, 0]), 0)
        return int(self.texts.corpus.items[self.texts.corpus.offsets[query.users[0]] + place])

    def _whole_item(self, query: Queries, place: int) -> TokenSpan:
        """Writes `<image> ATTRIBUTES <answer> ITEM <|endofchunk|>`, with the targets set in the configuration."""
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
        """Writes the ids of consecutive items, each of which predicts the next. A question before them is answered by
        the first one, in the same form as after a whole item: `<|endofchunk|> QUESTION <answer> ITEM <|endofchunk|>
        …`."""
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
        """Returns the question of the query's task about the item at an earlier place."""
        at, item = np.array([[place], [self._item(query, place)]])
        return self.texts.written(self._question(Queries.about(query.tasks, query.users, at, item, query.whole)))

    def _weights(self, count: int) -> np.ndarray:
        return np.full(count, self.config.history_weight, np.float32)

    def _names(self, query: Queries, begin: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of items, with ratings if the task shows them, and the number of tokens of each.

        If ids are not shown, the names consist of the ratings only. The arrays are int32 [t] and int64 [stop - begin].
        """
        vocabulary, corpus = self.texts.vocabulary, self.texts.corpus
        start = corpus.offsets[query.users[0]]
        events = slice(start + begin, start + stop)
        ids = vocabulary.items[corpus.items[events]][:, : self._id_length]
        if not self._rates or not task_at(int(query.tasks[0])).rated_history:
            return ids.ravel(), np.full(len(ids), ids.shape[1])
        ratings = corpus.ratings[events]
        tokens = np.column_stack([ids, vocabulary.ratings[vocabulary.nearest_levels(ratings)]]).astype(np.int32)
        is_shown = np.ones(tokens.shape, bool)
        is_shown[:, -1] = ~np.isnan(ratings)
        return tokens[is_shown], is_shown.sum(axis=1)


def _before(ends: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for the last `counts` events before each of `ends`, the latest first, whether each exists, bool [n, m];
    and its index or 0, int64 [n, m]."""
    backs = np.arange(counts.max(initial=0))
    is_before = backs < counts[:, None]
    return is_before, np.where(is_before, ends[:, None] - 1 - backs, 0)


def continues_history(task: Task, config: TaskConfig) -> bool:
    """Returns whether a task's questions are answered right after the last id of the history, without a text."""
    return bool(task.continues_history) and getattr(config, task.continues_history) == "last_id"


def past_last_id(shown: Shown, config: TaskConfig) -> np.ndarray:
    """Returns the size that `up_to_last_id` removes from histories: int64 [n, 3], tokens, images and answers."""
    of_whole = config.history_targets in ("next_item", "both")
    answers = np.where(shown.whole > 0, of_whole, (shown.bare > 0) & (config.history_targets != "none"))
    return np.stack([shown.whole > 0, np.zeros(len(answers), bool), answers], axis=1).astype(np.int64)


def up_to_last_id(piece: TokenSpan, end_of_chunk: int) -> TokenSpan:
    """Removes everything after the last id from the final span of a history, since the answer follows there."""
    ends = len(piece.tokens) > 0 and piece.tokens[-1] == end_of_chunk
    tokens = piece.tokens[:-1] if ends else piece.tokens
    used = piece.asked_at < len(tokens) - 1
    answered = {name: getattr(piece, name)[used] for name in ("asked_at", "targets", "weights")}
    return dataclasses.replace(piece, tokens=tokens, **answered)
