"""Shared code of the Amazon Reviews releases: merges the two files of each category and reduces them to a core.

For each category, a folder holds the reviews and the reviewed products, one per line, plain or `.gz`. The publisher
provides reviews as a whole and as a 5-core; if both are there, the 5-core is read, unless a core of less than 5 is
requested. A user who reviewed in two categories becomes two users, `USER_ID/CATEGORY`; a product in two categories is
one item, with its first description (as is a product that one file describes twice, which occurs in 2018). Of several
reviews of an item by one user, the latest counts, at its time. The core is taken over all categories together.

The paper drops products without a description. They are kept here, since users did buy them: the title is the id, there
is no image, and the only attribute is the category of the reviews. Of products without reviews in the core, only the
ids are read.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.errors import DataError
from data_pipelines.nearest import did_you_mean
from data_pipelines.schema import Item
from data_pipelines.sources.builder import RecordBuilder
from data_pipelines.sources.checks import BadField, clean, field, shown, stars, text, texts, word
from data_pipelines.sources.fetched_images import FetchedImages
from data_pipelines.sources.json_files import from_json, read_objects
from data_pipelines.sources.reading import is_there, names_in
from data_pipelines.sources.source import COLUMNS, Source
from data_pipelines.sources.stored import StoredSource, store
from data_pipelines.sources.tables import frames_of
from data_pipelines.sources.times import Clock

PRICE = re.compile(r"(from )?\$?\d[\d,]*(\.\d+)?( ?- ?\$?\d[\d,]*(\.\d+)?)?")
Review = tuple[str, str, int, float, str]
"""A row of `COLUMNS`."""


@dataclasses.dataclass(frozen=True)
class ReviewFields:
    """The field names of a review: its user, item, time, rating in stars, text and headline."""

    user: str
    item: str
    time: str
    rating: str
    text: str
    headline: str

    def read(self, record: dict[str, Any], user: str, clock: Clock) -> Review:
        """Reads a review; raises BadField if a field is missing or wrong."""
        return (
            user,
            word(record, self.item),
            clock.seconds(record, self.time),
            stars(record, self.rating, 1, 5, needed=True),
            written(text(record, self.text), text(record, self.headline)),
        )


def written(text: str, headline: str) -> str:
    """Returns what a user wrote as one line: the review text, or the headline if the text is empty."""
    return clean(text) or clean(headline)


@dataclasses.dataclass(frozen=True)
class Product:
    """The known properties of a product, as clean text; "" if unknown. Categories are most general first."""

    title: str = ""
    categories: tuple[str, ...] = ()
    price: str = ""
    brand: str = ""
    description: str = ""
    image_url: str = ""

    def item(self, item_id: str, image: bytes) -> Item:
        """Returns the product as an item."""
        attributes = (
            ("Category", ", ".join(self.categories)),
            ("Price", self.price),
            ("Brand", self.brand),
            ("Title", self.title),
            ("Description", self.description),
        )
        return Item(item_id, self.title or item_id, attributes, self.categories, image)


class AmazonBuilder(RecordBuilder):
    """The builder of a release, from a local folder; subclasses define the layout of the release.

    Attributes:
      REVIEWS: file names of a category's reviews, {} for the category: the 5-core, if it is published, then the whole.
      PRODUCTS: the file name of a category's products.
      FIELDS: the field names of a review; a product has its id in the same field.
      decode_product: decodes a line of the products' file to a record.
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
        """Returns the product described by a record, in `category` if it names none; implemented by subclasses. Raises
        BadField if a field is wrong."""
        raise TypeError(f"{cls.__name__} does not implement the reading of products")

    @property
    def instructions(self) -> str:
        """A message that says which files are needed and where they are published."""
        names = " or ".join(f"{name.format('CATEGORY')}.gz" for name in self.REVIEWS)
        return (
            f"for each category {names}, and {self.PRODUCTS.format('CATEGORY')}.gz, are needed in the folder of "
            f"--source-dir (unpacked files work too); download them from {' and '.join(self.WHERE)} (see "
            f"{self.PUBLISHER})"
        )

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        """Opens the source from its files; raises DataError if files are missing or bad, or images cannot be
        fetched."""
        if self.source_dir is None:
            raise DataError(f"this source cannot be downloaded from here: {self.instructions}")
        files = self._files(self.source_dir)
        starts: dict[str, int] = {}
        kept = store(frames_of(self._reviews(files, starts), COLUMNS), self.scratch(), "last", *self.cores)
        categories = list(starts)
        rows, ends = kept.firsts(), np.array(list(starts.values()))
        first_in = {item: categories[np.searchsorted(ends, row, "right") - 1] for item, row in rows.items()}
        products = self._products(self.source_dir, files, first_in)
        images = FetchedImages(self.source_dir / "images", self.faults)
        if self.selection.fetch_images:
            images.fetch({item: product.image_url for item, product in products.items() if product.image_url})
        return StoredSource(kept, lambda item: products[item].item(item, images.read(item)))

    def _files(self, folder: Path) -> dict[str, Path]:
        """Returns the review file (without `.gz`) of each selected category; by default of all in the folder. Raises
        DataError, which says what is needed, if there are none, or a category has no reviews or no products."""
        patterns = {name: re.escape(name).replace(r"\{\}", "(?!meta_)(.+)") for name in self.REVIEWS}
        found: dict[str, dict[str, Path]] = defaultdict(dict)  # category -> entry of `REVIEWS` -> its file
        for name in names_in(folder, "|".join(patterns.values())):
            kind, match = next((kind, match) for kind in patterns if (match := re.fullmatch(patterns[kind], name)))
            found[match[1]][kind] = folder / name
        if not found:
            raise DataError(f"{folder} has no reviews: {self.instructions}")
        for category in self.selection.categories or found:
            if category not in found:
                hint, there_are = did_you_mean(category, found), ", ".join(found)
                raise DataError(
                    f"{folder} has no reviews of category {category!r}; {hint}It has those of {there_are}; "
                    + self.instructions
                )
            if not is_there(folder / self.PRODUCTS.format(category)):
                raise DataError(f"{folder / self.PRODUCTS.format(category)} does not exist: {self.instructions}")
        which = 0 if min(self.cores) >= 5 else -1
        return {
            category: [found[category][kind] for kind in self.REVIEWS if kind in found[category]][which]
            for category in self.selection.categories or found
        }

    def _reviews(self, files: dict[str, Path], starts: dict[str, int]) -> Iterator[Review]:
        """Yields all reviews, and sets the number of the first one of each category in `starts`."""
        number = 0
        for category, path in files.items():
            clock, starts[category] = Clock.of(path, self.FIELDS.time), number

            def review(record: dict[str, Any], category: str = category, clock: Clock = clock) -> Review:
                return self.FIELDS.read(record, f"{word(record, self.FIELDS.user)}/{category}", clock)

            for _, found in read_objects(path, self.faults, review):
                yield found
                number += 1

    def _products(self, folder: Path, categories: Iterable[str], first_in: dict[str, str]) -> dict[str, Product]:
        """Returns the product of each reviewed item; `first_in` has the category of the first review of each."""
        known: dict[str, Product] = {}
        for category in categories:

            def keep(record: dict[str, Any], category: str = category) -> None:
                item = word(record, self.FIELDS.item)
                if item in first_in and item not in known:
                    known[item] = self.product(record, spaced(category))

            path = folder / self.PRODUCTS.format(category)
            for _ in read_objects(path, self.faults, keep, self.decode_product, needed=False):
                pass
        return {item: known.get(item) or Product(categories=(spaced(category),)) for item, category in first_in.items()}


