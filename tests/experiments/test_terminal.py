"""What a terminal is shown of the data: one line, nothing that steers it, cut to columns."""

import io
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.generate import show
from experiments.terminal import clean, clean_lines, columns, fitted, padded


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mRed\x1b[0m", "\ufffd[31mRed\ufffd[0m"),
        ("two\nlines\ttab\r\n", "two lines tab"),
        ("next\x85line\u2028and\u2029more", "next line and more"),
        ("bell\x07 nul\x00 del\x7f C1\x9b31m", "bell\ufffd nul\ufffd del\ufffd C1\ufffd31m"),
        ("right\u202eto\u202c \u2066left\u2069", "rightto left"),
        ("zero\u200bwidth\u200d\ufeff", "zerowidth"),
        ("half \ud83d", "half \ufffd"),
        ("Léon, 東京 \U0001f600", "Léon, 東京 \U0001f600"),
        ("heart \u2764\ufe0f", "heart \u2764"),
    ],
)
def test_nothing_of_the_data_steers_the_terminal(text, expected):
    assert clean(text) == expected


@pytest.mark.parametrize(
    ("encoding", "expected"), [("ascii", "L?on ?? ?"), ("cp1252", "Léon ?? ?"), ("utf-8", "Léon 東京 \U0001f600")]
)
def test_what_the_terminal_cannot_show_is_replaced(monkeypatch, encoding, expected):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert clean("Léon 東京 \U0001f600") == expected
    assert fitted("a" * 30, 10) == ("aaaaaaa..." if encoding == "ascii" else "aaaaaaaaa…")


@pytest.mark.parametrize(
    ("text", "room", "expected"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("東京東京", 8, "東京東京"),
        ("東京東京", 7, "東京東…"),
        ("東京東京", 6, "東京…"),
    ],
)
def test_texts_are_cut_by_the_columns_that_they_take(text, room, expected):
    assert fitted(text, room) == expected


def test_any_number_of_marks_above_a_letter_is_cut():
    assert len(fitted("a" + "\u0301" * 100_000, 10)) <= 41


@given(st.text(), st.integers(3, 50))
def test_what_is_shown_is_clean_and_fits(text, room):
    told = fitted(clean(text), room)
    assert columns(told) <= room
    assert columns(padded(told, room)) == room
    assert all(unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in told)
    assert clean(told) == told


def test_lines_keep_their_indent():
    assert clean_lines("a\x1bb\n  c\td\n\nend") == "a\ufffdb\n  c d\n\nend"


def table(monkeypatch, titles, columns="60"):
    monkeypatch.setenv("COLUMNS", columns)
    items = [
        {"rank": rank, "title": title, "item": str(rank), "probability": 0.5 / rank}
        for rank, title in enumerate(titles, start=1)
    ]
    history = {"items": 2, "latest": [{"item": "1", "title": title} for title in titles[:2]]}
    return show({"task": "recommendation", "user": None, "history": history, "items": items}).split("\n")


def test_a_table_of_odd_titles_is_aligned_and_fits(monkeypatch):
    titles = ["plain", "x" * 3000, "two\nlines", "\x1b[31mred", "東京物語" * 10, "\U0001f600 smile", "\u202eright"]
    lines = table(monkeypatch, titles)
    head, *rows = lines[2:]
    assert len(rows) == len(titles)
    assert {columns(line) for line in (head, *rows)} == {60}
    assert {columns(row[: row.rindex("  ")].rstrip()) for row in rows} == {len("rank  ") + 35 + len("  i  ") - 2}
    assert rows[1].startswith(f"   2  {'x' * 34}…  2")
    assert not any(character in "".join(lines) for character in "\x1b\n\u202e")
    assert all(columns(line) <= 200 for line in lines)


def test_a_table_for_good_titles_is_as_it_was(monkeypatch):
    assert table(monkeypatch, ["Film 1", "Film 22"], "120") == [
        "recommendation for the given history: 2 items, the latest Film 1; Film 22",
        "",
        "rank  title    item  probability",
        "   1  Film 1   1          50.00%",
        "   2  Film 22  2          25.00%",
    ]


def test_ids_without_end_are_cut_as_well(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    item = {"rank": 1, "title": "t" * 90, "item": "i" * 500, "probability": 1.0}
    history = {"items": 0, "latest": []}
    lines = show({"task": "search", "user": "u" * 500, "history": history, "items": [item]}).split("\n")
    assert [columns(line) for line in lines[2:]] == [60, 60]
    assert "i" * 29 + "…" in lines[3]
