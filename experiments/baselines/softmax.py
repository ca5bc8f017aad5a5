"""Cross entropy with tied embeddings, over a sample of the catalogue or over all of it.

The latter never holds more than a chunk of the logits. Its forward pass also computes the gradients, one chunk of
positions after the other, while the chunk's logits are in the cache: on two cores this takes a third of the time of
differentiating through the logits of the whole batch.
"""

import jax
import jax.numpy as jnp

CHUNK = 512


@jax.custom_vjp
def full_softmax(hidden_ND: jax.Array, items_ID: jax.Array, targets_N: jax.Array) -> jax.Array:
    """Returns the mean over positions with a target of -log softmax(items @ hidden)[target], in nats: float32 scalar.

    Args:
      hidden_ND: float32 [N, D], taken in chunks of the largest divisor of N up to `CHUNK`.
      items_ID: float32 [I, D].
      targets_N: int32 [N], -1 if there is no target.
    """
    return _forward(hidden_ND, items_ID, targets_N)[0]


Gradients = tuple[jax.Array, jax.Array]


def _forward(hidden_ND: jax.Array, items_ID: jax.Array, targets_N: jax.Array) -> tuple[jax.Array, Gradients]:
    size = max(size for size in range(1, CHUNK + 1) if len(hidden_ND) % size == 0)
    weights_N = (targets_N >= 0) / jnp.maximum((targets_N >= 0).sum(), 1).astype(jnp.float32)

    def chunk(
        carry: tuple[jax.Array, jax.Array], part: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        loss, d_items_ID = carry
        hidden_CD, weights_C = part
        logits_CI = jnp.einsum("cd,id->ci", hidden_CD, items_ID)
        top_C1 = logits_CI.max(axis=1, keepdims=True)
        exp_CI = jnp.exp(logits_CI - top_C1)
        sum_C1 = exp_CI.sum(axis=1, keepdims=True)
        scale_C1 = weights_C[:, None] / sum_C1
        loss += ((jnp.log(sum_C1) + top_C1)[:, 0] * weights_C).sum()
        d_items_ID += jnp.einsum("ci,cd->id", exp_CI, hidden_CD * scale_C1)
        return (loss, d_items_ID), jnp.einsum("ci,id->cd", exp_CI, items_ID) * scale_C1

    parts = hidden_ND.reshape(-1, size, hidden_ND.shape[1]), weights_N.reshape(-1, size)
    (loss, d_items_ID), d_hidden_ND = jax.lax.scan(chunk, (jnp.float32(0), jnp.zeros_like(items_ID)), parts)
    right_ND = items_ID[targets_N] * weights_N[:, None]
    loss -= (hidden_ND * right_ND).sum()
    d_items_ID = d_items_ID.at[targets_N].add(-hidden_ND * weights_N[:, None])
    return loss, (d_hidden_ND.reshape(hidden_ND.shape) - right_ND, d_items_ID)


def _backward(gradients: Gradients, d_loss: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    d_hidden_ND, d_items_ID = gradients
    return d_loss * d_hidden_ND, d_loss * d_items_ID, None


full_softmax.defvjp(_forward, _backward)


def sampled_softmax(
    hidden_BTD: jax.Array, items_ID: jax.Array, targets_BT: jax.Array, negatives_BK: jax.Array, *, corrected: bool
) -> jax.Array:
    """Returns the mean over positions with a target t of -log(exp s_t / (exp s_t + w * sum of exp s_k)), in nats, as a
    float32 scalar.

    The sum is over the K negatives of the position's row, except those that are its target. With the logQ correction
    (Bengio and Senecal 2008) w = I / K, which makes the expectation of the sum that over all other items, and the loss
    with every item as a negative that of the full softmax; without it, as in the code of eSASRec and HSTU, w = 1.

    Args:
      hidden_BTD: float32 [B, T, D].
      items_ID: float32 [I, D].
      targets_BT: int32 [B, T], -1 if there is no target.
      negatives_BK: int32 [B, K], items drawn uniformly, shared by all positions of a row.
    """
    there_BT = targets_BT >= 0
    right_BT = jnp.einsum("btd,btd->bt", hidden_BTD, items_ID[jnp.maximum(targets_BT, 0)])
    logits_BTK = jnp.einsum("btd,bkd->btk", hidden_BTD, items_ID[negatives_BK])
    logits_BTK += jnp.log(len(items_ID) / negatives_BK.shape[1]) if corrected else 0
    logits_BTK = jnp.where(negatives_BK[:, None, :] == targets_BT[:, :, None], -jnp.inf, logits_BTK)
    whole_BT = jax.nn.logsumexp(jnp.concatenate([right_BT[..., None], logits_BTK], axis=-1), axis=-1)
    return jnp.where(there_BT, whole_BT - right_BT, 0).sum() / jnp.maximum(there_BT.sum(), 1)
