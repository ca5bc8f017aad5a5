"""The loop that trains a VQGAN: step, log, validate and save until the last step, or until asked to end."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from unimp_jax.image_tokens.training import VQGANMetrics, VQGANState
from unimp_jax.training.checkpoint import Checkpoints
from unimp_jax.training.log import RunLog
from unimp_jax.training.loop import LoopConfig, TrainingError, validation_is_due
from unimp_jax.training.preemption import EndRequest


@dataclasses.dataclass(frozen=True)
class VQGANRun:
    """What the loop drives.

    Attributes:
      step: the compiled step.
      frozen: the perceptual model's parameters.
      batches: steps done -> batches of images from there on, uint8 [B, H, W, 3].
      to_device: such a batch on the devices.
      codes_after: steps done when codewords are placed; None: there are some.
      place_codewords: the state with codewords in it.
      validate: the VQGAN's parameters -> metrics, among them the one that tells the best checkpoint.
    """

    step: Callable[[VQGANState, Any, jax.Array], tuple[VQGANState, VQGANMetrics]]
    frozen: Any
    batches: Callable[[int], Iterator[np.ndarray]]
    to_device: Callable[[np.ndarray], jax.Array]
    codes_after: int | None
    place_codewords: Callable[[VQGANState], VQGANState]
    validate: Callable[[Any], dict[str, float]]


def train_vqgan(
    state: VQGANState, run: VQGANRun, config: LoopConfig, patience: int, checkpoints: Checkpoints, log: RunLog,
    end: EndRequest,
) -> tuple[VQGANState, bool]:  # fmt: skip
    """Trains from `state` to the last step, or until the `end` is asked for, and saves.

    A batch is a function of the step, and so is all randomness: a run that was killed goes on bit for bit. Asked to
    end, it ends with the line of the log that it is at, so that lines are of as many steps as they always are.

    Args:
      patience: it ends when so many steps in a row were left out.

    Returns:
      (the state after the last step that was done, whether all steps are).

    Raises:
      TrainingError: so many were.
    """
    done = int(state.step)
    batches, window = run.batches(done), list[VQGANMetrics]()

    def measure(step: int) -> dict[str, float]:
        def save() -> None:
            checkpoints.save(step, state, {})
            checkpoints.wait()
            log.flush()
            print(f"asked to end: step {step} is saved; the same command goes on", flush=True)

        with end.ends_after(save) if step > done else contextlib.nullcontext():
            measured = run.validate(state.model)
        log.write(step, "validation", measured)
        return measured

    if validation_is_due(done, config, log):
        checkpoints.note_metrics(done, measure(done))
    for step in range(done + 1, config.steps + 1):
        if step - 1 == run.codes_after:
            state = run.place_codewords(state)
        state, metrics = run.step(state, run.frozen, run.to_device(next(batches)))
        end.listen()  # the first step is compiled when it is called
        if window:
            window[-1].loss.block_until_ready()  # no more than two batches lie on the devices
        window.append(metrics)
        last = step == config.steps
        if step % config.log_every and not last:
            continue
        logged, window = means(window), []
        log.write(step, "train", logged)
        log.progress(step, {name: f"{logged[name]:.4f}" for name in ("loss", "squared", "codes")})
        for whose in ("", "discriminator_"):
            if logged[f"{whose}left_out_in_a_row"] >= patience:
                raise TrainingError(
                    f"step {step}: the last {logged[f'{whose}left_out_in_a_row']:.0f} steps"
                    f"{' of the discriminator' if whose else ''} were left out, for their loss or gradient is no "
                    "number or far above the usual; in a new folder, lower optimizer.learning_rate or raise guard.spike"
                )
        validates, ends = last or step % config.validate_every == 0, end.at(step)
        measured = measure(step) if validates else None
        if validates or ends or step % config.save_every == 0:
            checkpoints.save(step, state, {}, measured)
        if ends and not last:
            return state, False
    return state, True


def means(window: list[VQGANMetrics]) -> dict[str, float]:
    """Of the steps of a line; of steps left out, also those of the discriminator alone, how many, and how many of them
    were the last ones in a row."""
    columns = {
        name: np.array([np.asarray(getattr(metrics, name)) for metrics in window], np.float64)
        for name in VQGANMetrics.__dataclass_fields__
    }
    counted = {}
    for whose in ("", "discriminator_"):
        counted[f"{whose}steps_left_out"] = float(columns.pop(f"{whose}left_out").sum())
        counted[f"{whose}left_out_in_a_row"] = float(columns.pop(f"{whose}left_out_in_a_row")[-1])
    return {name: float(values.mean()) for name, values in columns.items()} | counted
