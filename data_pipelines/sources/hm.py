"""H&M: two years of purchases, with images and descriptions of the articles, from a local folder.

    FOLDER/articles.csv               a line per article: ids, names and descriptive terms
    FOLDER/transactions_train.csv     a line per purchase: t_dat, customer_id, article_id, price, sales_channel_id
    FOLDER/images.zip or images/      010/0108775015.jpg: the first three digits of the article, the article

The `.csv` files may be `.csv.gz`. An article is a product (its first seven digits) in a colour; items are either of
them. Images may also be named by the product: an article without an image of its own has that of its product, and a
product without one has that of its first article. Purchases are dated by day and placed at its first second (UTC);
within a day, the order of the file is kept. Repeated purchases of an item by a customer are left out.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import tensorflow_datasets as tfds

from data_pipelines.schema import Item
from data_pipelines.sources.builder import RecordBuilder
from data_pipelines.sources.checks import Faults, clean
from data_pipelines.sources.images import StoredImages
from data_pipelines.sources.source import Source
from data_pipelines.sources.stored import StoredSource, store
from data_pipelines.sources.tables import joined, read_csv, text
from data_pipelines.sources.times import EARLIEST, latest

KINDS = ("index_group_name", "product_group_name", "product_type_name", "colour_group_name")
"""The columns of categories, most general first."""
ARTICLE = ("article_id", "prod_name", "graphical_appearance_name", *KINDS, "section_name", "detail_desc")
PURCHASE = ("t_dat", "customer_id", "article_id")
DIGITS = 7
"""The leading digits of the ten in an article id that form the product id."""
DIGITS_OF_ARTICLE = 10


def read_articles(path: Path, faults: Faults) -> pl.DataFrame:
    """Reads the `ARTICLE` columns as text, in the order of the file."""
    articles = joined(read_csv(path, ARTICLE, faults), ARTICLE)
    articles = articles.written_as("article_id", r"^[0-9]{10}$", "ten digits", _hint)
    return articles.distinct("article_id", "article").rows.select(map(text, ARTICLE))


def read_purchases(path: Path, articles: pl.Series, faults: Faults) -> Iterator[pl.DataFrame]:
    """Yields parts of the purchases with columns user, article and time, in the order of the file."""
    day, article = text("t_dat"), text("article_id")
    seconds = day.str.to_date("%Y-%m-%d", strict=False).dt.epoch("s")
    right = day.str.contains(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$") & seconds.is_between(EARLIEST, latest())
    for purchases in read_csv(path, PURCHASE, faults):
        purchases = purchases.written_as("t_dat", right, "a day from 1990 to next year, such as 2020-07-31")
        purchases = purchases.identifiers("customer_id").keep(
            article.is_in(articles.implode()),
            lambda row: f"article {row['article_id'][:40]} is not in articles.csv{_hint(row['article_id'])}",
            of="article_id",
        )
        yield purchases.rows.select(user="customer_id", article="article_id", time=seconds)


def _hint(article_id: str) -> str:
    """Returns a hint if an id lost its leading zero by being read as a number."""
    nine = article_id.isdigit() and len(article_id) == DIGITS_OF_ARTICLE - 1
    return "; a leading zero is missing: the program that wrote the file must treat ids as text" if nine else ""


def catalogue(articles: pl.DataFrame, item: pl.Expr, images: StoredImages) -> Callable[[str], Item]:
    """Returns a function that creates the item of an id, from one article or from all articles of a product; `item`
    maps an article to the id of its item. Values that differ among a product's articles are all listed, except for the
    name and the description; the item has a category only if all its articles share it."""
    things = articles.group_by(item.alias("item"), maintain_order=True).agg(pl.all().unique(maintain_order=True))
    rows = {name: row for row, name in enumerate(things["item"])}
    things = things.drop("item")

    def item_of(item_id: str) -> Item:
        thing = things.row(rows[item_id], named=True)
        values = {column: [text for value in of if (text := clean(value))] for column, of in thing.items()}
        name, description = ((values[column] or [""])[0] for column in ("prod_name", "detail_desc"))
        appearance, colour, section = (
            ", ".join(values[column]) for column in ("graphical_appearance_name", "colour_group_name", "section_name")
        )
        attributes = (
            ("Name", name),
            ("Appearance", appearance),
            ("Color", colour),
            ("Section", section),
            ("Description", description),
        )
        categories = tuple(values[kind][0] for kind in KINDS if len(values[kind]) == 1)
        names = dict.fromkeys([item_id, item_id[:DIGITS], *values["article_id"]])
        image = images.read(*(f"{name[:3]}/{name}.jpg" for name in names))
        return Item(item_id, name, attributes, categories, image)

    return item_of


class HM(RecordBuilder):
    """H&M Personalized Fashion Recommendations: purchases, texts and images, from a local folder."""

    name = "hm"
    PUBLISHER = "https://www.kaggle.com/competitions/h-and-m-personalized-fashion-recommendations"
    DESCRIPTION = f"H&M Personalized Fashion Recommendations; {PUBLISHER}"
    SELECTS = ("user_core", "item_core", "item")

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        articles_csv = self.file("articles.csv", "the articles")
        purchases_csv = self.file("transactions_train.csv", "the purchases")
        images = StoredImages(articles_csv.with_name("images"), self.faults)
        articles = read_articles(articles_csv, self.faults)
        purchases = read_purchases(purchases_csv, articles["article_id"], self.faults)
        digits = DIGITS if self.selection.item == "product" else DIGITS_OF_ARTICLE
        item = text("article").str.slice(0, digits).alias("item")
        kept = store((part.select("user", item, "time") for part in purchases), self.scratch(), "first", *self.cores)
        item_of = catalogue(articles, text("article_id").str.slice(0, digits), images)
        return StoredSource(kept, item_of)
