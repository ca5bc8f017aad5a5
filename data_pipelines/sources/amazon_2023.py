"""Amazon Reviews 2023: JSON lines.

    CATEGORY.jsonl         user_id, parent_asin, rating, timestamp (milliseconds), text, title
    meta_CATEGORY.jsonl    parent_asin, title, price, store, categories, main_category, description, details,
                           images: a list of variant, thumb, large, hi_res

A brand is the store, or what the details say; the picture is the main one, of its middle size.
"""

from __future__ import annotations

from typing import Any

from data_pipelines.schema import Interaction
from data_pipelines.sources.amazon import AmazonBuilder, Product, Release, cleaned, price, several, text
from data_pipelines.sources.checks import BadField, field, shown
from data_pipelines.sources.reviews import clean, one_to_five, word, written


def interaction(
    record: dict[str, Any], time: str = "timestamp", body: str = "text", headline: str = "title"
) -> Interaction:
    """
    Args:
      time, body, headline: names of fields.

    Raises:
      BadField: a field is missing or wrong.
    """
    milliseconds = field(record, time, int)
    if not 0 <= milliseconds < 2**62:
        raise BadField(f"field {time!r} is {milliseconds}; it must be milliseconds since 1970")
    return Interaction(
        word(record, "parent_asin"),
        time=milliseconds // 1000,
        rating=one_to_five(record, "rating"),
        text=written(text(record, body), text(record, headline)),
    )


def review(record: dict[str, Any]) -> tuple[str, Interaction]:
    """(user id, interaction).

    Raises:
      BadField: a field is missing or wrong.
    """
    return word(record, "user_id"), interaction(record)


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
        picture=picture(record),
    )


def picture(record: dict[str, Any]) -> str:
    """The URL of the main picture, or of the first; "" where there is none.

    Raises:
      BadField: what should say so does not.
    """
    images = field(record, "images", list, default=None) or []
    for image in images:
        if not isinstance(image, dict):
            raise BadField(f"field 'images' holds {shown(image)}; it must hold objects")
    main = next((image for image in images if image.get("variant") == "MAIN"), images[0] if images else {})
    return next(filter(None, (text(main, size).strip() for size in ("large", "hi_res", "thumb"))), "")


class Amazon2023(AmazonBuilder):
    """Amazon Reviews 2023, any categories: ratings, times, texts, products and pictures by URL, from a local folder."""

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
        review=review,
        product=product,
    )
    DESCRIPTION = f"Amazon Reviews 2023; {RELEASE.publisher}"
