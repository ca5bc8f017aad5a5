"""Amazon Reviews 2014, 2018 and 2023: what each release calls its files and fields, and what is odd about it."""

from __future__ import annotations

import ast
import itertools
import re
import warnings
from typing import Any

from data_pipelines.sources.amazon import (
    AmazonBuilder,
    Product,
    ReviewFields,
    cleaned,
    description,
    price,
    several,
)
from data_pipelines.sources.checks import BadField, clean, field, shown, text, texts
from data_pipelines.sources.json_files import from_json

LONGEST_LITERAL = 2**20
FIELDS_2014 = ReviewFields("reviewerID", "asin", "unixReviewTime", "overall", "reviewText", "summary")
FIELDS_2023 = ReviewFields("user_id", "parent_asin", "timestamp", "rating", "text", "title")
ALTERNATIVE = re.compile(r'<img [^<>]*alt="([^"]*)"')


def from_literal(text: str) -> dict[str, Any]:
    """The dictionary that a line says as a literal of Python's, or as JSON, as which the publisher advises to write it.

    Literals are parsed as data: `ast.literal_eval` makes strings, numbers and containers and calls nothing.

    Raises:
      BadField: it is no literal, no dictionary, or has a key twice.
    """
    try:
        if len(text) > LONGEST_LITERAL:
            raise ValueError(f"{len(text):,} characters; at most {LONGEST_LITERAL:,} are parsed")
        if text.lstrip().startswith('{"'):
            try:
                return from_json(text)
            except BadField:
                pass  # strings of Python's may be in double quotes too
        with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not know
            tree = ast.parse(text.strip(" \t"), mode="eval")
            record = ast.literal_eval(tree)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or str(error).partition(": <")[0] or "nested too deeply"
        raise BadField(f"not a Python literal ({reason[:100]})") from error
    if not isinstance(record, dict):
        raise BadField(f"a {type(record).__name__} where a dictionary should be")
    if isinstance(tree.body, ast.Dict) and len(record) < len(tree.body.keys):
        raise BadField("a field occurs a second time")
    return record


class Amazon2014(AmazonBuilder):
    """Amazon Reviews 2014, any categories: ratings, times, texts, products and images by URL, from a local folder.

    Times are days. A line of products is a literal of Python's. It has asin, title, price, brand, categories (a list of
    lists), description and imUrl.
    """

    name = "amazon_2014"
    PUBLISHER = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html"
    DESCRIPTION = f"Amazon Reviews 2014; {PUBLISHER}"
    REVIEWS = ("reviews_{}_5.json", "reviews_{}.json")
    PRODUCTS = "meta_{}.json"
    WHERE = ("http://snap.stanford.edu/data/amazon/productGraph/categoryFiles",)
    FIELDS = FIELDS_2014
    decode_product = staticmethod(from_literal)

    @classmethod
    def product(cls, record: dict[str, Any], category: str) -> Product:
        paths = field(record, "categories", list, default=None) or []
        words = itertools.chain.from_iterable(texts({"categories": path}, "categories") for path in paths)
        return Product(
            title=clean(text(record, "title")),
            categories=cleaned(words) or (category,),
            price=price(record),
            brand=clean(text(record, "brand")),
            description=description(record),
            image_url=text(record, "imUrl").strip(),
        )


class Amazon2018(AmazonBuilder):
    """Amazon Reviews 2018, any categories: ratings, times, texts, products and images by URL, from a local folder.

    Web pages of many kinds, with some of their markup left in. A line of products has asin, title, price, brand,
    category, main_cat, description, imageURLHighRes and imageURL. A title that holds a page's script is none, as the
    publisher advises; a price that is none is unknown; a main category that is an image is what the image says in
    place of itself.
    """

    name = "amazon_2018"
    PUBLISHER = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/"
    DESCRIPTION = f"Amazon Reviews 2018; {PUBLISHER}"
    REVIEWS = ("{}_5.json", "{}.json")
    PRODUCTS = "meta_{}.json"
    WHERE = tuple(
        f"https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/{folder}"
        for folder in ("categoryFilesSmall", "categoryFiles", "metaFiles2")
    )
    FIELDS = FIELDS_2014

    @classmethod
    def product(cls, record: dict[str, Any], category: str) -> Product:
        title, main = text(record, "title"), text(record, "main_cat")
        image = ALTERNATIVE.search(main)
        urls = (*several(record, "imageURLHighRes"), *several(record, "imageURL"))
        return Product(
            title="" if "getTime" in title else clean(title),
            categories=cleaned(several(record, "category")) or cleaned([image[1] if image else main, category])[:1],
            price=price(record),
            brand=clean(text(record, "brand")),
            description=description(record),
            image_url=urls[0].strip() if urls else "",
        )


class Amazon2023(AmazonBuilder):
    """Amazon Reviews 2023, any categories: ratings, times, texts, products and images by URL, from a local folder.

    A line of products has parent_asin, title, price, store, categories, main_category, description, details, and
    images: a list of variant, thumb, large, hi_res (or lists of them). A brand is the store, or what the details say;
    the image is the main one, of its middle size.
    """

    name = "amazon_2023"
    PUBLISHER = "https://amazon-reviews-2023.github.io"
    DESCRIPTION = f"Amazon Reviews 2023; {PUBLISHER}"
    REVIEWS = ("{}.jsonl",)
    PRODUCTS = "meta_{}.jsonl"
    WHERE = tuple(
        f"https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw/{folder}"
        for folder in ("review_categories", "meta_categories")
    )
    FIELDS = FIELDS_2023

    @classmethod
    def product(cls, record: dict[str, Any], category: str, brand: str = "store") -> Product:
        details = field(record, "details", dict, str, default=None)
        known = text(details, "Brand") if isinstance(details, dict) else ""
        return Product(
            title=clean(text(record, "title")),
            categories=cleaned(several(record, "categories")) or cleaned([text(record, "main_category"), category])[:1],
            price=price(record),
            brand=clean(text(record, brand)) or clean(known),
            description=description(record),
            image_url=main_image_url(record),
        )


def main_image_url(record: dict[str, Any]) -> str:
    """The URL of the main image, or of the first; "" where there is none.

    The publisher's loader for Hugging Face has a list a field in place of an object an image: {"large": […], …}.

    Raises:
      BadField: what should say so does not.
    """
    images = field(record, "images", list, dict, default=None) or []
    if isinstance(images, dict):
        lists = list(images.values())
        if not all(isinstance(values, list) for values in lists) or len(set(map(len, lists))) > 1:
            raise BadField(f"field 'images' is {shown(images)}; it must hold objects, or lists of one length")
        images = [dict(zip(images, row, strict=True)) for row in zip(*lists, strict=True)]
    for image in images:
        if not isinstance(image, dict):
            raise BadField(f"field 'images' holds {shown(image)}; it must hold objects")
    main = next((image for image in images if image.get("variant") == "MAIN"), images[0] if images else {})
    return next(filter(None, (text(main, size).strip() for size in ("large", "hi_res", "thumb"))), "")
