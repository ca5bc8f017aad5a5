"""Amazon's releases, from files in the publisher's formats: what is read, what is left out, what is said about it."""

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.records import read_items, read_users
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.sources import find_source
from data_pipelines.sources.amazon import Release, open_release
from data_pipelines.sources.amazon_2014 import LONGEST_LITERAL, Amazon2014, read_literals
from data_pipelines.sources.amazon_2018 import Amazon2018
from data_pipelines.sources.amazon_2023 import Amazon2023
from data_pipelines.sources.amazon_reviews import AmazonReviews
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.interactions import Tabled
from data_pipelines.sources.selection import Selection
from tests.data_pipelines.small import picture

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
RELEASES = {"amazon_2014": Amazon2014.RELEASE, "amazon_2018": Amazon2018.RELEASE, "amazon_2023": Amazon2023.RELEASE}
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
        "unixReviewTime": time,
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
        "timestamp": time * 1000 + 923,
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
    (folder / release.reviews[pattern].format(category)).write_text(lines, encoding="utf-8")
    literal: Callable[[Any], str] = repr if name == "amazon_2014" else json.dumps
    lines = "".join(f"{record if isinstance(record, str) else literal(record)}\n" for record in products)
    (folder / f"{release.products.format(category)}.gz").write_bytes(gzip.compress(lines.encode()))
    return folder


def opened(
    folder: Path,
    name: str,
    cores: tuple[int, int] = (1, 1),
    faults: Faults | None = None,
    categories: tuple[str, ...] = (),
) -> Tabled:
    return open_release(RELEASES[name], folder, Selection(categories=categories), cores, faults or Faults())


def met(source: Tabled) -> dict[str, list[tuple[str, int]]]:
    return {user.user_id: [(one.item_id, one.time) for one in user.interactions] for user in source.users()}


# --- all releases ----------------------------------------------------------------------------------------------------


@every_release
def test_a_release_from_its_files_to_records(name: str, tmp_path: Path) -> None:
    review, product = REVIEW[name], PRODUCT[name]
    folder = write(tmp_path / "source", name, [review("U1", "B1"), review("U1", "B2", 2000)], [product("B1")])
    (folder / "images").mkdir()
    (folder / "images" / "B1.jpg").write_bytes(picture(1))
    prepared = prepare(name, tmp_path / "data", folder, selection=Selection(user_core=1, item_core=1))
    assert (prepared.users, prepared.items, prepared.interactions, prepared.rated, prepared.images) == (1, 2, 2, 2, 1)
    assert prepared.bad_pictures == ["B2: B2.jpg is missing"]
    assert list(read_items(name, tmp_path / "data")) == [
        Item(
            "B1",
            "Thing B1",
            (
                ("Category", "Beauty, Hair Care"),
                ("Price", "7.50"),
                ("Brand", "Pearl"),
                ("Title", "Thing B1"),
                ("Description", "It's a thing."),
            ),
            ("Beauty", "Hair Care"),
            picture(1),
        ),
        Item(  # of which only the reviews say anything
            "B2",
            "B2",
            (("Category", "All Beauty"), ("Price", ""), ("Brand", ""), ("Title", ""), ("Description", "")),
            ("All Beauty",),
        ),
    ]
    reviews = (Interaction("B1", 1000, 4.0, "Fine."), Interaction("B2", 2000, 4.0, "Fine."))
    assert list(read_users(name, tmp_path / "data")) == [User("U1/All_Beauty", reviews)]


@every_release
def test_reviews_are_in_order_of_time_and_of_two_of_an_item_the_latest_counts(name: str, tmp_path: Path) -> None:
    reviews = [("U2", "B3", 7), ("U1", "B2", 5), ("U2", "B1", 4), ("U2", "B2", 7), ("U2", "B0", 7), ("U1", "B2", 3)]
    reviews += [("U2", "B1", 9), ("U2", "B3", 7)]
    source = opened(write(tmp_path, name, [REVIEW[name](*one) for one in reviews]), name)
    assert met(source) == {
        "U2/All_Beauty": [("B2", 7), ("B0", 7), ("B3", 7), ("B1", 9)],
        "U1/All_Beauty": [("B2", 5)],
    }
    assert vars(source.read) == {"users": 2, "items": 4, "interactions": 8}


