"""The texts that describe items in prompts."""

import dataclasses
from collections.abc import Iterator

from data_pipelines.corpus import Corpus
from data_pipelines.errors import DataError
from data_pipelines.plain_text import shortened

CATEGORY = "Category"


@dataclasses.dataclass(frozen=True, eq=False)
class AttributeTexts:
    """Iterates over the items' texts, `Name text Name text …`, which are created anew and not kept in memory.

    Attributes:
      shown: the names of the attributes to show; empty means all attributes of the source.
    """

    corpus: Corpus
    shown: tuple[str, ...]
    words: int

    def __iter__(self) -> Iterator[str]:
        """Yields the text of each item; raises DataError if an attribute is not in the source."""
        corpus = self.corpus
        known = dict.fromkeys(name for attributes in corpus.attributes for name, _ in attributes)
        for name in self.shown:
            if name not in (*known, CATEGORY):
                raise DataError(f"attribute {name!r} is not in this source; it has {', '.join(known) or 'none'}")
        shown = self.shown or tuple(known)
        for attributes, categories in zip(corpus.attributes, corpus.categories, strict=True):
            values = {CATEGORY: ", ".join(categories), **dict(attributes)}
            yield " ".join(f"{name} {shortened(values.get(name, ''), self.words) or 'Unknown'}" for name in shown)
