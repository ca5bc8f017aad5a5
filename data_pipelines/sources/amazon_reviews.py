"""Two small files of Amazon reviews: the 5-core of musical instruments (2014) as a table, and a sample of 2023."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import polars as pl
import tensorflow_datasets as tfds

from data_pipelines.schema import Item
from data_pipelines.sources.amazon import Review, spaced, written
from data_pipelines.sources.amazon_releases import FIELDS_2014, FIELDS_2023, Amazon2023
from data_pipelines.sources.builder import RecordBuilder
from data_pipelines.sources.checks import BadField, field, word
from data_pipelines.sources.json_files import read_objects
from data_pipelines.sources.source import ALL_COLUMNS, COLUMNS, Source, without_repeats
from data_pipelines.sources.tables import frame_of, joined, read_csv
from data_pipelines.sources.times import Clock

FIELDS_OF_SAMPLE = dataclasses.replace(FIELDS_2023, time="timestamp_ms", text="review_full", headline="review_title")


class AmazonInstruments2014(RecordBuilder):
    """Amazon Reviews 2014, musical instruments, 5-core: ratings, times and texts, from a local folder.

    The folder holds `reviews_5core.csv` (or `.csv.gz`), with a header that contains at least

        reviewerID, asin, reviewText, overall, summary, unixReviewTime

    where text may be quoted and span several lines. The text is `reviewText`, or `summary` if that is empty (seven
    times in the published file). Of several reviews of one item by one user, the latest counts; the published file has
    none. Its times have a resolution of days, so three reviews in five share theirs with another by the same user;
    those keep the order of the file. Times may be counted from 0 if only the order is known. The only information about
    an item is its id, which is its title; it has no attributes.
    """

    name = "amazon_instruments_2014"
    PUBLISHER = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html"
    DESCRIPTION = f"Amazon Reviews 2014, musical instruments, 5-core; {PUBLISHER}"

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        names = FIELDS_2014
        columns = (names.user, names.item, names.text, names.rating, names.headline, names.time)
        holds = f"the 5-core reviews of musical instruments as CSV with columns {', '.join(columns)}"
        table = joined(read_csv(self.file("reviews_5core.csv", holds), columns, self.faults), columns)
        table = table.identifiers(names.user, names.item).ratings(names.rating, 1, 5).times(names.time, counted=True)
        reviews = (
            (user, item, time, stars, written(text, headline))
            for user, item, text, stars, headline, time in table.rows.select(columns).iter_rows()
        )
        frame = frame_of(reviews, COLUMNS)
        item_ids = frame["item"].unique(maintain_order=True)
        frame = frame.with_row_index().sort(pl.col("index").min().over("user"), "index").drop("index")  # user by user
        return Source(without_repeats(frame, "last"), lambda asin: Item(asin, asin), item_ids=item_ids)


class Amazon2023Sample(RecordBuilder):
    """A sample of Amazon Reviews 2023: ratings, times, texts, titles and prices, from a local folder.

    The folder holds `users.jsonl` (or `.jsonl.gz`), one object per line:

        user_id, category
        history    a list of reviews: parent_asin, rating, timestamp_ms, review_full, review_title,
                   product: title, brand, price, main_category
        heldout    one more review, the last in time

    A line contains the reviews of one user in one category. A user may have lines in other categories (the 691 lines
    are of 354 users), so the user id here is `USER_ID/CATEGORY`. The held-out review is the last of the five in a line,
    so leave-one-out holds it out again. The text is `review_full`, or `review_title` if that is empty. Of several
    reviews of one item in a line, the latest counts (three lines of the sample have two). Any text of a product may be
    null, which a prompt shows as "Unknown"; a null main category is replaced by the category of the line. An item is
    described by its first review.
    """

    name = "amazon_2023_sample"
    PUBLISHER = "https://amazon-reviews-2023.github.io"
    DESCRIPTION = f"A sample of Amazon Reviews 2023, users with a few reviews in one category; {PUBLISHER}"

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        path = self.file("users.jsonl", "one object per line with user_id, category, history and heldout")
        clock = Clock.of(path, FIELDS_OF_SAMPLE.time)
        users: set[str] = set()
        items: dict[str, Item] = {}

        def read(record: dict[str, Any]) -> tuple[str, list[tuple[Review, Item]]]:
            category = word(record, "category")
            user = f"{word(record, 'user_id')}/{category}"
            if user in users:
                raise BadField(f"user {user} occurs twice")
            reviews = list(reviews_of(record, user, spaced(category), clock))
            users.add(user)
            return user, reviews

        def rows() -> Iterator[tuple[Any, ...]]:
            for _, (user, reviews) in read_objects(path, self.faults, read):
                for review, item in reviews:
                    items.setdefault(item.item_id, item)
                    yield *review, ""
                if not reviews:
                    yield user, *itertools.repeat(None, 5)

        frame = frame_of(rows(), ALL_COLUMNS)
        return Source(without_repeats(frame, "last"), items.__getitem__, item_ids=list(items))


def reviews_of(record: dict[str, Any], user: str, category: str, clock: Clock) -> Iterator[tuple[Review, Item]]:
    """Yields each review of a line, with the reviewed product; raises BadField, which names the review, if a field is
    missing or wrong."""
    named = [(f"history[{number}]", review) for number, review in enumerate(field(record, "history", list))]
    if record.get("heldout") is not None:
        named.append(("heldout", record["heldout"]))
    for name, review in named:
        if not isinstance(review, dict):
            raise BadField(f"{name} is a {type(review).__name__}; it must be an object")
        try:
            row = FIELDS_OF_SAMPLE.read(review, user, clock)
            product = Amazon2023.product(field(review, "product", dict), category, brand="brand")
        except BadField as fault:
            raise BadField(f"{name}: {fault}") from fault
        attributes = (
            ("Category", ", ".join(product.categories)),
            ("Brand", product.brand),
            ("Price", product.price),
            ("Title", product.title),
        )
        yield row, Item(row[1], product.title, attributes, product.categories)
