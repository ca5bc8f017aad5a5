"""What the releases of Amazon Reviews share: two files a category, merged, cut down to their core.

A folder holds, for each category, its reviews and the products that they are of, one a line, plain or `.gz`. Of reviews
the publisher has the whole and the 5-core: where both are there, the 5-core is read, unless a core of less than 5 is
asked for. A user who reviewed in two categories is two users, `USER_ID/CATEGORY`; a product in two categories is one
item, as the first of them describes it (so of products that a file describes twice, as 2018's do). Of several reviews
of one item by one user the latest counts, at its time. The core is taken of what all categories hold together.

The paper drops a product that is not described. Here it stays, for users did buy it: called by its id, without a
image, with the category of its reviews and nothing else. Of products that nobody in the core reviewed only the ids
are looked at.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import tensorflow_datasets as tfds

from data_pipelines.errors import DataError
from data_pipelines.nearest import did_you_mean
from data_pipelines.schema import Item
from data_pipelines.sources.builder import RecordBuilder
from data_pipelines.sources.checks import BadField, clean, field, shown, stars, text, texts, word
from data_pipelines.sources.fetched_images import FetchedImages
from data_pipelines.sources.json_files import from_json, read_objects
from data_pipelines.sources.reading import is_there, names_in
from data_pipelines.sources.source import COLUMNS, Counts, Source, core, without_repeats
from data_pipelines.sources.tables import frame_of
from data_pipelines.sources.times import Clock

PRICE = re.compile(r"(from )?\$?\d[\d,]*(\.\d+)?( ?- ?\$?\d[\d,]*(\.\d+)?)?")
Review = tuple[str, str, int, float, str]
"""A row of `COLUMNS`."""


@dataclasses.dataclass(frozen=True)
class ReviewFields:
    """What the fields of a review are called: whose it is, of what, when, in stars, and its words."""

    user: str
    item: str
    time: str
    rating: str
    text: str
    headline: str

    def read(self, record: dict[str, Any], user: str, clock: Clock) -> Review:
        """
        Args:
          user: what the user is called here.
          clock: of the file.

        Raises:
          BadField: a field is missing or wrong.
        """
        return (
            user,
            word(record, self.item),
            clock.seconds(record, self.time),
            stars(record, self.rating, 1, 5, needed=True),
            written(text(record, self.text), text(record, self.headline)),
        )


def written(text: str, headline: str) -> str:
    """What a user wrote, as one line: the review itself, or its headline where the review is empty."""
    return clean(text) or clean(headline)


@dataclasses.dataclass(frozen=True)
class Product:
    """What is known of a product, in clean text; "" where nothing is.

    Attributes:
      categories: most general first.
      image_url: where the main image is.
    """

    title: str = ""
    categories: tuple[str, ...] = ()
    price: str = ""
    brand: str = ""
    description: str = ""
    image_url: str = ""

    def item(self, item_id: str, image: bytes) -> Item:
        """The product as an item."""
        attributes = (
            ("Category", ", ".join(self.categories)),
            ("Price", self.price),
            ("Brand", self.brand),
            ("Title", self.title),
            ("Description", self.description),
        )
        return Item(item_id, self.title or item_id, attributes, self.categories, image)


class AmazonBuilder(RecordBuilder):
    """The builder of a release, from a local folder: a subclass says how the release is laid out.

    Attributes:
      REVIEWS: names of a category's reviews, {} for the category; of the 5-core, where it is published, and the whole.
      PRODUCTS: the name of a category's products.
      WHERE: the URLs that all of them are at.
      FIELDS: of a review; a product has its id in the same field.
      decode_product: the record of a line of products.
    """

    SELECTS = ("categories", "user_core", "item_core", "fetch_images")
    DEFAULT_CORE = (8, 5)
    REVIEWS: ClassVar[tuple[str, ...]]
    PRODUCTS: ClassVar[str]
    WHERE: ClassVar[tuple[str, ...]]
    FIELDS: ClassVar[ReviewFields]
    decode_product = staticmethod(from_json)

    @classmethod
    def product(cls, record: dict[str, Any], category: str) -> Product:
        """What a record of a product says; subclasses say how.

        Args:
          category: the product's, where the record has none.

        Raises:
          BadField: a field is wrong.
        """
        raise TypeError(f"{cls.__name__} does not say how it reads a product")

    @property
    def instructions(self) -> str:
        """Which files are needed, and where they are."""
        names = " or ".join(f"{name.format('CATEGORY')}.gz" for name in self.REVIEWS)
        return (
            f"for each category {names}, and {self.PRODUCTS.format('CATEGORY')}.gz, are needed (unpacked will do) in "
            f"the folder that --source-dir names; fetch them from {' and '.join(self.WHERE)} (see {self.PUBLISHER})"
        )

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        """
        Raises:
          DataError: files are missing or bad, or images that were to be fetched cannot be.
        """
        if self.source_dir is None:
            raise DataError(f"this source cannot be downloaded from here: {self.instructions}")
        files = self._files(self.source_dir)
        reviews = frame_of(self._reviews(files), COLUMNS)
        read = Counts.of(reviews)
        reviews = core(without_repeats(reviews, "last"), *self.cores)
        products = self._products(self.source_dir, files, reviews)
        images = FetchedImages(self.source_dir / "images", self.faults)
        if self.selection.fetch_images:
            images.fetch({item: product.image_url for item, product in products.items() if product.image_url})
        return Source(reviews, lambda item: products[item].item(item, images.read(item)), read)

    def _files(self, folder: Path) -> dict[str, Path]:
        """The file of reviews of each category, all of the folder where none is named; without `.gz`.

        Raises:
          DataError: there are none, or a category has no reviews or no products; the message says what is needed.
        """
        patterns = {name: re.escape(name).replace(r"\{\}", "(?!meta_)(.+)") for name in self.REVIEWS}
        found: dict[str, dict[str, Path]] = defaultdict(dict)  # category -> which of `REVIEWS` -> its file
        for name in names_in(folder, "|".join(patterns.values())):
            kind, match = next((kind, match) for kind in patterns if (match := re.fullmatch(patterns[kind], name)))
            found[match[1]][kind] = folder / name
        if not found:
            raise DataError(f"{folder} holds no reviews: {self.instructions}")
        for category in self.selection.categories or found:
            if category not in found:
                hint, there_are = did_you_mean(category, found), ", ".join(found)
                raise DataError(
                    f"{folder} holds no reviews of category {category!r}; {hint}It holds those of {there_are}; "
                    + self.instructions
                )
            if not is_there(folder / self.PRODUCTS.format(category)):
                raise DataError(f"{folder / self.PRODUCTS.format(category)} does not exist: {self.instructions}")
        which = 0 if min(self.cores) >= 5 else -1
        return {
            category: [found[category][kind] for kind in self.REVIEWS if kind in found[category]][which]
            for category in self.selection.categories or found
        }

    def _reviews(self, files: dict[str, Path]) -> Iterator[Review]:
        for category, path in files.items():
            clock = Clock.of(path, self.FIELDS.time)

            def review(record: dict[str, Any], category: str = category, clock: Clock = clock) -> Review:
                return self.FIELDS.read(record, f"{word(record, self.FIELDS.user)}/{category}", clock)

            yield from (found for _, found in read_objects(path, self.faults, review))

    def _products(self, folder: Path, categories: Iterable[str], reviews: pl.DataFrame) -> dict[str, Product]:
        """The product of each item that is reviewed."""
        firsts = reviews.select("item", "user").unique("item", keep="first", maintain_order=True)
        fallback = {item: user.rpartition("/")[2] for item, user in firsts.iter_rows()}
        known: dict[str, Product] = {}
        for category in categories:

            def keep(record: dict[str, Any], category: str = category) -> None:
                item = word(record, self.FIELDS.item)
                if item in fallback and item not in known:
                    known[item] = self.product(record, spaced(category))

            path = folder / self.PRODUCTS.format(category)
            for _ in read_objects(path, self.faults, keep, self.decode_product, needed=False):
                pass
        return {item: known.get(item) or Product(categories=(spaced(category),)) for item, category in fallback.items()}


# --- what fields of products say -------------------------------------------------------------------------------------


def spaced(category: str) -> str:
    """`Musical_Instruments` in words."""
    return category.replace("_", " ")


def several(record: dict[str, Any], name: str) -> tuple[str, ...]:
    """The texts of a list, or the only one; () where it is missing or null."""
    value = field(record, name, list, str, default=None)
    return texts(record, name) if isinstance(value, list) else (value,) if value else ()


def cleaned(words: Iterable[str]) -> tuple[str, ...]:
    """Words as clean text, each once, empty ones left out."""
    return tuple(dict.fromkeys(filter(None, map(clean, words))))


def price(record: dict[str, Any]) -> str:
    """A price as text, with two decimals where the file has a number; "" where it is missing, null, or other text.

    Raises:
      BadField: it is not a price.
    """
    value = field(record, "price", int, float, str, default=None)
    if value is None or isinstance(value, str):
        written = clean(value or "")
        return re.sub("[$,]", "", written) if PRICE.fullmatch(written) else ""
    if not 0 <= value < 2**53:
        raise BadField(f"field 'price' is {shown(value)}; it must be a price, or null")
    return f"{value:.2f}"


def description(record: dict[str, Any]) -> str:
    """The pieces of a description as one text."""
    return clean(" ".join(several(record, "description")))
