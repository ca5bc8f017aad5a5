"""Searches meshes, remat policies and batch sizes, the most promising first."""

import dataclasses
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator

from experiments.config import ExperimentConfig
from experiments.plan.plan import DoesNotFit, Plan, make_plan, work_of
from unimp_jax.interop.layout import model_shapes
from unimp_jax.model import ModelConfig, part_of
from unimp_jax.model.layers import Remat
from unimp_jax.planning.chips import Slices
from unimp_jax.sharding import MeshConfig

ROWS_A_SHARD = (1, 2, 4, 8, 16, 32, 64)
REMATS: tuple[Remat, ...] = ("none", "dots", "full")


def search(
    config: ExperimentConfig, slices: Slices, count: int, tell: Callable[[str], None] = lambda _: None
) -> list[Plan]:
    """Compiles candidates until `count` of them fit, and returns these plans in descending order of tokens per second;
    DoesNotFit if none of the first 4 * count candidates fits."""
    plans: list[Plan] = []
    for candidate in itertools.islice(candidates(config, slices), 4 * count):
        if len(plans) == count:
            break
        words = f"{candidate.mesh} rows={candidate.loader.batch_size} remat={candidate.model.remat}"
        try:
            plan = make_plan(candidate, slices)
        except ValueError as error:  # it does not fit, or the torus or the geometry does not allow such a mesh
            tell(f"{words}: {error}")
            continue
        tell(f"{words}: {plan.estimate.seconds.step:.4f} s, {plan.tokens_per_second:,.0f} tokens/s")
        if plan.estimate.fits:
            plans.append(plan)
    if not plans:
        raise DoesNotFit(f"no candidate fits {slices}; lower row_shape.tokens, or use larger slices")
    return sorted(plans, key=lambda plan: -plan.tokens_per_second)


def candidates(config: ExperimentConfig, slices: Slices) -> Iterator[ExperimentConfig]:
    """Returns the candidates that fit by a rough estimate, ordered by estimated tokens per second, with only the two
    largest batches of each mesh and policy."""
    guessed: list[tuple[float, ExperimentConfig]] = []
    for mesh in meshes(config, slices):
        shards = mesh.row_shards
        for remat in REMATS:
            fitting = []
            for rows in ROWS_A_SHARD:
                candidate = dataclasses.replace(
                    config,
                    mesh=mesh,
                    model=dataclasses.replace(config.model, remat=remat),
                    loader=dataclasses.replace(config.loader, batch_size=rows * shards),
                )
                if guessed_bytes(candidate) <= 0.85 * slices.chip.memory:
                    fitting.append((guessed_seconds(candidate, slices) / candidate.loader.batch_size, candidate))
            guessed += fitting[-2:]
    return (candidate for _, candidate in sorted(guessed, key=lambda pair: pair[0]))


