"""The name that was perhaps meant, among a handful of fields or millions of ids, in a moment; or none."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator

FEW = 1000
"""So many names are all compared."""
SHARED = 60
"""Of more, so many are compared that begin, and so many that end, as the name does; and as many again that share a
character less, and two."""
LONGEST = 100
"""Characters that are compared."""
LIKE = 0.6
"""Of at least this likeness (`difflib.SequenceMatcher.ratio`) is what is named."""


def nearest(name: str, names: Collection[str]) -> str | None:
    """The one of `names` that is most like `name`, letters of either case being alike; None where none is like it."""
    wanted = name[:LONGEST]
    if not wanted:
        return None
    folded: dict[str, str] = {}
    for one in alike(wanted, names) if len(names) > FEW else names:
        folded.setdefault(one[:LONGEST].casefold(), one)
    found = difflib.get_close_matches(wanted.casefold(), folded, n=1, cutoff=LIKE)
    return folded[found[0]] if found and folded[found[0]] in names else None  # no line of a name of several


def likeness(one: str, other: str) -> float:
    """0 to 1, letters of either case being alike."""
    return difflib.SequenceMatcher(None, one[:LONGEST].casefold(), other[:LONGEST].casefold()).ratio()


def did_you_mean(name: str, names: Collection[str]) -> str:
    """The nearest name as a question, with a blank behind it; nothing where none is near."""
    found = nearest(name, names)
    return "" if found is None else f"did you mean {found!r}? "


def alike(wanted: str, names: Collection[str]) -> Iterator[str]:
    """Those of many names that begin or end most as `wanted` does: found in one text of all, by the search of strings,
    which takes a hundredth of the time of a look at each."""
    text = "\n".join(["", *names, ""])
    searched, spellings = text, {wanted, wanted.lower(), wanted.upper(), wanted.title()}
    if text.isascii():  # others take long, and may change their length
        searched, spellings = text.lower(), {wanted.lower()}
    for spelling in spellings:
        begins = [f"\n{spelling[:size]}" for size in range(len(spelling) + 1)]
        ends = [f"{spelling[len(spelling) - size :]}\n" for size in range(len(spelling) + 1)]
        for pieces in (begins, ends):
            shared, above = 0, len(pieces)
            while above - shared > 1:  # the longest that a name has
                middle = (shared + above) // 2
                shared, above = (middle, above) if pieces[middle] in searched else (shared, middle)
            for piece in pieces[shared : max(shared - 3, 0) : -1]:
                place = searched.find(piece)
                for _ in range(SHARED):
                    if place < 0:
                        break
                    first = place + 1 if pieces is begins else text.rfind("\n", 0, place) + 1
                    last = text.index("\n", first)
                    yield text[first:last]
                    place = searched.find(piece, last)
