"""Builds the data of training and evaluation from prepared records, following the experiment's configuration."""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Self

import grain
import numpy as np

from data_pipelines.attribute_texts import AttributeTexts
from data_pipelines.cold import choose_cold, without_cold
from data_pipelines.columns import FOLDER as COLUMNS
from data_pipelines.columns import digest_of_texts, gathered, read_columns
from data_pipelines.content import Content, build_content, token_content
from data_pipelines.corpus import VALIDATION, Corpus, split_by_users
from data_pipelines.disk_cache import FOLDER as CACHE
from data_pipelines.disk_cache import DiskCache
from data_pipelines.errors import DataError
from data_pipelines.features import FeatureStore
from data_pipelines.fingerprint import FILE, Fingerprint, check_same, fingerprint, save_fingerprint
from data_pipelines.images import ImageStore
from data_pipelines.loader import (
    Position,
    ProcessShard,
    QuestionBatch,
    TrainingBatch,
    check_planner,
    question_batches,
    training_batches,
)
from data_pipelines.local_copy import local_copy, staging_place
from data_pipelines.records import read_items, read_users, source_folder
from data_pipelines.tasks.base import Split
from data_pipelines.tasks.examples import Example
from data_pipelines.tasks.prompt import PromptWriter, prompt_texts
from data_pipelines.tasks.queries import TrainingQueries
from data_pipelines.tasks.row_checks import check_row_shape, long_texts
from data_pipelines.vocabulary import Vocabulary, build_vocabulary, load_vocabulary
from experiments.config import DataConfig, ExperimentConfig
from experiments.memory import Memory
from unimp_jax.decoding import Trie, build_trie

PROMPTS_A_ROW = 16
"""Maximum number of questions per row."""


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedSource:
    """A prepared source: its interactions in memory, its images read on demand.

    Attributes:
      has_image: bool [I].
      read_image: item index -> encoded image.
      cache: the disk cache for values computed from the corpus, keyed by what determines its items and texts.
    """

    corpus: Corpus
    has_image: np.ndarray
    read_image: Callable[[int], bytes]
    cache: DiskCache = DiskCache()


def load_records(config: DataConfig, cold: Split | None = None) -> PreparedSource:
    """Loads the records of a prepared source.

    Args:
      cold: the split whose held-out interactions with cold items are included; cold items are then the last items.
        None: cold items are left out.

    Raises:
      DataError: the source is not prepared, or its records contradict one another.
    """
    items = read_items(config.source, config.folder)
    folder = source_folder(config.source, config.folder)
    columns = read_columns(folder / COLUMNS)
    corpus, has_image = columns or gathered(items, read_users(config.source, config.folder))
    cache = DiskCache() if columns is None else cache_of(folder)
    item_ids = corpus.item_ids

    def read_image(item: int) -> bytes:
        record = items[item]
        if record.item_id != item_ids[item]:  # files of records are opened when they are first read
            raise DataError(
                f"{folder} was prepared again, with other items, while it was read; start the command again"
            )
        return record.image

    if config.split == "users":
        corpus = split_by_users(corpus, config.split_seed)
    if not config.cold_items:
        return PreparedSource(corpus, has_image, read_image, cache)
    is_cold = choose_cold(corpus.num_items, config.cold_items, config.split_seed)
    corpus, chosen = without_cold(corpus, is_cold, cold)
    cache = cache.of(config.cold_items, config.split, config.split_seed, cold)
    return PreparedSource(corpus, has_image[chosen], lambda item: read_image(int(chosen[item])), cache)


def cache_of(folder: Path) -> DiskCache:
    """Returns the disk cache of a prepared source: beside its records, or on this host if those cannot be written."""
    return DiskCache((folder / CACHE, staging_place() / CACHE)).of(digest_of_texts(folder / COLUMNS))


