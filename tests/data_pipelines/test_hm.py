"""H&M in the publisher's format: two CSV files and images, by article or by product, in a zip archive or a folder."""

import csv
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_pipelines.corpus import build_corpus
from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.records import read_items, read_users
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.registry import find_source
from data_pipelines.sources.selection import SourceSelection
from data_pipelines.sources.source import Counts, Source
from tests.data_pipelines.small import image

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "hm-july-2020"
HEADER = [
    "article_id", "product_code", "prod_name", "product_type_no", "product_type_name", "product_group_name",
    "graphical_appearance_no", "graphical_appearance_name", "colour_group_code", "colour_group_name",
    "perceived_colour_value_id", "perceived_colour_value_name", "perceived_colour_master_id",
    "perceived_colour_master_name", "department_no", "department_name", "index_code", "index_name", "index_group_no",
    "index_group_name", "section_no", "section_name", "garment_group_no", "garment_group_name", "detail_desc",
]  # fmt: skip
DAY = 24 * 60 * 60
JULY = 1593561600
"""2020-07-01, midnight."""


def article(article_id: str, **changed: str) -> list[str]:
    """A line of articles.csv."""
    known = {
        "article_id": article_id,
        "product_code": article_id[1:7],
        "prod_name": "Strap top",
        "product_type_name": "Vest top",
        "product_group_name": "Garment Upper body",
        "graphical_appearance_name": "Solid",
        "colour_group_name": "Black",
        "index_group_name": "Ladieswear",
        "section_name": "Womens Everyday Basics",
        "detail_desc": "Jersey top with narrow shoulder straps.",
    }
    return [(known | changed).get(name, "0") for name in HEADER]


def purchase(day: str, customer: str, article_id: str) -> list[str]:
    return [f"2020-07-{day}", customer, article_id, "0.050830508474576264", "2"]


ARTICLES = (
    article("0108775015"),
    article("0108775044", colour_group_name="White", detail_desc=""),
    article("0111565001", prod_name='"20 den", 1p', detail_desc='Tights, "semi-\nshiny".', section_name=""),
    article("0999999001", prod_name="Never bought"),
)
PURCHASES = (
    purchase("01", "c2", "0108775044"),
    purchase("01", "c2", "0108775015"),
    purchase("01", "c1", "0111565001"),
    purchase("02", "c2", "0108775044"),
    purchase("03", "c2", "0111565001"),
    purchase("02", "c1", "0108775015"),
)
IMAGES = {"010/0108775015.jpg": image(1), "010/0108775.jpg": image(2), "011/0111565001.jpg": image(3)[:-30]}


def text_of(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write(
    folder: Path, articles: Sequence[Sequence[str]] = ARTICLES, purchases: Sequence[Sequence[str]] = PURCHASES
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "articles.csv").write_text(text_of([HEADER, *articles]), encoding="utf-8")
    header = ["t_dat", "customer_id", "article_id", "price", "sales_channel_id"]
    (folder / "transactions_train.csv").write_text(text_of([header, *purchases]), encoding="utf-8")
    with zipfile.ZipFile(folder / "images.zip", "w") as images:
        for name, encoded in IMAGES.items():
            images.writestr(zipfile.ZipInfo(name), encoded)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "source")


def opened(folder: Path, faults: Faults | None = None, **selection: object) -> Source:
    builder = find_source("hm")(
        config="items",
        data_dir=str(folder / "unused"),
        source_dir=folder,
        faults=faults,
        selection=SourceSelection(**selection),  # type: ignore[arg-type]
    )
    source = builder.open_source(None)
    assert isinstance(source, Source)
    return source


def histories(source: Source) -> dict[str, list[str]]:
    return {user.user_id: [one.item_id for one in user.interactions] for user in source.users()}


def test_articles_are_what_the_paper_shows_of_them(folder: Path) -> None:
    faults = Faults()
    items = {item.item_id: item for item in opened(folder, faults).items()}
    assert list(items) == ["0108775044", "0108775015", "0111565001"]  # as they are first bought
    assert items["0108775015"] == Item(
        "0108775015",
        "Strap top",
        (
            ("Name", "Strap top"),
            ("Appearance", "Solid"),
            ("Color", "Black"),
            ("Section", "Womens Everyday Basics"),
            ("Description", "Jersey top with narrow shoulder straps."),
        ),
        ("Ladieswear", "Garment Upper body", "Vest top", "Black"),
        image(1),
    )
    tights = items["0111565001"]
    assert tights.title == '"20 den", 1p'
    assert dict(tights.attributes)["Description"] == 'Tights, "semi- shiny".'
    assert dict(tights.attributes)["Section"] == dict(items["0108775044"].attributes)["Description"] == ""
    assert items["0108775044"].image == image(2)  # its product's, for it has none of its own
    assert tights.image == b""
    assert len(faults.images) == 1
    assert "011/0111565001.jpg is broken" in faults.images[0]


