"""Items that a run was not trained on: known by their content alone, recommended and met like all others."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.code_files import write_rows
from data_pipelines.content import ContentConfig, build_content
from data_pipelines.corpus import with_items
from data_pipelines.errors import DataError
from data_pipelines.item_vectors import read_vectors
from data_pipelines.schema import Item
from experiments.config import load_config
from experiments.evals.config import GenerateConfig
from experiments.export import ExportConfig, export_run
from experiments.generate import generate
from experiments.new_items import read_new_items
from experiments.parameters import abstract_parameters, restore_parameters
from experiments.run import open_to_ask
from tests.data_pipelines.small import image, semantic_vocabulary, small_corpus, small_vocabulary
from tests.experiments.test_export import IDEFICS
from tests.experiments.tiny_run import UNCUT, experiment, prepare_source
from tests.experiments.untrained_run import write_run
from unimp_jax.sharding import MeshConfig, make_mesh

MESH = MeshConfig(data=-1)
NEW = [
    {"item_id": "new 1", "title": "Fresh", "attributes": {"Title": "Fresh"}, "categories": ["Drama"], "image": "a.png"},
    {"item_id": 900, "title": "Also fresh"},
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """(a run with content that was never trained, a file of new items)"""
    folder = tmp_path_factory.mktemp("new")
    data = prepare_source(folder)
    rng = np.random.default_rng(0)
    write_rows(
        folder / "v.parquet", [*map(str, range(1, 31)), "new 1"], "vector", rng.normal(size=(31, 6)).astype(np.float32)
    )
    content = ContentConfig(
        attributes=("Category",), least_items=1, popularity=True, rating=True, vectors=(folder / "v.parquet",)
    )
    model = dataclasses.replace(IDEFICS, decoder=dataclasses.replace(IDEFICS.decoder, free_row_dropout=0.3))
    write_run(experiment(data, model=model, content=content, row_shape=UNCUT), folder / "run", scale=1.5)
    (folder / "a.png").write_bytes(image(7))
    file = folder / "items.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in NEW))
    return folder / "run", file


def ask(run, history, **fields):
    options = GenerateConfig(json=True, unfiltered=True, **fields)
    return json.loads(generate(run, options, lambda: json.dumps({"history": history})))


def test_new_items_are_recommended_and_nothing_else_changes(places):
    run, file = places
    before = {item["item"]: item["probability"] for item in ask(run, ["1", "2"], k=30)["items"]}
    found = ask(run, ["1", "2"], k=32, new_items=file)["items"]
    after = {item["item"]: item["probability"] for item in found}
    assert set(after) - set(before) == {"new 1", "900"}
    assert {item["title"] for item in found if item["item"] not in before} == {"Fresh", "Also fresh"}
    ratios = np.array([after[item] / before[item] for item in before])
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-3)
    assert ratios[0] < 1


@pytest.mark.slow
def test_new_items_can_be_in_the_history_and_in_parquet(places, tmp_path):
    run, file = places
    rows = [item | {"item_id": str(item["item_id"])} for item in NEW]
    rows[0] = rows[0] | {"image": str(file.parent / "a.png"), "attributes": {"Title": "Fresh"}}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet")
    answers = [ask(run, ["1", "new 1", "900"], new_items=path) for path in (file, tmp_path / "items.parquet")]
    assert answers[0] == answers[1]
    assert [item["title"] for item in answers[0]["history"]["latest"]][1:] == ["Fresh", "Also fresh"]
    assert answers[0]["items"] != ask(run, ["1", "2", "3"], new_items=file)["items"]


def test_a_new_row_is_the_projection_of_the_content(places):
    run, file = places
    data, open_model = open_to_ask(run, "latest", new_items=file, mesh=MESH)
    plain, open_plain = open_to_ask(run, "latest", mesh=MESH)
    rows, known_rows = (np.asarray(model().model().embeddings.new[...]) for model in (open_model, open_plain))
    np.testing.assert_array_equal(rows[:-2], known_rows)
    np.testing.assert_array_equal(
        data.vocabulary.items[-2:, 0] - data.vocabulary.base_size, [len(rows) - 2, len(rows) - 1]
    )
    assert data.has_image[-2:].tolist() == [True, False]
    np.testing.assert_array_equal(data.content[:-2], plain.content)
    state = load_config(run / "config.json")
    parameters, _ = restore_parameters(run, "latest", abstract_parameters(state, make_mesh(MESH)), state.checkpoint)
    projection = np.asarray(parameters.trainable["embeddings"]["projection"][...])
    np.testing.assert_allclose(rows[-2:], data.content[-2:] @ projection, rtol=1e-4, atol=1e-5)
    assert not data.content[-2:, -4:].any()  # nobody has met or rated them
    assert data.content[-2:].any(axis=1)[0]


def test_features_of_new_items_are_made_of_the_known_ones(tmp_path):
    corpus = small_corpus()
    write_rows(
        tmp_path / "v.parquet",
        [*corpus.item_ids, "known to the file"],
        "vector",
        np.random.default_rng(0).normal(size=(41, 9)).astype(np.float32),
    )
    config = ContentConfig(
        ("Category",), 1, popularity=True, rating=True, vectors=(tmp_path / "v.parquet",), components=5
    )
    twin = next(n for n, names in enumerate(corpus.categories) if names)
    items = [
        Item("twin", "Twin", categories=corpus.categories[twin]),
        Item("known to the file", "Known"),
        Item("odd", "Odd", categories=("Unheard of",)),
    ]
    whole = build_content(with_items(corpus, items), config, corpus.num_items)
    known = build_content(corpus, config)
    np.testing.assert_array_equal(whole.items[:40], known.items)
    columns = len(known.categories)
    np.testing.assert_array_equal(whole.items[40, :columns], known.items[twin, :columns])
    assert not whole.items[41:, :columns].any()
    assert not whole.items[40:, -config.interaction_features :].any()
    np.testing.assert_allclose(whole.items[[40, 42], columns : columns + 5], 0, atol=1e-5)  # the mean of the known
    assert np.abs(whole.items[41, columns : columns + 5]).max() > 0.1
    assert len(read_vectors(tmp_path / "v.parquet", ["odd", *corpus.item_ids])) == 41


def test_new_tokens_stand_behind_all_others():
    corpus = small_corpus()
    before = small_vocabulary(corpus, images=True)
    after = before.with_items(["x", "y"])
    assert after.new_tokens == (*before.new_tokens, "item_x", "item_y")
    assert after.items[:, 0].tolist() == [*before.items[:, 0].tolist(), before.size, before.size + 1]
    assert after.image_codes.has_codes.tolist() == [*before.image_codes.has_codes.tolist(), False, False]
    assert after.decode(after.items[-1]) == "item_y"
    with pytest.raises(DataError, match=r"names items by several codes .* use a run with one token per item"):
        semantic_vocabulary(corpus).with_items(["x"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"title": "x"}', "line 1: field 'item_id' is missing"),
        ('{"item_id": "i3"}', "line 1: item 'i3' is already in the catalogue or in this file"),
        ('{"item_id": "x"}\n\n{"item_id": "x"}', "line 3: item 'x' is already in the catalogue or in this file"),
        ('{"item_id": "x", "name": "y"}', "line 1: there is no field 'name'"),
        ('{"item_id": "x", "attributes": {"Genre": "y"}}', "line 1: no attribute 'Genre' .* did you mean 'Genres'"),
        ('{"item_id": "x", "attributes": {"Genres": 3}}', "line 1: attribute 'Genres' is 3; it must be a string"),
        ('{"item_id": "x", "attributes": [1]}', "line 1: field 'attributes' is .1.; it must be an object of texts"),
        ('{"item_id": "x", "attributes": [["Genres"]]}', "line 1: field 'attributes' is .* must be an object of texts"),
        ('{"item_id": "x", "categories": "y"}', "line 1: field 'categories' is"),
        ('{"item_id": "x", "image": "none.png"}', "line 1: image 'none.png' cannot be read .No such file"),
        ('{"item_id": "x", "image": "items.jsonl"}', "line 1: image 'items.jsonl' cannot be read"),
        ("[1]", "line 1: a list instead of an object"),
        ('{"item_id": ', "line 1: not JSON"),
        ("", "is empty; at least one item is needed"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_by_line_and_field(tmp_path, content, says):
    (tmp_path / "items.jsonl").write_text(content)
    with pytest.raises(DataError, match=f"items.jsonl.*{says}"):
        read_new_items(tmp_path / "items.jsonl", small_corpus())


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet", "bad.parquet"])
def test_files_that_cannot_be_read_are_named(tmp_path, name):
    (tmp_path / "bad.parquet").write_text("item_id\n")
    with pytest.raises(DataError, match=name):
        read_new_items(tmp_path / name, small_corpus())


def test_exports_free_rows_and_other_features_are_refused(places, tmp_path):
    run, file = places
    export_run(run, tmp_path / "exported", ExportConfig())
    with pytest.raises(
        DataError, match=r"exported is an export, .* --new-items needs the folder of a run with content"
    ):
        ask(tmp_path / "exported", ["1"], new_items=file)
    vectors = np.random.default_rng(1).normal(size=(31, 6)).astype(np.float32)
    kept = (run.parent / "v.parquet").read_bytes()
    write_rows(run.parent / "v.parquet", [*map(str, range(1, 31)), "new 1"], "vector", vectors)
    try:
        with pytest.raises(
            DataError, match=r"a file of content.vectors, or the version that computes them, has changed"
        ):
            ask(run, ["1"], new_items=file)
    finally:
        (run.parent / "v.parquet").write_bytes(kept)
