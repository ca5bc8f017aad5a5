"""Prepares text from the data for a terminal: one line, without control characters, encodable, cut to a width."""

import shutil
import sys
import unicodedata
from typing import Any

FALLBACK = (120, 24)
"""Columns and lines to assume if standard output is not a terminal."""
STRANGE = "\ufffd"
INVISIBLE = ("Cf", "Cc", "Cs")
"""Unicode categories of characters that have effects but are not shown: formats (such as direction marks and zero-width
joiners), controls and surrogates."""
WIDENS = "\ufe0f"
"""Variation selector that requests an emoji in place of a sign, whose width then depends on the terminal."""


def clean(text: str) -> str:
    """Returns a text as one line of visible characters: runs of white space become blanks, formats are removed, and
    controls and what standard output cannot encode become U+FFFD (or "?")."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    kept = "".join(visible(character) for character in " ".join(text.split()))
    return kept.encode(encoding, "replace").decode(encoding)


def visible(character: str) -> str:
    kind = unicodedata.category(character)
    if kind == "Cf" or character == WIDENS:
        return ""
    return STRANGE if kind in INVISIBLE else character


def clean_lines(text: str) -> str:
    """Cleans each line of a text with `clean`, keeping its indentation."""
    return "\n".join(" " * (len(line) - len(line.lstrip(" "))) + clean(line) for line in text.split("\n"))


def cleaned(value: Any) -> Any:
    """Cleans all strings within lists and dicts."""
    if isinstance(value, dict):
        return {name: cleaned(one) for name, one in value.items()}
    if isinstance(value, list):
        return [cleaned(one) for one in value]
    return clean(value) if isinstance(value, str) else value


def columns(text: str) -> int:
    """Returns the number of columns of a clean text: wide characters take two, combining marks none."""
    return sum(map(width, text))


def width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fitted(text: str, limit: int) -> str:
    """Cuts a clean text to at most `limit` columns; a cut is marked."""
    if columns(text) <= limit and len(text) <= 4 * limit:
        return text
    mark = "…" if clean("…") == "…" else "..."
    taken, kept = columns(mark), ""
    for character in text[: 4 * limit]:  # a text may have any number of combining marks
        taken += width(character)
        if taken > limit:
            break
        kept += character
    return f"{kept.rstrip()}{mark}"


def padded(text: str, limit: int) -> str:
    return text + " " * (limit - columns(text))


def terminal_width() -> int:
    """Returns the number of columns of the terminal."""
    return shutil.get_terminal_size(FALLBACK).columns
