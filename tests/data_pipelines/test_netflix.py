"""Netflix in LLMRec's format: three JSON files of item numbers, lines of films, posters."""

import json
from pathlib import Path

import pytest

from data_pipelines.corpus import TEST, TRAIN, VALIDATION, build_corpus
from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.schema import Item
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.netflix import read_films
from data_pipelines.sources.registry import find_source
from data_pipelines.sources.source import Counts, Source
from tests.data_pipelines.small import image

FILMS = """1,2003,Dinosaur Planet
2,2004.0,"Isle of Man TT, 2004 Review"
5,,Character
8,1995,Stadt, Die "verlorene", Kinder
9,NULL,Œuvre &amp; Co
"""
TRAIN_ITEMS = {"0": [0, 1, 2], "1": [3], "2": []}
VAL_ITEMS = {"0": [3], "1": [], "2": [1]}
TEST_ITEMS = {"0": [4], "1": [0, 2], "2": []}


def write(folder: Path, films: str = FILMS, **files: object) -> Path:
    folder.mkdir(exist_ok=True)
    for name, table in ({"train": TRAIN_ITEMS, "val": VAL_ITEMS, "test": TEST_ITEMS} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(table))
    (folder / "item_attribute.csv").write_text(films, encoding="utf-8")
    posters = folder / "Netflix_Posters"
    posters.mkdir(exist_ok=True)
    for number in (1, 2, 5):
        (posters / f"{number}.jpg").write_bytes(image(number)[: None if number != 5 else -30])
    return folder


def opened(folder: Path, faults: Faults | None = None) -> Source:
    builder = find_source("netflix")(config="items", data_dir="unused", source_dir=folder, faults=faults)
    source = builder.open_source(None)
    assert isinstance(source, Source)
    return source


def split_of(source: Source) -> dict[str, list[tuple[str, str]]]:
    return {user.user_id: [(one.item_id, one.split) for one in user.interactions] for user in source.users()}


@pytest.mark.parametrize("header", ["", "id,year,title\n"])
def test_an_item_is_its_line_and_its_poster_that_of_its_id(tmp_path: Path, header: str) -> None:
    faults = Faults()
    items = {item.item_id: item for item in opened(write(tmp_path, header + FILMS), faults).items()}
    assert items["0"] == Item(
        "0", "Dinosaur Planet", (("Title", "Dinosaur Planet"), ("Release Date", "2003")), (), image(1)
    )
    assert {number: item.title for number, item in items.items()} == {
        "0": "Dinosaur Planet",
        "1": "Isle of Man TT, 2004 Review",
        "2": "Character",
        "3": 'Stadt, Die "verlorene", Kinder',
        "4": "Œuvre & Co",
    }
    years = [dict(items[number].attributes)["Release Date"] for number in "01234"]
    assert years == ["2003", "2004", "", "1995", ""]
    assert [bool(items[number].image) for number in "01234"] == [True, True, False, False, False]
    told = "\n".join(faults.images)
    assert len(faults.images) == 3
    assert "5.jpg is broken" in told
    assert "8.jpg is missing" in told


def test_what_the_publisher_holds_out_is_held_out(tmp_path: Path) -> None:
    source = opened(write(tmp_path))
    assert split_of(source) == {
        "0": [("0", "train"), ("1", "train"), ("2", "train"), ("3", "validation"), ("4", "test")],
        "1": [("3", "train"), ("0", "test")],  # of two, the first
        "2": [("1", "validation")],
    }
    assert source.read == Counts(3, 5, 9)
    corpus = build_corpus(source.items(), source.users())
    assert corpus.splits.tolist() == [TRAIN, TRAIN, TRAIN, VALIDATION, TEST, TRAIN, TEST, VALIDATION]
    assert corpus.held_out(TEST)[0].tolist() == [0, 1]


def test_what_is_held_out_is_never_learnt(tmp_path: Path) -> None:
    files = {"train": {"0": [4, 1, 2, 3, 1]}, "val": {"0": [4, 2]}, "test": {"0": [4, 3], "7": [0]}}
    assert split_of(opened(write(tmp_path, **files))) == {
        "0": [("1", "train"), ("2", "validation"), ("4", "test")],
        "7": [("0", "test")],
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": {"0": [0, 5]}}, r"^train.json: user 0: item 5 is not in item_attribute.csv"),
        ({"val": {"0": [-1]}}, r"^val.json: user 0: item -1 is not in item_attribute.csv"),
        ({"test": {"0": 3}}, r"^test.json: user 0: 3 is not a list of item numbers"),
        ({"test": {"0": ["3"]}}, r"^test.json: user 0: \[\"3\"\] is not a list of item numbers"),
        ({"test": {"0": [True]}}, r"^test.json: user 0: \[true\] is not a list of item numbers"),
    ],
)
def test_a_bad_history_is_refused_or_left_out(tmp_path: Path, files: dict[str, object], message: str) -> None:
    write(tmp_path, **files)
    with pytest.raises(DataError, match=message):
        opened(tmp_path)
    faults = Faults("skip")
    assert "1" in split_of(opened(tmp_path, faults)) or "train" in files
    assert len(faults.records) == 1


@pytest.mark.parametrize("line", ["x,2000,Title", "3,two,Title", "3,2000", "3,2000,  ", "3"])
def test_a_bad_film_is_refused_or_left_out_and_the_others_keep_their_numbers(tmp_path: Path, line: str) -> None:
    first, *others = FILMS.splitlines()
    write(tmp_path, "\n".join([first, line, *others[1:]]))
    with pytest.raises(DataError, match=rf"^item_attribute.csv line 2: '{line.strip()}.*'; it must be id,year,title"):
        opened(tmp_path)
    faults = Faults("skip")
    titles = {item.item_id: item.title for item in opened(tmp_path, faults).items()}
    assert "1" not in titles
    assert titles["2"] == "Character"
    assert len(faults.records) == 3  # the film, and two users who saw it


@pytest.mark.parametrize("file", ["train.json", "val.json", "test.json", "item_attribute.csv"])
def test_a_missing_file_is_named_with_its_publisher(tmp_path: Path, file: str) -> None:
    (write(tmp_path) / file).unlink()
    with pytest.raises(DataError, match=rf"{file} does not exist: .*LLMRec"):
        opened(tmp_path)


def test_records_are_written(tmp_path: Path) -> None:
    prepared = prepare("netflix", tmp_path / "data", write(tmp_path / "source"))
    assert (prepared.users, prepared.items, prepared.interactions, prepared.images) == (3, 5, 8, 2)
    assert len(prepared.bad_images) == 3


def test_a_title_on_two_lines_never_shifts_the_numbers_of_later_films(tmp_path: Path) -> None:
    path = tmp_path / "item_attribute.csv"
    path.write_text('1,2001,One\n2,2002,"Two\nlines"\n3,2003,Three\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 2: a quoted title continues on the next line"):
        read_films(path, Faults("skip"))
    path.write_text('1,2001,One\n2,2002,"Two\n3,2003,Three\n', encoding="utf-8")
    assert read_films(path, Faults("skip")) == [("1", "2001", "One"), None, ("3", "2003", "Three")]
