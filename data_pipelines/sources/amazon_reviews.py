"""Amazon Reviews 2014, the 5-core of musical instruments: ratings, times and whole texts, nothing about the items.

The folder holds `reviews_5core.csv` (or `.csv.gz`), with a header and in it at least

    reviewerID, asin, reviewText, overall, summary, unixReviewTime

where text may be quoted and go over several lines. What a user wrote is `reviewText`, or `summary` where that is
empty (seven times in the published file). Of several reviews of one item by one user the latest counts; the
published file has none. Its times are days, so that three reviews in five share theirs with another by the same
user: those keep the order of the file. They may be counted from 0 where only the order is known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from data_pipelines.schema import Interaction, Item, User
from data_pipelines.sources.builder import RecordBuilder, Source
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.columns import identifiers, ratings, times
from data_pipelines.sources.reviews import in_order, source_file, written
from data_pipelines.sources.tables import read_csv

COLUMNS = ("reviewerID", "asin", "reviewText", "overall", "summary", "unixReviewTime")


class AmazonReviews:
    """Items and users of a CSV file of reviews; both in order of their first review.

    Faults are reported when users are read: items are read from the same lines, quietly, unless there is none.
    """

    def __init__(self, path: Path, faults: Faults):
        self._path, self._faults = path, faults

    def items(self) -> Iterator[Item]:
        """There is no text about an item but its number, which is its title; it has no attributes."""
        known = dict.fromkeys(review.item_id for _, review in self._reviews(Faults("skip")))
        for asin in known or (review.item_id for _, review in self._reviews(self._faults)):
            yield Item(asin, asin)

    def users(self) -> Iterator[User]:
        reviews: dict[str, list[Interaction]] = defaultdict(list)
        for user, review in self._reviews(self._faults):
            reviews[user].append(review)
        for user, theirs in reviews.items():
            yield User(user, in_order(theirs))

    def _reviews(self, faults: Faults) -> Iterator[tuple[str, Interaction]]:
        """(user, review) in the order of the file."""
        table = read_csv(self._path, COLUMNS, faults).some()
        table = identifiers(identifiers(table, "reviewerID"), "asin")
        table = times(ratings(table, "overall", 1, 5), "unixReviewTime", counted=True)
        for user, item, text, stars, headline, time in table.rows.select(COLUMNS).iter_rows():
            yield user, Interaction(item, time, stars, written(text, headline))


class AmazonInstruments2014(RecordBuilder):
    """Amazon Reviews 2014, musical instruments, 5-core: ratings, times and texts, from a local folder."""

    name = "amazon_instruments_2014"
    PUBLISHER = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html"
    DESCRIPTION = f"Amazon Reviews 2014, musical instruments, 5-core; {PUBLISHER}"

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        holds = f"the 5-core reviews of musical instruments as CSV with columns {', '.join(COLUMNS)}"
        return AmazonReviews(source_file(self.source_dir, "reviews_5core.csv", holds, self.PUBLISHER), self.faults)
