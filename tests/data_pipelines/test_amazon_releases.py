"""Amazon's releases, from files in the publisher's formats: what is read, what is left out, what is said about it."""

import csv
import gzip
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.records import read_items, read_users
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.sources.amazon_reviews import AmazonInstruments2014
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.registry import find_source
from data_pipelines.sources.selection import SourceSelection
from tests.data_pipelines.amazon_files import (
    PRODUCT,
    RELEASES,
    REVIEW,
    every_release,
    met,
    opened,
    product_of,
    write,
)
from tests.data_pipelines.small import START, image

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@every_release
def test_a_release_from_its_files_to_records(name: str, tmp_path: Path) -> None:
    review, product = REVIEW[name], PRODUCT[name]
    folder = write(tmp_path / "source", name, [review("U1", "B1"), review("U1", "B2", 2000)], [product("B1")])
    (folder / "images").mkdir()
    (folder / "images" / "B1.jpg").write_bytes(image(1))
    prepared = prepare(name, tmp_path / "data", folder, selection=SourceSelection(user_core=1, item_core=1))
    assert (prepared.users, prepared.items, prepared.interactions, prepared.rated, prepared.images) == (1, 2, 2, 2, 1)
    assert prepared.bad_images == ["B2: B2.jpg is missing"]
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
            image(1),
        ),
        Item(  # of which only the reviews say anything
            "B2",
            "B2",
            (("Category", "All Beauty"), ("Price", ""), ("Brand", ""), ("Title", ""), ("Description", "")),
            ("All Beauty",),
        ),
    ]
    reviews = (Interaction("B1", START + 1000, 4.0, "Fine."), Interaction("B2", START + 2000, 4.0, "Fine."))
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
def test_a_user_is_a_user_in_each_category_and_a_product_one_item(name: str, tmp_path: Path) -> None:
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
    lower = prepare(name, tmp_path / "data", tmp_path / "source", selection=SourceSelection(user_core=7), name="lower")
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
    key = RELEASES[name].FIELDS.item
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
        ("[]", "a list instead of an object"),
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
    file = RELEASES[name].REVIEWS[0].format("All_Beauty")
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
        *(
            (name, {"description": [1]}, "field 'description' contains 1; it must contain strings only")
            for name in RELEASES
        ),
        ("amazon_2014", {"categories": ["x"]}, "field 'categories' is \"x\", a str; it must be list"),
        ("amazon_2014", {"categories": [[b"x"]]}, "field 'categories' contains b'x'; it must contain strings only"),
        ("amazon_2014", {"title": {"x"}}, "field 'title' is {'x'}, a set; it must be str"),
        ("amazon_2014", {"imUrl": 1j}, "field 'imUrl' is 1j, a complex; it must be str"),
        ("amazon_2014", {"asin": "B 1"}, "field 'asin' is 'B 1'; it must be an identifier"),
        ("amazon_2018", {"imageURL": {}}, "field 'imageURL' is {}, a dict; it must be list or str"),
        ("amazon_2018", {"main_cat": 1}, "field 'main_cat' is 1, a int; it must be str"),
        ("amazon_2023", {"images": ["x"]}, "field 'images' contains \"x\"; it must contain objects"),
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
    path = folder / RELEASES[name].REVIEWS[0].format("All_Beauty")
    packed = gzip.compress(path.read_bytes(), mtime=0)
    path.unlink()
    path.with_name(f"{path.name}.gz").write_bytes(packed)
    assert len(met(opened(folder, name))) == 100
    path.with_name(f"{path.name}.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=rf"{path.name}.gz is damaged"):
        opened(folder, name)
    path.with_name(f"{path.name}.gz").write_bytes(packed)
    products = folder / f"{RELEASES[name].PRODUCTS.format('All_Beauty')}.gz"
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
    (tmp_path / RELEASES[name].REVIEWS[1].format("All_Beauty")).unlink()
    assert opened(tmp_path, name, (1, 1)).read.users == 1


# --- images --------------------------------------------------------------------------------------------------------


@every_release
def test_images_are_fetched_when_asked_for(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, str]] = []
    fetch = "data_pipelines.sources.fetched_images.FetchedImages.fetch"
    monkeypatch.setattr(fetch, lambda self, urls: asked.append(dict(urls)))
    bare = PRODUCT[name]("B2", **{"amazon_2014": {"imUrl": None}}.get(name, {"images": [], "imageURL": []}))
    bare.pop("imageURLHighRes", None)
    reviews = [REVIEW[name]("U1", item) for item in ("B1", "B2", "B3")]
    folder = write(tmp_path / "source", name, reviews, [PRODUCT[name]("B1"), bare, PRODUCT[name]("B4")])
    lowest = SourceSelection(user_core=1, item_core=1)
    prepared = prepare(name, tmp_path / "data", folder, selection=lowest)
    assert asked == []
    assert prepared.bad_images == [f"{folder / 'images'} does not exist, so no item has an image"]
    prepare(name, tmp_path / "data", folder, selection=SourceSelection(user_core=1, item_core=1, fetch_images=True))
    assert asked == [{"B1": product_of(name, PRODUCT[name]("B1")).image_url}]


@every_release
def test_the_source_is_found_by_name(name: str) -> None:
    builder = find_source(name)
    assert builder.name == name
    assert RELEASES[name].PUBLISHER in builder.DESCRIPTION


# --- what is missing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "files", "where"),
    [
        ("amazon_2014", "reviews_CATEGORY_5.json.gz or reviews_CATEGORY.json.gz, and meta_CATEGORY.json.gz", "snap"),
        ("amazon_2018", "CATEGORY_5.json.gz or CATEGORY.json.gz, and meta_CATEGORY.json.gz", "amazon_v2/metaFiles2"),
        ("amazon_2023", "CATEGORY.jsonl.gz, and meta_CATEGORY.jsonl.gz", "amazon_2023/raw/review_categories"),
    ],
)
def test_what_is_needed_is_reported(name: str, files: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"cannot be downloaded from here: for each category {files}.*{where}") as told:
        prepare(name, tmp_path / "data")
    assert RELEASES[name].PUBLISHER in str(told.value)
    assert len(str(told.value).splitlines()) == 1
    with pytest.raises(DataError, match=rf"has no reviews: for each category {files}"):
        prepare(name, tmp_path / "data", tmp_path)
    write(tmp_path, name, [REVIEW[name]("U1", "B1")], category="Video_Games")
    with pytest.raises(DataError, match=r"no reviews of category 'VideoGames'; did you mean 'Video_Games'\? It has"):
        prepare(name, tmp_path / "data", tmp_path, selection=SourceSelection(categories=("VideoGames",)))
    (tmp_path / f"{RELEASES[name].PRODUCTS.format('Video_Games')}.gz").unlink()
    with pytest.raises(DataError, match=rf"meta_Video_Games.jsonl? does not exist: for each category {files}"):
        prepare(name, tmp_path / "data", tmp_path)


@every_release
def test_other_choices_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name} does not support --item"):
        prepare(name, tmp_path / "data", tmp_path, selection=SourceSelection(item="product"))


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
    reader = AmazonInstruments2014(config="items", data_dir="unused", source_dir=real.parent)
    for cores in ((1, 1), (5, 5)):  # they are a 5-core
        found = opened(folder, "amazon_2014", cores)
        for user, wanted in zip(found.users(), reader.open_source(None).users(), strict=True):
            assert user.user_id == f"{wanted.user_id}/Musical_Instruments"
            assert user.interactions == wanted.interactions
    assert vars(found.read) == {"users": 1429, "items": 900, "interactions": 10_261}
