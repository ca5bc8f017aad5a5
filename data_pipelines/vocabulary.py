"""All tokens that the model reads or writes: those of a base tokenizer, followed by those of the catalogue.

Ids below `base_size` belong to the tokenizer. The new tokens follow, with embedding rows of their own, in this order:
markers, selection tokens, rating tokens, item tokens, image codes, categories, and reserved rows up to a round number.
A token that the tokenizer already has, such as `<image>` in OpenFlamingo and Idefics, keeps its id and its trained row.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.atomic import atomic_folder
from data_pipelines.attribute_texts import AttributeTexts
from data_pipelines.corpus import TRAIN, Corpus
from data_pipelines.errors import DataError
from data_pipelines.image_codes import ImageCodes, load_image_codes, save_image_codes
from data_pipelines.item_codes import ItemCodes, load_codes, save_codes
from data_pipelines.plain_text import (
    PlainText,
    read_saved_tokenizer,
    read_tokenizer,
    shortened,
    table_size,
    without_long_words,
)
from data_pipelines.trained_tokenizer import TrainedTokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMAGE, ANSWER, END_OF_CHUNK = "<image>", "<answer>", "<|endofchunk|>"
FAKE, GLOBAL = "<fake_token_around_image>", "<global-img>"
IMAGE_MARKER = (FAKE, GLOBAL, IMAGE, FAKE)
"""The tokens around an unsplit image in SmolVLM's pretraining; without <global-img> they are those of Idefics."""
NUM_CANDIDATES = 3
MOST_LEVELS = 50
"""The largest number of rating tokens; ratings on a continuous scale would otherwise need one for each value."""
CODES, IMAGE_CODES = "item_codes.parquet", "image_codes.parquet"


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """How text is converted to tokens."""

    tokenizer: str = ""
    """A folder or hub id that `AutoTokenizer` reads; empty: a byte-level BPE is trained on the catalogue."""
    trained_size: int = 2048
    """Vocabulary size of the tokenizer, if one is trained."""
    base_size: int = 0
    """Embedding rows of the base tokens in a pretrained model; 0: one for each token, rounded up to `round_to`."""
    attributes: tuple[str, ...] = ()
    """Names of the item attributes to show; empty: all attributes of the source. `Category` is available for every
    source: unless it is an attribute, it stands for the categories used by search."""
    attribute_words: int = 20
    """Each attribute text is cut to this number of words."""
    category_items: int = 0
    """Categories of at least this many items get a token each, which is used in queries; 0: all are spelled as text."""
    rating_step: float = 0.0
    """Ratings are rounded to multiples of this, for sources with more rating levels than can have a token each; 0: no
    rounding."""
    item_codes: Path | None = None
    """Semantic ids, as `unimp ids` writes them: an item is named by a few tokens that similar items share; None: each
    item has a token of its own."""
    image_codes: Path | None = None
    """Image codes, as `unimp vqgan codes` writes them: each code has a token, and images can be generated
    (queries.mix.image)."""
    round_to: int = 64
    """Base rows and new tokens are each padded with reserved ones to a multiple of this, so that meshes divide them."""

    def __post_init__(self) -> None:
        if not 0 <= self.rating_step < math.inf:
            raise ValueError(f"vocabulary.rating_step {self.rating_step} must be 0 or more")
        if min(self.attribute_words, self.category_items, self.round_to - 1) < 0:
            raise ValueError(f"vocabulary: attribute_words, category_items and round_to - 1 must be 0 or more: {self}")


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """Token ids of one catalogue under one tokenizer.

    Attributes:
      base_size: ids 0 … base_size - 1 are those of the tokenizer.
      new_tokens: the strings of the ids from base_size on, including reserved ones.
      bos, eos, pad: base ids (bos is a new token if the tokenizer has none; padding is masked, so its id is arbitrary).
      image_marker: the ids that stand for an image: `image`, and those of the other tokens of IMAGE_MARKER in the
        tokenizer.
      selections: int32 [3], the ids of s_1, s_2, s_3.
      rating_levels: the possible ratings in stars, ascending.
      ratings: int32 [levels], the ids of their tokens.
      items: int32 [I, depth], the ids that name each item (depth 1: one token for each item).
      codes: int32 [K], the ids of the image codes; K is 0 if there are none.
      categories: the ids of the categories that have a token.
    """

    tokenizer: PreTrainedTokenizerBase | TrainedTokenizer
    base_size: int
    new_tokens: tuple[str, ...]
    bos: int
    eos: int
    pad: int
    image: int
    image_marker: tuple[int, ...]
    answer: int
    end_of_chunk: int
    selections: np.ndarray
    rating_levels: tuple[float, ...]
    ratings: np.ndarray
    items: np.ndarray
    codes: np.ndarray
    categories: Mapping[str, int] = dataclasses.field(default_factory=dict)
    item_codes: ItemCodes | None = None
    image_codes: ImageCodes | None = None

    @property
    def depth(self) -> int:
        """The number of tokens that name an item."""
        return self.items.shape[1]

    @property
    def size(self) -> int:
        return self.base_size + len(self.new_tokens)

    def with_items(self, item_ids: Sequence[str]) -> Vocabulary:
        """Returns the vocabulary with additional items, each with a new token after all others.

        Raises:
          DataError: items are named by semantic ids.
        """
        if self.item_codes is not None:
            raise DataError(
                "this run names items by several codes (vocabulary.item_codes), and a new item has no codes; use "
                "a run with one token per item"
            )
        tokens = self.size + np.arange(len(item_ids), dtype=np.int32)
        return dataclasses.replace(
            self,
            new_tokens=(*self.new_tokens, *(f"item_{item_id}" for item_id in item_ids)),
            items=np.concatenate([self.items, tokens[:, None]]),
            image_codes=self.image_codes and self.image_codes.with_items(item_ids),
        )

    def encode(self, text: str) -> np.ndarray:
        """Returns the base tokens of a text from data or users, with control tokens as plain text: int32 [n]."""
        return np.array(self.encode_all([text])[0], np.int32)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the base tokens of several texts, as `encode` does, in one call."""
        return self._plain_text(texts)

    def encode_phrase(self, text: str) -> np.ndarray:
        """Returns the base tokens of a fixed phrase of prompts, which may be a single token: int32 [n]."""
        return np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

    def encode_query(self, categories: Sequence[str]) -> list[int]:
        """Encodes a search query: categories that have a token become that token, the others become text tokens."""
        tokens: list[int] = []
        for has_token, group in itertools.groupby(categories, lambda name: name.casefold() in self._categories):
            names = list(group)
            if has_token:
                tokens += [self._categories[name.casefold()] for name in names]
            else:
                tokens += self.encode(self.space + shortened(", ".join(names))).tolist()
        return tokens

    def split_query(self, text: str) -> list[str]:
        """Splits a user's query into the categories it names (ignoring case) and the text between them."""
        parts = [part.strip() for part in text.split(",")]
        most = max((name.count(",") for name in self._categories), default=0) + 1
        names, start = list[str](), 0
        while start < len(parts):  # the name of a category may contain commas, so the longest match is taken
            stops = range(min(start + most, len(parts)), start + 1, -1)
            stop = next((n for n in stops if ", ".join(parts[start:n]).casefold() in self._categories), start + 1)
            names.append(", ".join(parts[start:stop]))
            start = stop
        return [name for name in names if name]

    @functools.cached_property
    def _categories(self) -> dict[str, int]:
        return {name.casefold(): token for name, token in self.categories.items()}

    @property
    def tokenizer_digest(self) -> str | None:
        """A digest of everything that determines the output of `encode_all`; None if it cannot be determined."""
        return self._plain_text.digest

    @functools.cached_property
    def _plain_text(self) -> PlainText:
        return PlainText(self.tokenizer)

    @functools.cached_property
    def space(self) -> str:
        """The separator before a text that follows another: a space, unless the tokenizer itself adds one."""
        first = self.tokenizer.convert_ids_to_tokens(self.encode("a").tolist())[0]
        return "" if first[0] in "Ġ▁" else " "

    def image_tokens(self, item: int) -> np.ndarray:
        """Returns the tokens of an item's image in row-major order: int32 [h * w].

        Raises:
          ValueError: the item has no image codes.
        """
        known = self.image_codes
        if known is None or known.codes[item, 0] < 0:
            raise ValueError(f"the image of item number {item} has no codes")
        return self.codes[known.codes[item]]

    def nearest_levels(self, ratings: np.ndarray) -> np.ndarray:
        """Returns the index of the nearest level (the lower of two equally near) for each rating: int64 [n]."""
        return np.abs(np.subtract.outer(ratings, self.rating_levels)).argmin(axis=1)

    @functools.cached_property
    def _names(self) -> dict[int, str]:
        """The tokens that are written by name: the new ones, and those added to the tokenizer."""
        added = {id: str(token) for id, token in self.tokenizer.added_tokens_decoder.items()}
        return added | {self.base_size + number: name for number, name in enumerate(self.new_tokens)}

    def decode(self, tokens: Sequence[int]) -> str:
        """Decodes tokens to text for users: names and words, separated by spaces."""
        special = set(self.tokenizer.all_special_ids)
        words: list[str] = []
        for is_named, group in itertools.groupby(map(int, tokens), lambda id: id in self._names and id not in special):
            run = list(group)
            words += [self._names[token] for token in run] if is_named else [self.tokenizer.decode(run).strip()]
        return " ".join(words)

    def text(self, tokens: Sequence[int]) -> str:
        """Returns the text that a tokenizer with all these tokens (`whole_tokenizer`) encodes to `tokens`."""
        texts: list[str] = []
        for is_named, group in itertools.groupby(map(int, tokens), self._names.__contains__):
            run = list(group)
            plain = "" if is_named else self.tokenizer.decode(run, clean_up_tokenization_spaces=False)
            texts += [self._names[token] for token in run] if is_named else [plain]
        return "".join(texts)

    def save(self, folder: Path) -> None:
        """Writes the tokenizer and the strings of the new tokens, from which `load_vocabulary` restores the vocabulary.

        The folder appears whole or not at all, replacing any earlier one.
        """
        described = {
            "base_size": self.base_size,
            "rating_levels": self.rating_levels,
            "new_tokens": self.new_tokens,
            "item_codes": self.item_codes is not None,
            "image_codes": self.image_codes is not None,
            "categories": list(self.categories),
        }
        with atomic_folder(folder, replaces=True) as partial:
            self.tokenizer.save_pretrained(partial)
            (partial / "new_tokens.json").write_text(json.dumps(described), encoding="utf-8")
            if self.item_codes is not None:
                save_codes(partial / CODES, self.item_codes)
            if self.image_codes is not None:
                save_image_codes(partial / IMAGE_CODES, self.image_codes)


