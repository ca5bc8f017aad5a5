"""Which part of a source is prepared, where it leaves a choice."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class SourceSelection:
    """Which part of a source is prepared; what a source does not know it refuses, where it is not the default."""

    categories: tuple[str, ...] = ()
    """Of products, one or more, merged: Amazon's, and the sequence files'. By default all whose files lie in the
    folder."""
    user_core: int | None = None
    """Users with fewer interactions are left out, and with them items; by default what the source is known by."""
    item_core: int | None = None
    """Items with fewer interactions are left out, and with them users."""
    item: Literal["article", "product"] = "article"
    """What H&M's customers buy: an article, or the product, whose articles are its colours."""
    fetch_images: bool = False
    """Images that are known by URL are fetched."""
