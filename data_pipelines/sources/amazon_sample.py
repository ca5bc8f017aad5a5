"""A sample of Amazon Reviews 2023: a few whole reviews a user, with titles and prices beside them.

The folder holds `users.jsonl` (or `.jsonl.gz`), an object a line:

    user_id, category
    history    a list of reviews: parent_asin, rating, timestamp_ms, review_full, review_title,
               product: title, brand, price, main_category
    heldout    one more review, the last in time

A line is what one user reviewed in one category. The same user may have lines in other categories (the 691 lines
are of 354 users), so that a user here is `USER_ID/CATEGORY`. The review held out is the last of the five that a line
has, so that leave-one-out holds it out again. What a user wrote is `review_full`, or `review_title` where that is
empty. Of several reviews of one item in a line the latest counts (three lines of the sample have two). Any of a
product's texts may be null, which a prompt shows as "Unknown"; a main category that is null is the line's category.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data_pipelines.schema import Interaction, Item, User
from data_pipelines.sources.amazon_2023 import interaction, product
from data_pipelines.sources.builder import RecordBuilder, Source
from data_pipelines.sources.checks import BadField, Faults, field
from data_pipelines.sources.json_files import read_objects
from data_pipelines.sources.reviews import in_order, source_file, word
from data_pipelines.sources.times import Clock

Review = tuple[Item, Interaction]


class AmazonSample:
    """Items, in order of their first review and as that shows them, and users, in order of the lines.

    Faults are reported when users are read: items are read from the same lines, quietly, unless there is none.
    """

    def __init__(self, path: Path, faults: Faults):
        self._path, self._faults = path, faults

    def items(self) -> Iterator[Item]:
        known: set[str] = set()
        for _, reviews in self._lines(Faults("skip")):
            for item, _ in reviews:
                if item.item_id not in known:
                    known.add(item.item_id)
                    yield item
        if not known:
            any(self._lines(self._faults))

    def users(self) -> Iterator[User]:
        for user, reviews in self._lines(self._faults):
            yield User(user, in_order(review for _, review in reviews))

    def _lines(self, faults: Faults) -> Iterator[tuple[str, list[Review]]]:
        """(user, reviews) of each line."""
        seen: set[str] = set()
        clock = Clock.of(self._path, "timestamp_ms")
        for place, record in read_objects(self._path, faults):
            try:
                category = word(record, "category")
                user = f"{word(record, 'user_id')}/{category}"
                if user in seen:
                    raise BadField(f"user {user} occurs a second time")
                reviews = list(self._reviews(record, category.replace("_", " "), clock))
            except BadField as fault:
                faults.bad_record(f"{place}: {fault}")
                continue
            seen.add(user)
            yield user, reviews

    def _reviews(self, record: dict[str, Any], category: str, clock: Clock) -> Iterator[Review]:
        named = [(f"history[{number}]", review) for number, review in enumerate(field(record, "history", list))]
        if record.get("heldout") is not None:
            named.append(("heldout", record["heldout"]))
        for name, review in named:
            if not isinstance(review, dict):
                raise BadField(f"{name} is a {type(review).__name__}; it must be an object")
            try:
                told = interaction(review, clock, "timestamp_ms", "review_full", "review_title")
                yield reviewed(review, category), told
            except BadField as fault:
                raise BadField(f"{name}: {fault}") from fault


def reviewed(review: dict[str, Any], category: str) -> Item:
    """The product that a review is of, in the words of 2023's products.

    Raises:
      BadField: a field is missing or wrong.
    """
    item_id, known = word(review, "parent_asin"), product(field(review, "product", dict), category, "brand")
    attributes = (
        ("Category", ", ".join(known.categories)),
        ("Brand", known.brand),
        ("Price", known.price),
        ("Title", known.title),
    )
    return Item(item_id, known.title, attributes, known.categories)


class Amazon2023Sample(RecordBuilder):
    """A sample of Amazon Reviews 2023: ratings, times, texts, titles and prices, from a local folder."""

    name = "amazon_2023_sample"
    PUBLISHER = "https://amazon-reviews-2023.github.io"
    DESCRIPTION = f"A sample of Amazon Reviews 2023, users with a few reviews in one category; {PUBLISHER}"

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        holds = "an object a line with user_id, category, history and heldout"
        return AmazonSample(source_file(self.source_dir, "users.jsonl", holds, self.PUBLISHER), self.faults)
