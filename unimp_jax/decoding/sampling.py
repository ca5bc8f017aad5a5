"""One token after another, the most probable one or one drawn: greedy decoding and sampling."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from unimp_jax.batch import Batch
from unimp_jax.decoding.cache import nothing_said, read, say
from unimp_jax.model import UniMP


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen; as it stands, greedily."""

    temperature: float = 0.0
    """What logits are divided by before one is drawn; 0: the most probable token."""
    top_k: int = 0
    """Draw among the so many most probable tokens; 0: among all."""
    top_p: float = 1.0
    """Draw among the most probable tokens that together have at least this probability (nucleus, arXiv:1904.09751)."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"sampling: temperature and top_k must be at least 0, top_p in (0, 1], not {self}")


@flax.struct.dataclass
class Answers:
    """What was said to each prompt, W times.

    Attributes:
      tokens_BAWn: int32, the end included where one came, padding behind it.
      scores_BAW: float32, the sum of the tokens' log-probabilities under the model, whatever the temperature.
    """

    tokens_BAWn: jax.Array
    scores_BAW: jax.Array


def generate(
    model: UniMP, batch: Batch, new_tokens: int, sampling: SamplingConfig = SamplingConfig(), *,
    key: jax.Array | None = None, samples: int = 1, eos: int | None = None, pad: int = 0,
    latents_BNLC: jax.Array | None = None,
) -> Answers:  # fmt: skip
    """Continues each prompt, all `samples` of it from the same cache; jittable but for `batch` and `key`.

    Args:
      batch, latents_BNLC: as of `unimp_jax.decoding.cache.read`.
      new_tokens: at most so many.
      key: of what is drawn; needed where the temperature is above 0.
      eos: what ends an answer; None: nothing does.
      pad: what stands behind the end.
    """
    if sampling.temperature and key is None:
        raise ValueError("sampling at a temperature above 0 needs a key")
    hidden_BAD, prompts = read(model, batch, latents_BNLC)
    B, A = prompts.asked_BA.shape
    said = nothing_said(model.config, prompts, samples, new_tokens - 1)

    def choose(step: jax.Array | int, hidden_BAWD: jax.Array, answers: Answers, ended_BAW: jax.Array) -> Any:
        logits_BAWV = model.logits(hidden_BAWD)
        drawn_BAW = draw(logits_BAWV, sampling, None if key is None else jax.random.fold_in(key, step))
        token_BAW = jnp.where(ended_BAW, pad, drawn_BAW)
        log_p_BAW = log_probabilities(logits_BAWV, token_BAW[..., None])[..., 0]
        answers = Answers(
            answers.tokens_BAWn.at[..., step].set(token_BAW),
            answers.scores_BAW + jnp.where(ended_BAW, 0.0, log_p_BAW),
        )
        return answers, ended_BAW | (token_BAW == eos) if eos is not None else ended_BAW

    def go_on(state: tuple[Any, ...]) -> jax.Array:
        step, _, _, ended_BAW = state
        return (step < new_tokens) & ~ended_BAW.all()

    def one_more(state: tuple[Any, ...]) -> tuple[Any, ...]:
        step, said, answers, ended_BAW = state
        token_BAW = jax.lax.dynamic_index_in_dim(answers.tokens_BAWn, step - 1, -1, keepdims=False)
        hidden_BAWD, said = say(model, prompts, said, token_BAW, step - 1)
        return step + 1, said, *choose(step, hidden_BAWD, answers, ended_BAW)

    nothing = Answers(jnp.full((B, A, samples, new_tokens), pad, jnp.int32), jnp.zeros((B, A, samples), jnp.float32))
    nobody_BAW = jnp.repeat(~prompts.asked_BA[..., None], samples, axis=-1)
    hidden_BAWD = jnp.repeat(hidden_BAD[:, :, None], samples, axis=2)
    first = choose(0, hidden_BAWD, nothing, nobody_BAW)
    return jax.lax.while_loop(go_on, one_more, (jnp.int32(1), said, *first))[2]


def draw(logits: jax.Array, sampling: SamplingConfig, key: jax.Array | None) -> jax.Array:
    """The next tokens: int32 [...] from float32 [..., V]."""
    if sampling.temperature == 0 or key is None:
        return logits.argmax(-1).astype(jnp.int32)
    return jax.random.categorical(key, kept_logits(logits, sampling), axis=-1).astype(jnp.int32)


def kept_logits(logits: jax.Array, sampling: SamplingConfig) -> jax.Array:
    """Logits over the temperature, -inf where a token is not among those to draw from: float32 [..., V]."""
    logits = logits / sampling.temperature
    if sampling.top_k:
        least = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p < 1:
        descending = jnp.sort(logits, axis=-1, descending=True)
        weights = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(weights, axis=-1) - weights  # what is more probable; the first token always stays
        least = jnp.where(before < sampling.top_p, descending, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def log_probabilities(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """log softmax(logits) at `tokens` alone: float32 [..., n] from [..., V] and int32 [..., n] (or [1, …, n])."""
    return jnp.take_along_axis(logits, tokens, axis=-1) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
