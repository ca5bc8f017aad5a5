"""Amazon Reviews 2014: a line of reviews is JSON, a line of products is a literal of Python's.

    reviews_CATEGORY_5.json, or reviews_CATEGORY.json    reviewerID, asin, overall, reviewText, summary, unixReviewTime
    meta_CATEGORY.json                                   asin, title, price, brand, categories, description, imUrl

Times are days. Literals are parsed as data: `ast.literal_eval` makes strings, numbers and containers and calls nothing.
Lines that are JSON are read as well, for so the publisher advises to write them anew.
"""

from __future__ import annotations

import ast
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.schema import Interaction
from data_pipelines.sources.amazon import AmazonBuilder, Product, Release, cleaned, price, several, text
from data_pipelines.sources.checks import BadField, Faults, field, texts
from data_pipelines.sources.json_files import parsed
from data_pipelines.sources.reading import read_lines
from data_pipelines.sources.reviews import clean, one_to_five, word, written
from data_pipelines.sources.times import Clock

LONGEST_LITERAL = 2**20


def review(record: dict[str, Any], clock: Clock) -> tuple[str, Interaction]:
    """(user id, interaction).

    Raises:
      BadField: a field is missing or wrong.
    """
    return word(record, "reviewerID"), Interaction(
        word(record, "asin"),
        time=clock.seconds(record, "unixReviewTime"),
        rating=one_to_five(record, "overall"),
        text=written(text(record, "reviewText"), text(record, "summary")),
    )


def product(record: dict[str, Any], category: str) -> Product:
    """
    Raises:
      BadField: a field is wrong.
    """
    paths = field(record, "categories", list, default=None) or []
    words = itertools.chain.from_iterable(texts({"categories": path}, "categories") for path in paths)
    return Product(
        title=clean(text(record, "title")),
        categories=cleaned(words) or (category,),
        price=price(record),
        brand=clean(text(record, "brand")),
        description=clean(" ".join(several(record, "description"))),
        image_url=text(record, "imUrl").strip(),
    )


def read_literals(path: Path, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, dictionary) of a file with a Python literal, or JSON, a line."""
    for line in faults.watched(line for line in read_lines(path) if line.text.strip()):
        try:
            if line.fault:
                raise BadField(line.fault)
            if len(line.text) > LONGEST_LITERAL:
                raise ValueError(f"{len(line.text):,} characters; at most {LONGEST_LITERAL:,} are parsed")
            record, no_json = parsed(line.text) if line.text.lstrip().startswith('{"') else (None, "it is none")
            if no_json:
                with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not know
                    record = literal(line.text)
        except BadField as fault:
            faults.bad_record(f"{line.place}: {fault}")
            continue
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            reason = getattr(error, "msg", None) or str(error).partition(": <")[0] or "nested too deeply"
            faults.bad_record(f"{line.place}: not a Python literal ({reason[:100]})")
            continue
        if not isinstance(record, dict):
            faults.bad_record(f"{line.place}: a {type(record).__name__} where a dictionary should be")
            continue
        yield line.place, record


def literal(text: str) -> Any:
    """What a Python literal says.

    Raises:
      BadField: a dictionary has a key twice.
      ValueError, TypeError, SyntaxError, RecursionError, MemoryError: it is no literal.
    """
    tree = ast.parse(text.strip(" \t"), mode="eval")
    record = ast.literal_eval(tree)
    if isinstance(tree.body, ast.Dict) and len(record) < len(tree.body.keys):
        raise BadField("a field occurs a second time")
    return record


class Amazon2014(AmazonBuilder):
    """Amazon Reviews 2014, any categories: ratings, times, texts, products and images by URL, from a local folder."""

    name = "amazon_2014"
    RELEASE = Release(
        publisher="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
        reviews=("reviews_{}_5.json", "reviews_{}.json"),
        products="meta_{}.json",
        where=("http://snap.stanford.edu/data/amazon/productGraph/categoryFiles",),
        item_id="asin",
        time="unixReviewTime",
        review=review,
        product=product,
        read_products=read_literals,
    )
    DESCRIPTION = f"Amazon Reviews 2014; {RELEASE.publisher}"
