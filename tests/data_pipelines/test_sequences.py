"""Sequence files with attributes: which file is meant, what a line says, and the published counts."""

import json
from pathlib import Path

import pytest

from data_pipelines.corpus import TEST, VALIDATION, build_corpus
from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.registry import find_source
from data_pipelines.sources.selection import SourceSelection
from data_pipelines.sources.source import Counts, Source, core

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "amazon-2014"


def write(folder: Path, name: str = "Toys", lines: str = "7 3 1 2\n5 2 3\n6 9\n", attributes: object = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.txt").write_text(lines)
    table = {"3": [12, 7, 12], "1": [], "2": [7], "99": [1]} if attributes is None else attributes
    (folder / f"{name}_item2attributes.json").write_text(json.dumps(table))
    return folder


def opened(folder: Path | None, faults: Faults | None = None, **selection: object) -> Source:
    builder = find_source("sequences")(
        config="items",
        data_dir="unused",
        source_dir=folder,
        faults=faults,
        selection=SourceSelection(**selection),  # type: ignore[arg-type]
    )
    source = builder.open_source(None)
    assert isinstance(source, Source)
    return source


def test_a_line_is_a_user_and_a_number_an_attribute(tmp_path: Path) -> None:
    source = opened(write(tmp_path))
    assert list(source.items()) == [
        Item("3", "3", (("Attributes", "12 7"),), ("12", "7")),
        Item("1", "1", (("Attributes", ""),)),
        Item("2", "2", (("Attributes", "7"),), ("7",)),
        Item("9", "9", (("Attributes", ""),)),
    ]
    users = [
        User("7", (Interaction("3"), Interaction("1"), Interaction("2"))),
        User("5", (Interaction("2"), Interaction("3"))),
        User("6", (Interaction("9"),)),
    ]
    assert str(list(source.users())) == str(users)  # compared as text, for a rating that is NaN equals none
    assert source.read == Counts(3, 4, 6)
    corpus = build_corpus(source.items(), source.users())
    assert [corpus.titles[item] for item in corpus.items[corpus.splits == TEST]] == ["2", "3"]
    assert [corpus.titles[item] for item in corpus.items[corpus.splits == VALIDATION]] == ["1"]


def test_items_met_again_are_met_again(tmp_path: Path) -> None:
    (user,) = opened(write(tmp_path, lines="1 4 4 5 4\n")).users()
    assert [one.item_id for one in user.interactions] == ["4", "4", "5", "4"]


def test_users_below_the_core_are_left_out(tmp_path: Path) -> None:
    source = opened(write(tmp_path), user_core=2, item_core=2)
    assert [[one.item_id for one in user.interactions] for user in source.users()] == [["3", "2"], ["2", "3"]]


def test_one_of_several_files_is_named(tmp_path: Path) -> None:
    folder = write(write(tmp_path), "Games", "1 2 3\n")
    with pytest.raises(DataError, match=r"only one sequence file can be prepared at a time.*--categories: Games, Toys"):
        opened(folder)
    with pytest.raises(DataError, match="only one sequence file can be prepared at a time"):
        opened(folder, categories=("Games", "Toys"))
    assert opened(folder, categories=("Games",)).read == Counts(1, 2, 2)


@pytest.mark.parametrize("file", ["Toys.txt", "Toys_item2attributes.json"])
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    write(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match=f"{file} does not exist: .*S3Rec"):
        opened(tmp_path, categories=("Toys",))
    with pytest.raises(DataError, match="cannot be downloaded from here"):
        opened(None)


@pytest.mark.parametrize(("line", "message"), [("8", "user 8 has no items"), ("7 1", "user 7 occurs twice")])
def test_a_bad_line_is_refused_by_its_number_or_left_out(tmp_path: Path, line: str, message: str) -> None:
    write(tmp_path, lines=f"7 3 1 2\n\n{line}\n")
    with pytest.raises(DataError, match=rf"^Toys.txt line 3: {message}"):
        opened(tmp_path)
    faults = Faults("skip")
    assert len(list(opened(tmp_path, faults).users())) == len(faults.records) == 1


@pytest.mark.parametrize("bad", ["12", [1, -2], ["a"], [True], {"1": 2}])
def test_attributes_that_are_no_numbers_are_refused_or_left_out(tmp_path: Path, bad: object) -> None:
    write(tmp_path, attributes={"3": bad, "2": [7]})
    with pytest.raises(DataError, match=r"^Toys_item2attributes.json: item '3' has .*; it must be a list of attribute"):
        opened(tmp_path)
    faults = Faults("skip")
    assert [item.categories for item in opened(tmp_path, faults).items()] == [(), (), ("7",), ()]
    assert len(faults.records) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1]", "contains a list; it must be an object"), ("{", "is not JSON"), ("[" * 10**5, "is not JSON")],
)
def test_attributes_that_are_no_table_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (write(tmp_path) / "Toys_item2attributes.json").write_text(text)
    with pytest.raises(DataError, match=rf"Toys_item2attributes.json {message}"):
        opened(tmp_path, Faults("skip"))


needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared Amazon folder is not beside the checkout")
published = pytest.mark.parametrize(
    ("name", "counts"),
    [("Beauty", (22_363, 12_101, 198_502)), ("Sports_and_Outdoors", (35_598, 18_357, 296_337))],
)


@needs_shared
@published
def test_the_real_files_have_the_published_counts(name: str, counts: tuple[int, int, int]) -> None:
    source = opened(SHARED, categories=(name,))
    assert source.read == Counts.of(source.frame) == Counts(*counts)
    assert len(core(source.frame, 5, 5)) == counts[2]  # they are a core of 5
    assert all(item.categories for item in source.items())


@needs_shared
@published
@pytest.mark.slow
def test_the_real_files_are_prepared_whole(tmp_path: Path, name: str, counts: tuple[int, int, int]) -> None:
    prepared = prepare("sequences", tmp_path, SHARED, selection=SourceSelection(categories=(name,)), name=name)
    assert (prepared.users, prepared.items, prepared.interactions) == counts
    assert prepared.history_lengths["least"] == 5
