"""Tokens and digests that are kept are those that are made, are made once, and anew where they are damaged."""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.columns import FOLDER as COLUMNS
from data_pipelines.columns import read_columns, write_columns
from data_pipelines.corpus import Corpus
from data_pipelines.disk_cache import ABOUT, MOST, DiskCache
from data_pipelines.fingerprint import fingerprint
from data_pipelines.plain_text import shortened
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.tasks import token_tables
from data_pipelines.tasks.examples import Ragged
from data_pipelines.tasks.texts import PromptTexts
from data_pipelines.tasks.token_tables import tokenised
from data_pipelines.vocabulary import (
    Vocabulary,
    VocabularyConfig,
    attribute_texts,
    build_vocabulary,
    load_vocabulary,
)
from tests.data_pipelines.small import small_corpus, small_vocabulary

ODD = [
    "",
    " ",
    "\t\n\x00",
    "</s> <image> <answer>",
    "漢字 🎬 é e\u0301",
    "\ufeff\u200b\u202e",
    "x" * 3000,
    "item_i0",
    "a\r\nb",
]


def odd_records() -> tuple[list[Item], list[User]]:
    """Items and reviews of odd strings."""
    items = [
        Item(f"i{n}", text, (("Title", text), (text or "-", "y" * n)), (text, "b,c")) for n, text in enumerate(ODD)
    ]
    met = tuple(
        Interaction(item.item_id, at, 4.0, text) for at, (item, text) in enumerate(zip(items, ODD, strict=True))
    )
    return items, [User("u", met), User("v", met[2:5])]


def texts_of(
    corpus: Corpus, vocabulary: Vocabulary, cache: DiskCache = DiskCache(), *, words: int = 20, cut: int = 9
) -> PromptTexts:
    return PromptTexts(
        corpus,
        vocabulary,
        attributes=attribute_texts(corpus, VocabularyConfig(attribute_words=words)),
        has_image=np.zeros(corpus.num_items, bool),
        explanation_words=5,
        explanation_tokens=cut,
        show_ids=False,
        cache=cache.of(words),
    )


def rows(table: Ragged) -> list[list[int]]:
    return [table[row].tolist() for row in range(len(table.lengths))]


@pytest.mark.parametrize("category_items", [0, 1])
@pytest.mark.parametrize("batch", [1, 4, 10_000])
def test_kept_tokens_are_those_of_each_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, category_items, batch
) -> None:
    monkeypatch.setattr(token_tables, "BATCH", batch)
    write_columns(*odd_records(), tmp_path / COLUMNS)
    corpus = read_columns(tmp_path / COLUMNS)[0]
    vocabulary = build_vocabulary(corpus, VocabularyConfig(trained_size=400, category_items=category_items))
    alone = [vocabulary.encode(text).tolist() for text in attribute_texts(corpus, VocabularyConfig())]
    reviews = [vocabulary.encode(shortened(text, 5)).tolist()[:9] for text in ODD + ODD[2:5] if text]
    if category_items:
        categories = [vocabulary.encode_query(words) for words in corpus.categories]
    else:
        said = (vocabulary.space + shortened(", ".join(words)) for words in corpus.categories)
        categories = [vocabulary.encode(text).tolist() for text in said]
    for cache in (DiskCache(), DiskCache((tmp_path / "cache",)), DiskCache((tmp_path / "cache",))):
        texts = texts_of(corpus, vocabulary, cache)
        for table, right in ((texts.attributes, alone), (texts.categories, categories), (texts.explanations, reviews)):
            assert rows(table) == right
            assert table[-1].tolist() == []
            assert table.lengths.tolist() == [len(row) for row in right]
            assert table.lengths_of(np.array([0, -1])).tolist() == [len(right[0]), 0]
    assert isinstance(texts.attributes[0].base.base, np.memmap)


def written(texts: list[str], cache: DiskCache, calls: list[Sequence[str]] | None = None) -> list[list[int]]:
    """Rows of the letters of texts."""

    def encode(batch: Sequence[str]) -> list[list[int]]:
        if calls is not None:
            calls.append(batch)
        return [[ord(letter) for letter in text] for text in batch]

    return rows(tokenised(texts, encode, cache))


def test_what_determines_tokens_tells_them_apart(tmp_path: Path) -> None:
    corpus, cache = small_corpus(), DiskCache((tmp_path,))
    vocabulary = small_vocabulary(corpus)

    def folders() -> int:
        return len([*tmp_path.glob("[!.]*")])

    texts_of(corpus, vocabulary, cache)
    assert folders() == 3
    texts_of(corpus, vocabulary, cache)
    assert folders() == 3
    texts_of(corpus, vocabulary, cache, cut=3)
    assert folders() == 4
    texts_of(corpus, vocabulary, cache.of("another catalogue"))
    assert folders() == 7
    other = build_vocabulary(corpus, VocabularyConfig(trained_size=390))
    assert other.tokenizer_digest != vocabulary.tokenizer_digest
    assert rows(texts_of(corpus, other, cache).attributes) == rows(texts_of(corpus, other).attributes)
    assert folders() == 10
    with_names = build_vocabulary(corpus, VocabularyConfig(trained_size=390, category_items=1))
    assert rows(texts_of(corpus, with_names, cache).categories) == rows(texts_of(corpus, with_names).categories)
    assert folders() == 11


