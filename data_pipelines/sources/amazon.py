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
import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import tensorflow_datasets as tfds

from data_pipelines.errors import DataError
from data_pipelines.nearest import did_you_mean
from data_pipelines.schema import Interaction, Item
from data_pipelines.sources.builder import RecordBuilder
from data_pipelines.sources.checks import BadField, Faults, field, shown, texts
from data_pipelines.sources.fetched_images import FetchedImages
from data_pipelines.sources.interactions import COLUMNS, Counts, Tabled, core, without_repeats
from data_pipelines.sources.json_files import read_objects
from data_pipelines.sources.parts import Source
from data_pipelines.sources.reading import names_in
from data_pipelines.sources.reviews import clean, word
from data_pipelines.sources.selection import Selection
from data_pipelines.sources.times import Clock

CHUNK = 100_000
PRICE = re.compile(r"(from )?\$?\d[\d,]*(\.\d+)?( ?- ?\$?\d[\d,]*(\.\d+)?)?")


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
        attributes = (
            ("Category", ", ".join(self.categories)),
            ("Price", self.price),
            ("Brand", self.brand),
            ("Title", self.title),
            ("Description", self.description),
        )
        return Item(item_id, self.title or item_id, attributes, self.categories, image)


@dataclasses.dataclass(frozen=True)
class Release:
    """How a release is laid out, and what its lines say.

    Attributes:
      publisher: a URL to read about it.
      reviews: names of a category's reviews, {} for the category; of the 5-core, where it is published, and the whole.
      products: the name of a category's products.
      where: the URLs that all of them are at.
      item_id: the field of a product that names it.
      time: the field of a review that says when.
      review: (user id, interaction) of a line of reviews, given the clock of the file; raises `BadField`.
      product: the product of a line, given the category to fall back on; raises `BadField`.
      read_products: (place, record) of each line of a file of products.
    """

    publisher: str
    reviews: tuple[str, ...]
    products: str
    where: tuple[str, ...]
    item_id: str
    time: str
    review: Callable[[dict[str, Any], Clock], tuple[str, Interaction]]
    product: Callable[[dict[str, Any], str], Product]
    read_products: Callable[[Path, Faults], Iterator[tuple[str, dict[str, Any]]]] = functools.partial(
        read_objects, needed=False
    )

    @property
    def instructions(self) -> str:
        names = " or ".join(f"{name.format('CATEGORY')}.gz" for name in self.reviews)
        return (
            f"for each category {names}, and {self.products.format('CATEGORY')}.gz, are needed (unpacked will do) in "
            f"the folder that --source-dir names; fetch them from {' and '.join(self.where)} (see {self.publisher})"
        )


def open_release(
    release: Release, folder: Path | None, selection: Selection, cores: tuple[int, int], faults: Faults
) -> Tabled:
    """
    Args:
      cores: least interactions of a user, and of an item.

    Raises:
      DataError: files are missing or bad, or images that were to be fetched cannot be.
    """
    if folder is None:
        raise DataError(f"this source cannot be downloaded from here: {release.instructions}")
    files = review_files(release, folder, selection.categories, cores)
    reviews = table(_rows(release, files, faults))
    read = Counts.of(reviews)
    reviews = core(without_repeats(reviews, "last"), *cores)
    products = _products(release, folder, files, reviews, faults)
    images = FetchedImages(folder / "images", faults)
    if selection.fetch_images:
        images.fetch({item: product.image_url for item, product in products.items() if product.image_url})
    return Tabled(reviews, lambda item: products[item].item(item, images.read(item)), read)


def review_files(release: Release, folder: Path, categories: Iterable[str], cores: tuple[int, int]) -> dict[str, Path]:
    """The file of reviews of each category, all of the folder where none is named; without `.gz`.

    Raises:
      DataError: there are none, or a category has no reviews or no products; the message says what is needed.
    """
    there = names_in(folder, folders=True)
    found = _by_category(release, names_in(folder))
    if not found or not found.keys() >= set(categories):
        found = _by_category(release, there)  # reading will say of a folder that it is one
    if not found:
        raise DataError(f"{folder} holds no reviews: {release.instructions}")
    files = {}
    for category in dict.fromkeys(categories) or found:
        if category not in found:
            hint, there_are = did_you_mean(category, found), ", ".join(found)
            raise DataError(
                f"{folder} holds no reviews of category {category!r}; {hint}It holds those of {there_are}; "
                + release.instructions
            )
        if release.products.format(category) not in there:
            raise DataError(f"{folder / release.products.format(category)} does not exist: {release.instructions}")
        names = [found[category][pattern] for pattern in release.reviews if pattern in found[category]]
        files[category] = folder / names[0 if min(cores) >= 5 else -1]
    return files


def _by_category(release: Release, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Category -> pattern -> name of a file of reviews."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        for pattern in release.reviews:
            if match := re.fullmatch(re.escape(pattern).replace(r"\{\}", "(?!meta_)(.+)"), name):
                found[match[1]][pattern] = name
                break
    return found


def _rows(release: Release, files: dict[str, Path], faults: Faults) -> Iterator[tuple[str, str, int, float, str]]:
    for category, path in files.items():
        clock = Clock.of(path, release.time)
        for place, record in read_objects(path, faults):
            try:
                user, review = release.review(record, clock)
            except BadField as fault:
                faults.bad_record(f"{place}: {fault}")
                continue
            yield f"{user}/{category}", review.item_id, review.time, review.rating, review.text


def table(rows: Iterator[tuple[str, str, int, float, str]]) -> pl.DataFrame:
    """Rows of `COLUMNS` as a table, gathered in pieces, so that few are Python's objects at a time."""
    pieces = [pl.DataFrame(schema=COLUMNS)]
    while chunk := list(itertools.islice(rows, CHUNK)):
        pieces.append(pl.DataFrame(chunk, schema=COLUMNS, orient="row"))
    return pl.concat(pieces)


def _products(
    release: Release, folder: Path, categories: Iterable[str], reviews: pl.DataFrame, faults: Faults
) -> dict[str, Product]:
    """The product of each item that is reviewed."""
    firsts = reviews.select("item", "user").unique("item", keep="first", maintain_order=True)
    fallback = {item: user.rpartition("/")[2] for item, user in firsts.iter_rows()}
    known: dict[str, Product] = {}
    for category in categories:
        for place, record in release.read_products(folder / release.products.format(category), faults):
            try:
                item = word(record, release.item_id)
                if item in fallback and item not in known:
                    known[item] = release.product(record, spaced(category))
            except BadField as fault:
                faults.bad_record(f"{place}: {fault}")
    return {item: known.get(item) or Product(categories=(spaced(category),)) for item, category in fallback.items()}


def spaced(category: str) -> str:
    """`Musical_Instruments` in words."""
    return category.replace("_", " ")


def text(record: dict[str, Any], name: str) -> str:
    """A text, "" where it is missing or null."""
    return field(record, name, str, default=None) or ""


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


class AmazonBuilder(RecordBuilder):
    """The builder of a release, from a local folder."""

    RELEASE: Release
    SELECTS = ("categories", "user_core", "item_core", "fetch_images")
    DEFAULT_CORE = (8, 5)

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        return open_release(self.RELEASE, self.source_dir, self.selection, self.cores, self.faults)
