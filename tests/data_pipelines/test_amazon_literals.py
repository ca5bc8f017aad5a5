"""Products of 2014 are Python literals: read as data, never run."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.sources.amazon_releases import LONGEST_LITERAL, from_literal
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.json_files import read_objects
from tests.data_pipelines.amazon_files import opened, product_2014, review_2014, write


def test_literals_have_their_escapes(tmp_path: Path) -> None:
    line = r"""{'asin': 'B1', 'title': 'It\'s "5\x22"\u00e9 \t\\ \d', "brand": "O'Neal", 'price': 1.50}"""
    (item,) = opened(write(tmp_path, "amazon_2014", [review_2014("U1", "B1")], [line]), "amazon_2014").items()
    assert dict(item.attributes) == {
        "Category": "All Beauty",
        "Price": "1.50",
        "Brand": "O'Neal",
        "Title": 'It\'s "5""\xe9 \\ \\d',
        "Description": "",
    }


NO_DATA = r"(not a Python literal \(|a (int|list) where a dictionary should be)"


@pytest.mark.parametrize(
    "hostile",
    [
        "__import__('os').system('touch MARK')",
        "{'asin': 'B1', 'title': __import__('os').system('touch MARK')}",
        "{'asin': 'B1', 'title': open('MARK', 'w')}",
        "[open('MARK', 'w') for _ in [1]]",
        "{**{}, 'asin': 'B1'}",
        'f\'{open("MARK", "w")}\'',
        "{'asin': 'B1', 'title': 'never closed}",
        "{'asin': 'B1'} {'asin': 'B2'}",
        "{[]: 1}",
        "{'asin': 'B1', 'price': " + "9" * 5000 + "}",
        '{"asin": "B1", "price": open("MARK", "w")}',
        "{'asin': '\0'}",
        "['B1']",
        "7",
        "[" * 100_000,
        "{'a':" * 150 + "1" + "}" * 149,
        "(" * 5000 + ")" * 5000,
        "-" * 100_000 + "1",
        "1" + "+1" * 100_000,
        "not " * 100_000 + "1",
        "{'asin': '" + "x" * LONGEST_LITERAL + "'}",
    ],
)
def test_a_line_that_is_no_data_is_named_and_not_run(
    hostile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    products = [product_2014("B1"), hostile, product_2014("B2")]
    folder = write(tmp_path / "source", "amazon_2014", [review_2014("U1", item) for item in ("B1", "B2")], products)
    with pytest.raises(DataError, match=f"^meta_All_Beauty.json.gz line 2: {NO_DATA}") as caught:
        opened(folder, "amazon_2014")
    assert len(str(caught.value)) < 300
    faults = Faults("skip")
    items = list(opened(folder, "amazon_2014", faults=faults).items())
    assert [item.title for item in items] == ["Thing B1", "Thing B2"]
    assert len(faults.records) == 1
    assert not (tmp_path / "MARK").exists()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=10,
)


@settings(max_examples=40)
@given(records=st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=5))
def test_what_python_writes_is_read_back(
    records: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("literals") / "meta.json"
    path.write_text("".join(f"{record!r}\n" for record in records), encoding="utf-8")
    found = read_objects(path, Faults(), dict, from_literal, needed=False)
    assert [record for _, record in found] == records
