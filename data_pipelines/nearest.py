"""Finds the name that was probably meant, quickly even among millions of ids."""

import difflib
from collections.abc import Collection, Iterator

FEW = 1000
"""Up to this number, all names are compared."""
SHARED = 60
"""Of more names, this many are compared that share the longest beginning with the name, and as many that share the
longest ending; then again for shared parts that are one and two characters shorter."""
LONGEST = 100
"""The number of characters that are compared."""
LIKE = 0.6
"""The minimum similarity (`difflib.SequenceMatcher.ratio`) of a suggestion."""


def nearest(name: str, names: Collection[str]) -> str | None:
    """Returns the one of `names` most similar to `name`, ignoring case; None if none is similar enough."""
    wanted = name[:LONGEST]
    if not wanted:
        return None
    folded: dict[str, str] = {}
    for one in alike(wanted, names) if len(names) > FEW else names:
        folded.setdefault(one[:LONGEST].casefold(), one)
    found = difflib.get_close_matches(wanted.casefold(), folded, n=1, cutoff=LIKE)
    return folded[found[0]] if found and folded[found[0]] in names else None  # not part of a multi-line name


def likeness(one: str, other: str) -> float:
    """Returns the similarity of two names, 0 to 1, ignoring case."""
    return difflib.SequenceMatcher(None, one[:LONGEST].casefold(), other[:LONGEST].casefold()).ratio()


def did_you_mean(name: str, names: Collection[str]) -> str:
    """Returns the nearest name as a question followed by a space; an empty string if no name is near."""
    found = nearest(name, names)
    return "" if found is None else f"did you mean {found!r}? "


def alike(wanted: str, names: Collection[str]) -> Iterator[str]:
    """Yields the names that share the longest beginning or ending with `wanted`. Searching one joined string takes a
    hundredth of the time of comparing each name."""
    text = "\n".join(["", *names, ""])
    searched, spellings = text, {wanted, wanted.lower(), wanted.upper(), wanted.title()}
    if text.isascii():  # other text is slow to convert, and may change its length
        searched, spellings = text.lower(), {wanted.lower()}
    for spelling in spellings:
        begins = [f"\n{spelling[:size]}" for size in range(len(spelling) + 1)]
        ends = [f"{spelling[len(spelling) - size :]}\n" for size in range(len(spelling) + 1)]
        for pieces in (begins, ends):
            shared, above = 0, len(pieces)
            while above - shared > 1:  # binary search for the longest part that occurs in a name
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
