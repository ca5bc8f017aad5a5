"""One training step of a VQGAN as a pure function: autoencoder, codebook and discriminator.

Esser et al. 2020 (arXiv:2012.09841, section 3.1): the loss compares a reconstruction with its image, in pixels and in
the features of a perceptual model, and adds the quantisation loss and the adversarial loss. Gradients of all terms with
respect to the reconstruction are summed before they are passed to the autoencoder, in a single backward pass.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from unimp_jax.image_tokens.adversary import Adversary, Verdict, balance, judge_images, silent
from unimp_jax.image_tokens.discriminator import Discriminator, DiscriminatorConfig
from unimp_jax.image_tokens.metrics import VQGANMetrics
from unimp_jax.image_tokens.quantiser import (
    CodebookState,
    QuantisedLatents,
    QuantiserConfig,
    learnt,
    new_codebook_state,
    perplexity,
    quantise,
)
from unimp_jax.image_tokens.vqgan import VQGAN, VQGANConfig, from_pixels
from unimp_jax.training.guard import Guard, GuardConfig, judge, new_guard

Distance = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""(parameters of the perceptual model, images, images) -> their distance, a scalar; images from -1 to 1."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms; the defaults are those of taming-transformers."""

    absolute: float = 1.0
    """Weight of the mean absolute difference of pixels, which are from -1 to 1."""
    squared: float = 0.0
    """Weight of the mean squared difference of pixels."""
    perceptual: float = 1.0
    """Weight of the perceptual distance, if there is a perceptual model."""
    codes: float = 1.0
    """Weight of the quantisation loss."""
    adversarial: float = 0.8
    """Weight of the adversarial loss; 0: no discriminator."""
    adversarial_from: int = 10_000
    """Number of steps before the discriminator takes part."""
    adaptive: bool = True
    """Whether the adversarial loss is scaled to match the reconstruction loss's gradient norm at the last layer."""

    def __post_init__(self) -> None:
        weights = (self.absolute, self.squared, self.perceptual, self.codes, self.adversarial)
        if min(weights) < 0 or self.absolute + self.squared == 0:
            raise ValueError(
                f"loss: weights must be at least 0, and that of the absolute or the squared error above 0: {self}"
            )


