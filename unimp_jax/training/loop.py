"""The training loop: step, log, validate and save until the last step, or until asked to end."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from unimp_jax.batch import Batch
from unimp_jax.training.checkpoint import Checkpoints
from unimp_jax.training.feed import Feed
from unimp_jax.training.log import RunLog, read_log
from unimp_jax.training.preemption import EndRequest
from unimp_jax.training.profile import Profile
from unimp_jax.training.step import StepMetrics, TrainState


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
    profile_steps: tuple[int, int] | None = None
    """First and last step to be profiled by jax.profiler, into `profile` in the folder of the run."""

    def __post_init__(self) -> None:
        if min(self.steps, self.log_every, self.validate_every, self.save_every) < 1:
            raise ValueError("steps, log_every, validate_every and save_every must be 1 or more")
        if self.profile_steps is not None and not 1 <= self.profile_steps[0] <= self.profile_steps[1]:
            raise ValueError(f"profile_steps {self.profile_steps} must be the first step, at least 1, and the last")
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
    @property
    def left_out(self) -> Mapping[str, int]: ...  # examples, by why they could not be trained on


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop drives.

    Attributes:
      step: the compiled train step.
      batches: (position notes of a checkpoint, or None for the beginning) -> batches from there on.
      to_device: a process's share of a batch -> global arrays.
      validate: trainable parameters -> metrics, among them the metric that tells the best checkpoint.
      tasks: the tasks' names, for the log.
      flops: of a step, all devices, by `unimp_jax.model.flops`.
      peak_flops: a second, all devices together.
      tokens: token slots of a global batch.
    """

    step: Callable[[TrainState, Any, Batch], tuple[TrainState, StepMetrics]]
    batches: Callable[[dict[str, int] | None], Iterator[Any]]
    to_device: Callable[[dict[str, np.ndarray]], Batch]
    validate: Callable[[Any], dict[str, float]]
    tasks: Sequence[str]
    flops: float
    peak_flops: float
    tokens: int


class TrainingError(RuntimeError):
    """Training makes no sense any more, told in one line."""


def train(
    state: TrainState, notes: dict[str, Any] | None, frozen: Any, run: Run, config: LoopConfig, patience: int,
    checkpoints: Checkpoints, log: RunLog, end: EndRequest,
) -> tuple[TrainState, bool]:  # fmt: skip
    """Trains from `state` to the last step, or until the `end` is asked for, and saves.

    A run that was killed and is started again passes through the same parameters and losses, bit for bit, as one that
    never was: data position, optimizer and step are restored, and randomness is a function of seed and step.

    Args:
      notes: of the checkpoint that `state` comes from; None at the beginning.
      patience: it ends when so many steps in a row were left out.

    Returns:
      (the state after the last step that was done, whether all steps are).

    Raises:
      TrainingError: so many were.
    """
    here: dict[str, Any] = notes or {"position": None, "window": []}
    batches = run.batches(here["position"])
    feed = Feed(batches, run.to_device)
    window = _Window(run, here["window"], feed)
    saved = int(state.step)
    profile = Profile(config.profile_steps, log.path.parent / "profile")

    def measure(step: int) -> dict[str, float]:
        def save() -> None:
            checkpoints.save(step, state, here | {"window": window.notes()})
            checkpoints.wait()
            log.flush()
            print(f"asked to end: step {step} is saved; the same command goes on", flush=True)

        with end.ends_after(save) if step > saved else contextlib.nullcontext():
            measured = run.validate(state.trainable)
        log.write(step, "validation", measured)
        return measured

    try:
        if validation_is_due(saved, config, log):
            checkpoints.note_metrics(saved, measure(saved))
        if saved < config.steps:
            feed.fetch(None)
        end.listen()
        for step in range(saved + 1, config.steps + 1):
            if end.at(step):
                if step - 1 > saved:
                    checkpoints.save(step - 1, state, here | {"window": window.notes()})
                return state, False
            batch, arrays = feed.take()
            profile.before(step, state)
            state, metrics = run.step(state, frozen, arrays)
            if step < config.steps:
                feed.fetch(metrics.loss)
            profile.after(step, state)
            window.add(batch, metrics)
            here = {"position": dataclasses.asdict(batch.next_position)}
            if step % config.log_every == 0 or step == config.steps:
                logged, in_a_row = window.close()
                log.write(step, "train", logged)
                told = {"loss": f"{logged['loss']:.4f}", "tokens/s": f"{logged['tokens_per_second']:.0f}"}
                told["waiting for data"] = f"{logged['waiting_share']:.1%}"
                if logged["steps_left_out"]:
                    told["steps left out"] = f"{logged['steps_left_out']:.0f}"
                told |= {name: f"{count:.0f}" for name, count in logged.items() if name.startswith("left_out/")}
                log.progress(step, told)
                if in_a_row >= patience:
                    raise TrainingError(_hopeless(step, in_a_row, checkpoints.latest()))
            last = step == config.steps
            validates = step % config.validate_every == 0 or last
            measured = measure(step) if validates else None
            if validates or step % config.save_every == 0:
                checkpoints.save(step, state, here | {"window": window.notes()}, measured)
                saved = step
            window.resume()
    finally:
        profile.end()
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    return state, True


