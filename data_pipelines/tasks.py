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
import itertools
import sys
from collections.abc import Sequence
from typing import Self

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.examples import Budget, Example, Piece, Ragged, cut_longest, int32
from data_pipelines.plain_text import shortened
from data_pipelines.queries import IMAGE, PREFERENCE, RECOMMENDATION, SEARCH, SELECTION, TASKS, Query
from data_pipelines.task_config import TaskConfig
from data_pipelines.vocabulary import Vocabulary

QUESTIONS = (
    "What is the next item recommended to the user?",
    "What is the related item ID to the query based on the history?",
    "What is the rating and explanation for the item?",
    "Can you select the suitable item from above for the user?",
    "What is the generated image ID to the query based on the history?",
)
QUERY, SELECT = "Query:", "Select from:"


def prompt_texts(*, images: bool = False) -> tuple[str, ...]:
    """What prompts say beside the items; with `images`, the question for a picture too."""
    return (*QUESTIONS[: None if images else IMAGE], QUERY, SELECT)


class TaskWriter:
    """Writes examples. Every text is tokenised here, once, when the writer is made."""

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        config: TaskConfig,
        budget: Budget,
        *,
        attributes: Sequence[str],
        has_image: np.ndarray,
    ):
        """
        Args:
          attributes: what a prompt says of each item (`vocabulary.attribute_texts`).
          has_image: bool [I], which items have a picture.
        """
        self.corpus, self.vocabulary, self.config, self.budget = corpus, vocabulary, config, budget
        self.has_image = has_image & config.images
        space = vocabulary.space  # search, preference and selection ask behind other words
        self._questions = [
            vocabulary.encode_phrase(text if text == QUESTIONS[RECOMMENDATION] else space + text) for text in QUESTIONS
        ]
        self._query, self._select = vocabulary.encode_phrase(QUERY), vocabulary.encode_phrase(SELECT)
        self._attributes = Ragged(vocabulary.encode_all(attributes if config.text else [""] * corpus.num_items))
        categories = [space + shortened(", ".join(words)) for words in corpus.categories]
        self._categories = Ragged(vocabulary.encode_all(categories))
        explanations = vocabulary.encode_all(
            [shortened(text, config.explanation_words) for text in corpus.texts.values()]
        )
        room = max(budget.answers - 2, 0)  # beside the rating and the end
        self._explanations = {event: int32(*row[:room]) for event, row in zip(corpus.texts, explanations, strict=True)}
        if config.history_weight <= 0:
            raise ValueError(f"tasks.history_weight {config.history_weight} must be above 0; see tasks.history_targets")
        if not config.history_ids and (config.id_items or config.history_targets != "none"):
            raise ValueError(
                "tasks.history_ids False leaves no ids to show bare or to foretell: set tasks.id_items 0 and "
                "tasks.history_targets none as well"
            )
        if not config.history_ids and config.recommendation_at == "last_id":
            raise ValueError("tasks.history_ids False leaves no last id: set tasks.recommendation_at question")
        self._marker_at, self._rates = vocabulary.image_marker.index(vocabulary.image), bool(vocabulary.rating_levels)
        self._weights = [getattr(config.loss_weights, task) for task in TASKS]

    def of(self, corpus: Corpus) -> Self:
        """A writer of other people's histories of the same items, whose texts are not tokenised again.

        Raises:
          ValueError: the items are others.
        """
        if corpus.item_ids != self.corpus.item_ids:
            raise ValueError("a writer goes on with the items that it was made for")
        other = copy.copy(self)
        other.corpus = corpus
        return other

    def blank(self) -> Self:
        """A writer with room for everything, of items without texts: it writes the least that a question takes."""
        other = copy.copy(self)
        other.budget = Budget(*[sys.maxsize] * 3)
        other._attributes = other._categories = Ragged([()] * self.corpus.num_items)
        other._explanations = {}
        return other

    def text_lengths(self, *, categories: bool = False) -> np.ndarray:
        """Tokens of each item's attributes, or of its categories: int64 [I]."""
        return (self._categories if categories else self._attributes).lengths

    def write(self, query: Query, *, ask: bool = False, begun: Sequence[int] = ()) -> Example:
        """The example that asks `query`, with its answer; the oldest history that does not fit the budget is left out.

        Where the question and its answer alone do not fit, their texts are cut, the longest first.

        Args:
          ask: write the prompt only, up to and with the last `<answer>`, followed by `begun`, the beginning of an
            answer. The single answer position is then the last token, its target what truly comes there (the end, where
            that is not known).

        Raises:
          ValueError: the question is larger than the budget even without them, or open and not only to be asked.
        """
        if not ask and self._is_open(query):
            raise ValueError(f"the {TASKS[query.task]} question {query} is open: it has no answer to write")
        texts = self._texts(query)
        question, answer = self._question(query, texts), self._answer(query, texts)
        over = 1 + len(question.tokens) + len(answer) - self.budget.tokens
        if over > 0:
            texts = cut_longest(texts, over)
            question, answer = self._question(query, texts), self._answer(query, texts)
        history = [] if query.bare else self._history(query, question, answer)
        if history and self._at_last_id(query):
            history[-1] = self._up_to_last_id(history[-1])
        pieces = [Piece(int32(self.vocabulary.bos)), *history, question]
        if ask:
            pieces.append(Piece(int32(*begun)))
        else:
            pieces.append(Piece(answer, (), int32(), np.arange(-1, len(answer) - 1), answer, np.ones(len(answer))))
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
            answer_weights=(self._weights[query.task] * weights).astype(np.float32),
            task=query.task,
            shortened=over > 0,
        )

    def _texts(self, query: Query) -> list[np.ndarray]:
        """What may be cut: the texts of the items asked about, or what is searched for; and, the last one of a
        preference whose answer is known, the explanation."""
        if query.task in (SEARCH, IMAGE) and not query.bare:
            return [self._words(query)]
        if query.task == PREFERENCE:
            event = int(self.corpus.offsets[query.user]) + query.position
            known = [] if self._is_open(query) else [self._explanations.get(event, int32())]
            return [self._attributes[query.right[0]], *known]
        return [self._attributes[item] for item in query.candidates] if query.task == SELECTION else []

    def _question(self, query: Query, texts: Sequence[np.ndarray]) -> Piece:
        """What stands between the history and the answer, the last `<answer>` included."""
        if self._at_last_id(query):
            return Piece(int32())
        vocabulary = self.vocabulary
        tokens: list[np.ndarray] = []
        items: tuple[int, ...] = ()
        if query.task in (SEARCH, IMAGE) and not query.bare:
            tokens += [self._query, texts[0]]
        elif query.task == PREFERENCE:
            items = query.right[:1]
            tokens += [self._asked_item(items[0], texts[0])]
        elif query.task == SELECTION:
            items = query.candidates
            names = vocabulary.selections.tolist()
            tokens.append(self._select)
            tokens += [self._asked_item(item, text, name) for item, text, name in zip(items, texts, names, strict=True)]
        starts = np.cumsum([0, *map(len, tokens)])[-1 - len(items) : -1] if items else int32()
        has_image = self.has_image[list(items)]
        tokens += [self._questions[query.task], int32(vocabulary.answer)]
        return Piece(
            np.concatenate(tokens),
            tuple(itertools.compress(items, has_image)),
            shown_at=starts[has_image] + self._marker_at,
        )

    def _asked_item(self, item: int, text: np.ndarray, *name: int) -> np.ndarray:
        """An item that is asked about, or offered under a name: int32."""
        asked = self.vocabulary.items[item] if self.config.questions_show_ids else int32()
        return np.concatenate([self._marker(self._picture(item)), int32(*name), asked, text])

    def _at_last_id(self, query: Query) -> bool:
        """Whether the answer follows the history's last id, without a question."""
        return query.task == RECOMMENDATION and self.config.recommendation_at == "last_id"

    def _up_to_last_id(self, piece: Piece) -> Piece:
        """The end of a history without what follows its last id, which is to be the answer."""
        ends = len(piece.tokens) > 0 and piece.tokens[-1] == self.vocabulary.end_of_chunk
        tokens = piece.tokens[:-1] if ends else piece.tokens
        kept = piece.asked_at < len(tokens) - 1
        answered = {name: getattr(piece, name)[kept] for name in ("asked_at", "targets", "weights")}
        return dataclasses.replace(piece, tokens=tokens, **answered)

    def _words(self, query: Query) -> np.ndarray:
        """What is searched for: int32."""
        if query.words is None:
            return self._categories[query.right[0]]
        return self.vocabulary.encode(self.vocabulary.space + shortened(query.words))

    def _is_open(self, query: Query) -> bool:
        """Whether nobody knows the answer."""
        if query.task != PREFERENCE:
            return not query.right
        return self.corpus.offsets[query.user] + query.position >= self.corpus.offsets[query.user + 1]

    def _answer(self, query: Query, texts: Sequence[np.ndarray]) -> np.ndarray:
        """The tokens after the last `<answer>`, the end of the sequence included: int32.

        Of an open question, as many ends as an answer takes room.
        """
        vocabulary = self.vocabulary
        if query.task == IMAGE:
            return np.append(self._codes(query), np.int32(vocabulary.eos))
        if self._is_open(query):
            return int32(*[vocabulary.eos] * (vocabulary.depth + 1))
        event = int(self.corpus.offsets[query.user]) + query.position
        if query.task == PREFERENCE:
            rating = vocabulary.rating_token(self.corpus.ratings[event])
            return np.concatenate([int32(rating), texts[-1], int32(vocabulary.eos)])
        if query.task == SELECTION:
            places = sorted(query.candidates.index(item) for item in query.right)
            return int32(*vocabulary.selections[places], vocabulary.eos)
        return int32(*vocabulary.items[query.right[0]], vocabulary.eos)

    def _codes(self, query: Query) -> np.ndarray:
        """The picture asked for, row by row: int32 [h * w]."""
        pictures = self.vocabulary.image_codes
        if pictures is None:
            raise ValueError("a picture is asked for, but the vocabulary knows none (vocabulary.image_codes)")
        if self._is_open(query):
            return np.full(pictures.codes_per_image, self.vocabulary.eos, np.int32)
        return self.vocabulary.picture(query.right[0])

    def _history(self, query: Query, question: Piece, answer: np.ndarray) -> list[Piece]:
        """Bare ids, then whole items, oldest first: as much of the latest history as the question leaves room for."""
        left = np.array([self.budget.tokens, self.budget.images, self.budget.answers])
        left -= [1 + len(question.tokens) + len(answer), len(question.images), len(answer)]
        if left.min() < 0:
            raise ValueError(
                f"the {TASKS[query.task]} question of user {self.corpus.user_ids[query.user]} exceeds {self.budget} "
                f"(left: {left.tolist()}); raise the budget or show fewer attribute words"
            )
        pieces: list[Piece] = []
        following = int(query.right[0]) if query.right else 0  # any: a question without an answer keeps no targets
        shown = min(self.config.full_items, query.position)
        for place in range(query.position - 1, query.position - shown - 1, -1):
            piece = self._whole_item(query, place, following)
            left = left - piece.size
            if left.min() < 0:
                return pieces[::-1]
            pieces.append(piece)
            following = int(self.corpus.items[self.corpus.offsets[query.user] + place])
        return [*self._bare_ids(query, query.position - shown, following, left), *pieces[::-1]]

    def _whole_item(self, query: Query, place: int, following: int) -> Piece:
        """One item of the history with image and attributes."""
        vocabulary, targets = self.vocabulary, self.config.history_targets
        item = int(self.corpus.items[self.corpus.offsets[query.user] + place])
        picture, name = self._picture(item), self._name(query, place)
        answer = int32(*[vocabulary.answer] * bool(len(name)))
        before = np.concatenate([self._marker(picture), self._attributes[item], answer])
        tokens = np.concatenate([before, name, int32(vocabulary.end_of_chunk)])
        shown_at = int32(*[self._marker_at] * len(picture))
        if targets == "none":
            return Piece(tokens, picture, shown_at)
        kept = {"reconstruct": slice(-1), "next_item": slice(1, None), "both": slice(None)}[targets]
        asked = (len(before) - 1 + np.arange(len(name) + 1))[kept]
        target = np.append(name, vocabulary.items[following, :1])[kept]
        return Piece(tokens, picture, shown_at, asked, target, self._history_weights(len(target)))

    def _bare_ids(self, query: Query, end: int, following: int, left: np.ndarray) -> list[Piece]:
        """The ids of the items before place `end`, oldest first: as many of the latest as `left` has room for.

        They come in runs, between which the question is asked that the next run's first item answers.
        """
        pieces: list[Piece] = []
        first = max(end - self.config.id_items, 0)
        moments = self._moments(query, first, end)
        for begin, stop in reversed(list(itertools.pairwise([first, *moments, end]))):
            names = [self._name(query, place) for place in range(begin, stop)]
            piece = self._run(names, following, self._asked_before(query, begin) if begin in moments else None)
            if (left < piece.size).any():
                room = min(left[0], left[2])
                sizes = np.cumsum([len(name) for name in names[::-1]])
                fitting = int(np.searchsorted(sizes, room, side="right"))
                return [self._run(names[len(names) - fitting :], following), *pieces[::-1]] if fitting else pieces[::-1]
            left = left - piece.size
            pieces.append(piece)
            following = int(self.corpus.items[self.corpus.offsets[query.user] + begin])
        return pieces[::-1]

    def _run(self, names: list[np.ndarray], following: int, question: Piece | None = None) -> Piece:
        """Ids of consecutive items, each foretelling the next, the last one `following`.

        With a question before them, which the first answers: `<|endofchunk|> QUESTION <answer> ITEM <|endofchunk|> …`,
        the same as behind an item shown whole.
        """
        if not names:
            return Piece(int32())
        ids, end_of_chunk = np.concatenate(names), int32(self.vocabulary.end_of_chunk)
        asked, targets = np.arange(len(ids)), np.append(ids[1:], self.vocabulary.items[following, :1])
        kept = len(ids) if self.config.history_targets != "none" else 0
        if question is None:
            return Piece(ids, (), int32(), asked[:kept], targets[:kept], self._history_weights(kept))
        start, answered = 1 + len(question.tokens), len(names[0])
        tokens = np.concatenate([end_of_chunk, question.tokens, ids[:answered], end_of_chunk, ids[answered:]])
        asked = np.concatenate([[start - 1], start + asked + (asked >= answered)])
        weights = np.concatenate([np.ones(answered), self._history_weights(len(ids) + 1 - answered)])
        kept = len(weights) if kept else answered
        return Piece(tokens, (), int32(), asked[:kept], np.append(ids[:1], targets)[:kept], weights[:kept])

    def _moments(self, query: Query, first: int, end: int) -> list[int]:
        """Places between `first` and `end`, both excluded, before which the question is asked as well."""
        every = self.config.ask_every
        if not every or query.task not in (RECOMMENDATION, SEARCH) or self._at_last_id(query):
            return []
        person = query.user if query.right else 0  # an open question hangs on the history alone, whosever it is
        phase = int(np.random.default_rng((person, query.position)).integers(every))
        places = range(first + 1 + phase, end, every)
        if query.task == RECOMMENDATION:
            return list(places)
        items = self.corpus.items[self.corpus.offsets[query.user] :]
        return [place for place in places if self.corpus.categories[items[place]]]

    def _asked_before(self, query: Query, place: int) -> Piece:
        """The question of `query`, of the item at an earlier place."""
        item = int(self.corpus.items[self.corpus.offsets[query.user] + place])
        before = Query(query.task, query.user, place, (item,))
        return self._question(before, self._texts(before))

    def _history_weights(self, count: int) -> np.ndarray:
        return np.full(count, self.config.history_weight, np.float32)

    def _name(self, query: Query, place: int) -> np.ndarray:
        """The id of the history's item at `place`, with the rating it was given where the task wants to know; or,
        where ids are not shown, the rating alone."""
        event = int(self.corpus.offsets[query.user]) + place
        name = self.vocabulary.items[self.corpus.items[event]] if self.config.history_ids else int32()
        rating = self.corpus.ratings[event]
        if query.task == PREFERENCE and self.config.rated_history and self._rates and not np.isnan(rating):
            return np.append(name, np.int32(self.vocabulary.rating_token(rating)))
        return name

    def _picture(self, item: int) -> tuple[int, ...]:
        return (item,) if self.has_image[item] else ()

    def _marker(self, picture: tuple[int, ...]) -> np.ndarray:
        return int32(*self.vocabulary.image_marker * len(picture))