@flax.struct.dataclass
class VQGANState:
    """Everything that changes from step to step.

    Attributes:
      step: int32 scalar, number of completed steps.
      adversary: None if there is no discriminator.
    """

    step: jax.Array
    model: Any
    optimizer: Any
    codebook: CodebookState
    adversary: Adversary | None
    guard: Guard


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The components of a training step.

    Attributes:
      optimizer: Optimizer of the VQGAN; the discriminator has another of the same kind.
      distance: Distance of the perceptual model, if there is one.
    """

    vqgan: VQGANConfig
    loss: LossConfig
    quantiser: QuantiserConfig
    discriminator: DiscriminatorConfig
    guard: GuardConfig
    optimizer: optax.GradientTransformation
    steps: int
    seed: int
    distance: Distance | None = None

    def new_model(self) -> VQGAN:
        return VQGAN(self.vqgan, rngs=nnx.Rngs(self.seed))

    def new_discriminator(self) -> Discriminator:
        return Discriminator(self.discriminator, rngs=nnx.Rngs(self.seed + 1))

    def begin(self, model: VQGAN) -> VQGANState:
        """Returns the state before the first step."""
        parameters, adversary = nnx.state(model), None
        if self.loss.adversarial:
            judging = nnx.state(self.new_discriminator())
            adversary = Adversary(judging, self.optimizer.init(judging), new_guard())
        codebook = new_codebook_state(model.codebook[...])
        optimizer = self.optimizer.init(parameters)
        return VQGANState(jnp.zeros((), jnp.int32), parameters, optimizer, codebook, adversary, new_guard())


@flax.struct.dataclass
class Made:
    """Intermediate results of the autoencoder for a batch.

    Attributes:
      latents: float32 [N, Z], of all positions of all images.
      features: float32 [B, H, W, C], the inputs of the last layer.
    """

    latents: jax.Array
    quantised: QuantisedLatents
    features: jax.Array


def make_step(trainer: Trainer) -> Callable[[VQGANState, Any, jax.Array], tuple[VQGANState, VQGANMetrics]]:
    """Returns a function (state, parameters of the perceptual model, images uint8 [B, H, W, 3]) -> (state, metrics), to
    be jitted with the state donated.

    A step that the guard skips changes only the counters.
    """
    graph = nnx.graphdef(nnx.eval_shape(trainer.new_model))
    judging = nnx.graphdef(nnx.eval_shape(trainer.new_discriminator))
    loss = trainer.loss

    def make(parameters: Any, images: jax.Array, number: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Made]:
        """Returns ((made_BHWC, quantisation loss), intermediate results)."""
        model = nnx.merge(graph, parameters)
        latents_BhwZ = model.encode(images)
        latents_NZ = latents_BhwZ.reshape(-1, latents_BhwZ.shape[-1])
        quantised = quantise(latents_NZ, model.codebook[...], trainer.quantiser, number)
        features = model.features(quantised.codewords.reshape(latents_BhwZ.shape))
        return (model.decoder.conv_out(features), quantised.loss), Made(latents_NZ, quantised, features)

    def unlikeness(
        made_BHWC: jax.Array, images: jax.Array, frozen: Any
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns (the weighted sum, (mean squared difference, perceptual distance))."""
        squared, apart = jnp.square(made_BHWC - images).mean(), jnp.zeros(())
        total = loss.absolute * jnp.abs(made_BHWC - images).mean() + loss.squared * squared
        if trainer.distance is not None and loss.perceptual:
            apart = trainer.distance(frozen, made_BHWC, images)
            total = total + loss.perceptual * apart
        return total, (squared, apart)

    def contest(
        state: VQGANState, images: jax.Array, made_BHWC: jax.Array, made: Made, pulled: jax.Array
    ) -> tuple[Verdict, Any]:
        """Returns the verdict and the discriminator after its step; `pulled` is the gradient of `unlikeness`."""
        if state.adversary is None:
            return silent(made_BHWC), None
        adversary, last = state.adversary, nnx.merge(graph, state.model).decoder.conv_out

        def scale(of_verdict: jax.Array) -> jax.Array:
            return balance(last, made.features, pulled, of_verdict) if loss.adaptive else jnp.ones(())

        return jax.lax.cond(
            state.step >= loss.adversarial_from,
            lambda: judge_images(judging, trainer.optimizer, adversary, images, made_BHWC, scale, trainer.guard),
            lambda: (silent(made_BHWC), adversary),
        )

    def step(state: VQGANState, frozen: Any, pixels: jax.Array) -> tuple[VQGANState, VQGANMetrics]:
        images = from_pixels(pixels)
        forward = functools.partial(make, images=images, number=state.step)
        (made_BHWC, cost), pull, made = jax.vjp(forward, state.model, has_aux=True)
        (unlike, (squared, apart)), pulled = jax.value_and_grad(unlikeness, has_aux=True)(made_BHWC, images, frozen)
        verdict, adversary = contest(state, images, made_BHWC, made, pulled)
        total = unlike + loss.codes * cost
        (gradient,) = pull((pulled + loss.adversarial * verdict.gradient, jnp.float32(loss.codes)))
        norm = optax.global_norm(gradient)
        good, seen = judge(trainer.guard, state.guard, total, norm)
        updates, optimizer = trainer.optimizer.update(gradient, state.optimizer, state.model)
        model, codes_N = nnx.merge(graph, optax.apply_updates(state.model, updates)), made.quantised.codes
        model.codebook[...], codebook = learnt(
            model.codebook[...], state.codebook, codes_N, made.latents, trainer.quantiser, state.step, trainer.steps,
            trainer.seed,
        )  # fmt: skip
        new = (nnx.state(model), optimizer, codebook, adversary)
        old = (state.model, state.optimizer, state.codebook, state.adversary)
        kept, optimizer, codebook, adversary = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, old)
        skips = jnp.zeros((), jnp.int32) if adversary is None else adversary.guard.consecutive_skips
        in_use = perplexity(jnp.bincount(codes_N, length=trainer.vqgan.codes).astype(jnp.float32))
        metrics = VQGANMetrics(
            total, squared, apart, cost, in_use, verdict.logit, verdict.loss, verdict.scale, norm, ~good,
            seen.consecutive_skips, verdict.skipped & good, skips,
        )  # fmt: skip
        return VQGANState(state.step + 1, kept, optimizer, codebook, adversary, seen), metrics

    return step


def with_codewords(state: VQGANState, graph: nnx.GraphDef, words_KZ: jax.Array) -> VQGANState:
    """Returns the state with other codewords and a new codebook state."""
    model = nnx.merge(graph, state.model)
    model.codebook[...] = words_KZ
    return dataclasses.replace(state, model=nnx.state(model), codebook=new_codebook_state(words_KZ))
