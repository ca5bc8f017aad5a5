"""Columns hold what records do, are not copied into memory, and are named where they are damaged."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import columns
from data_pipelines.columns import ABOUT, FOLDER, NUMBERS, gathered, read_columns, write_columns
from data_pipelines.corpus import Corpus, build_corpus
from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.records import read_items, read_users
from data_pipelines.schema import NO_TIME, Interaction, Item, User
from tests.data_pipelines.movielens_files import movielens_folder
from tests.data_pipelines.small import in_memory

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
catalogues = st.lists(
    st.builds(
        Item,
        item_id=texts,
        title=texts,
        attributes=st.lists(st.tuples(texts, texts), max_size=2).map(tuple),
        categories=st.lists(texts, max_size=2).map(tuple),
        image=st.sampled_from([b"", b"\x89PNG"]),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda item: item.item_id,
)


@st.composite
def sources(draw: st.DrawFn) -> tuple[list[Item], list[User]]:
    items = draw(catalogues)
    interactions = st.builds(
        Interaction,
        item_id=st.sampled_from([item.item_id for item in items]),
        time=st.sampled_from([NO_TIME, 3, 5, 2**40]),
        rating=st.sampled_from([float("nan"), 0.5, 4.0]),
        text=texts,
    )
    histories = draw(st.lists(st.lists(interactions, max_size=4).map(tuple), min_size=1, max_size=5))
    users = [User(f"u{number}", history) for number, history in enumerate(histories)]
    return items, [*users, User("last", (Interaction(items[0].item_id),))]


def assert_same(one: Corpus, other: Corpus) -> None:
    for field in dataclasses.fields(Corpus):
        here, there = getattr(one, field.name), getattr(other, field.name)
        if isinstance(there, np.ndarray):
            assert here.dtype == there.dtype
            np.testing.assert_array_equal(here, there)
        elif field.name == "texts":
            assert here == there
        else:
            assert [*here] == there
            assert here == there
            assert there == here
            assert here != there[1:]
            assert here != [*there[1:], None]
            assert [here[number] for number in range(len(here))] == there
            assert here[1:] == there[1:]
            assert here[-1] == there[-1]


@settings(deadline=None)
@given(sources(), st.integers(1, 3))
def test_columns_are_what_is_gathered(tmp_path_factory: pytest.TempPathFactory, source, rows: int) -> None:
    folder = tmp_path_factory.mktemp("columns") / FOLDER
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "ROWS", rows)  # several batches a file
        write_columns(*source, folder)
    read = read_columns(folder)
    assert read is not None
    assert_same(read[0], in_memory(*source))
    assert_same(build_corpus(*source), in_memory(*source))
    np.testing.assert_array_equal(read[1], [bool(item.image) for item in source[0]])
    for number, user in enumerate(user for user in source[1] if user.interactions):
        assert read[0].user_ids.index(user.user_id) == number
        assert user.user_id in read[0].user_ids
    assert "nobody" not in read[0].user_ids
    with pytest.raises(ValueError, match="nobody"):
        read[0].user_ids.index("nobody")
    with pytest.raises(IndexError):
        read[0].titles[len(source[0])]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare("movielens_small", folder / "data", movielens_folder(folder / "source"))
    return folder / "data"


@pytest.fixture
def prepared(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "data")


def test_prepare_writes_them_and_records_without_them_are_gathered(prepared: Path) -> None:
    folder = prepared / "movielens_small" / FOLDER
    read = read_columns(folder)
    assert read is not None
    items, users = read_items("movielens_small", prepared), read_users("movielens_small", prepared)
    for corpus, has_image in (read, gathered(items, users)):
        assert_same(corpus, in_memory(items, users))
        assert has_image.tolist() == [bool(item.image) for item in items]
    assert all(isinstance(getattr(read[0], name).base, np.memmap) for name in NUMBERS)
    assert read_columns(prepared / "nowhere") is None
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps(about | {"version": 0}))
    assert read_columns(folder) is None


@pytest.mark.parametrize("name", [ABOUT, *(f"{name}.bin" for name in NUMBERS), "items.arrow", "users.arrow"])
@pytest.mark.parametrize("kept", [None, 0, 0.5])
def test_a_damaged_file_is_named(prepared: Path, name: str, kept: float | None) -> None:
    path = prepared / "movielens_small" / FOLDER / name
    whole = path.read_bytes()
    if kept is None:
        path.unlink()
    else:
        path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DataError, match=rf"{FOLDER}.*prepare the source again"):
        read_columns(path.parent)


@pytest.mark.parametrize(
    ("items", "users", "message"),
    [
        ([Item("a", "A"), Item("a", "B")], [], "item a occurs twice"),
        ([], [], "no items"),
        ([Item("a", "A")], [User("u", ())], "no user in the source has an interaction"),
        ([Item("a", "A")], [User("u", (Interaction("b"),))], "item b is not in the catalogue"),
        ([Item("a", "A")], [User("u", (Interaction("a"),))] * 2, "user u occurs twice"),
    ],
)
def test_what_contradicts_itself_is_refused_as_it_is_when_gathered(tmp_path: Path, items, users, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_columns(items, users, tmp_path / FOLDER)
    with pytest.raises(DataError, match=message):
        build_corpus(items, users)


def test_texts_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    history = tuple(Interaction("a", at, text="" if at % 3 else f"text {at}") for at in range(10))
    write_columns([Item("a", "A")], [User("u", history), User("v", history[4:])], tmp_path / FOLDER)
    corpus = read_columns(tmp_path / FOLDER)[0]  # type: ignore[index]
    known = {0: "text 0", 3: "text 3", 6: "text 6", 9: "text 9", 12: "text 6", 15: "text 9"}
    assert corpus.texts == known
    assert [*corpus.texts] == corpus.text_events.tolist() == [*known]
    assert [*corpus.texts.values()] == [*known.values()]
    assert [corpus.texts.get(event) for event in range(17)] == [known.get(event) for event in range(17)]
    with pytest.raises(KeyError):
        corpus.texts[1]


def test_users_whose_hashes_are_the_same_are_compared_by_their_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "hash", len, raising=False)
    met = (Interaction("a"),)
    write_columns([Item("a", "A")], [User("one", met), User("two", met)], tmp_path / "other")
    with pytest.raises(DataError, match="user two occurs twice"):
        write_columns([Item("a", "A")], [User(name, met) for name in ("one", "two", "two")], tmp_path / "same")
