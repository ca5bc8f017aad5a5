"""Steps that would do harm are skipped: a loss or a gradient that is not finite, or a gradient that is a spike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """Which steps are skipped, and how many are too many."""

    spike: float = 20.0
    """A gradient norm of more than so many times its running mean is a spike; 0: none is."""
    memory: float = 0.98
    """Decay of the running mean at each step."""
    after: int = 50
    """Good steps before the running mean is used."""
    patience: int = 20
    """The run stops after so many consecutive skips."""

    def __post_init__(self) -> None:
        if (self.spike and self.spike <= 1) or not 0 <= self.memory < 1 or self.patience < 1:
            raise ValueError(
                f"guard: spike {self.spike} is 0 or above 1, memory {self.memory} at least 0 and below 1, "
                f"patience {self.patience} at least 1"
            )


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Guard:
    """What the guard knows of the steps so far.

    Attributes:
      usual_norm: float32 scalar, the running mean of the gradient norms of good steps.
      good: int32 scalar, the number of good steps.
      skipped: int32 scalar, the number of skipped steps.
      consecutive_skips: int32 scalar, the number of skipped steps since the last good one.
    """

    usual_norm: jax.Array
    good: jax.Array
    skipped: jax.Array
    consecutive_skips: jax.Array

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, jax.Array], ...], None]:
        names = ("usual_norm", "good", "left_out", "in_a_row")  # under which checkpoints have always held them
        values = (self.usual_norm, self.good, self.skipped, self.consecutive_skips)
        return tuple(zip(map(jax.tree_util.GetAttrKey, names), values, strict=True)), None

    @classmethod
    def tree_unflatten(cls, _: None, values: Iterable[Any]) -> Guard:
        return cls(*values)


def new_guard() -> Guard:
    """The guard before the first step."""
    good, skipped, consecutive_skips = (jnp.zeros((), jnp.int32) for _ in range(3))  # not one array, to be donated
    return Guard(jnp.zeros((), jnp.float32), good, skipped, consecutive_skips)


def judge(config: GuardConfig, guard: Guard, loss: jax.Array, gradient_norm: jax.Array) -> tuple[jax.Array, Guard]:
    """Returns (whether the step is good, bool scalar; the guard after it)."""
    good = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    if config.spike:
        good &= (guard.good < config.after) | (gradient_norm <= config.spike * guard.usual_norm)
    mean = config.memory * guard.usual_norm + (1 - config.memory) * gradient_norm
    mean = jnp.where(guard.good == 0, gradient_norm, mean)
    return good, Guard(
        usual_norm=jnp.where(good, mean, guard.usual_norm),
        good=guard.good + good,
        skipped=guard.skipped + ~good,
        consecutive_skips=jnp.where(good, 0, guard.consecutive_skips + 1),
    )


class TrainingError(RuntimeError):
    """Training cannot make progress any more; the message is one line."""


def check_skips(
    patience: int, option: str, step: int, consecutive_skips: Mapping[str, int], latest: Callable[[], int | None]
) -> None:
    """Ends a run whose steps are all skipped.

    Args:
      patience: the number of consecutive skips at which the run ends.
      option: the name of the option that says what a spike is, for the message.
      step: the number of the step that was done last.
      consecutive_skips: counts by whose steps were skipped, in words that follow "steps".
      latest: the step of the latest checkpoint, None where there is none; asked for only where the run ends.

    Raises:
      TrainingError: one of the counts has reached the limit.
    """
    for whose, count in consecutive_skips.items():
        if count >= patience:
            saved = latest()
            kept = "nothing was saved yet" if saved is None else f"the checkpoint of step {saved} holds none of them"
            raise TrainingError(
                f"step {step}: the last {count} steps{whose} were skipped, because their loss or gradient is not "
                f"finite or far above the usual; {kept}: look at the data, or, in a new folder, lower "
                f"optimizer.learning_rate or raise {option}"
            )