@every_release
def test_a_person_is_a_user_in_each_category_and_a_product_one_item(name: str, tmp_path: Path) -> None:
    review, product = REVIEW[name], PRODUCT[name]
    write(tmp_path, name, [review("U1", "B1"), review("U1", "B2")], [product("B1", title="First")], "Toys")
    write(tmp_path, name, [review("U1", "B1")], [product("B1", title="Second"), product("B2", title="Late")], "Books")
    write(tmp_path, name, [review("U9", "B9")], [], "Unwanted")
    source = opened(tmp_path, name, categories=("Toys", "Books"))
    assert met(source) == {"U1/Toys": [("B1", 1000), ("B2", 1000)], "U1/Books": [("B1", 1000)]}
    assert [(item.item_id, item.title) for item in source.items()] == [("B1", "First"), ("B2", "Late")]
    assert list(met(opened(tmp_path, name))) == ["U1/Books", "U1/Toys", "U9/Unwanted"]


@every_release
def test_the_core_is_of_eight_and_five_and_of_all_categories_together(name: str, tmp_path: Path) -> None:
    """B7 is reviewed four times in one category and once in the other; U9 loses B8, and so all the rest."""
    reviews = [(user, item) for user in range(5) for item in range(8) if (user, item) != (4, 7)]
    reviews += [(9, item) for item in (0, 1, 2, 3, 4, 5, 6, 8)]  # B8: by nobody else
    reviews += [(4, 10), (8, 0), (8, 1), (8, 2)]
    first = [REVIEW[name](f"U{user}", f"B{item}", item) for user, item in reviews]
    second = [REVIEW[name]("U7", f"B{item}", item) for item in range(8)]
    write(tmp_path / "source", name, first, category="Books")
    write(tmp_path / "source", name, second, category="Toys")
    prepared = prepare(name, tmp_path / "data", tmp_path / "source")
    assert (prepared.users, prepared.items, prepared.interactions) == (5, 8, 40)
    assert prepared.history_lengths["least"] == prepared.history_lengths["most"] == 8
    assert prepared.read is not None
    assert vars(prepared.read) == {"users": 8, "items": 10, "interactions": 59}
    users = [user.user_id for user in read_users(name, tmp_path / "data")]
    assert users == ["U0/Books", "U1/Books", "U2/Books", "U3/Books", "U7/Toys"]
    lower = prepare(name, tmp_path / "data", tmp_path / "source", selection=Selection(user_core=7), name="lower")
    assert (lower.users, lower.items, lower.interactions) == (7, 8, 54)


@every_release
def test_text_is_clean_and_a_review_without_is_its_headline(name: str, tmp_path: Path) -> None:
    body, headline = ("text", "title") if name == "amazon_2023" else ("reviewText", "summary")
    reviews = [
        REVIEW[name]("U1", "B1", **{body: "One.<br />\nTwo &#34;three&#34;"}),
        REVIEW[name]("U1", "B2", **{body: "", headline: "it&#8217;s\n good"}),
    ]
    missing = {key: value for key, value in REVIEW[name]("U1", "B3").items() if key not in (body, headline)}
    product = PRODUCT[name]("B1", title="Drum  &amp; <b>Sticks</b>\n", description="<p>Loud,<br>&eacute;h</p>")
    source = opened(write(tmp_path, name, [*reviews, missing], [product]), name)
    (user,) = source.users()
    assert [one.text for one in user.interactions] == ['One. Two "three"', "it\u2019s good", ""]
    item = next(source.items())
    assert item.title == dict(item.attributes)["Title"] == "Drum & Sticks"
    assert dict(item.attributes)["Description"] == "Loud, \xe9h"


