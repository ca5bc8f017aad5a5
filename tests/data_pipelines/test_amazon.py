"""Amazon's reviews: what is read from files as they are published, and what is said where one is wrong."""

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.corpus import TEST, VALIDATION, build_corpus
from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.records import read_items, read_users
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.sources.amazon import written
from data_pipelines.sources.amazon_reviews import Amazon2023Sample, AmazonInstruments2014
from data_pipelines.sources.builder import RecordBuilder
from data_pipelines.sources.checks import Faults, clean
from data_pipelines.sources.registry import find_source
from data_pipelines.sources.source import Source
from tests.data_pipelines.small import START

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
GOOD_2014 = {
    "reviewerID": "U1",
    "asin": "A1",
    "reviewerName": 'Jo "Jo, the U...',
    "helpful": "[0, 0]",
    "reviewText": "Fine.",
    "overall": "5.0",
    "summary": "good",
    "unixReviewTime": str(START + 20),
    "reviewTime": "02 28, 2014",
}
HEADER = list(GOOD_2014)


def row(**changed: str) -> list[str]:
    return list((GOOD_2014 | changed).values())


def write_csv(folder: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = HEADER) -> Path:
    path = folder / "reviews_5core.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return path


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


# --- what both share -------------------------------------------------------------------------------------------------


