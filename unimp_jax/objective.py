"""The loss: focal cross entropy on answer tokens, normalised by the number of answers in the whole global batch.

Section 3 of the UniMP paper (ICLR 2024): each answer token costs w (1 - p)^gamma (-log p), where p is the model's
probability of the right token and w the weight of its task; gradients flow through both factors.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The loss of an answer token."""

    gamma: float = 2.0
    """Focusing exponent; 0 is plain cross entropy."""
    chunk: int = 64
    """Number of answers per row that are scored at a time, so that the logits of all answers never exist at once."""
    sampled_tokens: int = 0
    """Number of new tokens, drawn anew each step, with which training compares an answer besides all base tokens
    (`unimp_jax.sampled_softmax`); 0: all new tokens. For catalogues of millions of items with one token each."""
    sampler: Literal["uniform", "log_uniform"] = "uniform"
    """How new tokens are drawn: uniformly, or with lower ids more often, like word2vec's candidates, for catalogues
    that list popular items first."""

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"objective: chunk {self.chunk} must be 1 or more")
        if self.sampled_tokens < 0:
            raise ValueError(f"objective: sampled_tokens {self.sampled_tokens} must be 0 or more")


Logits: TypeAlias = jax.Array | Sequence[jax.Array]
"""[..., V], or adjacent parts of it, which may be sharded differently."""


def token_losses(logits: Logits, targets: jax.Array, gamma: float) -> tuple[jax.Array, jax.Array]:
    """Returns focal and plain cross entropy of each answer, before weighting.

    Args:
      logits: Any float type; the softmax is computed in float32.
      targets: int32 [...], indices into all parts concatenated.

    Returns:
      (focal, plain): float32 [...] each, in nats. Only the focal one passes a gradient.
    """
    parts = (logits,) if isinstance(logits, jax.Array) else logits
    log_p = _log_probability(tuple(part.astype(jnp.float32) for part in parts), targets)
    plain = -jax.lax.stop_gradient(log_p)
    if gamma == 0:
        return -log_p, plain
    # If p rounds to 1, the factor's own slope is infinite for gamma < 1, although the product's is 0.
    wrong = jnp.maximum(-jnp.expm1(log_p), 1e-7)
    return -(wrong**gamma) * log_p, plain


Parts: TypeAlias = tuple[jax.Array, ...]


@jax.custom_vjp
def _log_probability(parts: Parts, targets: jax.Array) -> jax.Array:
    """Computes log softmax(logits)[targets]; the gradient takes one pass over the logits and no scatter."""
    return _log_probability_forward(parts, targets)[0]


def _log_probability_forward(parts: Parts, targets: jax.Array) -> tuple[jax.Array, Any]:
    if len(parts) == 1:
        right = jnp.take_along_axis(parts[0], targets[..., None], axis=-1)[..., 0]
        total = jax.nn.logsumexp(parts[0], axis=-1)
    else:  # columns are summed on their own devices; only the sums are communicated
        rights = [
            jnp.where(is_right, x, 0).sum(-1) for is_right, x in zip(_is_right(parts, targets), parts, strict=True)
        ]
        right = functools.reduce(jnp.add, rights)
        total = functools.reduce(jnp.logaddexp, [jax.nn.logsumexp(x, axis=-1) for x in parts])
    return right - total, (parts, targets, total)


def _is_right(parts: Parts, targets: jax.Array) -> list[jax.Array]:
    """Returns for each part, bool [..., v], where the target is."""
    begins = itertools.accumulate((part.shape[-1] for part in parts), initial=0)
    return [begin + jnp.arange(x.shape[-1]) == targets[..., None] for begin, x in zip(begins, parts, strict=False)]


def _log_probability_backward(saved: Any, gradient: jax.Array) -> tuple[Parts, None]:
    parts, targets, total = saved
    rights = _is_right(parts, targets)
    return tuple(
        gradient[..., None] * (is_right - jnp.exp(x - total[..., None]))
        for is_right, x in zip(rights, parts, strict=True)
    ), None


_log_probability.defvjp(_log_probability_forward, _log_probability_backward)


def count_answers(weights: jax.Array) -> jax.Array:
    """Counts answer tokens in a batch, at least 1 so that a batch without answers costs 0: float32 scalar."""
    return jnp.maximum((weights > 0).sum(), 1).astype(jnp.float32)


Head = Callable[[Any, jax.Array, jax.Array, Any], tuple[Logits, jax.Array]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5, 6))
def chunked_loss(
    head: Head, parameters: Any, hidden_BAD: jax.Array, targets_BA: jax.Array, weights_BA: jax.Array, gamma: float,
    chunk: int, constants: Any = (),
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Returns the sum of weighted answer losses of head(parameters, hidden), without ever holding all logits.

    If weights are already divided by the number of answers in the global batch, results of micro-batches and devices
    can be added. Gradients are computed chunk by chunk in the forward pass and scaled in the backward pass, so the head
    is computed once, and memory does not grow with vocabulary times answers.

    Args:
      head: (parameters, hidden [B, a, D], targets [B, a], constants) -> (logits [B, a, V], targets within them [B, a]).
      weights_BA: float32 [B, A], 0 where there is no answer.
      constants: Arrays that the head reads, which pass no gradient.

    Returns:
      (the sum of weighted focal losses, float32 scalar; plain cross entropies, float32 [B, A], which pass no gradient).
    """
    return _chunked_forward(head, parameters, hidden_BAD, targets_BA, weights_BA, gamma, chunk, constants)[0]


def _chunked_forward(
    head: Head, parameters: Any, hidden_BAD: jax.Array, targets_BA: jax.Array, weights_BA: jax.Array, gamma: float,
    chunk: int, constants: Any,
) -> tuple[tuple[jax.Array, jax.Array], Any]:  # fmt: skip
    """Returns (the result of `chunked_loss`, the gradients of the loss for parameters and hidden states)."""
    answers = targets_BA.shape[1]
    size = next(size for size in range(min(chunk, answers), 0, -1) if answers % size == 0)

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    def one(parameters: Any, hidden: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        focal, plain = token_losses(*head(parameters, hidden, targets, constants), gamma)
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
) -> tuple[Any, jax.Array, None, None, None]:
    of_parameters, of_hidden = jax.tree.map(lambda x: (of_loss[0] * x).astype(x.dtype), gradients)
    return of_parameters, of_hidden, None, None, None


chunked_loss.defvjp(_chunked_forward, _chunked_backward)