def test_purchases_keep_their_order_in_a_day_and_count_once(folder: Path) -> None:
    source = opened(folder)
    first, second = source.users()
    bought = (
        Interaction("0108775044", JULY),
        Interaction("0108775015", JULY),
        Interaction("0111565001", JULY + 2 * DAY),
    )
    assert str(first) == str(User("c2", bought))  # compared as text, for a rating that is NaN equals none
    assert [one.time for one in second.interactions] == [JULY, JULY + DAY]
    assert source.read == Counts(2, 3, 6)


def test_products_are_articles_of_all_colours(folder: Path) -> None:
    source = opened(folder, item="product")
    top, tights = source.items()
    assert (top.item_id, top.image) == ("0108775", image(2))
    assert dict(top.attributes)["Color"] == "Black, White"
    assert dict(top.attributes)["Description"] == "Jersey top with narrow shoulder straps."
    assert top.categories == ("Ladieswear", "Garment Upper body", "Vest top")  # of no one colour
    assert tights.categories[-1] == "Black"
    assert histories(source) == {"c2": ["0108775", "0111565"], "c1": ["0111565", "0108775"]}
    assert source.read == Counts(2, 2, 6)


def test_a_product_without_an_image_has_its_first_articles(folder: Path) -> None:
    with zipfile.ZipFile(folder / "images.zip", "w") as images:
        images.writestr(zipfile.ZipInfo("images/010/0108775044.jpg"), image(7))
    faults = Faults()
    top, tights = opened(folder, faults, item="product").items()
    assert (top.image, tights.image) == (image(7), b"")
    assert faults.images == ["images.zip: 011/0111565.jpg is missing"]


def test_images_may_lie_in_a_folder_or_nowhere(folder: Path) -> None:
    (folder / "images.zip").unlink()
    faults = Faults()
    assert not any(item.image for item in opened(folder, faults).items())
    assert len(faults.images) == 1
    assert "images.zip nor the folder images exists" in faults.images[0]
    (folder / "images" / "010").mkdir(parents=True)
    (folder / "images" / "010" / "0108775044.jpg").write_bytes(image(4))
    assert [item.image for item in opened(folder).items()] == [image(4), b"", b""]


def test_users_and_articles_below_the_core_are_left_out(folder: Path) -> None:
    source = opened(folder, user_core=3)
    assert histories(source) == {"c2": ["0108775044", "0108775015", "0111565001"]}
    assert histories(opened(folder, user_core=2, item_core=2)) == {
        "c2": ["0108775015", "0111565001"],
        "c1": ["0111565001", "0108775015"],
    }
    assert source.read == Counts(2, 3, 6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2020-13-01,c1,0108775015,1,2", "field 't_dat' is '2020-13-01'; it must be a day from 1990 to next year"),
        ("1.7.2020,c1,0108775015,1,2", "field 't_dat' is '1.7.2020'; it must be a day"),
        ("1989-12-31,c1,0108775015,1,2", "field 't_dat' is '1989-12-31'; it must be a day from 1990"),
        (",c1,0108775015,1,2", "field 't_dat' is ''; it must be a day"),
        ("2020-07-01,,0108775015,1,2", "field 'customer_id' is ''; it must be an identifier"),
        ("2020-07-01,c 1,0108775015,1,2", "field 'customer_id' is 'c 1'; it must be an identifier"),
        ("2020-07-01,c1,0123456789,1,2", "article 0123456789 is not in articles.csv"),
        ("2020-07-01,c1,0108775015", "3 fields; expected 5"),
        ("2020-07-01,c1,0108775015,1,2,3", "6 fields; expected 5"),
    ],
)
def test_a_bad_purchase_is_refused_by_its_line_or_left_out(folder: Path, line: str, message: str) -> None:
    path = folder / "transactions_train.csv"
    lines = path.read_text().splitlines()
    path.write_text("\r\n".join([*lines[:3], "", line, *lines[3:], ""]))
    with pytest.raises(DataError, match=rf"^transactions_train.csv line 5: {message}") as caught:
        opened(folder)
    assert len(str(caught.value).splitlines()) == 1
    faults = Faults("skip")
    source = opened(folder, faults)
    assert len(faults.records) == 1
    assert histories(source) == histories(opened(write(folder.with_name("clean"))))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (article("108775015"), "field 'article_id' is '108775015'; it must be ten digits; a leading zero is missing"),
        (article("0108775015"), "article 0108775015 occurs twice"),
        (article("0108775016")[:-1], "24 fields; expected 25"),
    ],
)
def test_a_bad_article_is_refused_by_its_line_or_left_out(folder: Path, row: list[str], message: str) -> None:
    write(folder, [*ARTICLES, row])  # the description before it goes over two lines
    with pytest.raises(DataError, match=rf"^articles.csv line 7: {message}"):
        opened(folder)
    faults = Faults("skip")
    assert len(list(opened(folder, faults).items())) == 3
    assert len(faults.records) == 1