@every_release
def test_what_a_product_does_not_say_is_empty(name: str, tmp_path: Path) -> None:
    key = RELEASES[name].item_id
    nulls = {field: None for field in PRODUCT[name]("B2") if field != key} | {key: "B2"}
    write(tmp_path, name, [REVIEW[name]("U1", item) for item in ("B1", "B2")], [{key: "B1"}, nulls])
    empty = (("Category", "All Beauty"), ("Price", ""), ("Brand", ""), ("Title", ""), ("Description", ""))
    items = list(opened(tmp_path, name).items())
    assert items == [Item(item, item, empty, ("All Beauty",)) for item in ("B1", "B2")]


@every_release
def test_of_a_product_that_is_described_twice_the_first_stands(name: str, tmp_path: Path) -> None:
    products = [PRODUCT[name]("B1", title="First"), PRODUCT[name]("B1", title="Second")]
    (item,) = opened(write(tmp_path, name, [REVIEW[name]("U1", "B1")], products), name).items()
    assert item.title == "First"


def bad_reviews(name: str) -> list[tuple[Any, str]]:
    review = REVIEW[name]
    user, item, time, rating = {
        "amazon_2023": ("user_id", "parent_asin", "timestamp", "rating"),
    }.get(name, ("reviewerID", "asin", "unixReviewTime", "overall"))
    text = "text" if name == "amazon_2023" else "reviewText"
    return [
        ('{"cut', "not JSON"),
        ("[]", "a list where an object should be"),
        ("{}", "is missing"),
        (review("", "B2"), f"field '{user}' is ''; it must be an identifier"),
        (review("U 1", "B2"), f"field '{user}' is 'U 1'; it must be an identifier"),
        (review("U1", "B2", **{item: 7}), f"field '{item}' is 7, a int; it must be str"),
        (review("U1", "B2", **{rating: "5"}), f"field '{rating}' is \"5\", a str; it must be int or float"),
        (review("U1", "B2", **{rating: 6.0}), f"field '{rating}' is 6.0; it must be from 1 to 5"),
        (review("U1", "B2", **{rating: None}), f"field '{rating}' is null"),
        (review("U1", "B2", **{time: "9"}), f"field '{time}' is \"9\", a str; it must be int"),
        (review("U1", "B2", **{time: None}), f"field '{time}' is null"),
        (review("U1", "B2", **{time: -5}), f"field '{time}' is -5"),
        (review("U1", "B2", **{time: 2**70}), f"field '{time}' is {2**70}"),
        (review("U1", "B2", **{text: ["x"]}), f"field '{text}' is \\[\"x\"\\], a list; it must be str"),
    ]


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [(name, bad, message) for name in RELEASES for bad, message in bad_reviews(name)],
)
def test_a_bad_review_is_refused_by_name_or_left_out(name: str, bad: Any, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path, name, [REVIEW[name]("U1", "B1"), bad, REVIEW[name]("U1", "B3")])
    file = RELEASES[name].reviews[0].format("All_Beauty")
    with pytest.raises(DataError, match=rf"^{file} line 2: .*{message}") as caught:
        opened(folder, name)
    assert len(str(caught.value).splitlines()) == 1
    faults = Faults("skip")
    assert [item for item, _ in met(opened(folder, name, faults=faults))["U1/All_Beauty"]] == ["B1", "B3"]
    assert len(faults.records) == 1


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        *((name, {"title": 7}, "field 'title' is 7, a int; it must be str") for name in RELEASES),
        *((name, {"price": -1}, "field 'price' is -1; it must be a price, or null") for name in RELEASES),
        *(
            (name, {"price": [1]}, r"field 'price' is \[1\], a list; it must be int or float or str")
            for name in RELEASES
        ),
        *((name, {"description": [1]}, "field 'description' holds 1; it must hold strings only") for name in RELEASES),
        ("amazon_2014", {"categories": ["x"]}, "field 'categories' is \"x\", a str; it must be list"),
        ("amazon_2014", {"categories": [[b"x"]]}, "field 'categories' holds b'x'; it must hold strings only"),
        ("amazon_2014", {"title": {"x"}}, "field 'title' is {'x'}, a set; it must be str"),
        ("amazon_2014", {"imUrl": 1j}, "field 'imUrl' is 1j, a complex; it must be str"),
        ("amazon_2014", {"asin": "B 1"}, "field 'asin' is 'B 1'; it must be an identifier"),
        ("amazon_2018", {"imageURL": {}}, "field 'imageURL' is {}, a dict; it must be list or str"),
        ("amazon_2018", {"main_cat": 1}, "field 'main_cat' is 1, a int; it must be str"),
        ("amazon_2023", {"images": ["x"]}, "field 'images' holds \"x\"; it must hold objects"),
        ("amazon_2023", {"images": [{"large": 1}]}, "field 'large' is 1, a int; it must be str"),
        ("amazon_2023", {"details": 1}, "field 'details' is 1, a int; it must be dict or str"),
    ],
)
def test_a_bad_product_is_refused_by_name_or_left_out(
    name: str, bad: dict[str, Any], message: str, tmp_path: Path
) -> None:
    products = [PRODUCT[name]("B2"), PRODUCT[name]("B1", **bad)]
    folder = write(tmp_path, name, [REVIEW[name]("U1", item) for item in ("B1", "B2")], products)
    with pytest.raises(DataError, match=rf"^meta_All_Beauty.jsonl?.gz line 2: {message}"):
        opened(folder, name)
    faults = Faults("skip")
    assert [item.title for item in opened(folder, name, faults=faults).items()] == ["B1", "Thing B2"]
    assert len(faults.records) == 1


