"""Sampled softmax: in training an answer is compared with some new tokens, in the place of all.

What the drawn ones add to the softmax's sum is divided by how often each is expected to be drawn, so that the
expectation of the sum is the sum over all (Bengio and Senecal 2008, "Adaptive importance sampling"; also known as the
logQ correction).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from unimp_jax.model.decoder import EmbeddingTables
from unimp_jax.objective import Head, ObjectiveConfig

EXCLUDED = -1e30
"""A logit that no softmax notices, yet finite, so that no gradient is NaN."""


class Sample(NamedTuple):
    """S new tokens, drawn with replacement.

    Attributes:
      tokens_S: int32.
      log_expected_S: float32, the logarithm of how often each is expected to be among S.
    """

    tokens_S: jax.Array
    log_expected_S: jax.Array


def draw_sample(key: jax.Array, config: ObjectiveConfig, tables: EmbeddingTables) -> Sample:
    """
    Raises:
      ValueError: there are no new tokens.
    """
    if tables.new is None:
        raise ValueError("objective: sampled_tokens are drawn of new tokens, and this model has none")
    new_tokens = tables.new.shape[0]
    numbers_S, p_S = draw_numbers(key, config.sampled_tokens, new_tokens, config.sampler)
    return Sample(tables.vocab_size + numbers_S, jnp.log(config.sampled_tokens * p_S))


def draw_numbers(
    key: jax.Array, count: int, end: int, sampler: Literal["uniform", "log_uniform"]
) -> tuple[jax.Array, jax.Array]:
    """(int32 [count] numbers from 0 to below `end`, with replacement; float32 [count], the probability of each).

    Log-uniform numbers n have the probability log((n + 2) / (n + 1)) / log(end + 1).
    """
    if sampler == "uniform":
        return jax.random.randint(key, (count,), 0, end), jnp.full(count, 1 / end)
    drawn = jnp.exp(jax.random.uniform(key, (count,)) * jnp.log(end + 1.0)).astype(jnp.int32) - 1
    numbers = jnp.clip(drawn, 0, end - 1)
    return numbers, jnp.log1p(1 / (numbers + 1.0)) / jnp.log(end + 1.0)


def sampled_head(
    tables: EmbeddingTables, hidden_BAD: jax.Array, targets_BA: jax.Array, sample: Sample
) -> tuple[Head, Any, jax.Array]:
    """What `unimp_jax.objective.chunked_loss` takes: (head, its parameters, [B, A, 2 D]).

    The row of an answer's own token travels beside its hidden state. Among the logits it comes first, then all base
    tokens and the sample, in neither of which it counts again.
    """
    graph, base = nnx.split(tables.without_new())
    rows_SD = tables.head_rows(sample.tokens_S)
    both_BAE = jnp.concatenate([hidden_BAD, tables.head_rows(targets_BA)], axis=-1)

    def head(parameters: Any, both: jax.Array, targets: jax.Array, sample: Sample) -> tuple[Any, jax.Array]:
        base, rows_SD = parameters
        hidden, own = jnp.split(both, 2, axis=-1)
        own_logits = jnp.einsum("bad,bad->ba", hidden, own, preferred_element_type=jnp.float32)[..., None]
        base_logits = nnx.merge(graph, base).logits(hidden)
        is_own = jnp.arange(base_logits.shape[-1]) == targets[..., None]
        sampled = jnp.einsum("bad,sd->bas", hidden, rows_SD, preferred_element_type=jnp.float32) - sample.log_expected_S
        return (
            own_logits,
            jnp.where(is_own, EXCLUDED, base_logits),
            jnp.where(sample.tokens_S == targets[..., None], EXCLUDED, sampled),
        ), jnp.zeros_like(targets)

    return head, (base, rows_SD), both_BAE
