"""`unimp train`: a configuration and a folder in, a trained run in that folder out.

The folder of a run holds `config.json`, `vocabulary/`, `frozen/` (what does not train, written once), `checkpoints/`,
`metrics.jsonl`, `tensorboard/` and `started.json` (commands and machines). The same command on the same folder goes on
where the run was interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from data_pipelines.errors import DataError
from data_pipelines.fingerprint import DATA_PARTS, FILE
from data_pipelines.loader import Position, ProcessShard
from data_pipelines.tasks import TASKS
from data_pipelines.tasks.queries import held_out_queries
from experiments.beginning import adopt, begin, first_vocabulary
from experiments.config import ExperimentConfig, differences, load_config, note_changes, save_config
from experiments.data import ExperimentData, sized_model
from experiments.evals.ranking import rank_catalogue
from experiments.features import tower_features
from experiments.lock import alone_in
from experiments.parameters import Parameters, abstract_parameters
from experiments.questions import evenly_spread
from experiments.starts import note_start
from experiments.step import (
    abstract_state,
    compile_step,
    init_state,
    make_mesh_of,
    model_flops,
    optimizer_of,
    to_device,
)
from experiments.vqgan.config import FILE as OF_VQGAN
from unimp_jax.evaluation.metrics import ranking_metrics
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.processes import wait_for_all
from unimp_jax.sharding import row_shards
from unimp_jax.training.checkpoint import Checkpoints
from unimp_jax.training.frozen import load_frozen, save_frozen
from unimp_jax.training.log import RunLog
from unimp_jax.training.loop import Run, train
from unimp_jax.training.peak import peak_flops
from unimp_jax.training.preemption import EndRequest
from unimp_jax.training.step import TrainState


def train_run(config: ExperimentConfig, folder: Path) -> None:
    """Trains, or goes on training, the run in `folder`.

    Raises:
      DataError: the folder holds a run of another configuration, or one that trains just now, or the data is not what
        it was.
      ValueError: parts of the configuration do not fit one another.
    """
    mesh = make_mesh_of(config)  # before there is a folder, in which what is refused could not be changed any more
    data, config = open_together(config, folder)
    shard = ProcessShard(*row_shards(mesh))
    with (
        alone_in(folder) if jax.process_index() == 0 else contextlib.nullcontext(),
        EndRequest() as end,
        jax.set_mesh(mesh),
        Checkpoints(folder / "checkpoints", config.checkpoint) as checkpoints,
    ):
        parameters, transformation = abstract_parameters(config, mesh), optimizer_of(config)
        state, frozen, notes = latest_or_first(config, parameters, transformation, mesh, checkpoints)
        if jax.process_index() == 0:
            note_changes(load_config(folder / "config.json"), config, folder / "config.json")
            describe(config, data, parameters, mesh)
            note_start(folder)
        features = None
        if config.training.cache_features:
            features = tower_features(
                data, Parameters(parameters.graph, state.trainable, frozen), mesh, folder / "features"
            )
        run = Run(
            step=compile_step(config, parameters, transformation, state, mesh),
            batches=lambda position: data.training(Position(**position) if position else Position(), shard, features),
            to_device=to_device(mesh),
            validate=validation(config, data, parameters.graph, frozen, mesh),
            tasks=tuple(TASKS),
            flops=model_flops(config),
            peak_flops=peak_flops(config.model.compute_dtype),
            tokens=config.loader.batch_size * config.row_shape.tokens,
        )
        done, main = int(state.step), jax.process_index() == 0
        with RunLog(folder, step=done, steps=config.loop.steps, writes=main) as log:
            state, whole = train(
                state, notes, frozen, run, config.loop, config.training.guard.patience, checkpoints, log, end
            )
    if not whole:
        step = int(state.step)
        print(f"asked to end: {f'step {step} is saved' if step else 'no step was done'}; the same command goes on")
        raise SystemExit(0)


def latest_or_first(
    config: ExperimentConfig,
    parameters: Parameters,
    transformation: optax.GradientTransformation,
    mesh: Mesh,
    checkpoints: Checkpoints,
) -> tuple[TrainState, Any, dict[str, Any] | None]:
    """(state, frozen parameters, the checkpoint's notes; None at step 0), of the latest checkpoint where there is one.

    At no moment is anything on the devices twice.

    Args:
      parameters: abstract, and read onto in the place of real ones where there is a checkpoint.

    Raises:
      CheckpointError: what is there cannot be read.
    """
    folder = checkpoints.folder.parent / "frozen"
    restored = checkpoints.restore_latest(abstract_state(parameters.trainable, transformation, mesh))
    if restored is not None:
        return restored[0], load_frozen(folder, parameters.frozen), restored[1]
    first = begin(config, mesh)
    return init_state(first.trainable, transformation, mesh), save_frozen(folder, first.frozen), None


def open_together(config: ExperimentConfig, folder: Path) -> tuple[ExperimentData, ExperimentConfig]:
    """`open_run` of all processes: the first makes the folder, and the others find it made, or refuse what it did."""
    if jax.process_index() == 0:
        try:
            return open_run(config, folder)
        finally:
            wait_for_all("the folder of the run is made")
    wait_for_all("the folder of the run is made")
    return open_run(config, folder)


def open_run(config: ExperimentConfig, folder: Path) -> tuple[ExperimentData, ExperimentConfig]:
    """The data of a new run, whose folder is made, or of the one that is there already; raises as `read_run` does."""
    data, config = read_run(config, folder)
    if jax.process_index() == 0:
        new = not (folder / "config.json").exists()
        if new:
            data.vocabulary.save(folder / "vocabulary")
        if new or not (folder / FILE).exists():
            data.save_fingerprint(folder)
        if new:
            save_config(config, folder / "config.json")
    return data, config


def read_run(config: ExperimentConfig, folder: Path) -> tuple[ExperimentData, ExperimentConfig]:
    """The data and the complete configuration that training in `folder` begins or goes on with; nothing is written.

    Raises:
      DataError: the folder holds a run of another configuration or a VQGAN's, or the data is not what it was.
      ValueError: parts of the configuration do not fit one another or the data.
    """
    config, before = configure(config, folder)
    if before is None:
        data = ExperimentData.load(config, first_vocabulary(config))
    else:
        reconfigured = differences(before, dataclasses.replace(config, model=before.model))
        data = ExperimentData.load(config, folder / "vocabulary", same=() if reconfigured else DATA_PARTS)
    config = sized_model(config, data.vocabulary)
    if before is not None:
        refuse_changes(before, config, folder)
    data.check_training()
    return data, config


def configure(config: ExperimentConfig, folder: Path) -> tuple[ExperimentConfig, ExperimentConfig | None]:
    """As far as it is known without the data.

    Returns:
      (the configuration with the geometry of its start, the configuration of the run that is in the folder already).

    Raises:
      DataError: the folder holds the run of a VQGAN.
    """
    if (folder / OF_VQGAN).exists():
        raise DataError(f"{folder} holds the run of a VQGAN; name another folder")
    if not (folder / "config.json").exists():
        return adopt(config), None
    before = load_config(folder / "config.json")
    if before.start == config.start is not None and not config.start.exists():
        ours = config.model  # the start did its part, and its geometry is known without it
        model = dataclasses.replace(before.model, attention=ours.attention, remat=ours.remat, unroll=ours.unroll)
        return dataclasses.replace(config, model=model, vocabulary=before.vocabulary), before
    return adopt(config), before


def refuse_changes(before: ExperimentConfig, config: ExperimentConfig, folder: Path) -> None:
    """
    Raises:
      DataError: the run in the folder cannot go on with this configuration.
    """
    changed = differences(before, config)
    if changed:
        raise DataError(
            f"{folder} holds a run of another configuration ({'; '.join(changed[:3])}"
            f"{' …' if len(changed) > 3 else ''}); name another folder to start anew"
        )


def validation(
    config: ExperimentConfig, data: ExperimentData, graph: nnx.GraphDef, frozen: Any, mesh: Mesh
) -> Callable[[Any], dict[str, float]]:
    """Recommendation to the validation users, with seen items filtered; no metrics where the data has no such users."""
    everybody = held_out_queries(data.corpus, "validation", "recommendation")
    if not everybody:
        return lambda _: {}
    queries = evenly_spread(everybody, config.training.validation_users)
    predictor = Predictor(graph, mesh, to_device(mesh), ())

    def validate(trainable: Any) -> dict[str, float]:
        ranked = rank_catalogue(data, predictor.with_parameters((trainable, frozen)), queries)
        means = {name: float(values.mean()) for name, values in ranking_metrics(ranked.filtered).items()}
        return means | {"cross_entropy": float(ranked.cross_entropy.mean())}

    return validate


def describe(config: ExperimentConfig, data: ExperimentData, parameters: Parameters, mesh: Mesh) -> None:
    """Says what is about to run."""
    trainable, frozen = (
        sum(x.size for x in jax.tree.leaves(tree)) for tree in (parameters.trainable, parameters.frozen)
    )
    print(
        f"{config.data.source}: {data.corpus.num_users} users, {data.corpus.num_items} items; "
        f"vocabulary {data.vocabulary.base_size} + {len(data.vocabulary.new_tokens)}\n"
        f"{trainable:,} parameters train, {frozen:,} are frozen; mesh {dict(mesh.shape)}",
        *data.check_training(),
        sep="\n",
    )
