"""Other data is reported from the same data, part by part."""

import dataclasses
import json
import time

import numpy as np
import pytest

from data_pipelines.corpus import Corpus, with_user
from data_pipelines.errors import DataError
from data_pipelines.fingerprint import DATA_PARTS, FILE, check_same, fingerprint, save_fingerprint
from tests.data_pipelines.small import small_corpus

CORPUS = small_corpus()
HAS_IMAGE = np.arange(40) % 3 != 0
EVENTS = len(CORPUS.items)


def changed(name: str, place: int, value) -> Corpus:
    values = getattr(CORPUS, name).copy()
    values[place] = value
    return dataclasses.replace(CORPUS, **{name: values})


def said(corpus: Corpus, has_image: np.ndarray = HAS_IMAGE, prompts: tuple[str, ...] = ("a", "b")) -> str:
    """What is found to differ."""
    before, after = fingerprint(CORPUS, HAS_IMAGE, ("a", "b")), fingerprint(corpus, has_image, prompts)
    assert tuple(after) == DATA_PARTS
    names = [name for name in DATA_PARTS if before[name] != after[name]]
    return "; ".join(f"{name} {before[name][0]}, {after[name][0]}" for name in names)


@pytest.mark.parametrize(
    ("corpus", "differs"),
    [
        (changed("item_ids", 3, "other"), "items 40, 40"),
        (changed("titles", 3, "Other"), "texts of items"),
        (changed("attributes", 3, (("Genres", "Other"),)), "texts of items"),
        (changed("categories", 3, ("Other",)), "texts of items"),
        (changed("user_ids", 3, "other"), "users 30, 30"),
        (changed("items", 3, 39), f"interactions {EVENTS}, {EVENTS}"),
        (changed("offsets", 3, CORPUS.offsets[3] + 1), f"interactions {EVENTS}, {EVENTS}"),
        (changed("times", 3, -1), f"known times {EVENTS}, {EVENTS - 1}"),
        (changed("ratings", int(np.flatnonzero(CORPUS.ratings == 5)[0]), 4.5), "ratings"),
        (changed("splits", int(np.flatnonzero(CORPUS.splits == 0)[0]), 3), "held-out interactions"),
        (dataclasses.replace(CORPUS, texts=CORPUS.texts | {int(next(iter(CORPUS.texts))): "other"}), "reviews"),
    ],
)
def test_each_part_is_reported_from_all_others(corpus, differs):
    assert said(corpus).startswith(differs)
    assert ";" not in said(corpus)


def test_the_same_data_is_the_same_and_order_counts():
    assert said(small_corpus()) == ""
    assert said(changed("ratings", int(np.flatnonzero(np.isnan(CORPUS.ratings))[0]), -np.nan)) == ""
    assert said(CORPUS, ~HAS_IMAGE) == "images 26, 14"
    assert said(CORPUS, prompts=("ab", "")) == "texts of prompts 2, 2"
    assert said(dataclasses.replace(CORPUS, user_ids=CORPUS.user_ids[::-1])) == "users 30, 30"


def test_a_run_on_other_data_is_refused_in_one_line_that_says_what_differs(tmp_path):
    path = tmp_path / FILE
    save_fingerprint(path, fingerprint(CORPUS, HAS_IMAGE, ("a",)))
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
    check_same(path, fingerprint(CORPUS, HAS_IMAGE, ("a",)))
    other = with_user(changed("titles", 3, "Other title"), "new", [1, 2], [3.0, np.nan])
    now = fingerprint(other, HAS_IMAGE, ("b",))
    rated = int((~np.isnan(CORPUS.ratings)).sum())
    with pytest.raises(DataError) as error:
        check_same(path, now)
    held_out = int((CORPUS.splits != 0).sum())
    texts = json.loads(path.read_text())["texts of items"][0]
    assert str(error.value) == (
        f"the data is not what this run was trained on ({path}): {texts} texts of items with other values; users 30, "
        f"now 31; interactions {EVENTS}, now {EVENTS + 2}; {EVENTS} known times with other values; ratings {rated}, "
        f"now {rated + 1}; held-out interactions {held_out}, now {held_out + 2}; 1 texts of "
        "prompts with other values; prepare the same source again with the same options, or point --data.folder at it"
    )
    check_same(path, now, ["items"])  # enough to be asked


def test_runs_from_before_have_none_and_a_damaged_one_is_reported(tmp_path):
    now = fingerprint(CORPUS, HAS_IMAGE, ())
    check_same(tmp_path / FILE, now)
    for content in ("", "{", "[]", '{"items": 3}', '{"items": ["x", 1]}', '{"items": [1e999, ""]}'):
        (tmp_path / FILE).write_text(content)
        with pytest.raises(DataError, match="the file does not describe the data of the run"):
            check_same(tmp_path / FILE, now)
    (tmp_path / FILE).write_text(
        json.dumps({"items": now["items"]})
    )  # of a part that it does not know, nothing is said
    check_same(tmp_path / FILE, now)


def test_a_million_interactions_take_less_than_a_second():
    users, each = 10_000, 100
    count = users * each
    corpus = dataclasses.replace(
        CORPUS,
        user_ids=[f"u{number}" for number in range(users)],
        offsets=np.arange(0, count + 1, each),
        items=np.zeros(count, np.int32),
        times=np.zeros(count, np.int64),
        ratings=np.zeros(count, np.float32),
        splits=np.zeros(count, np.int8),
    )
    start = time.process_time()
    fingerprint(corpus, HAS_IMAGE, ())
    assert time.process_time() - start < 1
