"""The options that select which part of a source is prepared."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class SourceSelection:
    """Which part of a source is prepared; a source refuses options that it does not support."""

    categories: tuple[str, ...] = ()
    """Product categories, merged if several: for Amazon and the sequence files. By default all with files in the
    folder."""
    user_core: int | None = None
    """Removes users with fewer interactions, and repeatedly items below their core; by default as customary for the
    source."""
    item_core: int | None = None
    """Removes items with fewer interactions, and repeatedly users below their core; by default as for user_core."""
    item: Literal["article", "product"] = "article"
    """The items of H&M: articles, or products, each of which comprises articles in several colours."""
    fetch_images: bool = False
    """Whether to fetch images that are given by URL."""
