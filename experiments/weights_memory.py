"""What importing, placing and exporting weights costs in memory: `python -m experiments.weights_memory` (Linux).

A random model is written as IdeficsForVisionText2Text has it, in shards, then imported, put on the device, and exported
again, each in a process of its own. What each needs beyond the parameters that the device holds and beyond a process
that does nothing but start is told as a multiple of the largest shard.
"""

from __future__ import annotations

import ctypes
import dataclasses
import filecmp
import math
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import numpy as np
import tyro

from experiments.beginning import begin
from experiments.config import ExperimentConfig
from experiments.parameters import Parameters
from unimp_jax.interop import idefics
from unimp_jax.interop.clip import last_norm
from unimp_jax.interop.exporting import named, write_weights
from unimp_jax.interop.importing import ImportConfig, import_weights
from unimp_jax.interop.layout import abstract_parameters, pieces
from unimp_jax.interop.shards import ShardWriter, write_json
from unimp_jax.interop.start import read_start
from unimp_jax.model import DecoderConfig, ModelConfig, VisionConfig
from unimp_jax.model.presets import blocks_of, idefics_9b
from unimp_jax.sharding import MeshConfig, make_mesh

BOUND = 1.3
"""Shards of memory that each step may take."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What every process is told."""

    folder: Path
    shard_bytes: int

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def start(self) -> Path:
        return self.folder / "start"

    @property
    def exported(self) -> Path:
        return self.folder / "exported"


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds, and the most bytes that were resident meanwhile."""

    seconds: float
    peak: int


def main(params: float = 1.1e9, shard_gb: float = 1.0, folder: Path | None = None) -> None:
    """Prints seconds and memory of each step.

    Args:
      params: parameters of the model, about.
      shard_gb: size of its shards.
      folder: where its files are kept meanwhile; by default the system's temporary folder.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    own = Path(tempfile.mkdtemp(prefix="weights-memory-", dir=folder))
    try:
        measure(geometry(params), Task(own, int(shard_gb * 10**9)))
    finally:
        shutil.rmtree(own)


def measure(config: ModelConfig, task: Task) -> None:
    write_random(config, task)
    largest = max(path.stat().st_size for path in task.source.glob("*.safetensors"))
    size = 4 * count(config)
    print(f"{count(config) / 1e9:.2f} B parameters, {size / 1e9:.2f} GB; largest shard {largest / 1e9:.3f} GB")
    idle = in_process(nothing, task).peak
    print(f"{'':8}{'seconds':>9}{'peak GB':>9}{'beyond GB':>11}{'shards':>8}   (a process that only starts: "
          f"{idle / 1e9:.2f} GB)")  # fmt: skip
    for name, step, held in (("import", run_import, 0), ("place", run_place, size), ("export", run_export, size)):
        measured = in_process(step, task)
        beyond = measured.peak - idle - held
        told = f"{name:8}{measured.seconds:9.1f}{measured.peak / 1e9:9.2f}{beyond / 1e9:11.2f}{beyond / largest:8.2f}"
        print(told + ("" if beyond <= BOUND * largest else f"   above {BOUND}"), flush=True)
    names = sorted(path.name for path in task.source.glob("*.safetensors"))
    _, different, absent = filecmp.cmpfiles(task.source, task.exported, names, shallow=False)
    print("exported shards are the source's, byte for byte" if not different + absent else "exported shards differ")


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
    return sum(math.prod(variable.shape) for variable in abstract_parameters(config).values())


def write_random(config: ModelConfig, task: Task) -> None:
    rng = np.random.default_rng(0)
    task.source.mkdir()
    with ShardWriter(task.source, task.shard_bytes) as writer:
        for key, array in last_norm(idefics.LAST_NORM, config.vision).items():
            writer.add(key, array.astype(np.float32))
        for piece in pieces(idefics.table(config), config):
            writer.add(piece.key, rng.standard_normal(piece.their_shape, np.float32))
    write_json(task.source / "config.json", idefics.described_as(config))


def in_process(step: Callable[[Task], Measured], task: Task) -> Measured:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(step, task).result()


def measured(work: Callable[[], object]) -> Measured:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return Measured(seconds, int(status["VmHWM"].split()[0]) * 1024)


def nothing(task: Task) -> Measured:
    return measured(jax.devices)


def run_import(task: Task) -> Measured:
    return measured(lambda: import_weights(ImportConfig(idefics=str(task.source)), task.start, task.shard_bytes))


def run_place(task: Task) -> Measured:
    return measured(lambda: begun(task))


def run_export(task: Task) -> Measured:
    parameters, config = begun(task)
    task.exported.mkdir()
    ctypes.CDLL(None).malloc_trim(0)  # what beginning took and freed is the system's again
    return measured(lambda: export(task, parameters, config))


def begun(task: Task) -> tuple[Parameters, ModelConfig]:
    """The parameters of a run that begins with the start, all of them float32."""
    model = read_start(task.start).geometry.of_model(ModelConfig(compute_dtype="float32"))
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        parameters = begin(ExperimentConfig(model, start=task.start), mesh)
        jax.block_until_ready((parameters.trainable, parameters.frozen))
    return parameters, model


def export(task: Task, parameters: Parameters, config: ModelConfig) -> None:
    write_weights(
        task.exported,
        named(parameters.trainable, parameters.frozen),
        config,
        idefics.table(config),
        unread=last_norm(idefics.LAST_NORM, config.vision),
        shard_bytes=task.shard_bytes,
    )


if __name__ == "__main__":
    tyro.cli(main)