@pytest.mark.parametrize(("file", "column"), [("articles.csv", "section_name"), ("transactions_train.csv", "t_dat")])
def test_a_missing_column_is_named(folder: Path, file: str, column: str) -> None:
    (folder / file).write_text((folder / file).read_text().replace(column, "x", 1))
    with pytest.raises(DataError, match=rf"^{file} line 1: column '{column}' is missing; there must be "):
        opened(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "column '.*' is missing"), (b"\xff\xfe", "is UTF-16; UTF-8 is needed: iconv -f UTF-16 -t UTF-8")],
)
def test_a_file_that_is_no_table_is_reported(folder: Path, content: bytes, message: str) -> None:
    (folder / "transactions_train.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"transactions_train.csv.*{message}"):
        opened(folder)


def test_text_that_is_not_utf_8_is_reported(folder: Path) -> None:
    with (folder / "transactions_train.csv").open("ab") as file:
        file.write(b"2020-07-01,\xe9,0108775015,1,2\n")
    with pytest.raises(DataError, match=r"^transactions_train.csv line 8: byte 12 is 0xe9, not UTF-8"):
        opened(folder)
    faults = Faults("skip")
    assert opened(folder, faults).read == Counts(2, 3, 6)
    assert len(faults.records) == 1


@pytest.mark.parametrize("file", ["articles.csv", "transactions_train.csv"])
def test_a_missing_file_is_named_with_its_publisher(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(DataError, match=rf"{file} does not exist: .*kaggle"):
        opened(folder)


def test_choices_of_other_sources_are_refused(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"^hm does not support --fetch-images; it supports --user-core, --item-core, --item"
    ):
        opened(folder, fetch_images=True)
    with pytest.raises(DataError, match=r"^movielens_small does not support --item; it supports no such options"):
        prepare("movielens_small", folder / "data", selection=SourceSelection(item="product"))


def test_prepared_under_a_name_of_its_own(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    prepared = prepare("hm", data, folder, selection=SourceSelection(item="product"), name="hm-products")
    assert (prepared.users, prepared.items, prepared.interactions, prepared.images) == (2, 2, 4, 1)
    assert prepared.read == Counts(2, 2, 6)
    assert "the files held 2 users, 2 items and 6 interactions" in str(prepared)
    prepare("hm", data, folder)
    assert [len(read_items(name, data)) for name in ("hm-products", "hm")] == [2, 3]
    corpus = build_corpus(read_items("hm", data), read_users("hm", data))
    assert corpus.items.tolist() == [0, 1, 2, 2, 1]
    assert not list(data.glob("*.partial"))
    with pytest.raises(DataError, match=r"--name is '\.\./x'; it must be a folder name of letters"):
        prepare("hm", data, folder, name="../x")


def test_that_nothing_is_left_is_reported(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=rf"^hm: no items are left in {folder}, so there is nothing to train on \(of users with 9 and items wi",
    ):
        prepare("hm", tmp_path / "data", folder, selection=SourceSelection(user_core=9))
    with pytest.raises(DataError, match=r"^transactions_train.csv has no rows, so there is nothing to train on$"):
        prepare("hm", tmp_path / "data", write(folder, purchases=()))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared H&M folder is not beside the checkout")
@pytest.mark.parametrize(("item", "items"), [("article", 15_370), ("product", 8_585)])
def test_the_real_files(item: str, items: int) -> None:
    source = opened(SHARED, item=item)
    assert source.read == Counts(2_852, items, 80_178)
    users = list(source.users())
    assert len(users) == 2_852
    assert len({one.item_id for user in users for one in user.interactions}) == items
    assert all(user.interactions == tuple(sorted(user.interactions, key=lambda one: one.time)) for user in users)
    first = next(source.items())
    assert first.image
    assert all(text for name, text in first.attributes if name != "Description")