def attribute_texts(corpus: Corpus, config: VocabularyConfig) -> list[str]:
    """Returns the text of each item in prompts: `Name text Name text …`, each text cut to `attribute_words` words.

    Raises:
      DataError: an attribute is not in the source.
    """
    return [*AttributeTexts(corpus, config.attributes, config.attribute_words)]


def build_vocabulary(corpus: Corpus, config: VocabularyConfig, prompt_texts: Sequence[str] = ()) -> Vocabulary:
    """Returns the vocabulary of a catalogue.

    If a tokenizer is trained, each of `prompt_texts`, the fixed phrases of prompts, becomes one token.
    """
    if config.tokenizer:
        tokenizer = read_tokenizer(config.tokenizer)
    else:
        tokenizer = train_tokenizer(list(_training_texts(corpus, config)), config.trained_size, prompt_texts)
    least = table_size(tokenizer)
    base_size = config.base_size or least + -least % config.round_to
    names = load_codes(config.item_codes, corpus.item_ids) if config.item_codes else None
    images = load_image_codes(config.image_codes, corpus.item_ids) if config.image_codes else None
    categories = frequent_categories(corpus, config.category_items) if config.category_items else []
    levels = rating_levels(corpus, config)
    return _extend(tokenizer, corpus, levels, names, images, categories, base_size=base_size, round_to=config.round_to)


