"""The shell that makes a TFDS builder of any source: two configurations, `items` and `users`, one record format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import tensorflow_datasets as tfds

from data_pipelines.records import ITEM_FEATURES, KINDS, SPLIT, USER_FEATURES, encode_item, encode_user
from data_pipelines.schema import Item, User
from data_pipelines.sources.checks import Faults


class Source(Protocol):
    """What a data set is to the rest: its items and its users."""

    def items(self) -> Iterator[Item]: ...

    def users(self) -> Iterator[User]: ...


class RecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes a `Source` as ArrayRecord; a data set is a subclass with a name, a description and `open_source`."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=kind) for kind in KINDS]  # noqa: RUF012  (TFDS's own attribute)
    DESCRIPTION = ""

    def __init__(self, *args: Any, source_dir: Path | None = None, faults: Faults | None = None, **kwargs: Any):
        """
        Args:
          source_dir: a local folder with the source's files; None: embedded, or downloaded.
          faults: collects what was wrong.
        """
        self.source_dir, self.faults = source_dir, faults or Faults()
        super().__init__(*args, file_format="array_record", **kwargs)

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        raise TypeError(f"{type(self).__name__} does not say how it opens its source")

    def _info(self) -> tfds.core.DatasetInfo:
        features = ITEM_FEATURES if self.builder_config.name == "items" else USER_FEATURES
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # items and users keep the source's order
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {SPLIT: self._generate_examples(self.open_source(dl_manager))}

    def _generate_examples(self, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
        if self.builder_config.name == "items":
            yield from enumerate(map(encode_item, source.items()))
        else:
            yield from enumerate(map(encode_user, source.users()))