@every_release
def test_of_products_that_nobody_reviewed_only_the_ids_are_looked_at(name: str, tmp_path: Path) -> None:
    products = [PRODUCT[name]("B7", title=7), PRODUCT[name]("B1")]
    (item,) = opened(write(tmp_path, name, [REVIEW[name]("U1", "B1")], products), name).items()
    assert item.title == "Thing B1"


@every_release
def test_a_file_that_is_cut_off_is_named(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, name, [REVIEW[name](f"U{number}", "B1") for number in range(100)], [PRODUCT[name]("B1")])
    path = folder / RELEASES[name].reviews[0].format("All_Beauty")
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    path.with_name(f"{path.name}.gz").write_bytes(packed)
    assert len(met(opened(folder, name))) == 100
    path.with_name(f"{path.name}.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=rf"{path.name}.gz is damaged"):
        opened(folder, name)
    path.with_name(f"{path.name}.gz").write_bytes(packed)
    products = folder / f"{RELEASES[name].products.format('All_Beauty')}.gz"
    products.write_bytes(products.read_bytes()[:-12])
    with pytest.raises(DataError, match=rf"{products.name} is damaged"):
        prepare(name, tmp_path / "data", folder, "skip")


@pytest.mark.parametrize("name", ["amazon_2014", "amazon_2018"])
def test_the_whole_is_read_where_the_core_is_not_enough(name: str, tmp_path: Path) -> None:
    write(tmp_path, name, [REVIEW[name]("U1", "B1")])
    write(tmp_path, name, [REVIEW[name]("U1", "B1"), REVIEW[name]("U2", "B2")], pattern=1)
    assert opened(tmp_path, name, (5, 5)).read.users == 1
    assert opened(tmp_path, name, (4, 5)).read.users == 2
    assert opened(tmp_path, name, (5, 1)).read.users == 2
    (tmp_path / RELEASES[name].reviews[1].format("All_Beauty")).unlink()
    assert opened(tmp_path, name, (1, 1)).read.users == 1


# --- what is missing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "files", "where"),
    [
        ("amazon_2014", "reviews_CATEGORY_5.json.gz or reviews_CATEGORY.json.gz, and meta_CATEGORY.json.gz", "snap"),
        ("amazon_2018", "CATEGORY_5.json.gz or CATEGORY.json.gz, and meta_CATEGORY.json.gz", "amazon_v2/metaFiles2"),
        ("amazon_2023", "CATEGORY.jsonl.gz, and meta_CATEGORY.jsonl.gz", "amazon_2023/raw/review_categories"),
    ],
)
def test_what_is_needed_is_told(name: str, files: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"cannot be downloaded from here: for each category {files}.*{where}") as told:
        prepare(name, tmp_path / "data")
    assert RELEASES[name].publisher in str(told.value)
    assert len(str(told.value).splitlines()) == 1
    with pytest.raises(DataError, match=rf"holds no reviews: for each category {files}"):
        prepare(name, tmp_path / "data", tmp_path)
    write(tmp_path, name, [REVIEW[name]("U1", "B1")], category="Video_Games")
    with pytest.raises(DataError, match=r"no reviews of category 'VideoGames'; did you mean 'Video_Games'\? It holds"):
        prepare(name, tmp_path / "data", tmp_path, selection=Selection(categories=("VideoGames",)))
    (tmp_path / f"{RELEASES[name].products.format('Video_Games')}.gz").unlink()
    with pytest.raises(DataError, match=rf"meta_Video_Games.jsonl? does not exist: for each category {files}"):
        prepare(name, tmp_path / "data", tmp_path)


