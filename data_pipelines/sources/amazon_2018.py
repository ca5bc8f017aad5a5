"""Amazon Reviews 2018: JSON lines, of web pages of many kinds, with some of their markup left in.

    CATEGORY_5.json, or CATEGORY.json    the fields of 2014's reviews
    meta_CATEGORY.json                   asin, title, price, brand, category, main_cat, description, imageURLHighRes,
                                         imageURL

A title that holds a page's script is none, as the publisher advises; a price that is none is unknown; a main category
that is an image is what the image says in place of itself.
"""

from __future__ import annotations

import re
from typing import Any

from data_pipelines.sources.amazon import AmazonBuilder, Product, Release, cleaned, price, several, text
from data_pipelines.sources.amazon_2014 import review
from data_pipelines.sources.reviews import clean

ALTERNATIVE = re.compile(r'<img [^<>]*alt="([^"]*)"')


def product(record: dict[str, Any], category: str) -> Product:
    """
    Raises:
      BadField: a field is wrong.
    """
    title, main = text(record, "title"), text(record, "main_cat")
    image = ALTERNATIVE.search(main)
    urls = (*several(record, "imageURLHighRes"), *several(record, "imageURL"))
    return Product(
        title="" if "getTime" in title else clean(title),
        categories=cleaned(several(record, "category")) or cleaned([image[1] if image else main, category])[:1],
        price=price(record),
        brand=clean(text(record, "brand")),
        description=clean(" ".join(several(record, "description"))),
        image_url=urls[0].strip() if urls else "",
    )


class Amazon2018(AmazonBuilder):
    """Amazon Reviews 2018, any categories: ratings, times, texts, products and images by URL, from a local folder."""

    name = "amazon_2018"
    RELEASE = Release(
        publisher="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/",
        reviews=("{}_5.json", "{}.json"),
        products="meta_{}.json",
        where=tuple(
            f"https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/{folder}"
            for folder in ("categoryFilesSmall", "categoryFiles", "metaFiles2")
        ),
        item_id="asin",
        time="unixReviewTime",
        review=review,
        product=product,
    )
    DESCRIPTION = f"Amazon Reviews 2018; {RELEASE.publisher}"
