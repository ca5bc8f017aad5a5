"""`unimp ids`: semantic ids from what items look like and what is written of them, as a run's model sees it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from data_pipelines.code_files import check_place
from data_pipelines.content import standardised
from data_pipelines.images import take
from data_pipelines.item_codes import ItemCodes, save_codes
from data_pipelines.vocabulary import attribute_texts
from experiments.data import ExperimentData
from experiments.feature_extractors import own_tower
from experiments.item_encoders import embedded_texts
from experiments.restore import Checkpoint
from experiments.run import ALL_DEVICES, open_model
from unimp_jax.evaluation.mapping import map_batches
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.processes import ProcessesConfig, join, print_once
from unimp_jax.semantic_ids import SemanticIdConfig, semantic_ids
from unimp_jax.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class ItemIdsConfig:
    """What semantic ids are made of, and how."""

    images: bool = True
    """The vision tower's features of an item's image, the mean over patches."""
    text: bool = True
    """The embeddings of the words of its attributes, their mean."""
    ids: SemanticIdConfig = SemanticIdConfig()
    checkpoint: Checkpoint = "best"
    """The best by validation, or the latest."""
    mesh: MeshConfig = ALL_DEVICES
    """How the model lies on the devices that are here, whatever it was trained on."""


def ids_command(
    run: tyro.conf.Positional[Path],
    file: tyro.conf.Positional[Path],
    config: Annotated[ItemIdsConfig, tyro.conf.arg(name="")],
    processes: ProcessesConfig = ProcessesConfig(),
) -> None:
    """Name items by a few tokens that similar items share, for runs with --vocabulary.item-codes FILE.

    Args:
      run: the folder of the run whose model looks at the items.
      file: is written; Parquet.
      processes: how several find one another, where several compute.
    """
    join(processes)
    print_once(make_item_ids(run, file, config))


def make_item_ids(run: Path, path: Path, config: ItemIdsConfig) -> str:
    """Writes a file for `vocabulary.item_codes`, the first of several processes does; returns what to tell the user.

    Raises:
      DataError: the folder holds no run, or the file would be a folder.
      ValueError: neither images nor text is wanted or there, or the layout has too few ids.
    """
    if not (config.images or config.text):
        raise ValueError("ids are made of images, of text or of both; neither is left")
    check_place(path)
    data, predictor, facts = open_model(run, config.checkpoint, config.mesh)
    blocks = []
    if config.images:
        blocks.append(image_features(predictor, data))
    if config.text:
        texts = attribute_texts(data.corpus, data.config.vocabulary)
        blocks.append(embedded_texts(predictor.model(), data.vocabulary)(texts))
    # Each block has as much variance as any other, and each of its features its share.
    features = np.concatenate([standardised(block) / block.shape[1] ** 0.5 for block in blocks], axis=1)
    if not np.ptp(features, axis=0).any():
        raise ValueError(
            "what ids are to be made of is the same for all items; use images and text, where there are any"
        )
    made = semantic_ids(features, config.ids)
    sizes = (*[config.ids.codes] * config.ids.levels, config.ids.last)
    described = {
        "source": data.config.data.source,
        "run": str(run),
        "step": facts.step,
        "images": config.images,
        "text": config.text,
        "method": config.ids.method,
        "seed": config.ids.seed,
        "metrics": dataclasses.asdict(made.metrics),
    }
    if jax.process_index() == 0:
        save_codes(path, ItemCodes(tuple(data.corpus.item_ids), made.ids, sizes), described)
    layout = " + ".join(map(str, sizes))
    return f"{made.metrics}\n{path}: ids of {layout} codes; train with --vocabulary.item-codes {path}"


def image_features(predictor: Predictor, data: ExperimentData) -> np.ndarray:
    """float32 [I, C]; an item without an image is given the mean of all."""
    tower = own_tower(predictor)
    shown = np.flatnonzero(data.writer.has_image)
    features = np.zeros((data.corpus.num_items, data.config.model.vision.width), np.float32)
    for items, seen in map_batches(lambda items: tower.see(take(data.images, items)), shown, progress="images"):
        features[items] = seen
    features[~data.writer.has_image] = features[shown].mean(axis=0) if len(shown) else 0
    return features
