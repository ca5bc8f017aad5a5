"""RQ-VAE: an autoencoder whose latents are sums of one codeword per level (Lee et al. 2022, arXiv:2203.01941).

As in TIGER (arXiv:2305.05065, section 3.1): with x features, r_0 their latents, e_l the codeword nearest to r_l,
r_(l+1) = r_l - sg(e_l), where sg is the stop-gradient, and x' decoded from r_0 + sg(sum_l e_l - r_0), an item costs
mean (x - x')^2 + sum_l |sg(r_l) - e_l|^2 + beta |r_l - sg(e_l)|^2. TIGER's first term is a sum over features; with the
mean, latents do not outgrow the codebooks when training starts.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from unimp_jax.semantic_ids import residual_kmeans as kmeans
from unimp_jax.semantic_ids.metrics import unexplained


@dataclasses.dataclass(frozen=True)
class RQVAEConfig:
    """The autoencoder, and its training by AdamW with a cosine schedule; batches are drawn with replacement."""

    hidden: tuple[int, ...] = (512, 256, 128)
    """Widths of the encoder's ReLU layers; the decoder has them in reverse order."""
    latent: int = 32
    beta: float = 0.25
    learning_rate: float = 1e-3
    steps: int = 5000
    batch_size: int = 1024
    revive_every: int = 100
    revive_until: float = 0.75
    """After every `revive_every` steps, unused codewords are replaced by residuals of the batch, until this fraction of
    all steps, so that training can then converge."""

    def __post_init__(self) -> None:
        counts = (*self.hidden, self.latent, self.steps, self.batch_size, self.revive_every)
        if min(counts) < 1 or self.learning_rate <= 0:
            raise ValueError(f"all counts and widths must be at least 1, and learning_rate above 0: {self}")


class RQVAE(nnx.Module):
    """Two MLPs and the codebooks between them, which are zero until they are set."""

    def __init__(self, num_features: int, config: RQVAEConfig, levels: int, codes: int, rngs: nnx.Rngs):
        widths = (num_features, *config.hidden, config.latent)
        self.encoder, self.decoder = _mlp(widths, rngs), _mlp(widths[::-1], rngs)
        self.codebooks = nnx.Param(jnp.zeros((levels, codes, config.latent)))