# --- what fields of products say -------------------------------------------------------------------------------------


def spaced(category: str) -> str:
    """Replaces underscores by spaces, as in `Musical_Instruments`."""
    return category.replace("_", " ")


def several(record: dict[str, Any], name: str) -> tuple[str, ...]:
    """Returns a field that holds one text or a list of texts as a tuple; () if it is missing or null."""
    value = field(record, name, list, str, default=None)
    return texts(record, name) if isinstance(value, list) else (value,) if value else ()


def cleaned(words: Iterable[str]) -> tuple[str, ...]:
    """Cleans texts, removing duplicates and empty ones."""
    return tuple(dict.fromkeys(filter(None, map(clean, words))))


def price(record: dict[str, Any]) -> str:
    """Returns a price as text, with two decimals if the file has a number; "" if it is missing, null or other text.
    Raises BadField if it is a number that is not a price."""
    value = field(record, "price", int, float, str, default=None)
    if value is None or isinstance(value, str):
        written = clean(value or "")
        return re.sub("[$,]", "", written) if PRICE.fullmatch(written) else ""
    if not 0 <= value < 2**53:
        raise BadField(f"field 'price' is {shown(value)}; it must be a price, or null")
    return f"{value:.2f}"


def description(record: dict[str, Any]) -> str:
    """Returns the parts of a description joined to one text."""
    return clean(" ".join(several(record, "description")))
