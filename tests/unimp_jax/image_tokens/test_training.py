"""A step of training: its gradients, the discriminator's weight, dead codes, and steps that are skipped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from unimp_jax.image_tokens import adversary
from unimp_jax.image_tokens.discriminator import DiscriminatorConfig, hinge
from unimp_jax.image_tokens.metrics import VQGANWindow
from unimp_jax.image_tokens.quantiser import QuantiserConfig
from unimp_jax.image_tokens.training import LossConfig, Trainer, make_step
from unimp_jax.image_tokens.vqgan import VQGAN, VQGANConfig, from_pixels
from unimp_jax.training.guard import GuardConfig
from unimp_jax.training.prefetch import LoadedBatch

RATE = 0.125
TRAINER = Trainer(
    VQGANConfig(16, (4, 8), 1, (), False, 4, 2, codes=12, code_width=3),
    LossConfig(absolute=1.0, squared=0.5, perceptual=0.0, adversarial=0.7, adversarial_from=0),
    QuantiserConfig(revive_every=100),
    DiscriminatorConfig(channels=2, layers=1),
    GuardConfig(),
    optax.sgd(RATE),
    steps=10,
    seed=0,
)


def random_images(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (4, 16, 16, 3), np.uint8)


def stepped(trainer, state=None, images=None):
    """(before, after, metrics) of a step."""
    before = trainer.begin(trainer.new_model()) if state is None else state
    return before, *jax.jit(make_step(trainer))(before, {}, random_images() if images is None else images)


def moved(before, after):
    """What a step of plain gradient descent subtracted, as a gradient."""
    return jax.tree.map(lambda old, new: (old - new) / RATE, before, after)


@pytest.mark.parametrize("adaptive", [False, True])
def test_one_pass_gives_the_gradients_of_the_whole_loss(adaptive):
    """Against the loss written down as the paper has it, its parts differentiated one by one."""
    trainer = dataclasses.replace(TRAINER, loss=dataclasses.replace(TRAINER.loss, adaptive=adaptive))
    before, after, metrics = stepped(trainer)
    graph, judging = nnx.graphdef(trainer.new_model()), nnx.graphdef(trainer.new_discriminator())
    images = from_pixels(random_images())

    def reconstructed(parameters):
        model = nnx.merge(graph, parameters)
        latents = model.encode(images)
        words = model.codebook[...][model.codes(images)]
        cost = 0.25 * jnp.square(latents - jax.lax.stop_gradient(words)).mean()
        cost += jnp.square(jax.lax.stop_gradient(latents) - words).mean()
        return model.decoder(model.from_code(latents + jax.lax.stop_gradient(words - latents))), cost

    def likeness(parameters):
        made, _ = reconstructed(parameters)
        return jnp.abs(made - images).mean() + 0.5 * jnp.square(made - images).mean()

    def verdict(parameters):
        return -nnx.merge(judging, before.adversary.parameters)(reconstructed(parameters)[0]).mean()

    of_likeness, of_verdict = jax.grad(likeness)(before.model), jax.grad(verdict)(before.model)
    kernels = (gradient["decoder"]["conv_out"]["kernel"][...] for gradient in (of_likeness, of_verdict))
    scale = np.divide(*(np.linalg.norm(kernel) + extra for kernel, extra in zip(kernels, (0, 1e-4), strict=True)))
    weight = 0.7 * (scale if adaptive else 1)
    of_cost = jax.grad(lambda parameters: reconstructed(parameters)[1])(before.model)
    whole = jax.tree.map(lambda a, b, c: a + weight * b + c, of_likeness, of_verdict, of_cost)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), moved(before.model, after.model), whole)
    assert metrics.scale == pytest.approx(scale if adaptive else 1, rel=1e-4)

    def confusion(parameters):
        critic = nnx.merge(judging, parameters)
        real, made = critic(images), critic(reconstructed(before.model)[0])
        return 0.5 * (jnp.maximum(1 - real, 0).mean() + jnp.maximum(1 + made, 0).mean())

    own = moved(before.adversary.parameters, after.adversary.parameters)
    wanted = jax.grad(confusion)(before.adversary.parameters)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), own, wanted)


def test_the_discriminator_waits_for_its_step():
    late = dataclasses.replace(TRAINER, loss=dataclasses.replace(TRAINER.loss, adversarial_from=1))
    none = dataclasses.replace(TRAINER, loss=dataclasses.replace(TRAINER.loss, adversarial=0.0))
    before, after, _ = stepped(late)
    assert jax.tree.all(jax.tree.map(np.array_equal, before.adversary.parameters, after.adversary.parameters))
    _, without, _ = stepped(none)
    assert without.adversary is None
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.model, without.model)
    _, second, metrics = stepped(late, after)
    assert metrics.scale > 0
    assert not jax.tree.all(jax.tree.map(np.array_equal, after.adversary.parameters, second.adversary.parameters))


def test_dead_codes_are_revived_and_used_ones_are_not():
    trainer = dataclasses.replace(TRAINER, quantiser=QuantiserConfig(revive_every=1))
    state = trainer.begin(trainer.new_model())
    far = state.model["codebook"][...].at[3:].add(100.0)
    state.model["codebook"][...] = far
    _, after, _ = stepped(trainer, state)
    latents = (
        nnx.merge(nnx.graphdef(trainer.new_model()), state.model).encode(from_pixels(random_images())).reshape(-1, 3)
    )
    words = np.asarray(after.model["codebook"][...])
    for word in words[3:]:
        assert np.abs(np.asarray(latents) - word).sum(axis=1).min() < 1e-5
    assert np.abs(words[:3] - far[:3]).max() < 0.1  # a step of the optimizer
    late = dataclasses.replace(state, step=jnp.int32(8))
    assert stepped(trainer, late)[1].model["codebook"][...][3:].min() > 50  # past three quarters of 10 steps


def test_a_step_whose_loss_is_no_number_changes_nothing():
    trainer = dataclasses.replace(TRAINER, quantiser=QuantiserConfig(average=0.9, revive_every=1))
    state = trainer.begin(trainer.new_model())
    state.model["decoder"]["conv_out"]["bias"][...] = jnp.full(3, jnp.nan)
    before, after, metrics = stepped(trainer, state)
    assert metrics.skipped
    assert after.step == 1
    for name in ("model", "codebook", "adversary"):
        same = jax.tree.map(
            lambda a, b: np.array_equal(a, b, equal_nan=True), getattr(before, name), getattr(after, name)
        )
        assert jax.tree.all(same)


@pytest.mark.parametrize(("spike", "factor"), [(2.0, 0.0), (0.0, jnp.inf)], ids=["a spike", "no number"])
def test_a_step_of_the_discriminator_that_would_do_harm_is_skipped_alone(monkeypatch, spike, factor):
    """The autoencoder goes on, and what is known of the discriminator's steps is counted."""
    trainer = dataclasses.replace(TRAINER, guard=GuardConfig(spike=spike, after=1))
    state = trainer.begin(trainer.new_model())
    usual = dataclasses.replace(state.adversary.guard, good=jnp.int32(5), usual_norm=jnp.float32(1e-9))
    if spike:
        state = dataclasses.replace(state, adversary=dataclasses.replace(state.adversary, guard=usual))
    else:  # of its own loss alone
        monkeypatch.setattr(adversary, "hinge", lambda real, made: hinge(real, made) * factor)
    before, after, metrics = stepped(trainer, state)
    assert not metrics.skipped
    assert metrics.discriminator_skipped
    assert metrics.discriminator_consecutive_skips == 1
    assert after.adversary.guard.skipped == 1
    assert after.guard.good == 1
    for name in ("parameters", "optimizer"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before.adversary, name), getattr(after.adversary, name))
    assert not np.array_equal(before.model["codebook"][...], after.model["codebook"][...])
    window = VQGANWindow(None)
    for _ in range(2):
        window.add(LoadedBatch(None, None, {}), metrics)
    logged, skips = window.close(waited=0.0)
    assert skips == {"": 0, " of the discriminator": 1}
    assert (logged["discriminator_steps_left_out"], logged["discriminator_left_out_in_a_row"]) == (2, 1)


def test_it_learns():
    trainer = dataclasses.replace(
        TRAINER,
        loss=LossConfig(absolute=0.0, squared=1.0, perceptual=0.0, adversarial=0.0),
        optimizer=optax.adam(5e-3),
        steps=60,
    )
    step, state, errors = jax.jit(make_step(trainer)), trainer.begin(trainer.new_model()), []
    for _ in range(60):
        state, metrics = step(state, {}, np.repeat(random_images()[:, :2, :2], 8, axis=1).repeat(8, axis=2))
        errors.append(float(metrics.squared))
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: VQGANConfig(channels=(10,)), "groups 32 must divide"),
        (lambda: VQGANConfig(image_size=100), "must divide image_size 100"),
        (lambda: VQGANConfig(attention_levels=(5,)), "attention_levels"),
        (lambda: VQGANConfig(blocks=0), "at least 1"),
        (lambda: LossConfig(absolute=0.0), "the absolute or the squared error above 0"),
        (lambda: DiscriminatorConfig(layers=0), "at least 1"),
        (
            lambda: nnx.eval_shape(lambda: VQGAN(TRAINER.vqgan, rngs=nnx.Rngs(0)).encode(jnp.zeros((1, 15, 16, 3)))),
            "multiples of 2",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()
