"""The record format that every source produces.

A source yields `Item`s and `User`s only; every later stage (corpus, tasks, loader, evaluation) reads only these. Values
that a source does not provide keep their defaults: a missing image is `b""`, a missing time is `NO_TIME`, a missing
rating is NaN and a missing text is `""`.
"""

import dataclasses
import math
from typing import Literal

NO_TIME = -1
Split = Literal["", "train", "validation", "test"]


@dataclasses.dataclass(frozen=True)
class Item:
    """An item that can be shown to a user.

    Attributes:
      item_id: the source's own id, unique within the source.
      title: the name by which a user would refer to the item.
      attributes: (name, text) pairs in the order in which a prompt shows them; an empty text is shown as "Unknown".
      categories: the terms a user would search by (genres, product type, colour), most general first.
      image: one encoded image (JPEG or PNG bytes), or b"" if there is none.
    """

    item_id: str
    title: str
    attributes: tuple[tuple[str, str], ...] = ()
    categories: tuple[str, ...] = ()
    image: bytes = b""


@dataclasses.dataclass(frozen=True)
class Interaction:
    """One interaction of a user with an item.

    Attributes:
      item_id: an `Item.item_id` of the same source.
      time: seconds since 1970, or `NO_TIME`; if times tie or are missing, the order of the source is kept.
      rating: in stars on the source's scale, or NaN.
      text: text written by the user (a review, tags), or "".
      split: the split prescribed by the source; "" leaves it to chronological leave-one-out.
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