def frequent_categories(corpus: Corpus, least: int) -> list[str]:
    """Returns the categories of at least `least` items, sorted; of those that differ only in case, one is kept."""
    counts = collections.Counter(name for names in corpus.categories for name in set(names))
    frequent = sorted(name for name, count in counts.items() if count >= least)
    return list({name.casefold(): name for name in reversed(frequent)}.values())[::-1]


def _training_texts(corpus: Corpus, config: VocabularyConfig) -> Iterator[str]:
    yield from attribute_texts(corpus, config)
    yield from (without_long_words(" ".join(words)) for words in corpus.categories)
    yield from (without_long_words(text) for event, text in corpus.texts.items() if corpus.splits[event] == TRAIN)


def rating_levels(corpus: Corpus, config: VocabularyConfig) -> list[float]:
    """Returns the ratings that have a token each, ascending; raises DataError if there are more than `MOST_LEVELS`."""
    levels = np.array(corpus.rating_levels)
    if config.rating_step:
        levels = np.unique(np.round(levels / config.rating_step)) * config.rating_step
    if len(levels) > MOST_LEVELS:
        steps = (digit * 10.0**power for power in range(-6, 30) for digit in (1, 2, 5))
        step = next(step for step in steps if np.ptp(levels) / step <= MOST_LEVELS / 2)
        raise DataError(
            f"{len(levels)} different ratings, {levels[0]:g} to {levels[-1]:g}, are more than the {MOST_LEVELS} "
            f"that can have a token each; --vocabulary.rating-step {step:g} rounds them to multiples of {step:g}"
        )
    return list({f"{level:g}": float(level) for level in levels[::-1]}.values())[::-1]