def meshes(config: ExperimentConfig, slices: Slices) -> Iterator[MeshConfig]:
    """Yields meshes with parameters split over all devices of a slice, or over 16 and replicated, and with or without
    split heads and tokens."""
    chips, decoder = slices.chips_each, config.model.decoder
    for tensor, context in itertools.product((1, 2, 4, 8), (1, 2)):
        blocks = () if config.model.interleaved else (config.model.gated.heads,)
        heads = math.gcd(decoder.heads, decoder.num_kv_heads, config.model.vision.heads, *blocks)
        if heads % tensor or config.row_shape.tokens % (context * 128) or chips % (tensor * context):
            continue
        rows = chips // (tensor * context)
        for fsdp in {rows, min(rows, 16)}:
            yield MeshConfig(slice=slices.count, data=rows // fsdp, fsdp=fsdp, context=context, tensor=tensor)


def parameter_counts(config: ExperimentConfig) -> tuple[int, int]:
    """Returns the numbers of (trainable, frozen) parameters."""
    counts = part_counts(config.model)
    trains = sum(counts[part] for part in config.training.trains)
    return trains, sum(counts.values()) - trains


@functools.lru_cache
def part_counts(model: ModelConfig) -> Counter[str]:
    """Returns the number of parameters of each part."""
    counts: Counter[str] = Counter()
    for name, shape in model_shapes(model).items():
        counts[part_of(name.split("/"))] += math.prod(shape)
    return counts


def guessed_bytes(config: ExperimentConfig) -> float:
    """Estimates bytes per device: parameters, moments, gradients; activations that each policy keeps; a layer's
    temporaries."""
    mesh, model, row_shape = config.mesh, config.model, config.row_shape
    decoder, gated, vision = model.decoder, model.gated, model.vision
    trains, frozen = parameter_counts(config)
    rows = config.loader.batch_size / mesh.row_shards / config.training.accumulate
    tokens = rows * row_shape.tokens / mesh.context
    of_layer = 2 * decoder.width + 3 * decoder.head_dim * decoder.heads / mesh.tensor
    of_layer += 2 * decoder.mlp_width / mesh.tensor
    of_block = 0.0 if model.interleaved else 2 * decoder.width + 2 * gated.hidden_width(decoder.width) / mesh.tensor
    kept = {
        "full": decoder.width * model.groups,
        "dots": of_layer * decoder.layers + of_block * model.groups,
        "none": 2.5 * (of_layer * decoder.layers + of_block * model.groups),
    }[model.remat]
    images = rows * row_shape.images / mesh.context
    of_tower = images * vision.patches * (4 * vision.width + 2 * vision.mlp_width / mesh.tensor) * 2
    of_tower += images * vision.heads / mesh.tensor * vision.patches**2 * 6
    resampled = not model.interleaved or model.projector.kind == "resampler"
    of_resampler = images * model.resampler.layers * vision.width * model.resampler.latents * 2 * resampled
    of_resampler *= {"full": 1, "dots": 12, "none": 30}[model.remat]
    logits = rows * min(config.objective.chunk, row_shape.answers) * decoder.vocab_size / mesh.tensor * 8
    shards = mesh.fsdp * mesh.tensor
    return (14 * trains + 2 * frozen) / shards + 2 * tokens * kept + max(of_tower, 2 * tokens * of_layer) + (
        of_resampler + logits + 2 * (trains + frozen) / decoder.layers / mesh.tensor
    )  # fmt: skip


SHARE_OF_PEAK = {"none": 0.32, "dots": 0.46, "full": 0.5}
"""Share of the peak that products, including recomputed ones, reach by remat policy, since keeping activations costs
time for writing and reading them: from `unimp plan`'s longer estimates of the 3B model on v5e-16, with 1, 2 and 4 rows
per chip."""


def guessed_seconds(config: ExperimentConfig, slices: Slices) -> float:
    """Estimates the seconds per step: products, and what does not overlap with them."""
    mesh, work = config.mesh, work_of(config)
    trains, frozen = parameter_counts(config)
    chip, decoder = slices.chip, config.model.decoder
    compute = (work.model + work.again) / slices.chips / (SHARE_OF_PEAK[config.model.remat] * chip.flops)
    again = 1 if config.model.remat == "none" else 2
    gathered = 2 * (trains + frozen) * (again + 1) / mesh.tensor * (1 - 1 / mesh.fsdp) + 2 * trains / mesh.tensor
    tokens = config.loader.batch_size * config.row_shape.tokens / slices.chips * mesh.tensor
    exchanged = 2 * tokens * decoder.width * 4 * (again + 1) * decoder.layers * (1 - 1 / mesh.tensor)
    rings = (gathered * config.training.accumulate + exchanged) / chip.ring_bandwidth
    copied = 4 * trains / mesh.fsdp / mesh.tensor
    network = copied / chip.network_bandwidth if slices.count > 1 else 0.0
    # Exchanges of activations are between products that need them; those of parameters are not.
    return max(compute, gathered / chip.ring_bandwidth) + 0.5 * (rings - gathered / chip.ring_bandwidth) + network
