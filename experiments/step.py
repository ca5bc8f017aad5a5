"""The train step of an experiment: its state, its batches and its compiled program."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipelines.tasks import TASKS
from experiments.config import ExperimentConfig
from experiments.parameters import Parameters
from unimp_jax.batch import Batch
from unimp_jax.compiling import compiler_options
from unimp_jax.model.flops import training_step_flops
from unimp_jax.processes import print_once
from unimp_jax.sharding import batch_sharding, check_rows, check_tokens, make_mesh, put_rows
from unimp_jax.training.checkpoint import abstract
from unimp_jax.training.guard import new_guard
from unimp_jax.training.optimizer import make_optimizer
from unimp_jax.training.step import TrainState, make_train_step


def make_mesh_of(config: ExperimentConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of an experiment on `devices` (by default, all that are available); ValueError if it does not
    match their number, or rows or tokens of a batch cannot be split over it."""
    mesh = make_mesh(config.mesh, devices)
    check_rows(config.loader.batch_size, mesh, config.training.accumulate)
    check_tokens(config.row_shape.tokens, mesh)
    return mesh


def optimizer_of(config: ExperimentConfig) -> optax.GradientTransformation:
    """Returns the optimizer of an experiment."""
    return make_optimizer(config.optimizer, config.loop.steps, functools.partial(decays, config))


def abstract_state(config: ExperimentConfig, trainable: Any, mesh: Mesh) -> TrainState:
    """Returns shapes, dtypes and shardings of a state; moments have the shardings of their parameters."""
    everywhere, optimizer = NamedSharding(mesh, PartitionSpec()), optimizer_of(config)

    def like(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    step, guard, optimizer_state = jax.eval_shape(
        lambda: (jnp.zeros((), jnp.int32), new_guard(), optimizer.init(trainable))
    )
    optimizer_state = optax.tree_map_params(
        optimizer, like, optimizer_state, jax.tree.map(lambda x: x.sharding, trainable),
        transform_non_params=lambda x: like(x, everywhere),
    )  # fmt: skip
    step, guard = jax.tree.map(lambda x: like(x, everywhere), (step, guard))
    return TrainState(step, abstract(trainable), optimizer_state, guard)


def init_state(config: ExperimentConfig, trainable: Any, mesh: Mesh) -> TrainState:
    """Returns the state at step 0."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, trainable, mesh))
    step, guard = jax.jit(
        lambda: (jnp.zeros((), jnp.int32), new_guard()), out_shardings=(shardings.step, shardings.guard)
    )()
    moments = jax.jit(optimizer_of(config).init, out_shardings=shardings.optimizer)(trainable)
    return TrainState(step, trainable, moments, guard)


def decays(config: ExperimentConfig, path: Any, parameter: jax.Array) -> bool:
    """Returns whether weight decay applies: to matrices of the gated blocks or of all but embeddings, not to
    adapters."""
    names = [str(getattr(key, "key", key)) for key in path]
    part = "gated" if config.optimizer.decay == "gated" else names[0]
    return names[0] == part != "embeddings" and "kernel" in names


def batch_shape(config: ExperimentConfig) -> tuple[int, int, int, int]:
    """Returns (B, T, N, A) of a global batch."""
    row_shape = config.row_shape
    return config.loader.batch_size, row_shape.tokens, row_shape.images, row_shape.answers


def model_flops(config: ExperimentConfig) -> float:
    """Returns the floating-point operations that a step must compute."""
    trains, cached = frozenset(config.training.trains), config.training.cache_features
    return training_step_flops(config.model, batch_shape(config), trains, tower=not cached)


def to_device(mesh: Mesh) -> Callable[[dict[str, np.ndarray]], Batch]:
    """Returns a function that makes global arrays of this process's rows (`unimp_jax.sharding.row_shards`)."""
    return lambda arrays: Batch(**put_rows(mesh, arrays))


def lower_step(config: ExperimentConfig, parameters: Parameters, state: TrainState, mesh: Mesh) -> jax.stages.Lowered:
    """Lowers the train step for its one batch shape, with the state donated; arrays may be abstract."""
    step = make_train_step(
        parameters.graph,
        optimizer_of(config),
        objective=config.objective,
        num_tasks=len(TASKS),
        accumulate=config.training.accumulate,
        seed=config.seed,
        guard=config.training.guard,
        dropout_by_row=config.training.elastic,
    )
    shardings = jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=compiler_options(mesh))
    return jitted.lower(abstract(state), abstract(parameters.frozen), abstract_batch(config, mesh))


def compile_step(config: ExperimentConfig, parameters: Parameters, state: TrainState, mesh: Mesh) -> Callable[..., Any]:
    """Compiles the train step ahead of time, in any thread."""
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = lower_step(config, parameters, state, mesh).compile()
    print_once(f"train step compiled in {time.perf_counter() - start:.1f} s")
    return compiled


def abstract_batch(config: ExperimentConfig, mesh: Mesh) -> Batch:
    """Returns shapes, dtypes and shardings of a global batch."""
    B, T, N, A = batch_shape(config)
    vision = config.model.vision

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((B, *shape), dtype, sharding=batch_sharding(mesh))

    return Batch(
        tokens=array(jnp.int32, T),
        segment_ids=array(jnp.int32, T),
        positions=array(jnp.int32, T),
        image_index=array(jnp.int32, T),
        images=array(config.model.compute_dtype, N, vision.tokens_out, vision.width)
        if config.training.cache_features
        else array(jnp.uint8, N, vision.image_size, vision.image_size, 3),
        image_segment_ids=array(jnp.int32, N),
        answer_positions=array(jnp.int32, A),
        answer_targets=array(jnp.int32, A),
        answer_weights=array(jnp.float32, A),
        answer_tasks=array(jnp.int32, A),
    )
