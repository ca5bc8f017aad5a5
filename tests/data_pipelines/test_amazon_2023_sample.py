"""A sample of Amazon's reviews of 2023, a file of JSON lines."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.corpus import TEST, VALIDATION, build_corpus
from data_pipelines.errors import DataError
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.sources.amazon_reviews import Amazon2023Sample
from data_pipelines.sources.builder import RecordBuilder
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.source import Source
from tests.data_pipelines.small import START


def product(**changed: Any) -> dict[str, Any]:
    return {"title": "A drum", "brand": None, "price": None, "main_category": "Musical Instruments"} | changed


def review(asin: str, milliseconds: int = 1000, **changed: Any) -> dict[str, Any]:
    return {
        "parent_asin": asin,
        "rating": 4.0,
        "timestamp_ms": 1000 * START + milliseconds,
        "review_excerpt": "Fi",
        "review_full": "Fine.",
        "review_title": "good",
        "product": product(),
    } | changed


def line(history: Sequence[Any] | None, **changed: Any) -> str:
    return json.dumps({"user_id": "U1", "category": "Musical_Instruments", "history": history} | changed) + "\n"


def write_lines(folder: Path, *lines: str) -> Path:
    path = folder / "users.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def opened(builder: type[RecordBuilder], path: Path, faults: Faults | None) -> Source:
    return builder(config="items", data_dir="unused", source_dir=path.parent, faults=faults).open_source(None)


def sample(path: Path, faults: Faults | None = None) -> Source:
    return opened(Amazon2023Sample, path, faults)


def test_a_line_of_2023(tmp_path: Path) -> None:
    known = product(title="Drum  &amp; <b>Sticks</b>", brand="Pearl", price=19.5)
    history = [
        review("B2", 629826110674, review_full="One.<br /><br />Two &#34;three&#34;", product=known),
        review("B1", 629826110999, rating=1, review_full=" ", product=product(title=None, main_category=None)),
    ]
    path = write_lines(tmp_path, line(history, category="Arts_Crafts_and_Sewing"))
    title = "Drum & Sticks"
    assert list(sample(path).items()) == [
        Item(
            "B2",
            title,
            (("Category", "Musical Instruments"), ("Brand", "Pearl"), ("Price", "19.50"), ("Title", title)),
            ("Musical Instruments",),
        ),
        Item(
            "B1",
            "",
            (("Category", "Arts Crafts and Sewing"), ("Brand", ""), ("Price", ""), ("Title", "")),
            ("Arts Crafts and Sewing",),
        ),
    ]
    assert list(sample(path).users()) == [
        User(
            "U1/Arts_Crafts_and_Sewing",
            (
                Interaction("B2", 1629826110, 4.0, 'One. Two "three"'),
                Interaction("B1", 1629826110, 1.0, "good"),
            ),
        )
    ]


def test_a_user_is_a_user_in_each_category(tmp_path: Path) -> None:
    path = write_lines(tmp_path, line([review("B1")]), line([review("B2")], category="Software"))
    assert [user.user_id for user in sample(path).users()] == ["U1/Musical_Instruments", "U1/Software"]


def test_the_review_held_out_is_the_last(tmp_path: Path) -> None:
    history = [review(f"B{number}", 1000 * number) for number in (1, 2, 3)]
    path = write_lines(tmp_path, line(history, heldout=review("B9", 4000)), line([review("B1")], category="Software"))
    source = sample(path)
    assert [item.item_id for item in source.items()] == ["B1", "B2", "B3", "B9"]
    assert [one.item_id for one in next(source.users()).interactions] == ["B1", "B2", "B3", "B9"]
    corpus = build_corpus(source.items(), source.users())
    assert corpus.items[corpus.splits == TEST].tolist() == [3]
    assert corpus.items[corpus.splits == VALIDATION].tolist() == [2]


def test_of_an_item_shown_twice_the_first_stands_and_of_two_reviews_the_latest(tmp_path: Path) -> None:
    history = [review("B1", 1000), review("B2", 1000), review("B1", 2000, rating=2.0, product=product(title="Other"))]
    path = write_lines(tmp_path, line(history), line([review("B2", product=product(title="New"))], user_id="U2"))
    assert [(item.item_id, item.title) for item in sample(path).items()] == [("B1", "A drum"), ("B2", "A drum")]
    assert [(one.item_id, one.time, one.rating) for one in next(sample(path).users()).interactions] == [
        ("B2", START + 1, 4.0),
        ("B1", START + 2, 2.0),
    ]


@pytest.mark.parametrize(
    ("price", "text"), [(None, ""), (0.0, "0.00"), (7, "7.00"), (1234.5, "1234.50"), ("from\n 9.99", "from 9.99")]
)
def test_a_price_is_text(tmp_path: Path, price: Any, text: str) -> None:
    (item,) = sample(write_lines(tmp_path, line([review("B1", product=product(price=price))]))).items()
    assert dict(item.attributes)["Price"] == text


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line([review("B2")]), r"user U1/Musical_Instruments occurs twice"),
        (line([review("B2")], user_id=2), r"field 'user_id' is 2, a int; it must be str"),
        (line([review("B2")], category="two words"), r"field 'category' is 'two words'; it must be an identifier"),
        (line(None, user_id="U2"), r"field 'history' is null, a NoneType; it must be list"),
        ('{"user_id": "U2", "category": "C"}', r"field 'history' is missing"),
        (line(["B2"], user_id="U2"), r"history\[0\] is a str; it must be an object"),
        (line([], user_id="U2", heldout=[]), r"heldout is a list; it must be an object"),
        (line([], user_id="U2", heldout={}), r"heldout: field 'parent_asin' is missing"),
    ],
)
def test_a_bad_line_is_refused_by_name_or_left_out(tmp_path: Path, bad: str, message: str) -> None:
    path = write_lines(tmp_path, line([review("B1")]), bad)
    with pytest.raises(DataError, match=rf"^users.jsonl line 2: {message}") as caught:
        list(sample(path).users())
    assert len(str(caught.value).splitlines()) == 1
    faults = Faults("skip")
    source = sample(path, faults)
    assert [user.user_id for user in source.users()] == ["U1/Musical_Instruments"]
    assert [item.item_id for item in source.items()] == ["B1"]
    assert len(faults.records) == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (without(review("B3"), "product"), r"field 'product' is missing"),
        (review("B3", product=None), r"field 'product' is null, a NoneType; it must be dict"),
        (review("B3", product=product(title=7)), r"field 'title' is 7, a int; it must be str"),
        (review("B3", product=product(brand=["x"])), r"field 'brand' is \[\"x\"\], a list; it must be str"),
        (review("B3", product=product(price=True)), r"field 'price' is true, a bool; it must be int or float or str"),
        (review("B3", product=product(price=-1)), r"field 'price' is -1; it must be a price, or null"),
        (review("B3", product=product(price=float("nan"))), r"field 'price' is NaN; it must be a price, or null"),
        (review("B3", product=product(price=10**400)), r"field 'price' is 10+; it must be a price, or null"),
        (review("B3", product=product(main_category="\ud800")), r"field 'main_category' is not valid text"),
        (review(""), r"field 'parent_asin' is ''; it must be an identifier"),
        (review("B3", rating="5"), r"field 'rating' is \"5\", a str; it must be int or float"),
        (review("B3", rating=None), r"field 'rating' is null, a NoneType; it must be int or float"),
        (without(review("B3"), "rating"), r"field 'rating' is missing"),
        (review("B3", rating=0.0), r"field 'rating' is 0.0; it must be from 1 to 5"),
        (review("B3", rating=10**400), r"field 'rating' is 10+; it must be from 1 to 5"),
        (review("B3", timestamp_ms=-1), r"field 'timestamp_ms' is -1; it must be milliseconds since 1970"),
        (review("B3", timestamp_ms=2**80), r"field 'timestamp_ms' is \d+; it must be milliseconds since 1970"),
        (review("B3", timestamp_ms=1.5), r"field 'timestamp_ms' is 1.5, a float; it must be int"),
        (review("B3", review_full=5), r"field 'review_full' is 5, a int; it must be str"),
    ],
)
def test_a_bad_review_of_2023_is_reported_by_its_place(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    path = write_lines(tmp_path, line([review("B1")]), line([review("B2"), bad], user_id="U2"))
    with pytest.raises(DataError, match=rf"^users.jsonl line 2: history\[1\]: {message}"):
        list(sample(path).users())
    faults = Faults("skip")
    assert len(list(sample(path, faults).users())) == len(faults.records) == 1
