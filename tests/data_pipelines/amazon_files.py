"""Reviews and products as Amazon's three releases have them, written for tests."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.sources.amazon import AmazonBuilder
from data_pipelines.sources.amazon_releases import Amazon2014, Amazon2018, Amazon2023
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.selection import SourceSelection
from data_pipelines.sources.source import Source
from tests.data_pipelines.small import START

RELEASES: dict[str, type[AmazonBuilder]] = {
    "amazon_2014": Amazon2014,
    "amazon_2018": Amazon2018,
    "amazon_2023": Amazon2023,
}
every_release = pytest.mark.parametrize("name", RELEASES)


def review_2014(user: str, item: str, time: int = 1000, **changed: Any) -> dict[str, Any]:
    return {
        "reviewerID": user,
        "asin": item,
        "reviewerName": 'Jo "J"',
        "helpful": [2, 3],
        "reviewText": "Fine.",
        "overall": 4.0,
        "summary": "good",
        "unixReviewTime": START + time,
        "reviewTime": "09 13, 2009",
    } | changed


def review_2018(user: str, item: str, time: int = 1000, **changed: Any) -> dict[str, Any]:
    record = review_2014(user, item, time) | {"vote": "2", "verified": True, "style": {"Format:": " Hardcover"}}
    return {key: value for key, value in record.items() if key != "helpful"} | changed


def review_2023(user: str, item: str, time: int = 1000, **changed: Any) -> dict[str, Any]:
    return {
        "rating": 4.0,
        "title": "good",
        "text": "Fine.",
        "images": [],
        "asin": f"{item}X",
        "parent_asin": item,
        "user_id": user,
        "timestamp": (START + time) * 1000 + 923,
        "helpful_vote": 0,
        "verified_purchase": True,
    } | changed


def product_2014(item: str, **changed: Any) -> dict[str, Any]:
    return {
        "asin": item,
        "title": f"Thing {item}",
        "price": 7.5,
        "imUrl": f"http://ecx.images-amazon.com/images/I/{item}.jpg",
        "related": {"also_bought": ["B9"]},
        "salesRank": {"Beauty": 7},
        "brand": "Pearl",
        "categories": [["Beauty", "Hair Care"]],
        "description": "It's a thing.",
    } | changed


def product_2018(item: str, **changed: Any) -> dict[str, Any]:
    return {
        "category": ["Beauty", "Hair Care"],
        "tech1": "",
        "description": ["It's a thing."],
        "fit": "",
        "title": f"Thing {item}",
        "also_buy": ["B9"],
        "tech2": "",
        "brand": "Pearl",
        "feature": ["blue"],
        "rank": [">#3 in Beauty"],
        "main_cat": "All Beauty",
        "similar_item": "",
        "date": "",
        "price": "$7.50",
        "asin": item,
        "imageURL": [f"https://images-na.ssl-images-amazon.com/images/I/{item}._US40_.jpg"],
        "imageURLHighRes": [f"https://images-na.ssl-images-amazon.com/images/I/{item}.jpg"],
        "details": {"\n    Weight: \n    ": "1 pound"},
    } | changed


def product_2023(item: str, **changed: Any) -> dict[str, Any]:
    image = {"variant": "MAIN"} | {size: f"https://m/{item}_{size}.jpg" for size in ("thumb", "large", "hi_res")}
    return {
        "main_category": "All Beauty",
        "title": f"Thing {item}",
        "average_rating": 4.8,
        "rating_number": 10,
        "features": [],
        "description": ["It's a thing."],
        "price": 7.5,
        "images": [image],
        "videos": [],
        "store": "Pearl",
        "categories": ["Beauty", "Hair Care"],
        "details": {"Package Dimensions": "7 x 1 inches"},
        "parent_asin": item,
        "bought_together": None,
    } | changed


REVIEW = {"amazon_2014": review_2014, "amazon_2018": review_2018, "amazon_2023": review_2023}
PRODUCT = {"amazon_2014": product_2014, "amazon_2018": product_2018, "amazon_2023": product_2023}


def as_text(record: Any) -> str:
    return record if isinstance(record, str) else json.dumps(record)


def write(
    folder: Path,
    name: str,
    reviews: Sequence[Any],
    products: Sequence[Any] = (),
    category: str = "All_Beauty",
    pattern: int = 0,
) -> Path:
    """The two files of a category: reviews plain, products gzipped. A string is a line as it stands."""
    release = RELEASES[name]
    folder.mkdir(exist_ok=True)
    lines = "".join(f"{as_text(record)}\n" for record in reviews)
    (folder / release.REVIEWS[pattern].format(category)).write_text(lines, encoding="utf-8")
    literal: Callable[[Any], str] = repr if name == "amazon_2014" else json.dumps
    lines = "".join(f"{record if isinstance(record, str) else literal(record)}\n" for record in products)
    (folder / f"{release.PRODUCTS.format(category)}.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    return folder


def opened(
    folder: Path,
    name: str,
    cores: tuple[int, int] = (1, 1),
    faults: Faults | None = None,
    categories: tuple[str, ...] = (),
) -> Source:
    selection = SourceSelection(categories=categories, user_core=cores[0], item_core=cores[1])
    builder = RELEASES[name](
        config="items", data_dir=str(folder / "unused"), source_dir=folder, faults=faults, selection=selection
    )
    return builder.open_source(None)


def met(source: Source) -> dict[str, list[tuple[str, int]]]:
    """Item and time, in seconds after `START`, of each interaction of each user."""
    return {user.user_id: [(one.item_id, one.time - START) for one in user.interactions] for user in source.users()}


def product_of(name: str, record: dict[str, Any]) -> Any:
    return RELEASES[name].product(record, "All Beauty")
