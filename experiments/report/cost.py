"""What runs cost, by their logs and configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.config import ExperimentConfig, load_config
from experiments.report.gather import Run
from experiments.step import batch_shape, model_flops
from unimp_jax.training.log import read_log

Log = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run and of those that it began with, as a curriculum's last part does; NaN where a log does not tell.

    Attributes:
      steps: that were done.
      seconds: of training steps and waiting for data; compilation, validation and saving are not among them.
      tokens: that were trained on, padding left out.
      flops: that the steps had to compute, by `unimp_jax.model.flops`.
      trains, frozen: parameters of the run itself.
      evaluation: seconds.
    """

    steps: float
    seconds: float
    tokens: float
    flops: float
    trains: float
    frozen: float
    evaluation: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def cost(run: Run) -> Cost:
    facts = run.evaluation.facts

    def count(name: str) -> float:
        return float(str(facts[name]).replace(",", "")) if name in facts else np.nan

    training = [training_cost(*one) for one in beginnings(run.config, run.log)]
    steps, seconds, tokens, flops = (sum(parts) for parts in zip(*training, strict=True))
    trains, frozen = count("parameters that train"), count("frozen parameters")
    return Cost(steps, seconds, tokens, flops, trains, frozen, run.evaluation.seconds)


def training_cost(config: ExperimentConfig, log: Log) -> tuple[float, float, float, float]:
    """(steps, seconds, tokens, FLOPs)."""
    lines = [line for line in log if line["kind"] == "train"]
    if not lines:
        return np.nan, np.nan, np.nan, np.nan
    steps = np.diff([line["step"] for line in lines], prepend=0)
    rows, slots, _, _ = batch_shape(config)

    def total(name: str) -> float:
        return float(steps @ [line.get(name, np.nan) for line in lines])

    done = float(steps.sum())
    return done, total("step_seconds"), total("fill") * rows * slots, done * model_flops(config)


def beginnings(config: ExperimentConfig, log: Log) -> Iterator[tuple[ExperimentConfig, Log]]:
    """The run, the one that it began with, that one's, and so on, as far as they are there."""
    yield config, log
    while config.start and (config.start / "config.json").exists() and (config.start / "metrics.jsonl").exists():
        start, config = config.start, load_config(config.start / "config.json")
        yield config, read_log(start / "metrics.jsonl")


def mean_cost(runs: Sequence[Run]) -> Cost:
    """Over seeds."""
    costs = [dataclasses.astuple(cost(run)) for run in runs]
    return Cost(*(float(value) for value in np.mean(costs, axis=0)))


def show_seconds(seconds: float) -> str:
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds:.0f} s"


def show_count(count: float) -> str:
    """Three digits and a letter: 577 k, 12.3 M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return f"{count:.0f}"


def show_flops(flops: float) -> str:
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if flops >= size:
            return f"{flops / size:.3g} {letter}FLOP"
    return f"{flops:.0f} FLOP"


COLUMNS: tuple[tuple[str, Callable[[Cost], float], Callable[[float], str]], ...] = (
    ("steps", lambda c: c.steps, lambda value: f"{value:,.0f}"),
    ("training time", lambda c: c.seconds, show_seconds),
    ("tokens", lambda c: c.tokens, show_count),
    ("model FLOPs", lambda c: c.flops, show_flops),
    ("parameters that train", lambda c: c.trains, show_count),
    ("frozen", lambda c: c.frozen, show_count),
    ("tokens/s", lambda c: c.tokens_per_second, lambda value: f"{value:,.0f}"),
    ("evaluation", lambda c: c.evaluation, show_seconds),
)
"""What a table of costs shows."""