@every_release
def test_other_choices_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name} does not know --item"):
        prepare(name, tmp_path / "data", tmp_path, selection=Selection(item="product"))


# --- what products say -----------------------------------------------------------------------------------------------


def product_of(name: str, record: dict[str, Any]) -> Any:
    return RELEASES[name].product(record, "All Beauty")


@every_release
@pytest.mark.parametrize(
    ("price", "text"),
    [
        (None, ""),
        (0.0, "0.00"),
        (7, "7.00"),
        (1234.5, "1234.50"),
        ("", ""),
        ("$12.99", "12.99"),
        ("$1,299.00", "1299.00"),
        ("$12.99 - $15.49", "12.99 - 15.49"),
        ("from 9.99", "from 9.99"),
        ("\u2014", ""),
        (".a-box-inner{background-color:#fff}#alohaBuyBoxWidget .selected{width:100%}", ""),
        ("<span class='price'>$3.00</span>", "3.00"),
    ],
)
def test_a_price_is_a_number_as_text(name: str, price: Any, text: str) -> None:
    assert product_of(name, PRODUCT[name]("B1", price=price)).price == text


@pytest.mark.parametrize(
    ("name", "changed", "categories"),
    [
        (
            "amazon_2014",
            {"categories": [["Beauty", "Hair &amp; Skin"], ["Beauty", "Tools"], ["", "Hair & Skin"]]},
            ("Beauty", "Hair & Skin", "Tools"),
        ),
        ("amazon_2014", {"categories": []}, ("All Beauty",)),
        ("amazon_2014", {"categories": [[]]}, ("All Beauty",)),
        (
            "amazon_2018",
            {"category": ["Beauty", "</span></span>", "Hair &amp; Skin", "Beauty"]},
            ("Beauty", "Hair & Skin"),
        ),
        ("amazon_2018", {"category": [], "main_cat": "Health &amp; Care"}, ("Health & Care",)),
        (
            "amazon_2018",
            {"category": [], "main_cat": '<img src="https://x/y.png" class="nav-categ-image" alt="AMAZON FASHION"/>'},
            ("AMAZON FASHION",),
        ),
        ("amazon_2018", {"category": [], "main_cat": "<img src='x'/>"}, ("All Beauty",)),
        ("amazon_2023", {"categories": []}, ("All Beauty",)),
        ("amazon_2023", {"categories": [], "main_category": "Premium Beauty"}, ("Premium Beauty",)),
        ("amazon_2023", {"categories": [], "main_category": None}, ("All Beauty",)),
    ],
)
def test_categories_are_words_each_once(name: str, changed: dict[str, Any], categories: tuple[str, ...]) -> None:
    assert product_of(name, PRODUCT[name]("B1", **changed)).categories == categories


