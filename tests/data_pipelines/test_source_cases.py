"""Files that made users file bug reports: each is read rightly, or refused in one line that says what would be right.

The kinds that these are members of are tried on every source in `test_kinds_of_files`.
"""

import csv
import dataclasses
import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.records import read_items, read_users
from data_pipelines.sources.selection import SourceSelection
from tests.data_pipelines.small import START
from tests.data_pipelines.source_files import GOOD, Files, amazon, lines, table, write_files

LONG = "x" * 140_000
HF_IMAGES = {"hi_res": [None], "large": ["https://m/x.jpg"], "thumb": ["t"], "variant": ["MAIN"]}


@dataclasses.dataclass(frozen=True)
class Case:
    """Files of a source and what becomes of them.

    Attributes:
      read: (users, items, interactions) that are prepared, or None: the files are refused.
      refused: the message; with `read`, that without `--on-bad skip`.
      check: is given the items and the users.
    """

    name: str
    source: str
    files: Files
    read: tuple[int, int, int] | None = None
    refused: str = ""
    left_out: int = 0
    check: Callable[[list[Any], list[Any]], bool] = lambda items, users: True


def changed(source: str, file: str, before: bytes, after: bytes, count: int = 1) -> Files:
    assert before in GOOD[source][file]
    return {**GOOD[source], file: GOOD[source][file].replace(before, after, count)}


def records_of(source: str, file: str, **fields: Any) -> Files:
    """A JSON file whose every record has other values there."""
    return {
        **GOOD[source],
        file: lines(*(json.loads(line) | fields for line in GOOD[source][file].decode().splitlines())),
    }


def reordered(source: str, file: str, order: tuple[int, ...]) -> Files:
    rows = csv.reader(io.StringIO(GOOD[source][file].decode()))
    first, *others = ([row[place] for place in order] for row in rows)
    return {**GOOD[source], file: table(first, others)}


def without_line(source: str, file: str, number: int = 0) -> Files:
    kept = GOOD[source][file].splitlines(keepends=True)
    return {**GOOD[source], file: b"".join(kept[:number] + kept[number + 1 :])}


def rating(text: bytes) -> Files:
    return changed("movielens_small", "ratings.csv", b"\n1,1,3,", b"\n1,1," + text + b",")


def first_rating(items: list[Any], users: list[Any]) -> bool:
    one = users[0].interactions[0]
    return (one.item_id, one.rating, one.time) == ("1", 3.0, START + 11)


ALL = (3, 4, 12)
SMALL, RATINGS = "movielens_small", "ratings.csv"
INSTRUMENTS, CSV = "amazon_instruments_2014", "reviews_5core.csv"
PURCHASES, FILMS, MOVIES = "transactions_train.csv", "item_attribute.csv", "movies.csv"
BOOKS, META = "Books.jsonl", "meta_Books.jsonl"
WHOLE_FLOATS = {BOOKS: re.sub(rb'("timestamp": \d+)', rb"\1.0", amazon("amazon_2023")[BOOKS])}
PRODUCTS_IN_JSON = "".join(
    json.dumps({"asin": f"B{item}", "title": "\U0001f600 d'Œuvre", "brand": None, "price": None, "new": True}) + "\n"
    for item in (1, 2, 3, 4)
).encode()
NFC_AND_NFD = lines(
    *(
        json.loads(line) | {"parent_asin": item}
        for line, item in zip(
            GOOD["amazon_2023"][BOOKS].decode().splitlines()[:4],
            ("caf\xe9", "cafe\u0301", "a/b", "<\uff21>"),
            strict=True,
        )
    )
)

