"""Beam search over the whole vocabulary, equivalent step by step to transformers' `generate(num_beams=...)`."""

import dataclasses
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp

from unimp_jax.batch import Batch
from unimp_jax.decoding.cache import AnswerCache, decode_step, empty_cache, prefill
from unimp_jax.model import UniMP

WORST = -1e9
"""The score of empty slots."""


@dataclasses.dataclass(frozen=True)
class BeamConfig:
    """Settings of beam search."""

    beams: int = 5
    new_tokens: int = 256
    """Maximum number of generated tokens."""
    length_penalty: float = 1.0
    """A finished answer of n tokens scores log p / n^length_penalty."""
    early_stopping: bool | Literal["never"] = False
    """When the search for a prompt ends. True: as soon as there are as many finished answers as beams. False: when the
    best unfinished one would not be among them if it ended now. "never": when no length would put it among them."""

    def __post_init__(self) -> None:
        if self.beams < 1 or self.new_tokens < 1:
            raise ValueError(f"beam search: beams and new_tokens must be at least 1, not {self}")


@flax.struct.dataclass
class Answers:
    """W answers to each prompt.

    Attributes:
      tokens_BAWn: int32, including the end token if one was generated, then padding.
      scores_BAW: float32, the sum of the tokens' log-probabilities, with the length penalty.
    """

    tokens_BAWn: jax.Array
    scores_BAW: jax.Array


@flax.struct.dataclass
class _Search:
    """State of the searches of all prompts: W unfinished beams and W finished answers per prompt, best first.

    Attributes:
      step: int32, number of tokens chosen so far.
      answers: The finished answers; their scores include the length penalty.
      finished_BAW: bool, whether the slot holds an answer.
      hopeful_BA: bool, whether the unfinished beams can still improve on the finished answers.
      parents_BAW: int32, the beam index of the parent of each unfinished beam.
    """

    step: jax.Array
    tokens_BAWn: jax.Array
    scores_BAW: jax.Array
    answers: Answers
    finished_BAW: jax.Array
    hopeful_BA: jax.Array
    parents_BAW: jax.Array


def beam_search(
    model: UniMP, batch: Batch, config: BeamConfig, *, eos: int | None, pad: int = 0,
    latents_BNLC: jax.Array | None = None,
) -> Answers:  # fmt: skip
    """Returns the best answers to each prompt, best first; jittable except for `batch`.

    Args:
      batch, latents_BNLC: See `unimp_jax.decoding.cache.prefill`.
      eos: The token that ends an answer; None: only the length limit does.
      pad: The token after the end.
    """
    hidden_BAD, prompts = prefill(model, batch, latents_BNLC)
    B, A = prompts.used_BA.shape
    W, n = config.beams, config.new_tokens
    scores_BAW = jnp.full((B, A, W), WORST).at[..., 0].set(0.0)  # beams start equal, so only one counts
    tokens_BAWn = jnp.full((B, A, W, n), pad, jnp.int32)
    search = _Search(
        step=jnp.int32(0),
        tokens_BAWn=tokens_BAWn,
        scores_BAW=scores_BAW,
        answers=Answers(tokens_BAWn, jnp.full((B, A, W), WORST)),
        finished_BAW=jnp.zeros((B, A, W), bool),
        hopeful_BA=prompts.used_BA,
        parents_BAW=jnp.zeros((B, A, W), jnp.int32),
    )
    search = _extend(search, model.logits(jnp.repeat(hidden_BAD[:, :, None], W, axis=2)), config, eos)

    def go_on(state: tuple[_Search, AnswerCache]) -> jax.Array:
        search, _ = state
        going_BA = search.hopeful_BA
        if config.early_stopping is True:
            going_BA &= ~search.finished_BAW.all(-1)
        return (search.step < n) & going_BA.any()

    def one_more(state: tuple[_Search, AnswerCache]) -> tuple[_Search, AnswerCache]:
        search, cache = state
        last_BAW = jax.lax.dynamic_index_in_dim(search.tokens_BAWn, search.step - 1, -1, keepdims=False)
        cache = cache.reorder(search.parents_BAW)
        hidden_BAWD, cache = decode_step(model, prompts, cache, last_BAW, search.step - 1)
        return _extend(search, model.logits(hidden_BAWD), config, eos), cache

    cache = empty_cache(model.config, prompts, W, n - 1)
    return jax.lax.while_loop(go_on, one_more, (search, cache))[0].answers


