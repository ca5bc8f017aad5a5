"""What importing, placing and exporting weights costs in memory.

    python -m experiments.benchmarks.weights_memory

A random model is written as IdeficsForVisionText2Text has it, in shards, then imported, put on the device, and exported
again, each in a process of its own. What each needs beyond the parameters that the device holds and beyond a process
that does nothing but start is reported as a multiple of the largest shard.
"""

from __future__ import annotations

import ctypes
import dataclasses
import filecmp
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import tyro

from experiments.benchmarks.measuring import (
    HOST_ALONE,
    forget_peak,
    in_own_process,
    peak_bytes,
    print_header,
    print_row,
)
from experiments.config import ExperimentConfig
from experiments.init import initial_parameters
from experiments.parameters import Parameters
from unimp_jax.interop import idefics
from unimp_jax.interop.clip import last_norm
from unimp_jax.interop.exporting import named, write_weights
from unimp_jax.interop.importing import ImportConfig, import_weights
from unimp_jax.interop.layout import model_shapes, placements
from unimp_jax.interop.shards import write_json, write_shards
from unimp_jax.interop.start import read_start
from unimp_jax.model import DecoderConfig, ModelConfig, VisionConfig
from unimp_jax.model.presets import blocks_of, idefics_9b
from unimp_jax.sharding import MeshConfig, make_mesh

BOUND = 1.3
"""Shards of memory that each step may take."""

Measured = tuple[float, int]
"""Seconds, and the most bytes that were resident meanwhile."""


def main(params: float = 1.1e9, shard_gb: float = 1.0, folder: Path | None = None) -> None:
    """Prints seconds and memory of each step.

    Args:
      params: parameters of the model, about.
      shard_gb: size of its shards.
      folder: where its files are kept meanwhile; by default the system's temporary folder.
    """
    config, shard_bytes = geometry(params), int(shard_gb * 10**9)
    with tempfile.TemporaryDirectory(prefix="weights-memory-", dir=folder) as name:
        source = Path(name) / "source"
        write_random(config, source, shard_bytes)
        shards = sorted(source.glob("*.safetensors"))
        largest, size = max(path.stat().st_size for path in shards), 4 * count(config)
        _, idle = in_own_process(run_nothing, name, shard_bytes, **HOST_ALONE)
        print(
            f"{count(config) / 1e9:.2f} B parameters, {size / 1e9:.2f} GB; largest shard {largest / 1e9:.3f} GB; "
            f"a process that only starts: {idle / 1e9:.2f} GB\n"
        )
        print_header(["step", "seconds", "peak, GB", "beyond, GB", f"shards (at most {BOUND})"])
        for step, held in ((run_import, 0), (run_place, size), (run_export, size)):
            seconds, peak = in_own_process(step, name, shard_bytes, **HOST_ALONE)
            beyond = peak - idle - held
            cells = f"{seconds:.1f}", f"{peak / 1e9:.2f}", f"{beyond / 1e9:.2f}", f"{beyond / largest:.2f}"
            print_row([step.__name__.removeprefix("run_"), *cells])
        _, different, absent = filecmp.cmpfiles(
            source, Path(name) / "exported", [path.name for path in shards], shallow=False
        )
        print("\nexported shards", "differ" if different + absent else "are the source's, byte for byte")


def geometry(parameters: float) -> ModelConfig:
    """An Idefics with CLIP ViT-L/14, and as many groups of decoder layers as come closest."""

    def of(groups: int) -> ModelConfig:
        decoder = DecoderConfig(
            vocab_size=32000, width=1536, layers=4 * groups, heads=12, mlp_width=4096, norm="rms_norm", norm_eps=1e-6,
            bias=False, mlp="swiglu",
        )  # fmt: skip
        blocks = blocks_of(decoder, every=4, qk_norm=True, gate="channel")
        return dataclasses.replace(idefics_9b, vision=VisionConfig(class_token_out=True), gated=blocks, decoder=decoder)

    one, two = count(of(1)), count(of(2))
    return of(max(1, 1 + round((parameters - one) / (two - one))))


def count(config: ModelConfig) -> int:
    return sum(math.prod(shape) for shape in model_shapes(config).values())


def write_random(config: ModelConfig, folder: Path, shard_bytes: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for key, array in last_norm(idefics.LAST_NORM, config.vision).items():
            yield key, array.astype(np.float32)
        for piece in placements(idefics.table(config), model_shapes(config)):
            yield piece.key, rng.standard_normal(piece.their_shape, np.float32)

    write_shards(folder, arrays(), shard_bytes)
    write_json(folder / "config.json", idefics.described_as(config))


def measured(work: Callable[[], object]) -> Measured:
    forget_peak()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start, peak_bytes()


def run_nothing(folder: str, shard_bytes: int) -> Measured:
    return measured(jax.devices)


def run_import(folder: str, shard_bytes: int) -> Measured:
    source = ImportConfig(idefics=f"{folder}/source")
    return measured(lambda: import_weights(source, Path(folder) / "start", shard_bytes))


def run_place(folder: str, shard_bytes: int) -> Measured:
    return measured(lambda: begun(folder))


def run_export(folder: str, shard_bytes: int) -> Measured:
    parameters, config = begun(folder)
    exported, unread = Path(folder) / "exported", last_norm(idefics.LAST_NORM, config.vision)
    exported.mkdir()
    ctypes.CDLL(None).malloc_trim(0)  # what initialisation freed is returned to the system
    arrays = named(parameters.trainable, parameters.frozen)
    return measured(
        lambda: write_weights(exported, arrays, idefics.table(config), unread=unread, shard_bytes=shard_bytes)
    )


def begun(folder: str) -> tuple[Parameters, ModelConfig]:
    """The parameters of a run that begins with the start, all of them float32."""
    start = Path(folder) / "start"
    model = read_start(start).geometry.of_model(ModelConfig(compute_dtype="float32"))
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        parameters = initial_parameters(ExperimentConfig(model, init_from=start), mesh)
        jax.block_until_ready((parameters.trainable, parameters.frozen))
    return parameters, model


if __name__ == "__main__":
    tyro.cli(main)