LARGE, SMALL = {"large": "l1", "thumb": "t1", "hi_res": "h1"}, {"large": None, "thumb": "t2", "hi_res": None}


@pytest.mark.parametrize(
    ("name", "changed", "url"),
    [
        ("amazon_2014", {"imUrl": " http://x/a.jpg "}, "http://x/a.jpg"),
        ("amazon_2014", {"imUrl": None}, ""),
        ("amazon_2018", {"imageURLHighRes": ["h1", "h2"], "imageURL": ["s1"]}, "h1"),
        ("amazon_2018", {"imageURLHighRes": [], "imageURL": ["s1", "s2"]}, "s1"),
        ("amazon_2018", {"imageURLHighRes": [], "imageURL": []}, ""),
        ("amazon_2018", {"imageURLHighRes": "h1"}, "h1"),
        ("amazon_2023", {"images": [SMALL | {"variant": "PT01"}, LARGE | {"variant": "MAIN"}]}, "l1"),
        ("amazon_2023", {"images": [SMALL | {"variant": "MAIN"}, LARGE | {"variant": "PT01"}]}, "t2"),
        ("amazon_2023", {"images": [LARGE | {"variant": None, "large": None}, SMALL]}, "h1"),
        ("amazon_2023", {"images": []}, ""),
    ],
)
def test_one_picture_is_chosen(name: str, changed: dict[str, Any], url: str) -> None:
    assert product_of(name, PRODUCT[name]("B1", **changed)).picture == url


def test_a_title_that_is_a_script_is_none() -> None:
    script = "var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();"
    assert product_of("amazon_2018", product_2018("B1", title=script)).title == ""


def test_a_brand_is_the_store_or_in_the_details() -> None:
    known = {"store": None, "details": {"Brand": "Roland"}}
    assert product_of("amazon_2023", product_2023("B1", **known)).brand == "Roland"
    assert product_of("amazon_2023", product_2023("B1", **known | {"store": "Shop"})).brand == "Shop"
    assert product_of("amazon_2023", product_2023("B1", store=None, details='{"Brand": "Roland"}')).brand == ""


# --- 2014's literals -------------------------------------------------------------------------------------------------


def test_literals_have_their_escapes(tmp_path: Path) -> None:
    line = r"""{'asin': 'B1', 'title': 'It\'s "5\x22"\u00e9 \t\\ \d', "brand": "O'Neal", 'price': 1.50}"""
    (item,) = opened(write(tmp_path, "amazon_2014", [review_2014("U1", "B1")], [line]), "amazon_2014").items()
    assert dict(item.attributes) == {
        "Category": "All Beauty",
        "Price": "1.50",
        "Brand": "O'Neal",
        "Title": 'It\'s "5""\xe9 \\ \\d',
        "Description": "",
    }


NO_DATA = r"(not a Python literal \(|a (int|list) where a dictionary should be)"


