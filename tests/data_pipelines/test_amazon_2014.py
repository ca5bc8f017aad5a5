"""Amazon's reviews of 2014, a file of values separated by commas."""

import csv
import gzip
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.sources.amazon_reviews import AmazonInstruments2014
from data_pipelines.sources.builder import RecordBuilder
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.source import Source
from tests.data_pipelines.small import START

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


def opened(builder: type[RecordBuilder], path: Path, faults: Faults | None) -> Source:
    return builder(config="items", data_dir="unused", source_dir=path.parent, faults=faults).open_source(None)


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
        (row(reviewerID=""), r"field 'reviewerID' is ''; it must be an identifier without white space"),
        (row(asin="A\n1"), r"field 'asin' is 'A\\n1'; it must be an identifier"),
        (row()[:-1], r"8 fields; expected 9: reviewerID, asin"),
        ([*row(), "more"], r"10 fields; expected 9"),
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
