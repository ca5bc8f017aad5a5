"""Cross entropy over a sample of the catalogue: the target item and others drawn uniformly."""

import jax
import jax.numpy as jnp


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