def _extend(search: _Search, logits_BAWV: jax.Array, config: BeamConfig, eos: int | None) -> _Search:
    """Extends every beam by one token: splits twice as many candidates as beams into finished and unfinished ones."""
    W, step = config.beams, search.step
    log_p_BAWV = jax.nn.log_softmax(logits_BAWV) + search.scores_BAW[..., None]
    scores_BA2, places_BA2, new_BA2 = top_candidates(log_p_BAWV, 2 * W)
    tokens_BA2n = take(search.tokens_BAWn, places_BA2).at[..., step].set(new_BA2)
    length = step + 1
    ends_BA2 = jnp.broadcast_to(length == config.new_tokens, new_BA2.shape)
    if eos is not None:
        ends_BA2 |= new_BA2 == eos

    going_BAW, order_BAW = jax.lax.top_k(scores_BA2 + jnp.where(ends_BA2, WORST, 0.0), W)
    among_best = jnp.arange(2 * W) < W
    counts_BA2 = ends_BA2 & among_best & search.hopeful_BA[..., None]
    if config.early_stopping is True:
        counts_BA2 &= ~search.finished_BAW.all(-1, keepdims=True)
    ended_BA2 = jnp.where(counts_BA2, scores_BA2 / length.astype(jnp.float32) ** config.length_penalty, WORST)
    merged_BAW, kept_BAW = jax.lax.top_k(jnp.concatenate([search.answers.scores_BAW, ended_BA2], axis=-1), W)
    answers = Answers(take(jnp.concatenate([search.answers.tokens_BAWn, tokens_BA2n], axis=2), kept_BAW), merged_BAW)
    finished_BAW = take(jnp.concatenate([search.finished_BAW, counts_BA2], axis=-1), kept_BAW)

    long = config.new_tokens if config.early_stopping == "never" and config.length_penalty > 0 else length
    best_BA = going_BAW[..., 0] / jnp.asarray(long, jnp.float32) ** config.length_penalty
    worst_BA = jnp.where(finished_BAW, merged_BAW.min(-1, keepdims=True), WORST).min(-1)
    return _Search(
        step=length,
        tokens_BAWn=take(tokens_BA2n, order_BAW),
        scores_BAW=going_BAW,
        answers=answers,
        finished_BAW=finished_BAW,
        hopeful_BA=search.hopeful_BA & (best_BA > worst_BA),
        parents_BAW=take(places_BA2, order_BAW),
    )


def top_candidates(scores_BAWC: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the best candidates of all beams: (scores, beam indices, candidate numbers), [B, A, count] each. Ties are
    broken by position; if there are fewer than `count`, the rest is filled with -inf. NaN comes first."""
    B, A, W, C = scores_BAWC.shape
    scores_BAWC = jnp.where(jnp.isnan(scores_BAWC), jnp.nan, scores_BAWC)  # with a sign, it would come after -inf
    fill = ((0, 0), (0, 0), (0, max(count - W * C, 0)))
    scores_BAk, index_BAk = jax.lax.top_k(
        jnp.pad(scores_BAWC.reshape(B, A, W * C), fill, constant_values=-jnp.inf), count
    )
    index_BAk = jnp.minimum(index_BAk, W * C - 1)
    return scores_BAk, index_BAk // C, index_BAk % C


def take(x: jax.Array, places_BAk: jax.Array) -> Any:
    """Selects beams by index: [B, A, W, …] -> [B, A, k, …]."""
    return jnp.take_along_axis(x, places_BAk.reshape(*places_BAk.shape, *[1] * (x.ndim - 3)), axis=2)


def log_probabilities(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns log softmax(logits) at `tokens`: float32 [..., n] from [..., V] and int32 [..., n] (or [1, …, n])."""
    return jnp.take_along_axis(logits, tokens, axis=-1) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
