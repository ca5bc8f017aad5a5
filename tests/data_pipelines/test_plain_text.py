"""Texts of the data: of bounded length, and plain text whatever they say, under tokenizers of every kind."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data_pipelines.errors import DataError
from data_pipelines.plain_text import PlainText, read_tokenizer, shortened, table_size, without_long_words
from data_pipelines.tasks.prompt import prompt_texts
from data_pipelines.trained_tokenizer import train_tokenizer
from data_pipelines.vocabulary import VocabularyConfig, attribute_texts, build_vocabulary
from data_pipelines.whole_tokenizer import whole_tokenizer
from tests.data_pipelines.small import small_corpus

CONTROLS = ["</s>", "<s>", "<pad>", "<image>", "<answer>", "<|endofchunk|>", "<|endoftext|>"]


def trained(*controls: AddedToken) -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(["some words of films </s> <image>"] * 9, 300, prompt_texts())
    tokenizer.add_tokens(list(controls))
    return tokenizer


def sentencepiece_bpe() -> PreTrainedTokenizerFast:
    """As Llama's: blanks are letters, control tokens are in the model's vocabulary, and it can build one by merging."""
    letters = [*"abcdefghijklmnopqrstuvwxyz</>|_▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = ["<unk>", "<s>", "</s>", *letters, "s>", "</"]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: id for id, piece in enumerate(pieces)}, [("s", ">"), ("<", "/"), ("</", "s>"), ("<", "s>")],
            unk_token="<unk>", byte_fallback=True, fuse_unk=True,
        )
    )  # fmt: skip
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.add_tokens([AddedToken("<image>", special=True)])
    return fast


def unigram() -> PreTrainedTokenizerFast:
    """As T5's: control tokens are pieces like others to the model, and the likeliest."""
    letters = [*"abcdefghijklmnopqrstuvwxyz,</>|_ŒŒ漢字▁"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -5.0) for letter in dict.fromkeys(letters))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def neox() -> PreTrainedTokenizerFast:
    """As GPT-NeoX's: one control token for all purposes in the model, another and runs of blanks behind it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: id for id, piece in enumerate(["<|endoftext|>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=end, bos_token=end, eos_token=end)
    fast.add_tokens([AddedToken("<pad>"), AddedToken("    ", normalized=True), AddedToken("  ", normalized=True)])
    return fast


TOKENIZERS = {
    "trained": trained(),
    "control tokens that do not say so": trained(*(AddedToken(text, special=False) for text in CONTROLS[3:])),
    "sentencepiece": sentencepiece_bpe(),
    "unigram": unigram(),
    "gpt-neox": neox(),
}


def control_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    return {id for id, token in tokenizer.added_tokens_decoder.items() if not str(token).isspace()} - {
        id for id in [tokenizer.unk_token_id] if id not in (tokenizer.eos_token_id, tokenizer.bos_token_id, None)
    }


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("control", CONTROLS)
def test_control_tokens_are_letters_like_any_others(name, control):
    tokenizer = TOKENIZERS[name]
    for text in (control, f"a film {control}", f"a{control}b", f"{control} {control}"):
        (tokens,) = PlainText(tokenizer)([text])
        assert not control_ids(tokenizer) & set(tokens)
        assert tokenizer.decode(tokens).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from([*CONTROLS, " ", "  ", "    ", "a", "film", "What", "Œ", "漢", "\x1b", "\n"])).map("".join)
)
def test_no_text_has_a_control_token(name, text):
    assert not control_ids(TOKENIZERS[name]) & set(PlainText(TOKENIZERS[name])([text])[0])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_other_texts_have_the_tokens_that_they_had(name):
    texts = ["a film", " of films", "a film  with    blanks", "Œuvre 漢字", "words, words", ""]
    before = TOKENIZERS[name](texts, add_special_tokens=False)["input_ids"]
    assert PlainText(TOKENIZERS[name])(texts) == before
    if name == "gpt-neox":
        assert before[2].count(len(TOKENIZERS[name]) - 1) == before[2].count(len(TOKENIZERS[name]) - 2) == 1


def test_what_prompts_say_stays_whole_and_what_items_say_does_not_become_it(tmp_path):
    TOKENIZERS["trained"].save_pretrained(tmp_path)
    vocabulary = build_vocabulary(small_corpus(), VocabularyConfig(tokenizer=str(tmp_path)))
    for phrase in prompt_texts():
        assert len(vocabulary.encode_phrase(phrase)) == 1
        assert len(vocabulary.encode(phrase)) > 1


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        (" two  words\nand more ", 2, "two words"),
        ("x" * 10**6, 5, "x" * 512),
        ("漢" * 1600, 20, "漢" * 640),
        ("word " * 10**6, 3, "word word word"),
        ("a b", 300, "a b"),
        ("y" * 9600, 200, "y" * 6400),
        ("  Kept,  as it is", None, "  Kept,  as it is"),
        ("x" * 10**6, None, "x" * 512),
        ("", 3, ""),
    ],
)
def test_a_text_is_cut_by_words_and_by_characters(text, words, expected):
    assert shortened(text, words) == expected


def test_long_words_are_cut_and_long_texts_are_not():
    text = "a review of many words " * 300
    assert without_long_words(text) == text
    assert without_long_words("a" * 10**6 + " b " + "\n" * 10**6 + "c") == "a" * 512 + " b " + "\n" * 511 + "c"


def test_a_megabyte_without_blanks_takes_no_time():
    corpus = small_corpus()
    corpus.titles[3] = "x" * 10**6
    corpus.attributes[3] = (("Genres", "漢" * 10**6), ("Title", corpus.titles[3]))
    corpus.categories[3] = ("y" * 10**6,)
    corpus.texts[0] = "z" * 10**6
    start = time.process_time()
    vocabulary = build_vocabulary(corpus, VocabularyConfig(trained_size=400))
    rows = vocabulary.encode_all(attribute_texts(corpus, VocabularyConfig()))
    assert time.process_time() - start < 5  # seconds; uncut it took the better part of an hour
    assert len(rows[3]) <= len("Genres Title") + 4 * 2 * 640


def with_a_gap(id: int = 900) -> PreTrainedTokenizerFast:
    vocabulary = {piece: number for number, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"e": id}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    vocabulary |= {"</s>": len(vocabulary)}
    tokenizer.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def test_ids_with_gaps_have_a_row_each(tmp_path):
    with_a_gap().save_pretrained(tmp_path)
    assert table_size(with_a_gap()) == 901
    corpus = small_corpus()
    vocabulary = build_vocabulary(corpus, VocabularyConfig(tokenizer=str(tmp_path), round_to=64))
    assert vocabulary.base_size == 960
    tokens = vocabulary.encode("these films")
    assert max(tokens) == 900
    with pytest.raises(DataError, match=r"base_size 576 is too small .* largest id is 900: .* must be 901 or more"):
        build_vocabulary(corpus, VocabularyConfig(tokenizer=str(tmp_path), base_size=576))
    whole = whole_tokenizer(vocabulary)
    assert whole.get_vocab()["e"] == 900
    assert len(whole) == vocabulary.size
    item = vocabulary.items[5, 0]
    text = vocabulary.text([*tokens, item])
    assert whole(text, add_special_tokens=False)["input_ids"] == [*tokens, item]


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    PreTrainedTokenizerFast(tokenizer_object=with_a_gap().backend_tokenizer).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="has no end-of-sequence token"):
        build_vocabulary(small_corpus(), VocabularyConfig(tokenizer=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", b"", "no tokenizer at"),
        ("tokenizer.json", b"{}", "no tokenizer at"),
        ("tokenizer.json", b'{"model": {"type": "Unheard of"}}', "no tokenizer at"),
        ("tokenizer.json", b"\xff\xfe\x00", "no tokenizer at"),
        ("tokenizer_config.json", b'{"tokenizer_class": "Nothing"}', "no tokenizer at"),
        ("tokenizer.model", b"\x0a\x0e\x0a\x05<unk>", "only a sentencepiece file"),
        ("README.md", b"", "no tokenizer at"),
    ],
)
def test_what_is_no_tokenizer_is_refused_in_one_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        read_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)