CASES = [
    Case("columns in another order", SMALL, reordered(SMALL, RATINGS, (0, 1, 3, 2)), ALL, check=first_rating),
    Case(
        "movies without header",
        SMALL,
        without_line(SMALL, MOVIES),
        refused=r"movies.csv line 1: .*there must be a header movieId, title, genres, not '1,Toy",
    ),
    Case(
        "ratings without header",
        SMALL,
        without_line(SMALL, RATINGS),
        refused=r"ratings.csv line 1: .*there must be a header userId, movieId, rating, timestamp, not '1,1,3,",
    ),
    Case(
        "titles in latin-1",
        SMALL,
        {**GOOD[SMALL], MOVIES: GOOD[SMALL][MOVIES].decode().encode("latin-1")},
        (3, 3, 9),
        r"movies.csv line 3: byte 7 is 0xe9, not UTF-8; is the file latin-1\? iconv -f latin1 -t utf-8",
        4,
    ),
    Case(
        "titles of Netflix in latin-1",
        "netflix",
        {**GOOD["netflix"], FILMS: GOOD["netflix"][FILMS].decode().replace("Œ", "é").encode("latin-1")},
        (2, 3, 5),
        r"item_attribute.csv line 2: byte \d+ is 0xe9, not UTF-8; .*iconv -f latin1",
        3,
    ),
    Case(
        "a title of 140,000 characters",
        SMALL,
        changed(SMALL, MOVIES, b"Toy Story (1995)", f'"{LONG} (1995)"'.encode()),
        ALL,
        check=lambda items, users: items[0].title == LONG,
    ),
    Case(
        "a quoted review of 140,000 characters in lines",
        INSTRUMENTS,
        changed(INSTRUMENTS, CSV, b'"He said', f'"{LONG[:70_000]}\n{LONG[:70_000]} said'.encode()),
        ALL,
        check=lambda items, users: len(users[0].interactions[0].text) > 140_000,
    ),
    Case(
        "a review whose quote is not closed",
        INSTRUMENTS,
        changed(INSTRUMENTS, CSV, b"\nU2,B2", b'\nU2,B9,"never closed,5.0,good,1000000022\nU2,B2'),
        ALL,
        r"reviews_5core.csv line 17: not CSV",
        1,
    ),
    Case(
        "images as Hugging Face has them",
        "amazon_2023",
        records_of("amazon_2023", META, images=HF_IMAGES, price="9.99", details='{"Brand": "Pearl"}', store=None),
        ALL,
        check=lambda items, users: items[0].title == "Œuvre 1" and dict(items[0].attributes)["Price"] == "9.99",
    ),
    Case(
        "whole numbers as pandas writes floats, and what is missing as NaN",
        "amazon_2023",
        {**records_of("amazon_2023", META, title=float("nan")), **WHOLE_FLOATS},
        ALL,
        check=lambda items, users: items[0].title == "B1" and users[0].interactions[0].time == START + 11,
    ),
    Case(
        "articles without their leading zero",
        "hm",
        {**GOOD["hm"], "articles.csv": GOOD["hm"]["articles.csv"].replace(b"\n01087", b"\n1087")},
        refused=r"articles.csv line 2: field 'article_id' is '108775001'; .*; a leading zero is missing",
    ),
    Case(
        "purchases without their leading zero",
        "hm",
        {**GOOD["hm"], PURCHASES: GOOD["hm"][PURCHASES].replace(b",01087", b",1087")},
        refused=r"transactions_train.csv line 2: article 108775001 is not in articles.csv; a leading zero is missing",
    ),
    Case(
        "a first line that is empty",
        "hm",
        {**GOOD["hm"], "articles.csv": b"\n" + GOOD["hm"]["articles.csv"]},
        (3, 4, 9),
    ),
    Case(
        "rows of commas at the end", "hm", {**GOOD["hm"], PURCHASES: GOOD["hm"][PURCHASES] + b",,,,\n,,,,\n"}, (3, 4, 9)
    ),
    Case(
        "ids equal but for normalisation",
        "amazon_2023",
        {**GOOD["amazon_2023"], BOOKS: NFC_AND_NFD},
        (1, 4, 4),
        check=lambda items, users: [one.item_id for one in items] == ["caf\xe9", "cafe\u0301", "a/b", "<\uff21>"],
    ),
    Case(
        "a decimal comma",
        SMALL,
        rating(b'"3,5"'),
        (3, 4, 11),
        r"ratings.csv line 2: field 'rating' is '3,5'; it must be a number from 0.5 to 5",
        1,
    ),
    Case(
        "a movie's id with a point",
        SMALL,
        changed(SMALL, RATINGS, b"\n1,1,", b"\n1,1.0,"),
        (3, 4, 11),
        r"ratings.csv line 2: field 'movieId' is '1.0'; it must be a whole number",
        1,
    ),
    Case(
        "an infinite rating",
        SMALL,
        rating(b"1e39"),
        (3, 4, 11),
        r"ratings.csv line 2: field 'rating' is '1e39'; it must be a number from 0.5 to 5",
        1,
    ),
    Case(
        "a rating off the scale",
        SMALL,
        rating(b"50"),
        (3, 4, 11),
        r"ratings.csv line 2: field 'rating' is 50.0; it must be from 0.5 to 5",
        1,
    ),
    Case(
        "no rating", SMALL, rating(b""), (3, 4, 11), r"ratings.csv line 2: field 'rating' is ''; it must be a number", 1
    ),
    Case(
        "a rating that is no number",
        SMALL,
        rating(b"nan"),
        (3, 4, 11),
        r"ratings.csv line 2: field 'rating' is 'nan'; it must be a number",
        1,
    ),
    Case(
        "a time as a whole float",
        SMALL,
        changed(SMALL, RATINGS, b"1000000011", b"1000000011.0"),
        ALL,
        check=first_rating,
    ),
    Case(
        "a time in words",
        SMALL,
        changed(SMALL, RATINGS, b"1000000011", b"2001-09-09T01:46:51"),
        (3, 4, 11),
        r"ratings.csv line 2: field 'timestamp' is '2001-09-09T01:46:51'; it must be a whole number",
        1,
    ),
    Case(
        "ratings on another scale",
        SMALL,
        {
            **GOOD[SMALL],
            RATINGS: table(
                ("userId", "movieId", "rating", "timestamp"),
                [(u, 1 + u % 4, -9.5 + u / 100, START) for u in range(900)],
            ),
        },
        refused=r"ratings.csv line 2: field 'rating' is -9.5; it must be from 0.5 to 5",
    ),
    Case(
        "a title with colons",
        "movielens_1m",
        changed("movielens_1m", "movies.dat", b"5::Rare", b"5::Rare:: 1"),
        None,
        r"movies.dat line 5: 4 fields; expected 3: movieId, title, genres",
    ),
    Case(
        "titles of MovieLens 1M in UTF-8",
        "movielens_1m",
        {**GOOD["movielens_1m"], "movies.dat": GOOD["movielens_1m"]["movies.dat"].decode("latin-1").encode()},
        (5, 5, 25),
        check=lambda items, users: items[1].title == "Misérables, Les",
    ),
    Case(
        "a title of a megabyte of blanks",
        SMALL,
        changed(SMALL, MOVIES, b"Toy Story (1995)", b"Toy" + b" " * 2**20 + b"Story"),
        ALL,
        check=lambda items, users: items[0].title.startswith("Toy  "),
    ),
    Case(
        "products of 2014 in JSON",
        "amazon_2014",
        {**GOOD["amazon_2014"], "meta_Books.json": PRODUCTS_IN_JSON},
        ALL,
        check=lambda items, users: [one.title for one in items] == ["\U0001f600 d'Œuvre"] * 4,
    ),
    Case(
        "one array",
        "amazon_2023",
        {**GOOD["amazon_2023"], BOOKS: b"[" + GOOD["amazon_2023"][BOOKS].strip().replace(b"\n", b", ") + b"]"},
        refused=r"Books.jsonl line 1: one object per line is needed, but this is an array",
    ),
    Case(
        "an emoji cut in two",
        "amazon_2023",
        changed("amazon_2023", META, "Œuvre 1".encode(), rb"Cut \ud83d"),
        ALL,
        r"meta_Books.jsonl line 1: field 'title' is not valid text \(surrogates not allowed\)",
        1,
    ),
    Case(
        "a product without id",
        "amazon_2023",
        changed("amazon_2023", META, b'"parent_asin": "B2", ', b""),
        ALL,
        r"meta_Books.jsonl line 2: field 'parent_asin' is missing",
        1,
    ),
    Case(
        "a user whose name is no text",
        "netflix",
        changed("netflix", "test.json", b'"0"', rb'"\ud83d"'),
        (2, 4, 6),
        r"test.json: field 'user' is not valid text",
        1,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_files_that_failed_are_read_or_refused(case: Case, tmp_path: Path) -> None:
    folder, data = write_files(tmp_path / "source", case.files), tmp_path / "data"
    cored = case.source in ("amazon_2014", "amazon_2023")
    core = SourceSelection(user_core=1, item_core=1) if cored else SourceSelection()
    if case.refused:
        with pytest.raises(DataError, match=f"^{case.refused}") as caught:
            prepare(case.source, data, folder, selection=core)
        assert len(str(caught.value).splitlines()) == 1
    if case.read is None:
        with pytest.raises(DataError):
            prepare(case.source, data, folder, "skip", selection=core)
        return
    prepared = prepare(case.source, data, folder, "skip" if case.refused else "refuse", selection=core)
    assert (prepared.users, prepared.items, prepared.interactions) == case.read
    assert len(prepared.bad_records) == case.left_out
    assert case.check(list(read_items(case.source, data)), list(read_users(case.source, data)))


def test_a_file_of_reviews_is_reported_by_its_bytes_and_by_a_name_without_a_dot(tmp_path: Path) -> None:
    files = {
        "Books.jsonl.gz": GOOD["amazon_2023"][BOOKS],
        "meta_Books.jsonl": gzip.compress(GOOD["amazon_2023"][META], mtime=0),
        "._Books.jsonl": b"\0\5\x16\7",
        "._meta_Books.jsonl": b"\0\5\x16\7",
    }
    core = SourceSelection(user_core=1, item_core=1)
    prepared = prepare("amazon_2023", tmp_path / "data", write_files(tmp_path / "in", files), selection=core)
    assert (prepared.users, prepared.items, prepared.interactions) == ALL


def test_what_is_left_of_a_file_that_is_all_bad_is_reported_with_its_first_fault(tmp_path: Path) -> None:
    files = {**GOOD["sequences"], "Toys.txt": b"user items\n"}
    with pytest.raises(
        DataError, match=r"^sequences: no items are left.*; 1 bad records were left out, the first: Toys.txt"
    ):
        prepare("sequences", tmp_path / "data", write_files(tmp_path / "in", files), "skip")
