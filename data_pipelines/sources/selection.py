"""The options that select which part of a source is prepared."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class SourceSelection:
    """Which part of a source is prepared; a source refuses options that it does not support."""

    categories: tuple[str, ...] = ()
    """Product categories, merged if several: for Amazon and the sequence files. By default all with files in the
    folder."""
    user_core: int | None = None
    """Users with fewer interactions are left out, as are items that fall below item_core; the default depends on the
    source."""
    item_core: int | None = None
    """Items with fewer interactions are left out, as are users that fall below user_core; the default depends on the
    source."""
    item: Literal["article", "product"] = "article"
    """The items of H&M: articles, or products, each of which comprises articles in several colours."""
    fetch_images: bool = False
    """Whether to fetch images that are given by URL."""
