"""Sampling of images code by code: every token is a code, and an image has a fixed number of codes.

Classifier-free guidance (Ho and Salimans, arXiv:2207.12598) samples from u + s (c - u), where c are the logits given
the prompt and u the unconditional logits, given the question alone, without history and query. Both continue with the
same sampled codes.
"""

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from unimp_jax.batch import Batch
from unimp_jax.decoding.beam import log_probabilities
from unimp_jax.decoding.cache import AnswerCache, PromptCache, decode_step, empty_cache, prefill
from unimp_jax.model import UniMP

MIN_TEMPERATURE = 1e-30
"""The lowest temperature above 0 at which all logits stay finite."""
ROUND_TO = 16
"""The unconditional prompt is padded to a multiple of this number of tokens, so that meshes divide it."""


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the next code is chosen; greedily by default."""

    temperature: float = 0.0
    """Divisor of the logits before sampling; 0 chooses the most probable code."""
    top_k: int = 0
    """Sample among this number of most probable codes; 0: among all."""
    top_p: float = 1.0
    """Sample among the most probable codes whose total probability reaches this value (nucleus, arXiv:1904.09751)."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"sampling: temperature and top_k must be at least 0, top_p in (0, 1], not {self}")
        if 0 < self.temperature < MIN_TEMPERATURE:  # logits divided by it would be infinite
            raise ValueError(f"sampling: temperature {self.temperature} must be 0 or at least {MIN_TEMPERATURE}")


@dataclasses.dataclass(frozen=True)
class CodeSamplingConfig:
    """How the codes of an image are sampled."""

    guidance: float = 1.0
    """Guidance scale s: 1 samples from the model without guidance, above 1 amplifies the effect of history and query,
    and 0 conditions on the question alone."""
    sampling: SamplingConfig = SamplingConfig(temperature=1.0)
    """How each code is chosen from the guided logits."""

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance {self.guidance} must be 0 or more, and finite")


@flax.struct.dataclass
class SampledCodes:
    """W images for each prompt.

    Attributes:
      codes_BAWn: int32, code numbers in row-major order of the image.
      scores_BAW: float32, the sum of the codes' guided log-probabilities among all codes, without temperature.
    """

    codes_BAWn: jax.Array
    scores_BAW: jax.Array


def sample_codes(
    model: UniMP, batch: Batch, tokens_K: jax.Array, length: int, config: CodeSamplingConfig = CodeSamplingConfig(), *,
    bare_T: jax.Array, key: jax.Array | None = None, numbers_BA: jax.Array | None = None, samples: int = 1,
    latents_BNLC: jax.Array | None = None,
) -> SampledCodes:  # fmt: skip
    """Continues each prompt by `length` codes, `samples` times; jittable except for non-array arguments.

    Args:
      batch, latents_BNLC: See `unimp_jax.decoding.cache.prefill`.
      tokens_K: int32, the token of each code.
      bare_T: int32, the question without history and query, the same for all prompts; used for guidance only.
      key: Random key; required if the temperature is above 0.
      numbers_BA: int32, number of each prompt, which seeds its randomness wherever it is in a batch; None: its slot
        number.
    """
    if config.sampling.temperature and key is None:
        raise ValueError("sampling at a temperature above 0 needs a key")
    read = [prefill(model, batch, latents_BNLC)]
    B, A = batch.answer_positions.shape
    if config.guidance != 1:
        read.append(_for_all_slots(*prefill(model, prompt_without_images(bare_T, B)), A))
    prompts = [prompt for _, prompt in read]
    numbers_BA = jnp.arange(B * A).reshape(B, A) if numbers_BA is None else numbers_BA

    def choose(step: jax.Array | int, hidden: list[jax.Array], sampled: SampledCodes) -> tuple[jax.Array, SampledCodes]:
        logits_BAWK, *unconditional = [model.logits_of(hidden_BAWD, tokens_K) for hidden_BAWD in hidden]
        if unconditional:
            logits_BAWK = unconditional[0] + config.guidance * (logits_BAWK - unconditional[0])
        code_BAW = _choose(logits_BAWK, config.sampling, key, numbers_BA, step)
        scores_BAW = sampled.scores_BAW + log_probabilities(logits_BAWK, code_BAW[..., None])[..., 0]
        return code_BAW, SampledCodes(sampled.codes_BAWn.at[..., step].set(code_BAW), scores_BAW)

    def one_more(step: jax.Array, state: tuple[list[jax.Array], list[AnswerCache], SampledCodes]) -> Any:
        hidden, caches, sampled = state
        code_BAW, sampled = choose(step, hidden, sampled)
        steps = [decode_step(model, *pair, tokens_K[code_BAW], step) for pair in zip(prompts, caches, strict=True)]
        return [hidden_BAWD for hidden_BAWD, _ in steps], [cache for _, cache in steps], sampled

    nothing = SampledCodes(jnp.zeros((B, A, samples, length), jnp.int32), jnp.zeros((B, A, samples), jnp.float32))
    hidden = [jnp.repeat(hidden_BAD[:, :, None], samples, axis=2) for hidden_BAD, _ in read]
    caches = [empty_cache(model.config, prompt, samples, length - 1) for prompt in prompts]
    hidden, _, sampled = jax.lax.fori_loop(0, length - 1, one_more, (hidden, caches, nothing))
    return choose(length - 1, hidden, sampled)[1]


