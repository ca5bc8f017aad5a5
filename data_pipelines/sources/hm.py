"""H&M: two years of purchases, with an image and a description of what was bought, from a local folder.

    FOLDER/articles.csv               a line an article: ids, names and words for what it is
    FOLDER/transactions_train.csv     a line a purchase: t_dat, customer_id, article_id, price, sales_channel_id
    FOLDER/images.zip or images/      010/0108775015.jpg: the first three digits of the article, the article

where the `.csv` may be a `.csv.gz`. An article is a product (its first seven digits) in a colour; items are either. A
image may also be named by the product: an article that has none of its own has its product's, a product that has none
has its first article's. Purchases are dated to the day, at whose first second (UTC) they count; within a day the order
of the file stands. What somebody bought before is not counted again.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
import tensorflow_datasets as tfds

from data_pipelines.schema import Item
from data_pipelines.sources.builder import RecordBuilder
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.columns import identifiers
from data_pipelines.sources.images import StoredImages
from data_pipelines.sources.interactions import Counts, Tabled, core, without_repeats
from data_pipelines.sources.reviews import clean, source_file
from data_pipelines.sources.tables import read_csv, text
from data_pipelines.sources.times import EARLIEST, latest

KINDS = ("index_group_name", "product_group_name", "product_type_name", "colour_group_name")
"""Categories, most general first."""
ARTICLE = ("article_id", "prod_name", "graphical_appearance_name", *KINDS, "section_name", "detail_desc")
PURCHASE = ("t_dat", "customer_id", "article_id")
DIGITS = 7
"""So many of an article's ten are its product's."""
DIGITS_OF_ARTICLE = 10


def read_articles(path: Path, faults: Faults) -> pl.DataFrame:
    """`ARTICLE` columns, as text, in the file's order."""

    def wrong_id(row: dict[str, str]) -> str:
        return f"field 'article_id' is {row['article_id'][:40]!r}; it must be ten digits{_hint(row['article_id'])}"

    articles = read_csv(path, ARTICLE, faults).some()
    articles = articles.keep(text("article_id").str.contains(r"^[0-9]{10}$"), wrong_id)
    again = text("article_id").is_first_distinct()
    articles = articles.keep(again, lambda row: f"article {row['article_id']} occurs a second time")
    return articles.rows.with_columns(map(text, ARTICLE))


def read_purchases(path: Path, articles: pl.Series, faults: Faults) -> pl.DataFrame:
    """Columns user, article and time, in the file's order."""

    def wrong_date(row: dict[str, str]) -> str:
        return f"field 't_dat' is {row['t_dat'][:40]!r}; it must be a day from 1990 to next year, as 2020-07-31"

    def wrong_article(row: dict[str, str]) -> str:
        return f"article {row['article_id'][:40]} is not in articles.csv{_hint(row['article_id'])}"

    day, article = text("t_dat"), text("article_id")
    seconds = day.str.to_date("%Y-%m-%d", strict=False).dt.epoch("s")
    written = day.str.contains(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")
    purchases = read_csv(path, PURCHASE, faults).some()
    purchases = purchases.keep(written & seconds.is_between(EARLIEST, latest()), wrong_date, of="t_dat")
    purchases = identifiers(purchases, "customer_id")
    purchases = purchases.keep(article.is_in(articles.implode()), wrong_article, of="article_id")
    return purchases.rows.select(user="customer_id", article="article_id", time=seconds)


def _hint(article_id: str) -> str:
    """What became of an id that was read as a number."""
    nine = article_id.isdigit() and len(article_id) == DIGITS_OF_ARTICLE - 1
    return ": a leading zero is missing, so read ids as text where the file was written" if nine else ""


class Catalogue:
    """Items of H&M by id, each of one article or of all those of a product."""

    def __init__(self, articles: pl.DataFrame, item: pl.Expr, images: StoredImages):
        grouped = articles.drop("line").group_by(item.alias("item"), maintain_order=True)
        things = grouped.agg(pl.all().unique(maintain_order=True))
        self._rows = {name: row for row, name in enumerate(things["item"])}
        self._things = things.drop("item")
        self._images = images

    def __call__(self, item_id: str) -> Item:
        """What differs among a product's articles is listed for all of them, but for the name and the description; it
        is in a category if all its articles are."""
        thing = self._things.row(self._rows[item_id], named=True)
        values = {column: [text for value in of if (text := clean(value))] for column, of in thing.items()}
        name, description = ((values[column] or [""])[0] for column in ("prod_name", "detail_desc"))
        appearance, colour, section = (
            ", ".join(values[column]) for column in ("graphical_appearance_name", "colour_group_name", "section_name")
        )
        names = dict.fromkeys([item_id, item_id[:DIGITS], *values["article_id"]])
        return Item(
            item_id,
            name,
            (
                ("Name", name),
                ("Appearance", appearance),
                ("Color", colour),
                ("Section", section),
                ("Description", description),
            ),
            tuple(values[kind][0] for kind in KINDS if len(values[kind]) == 1),
            self._images.read(*(f"{name[:3]}/{name}.jpg" for name in names)),
        )


class HM(RecordBuilder):
    """H&M Personalized Fashion Recommendations: purchases, texts and images, from a local folder."""

    name = "hm"
    PUBLISHER = "https://www.kaggle.com/competitions/h-and-m-personalized-fashion-recommendations"
    DESCRIPTION = f"H&M Personalized Fashion Recommendations; {PUBLISHER}"
    SELECTS = ("user_core", "item_core", "item")

    def open_source(self, downloads: tfds.download.DownloadManager) -> Tabled:
        articles_csv = source_file(self.source_dir, "articles.csv", "the articles", self.PUBLISHER)
        purchases_csv = source_file(self.source_dir, "transactions_train.csv", "the purchases", self.PUBLISHER)
        images = StoredImages(articles_csv.with_name("images"), self.faults)
        articles = read_articles(articles_csv, self.faults)
        purchases = read_purchases(purchases_csv, articles["article_id"], self.faults)
        as_product = self.selection.item == "product"
        id_of = [
            pl.col(name).cast(pl.String).str.slice(0, DIGITS if as_product else None)
            for name in ("article", "article_id")
        ]
        frame = purchases.select("user", id_of[0].alias("item"), "time")
        kept = core(without_repeats(frame, "first"), *self.cores)
        return Tabled(kept, Catalogue(articles, id_of[1], images), Counts.of(frame))
