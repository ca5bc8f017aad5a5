"""The training loop: restore, then step, log, validate and save until the last step."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from unimp_jax.batch import Batch
from unimp_jax.training.checkpoint import Checkpoints, abstract
from unimp_jax.training.log import RunLog
from unimp_jax.training.step import StepFigures, TrainState


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long, and how often what."""

    steps: int = 1000
    log_every: int = 10
    """Steps that a line of the log sums up."""
    validate_every: int = 200
    """Steps between validations; each is followed by a checkpoint."""
    save_every: int = 200
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        if min(self.steps, self.log_every, self.validate_every, self.save_every) < 1:
            raise ValueError("steps, log_every, validate_every and save_every must be 1 or more")
        for name in ("validate_every", "save_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(
                    f"{name} {getattr(self, name)} must be a multiple of log_every {self.log_every}, "
                    "so that a run that is interrupted logs the same lines"
                )


class LoadedBatch(Protocol):
    """What a data pipeline hands over (`data_pipelines.loader.TrainingBatch`)."""

    @property
    def arrays(self) -> dict[str, np.ndarray]: ...
    @property
    def next_position(self) -> Any: ...
    @property
    def num_examples(self) -> int: ...
    @property
    def num_images(self) -> int: ...
    @property
    def fill(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop drives.

    Attributes:
      step: the compiled train step.
      batches: (position notes of a checkpoint, or None for the beginning) -> batches from there on.
      to_device: a process's share of a batch -> global arrays.
      validate: trainable parameters -> figures, among them the metric that tells the best checkpoint.
      tasks: the tasks' names, for the log.
      flops: of a step, all devices, by `unimp_jax.model.flops`.
      peak_flops: a second, all devices together.
      tokens: token slots of a global batch.
    """

    step: Callable[[TrainState, Any, Batch], tuple[TrainState, StepFigures]]
    batches: Callable[[dict[str, int] | None], Iterator[Any]]
    to_device: Callable[[dict[str, np.ndarray]], Batch]
    validate: Callable[[Any], dict[str, float]]
    tasks: Sequence[str]
    flops: float
    peak_flops: float
    tokens: int


def train(
    state: TrainState, frozen: Any, run: Run, config: LoopConfig, checkpoints: Checkpoints, log: RunLog
) -> TrainState:
    """Trains from `state`, or from the latest checkpoint where there is one, to the last step.

    A run that was killed and is started again passes through the same parameters and losses, bit for bit, as one that
    never was: data position, optimizer and step are restored, and randomness is a function of seed and step.
    """
    position = None
    latest = checkpoints.latest()
    if latest is not None:
        state, notes = checkpoints.restore(latest, abstract(state))
        position = notes["position"]
    batches = run.batches(position)
    window = _Window(run)
    try:
        for step in range(int(state.step) + 1, config.steps + 1):
            batch = window.wait_for(batches)
            state, figures = run.step(state, frozen, run.to_device(batch.arrays))
            window.add(batch, figures)
            if step % config.log_every == 0 or step == config.steps:
                logged = window.close()
                log.write(step, "train", logged)
                log.progress(step, {"loss": f"{logged['loss']:.4f}", "tokens/s": f"{logged['tokens_per_second']:.0f}"})
            last = step == config.steps
            validates = step % config.validate_every == 0 or last
            measured = run.validate(state.trainable) if validates else None
            if measured is not None:
                log.write(step, "validation", measured)
            if validates or step % config.save_every == 0:
                notes = {"position": dataclasses.asdict(batch.next_position)}
                checkpoints.save(step, state, notes, measured)
            window.resume()
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    return state


class _Window:
    """Sums up the steps between two lines of the log."""

    def __init__(self, run: Run):
        self._run = run
        self._figures: list[StepFigures] = []
        self._batches: list[LoadedBatch] = []
        self._waited = 0.0
        self._since = time.perf_counter()

    def wait_for(self, batches: Iterator[LoadedBatch]) -> LoadedBatch:
        start = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - start
        return batch

    def add(self, batch: LoadedBatch, figures: StepFigures) -> None:
        self._figures.append(figures)
        self._batches.append(batch)

    def resume(self) -> None:
        """Validation and saving do not count as time of a step."""
        if not self._figures:
            self._since = time.perf_counter()

    def close(self) -> dict[str, float]:
        """The figures since the last call; waits until their steps are done."""
        figures = jax.device_get(self._figures)
        seconds = time.perf_counter() - self._since
        steps = len(figures)
        answers = np.sum([one.task_answers for one in figures], axis=0)
        entropy = np.sum([one.task_cross_entropy for one in figures], axis=0)
        run = self._run
        logged = {
            "loss": float(np.mean([one.loss for one in figures])),
            "gradient_norm": float(np.mean([one.gradient_norm for one in figures])),
            **{
                f"cross_entropy/{task}": float(entropy[number] / answers[number]) if answers[number] else float("nan")
                for number, task in enumerate(run.tasks)
            },
            "fill": float(np.mean([batch.fill for batch in self._batches])),
            "step_seconds": seconds / steps,
            "waiting_share": self._waited / seconds,
            "tokens_per_second": float(np.sum([batch.fill for batch in self._batches])) * run.tokens / seconds,
            "examples_per_second": sum(batch.num_examples for batch in self._batches) / seconds,
            "images_per_second": sum(batch.num_images for batch in self._batches) / seconds,
            "answers_per_second": float(answers.sum()) / seconds,
            "mfu": run.flops * steps / seconds / run.peak_flops,
        }
        self._figures, self._batches, self._waited = [], [], 0.0
        self._since = time.perf_counter()
        return logged
