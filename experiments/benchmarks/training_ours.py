"""This project's side of `training_speed`: the very step that `unimp train` compiles, on batches that are ready."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.measuring import forget_peak, peak_bytes, runs_a_second
from experiments.benchmarks.training_task import begin_open
from experiments.config import load_config
from experiments.step import batch_shape, compile_step, init_state, optimizer_of, to_device
from unimp_jax.model.flops import training_step_flops
from unimp_jax.sharding import MeshConfig, make_mesh
from unimp_jax.training.peak import measured_matmul_flops


class Ours:
    """A run's state, and one step of training."""

    def __init__(self, task: Path, accumulate: int = 1):
        config = load_config(task / "config.json")
        self.config = dataclasses.replace(config, training=dataclasses.replace(config.training, accumulate=accumulate))
        self.mesh = make_mesh(MeshConfig(data=-1))
        with jax.set_mesh(self.mesh):
            parameters = begin_open(self.config, self.mesh)
            optimizer = optimizer_of(self.config)
            self.state = init_state(parameters.trainable, optimizer, self.mesh)
            self.frozen, self.graph = parameters.frozen, parameters.graph
            self.compiled = compile_step(self.config, parameters, optimizer, self.state, self.mesh)
        self.place = to_device(self.mesh)

    def step(self, batch: Any) -> Any:
        """One step of training; its metrics, which may be still to come."""
        self.state, metrics = self.compiled(self.state, self.frozen, batch)
        return metrics


def read_arrays(folder: Path) -> list[dict[str, np.ndarray]]:
    paths = sorted(folder.glob("*.npz"), key=lambda path: int(path.stem))
    return [dict(np.load(path)) for path in paths]


def measure(task: str, seconds: float, devices: int, accumulate: int) -> dict[str, float]:
    """Trains for so long, in whole passes over the task, after a first step that is not timed.

    Args:
      devices: host devices.
      accumulate: parts that a batch is worked through in.
    """
    jax.config.update("jax_num_cpu_devices", devices)
    ours = Ours(Path(task), accumulate)
    arrays = read_arrays(Path(task) / "ours")
    batches = [ours.place(one) for one in arrays]
    loss = float(ours.step(batches[0]).loss)

    def run() -> None:
        for batch in batches:
            metrics = ours.step(batch)
        jax.block_until_ready((metrics, ours.state))

    forget_peak()
    rate, peak, config = runs_a_second(run, seconds), peak_bytes(), ours.config
    tower = not config.training.cache_features
    flops = training_step_flops(config.model, batch_shape(config), frozenset(config.training.trains), tower=tower)
    return {
        "loss": loss,
        "answers": rate * sum(int((one["answer_weights"] > 0).sum()) for one in arrays),
        "peak": peak,
        "parameters": float(sum(x.size for x in jax.tree.leaves((ours.state.trainable, ours.frozen)))),
        "of the peak": rate * len(batches) * flops / measured_matmul_flops("float32", 4096),
    }