@pytest.mark.parametrize(
    "hostile",
    [
        "__import__('os').system('touch MARK')",
        "{'asin': 'B1', 'title': __import__('os').system('touch MARK')}",
        "{'asin': 'B1', 'title': open('MARK', 'w')}",
        "[open('MARK', 'w') for _ in [1]]",
        "{**{}, 'asin': 'B1'}",
        'f\'{open("MARK", "w")}\'',
        "{'asin': 'B1', 'title': 'never closed}",
        "{'asin': 'B1'} {'asin': 'B2'}",
        "{[]: 1}",
        "{'asin': 'B1', 'price': " + "9" * 5000 + "}",
        "{'asin': '\0'}",
        "['B1']",
        "7",
        "[" * 100_000,
        "{'a':" * 150 + "1" + "}" * 149,
        "(" * 5000 + ")" * 5000,
        "-" * 100_000 + "1",
        "1" + "+1" * 100_000,
        "not " * 100_000 + "1",
        "{'asin': '" + "x" * LONGEST_LITERAL + "'}",
    ],
)
def test_a_line_that_is_no_data_is_named_and_not_run(
    hostile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    products = [product_2014("B1"), hostile, product_2014("B2")]
    folder = write(tmp_path / "source", "amazon_2014", [review_2014("U1", item) for item in ("B1", "B2")], products)
    with pytest.raises(DataError, match=f"^meta_All_Beauty.json.gz line 2: {NO_DATA}") as caught:
        opened(folder, "amazon_2014")
    assert len(str(caught.value)) < 300
    faults = Faults("skip")
    items = list(opened(folder, "amazon_2014", faults=faults).items())
    assert [item.title for item in items] == ["Thing B1", "Thing B2"]
    assert len(faults.records) == 1
    assert not (tmp_path / "MARK").exists()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=10,
)


@settings(max_examples=40)
@given(records=st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=5))
def test_what_python_writes_is_read_back(
    records: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("literals") / "meta.json"
    path.write_text("".join(f"{record!r}\n" for record in records), encoding="utf-8")
    assert [record for _, record in read_literals(path, Faults())] == records


# --- pictures --------------------------------------------------------------------------------------------------------


@every_release
def test_pictures_are_fetched_when_asked_for(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, str]] = []
    fetch = "data_pipelines.sources.fetched_pictures.FetchedPictures.fetch"
    monkeypatch.setattr(fetch, lambda self, urls: asked.append(dict(urls)))
    bare = PRODUCT[name]("B2", **{"amazon_2014": {"imUrl": None}}.get(name, {"images": [], "imageURL": []}))
    bare.pop("imageURLHighRes", None)
    reviews = [REVIEW[name]("U1", item) for item in ("B1", "B2", "B3")]
    folder = write(tmp_path / "source", name, reviews, [PRODUCT[name]("B1"), bare, PRODUCT[name]("B4")])
    lowest = Selection(user_core=1, item_core=1)
    prepared = prepare(name, tmp_path / "data", folder, selection=lowest)
    assert asked == []
    assert prepared.bad_pictures == [f"{folder / 'images'} does not exist: no item has a picture"]
    prepare(name, tmp_path / "data", folder, selection=Selection(user_core=1, item_core=1, fetch_images=True))
    assert asked == [{"B1": product_of(name, PRODUCT[name]("B1")).picture}]


@every_release
def test_the_source_is_found_by_name(name: str) -> None:
    builder = find_source(name)
    assert builder.name == name
    release: Release = RELEASES[name]
    assert release.publisher in builder.DESCRIPTION


# --- real reviews ----------------------------------------------------------------------------------------------------


def test_the_reviews_of_musical_instruments_are_the_same_as_lines_of_json(tmp_path: Path) -> None:
    real = SHARED / "amazon-2014" / "musical-instruments" / "reviews_5core.csv"
    if not real.exists():
        pytest.skip("the shared folder amazon-2014/musical-instruments is not beside the checkout")
    with real.open(encoding="utf-8", newline="") as file:
        rows = [
            row | {"overall": float(row["overall"]), "unixReviewTime": int(row["unixReviewTime"])}
            for row in csv.DictReader(file)
        ]
    folder = write(tmp_path / "source", "amazon_2014", rows, category="Musical_Instruments")
    for cores in ((1, 1), (5, 5)):  # they are a 5-core
        found = opened(folder, "amazon_2014", cores)
        for user, wanted in zip(found.users(), AmazonReviews(real, Faults()).users(), strict=True):
            assert user.user_id == f"{wanted.user_id}/Musical_Instruments"
            assert user.interactions == wanted.interactions
    assert vars(found.read) == {"users": 1429, "items": 900, "interactions": 10_261}
