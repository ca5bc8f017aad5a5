"""Plans an experiment on TPU slices: the memory, communication and time that its step would need."""

import dataclasses
import re
import time
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from experiments.config import ExperimentConfig
from experiments.parameters import abstract_parameters
from experiments.step import abstract_batch, abstract_state, batch_shape, lower_step, make_mesh_of, model_flops
from unimp_jax.model.flops import recomputed_flops, text_attention_flops
from unimp_jax.planning.chips import Slices, devices
from unimp_jax.planning.estimate import Estimate, Work, estimate


@dataclasses.dataclass(frozen=True)
class Plan:
    """An experiment on TPU slices.

    Attributes:
      tokens_per_second: token slots of all devices per second; how many of them are filled depends on the packing.
    """

    slices: Slices
    mesh: dict[str, int]
    rows: int
    tokens: int
    remat: str
    attention: str
    estimate: Estimate
    tokens_per_second: float


class DoesNotFit(ValueError):
    """The compiler could not fit a program into a device's memory."""


def make_plan(config: ExperimentConfig, slices: Slices) -> Plan:
    """Compiles the step and estimates its memory and time. Raises ValueError if the mesh does not match the devices or
    the batch, DoesNotFit if the step needs more memory than there is."""
    mesh = make_mesh_of(config, devices(slices))
    parameters = abstract_parameters(config, mesh)
    state = abstract_state(config, parameters.trainable, mesh)
    with jax.set_mesh(mesh):
        lowered = lower_step(config, parameters, state, mesh)
        compiled, seconds = compile_anew(lowered, slices)
    given = {
        "trainable": state.trainable,
        "frozen": parameters.frozen,
        "optimizer": state.optimizer,
        "batch": abstract_batch(config, mesh),
    }
    estimated = estimate(compiled, mesh, slices, work_of(config), given, seconds)
    tokens = config.loader.batch_size * config.row_shape.tokens
    return Plan(
        slices=slices,
        mesh=dict(mesh.shape),
        rows=config.loader.batch_size,
        tokens=config.row_shape.tokens,
        remat=config.model.remat,
        attention=config.model.attention,
        estimate=estimated,
        tokens_per_second=tokens / estimated.seconds.step,
    )


def compile_anew(lowered: jax.stages.Lowered, slices: Slices) -> tuple[jax.stages.Compiled, float]:
    """Returns (the program, its compile time in seconds), without JAX's cache, which only the hardware can read."""
    cached, start = jax.config.jax_enable_compilation_cache, time.perf_counter()
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX checks only once per process whether there is a cache
    try:
        compiled = lowered.compile()
        return compiled, time.perf_counter() - start
    except jax.errors.JaxRuntimeError as error:
        raise _in_words(error, slices) from error
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
        compilation_cache.reset_cache()


def work_of(config: ExperimentConfig) -> Work:
    """Returns the FLOPs of a step: the model's, recomputed ones, and those within attention kernels."""
    trains, shape = frozenset(config.training.trains), batch_shape(config)
    kernels = config.model.attention in ("auto", "rows", "splash")
    return Work(
        model=model_flops(config),
        again=recomputed_flops(config.model, shape, trains),
        kernels=text_attention_flops(config.model, shape, trains) if kernels else 0.0,
    )


def _in_words(error: Exception, slices: Slices) -> Exception:
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        return error
    needs = re.search(r"Used (\S+) of (\S+) hbm", text)
    needed = f"{needs.group(1)} of {needs.group(2)}" if needs else "more than available"
    return DoesNotFit(
        f"it does not fit {slices}: a device would need {needed}; shard more (mesh.fsdp, mesh.tensor), save fewer "
        "activations (model.remat full), or use fewer rows (loader.batch_size)"
    )


def to_json(plan: Plan) -> dict[str, Any]:
    """Returns a plan and values derived from it, for JSON."""
    estimated = plan.estimate
    return dataclasses.asdict(plan) | {
        "hardware": str(plan.slices),
        "chips": plan.slices.chips,
        "memory_total": estimated.memory.total,
        "roofline_seconds": estimated.seconds.roofline,
        "step_seconds": estimated.seconds.step,
    }
