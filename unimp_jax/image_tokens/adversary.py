"""What the discriminator adds to a step: the gradient of its verdict on images, and its own learning.

The verdict's weight is scaled by  lambda = |g_likeness| / (|g_verdict| + 1e-4),  norms of the gradients with respect to
the kernel of the VQGAN's last layer (arXiv:2012.09841, equation 7), so that neither drowns the other.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from unimp_jax.image_tokens.discriminator import Discriminator, hinge
from unimp_jax.training.guard import Guard, GuardConfig, judge

LARGEST = 1e4
"""Of lambda, as in taming-transformers."""


@flax.struct.dataclass
class Adversary:
    """The discriminator's parameters, its optimizer's state, and what the guard knows of its steps so far."""

    parameters: Any
    optimizer: Any
    guard: Guard


@flax.struct.dataclass
class Verdict:
    """What the discriminator says of a batch, float32.

    Attributes:
      gradient: [B, H, W, 3], of the scaled verdict with respect to the made images.
      logit: scalar, its mean for the made images.
      loss: scalar, the discriminator's own.
      scale: scalar, lambda.
      skipped: bool scalar, whether the discriminator's own step was skipped.
    """

    gradient: jax.Array
    logit: jax.Array
    loss: jax.Array
    scale: jax.Array
    skipped: jax.Array


def silent(made_BHW3: jax.Array) -> Verdict:
    """Before the discriminator takes part."""
    return Verdict(jnp.zeros_like(made_BHW3), jnp.zeros(()), jnp.zeros(()), jnp.zeros(()), jnp.zeros((), bool))


def judge_images(
    graph: nnx.GraphDef[Discriminator],
    optimizer: optax.GradientTransformation,
    adversary: Adversary,
    images_BHW3: jax.Array,
    made_BHW3: jax.Array,
    scale_of: Any,
    guard: GuardConfig,
) -> tuple[Verdict, Adversary]:
    """(the verdict, the discriminator after a step of its own on the same images).

    Where the discriminator's loss or gradient is no number, or far above the usual, only its count of steps changes.

    Args:
      scale_of: the verdict's gradient with respect to the made images -> lambda.
    """

    def logits(parameters: Any, images_BHW3: jax.Array) -> jax.Array:
        return nnx.merge(graph, parameters)(images_BHW3)

    def disbelief(made_BHW3: jax.Array) -> jax.Array:
        return -logits(adversary.parameters, made_BHW3).mean()

    def confusion(parameters: Any) -> jax.Array:
        return hinge(logits(parameters, images_BHW3), logits(parameters, made_BHW3))

    disbelieved, gradient_BHW3 = jax.value_and_grad(disbelief)(made_BHW3)
    scale = scale_of(gradient_BHW3)
    loss, gradient = jax.value_and_grad(confusion)(adversary.parameters)
    updates, optimizer_state = optimizer.update(gradient, adversary.optimizer, adversary.parameters)
    good, seen = judge(guard, adversary.guard, loss, optax.global_norm(gradient))
    after, optimizer_state = jax.tree.map(
        lambda new, old: jnp.where(good, new, old),
        (optax.apply_updates(adversary.parameters, updates), optimizer_state),
        (adversary.parameters, adversary.optimizer),
    )
    return Verdict(scale * gradient_BHW3, -disbelieved, loss, scale, ~good), Adversary(after, optimizer_state, seen)


def balance(last: nnx.Conv, features_BHWC: jax.Array, of_likeness: jax.Array, of_verdict: jax.Array) -> jax.Array:
    """Lambda, from two gradients with respect to the images that the last layer makes of features."""
    graph, parameters = nnx.split(last)
    _, pull = jax.vjp(lambda parameters: nnx.merge(graph, parameters)(features_BHWC), parameters)

    def norm(gradient_BHW3: jax.Array) -> jax.Array:
        return jnp.linalg.norm(pull(gradient_BHW3)[0]["kernel"][...])

    return jnp.clip(norm(of_likeness) / (norm(of_verdict) + 1e-4), 0, LARGEST)
