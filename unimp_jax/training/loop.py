"""The training loop: take a batch, step, log, validate, save, until the last step or until asked to end."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax

from unimp_jax.training.checkpoint import Checkpoints
from unimp_jax.training.host_times import across_hosts
from unimp_jax.training.log import RunLog
from unimp_jax.training.preemption import EndRequest, print_saved
from unimp_jax.training.prefetch import Prefetcher
from unimp_jax.training.profile import Profile
from unimp_jax.training.watchdog import Watchdog
from unimp_jax.training.window import Window


class HasStep(Protocol):
    """A training state: a dataclass of arrays."""

    @property
    def step(self) -> jax.Array:
        """The number of steps done, an int32 scalar."""


State = TypeVar("State", bound=HasStep)


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long, and how often what."""

    steps: int = 1000
    log_every: int = 10
    """Steps that a row of the log sums up."""
    validate_every: int = 200
    """Steps between validations; each is followed by a checkpoint."""
    save_every: int = 200
    """Steps between checkpoints."""
    profile_steps: tuple[int, int] | None = None
    """First and last step to be profiled by jax.profiler, into `profile` in the folder of the run."""
    hang_seconds: float | None = None
    """A step, validation or save that takes longer ends the run, with the stacks of its threads (`Watchdog`)."""
    wandb: str | None = None
    """A project of Weights & Biases that the log is sent to as well; needs 'unimp_jax[wandb]'."""

    def __post_init__(self) -> None:
        if min(self.steps, self.log_every, self.validate_every, self.save_every) < 1:
            raise ValueError("steps, log_every, validate_every and save_every must be 1 or more")
        if self.hang_seconds is not None and self.hang_seconds <= 0:
            raise ValueError(f"hang_seconds {self.hang_seconds} must be above 0")
        if self.profile_steps is not None and not 1 <= self.profile_steps[0] <= self.profile_steps[1]:
            raise ValueError(f"profile_steps {self.profile_steps} must be the first step, at least 1, and the last")
        for name in ("validate_every", "save_every"):
            if getattr(self, name) % self.log_every:  # a run that is interrupted would log other rows
                raise ValueError(f"{name} {getattr(self, name)} must be a multiple of log_every {self.log_every}")


def train(
    state: State,
    train_step: Callable[[State, Any], tuple[State, Any]],
    batches: Prefetcher,
    validate: Callable[[State], dict[str, float]],
    *,
    config: LoopConfig,
    window: Window,
    check_skips: Callable[[int, dict[str, int], Callable[[], int | None]], None],
    checkpoints: Checkpoints,
    log: RunLog,
    end: EndRequest,
) -> tuple[State, bool]:
    """Trains from `state` to the last step, or until the `end` is requested, and saves.

    A run that was killed and is started again passes through the same parameters and losses, bit for bit, as one that
    never was: data position, optimizer and step are restored, and randomness is a function of seed and step.

    Args:
      state: parameters, optimizer state and whatever else changes from step to step.
      train_step: (state, batch on the devices) -> (state, metrics); it is compiled, and the state may be donated.
      batches: from the position of `state` on.
      validate: state -> metrics, among them the one that determines the best checkpoint.
      window: sums steps up for the log; it holds those that an interrupted process had not logged yet.
      check_skips: ends the run after too many consecutive skips (`unimp_jax.training.guard.check_skips`).

    Returns:
      (the state after the last step that was done, whether all steps are).

    Raises:
      TrainingError: too many consecutive steps were skipped.
      CheckpointError: a checkpoint could not be written.
    """
    done = saved = int(state.step)

    def save_and_end(step: int) -> None:
        log.flush()  # in a store, the log is there as far as the checkpoint
        checkpoints.save(step, state, window.notes())
        checkpoints.wait()
        print_saved(step)

    def measure(step: int) -> dict[str, float]:
        watchdog.begin(step, "validating")
        with end.ends_after(lambda: save_and_end(step)) if step > saved else contextlib.nullcontext():
            metrics = validate(state)
        log.write(step, "validation", metrics)
        return metrics

    watchdog = Watchdog(config.hang_seconds)
    with watchdog, contextlib.closing(Profile(config.profile_steps, log.folder / "profile")) as profile:
        due = done and (done % config.validate_every == 0 or done == config.steps) and jax.process_count() == 1
        if due and not log.has(done, "validation"):  # the process before was asked to end while it validated
            checkpoints.note_metrics(done, measure(done))
        if done < config.steps:
            batches.fetch(None)
        end.listen()
        for step in range(done + 1, config.steps + 1):
            last = step == config.steps
            if end.at(step):
                if step - 1 > saved:
                    log.flush()
                    checkpoints.save(step - 1, state, window.notes())
                return state, False
            watchdog.begin(step, "waiting for data")
            loaded, batch = batches.take()
            watchdog.begin(step, "computing")
            profile.before(step, state)
            state, metrics = train_step(state, batch)
            if not last:
                batches.fetch(metrics.loss)
            profile.after(step, state)
            window.add(loaded, metrics)
            if last or step % config.log_every == 0:
                row, skips = window.close(waited := batches.waited())
                log.write(step, "train", {**row, **across_hosts(watchdog.spent(waited))})
                log.progress(step, window.progress(row))
                check_skips(step, skips, checkpoints.latest)
            validates = last or step % config.validate_every == 0
            measured = measure(step) if validates else None
            if validates or step % config.save_every == 0:
                watchdog.begin(step, "saving")
                log.flush()
                checkpoints.save(step, state, window.notes(), measured)
                saved = step
            window.restart_clock()
    return state, True
