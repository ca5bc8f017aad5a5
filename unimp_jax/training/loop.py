"""The training loop: loads a batch, steps, logs, validates and saves until the last step or a request to end."""

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
        """Number of completed steps, an int32 scalar."""


State = TypeVar("State", bound=HasStep)


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Number of training steps, and how often to log, validate and save."""

    steps: int = 1000
    log_every: int = 10
    """Number of steps per row of the log."""
    validate_every: int = 200
    """Steps between validations; each is followed by a checkpoint."""
    save_every: int = 200
    """Steps between checkpoints."""
    profile_steps: tuple[int, int] | None = None
    """First and last step to profile with jax.profiler, into `profile` in the folder of the run."""
    hang_seconds: float | None = None
    """Seconds after which a step, validation or save ends the run and prints the stacks of its threads (`Watchdog`)."""
    wandb: str | None = None
    """Weights & Biases project to which the log is also sent; needs 'unimp_jax[wandb]'."""

    def __post_init__(self) -> None:
        if min(self.steps, self.log_every, self.validate_every, self.save_every) < 1:
            raise ValueError("steps, log_every, validate_every and save_every must be 1 or more")
        if self.hang_seconds is not None and self.hang_seconds <= 0:
            raise ValueError(f"hang_seconds {self.hang_seconds} must be above 0")
        if self.profile_steps is not None and not 1 <= self.profile_steps[0] <= self.profile_steps[1]:
            raise ValueError(
                f"profile_steps {self.profile_steps} must be the first step, at least 1, and the last, not before it"
            )
        for name in ("validate_every", "save_every"):
            if getattr(self, name) % self.log_every:  # an interrupted run would log other rows
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

    A killed and restarted run passes through the same parameters and losses, bit for bit, as an uninterrupted one: data
    position, optimizer and step are restored, and randomness is a function of seed and step.

    Args:
      state: Parameters, optimizer state and anything else that changes from step to step.
      train_step: (state, batch on the devices) -> (state, metrics), compiled; the state may be donated.
      batches: Batches from the position of `state` on.
      validate: state -> metrics, including the one that determines the best checkpoint.
      window: Accumulates steps for the log, including those that an interrupted process had not logged yet.
      check_skips: Ends the run after too many consecutive skips (`unimp_jax.training.guard.check_skips`).

    Returns:
      (the state after the last completed step, whether all steps are completed).

    Raises:
      TrainingError: Too many consecutive steps were skipped.
      CheckpointError: A checkpoint could not be written.
    """
    done = saved = int(state.step)

    def save_and_end(step: int) -> None:
        log.flush()  # the stored log must cover the checkpoint
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
        if due and not log.has(done, "validation"):  # the last process was asked to end during validation
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
