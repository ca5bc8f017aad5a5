"""Tokens of a catalogue: distinct, complete, and the same after saving and loading."""

import dataclasses
import time

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from data_pipelines.errors import DataError
from data_pipelines.plain_text import read_tokenizer
from data_pipelines.tasks.prompt import prompt_texts
from data_pipelines.trained_tokenizer import TrainedTokenizer, read_trained_tokenizer, train_tokenizer
from data_pipelines.vocabulary import (
    FAKE,
    VocabularyConfig,
    attribute_texts,
    build_vocabulary,
    load_vocabulary,
)
from tests.data_pipelines.small import small_corpus, small_vocabulary

CORPUS = small_corpus()
VOCABULARY = small_vocabulary(CORPUS, images=True)


def test_no_two_things_share_a_token():
    ids = [
        VOCABULARY.image, VOCABULARY.answer, VOCABULARY.end_of_chunk, VOCABULARY.bos, VOCABULARY.eos,
        *VOCABULARY.selections, *VOCABULARY.ratings, *VOCABULARY.items[:, 0], *VOCABULARY.codes,
    ]  # fmt: skip
    assert len(set(ids)) == len(ids)
    assert max(ids) < VOCABULARY.size
    assert VOCABULARY.base_size % 8 == len(VOCABULARY.new_tokens) % 8 == 0


def test_names_stand_at_their_ids():
    tokens = [*VOCABULARY.items[3], VOCABULARY.ratings[0], VOCABULARY.selections[2]]
    assert VOCABULARY.decode(tokens) == f"item_i3 rate_{VOCABULARY.rating_levels[0]:g} s_3"


def test_decoding_takes_no_longer_for_more_items(monkeypatch):
    asked = []
    monkeypatch.setattr(TrainedTokenizer, "all_special_ids", property(lambda self: asked.append(self) or [0, 1, 2]))
    loaded = TrainedTokenizer(VOCABULARY.tokenizer.backend_tokenizer, VOCABULARY.tokenizer.special_tokens_map)
    many = dataclasses.replace(VOCABULARY, tokenizer=loaded)
    assert many.decode([*VOCABULARY.encode("a b"), VOCABULARY.items[0, 0], VOCABULARY.answer]) == "a b item_i0 <answer>"
    assert len(asked) == 1


def test_a_query_of_many_commas_is_split_at_once():
    known = dataclasses.replace(VOCABULARY, categories={"Arts, Crafts & Sewing": 5})
    start = time.process_time()
    assert known.split_query("a, arts,crafts & sewing," * 1000) == ["a", "arts, crafts & sewing"] * 1000
    assert time.process_time() - start < 1


def test_no_text_is_unknown_to_a_trained_tokenizer():
    text = " Ünheard 漢字 🎬"
    assert VOCABULARY.tokenizer.decode(VOCABULARY.encode(text)) == text


def test_ratings_go_to_the_nearest_level():
    assert [VOCABULARY.rating_levels[n] for n in VOCABULARY.nearest_levels(np.array([0.1, 3.3, 9]))] == [0.5, 3.5, 5.0]


def test_saving_and_loading_change_nothing(tmp_path):
    VOCABULARY.save(tmp_path)
    loaded = load_vocabulary(tmp_path, CORPUS)
    assert loaded.new_tokens == VOCABULARY.new_tokens
    np.testing.assert_array_equal(loaded.items, VOCABULARY.items)
    for text in attribute_texts(CORPUS, VocabularyConfig()):
        np.testing.assert_array_equal(loaded.encode(text), VOCABULARY.encode(text))


def test_a_trained_tokenizer_is_read_as_transformers_reads_it(tmp_path):
    VOCABULARY.save(tmp_path)
    ours, theirs = read_trained_tokenizer(tmp_path), read_tokenizer(str(tmp_path))
    assert isinstance(load_vocabulary(tmp_path, CORPUS).tokenizer, TrainedTokenizer)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "added_tokens_decoder"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert dict(zip(ours.all_special_ids, ours.all_special_tokens, strict=True)) == dict(
        zip(theirs.all_special_ids, theirs.all_special_tokens, strict=True)
    )
    assert (ours.get_vocab(), ours.get_added_vocab()) == (theirs.get_vocab(), theirs.get_added_vocab())
    for text in [
        "",
        "A blue <s> House</s>, \u00fcnheard",
        *prompt_texts(images=True),
        *attribute_texts(CORPUS, VocabularyConfig()),
    ]:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours(text, add_special_tokens=False)["input_ids"] == ids
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
        assert ours.decode(ids) == theirs.decode(ids)
    ours.save_pretrained(tmp_path / "again")
    again = read_trained_tokenizer(tmp_path / "again")
    assert again.backend_tokenizer.to_str() == ours.backend_tokenizer.to_str()


