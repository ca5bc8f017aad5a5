"""`unimp train`: trains a configuration in a run folder.

A run folder holds `config.json`, `vocabulary/`, `frozen/` (the frozen parameters, written once), `checkpoints/`,
`metrics.jsonl`, `tensorboard/` and `started.json` (commands and machines). The same command on the same folder
continues an interrupted run.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from flax import nnx
from jax.sharding import Mesh

from data_pipelines.atomic import write_json
from data_pipelines.errors import DataError
from data_pipelines.fingerprint import DATA_PARTS, FILE
from data_pipelines.loader import Position, ProcessShard, TrainingBatch
from data_pipelines.tasks import TASKS
from data_pipelines.tasks.queries import held_out_queries
from experiments.config import (
    ExperimentConfig,
    differences,
    load_config,
    note_changes,
    refuse_changes,
    save_config,
    to_json,
)
from experiments.data import ExperimentData, sized_model
from experiments.elastic import FILE as FIRST_MACHINE
from experiments.elastic import Machine, described, first_machine, fitted
from experiments.evals.ranking import rank_catalogue
from experiments.features import tower_features
from experiments.init import initial_parameters, vocabulary_of_init, with_geometry_of_run, with_init_geometry
from experiments.lock import alone_in
from experiments.parameters import Parameters, abstract_parameters
from experiments.presets import PresetRun
from experiments.provenance import note_provenance
from experiments.step import abstract_state, compile_step, init_state, make_mesh_of, model_flops, to_device
from experiments.vqgan.config import FILE as OF_VQGAN
from unimp_jax.evaluation.metrics import CUTOFFS, ranking_metrics
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.processes import join, wait_for_all
from unimp_jax.sharding import row_shards
from unimp_jax.training.checkpoint import Checkpoints
from unimp_jax.training.frozen import load_frozen, save_frozen
from unimp_jax.training.guard import check_skips
from unimp_jax.training.log import RunLog
from unimp_jax.training.loop import train
from unimp_jax.training.metrics import UniMPWindow
from unimp_jax.training.peak import peak_flops
from unimp_jax.training.preemption import EndRequest, print_saved
from unimp_jax.training.prefetch import LoadedBatch, Prefetcher
from unimp_jax.training.step import TrainState
from unimp_jax.training.wandb_run import WandbRun, check_wandb


def train_command(run: Annotated[PresetRun, tyro.conf.arg(name="")]) -> None:
    """Train a preset, or continue a run; every field of the preset is an option."""
    join(run.processes)
    train_run(run.experiment, run.folder)


def train_run(config: ExperimentConfig, folder: Path) -> None:
    """Trains, or continues to train, the run in `folder`.

    Raises:
      DataError: the folder holds a run of another configuration or one that is being trained, or the data has changed.
      ValueError: parts of the configuration do not fit one another.
    """
    check_wandb(config.loop.wandb)
    # Checked before the folder is made, because the configuration could not be corrected afterwards.
    mesh = make_mesh_of(fitted(config, folder))
    data, asked = open_run(config, folder)
    config = fitted(asked, folder)
    shard = ProcessShard(*row_shards(mesh))
    with (
        alone_in(folder) if jax.process_index() == 0 else contextlib.nullcontext(),
        EndRequest() as end,
        jax.set_mesh(mesh),
        Checkpoints(folder / "checkpoints", config.checkpoint) as checkpoints,
    ):
        parameters, began = abstract_parameters(config, mesh), None
        shapes = abstract_state(config, parameters.trainable, mesh)
        with ThreadPoolExecutor(1) as other_thread:  # compiling takes as long as drawing parameters or reading them
            compiling = other_thread.submit(compile_step, config, parameters, shapes, mesh)
            state, frozen, notes = restore_or_init(config, data, parameters, mesh, checkpoints)
            step = compiling.result()
        # Compile times differ between processes, and the first exchange between them has a short timeout.
        wait_for_all("the step is compiled")
        if jax.process_index() == 0:
            note_changes(load_config(folder / "config.json"), asked, folder / "config.json")
            describe(config, data, parameters, mesh)
            if config.training.elastic:
                begun = fitted(asked, folder, first_machine(folder))
                print(f"elastic: {described(config)}; where the run started: {described(begun)}")
            began = note_provenance(folder)
        features = None
        if config.training.cache_features:
            features = tower_features(
                data, Parameters(parameters.graph, state.trainable, frozen), mesh, folder / "features"
            )
        main, project = jax.process_index() == 0, config.loop.wandb
        wandb = WandbRun(project, folder, to_json(asked)) if main and project is not None else None
        window = UniMPWindow(  # starts its clock, so what takes long comes before
            notes,
            tasks=tuple(TASKS),
            flops=model_flops(config),
            peak_flops=peak_flops(config.model.compute_dtype),
            tokens=config.loader.batch_size * config.row_shape.tokens,
        )
        position = Position() if notes is None else Position(**notes["position"])
        done = int(state.step)
        with (
            RunLog(folder, step=done, steps=config.loop.steps, writes=main, began=began, wandb=wandb) as log,
            contextlib.closing(data.training(position, shard, features)) as batches,
        ):
            state, finished = train(
                state,
                lambda state, batch: step(state, frozen, batch),
                Prefetcher(map(loaded, batches), to_device(mesh)),
                validation(config, data, parameters.graph, frozen, mesh),
                config=config.loop,
                window=window,
                check_skips=functools.partial(check_skips, config.training.guard.patience, "training.guard.spike"),
                checkpoints=checkpoints,
                log=log,
                end=end,
            )
    if not finished:
        print_saved(int(state.step))
        raise SystemExit(0)


def loaded(batch: TrainingBatch) -> LoadedBatch:
    """Returns the parts of a batch that the training loop reads."""
    counts = {name: getattr(batch, name) for name in ("num_examples", "num_images", "fill", "left_out")}
    return LoadedBatch(batch.arrays, dataclasses.asdict(batch.next_position), counts)


def restore_or_init(
    config: ExperimentConfig, data: ExperimentData, parameters: Parameters, mesh: Mesh, checkpoints: Checkpoints
) -> tuple[TrainState, Any, dict[str, Any] | None]:
    """Returns (state, frozen parameters, notes) of the latest checkpoint, or those at step 0, without notes, if there
    is none. Nothing is on the devices twice at any time; `parameters` are abstract. Raises CheckpointError if an
    existing checkpoint cannot be read."""
    folder = checkpoints.folder.parent / "frozen"
    restored = checkpoints.restore_latest(abstract_state(config, parameters.trainable, mesh))
    if restored is not None:
        return restored[0], load_frozen(folder, parameters.frozen), restored[1]
    first = initial_parameters(config, mesh, data)
    return init_state(config, first.trainable, mesh), save_frozen(folder, first.frozen), None


def open_run(config: ExperimentConfig, folder: Path) -> tuple[ExperimentData, ExperimentConfig]:
    """Opens the run folder as `read_run` does, or creates it. All processes must call this together: the first one
    creates the folder, and the others wait for it."""
    made = "the folder of the run is made"
    if jax.process_index() != 0:
        wait_for_all(made)
        return read_run(config, folder)
    try:
        opened = read_run(config, folder)
        if (folder / "config.json").exists() and (folder / FILE).exists() and (folder / FIRST_MACHINE).exists():
            return opened
        folder.mkdir(parents=True, exist_ok=True)
        with alone_in(folder):  # two commands may begin in one new folder
            if (folder / "config.json").exists():
                opened = read_run(config, folder)
            begin_run(*opened, folder)
        return opened
    finally:
        wait_for_all(made)


def begin_run(data: ExperimentData, config: ExperimentConfig, folder: Path) -> None:
    """Writes the parts of a run folder that it lacks before training begins, the configuration last."""
    new = not (folder / "config.json").exists()
    if new:
        data.vocabulary.save(folder / "vocabulary")
    if new or not (folder / FILE).exists():
        data.save_fingerprint(folder)
    if not (folder / FIRST_MACHINE).exists():
        write_json(folder / FIRST_MACHINE, to_json(Machine.here()))
    if new:
        save_config(config, folder / "config.json")


def read_run(config: ExperimentConfig, folder: Path) -> tuple[ExperimentData, ExperimentConfig]:
    """Returns the data and the complete configuration with which training in `folder` begins or continues; writes no
    run. Raises DataError if the folder holds another run, or the data has changed; ValueError if parts do not fit
    together."""
    config, before = configure(config, folder)
    if before is None:
        known = [f"{metric}@{cutoff}" for metric in ("HR", "NDCG", "MRR") for cutoff in CUTOFFS]
        if config.checkpoint.best_metric not in known:
            raise ValueError(
                f"checkpoint.best_metric {config.checkpoint.best_metric!r} must be one of {', '.join(known)}"
            )
        data = ExperimentData.load(config, vocabulary_of_init(config))
    else:
        reconfigured = differences(before, dataclasses.replace(config, model=before.model))
        data = ExperimentData.load(config, folder / "vocabulary", same=() if reconfigured else DATA_PARTS)
    width = data.content.shape[1] if before is None else before.model.decoder.content
    config = sized_model(config, data.vocabulary, width)
    if before is not None:
        refuse_changes(before, config, folder)
    data.check_training()
    return data, config


def configure(config: ExperimentConfig, folder: Path) -> tuple[ExperimentConfig, ExperimentConfig | None]:
    """Returns (the configuration with the geometry of `init_from`, that of the run already in the folder or None), as
    far as possible without the data; DataError if the folder holds a run of a VQGAN."""
    if (folder / OF_VQGAN).exists():
        raise DataError(f"{folder} contains the run of a VQGAN; name another folder")
    if not (folder / "config.json").exists():
        return with_init_geometry(config), None
    before = load_config(folder / "config.json")
    if before.init_from == config.init_from is not None and not config.init_from.exists():
        return with_geometry_of_run(config, folder), before  # which was taken from `init_from` when the run began
    return with_init_geometry(config), before


def validation(
    config: ExperimentConfig, data: ExperimentData, graph: nnx.GraphDef, frozen: Any, mesh: Mesh
) -> Callable[[TrainState], dict[str, float]]:
    """Returns the validation: recommendation to validation users, seen items filtered; no metrics without them."""
    most = config.training.validation_users
    queries = held_out_queries(data.corpus, "validation", "recommendation", most=most)
    if not queries:
        return lambda _: {}
    data = data.asking(config.loader.batch_size // config.training.accumulate)
    predictor = Predictor(graph, mesh, to_device(mesh), ())

    def validate(state: TrainState) -> dict[str, float]:
        ranked = rank_catalogue(data, predictor.with_parameters((state.trainable, frozen)), queries)
        means = {name: float(values.mean()) for name, values in ranking_metrics(ranked.filtered).items()}
        return means | {"cross_entropy": float(ranked.cross_entropy.mean())}

    return validate


def describe(config: ExperimentConfig, data: ExperimentData, parameters: Parameters, mesh: Mesh) -> None:
    """Prints what is about to run."""
    trees = parameters.trainable, parameters.frozen
    trainable, frozen = (sum(x.size for x in jax.tree.leaves(tree)) for tree in trees)
    megabytes, frozen_megabytes = (
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / 10**6 for tree in trees
    )
    print(
        f"{config.data.source}: {data.corpus.num_users} users, {data.corpus.num_items} items; "
        f"vocabulary {data.vocabulary.base_size} + {len(data.vocabulary.new_tokens)}\n"
        f"{trainable:,} parameters train ({megabytes:,.1f} MB, twice that for the optimizer), {frozen:,} are frozen "
        f"({frozen_megabytes:,.1f} MB); mesh {dict(mesh.shape)}",
        *data.check_training(),
        sep="\n",
    )
