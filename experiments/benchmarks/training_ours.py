"""This project's side of `training_speed`: the very step that `unimp train` compiles, on batches that are ready, or
fed by the loader as it is fed in training."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.features import FeatureStore
from experiments.benchmarks.process_memory import forget_peak, peak_bytes
from experiments.benchmarks.training_task import FEATURES, begin_open
from experiments.config import load_config
from experiments.data import ExperimentData
from experiments.step import batch_shape, compile_step, init_state, optimizer_of, to_device
from unimp_jax.model.flops import training_step_flops
from unimp_jax.sharding import MeshConfig, make_mesh


class Ours:
    """A run's state, and one step of training."""

    def __init__(self, task: Path, accumulate: int = 1):
        config = load_config(task / "config.json")
        self.config = dataclasses.replace(config, training=dataclasses.replace(config.training, accumulate=accumulate))
        self.mesh = make_mesh(MeshConfig(data=-1))
        with jax.set_mesh(self.mesh):
            parameters = begin_open(self.config, self.mesh)
            transformation = optimizer_of(self.config)
            self.state = init_state(parameters.trainable, transformation, self.mesh)
            self.frozen, self.graph = parameters.frozen, parameters.graph
            self.compiled = compile_step(self.config, parameters, transformation, self.state, self.mesh)
        self.place = to_device(self.mesh)

    def step(self, batch: Any) -> Any:
        """One step of training; its figures, which may be still to come."""
        self.state, figures = self.compiled(self.state, self.frozen, batch)
        return figures


def read_arrays(folder: Path) -> list[dict[str, np.ndarray]]:
    paths = sorted(folder.glob("*.npz"), key=lambda path: int(path.stem))
    return [dict(np.load(path)) for path in paths]


def measure(task: Path, *, seconds: float, accumulate: int) -> dict[str, float]:
    """Trains for so long, in whole passes over the task, after a first step that is not timed."""
    jax.devices()
    idle = peak_bytes()
    ours = Ours(task, accumulate)
    arrays = read_arrays(task / "ours")
    batches = [ours.place(one) for one in arrays]
    first = float(ours.step(batches[0]).loss)
    before = peak_bytes()
    forget_peak()
    passes: list[float] = []
    while sum(passes) < seconds:
        start = time.perf_counter()
        for batch in batches:
            figures = ours.step(batch)
        jax.block_until_ready((figures, ours.state))
        passes.append(time.perf_counter() - start)
    rate = len(passes) / sum(passes)
    config = ours.config
    trains, tower = frozenset(config.training.trains), not config.training.cache_features
    return {
        "answers": rate * sum(int((one["answer_weights"] > 0).sum()) for one in arrays),
        "examples": rate * sum(int(one["segment_ids"].max(axis=1).sum()) for one in arrays),
        "fill": float(np.mean([(one["segment_ids"] > 0).mean() for one in arrays])),
        "step": 1 / rate / len(batches),
        "loss": first,
        "flops": training_step_flops(config.model, batch_shape(config), trains, tower=tower),
        "parameters": float(sum(x.size for x in jax.tree.leaves((ours.state.trainable, ours.frozen)))),
        "peak": peak_bytes(),
        "whole_peak": max(before, peak_bytes()),
        "idle": idle,
    }


def measure_fed(task: Path, *, seconds: float, accumulate: int) -> dict[str, float]:
    """The same with the loader at work beside it: answers a second, and the share of the time that the loop waits."""
    ours = Ours(task, accumulate)
    kept = FeatureStore(task / FEATURES) if ours.config.training.cache_features else None
    batches = ExperimentData.load(ours.config).training(features=kept)
    ours.step(ours.place(next(batches).arrays))
    answers, waited, steps = 0, 0.0, 0
    figures = ours.step(ours.place(next(batches).arrays))
    jax.block_until_ready(figures)
    start = time.perf_counter()
    while steps < 4 or time.perf_counter() - start < seconds:
        asked = time.perf_counter()
        arrays = next(batches).arrays
        waited += time.perf_counter() - asked
        figures = ours.step(ours.place(arrays))
        answers += int((arrays["answer_weights"] > 0).sum())
        steps += 1
        if steps % 10 == 0:  # as the log does
            jax.block_until_ready(figures)
    jax.block_until_ready((figures, ours.state))
    taken = time.perf_counter() - start
    batches.close()
    return {"answers": answers / taken, "step": taken / steps, "waiting": waited / taken}