def test_sources_are_found_by_name() -> None:
    assert find_source("amazon_instruments_2014") is AmazonInstruments2014
    assert find_source("amazon_2023_sample") is Amazon2023Sample


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("  two\nlines\r\n\tand\u2028three ", "two lines and three"),
        ("one.<br /><br />Two, <b>bold</b>", "one. Two, bold"),
        ('<a href="http://x.y/?a=1&amp;b=2">link</a>', "link"),
        ("&#34;loud&#34; &amp; 5&#8217;s", '"loud" & 5\u2019s'),
        ("at &lt;$20 not >$30", "at <$20 not >$30"),  # an entity begins no tag
        ("I <3 it, 2 < 3", "I <3 it, 2 < 3"),
        ("the K&M; stand", "the K&M; stand"),
        ("[[VIDEOID:5c532f5f5d94b557]] I want", "I want"),
        ("nul\x00l and \x8a and &#xD800; and &#0;", "nul l and and \ufffd and \ufffd"),
        ("<br />", ""),
    ],
)
def test_text_is_one_clean_line(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_a_review_without_text_is_its_headline() -> None:
    assert written("long", "short") == "long"
    assert written(" <br /> ", "it&#8217;s\nshort") == "it\u2019s short"
    assert written("", "") == ""


def test_reviews_are_in_order_of_time_and_of_two_of_an_item_the_latest_counts(tmp_path: Path) -> None:
    def kept(*reviews: tuple[str, int]) -> list[tuple[str, int, float]]:
        rows = [
            row(asin=item, unixReviewTime=str(START + time), overall=str(1 + number % 5))
            for number, (item, time) in enumerate(reviews)
        ]
        (user,) = reviews_2014(write_csv(tmp_path, rows)).users()
        return [(one.item_id, one.time - START, one.rating) for one in user.interactions]

    found = kept(("a", 5), ("b", 3), ("c", 5), ("b", 9), ("a", 1), ("d", 5))
    assert [one[:2] for one in found] == [("a", 5), ("c", 5), ("d", 5), ("b", 9)]
    assert kept(("a", 1), ("b", 1), ("a", 1)) == [("b", 1, 2.0), ("a", 1, 3.0)]


@pytest.mark.parametrize(
    ("source", "file", "publisher"),
    [
        ("amazon_instruments_2014", "reviews_5core.csv", "cseweb.ucsd.edu"),
        ("amazon_2023_sample", "users.jsonl", "amazon-reviews-2023.github.io"),
    ],
)
def test_what_is_needed_is_reported(tmp_path: Path, source: str, file: str, publisher: str) -> None:
    with pytest.raises(DataError, match=rf"cannot be downloaded from here: {file}, .*--source-dir.*{publisher}"):
        prepare(source, tmp_path / "data")
    with pytest.raises(DataError, match=rf"{file} does not exist: .*{publisher}"):
        prepare(source, tmp_path / "data", tmp_path)


def opened(builder: type[RecordBuilder], path: Path, faults: Faults | None) -> Source:
    return builder(config="items", data_dir="unused", source_dir=path.parent, faults=faults).open_source(None)


# --- 2014 ------------------------------------------------------------------------------------------------------------


def reviews_2014(path: Path, faults: Faults | None = None) -> Source:
    return opened(AmazonInstruments2014, path, faults)


def test_a_review_of_2014(tmp_path: Path) -> None:
    text = 'He said "no, \nthanks"\n\nand left;<br />it&#8217;s 5&#34; long'
    path = write_csv(tmp_path, [row(reviewText=text, overall="3.0"), row(reviewerID="U2", asin="A0", reviewText="")])
    assert list(reviews_2014(path).items()) == [Item("A1", "A1"), Item("A0", "A0")]
    assert list(reviews_2014(path).users()) == [
        User("U1", (Interaction("A1", START + 20, 3.0, 'He said "no, thanks" and left; it\u2019s 5" long'),)),
        User("U2", (Interaction("A0", START + 20, 5.0, "good"),)),
    ]


def test_users_and_items_come_as_they_first_appear_and_reviews_by_time(tmp_path: Path) -> None:
    reviews = [("U9", "A3", 7), ("U1", "A2", 5), ("U9", "A1", 4), ("U9", "A2", 7), ("U9", "A0", 7), ("U1", "A2", 3)]
    rows = [row(reviewerID=user, asin=asin, unixReviewTime=str(START + time)) for user, asin, time in reviews]
    path = write_csv(tmp_path, rows)
    assert [item.item_id for item in reviews_2014(path).items()] == ["A3", "A2", "A1", "A0"]
    first, second = reviews_2014(path).users()
    assert (first.user_id, second.user_id) == ("U9", "U1")
    assert [one.item_id for one in first.interactions] == ["A1", "A3", "A2", "A0"]
    assert [(one.item_id, one.time) for one in second.interactions] == [("A2", START + 5)]


def test_users_come_as_they_first_appear_though_their_first_review_is_superseded(tmp_path: Path) -> None:
    reviews = [("U9", "A1", 4), ("U1", "A2", 5), ("U9", "A1", 7)]
    rows = [row(reviewerID=user, asin=asin, unixReviewTime=str(START + time)) for user, asin, time in reviews]
    assert [user.user_id for user in reviews_2014(write_csv(tmp_path, rows)).users()] == ["U9", "U1"]


def test_columns_are_found_by_name_and_others_ignored(tmp_path: Path) -> None:
    header = ["unixReviewTime", "summary", "overall", "new", "reviewText", "asin", "reviewerID"]
    path = write_csv(tmp_path, [[str(START), "s", "1", "?", "t", "A1", "U1"]], header)
    assert list(reviews_2014(path).users()) == [User("U1", (Interaction("A1", START, 1.0, "t"),))]


def test_the_csv_may_be_gzipped(tmp_path: Path) -> None:
    path = write_csv(tmp_path, [row(reviewText="two\n\nlines"), row(asin="A2", overall="x")])
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()
    faults = Faults("skip")
    (user,) = reviews_2014(path, faults).users()
    assert user.interactions[0].text == "two lines"
    assert faults.records[0].startswith("reviews_5core.csv.gz line 5: ")
    prepared = prepare("amazon_instruments_2014", tmp_path / "data", tmp_path, "skip")
    assert (prepared.interactions, len(prepared.bad_records)) == (1, 1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(overall="five"), r"field 'overall' is 'five'; it must be a number"),
        (row(overall=""), r"field 'overall' is ''; it must be a number"),
        (row(overall="nan"), r"field 'overall' is 'nan'; it must be a number"),
        (row(overall="0.5"), r"field 'overall' is 0.5; it must be from 1 to 5"),
        (row(overall="6.0"), r"field 'overall' is 6.0; it must be from 1 to 5"),
        (row(unixReviewTime="02 28, 2014"), r"field 'unixReviewTime' is '02 28, 2014'; it must be a whole number"),
        (row(unixReviewTime="-1"), r"field 'unixReviewTime' is -1; it must be seconds since 1970, from 1990 to next"),
        (
            row(unixReviewTime="1000000020000"),
            r"field 'unixReviewTime' is 1000000020000, in milliseconds; it must be sec",
        ),
        (row(unixReviewTime="9" * 5000), r"field 'unixReviewTime' is '9{40}'; it must be a whole number"),
        (row(reviewerID=""), r"field 'reviewerID' is ''; it must be an identifier, without white space"),
        (row(asin="A\n1"), r"field 'asin' is 'A\\n1'; it must be an identifier"),
        (row()[:-1], r"8 fields where 9 should be: reviewerID, asin"),
        ([*row(), "more"], r"10 fields where 9 should be"),
    ],
)
def test_a_bad_review_of_2014_is_refused_by_name_or_left_out(tmp_path: Path, bad: list[str], message: str) -> None:
    rows = [row(reviewText="over\n\nthree lines"), bad, row(asin="A3")]  # the bad one begins in line 5
    path = write_csv(tmp_path, rows)
    with pytest.raises(DataError, match=rf"^reviews_5core.csv line 5: {message}") as caught:
        list(reviews_2014(path).users())
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(DataError, match=r"line 5: .*--on-bad skip"):
        prepare("amazon_instruments_2014", tmp_path / "data", tmp_path)
    faults = Faults("skip")
    source = reviews_2014(path, faults)
    (user,) = source.users()
    assert [one.item_id for one in user.interactions] == ["A1", "A3"]
    assert [item.item_id for item in source.items()] == ["A1", "A3"]
    assert len(faults.records) == 1  # told once, for items and for users


