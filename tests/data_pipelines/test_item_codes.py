"""A file of semantic ids: read as it was written, whole or not at all, and named where it is wrong."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import code_files
from data_pipelines.errors import DataError
from data_pipelines.item_codes import ItemCodes, load_codes, save_codes

SIZES = b"unimp.sizes"
NAMES = ("film 1", "Œuvre", "", "x" * 40)
CODES = ItemCodes(NAMES, np.array([[0, 1, 0], [0, 1, 1], [2, 0, 0], [1, 4, 1]], np.int32), (3, 5, 2))


@st.composite
def catalogues(draw) -> ItemCodes:
    sizes = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    row = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    rows = draw(st.lists(row, unique=True, max_size=12))
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    names = draw(st.lists(texts, unique=True, min_size=len(rows), max_size=len(rows)))
    return ItemCodes(tuple(names), np.array(rows, np.int32).reshape(len(rows), len(sizes)), sizes)


@settings(max_examples=60, deadline=None)
@given(codes=catalogues(), data=st.data())
def test_what_is_written_is_read_in_the_order_that_is_asked_for(codes, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("codes") / "deep" / "ids.parquet"
    save_codes(path, codes, {"made of": "text"})
    order = data.draw(st.permutations(range(len(codes.item_ids))))
    asked = order[: data.draw(st.integers(0, len(order)))]  # the file may hold other items too
    read = load_codes(path, [codes.item_ids[item] for item in asked])
    assert read.item_ids == tuple(codes.item_ids[item] for item in asked)
    assert read.sizes == codes.sizes
    assert read.codes.dtype == np.int32
    np.testing.assert_array_equal(read.codes, codes.codes[asked])


def test_each_code_has_a_token_of_its_level():
    assert CODES.tokens() == ["<a_0>", "<a_1>", "<a_2>", "<b_0>", "<b_1>", "<b_2>", "<b_3>", "<b_4>", "<c_0>", "<c_1>"]
    names = np.array(CODES.tokens())[CODES.token_numbers()]
    assert names[3].tolist() == ["<a_1>", "<b_4>", "<c_1>"]


def test_no_token_is_that_of_a_candidate_however_many_levels_there_are():
    deep = ItemCodes(("one",), np.zeros((1, 25), np.int32), (4,) * 25)
    assert not {"s_1", "s_2", "s_3"} & set(deep.tokens())
    assert len(set(deep.tokens())) == 100


@pytest.mark.parametrize(
    ("rows", "sizes", "message"),
    [
        ([[0, 1], [1, 0]], (2, 2, 2), r"shape \(2, 2\); expected \[items, levels\] = \(2, 3\)"),
        ([[0, 1]], (2, 2), r"shape \(1, 2\); expected \[items, levels\] = \(2, 2\)"),
        ([[0, 1], [0, 1]], (2, 2), "two items have the same codes"),
        ([[0, 1], [0, 2]], (2, 2), r"outside the range of its level; the levels have \(2, 2\) codes"),
        ([[0, 1], [-1, 1]], (2, 2), "outside the range of its level"),
        ([[], []], (), "0 levels"),
        ([[0] * 27, [1] * 27], (2,) * 27, "27 levels"),
    ],
)
def test_codes_that_name_nothing_or_no_one_item_are_refused(rows, sizes, message):
    with pytest.raises(DataError, match=message):
        ItemCodes(("one", "other"), np.array(rows, np.int32), sizes)


def test_an_item_of_two_names_is_refused():
    with pytest.raises(DataError, match="two rows"):
        ItemCodes(("one", "one"), np.array([[0], [1]], np.int32), (2,))


def refused(path: Path, *words: str, item_ids=NAMES) -> None:
    """Reading says in one line which file is wrong, and how."""
    with pytest.raises(DataError) as caught:
        load_codes(path, item_ids)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def write(path: Path, rows: list, *, sizes: object = (3, 5, 2), names=NAMES, kind: pa.DataType | None = None) -> Path:
    """A file as `save_codes` would write it, were the codes not refused."""
    table = pa.table({"item_id": names, "codes": pa.array(rows, kind or pa.list_(pa.int32(), 3))})
    pq.write_table(table.replace_schema_metadata({SIZES: json.dumps(sizes)}), path)
    return path


ROWS = CODES.codes.tolist()


def test_the_file_that_the_mistakes_below_are_made_in_is_right(tmp_path):
    np.testing.assert_array_equal(load_codes(write(tmp_path / "ids", ROWS), NAMES).codes, CODES.codes)


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        ([ROWS[0], ROWS[0], *ROWS[2:]], {}, "two items have the same codes"),
        ([[3, 0, 0], *ROWS[1:]], {}, "(3, 5, 2)"),
        ([[0, -1, 0], *ROWS[1:]], {}, "(3, 5, 2)"),
        (ROWS, {"sizes": [3, 5]}, "codes"),
        (ROWS, {"sizes": 3}, "not a file of item codes"),
        (ROWS, {"sizes": ["many", 5, 2]}, "many"),
        (ROWS, {"names": (*NAMES[:3], NAMES[0])}, "two rows"),
        ([None, *ROWS[1:]], {}, "not a file of item codes"),
        ([[None, 0, 0], *ROWS[1:]], {}, "not a file of item codes"),
        (
            [row[: 3 + n] for n, row in zip((0, -1, 0, -2), ROWS, strict=True)],
            {"kind": pa.list_(pa.int32())},
            "it must be",
        ),
        (["abc"] * 4, {"kind": pa.string()}, "has type string"),
    ],
)
def test_wrong_codes_are_reported_with_the_file_they_stand_in(tmp_path, rows, changes, words):
    refused(write(tmp_path / "ids.parquet", rows, **changes), words)


def test_an_item_without_codes_is_reported_with_how_many_others_lack_them(tmp_path):
    save_codes(tmp_path / "ids.parquet", CODES)
    refused(tmp_path / "ids.parquet", "2 of the items", "'new'", item_ids=(*NAMES, "new", "newer"))


def test_a_missing_file_is_reported_with_the_command_that_makes_one(tmp_path):
    refused(tmp_path / "ids.parquet", "does not exist", "`unimp ids`")


def test_a_folder_is_no_file(tmp_path):
    refused(tmp_path)


@pytest.mark.parametrize("kept", [0, 3, 0.5, -1])
def test_a_truncated_file_is_reported(tmp_path, kept):
    path = tmp_path / "ids.parquet"
    save_codes(path, CODES)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    refused(path, "not a file of item codes")


def test_a_file_that_is_no_parquet_is_reported(tmp_path):
    (tmp_path / "ids.csv").write_text("item_id,codes\n" * 100)
    refused(tmp_path / "ids.csv", "not a file of item codes")


def test_parquet_of_something_else_is_reported(tmp_path):
    path = tmp_path / "ids.parquet"
    pq.write_table(pa.table({"item_id": NAMES, "codes": ROWS}), path)
    refused(path, "the metadata lack the number of codes of each level")
    for column in ("item_id", "codes"):
        table = pa.table({"item_id": NAMES, "codes": pa.array(ROWS, pa.list_(pa.int32(), 3))})
        pq.write_table(table.drop_columns(column).replace_schema_metadata({SIZES: json.dumps((3, 5, 2))}), path)
        refused(path, column)


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, 10_000), change=st.integers(1, 255))
def test_one_damaged_byte_is_reported_or_leaves_valid_codes(place, change, tmp_path_factory):
    path = tmp_path_factory.mktemp("codes") / "ids.parquet"
    save_codes(path, CODES)
    damaged = bytearray(path.read_bytes())
    damaged[place % len(damaged)] ^= change
    path.write_bytes(damaged)
    try:
        load_codes(path, NAMES)
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


def test_names_of_folders_are_not_taken_for_columns(tmp_path):
    path = tmp_path / "codes=8" / "item_id=3" / "ids.parquet"
    save_codes(path, CODES)
    np.testing.assert_array_equal(load_codes(path, NAMES).codes, CODES.codes)


@pytest.mark.parametrize("before", [None, b"what stood there"])
def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch, before):
    path = tmp_path / "ids.parquet"
    if before:
        path.write_bytes(before)

    def full(table: pa.Table, place: Path) -> None:
        Path(place).write_bytes(b"PAR1 and then")
        raise OSError("no space left on device")

    monkeypatch.setattr(code_files.pq, "write_table", full)
    with pytest.raises(OSError, match="no space"):
        save_codes(path, CODES)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_what_stood_there_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "ids.parquet"
    save_codes(path, ItemCodes(("other",), np.array([[0]], np.int32), (1,)))
    save_codes(path, CODES, {"method": "by hand"})
    assert list(tmp_path.iterdir()) == [path]
    assert load_codes(path, NAMES).sizes == CODES.sizes
    assert json.loads(pq.read_schema(path).metadata[b"unimp.facts"]) == {"method": "by hand"}