def _choose(
    logits_BAWK: jax.Array, sampling: SamplingConfig, key: jax.Array | None, numbers_BA: jax.Array,
    step: jax.Array | int,
) -> jax.Array:  # fmt: skip
    """Chooses the next codes, int32 [B, A, W]; a prompt's randomness depends only on its number and the step."""
    if key is None or sampling.temperature == 0:
        return logits_BAWK.argmax(-1).astype(jnp.int32)

    def of_prompt(logits_WK: jax.Array, number: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(key, number), step)
        return jax.random.categorical(own, kept_logits(logits_WK, sampling), axis=-1).astype(jnp.int32)

    return jax.vmap(jax.vmap(of_prompt))(logits_BAWK, jnp.maximum(numbers_BA, 0))


def kept_logits(logits: jax.Array, sampling: SamplingConfig) -> jax.Array:
    """Returns logits divided by the temperature, -inf for codes that must not be sampled: float32 [..., V]."""
    logits = logits / sampling.temperature
    if sampling.top_k:
        least = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p < 1:
        descending = jnp.sort(logits, axis=-1, descending=True)
        weights = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(weights, axis=-1) - weights  # mass of more probable codes; the first always stays
        least = jnp.where(before < sampling.top_p, descending, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def prompt_without_images(tokens_t: jax.Array, rows: int) -> Batch:
    """Returns a batch with the same prompt in all rows."""
    length = tokens_t.shape[0]
    padding = -length % ROUND_TO

    def row(x_t: jax.Array, filling: int = 0) -> jax.Array:
        return jnp.tile(jnp.pad(x_t.astype(jnp.int32), (0, padding), constant_values=filling), (rows, 1))

    none = jnp.zeros((rows, 1), jnp.int32)
    return Batch(
        tokens=row(tokens_t),
        segment_ids=row(jnp.ones(length)),
        positions=row(jnp.arange(length)),
        image_index=row(jnp.full(length, -1), -1),
        images=jnp.zeros((rows, 0), jnp.int32),
        image_segment_ids=jnp.zeros((rows, 0), jnp.int32),
        answer_positions=none + length - 1,
        answer_targets=none,
        answer_weights=jnp.ones((rows, 1), jnp.float32),
        answer_tasks=none,
    )


def _for_all_slots(hidden_B1D: jax.Array, prompts: PromptCache, slots: int) -> tuple[jax.Array, PromptCache]:
    """Repeats the one prompt of each row for `slots` slots."""
    names = ("mask_BAT", "image_mask_BAS", "lengths_BA", "used_BA")
    repeated = {name: jax.tree.map(lambda x: jnp.repeat(x, slots, axis=1), getattr(prompts, name)) for name in names}
    return jnp.repeat(hidden_B1D, slots, axis=1), dataclasses.replace(prompts, **repeated)
