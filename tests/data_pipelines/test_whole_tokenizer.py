"""A tokenizer with all tokens of a vocabulary gives the tokens that prompts are written in."""

import pytest
from transformers import AutoTokenizer

from data_pipelines.tasks import TASKS
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.queries import held_out_queries
from data_pipelines.vocabulary import FAKE, IMAGE, IMAGE_MARKER
from data_pipelines.whole_tokenizer import whole_tokenizer
from tests.data_pipelines.small import small_corpus, small_vocabulary, small_writer

CORPUS = small_corpus()
VOCABULARY = small_vocabulary(CORPUS, images=True)
WRITER = small_writer(CORPUS, VOCABULARY, TaskConfig(full_items=2, id_items=8), RowShape(512, 16, 128))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """As a stranger loads it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    whole_tokenizer(VOCABULARY).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("task", TASKS)
def test_prompts_have_the_same_tokens(task, tokenizer):
    queries = held_out_queries(CORPUS, "test", task, VOCABULARY.image_codes.has_codes)[:20]
    assert queries
    for query in queries:
        tokens = WRITER.write(query, ask=task != "image").tokens
        tokens = tokens[tokens != VOCABULARY.eos]  # of an image, which is reported in tokens of its own
        text = VOCABULARY.text(tokens)
        with_fakes = text.replace(IMAGE, FAKE + IMAGE + FAKE)
        as_in_smolvlm = text.replace(IMAGE, "".join(IMAGE_MARKER))
        with_blanks = VOCABULARY.decode(tokens).replace("<s> ", "<s>")
        for written in (text, with_fakes, as_in_smolvlm, with_blanks):
            assert tokenizer(written, add_special_tokens=False)["input_ids"] == tokens.tolist()


def test_new_tokens_have_their_ids(tokenizer):
    assert len(tokenizer) == VOCABULARY.size
    ids = tokenizer.convert_tokens_to_ids(list(VOCABULARY.new_tokens))
    assert ids == list(range(VOCABULARY.base_size, VOCABULARY.size))


def test_the_vocabulary_itself_is_left_alone(tokenizer):
    assert len(VOCABULARY.tokenizer) < VOCABULARY.base_size