@pytest.mark.parametrize("ending", ['U2,A2,,,"never closed\nU3,A3', 'U2,A2,,,"closed" too early,5.0,s,20,'])
def test_quotes_that_do_not_match_are_reported(tmp_path: Path, ending: str) -> None:
    path = write_csv(tmp_path, [row()])
    path.write_text(path.read_text() + ending)
    with pytest.raises(DataError, match=r"^reviews_5core.csv line 3: not CSV"):
        list(reviews_2014(path).users())
    assert [user.user_id for user in reviews_2014(path, Faults("skip")).users()] == ["U1"]


@pytest.mark.parametrize("column", ["reviewerID", "asin", "reviewText", "overall", "summary", "unixReviewTime"])
def test_a_missing_column_is_reported(tmp_path: Path, column: str) -> None:
    header = [name for name in HEADER if name != column]
    path = write_csv(tmp_path, [["x"] * len(header)], header)
    with pytest.raises(DataError, match=rf"reviews_5core.csv line 1: column '{column}' is missing; there must be rev"):
        list(reviews_2014(path, Faults("skip")).items())


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "column 'reviewerID' is missing"), (b"\xe9,", "line 1: byte 1 is 0xe9, not UTF-8")]
)
def test_a_file_that_is_no_csv_of_reviews_is_reported(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "reviews_5core.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"reviews_5core.csv.*{message}"):
        prepare("amazon_instruments_2014", tmp_path / "data", tmp_path)


# --- 2023 ------------------------------------------------------------------------------------------------------------


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
        (line([review("B2")]), r"user U1/Musical_Instruments occurs a second time"),
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
        (review("B3", product=product(main_category="\ud800")), r"field 'main_category' is no valid text"),
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


# --- from files to records -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "write", "told"),
    [
        (
            "amazon_instruments_2014",
            lambda folder: write_csv(folder, [row(), row(asin="A2"), row(asin="A2"), row(overall="9")]),
            "line 5",
        ),
        (
            "amazon_2023_sample",
            lambda folder: write_lines(folder, line([review("B1"), review("B2")]), "{}"),
            "line 2",
        ),
    ],
)
def test_records_are_written_and_faults_reported_once(
    tmp_path: Path, source: str, write: Callable[[Path], Path], told: str
) -> None:
    write(tmp_path)
    prepared = prepare(source, tmp_path / "data", tmp_path, "skip")
    assert (prepared.users, prepared.items, prepared.interactions, prepared.images) == (1, 2, 2, 0)
    assert len(prepared.bad_records) == 1
    assert told in prepared.bad_records[0]
    reader = find_source(source)(
        config="items", data_dir=str(tmp_path / "unused"), source_dir=tmp_path, faults=Faults("skip")
    )
    assert list(read_items(source, tmp_path / "data")) == list(reader.open_source(None).items())


@pytest.mark.parametrize(
    ("source", "folder", "counts"),
    [
        ("amazon_instruments_2014", "amazon-2014/musical-instruments", (1429, 900, 10_261, 10_261)),
        ("amazon_2023_sample", "amazon-2023-sample", (691, 3228, 3452, 3452)),  # 3,455 reviews, 3 of them superseded
    ],
)
def test_the_real_files(tmp_path: Path, source: str, folder: str, counts: tuple[int, ...]) -> None:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"the shared folder {folder} is not beside the checkout")
    prepared = prepare(source, tmp_path, SHARED / folder)
    assert (prepared.users, prepared.items, prepared.interactions, prepared.rated) == counts
    assert prepared.bad_records == prepared.bad_images == []
    corpus = build_corpus(read_items(source, tmp_path), read_users(source, tmp_path))
    assert len(corpus.texts) == prepared.interactions
    assert not any("\n" in text or "<br" in text for text in corpus.texts.values())
    assert len(corpus.held_out(TEST)[0]) == len(corpus.held_out(VALIDATION)[0]) == prepared.users
    assert corpus.rating_levels == [1, 2, 3, 4, 5]
