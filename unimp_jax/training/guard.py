"""Steps that would do harm are left out: a loss or a gradient that is no number, or far above the usual."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """Which steps are left out, and how many are too many."""

    spike: float = 20.0
    """A gradient norm of more than so many times its running mean is a spike; 0: none is."""
    memory: float = 0.98
    """Of the running mean: what it keeps at each step."""
    after: int = 50
    """Good steps before the running mean is believed."""
    patience: int = 20
    """The run stops after so many steps in a row that were left out."""

    def __post_init__(self) -> None:
        if (self.spike and self.spike <= 1) or not 0 <= self.memory < 1 or self.patience < 1:
            raise ValueError(
                f"guard: spike {self.spike} is 0 or above 1, memory {self.memory} at least 0 and below 1, "
                f"patience {self.patience} at least 1"
            )


@flax.struct.dataclass
class Guard:
    """What is known of the steps so far.

    Attributes:
      usual_norm: float32 scalar, the running mean of good steps' gradient norms.
      good: int32 scalar, how many good steps there were.
      left_out: int32 scalar, how many others.
      in_a_row: int32 scalar, how many of those since the last good one.
    """

    usual_norm: jax.Array
    good: jax.Array
    left_out: jax.Array
    in_a_row: jax.Array


def new_guard() -> Guard:
    """Before the first step."""
    good, left_out, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))  # arrays of their own, to be donated
    return Guard(jnp.zeros((), jnp.float32), good, left_out, in_a_row)


def judge(config: GuardConfig, guard: Guard, loss: jax.Array, gradient_norm: jax.Array) -> tuple[jax.Array, Guard]:
    """(whether the step is good, bool scalar; what is known after it)."""
    good = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    if config.spike:
        good &= (guard.good < config.after) | (gradient_norm <= config.spike * guard.usual_norm)
    mean = config.memory * guard.usual_norm + (1 - config.memory) * gradient_norm
    mean = jnp.where(guard.good == 0, gradient_norm, mean)
    return good, Guard(
        usual_norm=jnp.where(good, mean, guard.usual_norm),
        good=guard.good + good,
        left_out=guard.left_out + ~good,
        in_a_row=jnp.where(good, 0, guard.in_a_row + 1),
    )