def test_a_saved_vocabulary_has_the_digest_of_the_one_that_was_built(tmp_path: Path) -> None:
    corpus = small_corpus()
    vocabulary = small_vocabulary(corpus)
    vocabulary.save(tmp_path / "vocabulary")
    assert load_vocabulary(tmp_path / "vocabulary", corpus).tokenizer_digest == vocabulary.tokenizer_digest


@pytest.mark.parametrize("name", ["tokens.bin", "lengths.bin", "offsets.bin", ABOUT])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "changed", "foreign"])
def test_what_is_damaged_is_made_anew(tmp_path: Path, name: str, damage: str) -> None:
    texts, cache, calls = ["ab", "", "c"], DiskCache((tmp_path / "cache",)), list[Sequence[str]]()
    right = written(texts, cache, calls)
    (folder,) = (tmp_path / "cache").glob("[!.]*")
    whole = (folder / name).read_bytes()
    if damage == "missing":
        (folder / name).unlink()
    elif damage == "foreign":
        written(["d", "efgh"], DiskCache((tmp_path / "other",)).of("other"))
        (other,) = (tmp_path / "other").glob("[!.]*")
        shutil.copy(other / name, folder / name)
    elif damage == "changed":
        (folder / name).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    else:
        (folder / name).write_bytes(whole[: 0 if damage == "empty" else len(whole) // 2])
    assert written(texts, cache, calls) == right
    assert len(calls) == 2
    assert (folder / name).read_bytes() == whole
    assert written(texts, cache, calls) == right
    assert len(calls) == 2


def killed(place: Path) -> None:
    """Dies when half is written."""

    def encode(batch: Sequence[str]) -> list[list[int]]:
        if "c" in batch:
            os.kill(os.getpid(), signal.SIGKILL)
        return [[1] for _ in batch]

    token_tables.BATCH = 1
    tokenised(["ab", "", "c"], encode, DiskCache((place,)))


def test_a_killed_writer_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path.name[0] for path in tmp_path.iterdir()] == [".", "."]  # the lock, and what was begun
    assert written(["ab", "", "c"], DiskCache((tmp_path,))) == [[97, 98], [], [99]]
    assert not [*tmp_path.glob(".*.partial")]


def test_of_several_that_begin_at_once_one_makes_it(tmp_path: Path) -> None:
    calls, found = list[Sequence[str]](), list[list[list[int]]]()
    threads = [
        threading.Thread(target=lambda: found.append(written(["ab"] * 1000, DiskCache((tmp_path,)), calls)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[[97, 98]] * 1000] * 8
    assert len(calls) == 1


def test_where_one_place_cannot_be_written_the_next_takes_it_and_else_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache, calls = DiskCache((tmp_path / "file", tmp_path / "next")), list[Sequence[str]]()
    for _ in range(2):
        assert written(["ab"], cache, calls) == [[97, 98]]
    assert len(calls) == 1
    nowhere = dataclasses.replace(cache, places=cache.places[:1])
    for _ in range(2):
        assert written(["ab"], nowhere, calls) == [[97, 98]]
        assert nowhere.value(lambda: calls.append(["made"]) or [3]) == [3]
    assert len(calls) == 5


def test_the_least_recently_used_entries_are_deleted(tmp_path: Path) -> None:
    """Not the ones that were written first, but those that were not read for longest."""
    cache = DiskCache((tmp_path,))
    for number in range(MOST):
        cache.of(number).value(lambda number=number: number)
        cache.of(0).value(lambda: pytest.fail("the first entry is used all the time"))
    assert cache.of(MOST).value(lambda: MOST) == MOST
    entries = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(entries) == MOST
    assert cache.of(0).value(lambda: -1) == 0
    assert cache.of(1).value(lambda: -1) == -1, "deleted, and made anew"


def test_a_fingerprint_is_the_same_where_parts_of_it_are_kept(tmp_path: Path) -> None:
    write_columns(*odd_records(), tmp_path / COLUMNS)
    corpus, has_image = read_columns(tmp_path / COLUMNS)
    prompts, cache = attribute_texts(corpus, VocabularyConfig()), DiskCache((tmp_path / "cache",))
    right = fingerprint(corpus, has_image, prompts)
    assert fingerprint(corpus, has_image, prompts, cache) == right
    unread = dataclasses.replace(corpus, titles=None, attributes=None, item_ids=range(corpus.num_items))
    assert fingerprint(unread, has_image, (), cache) == right
