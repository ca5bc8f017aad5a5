"""The shell that makes a TFDS builder of any source: two configurations, `items` and `users`, one record format."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import ShardBasedBuilder

from data_pipelines.errors import DataError
from data_pipelines.record_features import ITEM_FEATURES, USER_FEATURES
from data_pipelines.records import KINDS, SPLIT
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.reading import is_there
from data_pipelines.sources.selection import SourceSelection
from data_pipelines.sources.source import Source
from data_pipelines.sources.staging import Tally, parts_of, read_part, reading, stage


class RecordBuilder(ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes a `Source` as ArrayRecord; a data set is a subclass with a name, a description and `open_source`.

    Records go to disk in parts first, in the columns of `staging`, and each part becomes a shard, here or by Beam:
    memory is bounded by the part, order is kept, and no shuffling is undone (TFDS's own needs TensorFlow from 1 GB on).
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=kind) for kind in KINDS]  # noqa: RUF012  (TFDS's own attribute)
    DESCRIPTION = ""
    PUBLISHER = ""
    """A URL to read about it."""
    SELECTS: tuple[str, ...] = ()
    """The fields of `SourceSelection` that it knows."""
    DEFAULT_CORE = (1, 1)
    """(user_core, item_core) where the selection says nothing."""

    def __init__(
        self,
        *args: Any,
        source_dir: Path | None = None,
        faults: Faults | None = None,
        selection: SourceSelection = SourceSelection(),
        source: Source | None = None,
        tally: Tally | None = None,
        **kwargs: Any,
    ):
        """
        Args:
          source_dir: a local folder with the source's files; None: embedded, or downloaded.
          faults: collects what was wrong.
          selection: which part of the source is prepared.
          source: the source, where it is open already.
          tally: counts what is written.

        Raises:
          DataError: the selection names what this source does not know.
        """
        for choice in dataclasses.fields(SourceSelection):
            if choice.name not in self.SELECTS and getattr(selection, choice.name) != choice.default:
                known = ", ".join(map(option, self.SELECTS)) or "no such option"
                raise DataError(f"{self.name} does not know {option(choice.name)}; it knows {known}")
        self.source_dir, self.faults, self.selection = source_dir, faults or Faults(), selection
        self.source, self.tally = source, tally or Tally()
        super().__init__(*args, file_format="array_record", **kwargs)

    @property
    def cores(self) -> tuple[int, int]:
        """(user_core, item_core)."""
        user_core, item_core = self.selection.user_core, self.selection.item_core
        return (
            self.DEFAULT_CORE[0] if user_core is None else user_core,
            self.DEFAULT_CORE[1] if item_core is None else item_core,
        )

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        """Reads the source's files; subclasses say how."""
        raise TypeError(f"{type(self).__name__} does not say how it opens its source")

    def file(self, name: str, holds: str) -> Path:
        """A file of a source that cannot be downloaded from here, plain or `.gz`.

        Args:
          holds: what it holds, in words.

        Raises:
          DataError: no folder was given, or it lacks the file; the message says what is needed and who publishes it.
        """
        needed = f"{name}, {holds}, is needed in the folder that --source-dir names; for the data see {self.PUBLISHER}"
        if self.source_dir is None:
            raise DataError(f"this source cannot be downloaded from here: {needed}")
        if not is_there(self.source_dir / name):
            raise DataError(f"{self.source_dir / name} does not exist: {needed}")
        return self.source_dir / name

    def _info(self) -> tfds.core.DatasetInfo:
        features = ITEM_FEATURES if self.builder_config.name == "items" else USER_FEATURES
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # items and users keep the source's order
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        shutil.rmtree(self._staging)

    @property
    def _staging(self) -> Path:
        return Path(self.data_dir).absolute() / "staged"

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        """For each shard, what yields (number, record) of each of its records.

        Raises:
          DataError: there is none.
        """
        place, kind = str(self.source_dir or f"the source {self.name}"), self.builder_config.name
        if self.source is None:
            with reading(place):
                self.source = self.open_source(dl_manager)
        staged = stage(map(self.tally.count, parts_of(self.source, kind)), self._staging, place)
        nobody = kind == "users" and not any(self.tally.lengths)
        if not staged or nobody:
            what = "interactions" if nobody else kind
            core = f" (of users with {self.cores[0]} and items with {self.cores[1]} interactions)"
            bad = self.faults.records
            why = f"; {len(bad)} bad records were left out, the first: {bad[0]}" if bad else ""
            raise DataError(
                f"{self.name}: no {what} are left of {place}, nothing to learn from"
                + core * (max(self.cores) > 1)
                + why
            )
        return {SPLIT: [functools.partial(read_part, part) for part in staged]}


def option(name: str) -> str:
    """The command line's name of a field of `SourceSelection`."""
    return "--" + name.replace("_", "-")
