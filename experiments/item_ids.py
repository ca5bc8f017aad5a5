"""`unimp ids`: computes semantic ids from the images and texts of items, as represented by a run's model."""

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
from experiments.parameters import Checkpoint
from experiments.run import ALL_DEVICES, open_model
from unimp_jax.evaluation.mapping import map_batches
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.processes import ProcessesConfig, join, print_once
from unimp_jax.semantic_ids import SemanticIdConfig, semantic_ids
from unimp_jax.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class ItemIdsConfig:
    """What semantic ids are computed from, and how."""

    images: bool = True
    """Use the vision tower's features of an item's image, averaged over patches."""
    text: bool = True
    """Use the embeddings of the words of an item's attributes, averaged."""
    ids: SemanticIdConfig = SemanticIdConfig()
    checkpoint: Checkpoint = "best"
    """The best checkpoint by validation, or the latest."""
    mesh: MeshConfig = ALL_DEVICES
    """The mesh of the devices available here, independent of the one used in training."""


def ids_command(
    run: tyro.conf.Positional[Path],
    file: tyro.conf.Positional[Path],
    config: Annotated[ItemIdsConfig, tyro.conf.arg(name="")],
    processes: ProcessesConfig = ProcessesConfig(),
) -> None:
    """Assign semantic ids: similar items share tokens. They are for runs with --vocabulary.item-codes FILE.

    Args:
      run: the folder of the run whose model represents the items.
      file: the Parquet file to write.
      processes: how the processes find one another, if there are several.
    """
    join(processes)
    print_once(make_item_ids(run, file, config))


def make_item_ids(run: Path, path: Path, config: ItemIdsConfig) -> str:
    """Computes semantic ids, writes them for `vocabulary.item_codes`, and returns a message for the user. Raises
    ValueError if neither images nor text is requested or available, or the layout has too few ids."""
    if not (config.images or config.text):
        raise ValueError("ids must be made from images, text or both, but neither is requested or available")
    check_place(path)
    data, predictor, facts = open_model(run, config.checkpoint, config.mesh)
    blocks = []
    if config.images:
        blocks.append(image_features(predictor, data))
    if config.text:
        texts = attribute_texts(data.corpus, data.config.vocabulary)
        blocks.append(embedded_texts(predictor.model(), data.vocabulary)(texts))
    # All blocks have the same total variance, shared equally by the features of a block.
    features = np.concatenate([standardised(block) / block.shape[1] ** 0.5 for block in blocks], axis=1)
    if not np.ptp(features, axis=0).any():
        raise ValueError("the features for the ids are the same for all items; use both images and text, if available")
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
    """Returns the image features of all items, float32 [I, C]; an item without an image gets the mean of all others."""
    tower = own_tower(predictor)
    shown = np.flatnonzero(data.writer.has_image)
    features = np.zeros((data.corpus.num_items, data.config.model.vision.width), np.float32)
    for items, seen in map_batches(lambda items: tower.see(take(data.images, items)), shown, progress="images"):
        features[items] = seen
    features[~data.writer.has_image] = features[shown].mean(axis=0) if len(shown) else 0
    return features
