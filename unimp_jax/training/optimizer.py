"""AdamW with a cosine schedule, as in the reference implementation."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with gradient clipping, linear warm-up and cosine decay."""

    learning_rate: float = 2e-4
    """Peak learning rate of the schedule."""
    warmup: float = 0.01
    """Fraction of all steps during which the rate rises linearly from 0."""
    final: float = 0.0
    """Learning rate at the last step, as a fraction of the peak."""
    weight_decay: float = 0.1
    """Decoupled weight decay, multiplied by the learning rate."""
    decay: Literal["gated", "matrices"] = "gated"
    """Which matrices decay: those of the gated blocks (as in the reference; without such blocks, none), or all except
    embeddings and adapters."""
    clip: float = 1.0
    """Maximum global norm of the gradient."""
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.clip <= 0:
            raise ValueError(f"learning_rate {self.learning_rate} and clip {self.clip} must be above 0")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup {self.warmup} must be a share of all steps between 0 and 1")


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the schedule, step -> learning rate, over `steps` optimizer steps."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(max(round(config.warmup * steps), 1), max(steps, 2) - 1),
        decay_steps=max(steps, 2),
        end_value=config.final * config.learning_rate,
    )


def make_optimizer(
    config: OptimizerConfig, steps: int, decays: Callable[[Any, jax.Array], bool]
) -> optax.GradientTransformation:
    """Returns the optimizer; `decays(path, parameter)` says whether weight decay applies to a parameter."""

    def mask(parameters: Any) -> Any:
        return jax.tree_util.tree_map_with_path(decays, parameters)

    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            learning_rate_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=mask,
        ),
    )
