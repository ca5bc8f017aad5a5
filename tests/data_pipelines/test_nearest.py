"""The name that was perhaps meant: near ones found among millions, none where none is near."""

import random
import time

import pytest

from data_pipelines.nearest import did_you_mean, likeness, nearest


@pytest.mark.parametrize(
    ("name", "names", "expected"),
    [
        ("histroy", ["history", "query", "item"], "history"),
        ("MOVIELENS-SMALL", ["movielens_small", "movielens_1m", "hm"], "movielens_small"),
        ("film 3", ["Film 3", "Film 30"], "Film 3"),
        ("55", ["1", "5"], "5"),
        ("0108775015", ["108775015", "108775044"], "108775015"),
        ("größe", ["GRÖSSE", "Farbe"], "GRÖSSE"),
        ("zzz", ["history", "query", "item"], None),
        ("", ["history", ""], None),
        ("x", [], None),
    ],
)
def test_few_names(name, names, expected):
    assert nearest(name, names) == expected
    assert did_you_mean(name, names) == ("" if expected is None else f"did you mean {expected!r}? ")


@pytest.fixture(scope="module")
def million() -> list[str]:
    rng = random.Random(0)
    return [f"B{rng.randrange(16**9):09X}" for _ in range(1_000_000)]


def test_an_id_among_a_million_in_a_third_of_a_second(million):
    right = million[777]
    asked = {
        right[:5] + "Z" + right[6:]: right, right[:4] + right[5:]: right, right.lower(): right, right[1:]: right,
        f"{right}0": right, "what is this": None, "zzz": None,
    }  # fmt: skip
    since = time.process_time()
    found = {name: nearest(name, million) for name in asked}
    assert (time.process_time() - since) / len(asked) < 0.3
    assert found == asked


def test_numbered_ids_and_titles_in_other_alphabets():
    numbered = [f"item_{number:06}" for number in range(100_000)]
    assert nearest("item-012345", numbered) == "item_012345"
    assert nearest("item_12345", numbered) == "item_012345"
    assert nearest("zebra", numbered) is None
    titles = [f"Größe {number}: Das Kleid" for number in range(50_000)]
    assert nearest("größe 123: das kleid", titles) == "Größe 123: Das Kleid"


def test_names_of_any_length_and_of_several_lines():
    long = "a" * 1_000_000
    since = time.process_time()
    assert nearest(long, [long + "b"] * 3 + ["c"]) == long + "b"
    assert likeness(long, long) == 1.0
    assert nearest("wanted", [*(f"x{number}" for number in range(5000)), "first line\nwantad"]) is None
    assert time.process_time() - since < 1
