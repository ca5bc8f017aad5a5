"""A file of images as codes: read as it was written, items without an image distinguished, mistakes named."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.image_codes import ImageCodes, load_image_codes, save_image_codes
from data_pipelines.item_codes import ItemCodes, save_codes

NAMES = ("film 1", "Œuvre", "", "x" * 40)
CODES = ImageCodes(NAMES, np.array([[0, 1, 0, 6, 6, 2], [-1] * 6, [0, 1, 0, 6, 6, 2], [5] * 6], np.int32), (3, 2), 7)


@st.composite
def catalogues(draw) -> ImageCodes:
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    names = draw(st.lists(texts, unique=True, min_size=1, max_size=8))
    height, width, size = (draw(st.integers(1, 5)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    codes = rng.integers(size, size=(len(names), height * width)).astype(np.int32)
    codes[rng.random(len(names)) < 0.3] = -1
    return ImageCodes(tuple(names), codes, (height, width), size)


@settings(max_examples=60, deadline=None)
@given(codes=catalogues(), data=st.data())
def test_what_is_written_is_read_in_the_order_that_is_asked_for(codes, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("codes") / "deep" / "images.parquet"
    save_image_codes(path, dataclasses.replace(codes, facts={"made of": "images"}))
    order = data.draw(st.permutations(range(len(codes.item_ids))))
    asked = order[: data.draw(st.integers(0, len(order)))]
    if asked and not codes.has_codes[asked].any():
        with pytest.raises(DataError, match="another catalogue"):
            load_image_codes(path, [codes.item_ids[item] for item in asked])
        return
    read = load_image_codes(path, [codes.item_ids[item] for item in asked])
    assert (read.grid, read.num_codes, read.facts) == (codes.grid, codes.num_codes, {"made of": "images"})
    assert read.item_ids == tuple(codes.item_ids[item] for item in asked)
    assert read.codes.dtype == np.int32
    np.testing.assert_array_equal(read.codes, codes.codes[asked])


def test_an_item_without_an_image_is_not_in_the_file_and_has_no_codes(tmp_path):
    path = tmp_path / "images.parquet"
    save_image_codes(path, dataclasses.replace(CODES, facts={"made by": "hand"}))
    assert pq.read_table(path)["item_id"].to_pylist() == [NAMES[0], *NAMES[2:]]
    assert json.loads(pq.read_schema(path).metadata[b"unimp.facts"]) == {"made by": "hand"}
    read = load_image_codes(path, ["new", *NAMES])
    np.testing.assert_array_equal(read.has_codes, [False, True, False, True, True])
    assert (read.codes[~read.has_codes] == -1).all()


def test_every_code_has_a_token_and_every_image_as_many_as_the_grid():
    assert CODES.tokens() == [f"img_{code}" for code in range(7)]
    assert CODES.codes_per_image == 6


@pytest.mark.parametrize(
    ("rows", "grid", "num_codes", "message"),
    [
        ([[0, 1], [1, 0]], (2, 2), 2, r"shape \(2, 2\); expected \[items, h \* w\] = \(2, 4\)"),
        ([[0, 1], [1, 0]], (1, 2), 1, "outside the codebook of 1 "),
        ([[0, 1], [1, -1]], (1, 2), 2, "outside the codebook of 2 "),
        ([[0, 1], [1, -2]], (1, 2), 2, "outside the codebook of 2 "),
        ([[], []], (0, 2), 2, "height and width must be at least 1"),
        ([[0, 1], [1, 0]], (2,), 2, "height and width must be at least 1"),
    ],
)
def test_codes_of_no_image_are_refused(rows, grid, num_codes, message):
    with pytest.raises(DataError, match=message):
        ImageCodes(("one", "other"), np.array(rows, np.int32), grid, num_codes)


def test_two_images_of_one_item_are_refused():
    with pytest.raises(DataError, match="two rows"):
        ImageCodes(("one", "one"), np.zeros((2, 1), np.int32), (1, 1), 2)


def test_a_file_that_is_missing_cut_or_of_another_kind_is_reported(tmp_path):
    path = tmp_path / "images.parquet"
    with pytest.raises(DataError, match=r"images.parquet does not exist; `unimp vqgan codes`"):
        load_image_codes(path, NAMES)
    save_image_codes(path, CODES)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"images.parquet: not a file of image codes"):
        load_image_codes(path, NAMES)
    save_codes(path, ItemCodes(NAMES, np.arange(4, dtype=np.int32)[:, None], (4,)))
    with pytest.raises(DataError, match=r"not a file of image codes \(the metadata lack the number of codes"):
        load_image_codes(path, NAMES)
