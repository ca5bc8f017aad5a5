"""The second opening of a source tokenises nothing, and its tokens are those of the first."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.disk_cache import FOLDER
from data_pipelines.fingerprint import DATA_PARTS
from data_pipelines.plain_text import PlainText, shortened
from data_pipelines.prepare import prepare
from data_pipelines.vocabulary import attribute_texts
from experiments.config import DataConfig
from experiments.data import ExperimentData
from experiments.presets import PRESETS
from tests.experiments.tiny_run import experiment, prepare_source


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All texts that were."""
    said, encode = list[str](), PlainText.__call__

    def noting(self, texts):
        said.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(PlainText, "__call__", noting)
    return said


def tables(data: ExperimentData) -> dict[str, list[list[int]]]:
    texts = data.writer.texts
    names = ("attributes", "categories", "explanations")
    return {
        name: [table[row].tolist() for row in range(len(table.lengths))]
        for name in names
        for table in [getattr(texts, name)]
    }


def test_movielens_is_tokenised_once_and_token_for_token_as_each_text_is(tmp_path: Path, tokenised: list[str]) -> None:
    prepare("movielens_small", tmp_path / "data")
    config = PRESETS["small"]
    config = dataclasses.replace(config, data=DataConfig("movielens_small", tmp_path / "data"))
    data = ExperimentData.load(config)
    data.vocabulary.save(tmp_path / "run" / "vocabulary")
    data.save_fingerprint(tmp_path / "run")
    corpus, vocabulary = data.corpus, data.vocabulary
    first = tables(data)
    assert first["attributes"] == [vocabulary.encode(t).tolist() for t in attribute_texts(corpus, config.vocabulary)]
    assert first["categories"] == [vocabulary.encode_query(words) for words in corpus.categories]
    words, most = config.tasks.explanation_words, config.row_shape.answers - 2
    assert first["explanations"] == [
        vocabulary.encode(shortened(t, words)).tolist()[:most] for t in corpus.texts.values()
    ]
    assert {*attribute_texts(corpus, config.vocabulary)} <= {*tokenised}
    tokenised.clear()
    again = ExperimentData.load(config, tmp_path / "run" / "vocabulary", same=DATA_PARTS)
    assert {*tokenised} <= {"a"}  # by which it is found whether texts begin with a blank
    assert tables(again) == first
    other = dataclasses.replace(config, vocabulary=dataclasses.replace(config.vocabulary, attribute_words=3))
    other_data = ExperimentData.load(other, tmp_path / "run" / "vocabulary")
    assert {*attribute_texts(corpus, other.vocabulary)} <= {*tokenised}
    assert tables(other_data)["attributes"] != first["attributes"]


def test_cold_items_records_without_columns_and_a_new_preparation_have_their_own(
    tmp_path: Path, tokenised: list[str]
) -> None:
    folder = prepare_source(tmp_path)
    config = experiment(folder)
    data = ExperimentData.load(config)
    cold = dataclasses.replace(config, data=dataclasses.replace(config.data, cold_items=0.3))
    there = [*ExperimentData.load(cold).corpus.item_ids]
    numbers = [data.corpus.item_ids.index(item_id) for item_id in there]
    cached = ExperimentData.load(cold, None).writer.texts.attributes
    vocabulary = ExperimentData.load(cold).vocabulary
    right = [vocabulary.encode(attribute_texts(data.corpus, config.vocabulary)[number]) for number in numbers]
    for row, tokens in enumerate(right):
        np.testing.assert_array_equal(cached[row], tokens)
    assert [*(folder / "movielens_small" / FOLDER).glob("[!.]*")]
    prepare("movielens_small", folder, tmp_path / "source")  # what is kept does not stand in its way
    assert not (folder / "movielens_small" / FOLDER).exists()
