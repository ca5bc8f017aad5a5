"""Opens a run folder, or an exported folder, to use its model."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from data_pipelines.content import ContentConfig
from data_pipelines.errors import DataError
from data_pipelines.fingerprint import DATA_PARTS
from data_pipelines.local_copy import local_copy
from experiments.config import ExperimentConfig, load_config
from experiments.data import ExperimentData
from experiments.elastic import Machine, first_machine, fitted_mesh
from experiments.memory import read_memory
from experiments.new_items import with_new_items
from experiments.parameters import (
    Checkpoint,
    Parameters,
    abstract_parameters,
    init_parameters,
    restore_parameters,
    take_apart,
)
from experiments.step import to_device
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.interop.importing import GEOMETRY, exported_values
from unimp_jax.interop.loading import load_values
from unimp_jax.model import PARTS
from unimp_jax.model.adapters import merge_adapters
from unimp_jax.model.quantization import dequantize_layers
from unimp_jax.sharding import MeshConfig, make_mesh, param_shardings, row_shards
from unimp_jax.training.log import read_log

EXPERIMENT = "unimp"
"""Subfolder of an exported folder with the experiment and its vocabulary, which only this project reads."""


ALL_DEVICES = MeshConfig(data=-1)
"""Each available device holds all parameters and processes its own rows."""


LOGGED = {
    "token slots filled": ("fill", ".1%"),
    "tokens per second": ("tokens_per_second", ",.0f"),
    "share of peak": ("mfu", ".1%"),
    "waiting for data": ("waiting_share", ".2%"),
    "goodput": ("goodput", ".1%"),
}
"""Facts taken from a run's last training log line, if the line has them: name -> (field, format)."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What tables and reports say about a checkpoint."""

    step: int
    described: dict[str, Any]


