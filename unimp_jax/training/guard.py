"""Skips harmful steps: those with a loss or gradient that is not finite, or with a spike of the gradient norm."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """Which steps are skipped, and how many consecutive skips end the run."""

    spike: float = 20.0
    """A gradient norm above this multiple of its running mean is a spike; 0 disables the check."""
    memory: float = 0.98
    """Decay of the running mean per step."""
    after: int = 50
    """Number of good steps before the running mean is used, at least 1."""
    patience: int = 20
    """Number of consecutive skips after which the run stops."""

    def __post_init__(self) -> None:
        if (self.spike and (self.spike <= 1 or self.after < 1)) or not 0 <= self.memory < 1 or self.patience < 1:
            raise ValueError(
                f"guard: spike {self.spike} must be 0 or above 1, memory {self.memory} at least 0 and below 1, "
                f"after {self.after} (unless spike is 0) and patience {self.patience} at least 1"
            )


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Guard:
    """State of the guard after the steps so far.

    Attributes:
      usual_norm: float32 scalar, running mean of the gradient norms of good steps.
      good: int32 scalar, number of good steps.
      skipped: int32 scalar, number of skipped steps.
      consecutive_skips: int32 scalar, number of skipped steps since the last good one.
    """

    usual_norm: jax.Array
    good: jax.Array
    skipped: jax.Array
    consecutive_skips: jax.Array

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, jax.Array], ...], None]:
        names = ("usual_norm", "good", "left_out", "in_a_row")  # the names used in checkpoints
        values = (self.usual_norm, self.good, self.skipped, self.consecutive_skips)
        return tuple(zip(map(jax.tree_util.GetAttrKey, names), values, strict=True)), None

    @classmethod
    def tree_unflatten(cls, _: None, values: Iterable[Any]) -> Self:
        return cls(*values)


def new_guard() -> Guard:
    """Returns the guard before the first step."""
    good, skipped, consecutive_skips = (jnp.zeros((), jnp.int32) for _ in range(3))  # separate arrays, to be donated
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
    """Ends a run with too many consecutive skipped steps.

    Args:
      patience: Number of consecutive skips at which the run ends.
      option: Name of the option that defines a spike, for the message.
      step: Number of the last step that was done.
      consecutive_skips: Counts by a label of whose steps were skipped, which follows the word "steps" in the message.
      latest: Returns the step of the latest checkpoint, None if there is none; called only if the run ends.

    Raises:
      TrainingError: One of the counts has reached the limit.
    """
    for whose, count in consecutive_skips.items():
        if count >= patience:
            saved = latest()
            kept = "nothing was saved yet" if saved is None else f"the checkpoint of step {saved} is older than these"
            raise TrainingError(
                f"step {step}: the last {count} steps{whose} were skipped, because their loss or gradient is not "
                f"finite or far above the usual; {kept}: check the data, or, in a new folder, lower "
                f"optimizer.learning_rate or raise {option}"
            )
