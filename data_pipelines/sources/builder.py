"""The base class of TFDS builders of sources: two configurations, `items` and `users`, with one record format."""

import dataclasses
import functools
import shutil
import tempfile
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

    Records are first written to disk in parts, with the columns of `staging`. Each part then becomes a shard, locally
    or by Beam. Memory is bounded by a part, and the order is kept without undoing a shuffle (TFDS's own way needs
    TensorFlow from 1 GB on).
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=kind) for kind in KINDS]  # noqa: RUF012  (TFDS's own attribute)
    DESCRIPTION = ""
    PUBLISHER = ""
    """The URL of a description of the data set."""
    SELECTS: tuple[str, ...] = ()
    """The fields of `SourceSelection` that the source supports."""
    DEFAULT_CORE = (1, 1)
    """The default (user_core, item_core)."""

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
        """Configures the builder for the files in `source_dir` (None: embedded, or downloaded), or a `source` that has
        been opened already; raises DataError if the selection sets an option that this source does not support."""
        for choice in dataclasses.fields(SourceSelection):
            if choice.name not in self.SELECTS and getattr(selection, choice.name) != choice.default:
                known = ", ".join(map(option, self.SELECTS)) or "no such options"
                raise DataError(f"{self.name} does not support {option(choice.name)}; it supports {known}")
        self.source_dir, self.faults, self.selection = source_dir, faults or Faults(), selection
        self.source, self.tally = source, tally or Tally()
        super().__init__(*args, file_format="array_record", **kwargs)

    @property
    def cores(self) -> tuple[int, int]:
        """The selected or default (user_core, item_core)."""
        user_core, item_core = self.selection.user_core, self.selection.item_core
        return (
            self.DEFAULT_CORE[0] if user_core is None else user_core,
            self.DEFAULT_CORE[1] if item_core is None else item_core,
        )

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        """Opens the source from its files; implemented by subclasses."""
        raise TypeError(f"{type(self).__name__} does not implement open_source")

    def scratch(self) -> Path:
        """Returns a new folder beside the records; `unimp prepare` removes it, also after it was killed."""
        root = Path(self.data_dir_root)
        root.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="interactions-", dir=root))

    def file(self, name: str, holds: str) -> Path:
        """Returns the path of a file, plain or `.gz`, of a source that cannot be downloaded automatically; raises
        DataError, which says what is needed and who publishes it, if no folder was given, or it lacks the file."""
        needed = f"{name}, {holds}, is needed in the folder of --source-dir; for the data see {self.PUBLISHER}"
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
            disable_shuffling=True,  # items and users keep the order of the source
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        shutil.rmtree(self._staging)

    @property
    def _staging(self) -> Path:
        return Path(self.data_dir).absolute() / "staged"

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        """Returns, for each shard, a function that yields (number, record) of its records; raises DataError if there
        are none."""
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
                f"{self.name}: no {what} are left in {place}, so there is nothing to train on"
                + core * (max(self.cores) > 1)
                + why
            )
        return {SPLIT: [functools.partial(read_part, part) for part in staged]}


def option(name: str) -> str:
    """Returns the command-line option of a field of `SourceSelection`."""
    return "--" + name.replace("_", "-")