def fingerprint_of(records: PreparedSource, config: ExperimentConfig) -> Fingerprint:
    """Returns the fingerprint of the corpus and of the prompt texts."""
    prompts = prompt_texts(images=config.vocabulary.image_codes is not None)
    attributes = attributes_of(records.corpus, config)
    cache = records.cache.of("fingerprint", prompts, attributes.shown, attributes.words)
    return fingerprint(records.corpus, records.has_image, itertools.chain(prompts, attributes), cache)


def attributes_of(corpus: Corpus, config: ExperimentConfig) -> AttributeTexts:
    """Returns the attribute texts that prompts show of the items."""
    return AttributeTexts(corpus, config.vocabulary.attributes, config.vocabulary.attribute_words)


def records_of(run: Path, config: ExperimentConfig, items: Collection[int]) -> PreparedSource:
    """Loads the data of a run in order to show some of its items; DataError if these are not those of the training."""
    records = load_records(config.data)
    check_same(run / FILE, fingerprint_of(records, config), ["items"])
    if max(items, default=0) >= records.corpus.num_items:  # for runs that predate fingerprints
        raise DataError(
            f"the data is not what {run} was evaluated on; this source has {records.corpus.num_items:,} items"
        )
    return records


class ExperimentData:
    """The data side of one experiment.

    Attributes:
      has_image: bool [I], the items that have an image, whether or not it is shown.
      known_items: number of items that were trained on; the items after them are new.
      cache: as in `PreparedSource`.
    """

    memory = Memory()

    def __init__(self, config: ExperimentConfig, records: PreparedSource, vocabulary: Vocabulary):
        self.config, self.corpus, self.vocabulary = config, records.corpus, vocabulary
        self.has_image, self.known_items = records.has_image, records.corpus.num_items
        self.cache, attributes = records.cache, attributes_of(records.corpus, config)
        self.writer = PromptWriter(
            records.corpus,
            vocabulary,
            config.tasks,
            config.row_shape,
            attributes=attributes,
            has_image=records.has_image,
            image_tokens=config.model.image_tokens,
            cache=records.cache.of(attributes.shown, attributes.words),
        )
        self.images = ImageStore(records.read_image, config.model.vision.image_size, config.images)

    @classmethod
    def load(
        cls, config: ExperimentConfig, vocabulary_folder: Path | None = None, *, same: Collection[str] = ()
    ) -> Self:
        """Loads the data with the vocabulary saved by a run, or a new one. `same` names the parts of the data (of
        `fingerprint.DATA_PARTS`) that must match what the run was trained on; DataError if they do not."""
        records = load_records(config.data)
        if vocabulary_folder is not None and same:
            check_same(vocabulary_folder.parent / FILE, fingerprint_of(records, config), same)
        if vocabulary_folder is None:
            prompts = prompt_texts(images=config.vocabulary.image_codes is not None)
            vocabulary = build_vocabulary(records.corpus, config.vocabulary, prompts)
        else:
            vocabulary = load_vocabulary(local_copy(vocabulary_folder), records.corpus)
        return cls(config, records, vocabulary)

    def save_fingerprint(self, folder: Path) -> None:
        """Writes the fingerprint of the data into a run folder or into the folder of an exported experiment."""
        records = PreparedSource(self.corpus, self.has_image, self.images.encoded, self.cache)
        save_fingerprint(folder / FILE, fingerprint_of(records, self.config))

    @functools.cached_property
    def training_queries(self) -> TrainingQueries:
        """The queries of training; DataError or ValueError if there are none, or they do not fit into a row."""
        queries = TrainingQueries(self.corpus, self.config.queries, self.config.seed, self.has_codes)
        check_row_shape(self.writer, queries.tasks)
        return queries

    def check_training(self) -> list[str]:
        """Finds errors that would end a training (as in `training_queries`) before anything is compiled, and returns
        lines to show about what is left out or cut."""
        check_planner(self.config.loader)
        if self.config.data.cold_items and (self.vocabulary.depth > 1 or not self.features.shape[1]):
            raise ValueError(
                "data.cold_items: a cold item is represented by content.attributes or content.vectors and has "
                "one token; set one of the two, and do not set vocabulary.item_codes"
            )
        notes = [*self.training_queries.notes, *long_texts(self.writer, self.training_queries.tasks)]
        if not len(self.corpus.held_out(VALIDATION)[0]):
            notes.append(
                "there are no validation interactions, so nothing is validated and the latest checkpoint counts "
                "as the best"
            )
        return notes

    def of(self, corpus: Corpus) -> Self:
        """Returns a copy with another corpus: other users, the same items."""
        other = copy.copy(self)
        other.corpus, other.writer = corpus, self.writer.of(corpus)
        return other

    def with_items(self, records: PreparedSource) -> "ExperimentData":
        """Returns the data of a run with new items after those that it was trained on, a token each; DataError if the
        run names items by semantic ids."""
        vocabulary = self.vocabulary.with_items(records.corpus.item_ids[self.corpus.num_items :])
        other = ExperimentData(self.config, records, vocabulary)
        other.known_items, other.memory = self.known_items, self.memory
        return other

    def showing_whole(self) -> Self:
        """Returns a copy whose questions show the latest history items with their full text (`ask_whole`)."""
        other = copy.copy(self)
        other.writer = copy.copy(self.writer)
        other.writer.config = dataclasses.replace(self.writer.config, ask_whole=True)
        return other

    def asking(self, rows: int) -> Self:
        """Returns a copy whose batches of questions have the given number of rows."""
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, loader=dataclasses.replace(self.config.loader, batch_size=rows))
        return other

    def training(
        self, start: Position = Position(), shard: ProcessShard = ProcessShard(), features: FeatureStore | None = None
    ) -> grain.DatasetIterator[TrainingBatch]:
        """Returns the batches of training; `features`, if given, take the place of images."""
        config, images = self.config, self.images if features is None else features
        return training_batches(
            self.training_queries, self.writer, images, config.loader, seed=config.seed, start=start, shard=shard
        )

    def questions(
        self,
        prompts: Sequence[Example],
        shard: ProcessShard = ProcessShard(),
        *,
        tight: bool = False,
        with_images: bool = True,
    ) -> grain.DatasetIterator[QuestionBatch]:
        """Returns batches of questions, all of one shape for every task, so that one compiled function handles them. If
        `tight`, their shape is only as large as these prompts need, for answers of many tokens."""
        row_shape = dataclasses.replace(self.config.row_shape, answers=PROMPTS_A_ROW)
        images = self.images if with_images else None
        return question_batches(prompts, row_shape, images, self.config.loader, shard, tight=tight)

    @functools.cached_property
    def item_content(self) -> Content:
        """The content of the items; DataError as in `build_content`."""
        return build_content(self.corpus, self.config.content, self.known_items)

    @property
    def content(self) -> np.ndarray:
        """The content of each new token: float32 [new tokens, K]."""
        return token_content(self.item_content, self.vocabulary)

    @property
    def features(self) -> np.ndarray:
        """The features of items that are known without interactions: float32 [I, F]."""
        content = self.item_content
        return content.items[:, : content.width - self.config.content.interaction_features]

    @property
    def has_codes(self) -> np.ndarray | None:
        """Which items have their image in codes, bool [I]; None if there are no codes."""
        codes = self.vocabulary.image_codes
        return None if codes is None else codes.has_codes

    @functools.cached_property
    def trie(self) -> Trie:
        """The trie of the token sequences that name the items of the catalogue."""
        return build_trie(self.vocabulary.items)


def sized_model(config: ExperimentConfig, vocabulary: Vocabulary, content: int = 0) -> ExperimentConfig:
    """Returns the configuration with embeddings sized to the vocabulary and to a token's number of content features."""
    drops = config.model.decoder.free_row_dropout > 0
    decoder = dataclasses.replace(
        config.model.decoder,
        vocab_size=vocabulary.base_size,
        new_tokens=len(vocabulary.new_tokens),
        content=content,
        interaction_features=config.content.interaction_features if content and drops else 0,
    )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))
