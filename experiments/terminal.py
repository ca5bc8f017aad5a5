"""Text of the data on a terminal: on one line, without control characters, in what can be shown, cut to columns."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from typing import Any

FALLBACK = (120, 24)
"""Columns and lines where standard output is no terminal."""
STRANGE = "\ufffd"
INVISIBLE = ("Cf", "Cc", "Cs")
"""Unicode's categories of characters that steer and do not show: formats (such as marks of direction and what joins
without width), controls, and halves of surrogates."""
WIDENS = "\ufe0f"
"""Asks for an emoji in the place of a sign, whose width then depends on the terminal."""


def clean(text: str) -> str:
    """One line of characters that show: blanks in the place of runs of white space, nothing in that of formats, and
    U+FFFD (or "?") in that of controls and of what standard output cannot encode."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    kept = "".join(shown(character) for character in " ".join(text.split()))
    return kept.encode(encoding, "replace").decode(encoding)


def shown(character: str) -> str:
    kind = unicodedata.category(character)
    if kind == "Cf" or character == WIDENS:
        return ""
    return STRANGE if kind in INVISIBLE else character


def clean_lines(text: str) -> str:
    """The same of each line."""
    return "\n".join(" " * (len(line) - len(line.lstrip(" "))) + clean(line) for line in text.split("\n"))


def cleaned(value: Any) -> Any:
    """Lists and dicts with clean texts in the place of texts."""
    if isinstance(value, dict):
        return {name: cleaned(one) for name, one in value.items()}
    if isinstance(value, list):
        return [cleaned(one) for one in value]
    return clean(value) if isinstance(value, str) else value


def columns(text: str) -> int:
    """The columns that a clean text takes: two for wide characters, none for what stands above or below another."""
    return sum(map(width, text))


def width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fitted(text: str, room: int) -> str:
    """A clean text, cut so that it takes `room` columns at most; the cut is marked."""
    if columns(text) <= room and len(text) <= 4 * room:
        return text
    mark = "…" if clean("…") == "…" else "..."
    taken, kept = columns(mark), ""
    for character in text[: 4 * room]:  # of marks above and below there may be any number
        taken += width(character)
        if taken > room:
            break
        kept += character
    return f"{kept.rstrip()}{mark}"


def padded(text: str, room: int) -> str:
    return text + " " * (room - columns(text))


def room() -> int:
    """The columns of the terminal."""
    return shutil.get_terminal_size(FALLBACK).columns
