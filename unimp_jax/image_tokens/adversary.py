"""The adversarial part of a training step: the discriminator's gradient for images, and its own training.

The adversarial loss is scaled by lambda = |g_likeness| / (|g_verdict| + 1e-4), the ratio of gradient norms with respect
to the kernel of the VQGAN's last layer (arXiv:2012.09841, equation 7), so that neither loss dominates.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from unimp_jax.image_tokens.discriminator import Discriminator, hinge
from unimp_jax.training.guard import Guard, GuardConfig, judge

LARGEST = 1e4
"""Upper limit of lambda, as in taming-transformers."""


@flax.struct.dataclass
class Adversary:
    """The discriminator's parameters, its optimizer's state, and the state of its guard."""

    parameters: Any
    optimizer: Any
    guard: Guard


@flax.struct.dataclass
class Verdict:
    """The discriminator's output for a batch, float32.

    Attributes:
      gradient: [B, H, W, 3], gradient of the scaled adversarial loss with respect to the reconstructed images.
      logit: scalar, mean logit of the reconstructed images.
      loss: scalar, the discriminator's own loss.
      scale: scalar, lambda.
      skipped: bool scalar, whether the discriminator's own step was skipped.
    """

    gradient: jax.Array
    logit: jax.Array
    loss: jax.Array
    scale: jax.Array
    skipped: jax.Array


def silent(made_BHW3: jax.Array) -> Verdict:
    """Returns the verdict before the discriminator takes part: zeros."""
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
    """Returns (the verdict, the discriminator after its own step on the same images). If the discriminator's loss or
    gradient is not finite, or the gradient is far above the usual, only its guard changes. `scale_of` maps the
    adversarial loss's gradient with respect to the reconstructed images to lambda."""

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
    """Returns lambda, from two gradients with respect to the images that the last layer computes from features."""
    graph, parameters = nnx.split(last)
    _, pull = jax.vjp(lambda parameters: nnx.merge(graph, parameters)(features_BHWC), parameters)

    def norm(gradient_BHW3: jax.Array) -> jax.Array:
        return jnp.linalg.norm(pull(gradient_BHW3)[0]["kernel"][...])

    return jnp.clip(norm(of_likeness) / (norm(of_verdict) + 1e-4), 0, LARGEST)
