"""Vector quantisation of latents: nearest codewords, the commitment loss, and training and revival of codewords.

van den Oord et al. 2017 (arXiv:1711.00937): with z a latent, e its nearest codeword and sg the stop-gradient, a latent
costs |sg(z) - e|^2 + beta |z - sg(e)|^2, as means over channels like in taming-transformers. The first term trains
codewords by gradient; alternatively, they are moving averages of the latents assigned to them (appendix A.1):

  N_k <- g N_k + (1 - g) n_k,   m_k <- g m_k + (1 - g) sum of z,   e_k = m_k / N_k,

for the n_k latents z of a batch whose code is k, with N_k smoothed as (N_k + eps) / (N + K eps) N, N the sum of all.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from unimp_jax.semantic_ids.residual_kmeans import nearest

SMOOTHING = 1e-5


@dataclasses.dataclass(frozen=True)
class QuantiserConfig:
    """How the codebook learns."""

    after: int = 0
    """Steps without quantisation, in which latents reach the decoder unchanged, so that both learn basics such as
    colours in a fraction of the time. Codewords are then initialised from latents by k-means."""
    beta: float = 0.25
    """Weight of the commitment loss, which keeps latents near their codewords."""
    average: float = 0.0
    """0: codewords learn by gradient. Above: they are moving averages of latents, with this decay (such as 0.99)."""
    revive_every: int = 100
    revive_until: float = 0.75
    """After every `revive_every` steps, unused codewords are replaced by latents of the batch, until this fraction of
    all steps, so that training can then converge."""

    def __post_init__(self) -> None:
        if min(self.after, self.beta) < 0 or not 0 <= self.average < 1 or self.revive_every < 1:
            raise ValueError(
                f"quantiser: after {self.after} and beta {self.beta} must be at least 0, average {self.average} at "
                f"least 0 and below 1, revive_every {self.revive_every} at least 1"
            )


@flax.struct.dataclass
class CodebookState:
    """State of the codebook besides the codewords.

    Attributes:
      used: bool [K], codewords that were nearest to a latent since the last revival.
      counts: float32 [K], N of the moving averages.
      sums: float32 [K, Z], m of the moving averages.
    """

    used: jax.Array
    counts: jax.Array
    sums: jax.Array


def new_codebook_state(codebook_KZ: jax.Array) -> CodebookState:
    """Returns the initial state, in which each codeword is the average of one latent equal to itself."""
    codes = len(codebook_KZ)
    return CodebookState(jnp.zeros(codes, bool), jnp.ones(codes), jnp.array(codebook_KZ))


def nearest_codes(latents: jax.Array, codebook_KZ: jax.Array) -> jax.Array:
    """Returns the nearest codeword of each latent, [..., Z], ties by the lowest index: int32 [...]."""
    return nearest(latents.reshape(-1, latents.shape[-1]), codebook_KZ).reshape(latents.shape[:-1])


@flax.struct.dataclass
class QuantisedLatents:
    """Latents and their codewords.

    Attributes:
      codes: int32 [N].
      codewords: float32 [N, Z], which pass gradients straight through to the latents.
      loss: float32 scalar, the mean over latents.
    """

    codes: jax.Array
    codewords: jax.Array
    loss: jax.Array


def quantise(
    latents_NZ: jax.Array, codebook_KZ: jax.Array, config: QuantiserConfig, step: jax.Array | int
) -> QuantisedLatents:
    """Returns the nearest codewords and their loss; before `config.after` of the completed steps (`step`, an int32
    scalar), unchanged latents at loss 0."""
    codes_N = nearest(latents_NZ, codebook_KZ)
    # A product, because accelerators add a gather's gradients in no fixed order.
    words_NZ = jnp.matmul(jax.nn.one_hot(codes_N, len(codebook_KZ)), codebook_KZ, precision="highest")
    fixed_NZ = jax.lax.stop_gradient(words_NZ)
    loss = config.beta * jnp.square(latents_NZ - fixed_NZ).mean()
    if not config.average:
        loss = loss + jnp.square(jax.lax.stop_gradient(latents_NZ) - words_NZ).mean()
    there_are = jnp.asarray(step) >= config.after
    passed_NZ = latents_NZ + jnp.where(there_are, jax.lax.stop_gradient(words_NZ - latents_NZ), 0)
    return QuantisedLatents(codes_N, passed_NZ, jnp.where(there_are, loss, 0))


def learnt(
    codebook_KZ: jax.Array, state: CodebookState, codes_N: jax.Array, latents_NZ: jax.Array, config: QuantiserConfig,
    step: jax.Array, steps: int, seed: int,
) -> tuple[jax.Array, CodebookState]:  # fmt: skip
    """Returns (the codebook, its state) after a batch: averages updated, and dead codewords revived when due; `step`,
    an int32 scalar, of all `steps` were completed before this one."""
    if config.average:
        codebook_KZ, state = averaged(codebook_KZ, state, codes_N, latents_NZ, config.average)
    used_K = state.used.at[codes_N].set(True)
    due = (step + 1) % config.revive_every == 0
    dead_K = ~used_K & due & (step < config.revive_until * steps)
    key = jax.random.fold_in(jax.random.key(seed), step)
    codebook_KZ, state = revived(codebook_KZ, state, dead_K, latents_NZ, key)
    return codebook_KZ, dataclasses.replace(state, used=used_K & ~due)


def averaged(
    codebook_KZ: jax.Array, state: CodebookState, codes_N: jax.Array, latents_NZ: jax.Array, decay: float
) -> tuple[jax.Array, CodebookState]:
    """Returns (the codebook, its state) after updating the moving averages with a batch."""
    member_NK = jax.nn.one_hot(codes_N, len(codebook_KZ))
    counts_K = decay * state.counts + (1 - decay) * member_NK.sum(axis=0)
    sums_KZ = decay * state.sums + (1 - decay) * jnp.matmul(member_NK.T, latents_NZ, precision="highest")
    total = counts_K.sum()
    smooth_K = (counts_K + SMOOTHING) / (total + len(counts_K) * SMOOTHING) * total
    return sums_KZ / smooth_K[:, None], dataclasses.replace(state, counts=counts_K, sums=sums_KZ)


def revived(
    codebook_KZ: jax.Array, state: CodebookState, dead_K: jax.Array, latents_NZ: jax.Array, key: jax.Array
) -> tuple[jax.Array, CodebookState]:
    """Returns (the codebook, its state) with dead codewords replaced by random latents of a batch."""
    drawn_KZ = latents_NZ[jax.random.randint(key, dead_K.shape, 0, len(latents_NZ))]
    codebook_KZ = jnp.where(dead_K[:, None], drawn_KZ, codebook_KZ)
    sums_KZ = jnp.where(dead_K[:, None], drawn_KZ, state.sums)
    return codebook_KZ, dataclasses.replace(state, counts=jnp.where(dead_K, 1.0, state.counts), sums=sums_KZ)


def perplexity(counts_K: jax.Array) -> jax.Array:
    """Returns the effective number of codes in use: the exponential of the entropy of their shares."""
    shares_K = counts_K / counts_K.sum()
    return jnp.exp(-jnp.sum(jnp.where(shares_K > 0, shares_K * jnp.log(jnp.where(shares_K > 0, shares_K, 1)), 0)))
