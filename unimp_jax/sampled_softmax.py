"""Sampled softmax: in training, an answer is compared with a sample of new tokens instead of all.

The contribution of a drawn token to the softmax's sum is divided by its expected number of draws, so that the
expectation of the sum is the sum over all tokens (Bengio and Senecal 2008, "Adaptive importance sampling"; also known
as the logQ correction).
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from unimp_jax.model.decoder import EmbeddingTables
from unimp_jax.objective import Head, ObjectiveConfig

EXCLUDED = -1e30
"""A logit that contributes nothing to a softmax yet is finite, so that no gradient is NaN."""


class Sample(NamedTuple):
    """S new tokens, drawn with replacement.

    Attributes:
      tokens_S: int32.
      log_expected_S: float32, the logarithm of the expected number of draws of each token.
    """

    tokens_S: jax.Array
    log_expected_S: jax.Array


def draw_sample(key: jax.Array, config: ObjectiveConfig, tables: EmbeddingTables) -> Sample:
    """Draws a sample of new tokens.

    Raises:
      ValueError: There are no new tokens.
    """
    if tables.new is None:
        raise ValueError("objective: sampled_tokens samples from the new tokens, but this model has none")
    new_tokens = tables.new.shape[0]
    numbers_S, p_S = draw_numbers(key, config.sampled_tokens, new_tokens, config.sampler)
    return Sample(tables.vocab_size + numbers_S, jnp.log(config.sampled_tokens * p_S))


def draw_numbers(
    key: jax.Array, count: int, end: int, sampler: Literal["uniform", "log_uniform"]
) -> tuple[jax.Array, jax.Array]:
    """Draws with replacement: (int32 [count] numbers from 0 to below `end`; float32 [count], their probabilities).
    Log-uniform numbers n have the probability log((n + 2) / (n + 1)) / log(end + 1)."""
    if sampler == "uniform":
        return jax.random.randint(key, (count,), 0, end), jnp.full(count, 1 / end)
    # A uniform float32 has 2^23 values, too few for millions of numbers: a second one spreads each over 16 steps.
    log_end, (coarse_S, fine_S) = jnp.log(end + 1.0), jax.random.uniform(key, (2, count))
    drawn_S = jnp.exp(coarse_S * log_end)
    whole_S = jnp.floor(drawn_S)  # added up as integers: float32 lacks those above 2^24
    rest_S = jnp.floor(drawn_S - whole_S + drawn_S * (fine_S - 0.5) * log_end * 2**-19)
    drawn = whole_S.astype(jnp.int32) + rest_S.astype(jnp.int32) - 1
    numbers = jnp.clip(drawn, 0, end - 1)
    return numbers, jnp.log1p(1 / (numbers + 1.0)) / jnp.log(end + 1.0)


def sampled_head(
    tables: EmbeddingTables, hidden_BAD: jax.Array, targets_BA: jax.Array, sample: Sample
) -> tuple[Head, Any, jax.Array]:
    """Returns inputs for `unimp_jax.objective.chunked_loss`: (head, its parameters, [B, A, 2 D]).

    The row of an answer's own token is concatenated to its hidden state. Its logit comes first, followed by all base
    tokens and the sample, in which the token is excluded.
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