def used_here(config: ExperimentConfig, mesh: MeshConfig, machine: Machine | None = None) -> ExperimentConfig:
    """Returns the experiment of a trained run, configured for the devices available here.

    It uses `mesh` and the attention that suits the devices. Each device processes as many rows at a time as in
    training, if that is known, and all together no more than in training, rounded up to a multiple of the row shards;
    answers do not depend on this.

    Args:
      machine: the machine that the run began on; None: it is not known.
    """
    _, shards = row_shards(make_mesh(mesh))
    asked = dataclasses.astuple(config.mesh)
    on = fitted_mesh(config.mesh, machine) if machine and (config.training.elastic or -1 in asked) else config.mesh
    trained = on.row_shards  # below 0: all devices of an unknown machine
    rows = config.loader.batch_size // config.training.accumulate
    rows = min(rows, rows // trained * shards) if trained > 0 else rows
    return dataclasses.replace(
        config,
        mesh=mesh,
        loader=dataclasses.replace(config.loader, batch_size=max(1, -(-rows // shards)) * shards),
        model=dataclasses.replace(config.model, attention="auto", remat="none"),
    )


def open_data(folder: Path, mesh: MeshConfig = ALL_DEVICES) -> ExperimentData:
    """Opens the data of a run, configured by `used_here`; DataError if it is not what the run was trained on."""
    config = used_here(load_config(folder / "config.json"), mesh, first_machine(folder))
    return ExperimentData.load(config, folder / "vocabulary", same=DATA_PARTS)


def open_model(
    folder: Path, checkpoint: Checkpoint, mesh: MeshConfig = ALL_DEVICES
) -> tuple[ExperimentData, Predictor, Facts]:
    """Opens the data and the model of a run on the available devices, with facts about the checkpoint; DataError if the
    folder holds no run, or one without a complete checkpoint."""
    data = open_data(folder, mesh)
    return data, *load_model(folder, data, checkpoint)


def load_model(folder: Path, data: ExperimentData, checkpoint: Checkpoint) -> tuple[Predictor, Facts]:
    """Loads a run's model for `data`, which is already open, with facts about the checkpoint."""
    predictor, step = restore(folder, data.config, checkpoint)
    trained = abstract_parameters(data.config, predictor.mesh)  # with adapters and content not yet merged
    lines = [line for line in read_log(folder / "metrics.jsonl") if line["kind"] == "train"]
    described = {
        "parameters that train": f"{sum(x.size for x in jax.tree.leaves(trained.trainable)):,}",
        "frozen parameters": f"{sum(x.size for x in jax.tree.leaves(trained.frozen)):,}",
        "users": f"{data.corpus.num_users:,}",
        "items": f"{data.corpus.num_items:,}",
        "interactions": f"{len(data.corpus.items):,}",
        "seed": data.config.seed,
    }
    last = lines[-1] if lines else {}
    logged = {name: format(last[field], how) for name, (field, how) in LOGGED.items() if field in last}
    return predictor, Facts(step, described | logged)


def open_to_ask(
    folder: Path,
    checkpoint: Checkpoint = "best",
    *,
    records: Path | None = None,
    new_items: Path | None = None,
    mesh: MeshConfig,
) -> tuple[ExperimentData, Callable[[], Predictor]]:
    """Opens a run folder, or an exported folder, to answer single queries.

    A batch holds one query per row shard, so that no padding rows are computed.

    Args:
      records: folder of the prepared records, if not the one used in training.
      new_items: a file of items that a run's catalogue does not have (`experiments.new_items`).

    Returns:
      (the data, a function that opens the model).

    Raises:
      DataError: the folder is neither, or its data is not prepared, or the file is invalid, or the run cannot use it.
      WeightsError, CheckpointError: the weights cannot be read; raised when the model is opened.
    """
    exported = (folder / EXPERIMENT / "config.json").exists()
    folder = local_copy(folder) if exported else folder
    if not exported and ((folder / "generation_config.json").exists() or (folder / GEOMETRY).exists()):
        raise DataError(
            f"{folder} lacks {EXPERIMENT}/, which `unimp export --format idefics` writes; export the run again"
        )
    described = folder / EXPERIMENT if exported else folder
    config = load_config(described / "config.json")
    config = dataclasses.replace(
        used_here(config, mesh),
        data=dataclasses.replace(config.data, folder=records or config.data.folder),
        loader=dataclasses.replace(config.loader, batch_size=row_shards(make_mesh(mesh))[1]),
    )
    if new_items and (exported or config.content.is_empty):
        lacks = "is an export, which stores complete rows only" if exported else "has no content"
        raise DataError(f"{folder} {lacks}; --new-items needs the folder of a run with content (--content.…)")
    data = ExperimentData.load(config, described / "vocabulary", same=["items"])
    data.memory = read_memory(described)
    if new_items:
        data = with_new_items(data, new_items)
        return data, lambda: restore(folder, config, checkpoint, data.content)[0]
    if exported:
        return data, functools.partial(read_exported, folder, config)
    return data, lambda: restore(folder, config, checkpoint)[0]


def restore(
    folder: Path, config: ExperimentConfig, checkpoint: Checkpoint, content: np.ndarray | None = None
) -> tuple[Predictor, int]:
    """Reads only the parameters of a checkpoint, and returns (the model of the run, the step of the checkpoint).

    Args:
      content: the content of the run's tokens and of new ones after them (`ExperimentData.content`); the embedding rows
        of new tokens are computed from it alone.

    Raises:
      DataError: the run has no complete checkpoint, or other content.
      CheckpointError: the checkpoint cannot be read.
    """
    mesh = make_mesh(config.mesh)
    parameters, step = restore_parameters(folder, checkpoint, abstract_parameters(config, mesh), config.checkpoint)
    added = None if content is None else added_content(parameters, content)
    parameters = materialised(config, parameters, mesh, added)
    return to_be_asked(parameters.graph, mesh, (parameters.trainable, parameters.frozen)), step


def added_content(parameters: Parameters, content: np.ndarray) -> np.ndarray:
    """Returns the content of the tokens that the run was not trained with; DataError if that of others has changed."""
    trained = np.asarray(parameters.frozen["embeddings"]["content"][...], np.float32)
    known = content[: len(trained)]
    if known.shape != trained.shape or not np.allclose(known, trained, rtol=0.01, atol=0.01):  # maybe bfloat16 there
        raise DataError(
            "new items need the same features of the trained items as in training, but they differ: a file of "
            "content.vectors, or the version that computes them, has changed"
        )
    return content[len(trained) :]


def materialised(
    config: ExperimentConfig, parameters: Parameters, mesh: Mesh, added_NK: np.ndarray | None = None
) -> Parameters:
    """Merges the adapters into the matrices of a model, and the content of its tokens and of new ones after them
    (float32) into the tables."""
    model = nnx.merge(parameters.graph, parameters.trainable, parameters.frozen)
    plain, embeddings = config.model.materialised, model.embeddings
    decoder = dataclasses.replace(
        plain.decoder, new_tokens=plain.decoder.new_tokens + (0 if added_NK is None else len(added_NK))
    )
    model.config = dataclasses.replace(plain, decoder=decoder)
    with jax.set_mesh(mesh):
        dequantize_layers(model.decoder)
        merge_adapters(model)
    if embeddings.content is None:
        return take_apart(config, model)
    graph, state = nnx.split(embeddings)

    def rows(state: nnx.State, added_NK: jax.Array | None) -> nnx.State:
        tables = nnx.merge(graph, state).tables(added_NK=added_NK)
        named = {"new": tables.new, "new_head": tables.new_head}
        return nnx.State({name: table for name, table in named.items() if table is not None})

    with jax.set_mesh(mesh):
        shardings = param_shardings(jax.eval_shape(rows, state, added_NK), mesh)
        sums = jax.jit(rows, out_shardings=shardings)(state, added_NK)
    for name, table in sums.items():
        setattr(embeddings, name, getattr(embeddings, name).replace(table[...]))  # not in place: the parameters stay
    embeddings.content = embeddings.projection = embeddings.head_projection = None
    return take_apart(config, model)


def without_content(config: ExperimentConfig) -> ExperimentConfig:
    """Returns the experiment of a model whose tables include the content of tokens, and whose matrices its adapters."""
    model = config.model.materialised
    trains = tuple(part for part in config.training.trains if part in model.parts)
    training = dataclasses.replace(config.training, trains=trains or model.parts)
    return dataclasses.replace(config, model=model, content=ContentConfig(), training=training)


def read_exported(folder: Path, config: ExperimentConfig) -> Predictor:
    """Reads the model of an exported folder directly onto the mesh; WeightsError if it does not have this geometry."""
    mesh, values = make_mesh(config.mesh), exported_values(folder, config.model)
    parameters = init_parameters(config, mesh, PARTS)
    trainable, frozen = load_values((parameters.trainable, parameters.frozen), values)
    return to_be_asked(parameters.graph, mesh, (trainable, frozen))


def to_be_asked(graph: nnx.GraphDef, mesh: Mesh, parameters: tuple[Any, Any]) -> Predictor:
    """Returns a predictor for the model with these parameters."""
    return Predictor(graph, mesh, to_device(mesh), parameters)
