"""Images drawn code by code: every token is a code, and there are exactly as many as an image has.

Classifier-free guidance (Ho and Salimans, arXiv:2207.12598) draws from

    unconditional + s (conditional - unconditional),

the logits behind the question without history and query, and those behind the whole prompt. Both continue with the
same drawn codes.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from unimp_jax.batch import Batch
from unimp_jax.decoding.cache import Prompts, Said, nothing_said, read, say
from unimp_jax.decoding.sampling import SamplingConfig, draw, log_probabilities
from unimp_jax.model import UniMP

ROUND_TO = 16
"""The unconditional question is padded to a multiple of so many tokens, so that meshes divide it."""


@dataclasses.dataclass(frozen=True)
class CodeSamplingConfig:
    """How codes are drawn."""

    guidance: float = 1.0
    """How far what history and query say is gone beyond: 1 draws from what the model says, without guidance; more than
    1 exaggerates what the question alone would not have led to; 0 asks the question alone."""
    sampling: SamplingConfig = SamplingConfig(temperature=1.0)
    """How one code is drawn of those that guidance leaves."""

    def __post_init__(self) -> None:
        if self.guidance < 0:
            raise ValueError(f"guidance {self.guidance} must be 0 or more")


@flax.struct.dataclass
class SampledCodes:
    """W images for each prompt.

    Attributes:
      codes_BAWn: int32, numbers of codes, row by row of the image.
      scores_BAW: float32, the sum of the codes' log-probabilities among all codes, guided, whatever the temperature.
    """

    codes_BAWn: jax.Array
    scores_BAW: jax.Array


@flax.struct.dataclass
class _Branch:
    """What the next code is read from, behind one prompt of a pair."""

    hidden_BAWD: jax.Array
    said: Said


def sample_image_codes(
    model: UniMP, batch: Batch, tokens_K: jax.Array, length: int, config: CodeSamplingConfig = CodeSamplingConfig(), *,
    bare_T: jax.Array, key: jax.Array | None = None, numbers_BA: jax.Array | None = None, samples: int = 1,
    latents_BNLC: jax.Array | None = None,
) -> SampledCodes:  # fmt: skip
    """Continues each prompt by `length` codes, `samples` times; jittable but for arrays.

    Args:
      batch, latents_BNLC: as of `unimp_jax.decoding.cache.read`.
      tokens_K: int32, the token of each code.
      bare_T: int32, the question without history and query, the same for all prompts; read where there is guidance.
      key: of what is drawn; needed where the temperature is above 0.
      numbers_BA: int32, by which each prompt has randomness of its own, wherever it lies; None: by its place.
    """
    if config.sampling.temperature and key is None:
        raise ValueError("drawing at a temperature above 0 needs a key")
    heard = [read(model, batch, latents_BNLC)]
    B, A = heard[0][1].asked_BA.shape
    if config.guidance != 1:
        heard.append(_heard_by_all(*read(model, _alone(bare_T, B)), A))
    prompts = [prompt for _, prompt in heard]
    numbers_BA = jnp.arange(B * A).reshape(B, A) if numbers_BA is None else numbers_BA

    def choose(step: jax.Array | int, branches: list[_Branch], drawn: SampledCodes) -> tuple[jax.Array, SampledCodes]:
        logits_BAWK, *unconditional = [model.logits_of(branch.hidden_BAWD, tokens_K) for branch in branches]
        if unconditional:
            logits_BAWK = guided(logits_BAWK, unconditional[0], config.guidance)
        code_BAW = _draw(logits_BAWK, config.sampling, key, numbers_BA, step)
        log_p_BAW = log_probabilities(logits_BAWK, code_BAW[..., None])[..., 0]
        return code_BAW, SampledCodes(drawn.codes_BAWn.at[..., step].set(code_BAW), drawn.scores_BAW + log_p_BAW)

    def one_more(step: jax.Array, state: tuple[list[_Branch], SampledCodes]) -> tuple[list[_Branch], SampledCodes]:
        branches, drawn = state
        code_BAW, drawn = choose(step, branches, drawn)
        token_BAW = tokens_K[code_BAW]
        said = [say(model, p, b.said, token_BAW, step) for p, b in zip(prompts, branches, strict=True)]
        return [_Branch(*one) for one in said], drawn

    nothing = SampledCodes(jnp.zeros((B, A, samples, length), jnp.int32), jnp.zeros((B, A, samples), jnp.float32))
    branches = [
        _Branch(jnp.repeat(hidden_BAD[:, :, None], samples, axis=2), nothing_said(model.config, p, samples, length - 1))
        for hidden_BAD, p in heard
    ]
    branches, drawn = jax.lax.fori_loop(0, length - 1, one_more, (branches, nothing))
    return choose(length - 1, branches, drawn)[1]


def guided(conditional: jax.Array, unconditional: jax.Array, guidance: float) -> jax.Array:
    """Logits that differ from the unconditional question's `guidance` times as much as those of the whole prompt do."""
    return unconditional + guidance * (conditional - unconditional)


def _draw(
    logits_BAWK: jax.Array, sampling: SamplingConfig, key: jax.Array | None, numbers_BA: jax.Array,
    step: jax.Array | int,
) -> jax.Array:  # fmt: skip
    """int32 [B, A, W]; a prompt's draws hang on its number and the step alone."""
    if key is None:
        return draw(logits_BAWK, sampling, None)

    def of_prompt(logits_WK: jax.Array, number: jax.Array) -> jax.Array:
        return draw(logits_WK, sampling, jax.random.fold_in(jax.random.fold_in(key, number), step))

    return jax.vmap(jax.vmap(of_prompt))(logits_BAWK, jnp.maximum(numbers_BA, 0))


def _alone(tokens_t: jax.Array, rows: int) -> Batch:
    """One prompt without images a row, the same in all rows."""
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


def _heard_by_all(hidden_B1D: jax.Array, prompts: Prompts, slots: int) -> tuple[jax.Array, Prompts]:
    """The one prompt of each row for so many slots."""

    def repeat(x: jax.Array) -> jax.Array:
        return jnp.repeat(x, slots, axis=1)

    return repeat(hidden_B1D), dataclasses.replace(
        prompts,
        sees_BAT=repeat(prompts.sees_BAT),
        sees_images_BAS=repeat(prompts.sees_images_BAS),
        lengths_BA=repeat(prompts.lengths_BA),
        asked_BA=repeat(prompts.asked_BA),
    )
