"""The loss: focal cross entropy on answer tokens, normalised by the answers of the whole global batch.

Section 3 of the UniMP paper (ICLR 2024): each answer token costs  w (1 - p)^gamma (-log p),  with p the model's
probability of the right token and w the weight of its task; gradients flow through both factors.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The loss of one answer token."""

    gamma: float = 2.0
    """Focusing exponent; 0 is plain cross entropy."""
    chunk: int = 64
    """So many answers of each row are scored at a time, so that logits of all of them never exist at once."""


def token_losses(logits: jax.Array, targets: jax.Array, gamma: float) -> tuple[jax.Array, jax.Array]:
    """Focal and plain cross entropy of each answer, before weights.

    Args:
      logits: [..., V], any float type; the softmax is computed in float32.
      targets: int32 [...].

    Returns:
      (focal, plain): float32 [...] each, in nats. Only the focal one passes a gradient.
    """
    log_p = _log_probability(logits.astype(jnp.float32), targets)
    plain = -jax.lax.stop_gradient(log_p)
    if gamma == 0:
        return -log_p, plain
    # Where p is 1 to the last bit, the factor's own slope is infinite for gamma < 1 although the product's is 0.
    wrong = jnp.maximum(-jnp.expm1(log_p), 1e-7)
    return -(wrong**gamma) * log_p, plain


@jax.custom_vjp
def _log_probability(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """log softmax(logits)[targets], with a gradient written in one pass over the logits, without a scatter."""
    return _log_probability_forward(logits, targets)[0]


def _log_probability_forward(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    right = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    total = jax.nn.logsumexp(logits, axis=-1)
    return right - total, (logits, targets, total)


def _log_probability_backward(saved: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, None]:
    logits, targets, total = saved
    is_right = jnp.arange(logits.shape[-1]) == targets[..., None]
    return gradient[..., None] * (is_right - jnp.exp(logits - total[..., None])), None


_log_probability.defvjp(_log_probability_forward, _log_probability_backward)


def count_answers(weights: jax.Array) -> jax.Array:
    """Answer tokens in a batch, at least 1 so that a batch without answers costs 0: float32 scalar."""
    return jnp.maximum((weights > 0).sum(), 1).astype(jnp.float32)


Head = Callable[[Any, jax.Array], jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5, 6))
def chunked_loss(
    head: Head, parameters: Any, hidden_BAD: jax.Array, targets_BA: jax.Array, weights_BA: jax.Array, gamma: float,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """The sum of weighted answer losses of head(parameters, hidden), without ever holding all logits.

    With weights that are already divided by the answers of the whole global batch, micro-batches and devices add up.
    Gradients are taken chunk by chunk while its logits are there, and scaled when the backward pass comes; so the
    head is computed once, and memory does not grow with vocabulary times answers.

    Args:
      head: (parameters, [B, a, D]) -> logits [B, a, V].
      weights_BA: float32 [B, A], 0 where there is no answer.

    Returns:
      (the sum of weighted focal losses, float32 scalar; plain cross entropies, float32 [B, A], which pass no gradient).
    """
    return _chunked_forward(head, parameters, hidden_BAD, targets_BA, weights_BA, gamma, chunk)[0]


def _chunked_forward(
    head: Head, parameters: Any, hidden_BAD: jax.Array, targets_BA: jax.Array, weights_BA: jax.Array, gamma: float,
    chunk: int,
) -> tuple[tuple[jax.Array, jax.Array], Any]:  # fmt: skip
    """(what `chunked_loss` returns, the gradients of the loss with respect to parameters and hidden states)."""
    answers = targets_BA.shape[1]
    size = next(size for size in range(min(chunk, answers), 0, -1) if answers % size == 0)

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    def one(parameters: Any, hidden: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        focal, plain = token_losses(head(parameters, hidden), targets, gamma)
        return jnp.where(weights > 0, weights * focal, 0.0).sum(), plain

    def step(total: tuple[jax.Array, Any], part: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, Any], Any]:
        (loss, plain), (gradients, of_hidden) = jax.value_and_grad(one, argnums=(0, 1), has_aux=True)(parameters, *part)
        return jax.tree.map(jnp.add, total, (loss, gradients)), (plain, of_hidden)

    nothing = (jnp.float32(0), jax.tree.map(jnp.zeros_like, parameters))
    parts = tuple(map(split, (hidden_BAD, targets_BA, weights_BA)))
    (loss, gradients), (plain, of_hidden) = jax.lax.scan(step, nothing, parts)
    plain_BA, of_hidden_BAD = (
        jnp.moveaxis(x, 0, 1).reshape(like.shape) for x, like in ((plain, targets_BA), (of_hidden, hidden_BAD))
    )
    return (loss, plain_BA), (gradients, of_hidden_BAD)


def _chunked_backward(
    head: Head, gamma: float, chunk: int, gradients: Any, of_loss: tuple[jax.Array, jax.Array]
) -> tuple[Any, jax.Array, None, None]:
    of_parameters, of_hidden = jax.tree.map(lambda x: (of_loss[0] * x).astype(x.dtype), gradients)
    return of_parameters, of_hidden, None, None


chunked_loss.defvjp(_chunked_forward, _chunked_backward)
