"""The loss: focal cross entropy on answer tokens, normalised by the answers of the whole global batch.

Section 3 of the UniMP paper (ICLR 2024): each answer token costs  w (1 - p)^gamma (-log p),  with p the model's
probability of the right token and w the weight of its task; gradients flow through both factors.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The loss of one answer token."""

    gamma: float = 2.0
    """Focusing exponent; 0 is plain cross entropy."""


def token_losses(logits: jax.Array, targets: jax.Array, gamma: float) -> tuple[jax.Array, jax.Array]:
    """Focal and plain cross entropy of each answer, before weights.

    Args:
      logits: [..., V], any float type; the softmax is computed in float32.
      targets: int32 [...].

    Returns:
      (focal, plain): float32 [...] each, in nats.
    """
    logits = logits.astype(jnp.float32)
    right = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    log_p = right - jax.nn.logsumexp(logits, axis=-1)
    if gamma == 0:
        return -log_p, -log_p
    # Where p is 1 to the last bit, the factor's own slope is infinite for gamma < 1 although the product's is 0.
    wrong = jnp.maximum(-jnp.expm1(log_p), 1e-7)
    return -(wrong**gamma) * log_p, -log_p


def weighted_loss(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, *, gamma: float, num_answers: jax.Array
) -> jax.Array:
    """Sum of weighted answer losses over `num_answers`, the answer tokens of the whole global batch: float32 scalar.

    With the denominator given, micro-batches and devices just add up.

    Args:
      logits: [B, A, V].
      targets: int32 [B, A].
      weights: float32 [B, A], 0 where there is no answer.
    """
    focal, _ = token_losses(logits, targets, gamma)
    return jnp.where(weights > 0, weights * focal, 0.0).sum() / num_answers


def count_answers(weights: jax.Array) -> jax.Array:
    """Answer tokens in a batch, at least 1 so that a batch without answers costs 0: float32 scalar."""
    return jnp.maximum((weights > 0).sum(), 1).astype(jnp.float32)