def validation_is_due(step: int, config: LoopConfig, log: RunLog) -> bool:
    """Whether the process before was asked to end while it validated at `step`: it saved and left that to this one."""
    if not step or (step % config.validate_every and step != config.steps) or jax.process_count() > 1:
        return False
    return all(line["step"] != step or line["kind"] != "validation" for line in read_log(log.path))


def _hopeless(step: int, in_a_row: int, latest: int | None) -> str:
    kept = "nothing was saved yet" if latest is None else f"the checkpoint of step {latest} holds none of them"
    return (
        f"step {step}: the last {in_a_row} steps were left out, for their loss or gradient is no number or far above "
        f"the usual; {kept}: look at the data, or, in a new folder, lower optimizer.learning_rate or raise "
        "training.guard.spike"
    )


@dataclasses.dataclass(frozen=True)
class _Counts:
    """Of one batch."""

    num_examples: int
    num_images: int
    fill: float
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)


class _Window:
    """Sums up the steps between two lines of the log."""

    def __init__(self, run: Run, notes: Sequence[dict[str, Any]], feed: Feed):
        """`notes`: of the steps that an interrupted process had not yet logged."""
        self._run, self._feed = run, feed
        self._metrics = [
            StepMetrics(
                **{name: np.asarray(x, np.float32) for name, x in (note.get("metrics") or note["figures"]).items()}
            )
            for note in notes  # "figures" is what checkpoints of earlier versions call them
        ]
        self._batches = [_Counts(**note["batch"]) for note in notes]
        self._own = 0  # of them, done by this process
        self._since = time.perf_counter()

    def notes(self) -> list[dict[str, Any]]:
        """What has not been logged yet, as JSON has it."""
        metrics = jax.device_get(self._metrics)
        return [
            {"metrics": {name: np.asarray(x).tolist() for name, x in vars(one).items()}, "batch": vars(batch)}
            for one, batch in zip(metrics, self._batches, strict=True)
        ]

    def add(self, batch: LoadedBatch, metrics: StepMetrics) -> None:
        self._metrics.append(metrics)
        self._batches.append(_Counts(batch.num_examples, batch.num_images, batch.fill, dict(batch.left_out)))
        self._own += 1

    def resume(self) -> None:
        """Validation and saving do not count as time of a step."""
        if not self._metrics:
            self._since = time.perf_counter()

    def close(self) -> tuple[dict[str, float], int]:
        """(the metrics since the last call, how many steps in a row have been left out); waits until all are done."""
        metrics = jax.device_get(self._metrics)
        seconds = time.perf_counter() - self._since
        own = self._batches[len(self._batches) - self._own :]
        answers = np.sum([one.task_answers for one in metrics], axis=0)
        entropy = np.sum([one.task_cross_entropy for one in metrics], axis=0)
        good = [one for one in metrics if not one.left_out]
        run = self._run
        examples = sum((Counter(batch.left_out) for batch in self._batches), Counter[str]())
        logged = {
            "loss": float(np.mean([one.loss for one in good])) if good else math.nan,
            "gradient_norm": float(np.mean([one.gradient_norm for one in good])) if good else math.nan,
            **{
                f"cross_entropy/{task}": float(entropy[number] / answers[number]) if answers[number] else math.nan
                for number, task in enumerate(run.tasks)
            },
            "steps_left_out": float(len(metrics) - len(good)),
            **{f"left_out/{kind}": float(count) for kind, count in sorted(examples.items())},
            "fill": float(np.mean([batch.fill for batch in self._batches])),
            "step_seconds": seconds / len(own),
            "waiting_share": self._feed.waited() / seconds,
            "tokens_per_second": sum(batch.fill for batch in own) * run.tokens / seconds,
            "examples_per_second": sum(batch.num_examples for batch in own) / seconds,
            "images_per_second": sum(batch.num_images for batch in own) / seconds,
            "answers_per_second": float(np.sum([one.task_answers for one in metrics[-len(own) :]])) / seconds,
            "mfu": run.flops * len(own) / seconds / run.peak_flops,
        }
        in_a_row = int(metrics[-1].left_out_in_a_row)
        self._metrics, self._batches, self._own = [], [], 0
        self._since = time.perf_counter()
        return logged, in_a_row
