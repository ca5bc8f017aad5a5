"""Computes the cost of runs from their logs and configurations."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.config import ExperimentConfig, load_config
from experiments.report.runs import EvaluatedRun
from experiments.step import batch_shape, model_flops
from unimp_jax.training.log import read_log

Log = Sequence[Mapping[str, Any]]


def cost(run: EvaluatedRun) -> dict[str, float]:
    """Computes the cost of a run, including that of the runs it was initialised from, such as earlier curriculum
    stages.

    Returns:
      The values of `COST` by name, NaN if a log lacks them. Seconds are those of training steps and of waiting for
      data, without compilation, validation and saving; tokens are without padding; FLOPs are those that the steps had
      to compute by the model's geometry; the parameters are those of the run itself.
    """
    facts = run.evaluation.facts
    steps, seconds, tokens, flops = np.sum([training_cost(*one) for one in trainings(run.config, run.log)], axis=0)
    trained, frozen = (
        float(str(facts.get(name, "nan")).replace(",", "")) for name in ("parameters that train", "frozen parameters")
    )
    values = (steps, seconds, tokens, flops, trained, frozen, tokens / seconds, run.evaluation.seconds)
    return dict(zip(COST, map(float, values), strict=True))


def mean_cost(runs: Sequence[EvaluatedRun]) -> dict[str, float]:
    """Returns the mean cost over runs, by column."""
    costs = [cost(run) for run in runs]
    return {name: float(np.mean([one[name] for one in costs])) for name in COST}


def training_cost(config: ExperimentConfig, log: Log) -> tuple[float, float, float, float]:
    """Computes (steps, seconds, tokens, FLOPs) of one training."""
    lines = [line for line in log if line["kind"] == "train"]
    if not lines:
        return math.nan, math.nan, math.nan, math.nan
    steps = np.diff([line["step"] for line in lines], prepend=0)
    rows, slots, _, _ = batch_shape(config)
    seconds, fill = (float(steps @ [line.get(name, math.nan) for line in lines]) for name in ("step_seconds", "fill"))
    return float(steps.sum()), seconds, fill * rows * slots, float(steps.sum()) * model_flops(config)


def trainings(config: ExperimentConfig, log: Log) -> Iterator[tuple[ExperimentConfig, Log]]:
    """Yields configuration and log of a run, of the run that it was initialised from, and so on while they exist."""
    yield config, log
    while (run := config.init_from) and (run / "config.json").exists() and (run / "metrics.jsonl").exists():
        config = load_config(run / "config.json")
        yield config, read_log(run / "metrics.jsonl")


def format_si(value: float, unit: str = "") -> str:
    """Formats three significant digits with an SI prefix, for example `578 k` or `320 TFLOP`."""
    rounded = float(f"{value:.3g}")
    power = min(int(math.log10(rounded) // 3), 6) if rounded >= 1 else 0
    return f"{rounded / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P', 'E')[power]}{unit}".rstrip()


def format_seconds(value: float) -> str:
    if value >= 2 * 3600:
        return f"{value / 3600:.1f} h"
    return f"{value / 60:.0f} min" if value >= 600 else f"{value:.0f} s"


COST: dict[str, Callable[[float], str]] = {
    "steps": "{:,.0f}".format,
    "training time": format_seconds,
    "tokens": format_si,
    "model FLOPs": lambda value: format_si(value, "FLOP"),
    "trained parameters": format_si,
    "frozen parameters": format_si,
    "tokens/s": "{:,.0f}".format,
    "evaluation": format_seconds,
}
"""Column of a table of costs -> its formatting."""
