"""Amazon Reviews 2014, 2018 and 2023: the file and field names of each release, and its peculiarities."""

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
    """Decodes a line that is a Python dictionary literal, or JSON (to which the publisher recommends converting it).
    Literals are parsed as data: `ast.literal_eval` creates strings, numbers and containers and calls nothing. Raises
    BadField if it is not a literal, not a dictionary, or has a key twice."""
    try:
        if len(text) > LONGEST_LITERAL:
            raise ValueError(f"{len(text):,} characters; at most {LONGEST_LITERAL:,} are parsed")
        if text.lstrip().startswith('{"'):
            try:
                return from_json(text)
            except BadField:
                pass  # Python strings may be in double quotes as well
        with warnings.catch_warnings(action="ignore"):  # warnings of invalid escapes
            tree = ast.parse(text.strip(" \t"), mode="eval")
            record = ast.literal_eval(tree)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or str(error).partition(": <")[0] or "nested too deeply"
        raise BadField(f"not a Python literal ({reason[:100]})") from error
    if not isinstance(record, dict):
        raise BadField(f"a {type(record).__name__} where a dictionary should be")
    if isinstance(tree.body, ast.Dict) and len(record) < len(tree.body.keys):
        raise BadField("a field occurs twice")
    return record


class Amazon2014(AmazonBuilder):
    """Amazon Reviews 2014, any categories: ratings, times, texts, products and images by URL, from a local folder.

    Times have a resolution of days. A line of products is a Python literal with the fields asin, title, price, brand,
    categories (a list of lists), description and imUrl.
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

    The data stem from web pages of many kinds, with some of their markup left in. A line of products has asin, title,
    price, brand, category, main_cat, description, imageURLHighRes and imageURL. A title that holds a page's script is
    dropped, as the publisher advises; an invalid price is unknown; a main category that is an image is replaced by the
    image's alternative text.
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
    images: a list of objects with variant, thumb, large, hi_res (or an object of lists). The brand is the store, or
    else that of the details; the image is the main one, in its medium size.
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
    """Returns the URL of the main image, or else of the first image; "" if there is none. The publisher's loader for
    Hugging Face stores a list for each field instead of an object for each image: {"large": […], …}. Raises BadField if
    the images are neither objects nor lists of one length."""
    images = field(record, "images", list, dict, default=None) or []
    if isinstance(images, dict):
        lists = list(images.values())
        if not all(isinstance(values, list) for values in lists) or len(set(map(len, lists))) > 1:
            raise BadField(f"field 'images' is {shown(images)}; it must contain objects, or lists of equal length")
        images = [dict(zip(images, row, strict=True)) for row in zip(*lists, strict=True)]
    for image in images:
        if not isinstance(image, dict):
            raise BadField(f"field 'images' contains {shown(image)}; it must contain objects")
    main = next((image for image in images if image.get("variant") == "MAIN"), images[0] if images else {})
    return next(filter(None, (text(main, size).strip() for size in ("large", "hi_res", "thumb"))), "")