def test_a_tokenizer_of_another_kind_is_left_to_transformers(tmp_path):
    tokenizer = train_tokenizer(["some words"], 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(tmp_path)
    assert read_trained_tokenizer(tmp_path) is None


def test_a_vocabulary_of_another_catalogue_is_refused(tmp_path):
    VOCABULARY.save(tmp_path)
    with pytest.raises(DataError, match="another catalogue"):
        load_vocabulary(tmp_path, small_corpus(num_items=41))


def test_training_a_tokenizer_twice_gives_the_same():
    again = small_vocabulary(CORPUS, images=True)
    assert again.tokenizer.get_vocab() == VOCABULARY.tokenizer.get_vocab()


def test_a_pretrained_tokenizer_is_taken_and_its_padding_rows_kept(tmp_path):
    VOCABULARY.tokenizer.save_pretrained(tmp_path)
    config = VocabularyConfig(tokenizer=str(tmp_path), base_size=512)
    vocabulary = build_vocabulary(CORPUS, config)
    assert vocabulary.base_size == vocabulary.image == 512
    np.testing.assert_array_equal(vocabulary.encode("Blue House"), VOCABULARY.encode("Blue House"))


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        build_vocabulary(CORPUS, VocabularyConfig(tokenizer=str(tmp_path / "nowhere")))


def test_attributes_are_cut_named_and_never_empty():
    config = VocabularyConfig(attribute_words=2, attributes=("Title",))
    for item, text in enumerate(attribute_texts(CORPUS, config)):
        assert text == " ".join(["Title", *CORPUS.titles[item].split()[:2]])
    empty = next(i for i in range(CORPUS.num_items) if not CORPUS.categories[i])
    assert attribute_texts(CORPUS, VocabularyConfig())[empty].startswith("Genres Unknown Title ")
    with pytest.raises(DataError, match="'Colour' is not in this source; it has Genres, Title"):
        attribute_texts(CORPUS, dataclasses.replace(config, attributes=("Colour",)))


def test_categories_can_be_shown_of_every_source():
    config = VocabularyConfig(attributes=("Category", "Title"), attribute_words=3)
    shown = attribute_texts(CORPUS, config)
    for text, categories, title in zip(shown, CORPUS.categories, CORPUS.titles, strict=True):
        words = " ".join(", ".join(categories).split()[:3]) or "Unknown"
        assert text == f"Category {words} Title {' '.join(title.split()[:3])}"
    own = dataclasses.replace(CORPUS, attributes=[(("Category", "Films"),)] * CORPUS.num_items)
    assert set(attribute_texts(own, dataclasses.replace(config, attributes=("Category",)))) == {"Category Films"}


def test_tokens_that_a_tokenizer_has_keep_their_ids(tmp_path):
    """OpenFlamingo's and Idefics' tokenizers know <image>; Idefics' puts two others around it."""
    corpus = small_corpus()
    tokenizer = train_tokenizer(["some words"], 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", FAKE, f"item_{corpus.item_ids[3]}"]})
    tokenizer.save_pretrained(tmp_path)
    config = VocabularyConfig(tokenizer=str(tmp_path), round_to=8)
    vocabulary = build_vocabulary(corpus, config)
    image, fake, item = len(tokenizer) - 3, len(tokenizer) - 2, len(tokenizer) - 1
    assert (vocabulary.image, vocabulary.image_marker) == (image, (fake, image, fake))
    assert vocabulary.items[3, 0] == item
    assert "<image>" not in vocabulary.new_tokens
    assert len({vocabulary.answer, vocabulary.end_of_chunk, *vocabulary.items[:, 0].tolist()}) == 2 + corpus.num_items
    vocabulary.save(tmp_path / "saved")
    again = load_vocabulary(tmp_path / "saved", corpus)
    assert again.new_tokens == vocabulary.new_tokens
    np.testing.assert_array_equal(again.items, vocabulary.items)


@pytest.mark.parametrize("prefix", [True, False])
def test_a_text_behind_another_begins_with_a_blank(prefix, tmp_path):
    """Tokenizers that begin every text with a blank need none; others, as SmolLM2's, would glue words together."""
    tokenizer = train_tokenizer(["Query: Action films"], 300)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.save_pretrained(tmp_path)
    vocabulary = build_vocabulary(small_corpus(), VocabularyConfig(tokenizer=str(tmp_path)))
    tokens = [*vocabulary.encode("Query:"), *vocabulary.encode(vocabulary.space + "Action")]
    assert vocabulary.text(tokens).strip() == "Query: Action"
