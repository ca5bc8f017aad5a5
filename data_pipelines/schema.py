"""The one record format that every source ends in.

A source yields `Item`s and `User`s and nothing else; all that follows (corpus, tasks, loader, evaluation) reads only
these. Whatever a source does not have is left at its default: no image is `b""`, no time is `NO_TIME`, no rating is
NaN, no text is `""`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

NO_TIME = -1
Split = Literal["", "train", "validation", "test"]


@dataclasses.dataclass(frozen=True)
class Item:
    """Something a user can be shown.

    Attributes:
      item_id: the source's own id, unique in the source.
      title: what a user would call it.
      attributes: (name, text) pairs in the order in which a prompt shows them; an empty text is shown as "Unknown".
      categories: the words a user would search by (genres, product type, colour), most general first.
      image: one encoded image (JPEG or PNG bytes), or b"" where there is none.
    """

    item_id: str
    title: str
    attributes: tuple[tuple[str, str], ...] = ()
    categories: tuple[str, ...] = ()
    image: bytes = b""


@dataclasses.dataclass(frozen=True)
class Interaction:
    """One user met one item.

    Attributes:
      item_id: an `Item.item_id` of the same source.
      time: seconds since 1970, or `NO_TIME`; where times tie or are absent, the source's order stands.
      rating: in stars as the source has it, or NaN.
      text: what the user wrote (a review, tags), or "".
      split: the split a source prescribes; "" leaves it to chronological leave-one-out.
    """

    item_id: str
    time: int = NO_TIME
    rating: float = math.nan
    text: str = ""
    split: Split = ""


@dataclasses.dataclass(frozen=True)
class User:
    """A user and all their interactions, oldest first."""

    user_id: str
    interactions: tuple[Interaction, ...]
