"""Amazon Reviews 2014, the 5-core of musical instruments: ratings, times and whole texts, nothing about the items.

The folder holds `reviews_5core.csv` (or `.csv.gz`), with a header and in it at least

    reviewerID, asin, reviewText, overall, summary, unixReviewTime

where text may be quoted and go over several lines. What a person wrote is `reviewText`, or `summary` where that is
empty (seven times in the published file). Of several reviews of one item by one person the latest counts; the
published file has none. Its times are days, so that three reviews in five share theirs with another by the same
person: those keep the order of the file.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from data_pipelines.errors import DataError
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.sources.builder import RecordBuilder, Source
from data_pipelines.sources.checks import BadField, Faults, field, read_lines, seconds
from data_pipelines.sources.reviews import in_order, one_to_five, source_file, word, written

COLUMNS = ("reviewerID", "asin", "reviewText", "overall", "summary", "unixReviewTime")


class AmazonReviews:
    """Items and users of a CSV file of reviews; both in order of their first review.

    Faults are told when users are read: items are read from the same lines, quietly.
    """

    def __init__(self, path: Path, faults: Faults):
        self._path, self._faults = path, faults

    def items(self) -> Iterator[Item]:
        """There is no text about an item but its number, which is its title; it has no attributes."""
        for asin in dict.fromkeys(review.item_id for _, review in self._reviews(Faults("skip"))):
            yield Item(asin, asin)

    def users(self) -> Iterator[User]:
        reviews: dict[str, list[Interaction]] = defaultdict(list)
        for user, review in self._reviews(self._faults):
            reviews[user].append(review)
        for user, theirs in reviews.items():
            yield User(user, in_order(theirs))

    def _reviews(self, faults: Faults) -> Iterator[tuple[str, Interaction]]:
        """(user, review) in the order of the file."""
        rows = self._rows(faults)
        place, header = next(rows, (f"{self._path.name} line 1", []))
        for name in COLUMNS:
            if name not in header:
                raise DataError(f"{place}: column {name!r} is missing; there must be {', '.join(COLUMNS)}")
        for place, row in rows:
            try:
                if len(row) != len(header):
                    raise BadField(f"{len(row)} fields where {len(header)} should be: {', '.join(header)}"[:200])
                yield self._review(dict(zip(header, row, strict=True)))
            except BadField as fault:
                faults.bad_record(f"{place}: {fault}")

    def _review(self, record: dict[str, str]) -> tuple[str, Interaction]:
        rating = {"overall": number(record, "overall")}
        time = {"unixReviewTime": int(number(record, "unixReviewTime", whole=True))}
        return word(record, "reviewerID"), Interaction(
            word(record, "asin"),
            time=seconds(time, "unixReviewTime"),
            rating=one_to_five(rating, "overall"),
            text=written(field(record, "reviewText", str), field(record, "summary", str)),
        )

    def _rows(self, faults: Faults) -> Iterator[tuple[str, list[str]]]:
        """(place, fields) of each record, header included; the place is the first of the record's lines."""
        places: list[str] = []

        def lines() -> Iterator[str]:
            for place, line in read_lines(self._path):
                places.append(place)
                yield line + "\n"

        rows = csv.reader(lines(), strict=True)
        while True:
            places.clear()
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                faults.bad_record(f"{places[0]}: not CSV ({error})")
                continue
            yield places[0], row


def number(record: dict[str, str], name: str, whole: bool = False) -> float | int:
    """A number written in plain digits.

    Raises:
      BadField: it is not.
    """
    text = record[name]
    if not re.fullmatch(r"[0-9]{1,18}" if whole else r"[0-9]{1,18}(\.[0-9]{1,18})?", text):
        raise BadField(f"field {name!r} is {text[:40]!r}; it must be a {'whole ' if whole else ''}number")
    return int(text) if whole else float(text)


class AmazonInstruments2014(RecordBuilder):
    """Amazon Reviews 2014, musical instruments, 5-core: ratings, times and texts, from a local folder."""

    name = "amazon_instruments_2014"
    PUBLISHER = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html"
    DESCRIPTION = f"Amazon Reviews 2014, musical instruments, 5-core; {PUBLISHER}"

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        holds = f"the 5-core reviews of musical instruments as CSV with columns {', '.join(COLUMNS)}"
        return AmazonReviews(source_file(self.source_dir, "reviews_5core.csv", holds, self.PUBLISHER), self.faults)