def _extend(
    tokenizer: PreTrainedTokenizerBase | TrainedTokenizer, corpus: Corpus, rating_levels: Sequence[float],
    codes: ItemCodes | None, images: ImageCodes | None, categories: Sequence[str], *, base_size: int, round_to: int,
) -> Vocabulary:  # fmt: skip
    if base_size < table_size(tokenizer):
        raise DataError(
            f"base_size {base_size} is too small for the tokenizer, whose largest id is {table_size(tokenizer) - 1}: "
            f"vocabulary.base_size must be {table_size(tokenizer)} or more"
        )
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-sequence token, which the last answer of a prompt must end with")
    selections = [f"s_{number + 1}" for number in range(NUM_CANDIDATES)]
    ratings = [f"rate_{level:g}" for level in rating_levels]
    items = codes.tokens() if codes else [f"item_{item_id}" for item_id in corpus.item_ids]
    of_images = images.tokens() if images else []
    begin = ["<s>"] if tokenizer.bos_token_id is None else []
    known = tokenizer.get_added_vocab()
    of_categories = [f"category_{name}" for name in categories]
    names = [IMAGE, ANSWER, END_OF_CHUNK, *begin, *selections, *ratings, *items, *of_images, *of_categories]
    new = [name for name in names if name not in known]
    new += [f"<reserved_{number}>" for number in range(-len(new) % round_to)]
    ids = known | {name: base_size + number for number, name in enumerate(new)}

    def ids_of(names: Sequence[str]) -> np.ndarray:
        return np.array([ids[name] for name in names], np.int32)

    return Vocabulary(
        tokenizer=tokenizer,
        base_size=base_size,
        new_tokens=tuple(new),
        bos=ids["<s>"] if begin else tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        image=ids[IMAGE],
        image_marker=tuple(ids[name] for name in IMAGE_MARKER if name in {*known, IMAGE}),
        answer=ids[ANSWER],
        end_of_chunk=ids[END_OF_CHUNK],
        selections=ids_of(selections),
        rating_levels=tuple(rating_levels),
        ratings=ids_of(ratings),
        items=ids_of(items)[codes.token_numbers()] if codes else ids_of(items)[:, None],
        codes=ids_of(of_images),
        categories=dict(zip(categories, ids_of(of_categories).tolist(), strict=True)),
        item_codes=codes,
        image_codes=images,
    )


def load_vocabulary(folder: Path, corpus: Corpus) -> Vocabulary:
    """Loads the vocabulary written by `Vocabulary.save`, after checking that it matches the given catalogue."""
    try:
        saved = json.loads((folder / "new_tokens.json").read_text(encoding="utf-8"))
        tokenizer = read_saved_tokenizer(folder)
        new_tokens, levels, base_size = tuple(saved["new_tokens"]), saved["rating_levels"], saved["base_size"]
        has_codes = saved.get("item_codes", (folder / CODES).exists())
        has_images, categories = saved.get("image_codes", False), saved.get("categories", [])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: not a saved vocabulary ({str(error).splitlines()[0]})") from error
    codes = load_codes(folder / CODES, corpus.item_ids) if has_codes else None
    images = load_image_codes(folder / IMAGE_CODES, corpus.item_ids) if has_images else None
    vocabulary = _extend(tokenizer, corpus, levels, codes, images, categories, base_size=base_size, round_to=1)
    names = vocabulary.new_tokens
    if new_tokens[: len(names)] != names or not all(name.startswith("<reserved_") for name in new_tokens[len(names) :]):
        raise DataError(f"{folder} was made for another catalogue; prepare the same source again, or train a new run")
    return dataclasses.replace(vocabulary, new_tokens=new_tokens)