def _mlp(widths: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Sequential:
    first, *others = [nnx.Linear(i, o, rngs=rngs) for i, o in itertools.pairwise(widths)]
    return nnx.Sequential(first, *(part for layer in others for part in (nnx.relu, layer)))


def quantise(latents_BD: jax.Array, codebooks_LKD: jax.Array, beta: float) -> kmeans.Arrays:
    """Computes the residual quantisation, with the gradients described at the top of the module.

    Returns (codes, int32 [L, B]; residuals before each level and sums of codewords up to it, [L, B, D] each, where the
    sums pass gradients straight through to the latents; the mean over items of the loss's codebook terms).
    """

    def level(residual_BD: jax.Array, codebook_KD: jax.Array) -> tuple[jax.Array, kmeans.Arrays]:
        codes_B = kmeans.nearest(residual_BD, codebook_KD)
        # A product, because accelerators add a gather's gradients in no fixed order.
        codeword_BD = jnp.matmul(jax.nn.one_hot(codes_B, len(codebook_KD)), codebook_KD, precision="highest")
        fixed_BD = jax.lax.stop_gradient(codeword_BD)
        learned_BD = jnp.square(jax.lax.stop_gradient(residual_BD) - codeword_BD)
        loss = (learned_BD + beta * jnp.square(residual_BD - fixed_BD)).sum(axis=1).mean()
        return residual_BD - fixed_BD, (codes_B, residual_BD, fixed_BD, loss)

    _, (codes_LB, residuals_LBD, chosen_LBD, loss_L) = jax.lax.scan(level, latents_BD, codebooks_LKD)
    sums_LBD = latents_BD + jax.lax.stop_gradient(jnp.cumsum(chosen_LBD, axis=0) - latents_BD)
    return codes_LB, residuals_LBD, sums_LBD, loss_L.sum()


def revive(codebooks_LKD: jax.Array, used_LK: jax.Array, residuals_LBD: jax.Array, key: jax.Array) -> jax.Array:
    """Replaces unused codewords by random residuals of the same level."""
    drawn_LK = jax.random.randint(key, used_LK.shape, 0, residuals_LBD.shape[1])
    return jnp.where(used_LK[..., None], codebooks_LKD, jnp.take_along_axis(residuals_LBD, drawn_LK[..., None], axis=1))


def train_rq_vae(features: np.ndarray, config: RQVAEConfig, levels: int, codes: int, seed: int) -> kmeans.Quantised:
    """Trains on features, float32 [I, F], and returns the quantised latents; codebooks start from residual k-means. The
    errors are those of the decoder. Raises ValueError like `residual_kmeans`, and if a loss is not finite."""
    points_IF = jnp.asarray(kmeans.checked(features))
    model = RQVAE(points_IF.shape[1], config, levels, codes, nnx.Rngs(seed))
    latents_ID = np.asarray(_apply(*nnx.split(model), points_IF)[0])
    start = kmeans.residual_kmeans(latents_ID, levels, codes, iterations=10, seed=seed)
    model.codebooks[...] = jnp.asarray(start.codebooks)
    graph, parameters = nnx.split(model)
    optimizer = optax.adamw(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    state, used_LK = optimizer.init(parameters), jnp.zeros((levels, codes), bool)
    step, key, losses = make_step(graph, optimizer, config), jax.random.key(seed), list[jax.Array]()
    for number in range(config.steps):
        parameters, state, used_LK, losses_2 = step(parameters, state, used_LK, points_IF, key, np.int32(number))
        losses.append(losses_2)
    if not np.isfinite(found := np.stack(jax.device_get(losses))).all():
        raise ValueError(f"the loss is {found[-1].sum()}; choose a learning_rate below {config.learning_rate}")
    latents_ID, codes_IL, lost_IL = jax.device_get(_apply(graph, parameters, points_IF))
    errors = tuple(unexplained(np.asarray(points_IF), lost_I) for lost_I in lost_IL.T)
    return kmeans.Quantised(codes_IL, np.asarray(parameters["codebooks"][...]), latents_ID, errors, found)


@jax.jit(static_argnums=0)
def _apply(graph: Any, parameters: Any, points_IF: jax.Array) -> kmeans.Arrays:
    """Returns (latents [I, D], codes [I, L], squared errors of decoding the first 1, 2, … levels [I, L])."""
    model = nnx.merge(graph, parameters)

    def one(x_F: jax.Array) -> kmeans.Arrays:
        latents_1D = model.encoder(x_F[None])
        codes_L1, _, sums_L1D, _ = quantise(latents_1D, model.codebooks[...], 0.0)
        return latents_1D[0], codes_L1[:, 0], jnp.square(model.decoder(sums_L1D[:, 0]) - x_F).sum(axis=-1)

    return jax.lax.map(one, points_IF, batch_size=kmeans.CHUNK)


def make_step(graph: Any, optimizer: optax.GradientTransformation, config: RQVAEConfig) -> Any:
    """Makes (parameters, state, used codes, points, key, number) -> (the first three, losses [2]), jitted, donating."""

    def loss_of(parameters: Any, x_BF: jax.Array) -> tuple[jax.Array, kmeans.Arrays]:
        model = nnx.merge(graph, parameters)
        codes_LB, residuals_LBD, sums_LBD, quantising = quantise(model.encoder(x_BF), model.codebooks[...], config.beta)
        reconstruction = jnp.square(x_BF - model.decoder(sums_LBD[-1])).mean()
        return reconstruction + quantising, (codes_LB, residuals_LBD, jnp.stack([reconstruction, quantising]))

    def step(parameters: Any, state: Any, used_LK: Any, points_IF: Any, key: Any, number: Any) -> tuple[Any, ...]:
        of_batch, of_revival = jax.random.split(jax.random.fold_in(key, number))
        x_BF = points_IF[jax.random.randint(of_batch, (config.batch_size,), 0, len(points_IF))]
        gradients, (codes_LB, residuals_LBD, losses_2) = jax.grad(loss_of, has_aux=True)(parameters, x_BF)
        updates, state = optimizer.update(gradients, state, parameters)
        model = nnx.merge(graph, optax.apply_updates(parameters, updates))
        used_LK = used_LK.at[jnp.arange(len(used_LK))[:, None], codes_LB].set(True)
        due = (number + 1) % config.revive_every == 0
        kept_LK = used_LK | ~due | (number >= config.revive_until * config.steps)
        model.codebooks[...] = revive(model.codebooks[...], kept_LK, residuals_LBD, of_revival)
        return nnx.state(model), state, used_LK & ~due, losses_2

    return jax.jit(step, donate_argnums=(0, 1, 2))
