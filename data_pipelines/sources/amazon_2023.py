"""Amazon Reviews 2023: JSON lines.

    CATEGORY.jsonl         user_id, parent_asin, rating, timestamp, text, title
    meta_CATEGORY.jsonl    parent_asin, title, price, store, categories, main_category, description, details,
                           images: a list of variant, thumb, large, hi_res (or lists of them)

A brand is the store, or what the details say; the image is the main one, of its middle size.
"""

from __future__ import annotations

from typing import Any

from data_pipelines.schema import Interaction
from data_pipelines.sources.amazon import AmazonBuilder, Product, Release, cleaned, price, several, text
from data_pipelines.sources.checks import BadField, field, shown
from data_pipelines.sources.reviews import clean, one_to_five, word, written
from data_pipelines.sources.times import Clock


def interaction(
    record: dict[str, Any], clock: Clock, time: str = "timestamp", body: str = "text", headline: str = "title"
) -> Interaction:
    """
    Args:
      clock: of the file.
      time, body, headline: names of fields.

    Raises:
      BadField: a field is missing or wrong.
    """
    return Interaction(
        word(record, "parent_asin"),
        time=clock.seconds(record, time),
        rating=one_to_five(record, "rating"),
        text=written(text(record, body), text(record, headline)),
    )


def review(record: dict[str, Any], clock: Clock) -> tuple[str, Interaction]:
    """(user id, interaction).

    Raises:
      BadField: a field is missing or wrong.
    """
    return word(record, "user_id"), interaction(record, clock)


def product(record: dict[str, Any], category: str, brand: str = "store") -> Product:
    """
    Args:
      category: the product's, where the record has none.
      brand: the name of a field.

    Raises:
      BadField: a field is wrong.
    """
    details = field(record, "details", dict, str, default=None)
    known = text(details, "Brand") if isinstance(details, dict) else ""
    return Product(
        title=clean(text(record, "title")),
        categories=cleaned(several(record, "categories")) or cleaned([text(record, "main_category"), category])[:1],
        price=price(record),
        brand=clean(text(record, brand)) or clean(known),
        description=clean(" ".join(several(record, "description"))),
        image_url=image_url(record),
    )


def image_url(record: dict[str, Any]) -> str:
    """The URL of the main image, or of the first; "" where there is none.

    Raises:
      BadField: what should say so does not.
    """
    images = field(record, "images", list, dict, default=None) or []
    if isinstance(images, dict):
        images = rows_of(images)
    for image in images:
        if not isinstance(image, dict):
            raise BadField(f"field 'images' holds {shown(image)}; it must hold objects")
    main = next((image for image in images if image.get("variant") == "MAIN"), images[0] if images else {})
    return next(filter(None, (text(main, size).strip() for size in ("large", "hi_res", "thumb"))), "")


def rows_of(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """What the publisher's loader for Hugging Face has as a list a field, {"large": [...], ...}, an object an image.

    Raises:
      BadField: the fields are no lists of one length.
    """
    if not all(isinstance(values, list) for values in columns.values()) or len(set(map(len, columns.values()))) > 1:
        raise BadField(f"field 'images' is {shown(columns)}; it must hold objects, or lists of one length")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class Amazon2023(AmazonBuilder):
    """Amazon Reviews 2023, any categories: ratings, times, texts, products and images by URL, from a local folder."""

    name = "amazon_2023"
    RELEASE = Release(
        publisher="https://amazon-reviews-2023.github.io",
        reviews=("{}.jsonl",),
        products="meta_{}.jsonl",
        where=tuple(
            f"https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw/{folder}"
            for folder in ("review_categories", "meta_categories")
        ),
        item_id="parent_asin",
        time="timestamp",
        review=review,
        product=product,
    )
    DESCRIPTION = f"Amazon Reviews 2023; {RELEASE.publisher}"
